"""A cycle in MLflow: a child run with its counts, its gate's figures and the hashes of its pools, whichever flow played it."""

from collections.abc import Mapping
from typing import Any

from flows._assistant_stages import read_tasks
from flows._layout import Layout
from flows._people import find_frozen, read_frozen
from flows._records import read_json
from flows._traces import log_traces
from flows._tracking import TrackedRun
from visloop.assistant.pools import POOL_NAMES
from visloop.config import Config
from visloop.errors import DataError
from visloop.records.assistant import Critique, Feedback, Trace
from visloop.records.manifest import read_manifest
from visloop.records.shards import read_shard

SHOWN_TRACES = 24
"""Runs per cycle that are shown in MLflow: each costs about a tenth of a second."""
PLAYED_BY = ("reflect_learn", "clova")
FOLDER_TAG, UNDONE_TAG = "cycle.folder", "cycle.rolled_back"
"""Tags: the folder that the cycle was played into; the rollback that took it back."""


def log_cycle(config: Config, layout: Layout, child: TrackedRun, number: int) -> None:
    """Record a finished cycle in its child run.

    Raises:
        DataError: the cycle is not finished.
    """
    folder = layout.cycle(number)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} is no finished cycle; play it first")
    child.log_stage(manifest)
    show_traces(config, layout, child, number)
    report = read_json(folder / "report.json")
    gate = {key: value for key, value in report["gate"].items() if isinstance(value, int | float)}
    spent = price_counts(config, report["counts"])
    sizes = {name: report[name] for name in POOL_NAMES if name != "judgements" or report.get(name)}
    child.log_round({**report["counts"], **spent, **gate, **sizes})
    child.set_tags({FOLDER_TAG: folder.as_posix(), **{f"pool.{name}": digest for name, digest in report["pools"].items()}})
    child.log_json(folder / "report.json")


def price_counts(config: Config, counts: Mapping[str, int]) -> dict[str, float]:
    """What the cycle's plans and critiques cost, ``cost/usd``; nothing where no LLM wrote any, or its price is unknown."""
    if "tokens/new" not in counts:
        return {}
    price = config.llm.price_tokens(prompt=counts["tokens/prompt"], new=counts["tokens/new"])
    return {} if price is None else {"cost/usd": sum(price)}


def show_traces(config: Config, layout: Layout, child: TrackedRun, number: int) -> None:
    """The first runs of a cycle as MLflow traces, with a span per program step and the feedback beside them."""
    folder, people = layout.cycle(number), find_frozen(config, layout, number)
    tasks = [*read_tasks(layout, "stream"), *(read_frozen(people).tasks if people else ())]
    log_traces(
        read_shard(folder / "traces.jsonl", Trace),
        {item.trace_id: item for item in read_shard(folder / "feedback.jsonl", Feedback)},
        tracked=child,
        critiques=read_shard(folder / "critiques.jsonl", Critique),
        tasks={task.id: task for task in tasks},
        llm=config.llm,
        limit=SHOWN_TRACES,
    )


def find_cycle_runs(layout: Layout, run: TrackedRun, number: int) -> list[Any]:
    """MLflow's runs of a cycle, without those of cycles that were taken back."""
    found = []
    for name in PLAYED_BY:
        experiment = run.client.get_experiment_by_name(name)
        if experiment is not None:
            query = f"tags.`{FOLDER_TAG}` = '{layout.cycle(number).as_posix()}'"
            found += [entry for entry in run.client.search_runs([experiment.experiment_id], query) if UNDONE_TAG not in entry.data.tags]
    return found
