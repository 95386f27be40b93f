"""One MLflow parent run per flow run, whichever flow was started: flows called from the pipeline join the pipeline's run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows._artifacts import publish_summary
from flows._liveness import label_flow_run
from flows._named_models import list_chats
from flows._summary import print_stage_table, reset_stage_rows, shown_tables, stage_rows
from flows._sweeps import add_seconds, join_sweep
from flows._tracking import TrackedRun, find_active_run, open_run
from flows._versioning import record_flow
from flows._workers import check_workers
from visloop.config import Config


@contextmanager
def open_flow_run(flow: str, config: Config) -> Iterator[TrackedRun]:
    """The run of ``flow``, or of the flow that called it.

    The outermost flow ends by recording its outputs with DVC. At its end, also a failing one, the gates' pages are kept with
    the run and the table of stages is printed. Every flow run, called ones as well, has its summary in Prefect's pages.
    """
    label_flow_run()
    joined = find_active_run()
    if joined is not None:
        with _summarized(flow, joined):
            yield joined
        return
    check_workers(config.workers, [*list_chats(config).values()])
    reset_stage_rows()
    started = time.perf_counter()
    with open_run(flow, config) as run:
        try:
            join_sweep(run, flow=flow)
            with _summarized(flow, run):
                yield run
                record_flow(flow, config)
        finally:
            add_seconds(run, time.perf_counter() - started)
            pages = Path(config.paths.mlruns) / "gates"
            if pages.is_dir() and run.origin != "finished":
                run.log_folder(pages, "gates")
            print_stage_table()


@contextmanager
def _summarized(flow: str, run: TrackedRun) -> Iterator[None]:
    """Publish what was done meanwhile, also when it ends with an error."""
    rows, tables = len(stage_rows()), len(shown_tables())
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        publish_summary(flow, run=run, rows=stage_rows()[rows:], tables=shown_tables()[tables:], error=error)
