"""What a flow run shows in Prefect's pages, and how runs and standing servers are recognized."""

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow

import flows._progress as progress
from flows._artifacts import render_summary
from flows._entry import describe_overrides
from flows._progress import StageProgress, make_key
from flows._servers import ProcessName, ServiceRecord, choose_server, read_service, write_address_file, write_service
from flows._summary import StageRow
from flows.operations.crashed import _judge
from visloop.errors import DataError
from visloop.evaluation.tables import Table

ROW = StageRow("round 1 dpo", "ran", 1, 1, 2.34, 1, "key", "data/rounds/01/model", {"pairs": 9, "margin": 0.25})


def test_the_summary_says_how_it_ended_what_came_out_and_where_the_history_is() -> None:
    table = Table("Rounds", ("round", "gain"), (("M_1", "+1.0"),))
    text = render_summary("dpo_rounds", link="http://127.0.0.1:5000/#/experiments/1/runs/a", rows=[ROW], tables=[table])
    assert text.startswith("## dpo_rounds\n\nfinished. [MLflow run](http://127.0.0.1:5000/#/experiments/1/runs/a)")
    assert "| M_1 | +1.0 |" in text
    assert "| round 1 dpo | ran | 1/1 | 2.3 | pairs 9, margin 0.25 |" in text
    failed = render_summary("sft", link="x", rows=[], tables=[], error=DataError("data/pool is missing"))
    assert "stopped by DataError: data/pool is missing" in failed and "Stages" not in failed


@pytest.mark.slow
def test_a_stage_that_lasts_shows_its_progress(prefect_harness: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """None before it has lasted; then it moves at most so often, and ends at 100."""
    from prefect.artifacts import Artifact

    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    seen: list[float | None] = []

    @flow
    def work(name: str) -> None:
        show = StageProgress(name)
        log = show.follow_epochs(2.0)
        for now, call in (
            (1.0, lambda: show(0.1)),
            (6.0, lambda: show(0.2)),
            (7.0, lambda: show(0.3)),
            (12.0, lambda: log(5, {"epoch": 1.0})),
        ):
            clock.now = now
            call()
            found: Any = Artifact.get(f"{make_key(name)}-progress")
            seen.append(None if found is None else float(found.data))
        show(1.0)
        found = Artifact.get(f"{make_key(name)}-progress")
        seen.append(float(found.data))

    work("Round 7 DPO")
    assert seen == [None, 20.0, 20.0, 50.0, 100.0]


def test_progress_outside_of_a_flow_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(progress, "create_progress_artifact", lambda *_args, **_named: pytest.fail("no run to show it on"))
    StageProgress("pool")(0.5)


def test_what_prefect_does_not_take_costs_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> None:
        raise ConnectionError("no answer")

    assert progress.send_safely(refuse) is None
    assert "could not be shown in Prefect: no answer" in caplog.text


def test_runs_of_deployments_are_named_as_on_the_command_line() -> None:
    assert describe_overrides("dpo_rounds", ["seed=1", "dpo.beta=0.2"]) == "dpo_rounds dpo.beta=0.2,seed=1"
    assert describe_overrides("evaluation", []) == "evaluation"


def test_a_process_is_told_from_a_later_one_of_its_number() -> None:
    own = ProcessName.own()
    assert ProcessName.parse(str(own)) == own and own.is_alive and own.is_here
    assert not replace(own, started=own.started - 3600).is_alive
    assert not replace(own, pid=2**22 + 1).is_alive
    assert ProcessName.parse("") is None and ProcessName.parse("host twelve 1.0") is None


def test_the_standing_server_is_used_while_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def choose() -> str | None:
        monkeypatch.delenv("PREFECT_API_URL", raising=False)
        choose_server()
        return os.environ.get("PREFECT_API_URL")

    assert choose() is None
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://127.0.0.1:1/api"\n')
    assert choose() is None, "a user's own file is left to Prefect"
    write_service("server", ServiceRecord(ProcessName.own(), "http://127.0.0.1:4300"))
    assert read_service("server") == ServiceRecord(ProcessName.own(), "http://127.0.0.1:4300")
    assert choose() == "http://127.0.0.1:4300/api"
    write_address_file(tmp_path, url="http://127.0.0.1:4300")
    write_service("server", ServiceRecord(replace(ProcessName.own(), started=1.0), "http://127.0.0.1:4300"))
    assert choose() == "", "it was killed: a temporary one is started in its place"
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    choose_server()
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


@pytest.mark.parametrize(
    ("label", "deployment", "worker", "closed"),
    [
        ("alive", None, False, False),
        ("dead", None, True, True),
        ("elsewhere", None, False, False),
        ("", None, False, False),  # started by hand a moment ago: nothing can be said
        ("", "deployed", False, True),  # nobody is left who could start its process
        ("", "deployed", True, False),  # its worker has just taken it
    ],
)
def test_only_runs_without_a_process_of_this_machine_are_closed(label: str, deployment: str | None, worker: bool, closed: bool) -> None:
    from datetime import UTC, datetime

    own = ProcessName.own()
    processes = {"alive": own, "dead": replace(own, started=1.0), "elsewhere": replace(own, host="another", started=1.0)}
    labels = {"visloop.process": str(processes[label])} if label else {}
    state = SimpleNamespace(timestamp=datetime.now(UTC))
    run: Any = SimpleNamespace(id="run", labels=labels, deployment_id=deployment, state=state, created=None)
    assert (_judge(run, living=[], worker_is_alive=worker) is not None) == closed
    if label == "" and deployment:
        assert _judge(run, living=["run"], worker_is_alive=worker) is None
