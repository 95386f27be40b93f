"""How often slot filling writes the right program, before and after one demonstration of a wording is stored, and what retrieval finds.

    python -m benchmarks.planner_accuracy [tasks per kind]

Tasks are drawn afresh (train split). Right means: the same syntax tree as the true program, up to the names of variables.
"""

import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from visloop.assistant.demonstrations import DemonstrationPool, make_demonstration
from visloop.assistant.lexicon import build_lexicon
from visloop.assistant.planner import open_planner
from visloop.assistant.proposals import normalize_program
from visloop.assistant.retrieval import Encoder, MaskedEncoder, WordEncoder, retrieve
from visloop.config_assistant import PlannerConfig
from visloop.records.assistant import Demonstration, Task, TaskTruth
from visloop.scenes.workshop import BASE_WORDS
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.scenes.workshop_tasks import FAMILIES, find_family, make_tasks

WORDS = [word for words in BASE_WORDS.values() for word in words]
Case = tuple[Task, TaskTruth, str]


def draw_cases(count: int, *, seed: int) -> list[Case]:
    """Tasks of all kinds with their truths and the wording (template) of each."""
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


def measure(count: int) -> None:
    """Print both tables."""
    pool = DemonstrationPool(seed_demonstrations())
    cases = draw_cases(count, seed=7)
    lessons = {(task.kind, task.family, wording): learn(task, truth) for task, truth, wording in draw_cases(2 * count, seed=8)}
    families = {
        (task.kind, task.family): [lesson for key, lesson in lessons.items() if key[:2] == (task.kind, task.family)] for task, _, _ in cases
    }
    planner = open_planner(PlannerConfig(candidates=16), vocabulary=WORDS)
    right: defaultdict[tuple[str, str], list[bool]] = defaultdict(list)
    start = time.process_time()
    for task, truth, wording in cases:
        family = find_family(task.kind, task.family)
        group = f"{'held-out' if family.held_out else 'known'} family, {task.wording} wording"
        pools = {"seeds": pool}
        if family.held_out:
            shown = [
                lesson
                for lesson in families[task.kind, task.family]
                if lesson in [lessons.get((task.kind, task.family, text)) for text in family.base]
            ]
            pools["seeds + base wordings of the family"] = pool.add(shown)
        if (task.kind, task.family, wording) in lessons:
            pools["+ one of this wording"] = pool.add([lessons[task.kind, task.family, wording]])
        for name, entries in pools.items():
            [found] = planner.propose([task], pool=entries, seed=0)
            right[group, name].append(normalize_program(found.program) == normalize_program(truth.program))
    for (group, name), results in sorted(right.items()):
        print(f"{group:35} {name:38} {sum(results) / len(results):.3f}  n={len(results)}")
    print(f"{(time.process_time() - start) / sum(map(len, right.values())) * 1000:.0f} CPU ms per proposal, a new pool for each")
    measure_retrieval(cases, pool=pool)


def measure_retrieval(cases: list[Case], *, pool: DemonstrationPool) -> None:
    """Print how often the nearest demonstration of known families is one of the task's family, by its tools."""
    encoders: dict[str, Encoder] = {
        "words, raw": WordEncoder(),
        "words, concepts masked": MaskedEncoder(WordEncoder(), build_lexicon(pool, vocabulary=WORDS)),
    }
    for name, encoder in encoders.items():
        hits: defaultdict[str, list[bool]] = defaultdict(list)
        for task, truth, _ in cases:
            if find_family(task.kind, task.family).held_out:
                continue
            [(nearest, _)] = retrieve(task.instruction, pool.find("program", "success", task.kind), encoder=encoder, most=1)
            hits[task.wording].append(_list_tools(nearest.program) == _list_tools(truth.program))
        print(
            f"rank-1 family, {name:25} " + "  ".join(f"{wording} {sum(found) / len(found):.3f}" for wording, found in sorted(hits.items()))
        )


def _list_tools(program: str) -> list[str]:
    return [line.partition("=")[2].partition("(")[0].partition("_")[0] for line in program.splitlines()]


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else 120)
