"""Runs of programs in MLflow: what a trace shows, that it is there once, and what people say of it, against a real database."""

import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flows._cycle_runs import log_cycle, price_counts
from flows._database import connect
from flows._layout import Layout
from flows._records import write_json
from flows._traces import FEEDBACK_KEY, TASK_TAG, TRACE_TAG, log_traces, read_new_feedback
from flows._tracking import TrackedRun, open_run
from visloop.config import ChatConfig, Config, PathsConfig
from visloop.errors import DataError
from visloop.records.assistant import Critique, Feedback, LabelledBox, Proposal, StepTrace, Task, Trace
from visloop.records.manifest import Manifest, write_manifest
from visloop.records.shards import write_shard

PROGRAM = "BOX0=LOC(image=IMAGE,object='teal star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests of this module; tests use experiments of their own."""
    return tmp_path_factory.mktemp("project") / "mlruns"


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run hashes all of the code, which takes longer than what is tested here."""
    monkeypatch.setattr("flows._tracking.hash_code", lambda packages: "0" * 64)


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def make_task(index: int) -> Task:
    return Task(
        id=f"task{index}",
        kind="vqa",
        instruction=f"How many teal stars are there? ({index})",
        images=(f"pictures/{index}.png",),
        inputs=("IMAGE",),
        family="count",
        wording="base",
        split="train",
        group=f"g{index}",
        source="test",
    )


def make_trace(index: int, **changes: Any) -> Trace:
    lines = PROGRAM.splitlines()
    steps = (
        StepTrace(
            step=1,
            line=lines[0],
            variable="BOX0",
            tool="LOC",
            arguments={"image": "The description of IMAGE: stars", "object": "teal star"},
            output="The coordinate of BOX0: [[1, 2, 3, 4]]",
            output_type="Boxes",
            seconds=0.25,
            confidence=0.75,
            prompts=("p1", "p2"),
        ),
        StepTrace(step=2, line=lines[1], variable="ANSWER0", tool="COUNT", arguments={}, output="1", output_type="Number", seconds=1.5),
        StepTrace(
            step=3, line=lines[2], variable="FINAL_RESULT", tool="RESULT", arguments={}, output="1", output_type="Number", seconds=0.0
        ),
    )
    proposal = Proposal(
        task_id=f"task{index}", plan=("Find them.", "Count them."), program=PROGRAM, author="slot_filling", demonstrations=("d1",)
    )
    trace = Trace(id=f"trace{index}", task_id=f"task{index}", proposal=proposal, steps=steps, status="finished", result="1", seconds=1.75)
    return replace(trace, **changes)


def break_trace(trace: Trace) -> Trace:
    """The run as it would be had its second step failed."""
    failed = replace(trace.steps[1], output="", output_type="", error="box must be Boxes")
    message = "step 2 (COUNT): box must be Boxes"
    return replace(trace, steps=(trace.steps[0], failed), status="tool_error", result=None, error=message, error_step=2)


def make_feedback(index: int, **changes: Any) -> Feedback:
    entry = Feedback(
        id=f"f{index}", task_id=f"task{index}", trace_id=f"trace{index}", accepted=False, answer="2", text="The correct answer should be 2."
    )
    return replace(entry, **changes)


def log(mlruns: Path, experiment: str, traces: list[Trace], feedback: dict[str, Feedback] | None = None, **named: Any) -> int:
    seed = named.pop("seed", 0)
    with open_run(experiment, Config(paths=PathsConfig(mlruns=str(mlruns)), seed=seed)) as run, run.open_child("cycle 3", step=3) as child:
        return log_traces(traces, feedback or {}, tracked=child, **named)


def find(mlruns: Path, experiment: str, **named: Any) -> list[Any]:
    client = connect(mlruns)
    return list(client.search_traces(locations=[client.get_experiment_by_name(experiment).experiment_id], **named))


def find_one(mlruns: Path, experiment: str, trace_id: str) -> Any:
    (found,) = find(mlruns, experiment, filter_string=f"tag.`{TRACE_TAG}` = '{trace_id}'")
    return found


def test_run_is_a_trace_with_a_span_per_step(mlruns: Path, experiment: str) -> None:
    critique = Critique(id="c", trace_id="trace0", grain="global", culprit="tool", step=1, tool="LOC", concept="teal star")
    unreadable = Critique(id="d", trace_id="trace0", grain="local", culprit="nothing", status="unreadable")
    boxed = make_trace(0, result_boxes=(LabelledBox(box=(1.0, 2.0, 3.0, 4.0), label="teal star"),))
    named: dict[str, Any] = {"critiques": [critique, unreadable], "tasks": {"task0": make_task(0)}}
    assert log(mlruns, experiment, [boxed, make_trace(1)], {"trace0": make_feedback(0)}, **named) == 2
    found = find_one(mlruns, experiment, "trace0")
    root, *spans = found.data.spans
    assert root.span_type == "AGENT" and root.parent_id is None and found.info.state == "OK"
    assert root.inputs["instruction"] == "How many teal stars are there? (0)" and root.inputs["program"] == PROGRAM
    assert root.outputs == {"result": "1", "boxes": [{"box": [1, 2, 3, 4], "label": "teal star"}]}
    assert [(span.name, span.span_type, span.parent_id) for span in spans] == [
        (tool, "TOOL", root.span_id) for tool in ("LOC", "COUNT", "RESULT")
    ]
    assert spans[0].inputs == dict(boxed.steps[0].arguments) and spans[0].outputs == boxed.steps[0].output
    shown = {name: value for name, value in spans[0].attributes.items() if not name.startswith("mlflow.")}
    assert shown == {
        "step": 1,
        "line": PROGRAM.splitlines()[0],
        "variable": "BOX0",
        "output_type": "Boxes",
        "seconds": 0.25,
        "confidence": 0.75,
        "prompts": ["p1", "p2"],
    }
    assert "confidence" not in spans[1].attributes and spans[1].attributes["seconds"] == 1.5
    lengths = [span.end_time_ns - span.start_time_ns for span in (root, *spans)]
    assert lengths == [1_750_000_000, 250_000_000, 1_500_000_000, 0]
    assert [span.start_time_ns for span in spans[1:]] == [span.end_time_ns for span in spans[:-1]]
    tags = {name: value for name, value in found.info.tags.items() if name.startswith("visloop.")}
    assert tags == {
        "visloop.trace_id": "trace0",
        "visloop.task_id": "task0",
        "visloop.cycle": "3",
        "visloop.culprit": "tool",
        "visloop.kind": "vqa",
        "visloop.family": "count",
    }
    verdict, answer = sorted(found.info.assessments, key=lambda item: item.name, reverse=True)
    assert (verdict.name, verdict.feedback.value, verdict.rationale) == ("correct", False, "The correct answer should be 2.")
    assert (answer.name, answer.expectation.value) == ("answer", "2")
    assert {item.source.source_type for item in (verdict, answer)} == {"CODE"} and verdict.metadata == {FEEDBACK_KEY: "f0"}
    assert not find_one(mlruns, experiment, "trace1").info.assessments
    run_id = found.info.trace_metadata["mlflow.sourceRun"]
    assert len(find(mlruns, experiment, run_id=run_id)) == 2
    assert connect(mlruns).get_run(run_id).info.run_name == "cycle 3"


def test_failing_step_is_an_error_span_with_its_message(mlruns: Path, experiment: str) -> None:
    unread = make_trace(1, steps=(), status="no_program", result=None, error="the proposal holds no program", seconds=0.0)
    log(mlruns, experiment, [break_trace(make_trace(0)), unread])
    failed = find_one(mlruns, experiment, "trace0")
    states = [(span.name, span.status.status_code, span.status.description) for span in failed.data.spans]
    assert states == [("task", "ERROR", "step 2 (COUNT): box must be Boxes"), ("LOC", "OK", ""), ("COUNT", "ERROR", "box must be Boxes")]
    assert failed.data.spans[2].outputs is None and failed.info.state == "ERROR"
    (root,) = find_one(mlruns, experiment, "trace1").data.spans
    assert (root.status.status_code, root.status.description) == ("ERROR", "the proposal holds no program")


def test_tokens_of_an_llm_are_those_of_the_trace(mlruns: Path, experiment: str) -> None:
    """They stand where MLflow's own pages look for them, with what they cost where a price is known."""
    plain = make_trace(0)
    paid = replace(plain.proposal, author="llm:m", replies=("Step 1: ...", PROGRAM), prompt_tokens=900, new_tokens=60)
    traces = [plain, make_trace(1, proposal=paid), make_trace(2, proposal=paid)]
    assert log(mlruns, experiment, traces[:2], llm=ChatConfig(model="m")) == 2
    assert log(mlruns, experiment, traces, llm=ChatConfig(model="m", price_prompt=0.5, price_new=2.0), seed=1) == 1
    free, asked, priced = (find_one(mlruns, experiment, trace.id) for trace in traces)
    assert (free.info.token_usage, free.info.cost, [span.name for span in free.data.spans]) == (
        None,
        None,
        ["task", "LOC", "COUNT", "RESULT"],
    )
    for found in (asked, priced):
        root, planner, *steps = found.data.spans
        assert found.info.token_usage == {"input_tokens": 900, "output_tokens": 60, "total_tokens": 960}
        assert (planner.name, planner.span_type, planner.parent_id, len(steps)) == ("planner", "LLM", root.span_id, 3)
        assert planner.outputs == {"replies": ["Step 1: ...", PROGRAM]} and planner.inputs == {"task": found.info.tags[TASK_TAG]}
    assert asked.info.cost is None
    assert priced.info.cost == pytest.approx({"input_cost": 0.00045, "output_cost": 0.00012, "total_cost": 0.00057})


