"""What happened, in MLflow: one parent run per flow run, one child per round M_t, by default in ``mlruns``.

The rule that keeps re-runs from piling up: a run carries a key made from what it was made from (experiment, config, code).
An unfinished run with the same key is re-opened and continued; a finished one counts that it was asked for again and records
nothing, until a stage turns out to have left other bytes than it had. Values that are already recorded at a step are not recorded
twice. The library is imported on first use (three seconds).
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext

from flows._code import hash_code
from flows._database import (
    ERROR_TAG,
    PARENT_TAG,
    Origin,
    PatientClient,
    close_orphans,
    connect,
    get_experiment,
    resume_run,
    start_run,
)
from flows._entry import to_plain
from flows._provenance import MAX_TAG, clean_name, describe_git, describe_versions, flatten_config
from flows._records import read_json
from flows._tracking_place import bind_place
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_json, make_id
from visloop.records.manifest import Manifest

CODE = (
    *("visloop.assistant", "visloop.chat", "visloop.datasets", "visloop.evaluation", "visloop.prompts", "visloop.reasoning"),
    *("visloop.memory", "visloop.records", "visloop.scenes", "visloop.tools", "visloop.training"),
)
"""Packages whose code (and all that they import) enters a run's key: all of the project but ``visloop.embedded``, which builds the shipped
weights and which no flow calls."""

_PARAMS_PER_CALL, _METRICS_PER_CALL = 100, 1000
_active: ContextVar["TrackedRun | None"] = ContextVar("active_run", default=None)
_log = logging.getLogger(__name__)


class TrackedRun:
    """One MLflow run. Every call names the run, so threads and nested runs cannot log into each other.

    ``origin`` says whether the run is new; ``step`` is a child's round, 0 for a parent. While ``origin`` is ``finished``, whatever is
    logged is passed over: it is there. ``labels`` are the tags that this call came with; a finished run gets them when it is re-opened.
    """

    def __init__(
        self,
        client: PatientClient,
        *,
        run_id: str,
        experiment_id: str,
        key: str,
        origin: Origin,
        mlruns: Path,
        labels: Mapping[str, str],
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.experiment_id = experiment_id
        self.key = key
        self.origin = origin
        self.mlruns = mlruns
        self.labels = labels
        self.parent: TrackedRun | None = None
        self.step = 0
        self._recorded: dict[tuple[str, int], float] | None = {} if origin == "new" else None

    @classmethod
    def start(
        cls, client: PatientClient, experiment_id: str, *, run_name: str, key: str, labels: Mapping[str, str], mlruns: Path
    ) -> "TrackedRun":
        """The run with this key: a new one, one that was broken off, or one that is finished; see ``start_run``."""
        found = start_run(client, experiment_id, run_name=run_name, key=key, tags=labels)
        return cls(client, run_id=found.run_id, experiment_id=experiment_id, key=key, origin=found.origin, mlruns=mlruns, labels=labels)

    def log_metrics(self, values: Mapping[str, float | int | None], *, step: int = 0) -> None:
        """Record numbers at ``step``. None is passed over; a value that is not finite is named in the log and passed over.

        What is already recorded with the same value at the same step is not recorded again.
        """
        self._record([(name, step, float(value)) for name, value in values.items() if value is not None])

    def log_history(self, history: Path | Sequence[Mapping[str, Any]], *, prefix: str = "") -> None:
        """Record a trainer's log: rows with ``step`` and numbers (``TrainerState.log_history``), as metrics ``<prefix>/<name>``.

        Args:
            history: the rows, or a JSON file that has them under the key ``history``.
        """
        rows = read_json(history).get("history", []) if isinstance(history, Path) else history
        self._record(
            [
                (f"{prefix}/{name}" if prefix else name, int(row.get("step", 0)), float(value))
                for row in rows
                for name, value in row.items()
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
            ]
        )

    def log_round(self, values: Mapping[str, float | int | None]) -> None:
        """Record numbers of a round on this run and on its parent, with the round as step: the parent's chart is the curve."""
        self.log_metrics(values, step=self.step)
        if self.parent is not None:
            self.parent.log_metrics(values, step=self.step)

    def log_stage(self, manifest: Manifest) -> None:
        """Record what a stage left: counts as metrics ``<stage>/<count>``, the hash of its files as tag and as dataset."""
        stage, digest = manifest.stage.replace(" ", "_"), hash_json(manifest.files)
        if self.origin == "finished":
            if self.client.get_run(self.run_id).data.tags.get(f"hash.{stage}") == digest:
                return
            self._reopen()
        self.log_metrics({f"{stage}/{name}": value for name, value in manifest.counts.items()}, step=self.step)
        self.log_hashes({stage: digest})
        self._log_dataset(stage, digest=digest, source={"stage": manifest.stage, "key": manifest.key})

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Record settings that the run does not have yet; MLflow's are immutable, so the first value stays."""
        if self.origin == "finished":
            return
        from mlflow.entities import Param

        known = self.client.get_run(self.run_id).data.params
        params = [Param(key, value) for key, value in flatten_config(values).items() if key not in known]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self.client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags; long values are cut."""
        if self.origin == "finished":
            return
        from mlflow.entities import RunTag

        self.client.log_batch(self.run_id, tags=[RunTag(key, str(value)[:MAX_TAG]) for key, value in tags.items()])

    def log_hashes(self, hashes: Mapping[str, str]) -> None:
        """Tags ``hash.<name>``: of config, code, or files that DVC keeps."""
        self.set_tags({f"hash.{name}": digest for name, digest in hashes.items()})

    def log_json(self, path: Path) -> None:
        """Keep a stage's report as the artifact ``reports/<folder>/<file>``; its numbers at top level become metrics ``<folder>/<key>``.

        Raises:
            DataError: the file is missing or no JSON.
        """
        report = read_json(path)
        if self.origin == "finished":
            return
        self.client.log_artifact(self.run_id, str(path), f"reports/{path.parent.name}")
        if isinstance(report, dict):
            numbers = {key: value for key, value in report.items() if isinstance(value, int | float) and not isinstance(value, bool)}
            self.log_metrics({f"{path.parent.name}/{key}": value for key, value in numbers.items()}, step=self.step)

    def log_plot(self, path: Path) -> None:
        """Keep a picture as the artifact ``plots/<file name>``.

        Raises:
            DataError: there is no such file.
        """
        if not path.is_file():
            raise DataError(f"{path}: no such file to log; write the plot before it is logged")
        if self.origin != "finished":
            self.client.log_artifact(self.run_id, str(path), "plots")

    def log_folder(self, folder: Path, name: str) -> None:
        """Keep every file of ``folder`` as artifacts under ``name/`` (a gate's page, a folder of reports).

        Raises:
            DataError: there is no such folder.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder to log")
        if self.origin != "finished":
            self.client.log_artifacts(self.run_id, str(folder), name)

    @contextmanager
    def open_child(self, run_name: str, *, step: int, tags: Mapping[str, str] | None = None) -> Iterator["TrackedRun"]:
        """The nested run of one round (``step``); its key is the parent's key and its name, so it is continued as the parent is."""
        labels = {PARENT_TAG: self.run_id, "round": str(step), **(tags or {})}
        key = make_id(self.key, run_name, step)
        child = TrackedRun.start(self.client, self.experiment_id, run_name=run_name, key=key, labels=labels, mlruns=self.mlruns)
        child.parent, child.step = self, step
        with _closing(child):
            yield child

    def _reopen(self) -> None:
        """A finished run whose work was done again with another outcome (an input changed, a damaged file): it records again, and where
        it comes from is said anew: commit, versions and process are this call's, not those of the outcome before."""
        self.origin = "resumed"
        resume_run(self.client, self.run_id, tags=self.labels)
        if self.parent is not None and self.parent.origin == "finished":
            self.parent._reopen()

    def _record(self, entries: Sequence[tuple[str, int, float]]) -> None:
        if self.origin == "finished":
            return
        from mlflow.entities import Metric

        recorded, now = self._read_recorded(), int(time.time() * 1000)
        batch = []
        for name, step, value in entries:
            key = clean_name(name)
            if not math.isfinite(value):
                _log.warning("metric %s is %s at step %d: not recorded", key, value, step)
            elif recorded.get((key, step)) != value:
                recorded[(key, step)] = value
                batch.append(Metric(key, value, now, step))
        for start in range(0, len(batch), _METRICS_PER_CALL):
            self.client.log_batch(self.run_id, metrics=batch[start : start + _METRICS_PER_CALL])

    def _read_recorded(self) -> dict[tuple[str, int], float]:
        if self._recorded is None:
            names = self.client.get_run(self.run_id).data.metrics
            self._recorded = {
                (name, entry.step): entry.value for name in names for entry in self.client.get_metric_history(self.run_id, name)
            }
        return self._recorded

    def _log_dataset(self, name: str, *, digest: str, source: Mapping[str, str]) -> None:
        from mlflow.entities import Dataset, DatasetInput

        dataset = Dataset(name=name, digest=digest[:36], source_type="dvc", source=json.dumps(source))
        self.client.log_inputs(self.run_id, datasets=[DatasetInput(dataset)])


@contextmanager
def open_run(
    experiment: str,
    config: Config,
    *,
    run_name: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Iterator[TrackedRun]:
    """The parent run of one flow run, in ``config.paths.mlruns``.

    Ends as FINISHED, as FAILED when the body raises an error (tag ``visloop.error``), as KILLED when it is interrupted. Runs of
    this experiment whose process has died are marked KILLED on the way.

    Args:
        experiment: the flow's name.
        config: becomes parameters, the artifact ``config.json`` and, with the code, the run's key.
        run_name: by default the name of the Prefect flow run, or the experiment's.
        tags: further tags. They do not enter the key.
    """
    mlruns, plain = Path(config.paths.mlruns).resolve(), to_plain(config)
    bind_place(config)
    client = connect(mlruns)
    experiment_id = get_experiment(client, experiment, mlruns=mlruns)
    hashes = {"config": hash_json(plain), "code": hash_code(CODE)}
    key = make_id(experiment, hash_json(hashes))
    close_orphans(client, experiment_id, keep=key)
    labels = {
        **describe_git(Path.cwd()),
        **describe_versions(),
        **{f"hash.{name}": value for name, value in hashes.items()},
        **(tags or {}),
    }
    flow_run = getattr(FlowRunContext.get(), "flow_run", None)
    if flow_run is not None:
        labels["prefect.flow_run_id"] = str(flow_run.id)
    name = run_name or (flow_run.name if flow_run is not None else experiment)
    run = TrackedRun.start(client, experiment_id, run_name=name, key=key, labels=labels, mlruns=mlruns)
    outer = _active.set(run)
    try:
        with _closing(run):
            if run.origin != "finished":
                run.log_params(plain)
                client.log_dict(run.run_id, plain, "config.json")
            yield run
    finally:
        _active.reset(outer)


def find_active_run() -> TrackedRun | None:
    """The run that ``open_run`` has open around the caller, if any."""
    return _active.get()


@contextmanager
def _closing(run: TrackedRun) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        run.client.set_tag(run.run_id, ERROR_TAG, f"{type(error).__name__}: {error}"[:MAX_TAG])
        run.client.set_terminated(run.run_id, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    if run.origin != "finished":
        run.client.set_terminated(run.run_id, "FINISHED")
