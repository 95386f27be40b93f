"""What a flow run shows in Prefect's pages: a summary with the link to its MLflow run.

Outside of a flow run nothing happens, and an answer that Prefect does not give costs a line in the log, never the run.
"""

from collections.abc import Sequence

from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.context import FlowRunContext

from flows._progress import make_key, send_safely
from flows._servers import read_service
from flows._summary import StageRow
from flows._tracking import TrackedRun
from flows._tracking_place import find_place
from visloop.evaluation.tables import Table, render_markdown

DEFAULT_UI = "http://127.0.0.1:5000"


def publish_summary(
    flow: str, *, run: TrackedRun, rows: Sequence[StageRow], tables: Sequence[Table], error: BaseException | None = None
) -> None:
    """The two artifacts of a flow run: ``<flow>-summary`` in Markdown, and ``<flow>-mlflow``, the link to its MLflow run."""
    if FlowRunContext.get() is None:
        return
    link, key = link_run(run), make_key(flow)
    text = render_summary(flow, link=link, rows=rows, tables=tables, error=error)
    send_safely(lambda: create_markdown_artifact(markdown=text, key=f"{key}-summary", description=f"What {flow} did"))
    send_safely(lambda: create_link_artifact(link=link, link_text=f"MLflow run of {flow}", key=f"{key}-mlflow", description="Its history"))


def render_summary(flow: str, *, link: str, rows: Sequence[StageRow], tables: Sequence[Table], error: BaseException | None = None) -> str:
    """The summary as Markdown: how it ended, the link, the flow's own tables, and the stages."""
    ended = "finished" if error is None else f"stopped by {type(error).__name__}: {error}"
    parts = [f"## {flow}", f"{ended}. [MLflow run]({link})"]
    parts += [render_markdown(table) for table in tables]
    if rows:
        parts.append(render_markdown(tabulate_stages(rows)))
    return "\n\n".join(parts)


def tabulate_stages(rows: Sequence[StageRow]) -> Table:
    """The stages of a run: what was made, in how many seconds, with which counts."""
    cells = [
        (row.stage, row.state, f"{row.made}/{row.shards}", f"{row.seconds:.1f}", ", ".join(f"{k} {v:g}" for k, v in row.counts.items()))
        for row in rows
    ]
    return Table("Stages", ("stage", "state", "made", "seconds", "counts"), tuple(cells))


def link_run(run: TrackedRun) -> str:
    """The page of a run on the MLflow server that keeps it, else on this project's (where `make ui` would open it if none runs)."""
    record, place = read_service("mlflow"), find_place(run.mlruns).uri
    address = place.rstrip("/") if place.startswith("http") else record.url if record else DEFAULT_UI
    return f"{address}/#/experiments/{run.experiment_id}/runs/{run.run_id}"
