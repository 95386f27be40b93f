"""How often planners write the right program, and what retrieval finds.

    python -m benchmarks.planner_accuracy [tasks per kind]

Slot filling, the embedded LM, and the hybrid of the two (``planner@assistant.planner=embedded``), for known and held-out families, wordings
that are shipped and others, before and after one demonstration of a wording is stored. Tasks are drawn afresh (train split). Right means
the same syntax tree as the true program, up to the names of variables. Results go to ``benchmarks/results/planner_accuracy.json``.
"""

import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.lexicon import build_lexicon
from visloop.assistant.planner import open_planner
from visloop.assistant.retrieval import Encoder, MaskedEncoder, WordEncoder, retrieve
from visloop.config_assistant import PlannerChoice, PlannerConfig, WriterChoice
from visloop.embedded.card import Table, format_table
from visloop.embedded.planner_exam import CASE_SEED, Case, draw_cases, examine_planners
from visloop.scenes.workshop import BASE_VOCABULARY
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.scenes.workshop_tasks import find_family

RESULTS = Path(__file__).parent / "results" / "planner_accuracy.json"
CHOICES = {"slot filling": PlannerChoice.slot_filling, "LM": PlannerChoice.llm, "hybrid": PlannerChoice.hybrid}


def measure_planners(cases: list[Case], *, count: int) -> tuple[Table, dict[str, float]]:
    """The table for ``count`` tasks per kind, and CPU milliseconds per proposal for ``cases``."""
    planners = {
        name: open_planner(PlannerConfig(choice=choice, writer=WriterChoice.embedded), vocabulary=BASE_VOCABULARY)
        for name, choice in CHOICES.items()
    }
    table = examine_planners(planners, count=count)
    pool = DemonstrationPool(seed_demonstrations())
    costs = {}
    for name, planner in planners.items():
        begin = time.process_time()
        planner.propose([task for task, _, _ in cases], pool=pool, seed=0)
        costs[name] = (time.process_time() - begin) / len(cases) * 1000
    return table, costs


def measure_retrieval(cases: list[Case]) -> dict[str, dict[str, float]]:
    """How often the nearest demonstration of known families is one of the task's family, by its tools."""
    pool = DemonstrationPool(seed_demonstrations())
    encoders: dict[str, Encoder] = {
        "words, raw": WordEncoder(),
        "words, concepts masked": MaskedEncoder(WordEncoder(), build_lexicon(pool, vocabulary=BASE_VOCABULARY)),
    }
    found: dict[str, dict[str, float]] = {}
    for name, encoder in encoders.items():
        hits: defaultdict[str, list[bool]] = defaultdict(list)
        for task, truth, _ in cases:
            if find_family(task.kind, task.family).held_out:
                continue
            [(nearest, _)] = retrieve(task.instruction, pool.find("program", "success", task.kind), encoder=encoder, most=1)
            hits[task.wording].append(_list_tools(nearest.program) == _list_tools(truth.program))
        found[name] = {wording: sum(answers) / len(answers) for wording, answers in sorted(hits.items())}
    return found


def _list_tools(program: str) -> list[str]:
    return [line.partition("=")[2].partition("(")[0].partition("_")[0] for line in program.splitlines()]


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 120
    torch.set_num_threads(1)
    cases = draw_cases(count, seed=CASE_SEED)
    table, costs = measure_planners(cases, count=count)
    retrieval = measure_retrieval(cases)
    result = {
        "benchmark": "planner_accuracy",
        "tasks_per_kind": count,
        "right": table,
        "cpu_ms_per_proposal": costs,
        "retrieval": retrieval,
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(format_table(table, corner="right programs"))
    print(", ".join(f"{name} {cost:.0f} CPU ms per proposal" for name, cost in costs.items()))
    for name, hits in retrieval.items():
        print(f"rank-1 family, {name}: " + ", ".join(f"{wording} {share:.3f}" for wording, share in hits.items()))


if __name__ == "__main__":
    main()
