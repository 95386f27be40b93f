"""Multiruns in MLflow: each job is one parent run that names its multirun, and a sweep is read back as a table of its jobs.

The same work is recorded once, so a run may be a job of several multiruns: it has a tag for each, ``visloop.sweep.<multirun>``, with the
job's number and overrides. It bears the name of the Prefect flow run that asked for it last.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from flows._database import ERROR_TAG, PARENT_TAG, connect
from flows._entry import find_sweep_job
from flows._objective import NAME_TAG, OBJECTIVE
from flows._provenance import MAX_TAG
from flows._tracking import TrackedRun
from visloop.errors import ConfigError, DataError

SWEEP_TAG, SECONDS_TAG = "visloop.sweep.", "visloop.seconds"
_LOW, _HIGH = ".low", ".high"
_PLACES = ("paths.", "hydra.")
"""Overrides that say where a job works, not what it does."""


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """A job. ``value`` is None where it did not get as far; ``low`` and ``high`` where the figure has no interval. ``seconds``: wall
    time of its own attempts; what an earlier job had made already is not in it."""

    job: int
    name: str
    overrides: tuple[str, ...]
    value: float | None
    low: float | None
    high: float | None
    seconds: float
    status: str
    run_id: str
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A multirun: jobs, best first, then those without a figure. ``confidence`` is that of their intervals."""

    name: str
    flow: str
    metric: str
    meaning: str
    confidence: float
    rows: tuple[SweepRow, ...]


def join_sweep(run: TrackedRun, *, flow: str) -> None:
    """Mark the run as what a job of a multirun made; nothing where this process is at work on none, or the run is not the job's own."""
    job = find_sweep_job()
    if job is None or job.flow != flow:
        return
    text = json.dumps({"job": job.number, "at": round(time.time(), 3), "overrides": list(job.overrides)})
    if len(text) > MAX_TAG:
        hint = "put those that all jobs share into an experiment file"
        raise ConfigError(f"job {job.number} of {job.sweep}: {len(text)} characters of overrides; {hint}")
    run.client.set_tag(run.run_id, f"{SWEEP_TAG}{job.sweep}", text)
    flow_run = getattr(FlowRunContext.get(), "flow_run", None)
    if flow_run is not None and run.origin != "new":
        run.client.update_run(run.run_id, name=flow_run.name)
        run.client.set_tag(run.run_id, "prefect.flow_run_id", str(flow_run.id))


def add_seconds(run: TrackedRun, seconds: float) -> None:
    """Add up what the attempts at a run took; what a killed one took is not known. Asking for finished work costs nothing."""
    if run.origin != "finished":
        before = float(run.client.get_run(run.run_id).data.tags.get(SECONDS_TAG, "0"))
        run.client.set_tag(run.run_id, SECONDS_TAG, f"{before + seconds:.2f}")


def list_sweeps(mlruns: Path) -> list[str]:
    """Names of the multiruns, oldest first."""
    asked: dict[str, float] = {}
    for run in _search(mlruns, f"tags.`{PARENT_TAG}` IS NULL"):
        for tag, text in run.data.tags.items():
            if tag.startswith(SWEEP_TAG):
                name = tag.removeprefix(SWEEP_TAG)
                asked[name] = max(asked.get(name, 0.0), float(json.loads(text)["at"]))
    return sorted(asked, key=lambda name: asked[name])


def read_sweep(mlruns: Path, *, name: str | None = None, metric: str | None = None, minimize: bool = False) -> Sweep:
    """The jobs of a multirun with one figure each.

    Args:
        name: of the multirun, or its end; None: the newest.
        metric: a metric of the jobs' runs; None: what the flow is judged by on validation data.
        minimize: whether the least is best.

    Raises:
        DataError: there is no such multirun, several end like this, or no job has the metric.
    """
    known = list_sweeps(mlruns)
    fitting = known[-1:] if name is None else [one for one in known if one.endswith(name)]
    if len(fitting) != 1:
        there = f"there are: {', '.join(known)}" if known else f"no multirun was recorded in {mlruns} yet"
        raise DataError(f"multirun {name!r}: {len(fitting)} end like this; {there}" if name else there)
    [sweep] = fitting
    tag = f"{SWEEP_TAG}{sweep}"
    runs = _search(mlruns, f"tags.`{tag}` LIKE '%'")
    chosen = metric or OBJECTIVE
    if not any(chosen in run.data.metrics for run in runs):
        have = sorted({key for run in runs for key in run.data.metrics if f"{key}{_LOW}" in run.data.metrics} - {chosen})
        hint = f"name another one with --metric; with an interval there are: {', '.join(have)}" if have else "no job got as far"
        raise DataError(f"{sweep}: no job has the metric {chosen!r}; {hint}")
    rows = [_read_row(run, tag=tag, metric=chosen) for run in runs]
    done = sorted((row for row in rows if row.value is not None), key=lambda row: (row.value if minimize else -(row.value or 0), row.job))
    rest = sorted((row for row in rows if row.value is None), key=lambda row: row.job)
    meanings = [run.data.tags[NAME_TAG] for run in runs if NAME_TAG in run.data.tags]
    flow = connect(mlruns).get_experiment(runs[0].info.experiment_id).name
    meaning = (meanings[0] if meanings else "") if metric is None else ""
    confidence = float(runs[0].data.params.get("evaluation.confidence", "0.95"))
    return Sweep(name=sweep, flow=flow, metric=chosen, meaning=meaning, confidence=confidence, rows=(*done, *rest))


def pick_overrides(rows: Sequence[SweepRow]) -> list[tuple[str, ...]]:
    """Of each job the overrides in which the jobs differ, places apart: what the sweep was about."""
    shared = set.intersection(*(set(row.overrides) for row in rows)) if len(rows) > 1 else set()
    return [tuple(one for one in row.overrides if one not in shared and not one.startswith(_PLACES)) for row in rows]


def _read_row(run: Any, *, tag: str, metric: str) -> SweepRow:
    tags, metrics = run.data.tags, run.data.metrics
    job = json.loads(tags[tag])
    return SweepRow(
        job=int(job["job"]),
        name=run.info.run_name,
        overrides=tuple(job["overrides"]),
        value=metrics.get(metric),
        low=metrics.get(f"{metric}{_LOW}"),
        high=metrics.get(f"{metric}{_HIGH}"),
        seconds=float(tags.get(SECONDS_TAG, "0")),
        status=run.info.status.lower(),
        run_id=run.info.run_id,
        error=tags.get(ERROR_TAG, ""),
    )


def _search(mlruns: Path, query: str) -> list[Any]:
    """Runs of all experiments, page by page."""
    client = connect(mlruns)
    experiments = [entry.experiment_id for entry in client.search_experiments()]
    found: list[Any] = []
    token = None
    while True:
        page = client.search_runs(experiments, query, max_results=1000, page_token=token)
        found += page
        token = page.token
        if not token:
            return found
