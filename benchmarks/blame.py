"""How often each critic finds the guilty part of a failed run, on runs of the real, shipped tools.

    python -m benchmarks.blame [--tasks 80] [--seed 0]

Tool faults are the tools' own: gold programs about words that the shipped tools were not trained on, where the result is wrong; every
step that speaks of such a word is guilty, and so is the question that such a word is the answer of. Program faults are injected into runs
that were right (another tool, argument or constant, a missing step). ``injected``: tool faults put into right runs, the result for another
word with the confidence of that: one step is wrong and sure of it.

``repairs`` and ``confidence`` are the two kinds of evidence alone; ``global`` and ``local`` weigh both. ``twice`` is what a feedback's two
updates come to: where the global critique is wrong, so that learning from it cannot help, the local one that follows it. ``known`` and
``unseen`` are families with and without seed demonstrations; no critic here is trained, so that the two differ by their programs only.
``answers``: the feedback holds the right answer; ``pictures``: editing and tagging, where it does not, so that counterfactual re-runs say
nothing. Gold programs have no author who is sure of them; a planner is, mostly, of those that it gets right. Results go to
``benchmarks/results/blame.json``.
"""

import argparse
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from PIL import Image

from visloop.assistant.blame import BlameCritic, BlameLimits
from visloop.assistant.blame_scores import measure_blame
from visloop.assistant.cases import ANSWERED_LATER, Case
from visloop.assistant.faults import inject_fault
from visloop.assistant.interpreter import Execution, Job, run_programs
from visloop.assistant.traces import make_trace
from visloop.config_assistant import ToolsConfig
from visloop.evaluation.assistant import make_feedback, score_task
from visloop.records.assistant import Critique, Culprit, Proposal, TaskKind, TaskTruth, Trace
from visloop.scenes.pictures import encode_png
from visloop.scenes.tasks_tagging import FACTS
from visloop.scenes.workshop import BASE_VOCABULARY, BASE_WORDS, NOVEL_CONCEPTS
from visloop.scenes.workshop_tasks import list_families, make_tasks
from visloop.tools.pictures import prepare_image
from visloop.tools.toolbox import Toolbox, open_toolbox

RESULTS = Path(__file__).parent / "results" / "blame.json"
KINDS: tuple[TaskKind, ...] = ("vqa", "multi_image", "editing", "tagging")
ANSWERS = ("yes", "no", *BASE_VOCABULARY)


@dataclass(frozen=True)
class Guilt:
    """A failed run, who is to blame, and (for tools) the steps that are guilty, from 1."""

    case: Case
    culprit: Culprit
    steps: frozenset[int]
    group: str

    @property
    def tools(self) -> frozenset[str]:
        """The tools of the guilty steps."""
        return frozenset(step.tool for step in self.case.trace.steps if step.step in self.steps)

    def names(self, critique: Critique) -> bool:
        """Whether a critique blames a guilty part."""
        return critique.culprit == self.culprit and (self.culprit != "tool" or critique.step in self.steps)


def run_gold(
    kind: TaskKind, *, count: int, seed: int, novel: bool, tools: Toolbox, folder: Path
) -> list[tuple[Execution, TaskTruth, Trace]]:
    """Gold programs of drawn tasks, run with the shipped tools."""
    tasks, truths = make_tasks(
        folder, seed=seed, kind=kind, count=count, split="validation", novel_share=float(novel), new_wording_share=0.0
    )
    jobs = [
        Job(
            task,
            Proposal(task_id=task.id, plan=truth.plan, program=truth.program, author="gold"),
            {name: prepare_image(folder / image, max_side=640) for name, image in zip(task.inputs, task.images, strict=True)},
        )
        for task, truth in zip(tasks, truths, strict=True)
    ]
    runs = []
    for execution, truth in zip(run_programs(jobs, tools=tools), truths, strict=True):
        trace = make_trace(execution, describe_image=lambda picture: "a picture", save_image=partial(_save, folder=folder))
        runs.append((execution, truth, trace))
    return runs


def _save(picture: Image.Image, *, folder: Path) -> str:
    data, digest = encode_png(picture.convert("RGB"))
    (folder / f"{digest}.png").write_bytes(data)
    return f"{digest}.png"


