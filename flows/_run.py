"""One MLflow parent run per flow run, whichever flow was started: flows called from the pipeline join the pipeline's run."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flows._code import hash_code
from flows._entry import to_plain
from flows._summary import print_stage_table, reset_stage_rows
from flows._tracking import TrackedRun, open_run
from visloop.config import Config
from visloop.records.manifest import Manifest

_current: ContextVar["RunLog | None"] = ContextVar("visloop_run", default=None)


@dataclass(frozen=True)
class RunLog:
    """What flows record. A run that had been finished before records nothing again."""

    run: TrackedRun

    @property
    def _open(self) -> bool:
        return self.run.origin != "finished"

    def log_stage(self, manifest: Manifest) -> None:
        """A stage's counts as metrics ``<stage>.<count>``, its key and its outputs' hash as tags."""
        if self._open:
            name = manifest.stage.replace(" ", "_")
            self.run.log_metrics({f"{name}.{key}": value for key, value in manifest.counts.items()})
            self.run.log_hashes({name: manifest.key})

    def log_metrics(self, values: Mapping[str, Any], *, step: int) -> None:
        """Numbers at a step; what is no number is passed over."""
        if self._open:
            self.run.log_metrics({key: value for key, value in values.items() if isinstance(value, int | float)}, step=step)

    def log_round(self, values: Mapping[str, Any]) -> None:
        """A child's numbers, on the child and on its parent, with the round as step."""
        if self._open:
            self.run.log_round({key: value for key, value in values.items() if isinstance(value, int | float)})

    def log_json(self, path: Path) -> None:
        """A stage's report as an artifact, named after its folder."""
        if self._open:
            self.run.log_report(json.loads(path.read_text(encoding="utf-8")), f"{path.parent.name}_{path.stem}")

    def log_history(self, path: Path, *, prefix: str) -> None:
        """The training history that a training stage left."""
        if self._open:
            self.run.log_history(json.loads(path.read_text(encoding="utf-8"))["history"], prefix=f"{prefix}.")

    def log_plots(self, paths: Sequence[Path]) -> None:
        if self._open:
            for path in paths:
                self.run.log_plot(path)

    def log_gates(self, folder: Path) -> None:
        """The gates' HTML pages."""
        if self._open and folder.is_dir():
            self.run.log_folder(folder, "gates")

    def register(self, name: str, folder: Path, *, metrics: Mapping[str, Any], aliases: Sequence[str], tags: Mapping[str, str]) -> None:
        """A version of a registered model."""
        if self._open:
            from flows._registry import register_model

            numbers = {key: float(value) for key, value in metrics.items() if isinstance(value, int | float)}
            register_model(self.run, name=name, folder=folder, metrics=numbers, aliases=aliases, tags=tags)

    @contextmanager
    def open_child(self, name: str, *, step: int) -> Iterator["RunLog"]:
        """The nested run of a round."""
        with self.run.open_child(name, step=step) as child:
            yield RunLog(child)


@contextmanager
def open_flow_run(flow: str, config: Config) -> Iterator[RunLog]:
    """The run of ``flow``, or of the flow that called it. At the end of the outermost one the table of stages is printed."""
    joined = _current.get()
    if joined is not None:
        yield joined
        return
    from prefect.runtime import flow_run

    reset_stage_rows()
    mlruns = Path(config.paths.mlruns)
    start = partial(open_run, flow, config=to_plain(config), mlruns=mlruns, hashes={"code": hash_code(["visloop"])})
    with start(run_name=flow_run.get_name() or flow, tags={"prefect.flow_run_id": flow_run.get_id() or ""}) as run:
        log = RunLog(run)
        token = _current.set(log)
        try:
            yield log
        finally:
            _current.reset(token)
            log.log_gates(mlruns / "gates")
            print_stage_table()