def test_a_cycle_shows_what_its_llm_read_and_wrote_and_what_that_cost(tmp_path: Path, mlruns: Path, experiment: str) -> None:
    counts = {"tasks": 1, "tokens/prompt": 3_000_000, "tokens/new": 250_000}
    config = Config(paths=PathsConfig(data=str(tmp_path), mlruns=str(mlruns)), llm=ChatConfig(price_prompt=0.5, price_new=2.0))
    layout = Layout.from_config(config)
    report = {"counts": counts, "gate": {}, "demonstrations": 1, "prompts": 0, "pools": {}}
    write_json(layout.cycle(1) / "report.json", report)
    for name, records in (("traces", [make_trace(0)]), ("feedback", []), ("critiques", [])):
        write_shard(layout.cycle(1) / f"{name}.jsonl", records)
    write_shard(layout.tasks / "stream.jsonl", [make_task(0)])
    write_manifest(layout.cycle(1), Manifest(stage="cycle 1", inputs={}, config={}, code=""))
    with open_run(experiment, config) as run, run.open_child("cycle 1", step=1) as child:
        log_cycle(config, layout, child, 1)
    for logged in (run, child):
        metrics = run.client.get_run(logged.run_id).data.metrics
        assert {name: metrics[name] for name in ("tokens/prompt", "tokens/new", "cost/usd")} == {
            "tokens/prompt": 3_000_000,
            "tokens/new": 250_000,
            "cost/usd": 2.0,
        }
    assert price_counts(replace(config, llm=ChatConfig()), counts) == {}, "no price, no cost"
    assert price_counts(config, {"tasks": 1}) == {}, "no LLM, no cost"


