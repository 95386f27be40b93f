"""What the jobs of a sweep are compared by: one figure per flow run, with its interval, in MLflow and as the flow's return value.

It is measured on validation data, never on the test split: who picks the best of many jobs by the test split has no test left.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows._layout import Layout
from flows._tracking import TrackedRun
from visloop.config import Config
from visloop.evaluation.metrics import Row, measure_outcomes, read_outcomes
from visloop.evaluation.resampling import find_wilson
from visloop.records.reasoning import Prediction
from visloop.records.shards import read_shard

OBJECTIVE = "objective"
NAME_TAG = "visloop.objective"


def log_rows(run: TrackedRun, rows: list[Row], *, prefix: str) -> None:
    """Rows as metrics ``<prefix>.<name>.<metric>``, their intervals as ``.low`` and ``.high`` behind that."""
    for row in rows:
        key = f"{prefix}.{row.name}.{row.metric}"
        run.log_metrics({key: row.value, f"{key}.low": row.low, f"{key}.high": row.high})


def log_objective(run: TrackedRun, row: Row) -> float:
    """Record what the run is judged by; the value is for the sweeper."""
    run.log_metrics({OBJECTIVE: row.value, f"{OBJECTIVE}.low": row.low, f"{OBJECTIVE}.high": row.high})
    run.set_tags({NAME_TAG: f"{row.metric} of {row.name} (n = {row.n})"})
    return row.value


def measure_head(config: Config, layout: Layout, *, head: Mapping[str, Any]) -> Row:
    """The sampled accuracy of the last accepted reasoner, ``head``, on the validation split; scenes are redrawn."""
    predictions = read_shard(layout.root / head["validation"] / "predictions.jsonl", Prediction)
    outcomes = read_outcomes(predictions, metric="sampled_accuracy", name=f"M_{head['round']} on validation")
    evaluation = config.evaluation
    return measure_outcomes(outcomes, confidence=evaluation.confidence, bootstrap_samples=evaluation.bootstrap_samples, seed=config.seed)


def measure_cycle(config: Config, gate: dict[str, Any], *, number: int, tasks: Path) -> Row | None:
    """The share of the gate's held-out tasks that the pools after a cycle solve; Wilson's interval, as each is about a scene of its own.
    None where the gate had no such tasks."""
    value = gate["held_out_after"]
    if value is None:
        return None
    total = sum(1 for line in (tasks / "held_out.jsonl").read_text(encoding="utf-8").splitlines() if line)
    low, high = find_wilson(round(value * total), total, config.evaluation.confidence)
    return Row(f"cycle {number} on held-out tasks", "accuracy", value, low, high, total)
