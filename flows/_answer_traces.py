"""The two agents' answers on the page as MLflow traces, and the MLflow runs that the page's traces belong to."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from flows._database import connect, get_experiment
from flows._entry import to_plain
from flows._provenance import describe_git
from flows._traces import TASK_TAG, TRACE_TAG
from flows._tracking import TrackedRun
from flows._tracking_place import bind_place
from flows._words import PageQuestion
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_json, make_id

_RUN_KEY = "mlflow.sourceRun"


@contextmanager
def open_page_run(experiment: str, config: Config) -> Iterator[TrackedRun]:
    """The MLflow run of one process that serves the page, in ``config.paths.mlruns``: a new one each time."""
    mlruns = Path(config.paths.mlruns).resolve()
    bind_place(config)
    client = connect(mlruns)
    experiment_id = get_experiment(client, experiment, mlruns=mlruns)
    digest = hash_json(to_plain(config))
    key = make_id(experiment, digest, uuid4())
    tags = {**describe_git(Path.cwd()), "hash.config": digest}
    run = TrackedRun.start(client, experiment_id, run_name=experiment, key=key, labels=tags, mlruns=mlruns)
    try:
        yield run
    finally:
        client.set_terminated(run.run_id, "FINISHED")


def log_question(question: PageQuestion, *, tracked: TrackedRun) -> bool:
    """Log an answer as a trace: an AGENT span with the reasoner's and the summarizer's LLM spans below it, a CHAIN span per step of the
    chain. False where it is there already. Written to the database when this returns.

    Raises:
        DataError: MLflow did not keep the trace.
    """
    import mlflow
    from mlflow.entities import SpanType

    connect(tracked.mlruns)
    if _is_logged(question.id, tracked):
        return False
    sample, chain, answer = question.sample, question.chain, question.answer
    root = mlflow.start_span_no_context(
        "question",
        span_type=SpanType.AGENT,
        inputs={"question": sample.question, "images": list(sample.images)},
        attributes={"model": question.model, "seconds": str(question.seconds), "status": answer.status},
        tags={TRACE_TAG: question.id, TASK_TAG: sample.id, "visloop.model": question.model},
        metadata={_RUN_KEY: tracked.run_id},
        experiment_id=tracked.experiment_id,
    )
    reasoner = mlflow.start_span_no_context(
        "reasoner", span_type=SpanType.LLM, parent_span=root, inputs={"question": sample.question}, attributes={"status": chain.status}
    )
    for number, step in enumerate(chain.steps, start=1):
        span = mlflow.start_span_no_context(f"step {number}", span_type=SpanType.CHAIN, parent_span=reasoner, inputs=step.summary)
        span.end(outputs=step.reasoning)
    reasoner.end(outputs={"answer": chain.answer, "reply": list(chain.replies)})
    summarizer = mlflow.start_span_no_context(
        "summarizer", span_type=SpanType.LLM, parent_span=root, inputs={"chains": list(answer.chains)}
    )
    summarizer.end(outputs={"answer": answer.answer, "reply": answer.raw})
    root.end(outputs={"answer": answer.answer})
    mlflow.flush_trace_async_logging()
    if not _is_logged(question.id, tracked):
        raise DataError(f"MLflow did not keep the trace of question {question.id} in {tracked.mlruns}: see that tracing is switched on")
    return True


def _is_logged(question_id: str, tracked: TrackedRun) -> bool:
    query = f"tag.`{TRACE_TAG}` = '{question_id}'"
    return bool(tracked.client.search_traces(locations=[tracked.experiment_id], filter_string=query, include_spans=False))