def test_run_is_logged_once_and_linked_to_later_runs(mlruns: Path, experiment: str) -> None:
    """A second call logs only what is new; feedback that came since is added, that which is there is not doubled. The limit counts
    from the first trace, logged or not."""
    traces = [make_trace(index) for index in range(3)]
    assert log(mlruns, experiment, traces, {"trace0": make_feedback(0)}, limit=2) == 2
    assert log(mlruns, experiment, traces, limit=2, seed=3) == 0
    assert log(mlruns, experiment, traces, {"trace0": make_feedback(0), "trace1": make_feedback(1)}, seed=1) == 1
    assert log(mlruns, experiment, [*traces, traces[0]], {"trace1": make_feedback(1)}, seed=2) == 0
    assert log(mlruns, experiment, [make_trace(9)], seed=2) == 0  # its MLflow run is finished: passed over
    found = find(mlruns, experiment)
    assert sorted(trace.info.tags[TRACE_TAG] for trace in found) == ["trace0", "trace1", "trace2"]
    counts = {trace.info.tags[TRACE_TAG]: len(trace.info.assessments) for trace in found}
    assert counts == {"trace0": 2, "trace1": 2, "trace2": 0}
    client = connect(mlruns)
    experiment_id = client.get_experiment_by_name(experiment).experiment_id
    runs = client.search_runs([experiment_id], "attributes.run_name = 'cycle 3'", order_by=["attributes.start_time ASC"])
    counts = [len(client.search_traces(run_id=run.info.run_id, locations=[experiment_id])) for run in runs]
    assert counts == [2, 2, 3, 3]