def make_cases(*, count: int, seed: int, tools: Toolbox, folder: Path) -> tuple[list[Guilt], list[Guilt]]:
    """Failed runs with known guilt; and right runs with one result of a tool replaced by a wrong one."""
    words = tuple(word for group in ("shape", "color", "pattern") for word in BASE_WORDS[group])  # type: ignore[index]
    cases: list[Guilt] = []
    injected: list[Guilt] = []
    for kind in KINDS:
        known = set(list_families(kind, held_out=False))
        for novel in (True, False):
            for execution, truth, trace in run_gold(kind, count=count, seed=seed, novel=novel, tools=tools, folder=folder):
                task = execution.job.task
                group = f"{'known' if task.family in known else 'unseen'} {'answers' if truth.answer is not None else 'pictures'}"
                score = score_task(trace, truth, task=task, data=folder)
                if novel and not score.correct:
                    case = Case(execution=execution, trace=trace, feedback=make_feedback(trace, truth, score=score))
                    cases.append(Guilt(case, "tool", find_guilty(trace, task.concepts, truth.answer), group))
                if novel or not score.correct:
                    continue
                inject = partial(inject_fault, execution, tools=tools, words=words, answers=ANSWERS, seed=seed)
                if (faulty := inject(culprit="program")) is not None:
                    cases.append(Guilt(faulty.case, "program", frozenset(), group))
                if (faulty := inject(culprit="tool")) is not None and faulty.truth.step is not None:
                    injected.append(Guilt(faulty.case, "tool", frozenset({faulty.truth.step}), group))
    return cases, injected


def find_guilty(trace: Trace, concepts: Sequence[str], answer: str | None) -> frozenset[int]:
    """Steps whose line, or whose list of names, speaks of an unknown word; all that follow a list of names for tagging. Where the unknown
    word is the right answer, the last question: what it says is the result."""
    unknown = set(concepts) - set(ANSWERS)
    speaks = frozenset(
        step.step for step in trace.steps if any(word in " ".join((step.line, *step.arguments.values())).lower() for word in unknown)
    )
    questions = [step.step for step in trace.steps if step.tool == ANSWERED_LATER]
    return speaks | frozenset(questions[-1:] if answer in NOVEL_CONCEPTS else ())


def blame_twice(critic: BlameCritic, guilt: Sequence[Guilt], cases: Sequence[Case], *, tools: Toolbox) -> list[Critique]:
    """The global critique of each case; where that names no guilty part, the local one that comes next."""
    by_trace = {entry.case.trace.id: entry for entry in guilt}
    first = critic.criticize(cases, grain="global", tools=tools, seed=0)
    again = [
        replace(case, earlier=(critique,))
        for case, critique in zip(cases, first, strict=True)
        if not by_trace[case.trace.id].names(critique)
    ]
    second = {critique.trace_id: critique for critique in critic.criticize(again, grain="local", tools=tools, seed=0)}
    return [second.get(critique.trace_id, critique) for critique in first]


def list_critics(guilt: Sequence[Guilt], *, tools: Toolbox) -> dict[str, Callable[[Sequence[Case]], Sequence[Critique]]]:
    """The critics that need no LLM."""
    critic = BlameCritic()
    repairs, confidence = BlameCritic(limits=BlameLimits(use_confidence=False)), BlameCritic(limits=BlameLimits(use_repairs=False))
    return {
        "global": lambda cases: critic.criticize(cases, grain="global", tools=tools, seed=0),
        "local": lambda cases: critic.criticize(cases, grain="local", tools=tools, seed=0),
        "twice": lambda cases: blame_twice(critic, guilt, cases, tools=tools),
        "repairs": lambda cases: repairs.blame_evidence(cases, tools=tools),
        "confidence": lambda cases: confidence.blame_evidence(cases, tools=tools),
    }


def score_critic(
    name: str, blame: Callable[[Sequence[Case]], Sequence[Critique]], cases: Sequence[Guilt], *, faults: str
) -> list[dict[str, object]]:
    """A row per group of ``measure_blame``'s scores."""
    return [
        {
            "critic": name,
            "faults": faults,
            "group": group,
            "cases": scores.cases,
            "tool_faults": scores.tool_faults,
            "kind": shorten(scores.kind),
            "program": shorten(scores.program),
            "tool": shorten(scores.tool),
            "step": shorten(scores.step),
        }
        for group, scores in measure_blame(cases, blame).items()
    ]


def shorten(share: float | None) -> float | None:
    """A share as it is shown; None where there was nothing to share."""
    return None if share is None else round(share, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=80, help="drawn tasks per kind, twice")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    tools = open_toolbox(ToolsConfig(facts=FACTS.as_posix()))
    with tempfile.TemporaryDirectory() as temporary:
        cases, injected = make_cases(count=options.tasks, seed=options.seed, tools=tools, folder=Path(temporary))
        rows = [
            row
            for faults, found in (("own", cases), ("injected", injected))
            for name, blame in list_critics(found, tools=tools).items()
            for row in score_critic(name, blame, found, faults=faults)
        ]
    result = {
        "benchmark": "blame",
        "tasks_per_kind": options.tasks,
        "seed": options.seed,
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}",
        "rows": rows,
        "aims": {"tool, known": ">= 0.90", "tool, unseen": ">= 0.80"},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
