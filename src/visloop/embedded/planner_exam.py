"""How often planners write the right program: for known and held-out families, wordings that are shipped and others, before and after one
demonstration of a wording is stored. Right means the same syntax tree as the true program, up to the names of variables."""

import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from visloop.assistant.demonstrations import DemonstrationPool, make_demonstration
from visloop.assistant.proposals import Planner, normalize_program
from visloop.embedded.card import Table
from visloop.records.assistant import Demonstration, Task, TaskTruth
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.scenes.workshop_tasks import FAMILIES, find_family, make_tasks

CASE_SEED: Final = 7
Case = tuple[Task, TaskTruth, str]
"""A task, its truth, and its wording as a template."""


def draw_cases(count: int, *, seed: int) -> list[Case]:
    """``count`` tasks of each kind, half of them worded as no seed demonstration is, half about a novel word (train split)."""
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as out:
        for kind in FAMILIES:
            tasks, truths = make_tasks(Path(out), seed=seed, kind=kind, count=count, split="train", novel_share=0.5, new_wording_share=0.5)
            cases += [(task, truth, _name_wording(task)) for task, truth in zip(tasks, truths, strict=True)]
    return cases


def _name_wording(task: Task) -> str:
    """Which of its family's wordings an instruction has: the one with the most words in common."""
    family = find_family(task.kind, task.family)
    said = set(task.instruction.lower().replace(",", "").rstrip(".?").split())
    texts = family.base if task.wording == "base" else family.new
    return max(texts, key=lambda text: len(said & set(text.lower().replace(",", "").rstrip(".?").split())))


def learn(task: Task, truth: TaskTruth) -> Demonstration:
    """The corrected program of a task, as a stored demonstration."""
    return make_demonstration(
        kind="program",
        outcome="success",
        task_kind=task.kind,
        instruction=task.instruction,
        plan=truth.plan,
        program=truth.program,
        provenance="repaired",
    )


def examine_planners(planners: Mapping[str, Planner], *, count: int, seed: int = CASE_SEED) -> Table:
    """A row per group of tasks and pool of demonstrations: how many tasks, and the share of right programs of every planner.

    Pools: the seeds; with the base wordings of a held-out family; with one demonstration of the task's own wording (other words).
    """
    seeds = DemonstrationPool(seed_demonstrations())
    lessons = {(task.kind, task.family, wording): learn(task, truth) for task, truth, wording in draw_cases(2 * count, seed=seed + 1)}
    # a pool's tasks are asked together: planners batch them
    pools_of: dict[str, DemonstrationPool] = {}
    asked: defaultdict[str, list[tuple[str, Task, TaskTruth]]] = defaultdict(list)
    for task, truth, wording in draw_cases(count, seed=seed):
        family = find_family(task.kind, task.family)
        pools = {"seeds": seeds}
        if family.held_out:
            shown = [lessons[key] for text in family.base if (key := (task.kind, task.family, text)) in lessons]
            pools["its base wordings"] = seeds.add(shown)
        if (lesson := lessons.get((task.kind, task.family, wording))) is not None:
            pools["one of its wording"] = seeds.add([lesson])
        group = f"{'held-out' if family.held_out else 'known'} family, {task.wording} wording"
        for name, pool in pools.items():
            pools_of[pool.hash] = pool
            asked[pool.hash].append((f"{group}: {name}", task, truth))
    right: defaultdict[str, defaultdict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for key, cases in asked.items():
        for name, planner in planners.items():
            proposals = planner.propose([task for _, task, _ in cases], pool=pools_of[key], seed=0)
            for (row, _, truth), found in zip(cases, proposals, strict=True):
                right[row][name].append(normalize_program(found.program) == normalize_program(truth.program))
    return {row: _share(right[row]) for row in sorted(right)}


def _share(answers: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    counted = {"tasks": len(next(iter(answers.values())))}
    return counted | {name: sum(given) / len(given) for name, given in answers.items()}