def test_trace_that_was_cut_off_is_logged_again(mlruns: Path, experiment: str) -> None:
    """A process that died while it wrote leaves a trace without all of its spans."""
    log(mlruns, experiment, [make_trace(0), make_trace(1)])
    cut = find_one(mlruns, experiment, "trace0")
    with sqlite3.connect(mlruns / "mlflow.db") as database:
        database.execute("DELETE FROM spans WHERE trace_id = ? AND span_id = ?", (cut.info.trace_id, cut.data.spans[2].span_id))
    database.close()
    assert log(mlruns, experiment, [make_trace(0), make_trace(1)], seed=1) == 1
    again = find_one(mlruns, experiment, "trace0")
    assert again.info.trace_id != cut.info.trace_id and len(again.data.spans) == 4
    assert len(find(mlruns, experiment, include_spans=False)) == 2  # with spans MLflow would not show the one that was cut off


def test_traces_that_mlflow_does_not_keep_are_an_error(mlruns: Path, experiment: str) -> None:
    import mlflow

    connect(mlruns)  # first: a change of MLflow's tracking address switches tracing on again
    mlflow.tracing.disable()
    try:
        with pytest.raises(DataError, match="did not keep 1 of 1 traces, first trace0"):
            log(mlruns, experiment, [make_trace(0)])
    finally:
        mlflow.tracing.enable()
    assert log(mlruns, experiment, [make_trace(0)], seed=1) == 1


def test_traces_go_to_the_database_of_their_run(mlruns: Path, experiment: str, tmp_path: Path) -> None:
    """MLflow has one tracking address per process; a run of another database changes it, and back."""
    connect(mlruns)
    (tmp_path / "mlruns").mkdir()
    shutil.copy(mlruns / "mlflow.db", tmp_path / "mlruns")
    log(mlruns, experiment, [make_trace(0)])
    with open_run(experiment, Config(paths=PathsConfig(mlruns=str(tmp_path / "mlruns")))) as other:
        log(mlruns, experiment, [make_trace(2)], seed=1)
        log_traces([make_trace(1)], {}, tracked=other)
    assert {trace.info.tags[TRACE_TAG] for trace in find(mlruns, experiment)} == {"trace0", "trace2"}
    assert {trace.info.tags[TRACE_TAG] for trace in find(tmp_path / "mlruns", experiment)} == {"trace1"}


class People:
    """What people do in MLflow's own pages and clients."""

    def __init__(self, mlruns: Path, experiment: str) -> None:
        self.mlruns, self.experiment = mlruns, experiment

    def say(
        self, trace_id: str, value: Any, *, person: str = "ada", answer: str | None = None, step: int | None = None, **named: Any
    ) -> Any:
        import mlflow
        from mlflow.entities import AssessmentSource

        found = find_one(self.mlruns, self.experiment, trace_id)
        source = AssessmentSource(source_type="HUMAN", source_id=person)
        span = {} if step is None else {"span_id": found.data.spans[step].span_id}
        if answer is not None:
            mlflow.log_expectation(trace_id=found.info.trace_id, name="answer", value=answer, source=source)
        return mlflow.log_feedback(trace_id=found.info.trace_id, name="correct", value=value, source=source, **span, **named)

    def read(self, consumed: set[str] | None = None) -> list[Feedback]:
        return read_new_feedback(self.experiment, mlruns=self.mlruns, consumed=consumed or set())


