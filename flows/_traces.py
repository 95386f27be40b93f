"""The assistant's runs as MLflow traces: a span per program line, what came back as assessments, and what people add to them.

A trace is found again by the tag with our own trace id, so that one run of a program is one trace however often it is logged. People's
assessments can be changed at any time: who learns from them keeps the records that ``read_new_feedback`` gave.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from flows._database import PatientClient, call_patiently, connect
from flows._trace_spans import count_spans, measure_steps, write_spans
from flows._tracking import TrackedRun
from visloop.answers import read_boolean
from visloop.config import ChatConfig
from visloop.errors import DataError
from visloop.ids import make_id
from visloop.records.assistant import Critique, Feedback, Task, Trace

TRACE_TAG, TASK_TAG, CYCLE_TAG, CULPRIT_TAG = "visloop.trace_id", "visloop.task_id", "visloop.cycle", "visloop.culprit"
KIND_TAG, FAMILY_TAG = "visloop.kind", "visloop.family"
VERDICT, ANSWER = "correct", "answer"
"""Names of the assessments: the feedback whether the result is right, and the expectation what it should be."""
FEEDBACK_KEY: Final = "visloop.feedback_id"
"""In the metadata of assessments that were logged from a ``Feedback`` record, its id."""
_RUN_KEY = "mlflow.sourceRun"
_TRIES = 3
_PAGE, _MOST_LINKS = 200, 100
_GAP_NANOSECONDS = 1_000_000
_log = logging.getLogger(__name__)


def log_traces(
    traces: Sequence[Trace],
    feedback: Mapping[str, Feedback],
    *,
    tracked: TrackedRun,
    critiques: Sequence[Critique] = (),
    tasks: Mapping[str, Task] = MappingProxyType({}),
    llm: ChatConfig | None = None,
    limit: int = 50,
) -> int:
    """Log the first ``limit`` runs of a cycle as traces of its MLflow run; returns how many were new.

    Each is an AGENT span for the task with a TOOL span per executed step below it, one after the other and as long as the steps took. A
    step that failed is an ERROR span with its message. Where an LLM was asked for the program, an LLM span before them has its replies and
    its tokens, from which MLflow knows those of the trace. Written to the database when this returns. A run that an earlier call logged is
    not logged again but linked to this MLflow run as well, and gets the feedback that it lacks.

    Args:
        feedback: what came back, by trace id: the assessments ``correct`` and (where the right answer is known) ``answer``.
        tracked: the cycle's run; its ``step`` is the number of the cycle.
        critiques: the last one of a trace that could be read gives its tag ``visloop.culprit``.
        tasks: by id; their instruction and pictures are shown.
        llm: who was asked for programs, for the price of its tokens; None: unknown.

    Raises:
        DataError: the database did not keep a trace (tracing is switched off or sampled, or others hold the database).
    """
    if tracked.origin == "finished":
        return 0
    connect(tracked.mlruns)
    wanted = list({trace.id: trace for trace in traces[:limit]}.values())
    culprits = {critique.trace_id: critique.culprit for critique in critiques if critique.status == "ok"}
    logged = {trace.id: found for trace in wanted if (found := _find_whole(trace, tracked)) is not None}
    old = [found.info for found in logged.values()]
    missing = [trace for trace in wanted if trace.id not in logged]
    for attempt in range(_TRIES):
        if not missing:
            break
        if attempt:
            _log.warning("%d traces were not kept by MLflow, logging them again", len(missing))
        _write_traces(missing, tracked=tracked, culprits=culprits, tasks=tasks, llm=llm)
        logged |= {trace.id: found for trace in missing if (found := _find_whole(trace, tracked)) is not None}
        missing = [trace for trace in missing if trace.id not in logged]
    if missing:
        raise DataError(
            f"MLflow did not keep {len(missing)} of {len(wanted)} traces, first {missing[0].id}: see that tracing is switched on, that "
            f"MLFLOW_TRACE_SAMPLING_RATIO is not below 1, and that nothing else holds the database in {tracked.mlruns}"
        )
    _link(old, tracked)
    for trace_id, found in logged.items():
        if trace_id in feedback:
            _log_feedback(found.info, feedback[trace_id], client=tracked.client)
    return len(wanted) - len(old)


def read_new_feedback(experiment: str, *, mlruns: Path, consumed: Collection[str] = ()) -> list[Feedback]:
    """What people said of the runs of an experiment and nobody has learned from yet, the oldest first.

    A person speaks by a feedback ``correct`` (true or false, yes or no) on the trace, with an optional rationale, and an optional
    expectation ``answer``. Of one person only the last word on a run counts; a changed one is a new record. A value that is neither
    yes nor no is named in the log and passed over, never taken for a verdict.

    Args:
        experiment: name of the MLflow experiment.
        consumed: ids of the feedback that was learned from already.
    """
    client = connect(mlruns)
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    query = f"tag.`{TRACE_TAG}` IS NOT NULL AND feedback.`{VERDICT}` IS NOT NULL"
    said: dict[str, tuple[int, Feedback]] = {}
    for trace in _search(client, found.experiment_id, query):
        for _, moment, entry in read_people(trace.info, client):
            if entry.id not in consumed:
                said.setdefault(entry.id, (moment, entry))
    return [entry for _, entry in sorted(said.values(), key=lambda item: (item[0], item[1].id))]


def _search(client: PatientClient, experiment_id: str, query: str, *, include_spans: bool = False) -> Iterator[Any]:
    token = None
    while True:
        page = client.search_traces(
            locations=[experiment_id], filter_string=query, max_results=_PAGE, page_token=token, include_spans=include_spans
        )
        yield from page
        token = page.token
        if not token:
            return


def _find_whole(trace: Trace, tracked: TrackedRun) -> Any | None:
    """The MLflow trace of a run. One that was cut off while it was written, by a crash, is deleted and counts as none."""
    query = f"tag.`{TRACE_TAG}` = '{trace.id}'"
    known = [found.info.trace_id for found in _search(tracked.client, tracked.experiment_id, query)]
    if not known:
        return None
    # With spans MLflow gives only traces that have all that were started; without, all.
    loaded = list(_search(tracked.client, tracked.experiment_id, query, include_spans=True))
    whole = {found.info.trace_id: found for found in loaded if len(found.data.spans) == count_spans(trace)}
    broken = [trace_id for trace_id in known if trace_id not in whole]
    if broken:
        tracked.client.delete_traces(tracked.experiment_id, trace_ids=broken)
    return next(iter(whole.values()), None)


def _write_traces(
    traces: Sequence[Trace], *, tracked: TrackedRun, culprits: Mapping[str, str], tasks: Mapping[str, Task], llm: ChatConfig | None
) -> None:
    """Write traces and wait until they are in the database. They lie one behind the other in time and end now."""
    import mlflow

    lengths = [measure_steps(trace.steps) + _GAP_NANOSECONDS for trace in traces]
    start = time.time_ns() - sum(lengths)
    for trace, length in zip(traces, lengths, strict=True):
        task, culprit = tasks.get(trace.task_id), culprits.get(trace.id)
        tags = {TRACE_TAG: trace.id, TASK_TAG: trace.task_id, CYCLE_TAG: str(tracked.step)}
        tags |= {CULPRIT_TAG: culprit} if culprit else {}
        tags |= {KIND_TAG: task.kind, FAMILY_TAG: task.family} if task else {}
        metadata = {_RUN_KEY: tracked.run_id}
        write_spans(trace, task=task, tags=tags, metadata=metadata, experiment_id=tracked.experiment_id, llm=llm, start=start)
        start += length
    mlflow.flush_trace_async_logging()


def _link(infos: Sequence[Any], tracked: TrackedRun) -> None:
    """Let traces of an earlier MLflow run be found from this one too; a link that is there is not made twice."""
    foreign = [info.trace_id for info in infos if info.trace_metadata.get(_RUN_KEY) != tracked.run_id]
    for first in range(0, len(foreign), _MOST_LINKS):
        tracked.client.link_traces_to_run(foreign[first : first + _MOST_LINKS], tracked.run_id)


def _log_feedback(info: Any, entry: Feedback, *, client: PatientClient) -> None:
    """The verdict and the right answer, unless they are there: as they were logged before, or as the person gave them in MLflow."""
    import mlflow
    from mlflow.entities import AssessmentSource

    given = {assessment.metadata.get(FEEDBACK_KEY) for assessment in info.assessments if assessment.metadata}
    if entry.id in given or (entry.source == "person" and entry.id in {known.id for *_, known in read_people(info, client)}):
        return
    source = AssessmentSource(source_type="HUMAN" if entry.source == "person" else "CODE", source_id=entry.source)
    named: dict[str, Any] = {"trace_id": info.trace_id, "source": source, "metadata": {FEEDBACK_KEY: entry.id}}
    answer = entry.answer
    if answer is not None:
        call_patiently(lambda: mlflow.log_expectation(name=ANSWER, value=answer, **named))
    # Last: while it is missing, the feedback counts as not logged.
    call_patiently(lambda: mlflow.log_feedback(name=VERDICT, value=entry.accepted, rationale=entry.text or None, **named))


def read_people(info: Any, client: PatientClient) -> list[tuple[str, int, Feedback]]:
    """What people said of one trace in MLflow or on the page: per person their name, the moment (ms) of their last word, and the record."""
    own = [item for item in info.assessments if item.source.source_type == "HUMAN" and not (item.metadata or {}).get(FEEDBACK_KEY)]
    valid = sorted((item for item in own if item.valid is not False and _is_about_run(item, info, client)), key=_moment)
    verdicts = {item.source.source_id: item for item in valid if item.name == VERDICT and item.feedback is not None}
    answers = {item.source.source_id: item for item in valid if item.name == ANSWER and item.expectation is not None}
    entries = []
    for person, item in verdicts.items():
        accepted = _read_verdict(item.feedback.value)
        if accepted is None:
            _log.warning("trace %s: %s says %r, which is neither yes nor no; passed over", info.trace_id, person, item.feedback.value)
            continue
        wanted = answers.get(person)
        answer = None if wanted is None else str(wanted.expectation.value)
        text = (item.rationale or "").strip()
        entry = Feedback(
            id=make_id("feedback", "person", info.trace_id, item.assessment_id, accepted, answer, text),
            task_id=info.tags[TASK_TAG],
            trace_id=info.tags[TRACE_TAG],
            accepted=accepted,
            answer=answer,
            text=text,
            source="person",
        )
        entries.append((person, max(_moment(item), _moment(wanted) if wanted else 0), entry))
    return entries


def _moment(item: Any) -> int:
    return int(item.last_update_time_ms or item.create_time_ms or 0)


def _is_about_run(item: Any, info: Any, client: PatientClient) -> bool:
    """Whether an assessment is about the whole run: it is on the trace or on its root span, not on the span of a step."""
    if not item.span_id:
        return True
    spans = client.get_trace(info.trace_id, display=False).data.spans
    return any(span.span_id == item.span_id and span.parent_id is None for span in spans)


def _read_verdict(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    return read_boolean(value) if isinstance(value, str) else None