def test_people_are_heard_once(mlruns: Path, experiment: str) -> None:
    people = People(mlruns, experiment)
    assert people.read() == []
    log(mlruns, experiment, [make_trace(index) for index in range(3)], {"trace0": make_feedback(0), "trace1": make_feedback(1)})
    assert people.read() == []  # what ground truth says is no person's word
    people.say("trace1", False, answer="3", rationale=" there are three ")
    people.say("trace0", "yes", person="bob", step=0)  # MLflow's page puts it on the root span
    first = people.read()
    assert [(entry.trace_id, entry.accepted, entry.answer, entry.text) for entry in first] == [
        ("trace1", False, "3", "there are three"),
        ("trace0", True, None, ""),
    ]
    assert {entry.source for entry in first} == {"person"} and [entry.task_id for entry in first] == ["task1", "task0"]
    assert people.read() == first
    consumed = {entry.id for entry in first}
    assert people.read(consumed) == []
    people.say("trace2", True)
    assert [entry.trace_id for entry in people.read(consumed)] == ["trace2"]
    # A cycle that has learned from the records and logs them does not say them again.
    assert log(mlruns, experiment, [make_trace(index) for index in range(3)], {entry.trace_id: entry for entry in first}, seed=1) == 0
    assert len(find_one(mlruns, experiment, "trace1").info.assessments) == 4
    assert people.read(consumed | {entry.id for entry in people.read()}) == []


def test_last_word_of_each_person_counts(mlruns: Path, experiment: str) -> None:
    import mlflow

    people = People(mlruns, experiment)
    log(mlruns, experiment, [make_trace(0)])
    people.say("trace0", True, person="ada")
    said = people.say("trace0", False, person="bob")
    before = people.read()
    assert [entry.accepted for entry in before] == [True, False]
    people.say("trace0", False, person="ada")
    mlflow.override_feedback(trace_id=said.trace_id, assessment_id=said.assessment_id, value=True, source=said.source)
    after = people.read({entry.id for entry in before})
    assert [entry.accepted for entry in after] == [False, True]


def test_what_is_no_verdict_on_the_run_is_passed_over(mlruns: Path, experiment: str, caplog: pytest.LogCaptureFixture) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource

    people = People(mlruns, experiment)
    log(mlruns, experiment, [make_trace(0)])
    people.say("trace0", "hm", person="ada")
    people.say("trace0", 0.3, person="bob")
    people.say("trace0", False, person="cleo", step=2)  # one step is wrong, the run may be right
    trace_id = find_one(mlruns, experiment, "trace0").info.trace_id
    mlflow.log_feedback(trace_id=trace_id, name="tone", value=False, source=AssessmentSource(source_type="HUMAN", source_id="dan"))
    mlflow.log_feedback(trace_id=trace_id, name="correct", value=False, source=AssessmentSource(source_type="LLM_JUDGE", source_id="m"))
    assert people.read() == []
    assert "ada says 'hm'" in caplog.text and "bob says 0.3" in caplog.text


def test_feedback_of_people_is_marked_as_theirs(mlruns: Path, experiment: str) -> None:
    """Feedback that did not come through MLflow (the web page) is shown there, and not read back as new."""
    log(mlruns, experiment, [make_trace(0)], {"trace0": make_feedback(0, source="person", answer=None, text="")})
    (verdict,) = find_one(mlruns, experiment, "trace0").info.assessments
    assert verdict.source.source_type == "HUMAN" and verdict.rationale is None
    assert People(mlruns, experiment).read() == []


def test_run_object_is_not_needed_to_be_active(mlruns: Path, experiment: str) -> None:
    """Traces name their MLflow run: another one that is open around them does not get them."""
    with open_run(experiment, Config(paths=PathsConfig(mlruns=str(mlruns)))) as run, run.open_child("cycle 1", step=1) as one:
        children: list[TrackedRun] = [one]
        with run.open_child("cycle 2", step=2) as two:
            children.append(two)
            for index, child in enumerate(children):
                log_traces([make_trace(index)], {}, tracked=child)
        for index, child in enumerate(children):
            (found,) = find(mlruns, experiment, run_id=child.run_id)
            assert (found.info.tags[TRACE_TAG], found.info.tags["visloop.cycle"]) == (f"trace{index}", str(index + 1))
