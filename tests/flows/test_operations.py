"""A standing installation as `make server`, `make deploy`, `make worker`, `make status` and `make stop` run it: one for all tests here."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
import pytest

from flows._environment import DEFAULTS
from tests.fixtures.installations import inherit_environment, list_processes
from tests.fixtures.servers import find_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
README_COMMAND = ("deployment", "run", "dpo_rounds/embedded", "-p", 'overrides=["dpo.beta=0.2"]')
TINY = [
    "experiment=smoke",
    *("data.train=8", "data.validation=2", "data.test=2", "pool.size=2"),
    *("generate.samples_per_question=1", "generate.min_steps=1", "generate.max_steps=1"),
]
PATIENCE = 120.0


def _wait_for(what: str, look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited {PATIENCE:.0f} s for {what}"
        time.sleep(1.0)
    return found


@dataclass(frozen=True)
class Installation:
    """One installation in a temporary folder, on free ports."""

    folder: Path
    port: int
    ui_port: int

    @property
    def home(self) -> Path:
        return self.folder / "prefect"

    @property
    def work(self) -> Path:
        return self.folder / "work"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in inherit_environment().items() if name not in DEFAULTS}
        own = {"PREFECT_HOME": str(self.home), "VISLOOP_WORKDIR": str(self.work), "PREFECT_WORKER_QUERY_SECONDS": "1", "COLUMNS": "140"}
        path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return {**kept, **own, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}

    def operate(self, *arguments: str) -> str:
        """`python -m flows.operations ...`, which is what the targets of the Makefile call; what it prints."""
        command = [sys.executable, "-m", "flows.operations", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr + self.read_logs()
        return done.stdout

    def type_prefect(self, *arguments: str) -> str:
        """A `prefect` command typed in the working folder, with nothing set that tells it where the server is."""
        environment = {name: value for name, value in self.environment.items() if not name.startswith("PREFECT_")}
        command = [sys.executable, "-m", "prefect", *arguments]
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read_record(self, name: str) -> dict[str, Any]:
        return json.loads((self.home / "services" / f"{name}.json").read_text())

    def read_logs(self) -> str:
        return "".join(f"\n{path}:\n{path.read_text(errors='replace')[-3000:]}" for path in (self.home / "services").glob("*.log"))

    def open_client(self) -> Any:
        from prefect.client.orchestration import SyncPrefectClient

        return SyncPrefectClient(api=f"http://127.0.0.1:{self.port}/api")


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Servers, deployments and a worker; at the end everything is stopped, and nothing may be left."""
    place = Installation(tmp_path_factory.mktemp("installation"), find_port(), find_port())
    place.work.mkdir()
    try:
        place.operate("server", "--port", str(place.port), "--ui-port", str(place.ui_port))
        place.operate("deploy")
        place.operate("worker")
        yield place
        printed = place.operate("stop")
        assert "worker" in printed and "mlflow" in printed and "server" in printed
        assert list_processes(place.home) == [], "no process is left behind"
        assert not (place.work / "prefect.toml").exists() and not list((place.home / "services").glob("*.json"))
        for port in (place.port, place.ui_port):
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0, "nobody listens any more"
    finally:
        for process in list_processes(place.home):
            process.kill()


def _find_run(place: Installation, flow: str, *states: str) -> Any:
    """The earliest run of a flow that is in one of the states."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(states))))
    with place.open_client() as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])),
            flow_run_filter=wanted,
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=1,
        )
    return found[0] if found else None


def _read_artifacts(place: Installation, run_id: UUID) -> dict[str, str]:
    """Data of the artifacts of a flow run by key; results of Prefect's own have none."""
    with place.open_client() as client:
        reply = client.request("POST", "/artifacts/filter", json={"artifacts": {"flow_run_id": {"any_": [str(run_id)]}}})
    return {item["key"]: str(item["data"]) for item in reply.json() if item["key"]}


def _read_lines(place: Installation, run_id: UUID) -> list[str]:
    """The log on a flow run's page; its last lines arrive some seconds after its end."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    with place.open_client() as client:
        return [log.message for log in client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200)]


def _add_schedule(place: Installation, deployment: str, *, seconds: float, overrides: list[str]) -> tuple[UUID, UUID]:
    from prefect.client.schemas.actions import DeploymentScheduleCreate
    from prefect.client.schemas.schedules import IntervalSchedule

    with place.open_client() as client:
        found = client.read_deployment_by_name(deployment)
        schedule = IntervalSchedule(interval=timedelta(seconds=seconds))
        wanted = DeploymentScheduleCreate(schedule=schedule, active=True, max_scheduled_runs=2, parameters={"overrides": overrides})
        reply = client.request(
            "POST", f"/deployments/{found.id}/schedules", json=[wanted.model_dump(mode="json", exclude_unset=True, exclude_none=True)]
        )
        return found.id, UUID(reply.json()[0]["id"])


def test_the_servers_listen_on_this_machine_only(installation: Installation) -> None:
    family = {process.pid for process in list_processes(installation.home)}
    listening = {item.laddr for item in psutil.net_connections(kind="tcp") if item.status == psutil.CONN_LISTEN and item.pid in family}
    assert {address.ip for address in listening} == {"127.0.0.1"}
    assert {installation.port, installation.ui_port} <= {address.port for address in listening}


def test_a_schedule_fires_by_itself_and_its_run_is_shown(installation: Installation) -> None:
    """The deployment of prefect.yaml with a schedule of some seconds; beside it the command of the README, word for word."""
    deployment, schedule = _add_schedule(installation, "generation/embedded", seconds=5, overrides=TINY)
    fired = _wait_for("a scheduled run to start", lambda: _find_run(installation, "generation", "Pending", "Running", "Completed"))
    assert fired.auto_scheduled and fired.created_by.type == "SCHEDULE"
    with installation.open_client() as client:
        client.request("DELETE", f"/deployments/{deployment}/schedules/{schedule}")
    printed = installation.type_prefect(*README_COMMAND)
    assert "Created flow run" in printed and "['dpo.beta=0.2']" in printed

    def read_end() -> Any:
        with installation.open_client() as client:
            run = client.read_flow_run(fired.id)
        assert run.state_name not in ("Failed", "Crashed"), f"{run.state}{installation.read_logs()}"
        return run if run.state_name == "Completed" else None

    run = _wait_for("the run to finish", read_end)
    assert run.name == f"generation {','.join(sorted(TINY))}", "named as on the command line"
    assert (installation.work / "data/reasoning/paths/manifest.json").is_file()
    artifacts = _read_artifacts(installation, run.id)
    assert {"generation-summary", "generation-mlflow"} <= set(artifacts)
    assert "| paths | ran | 1/1 |" in artifacts["generation-summary"], artifacts["generation-summary"]
    assert f"http://127.0.0.1:{installation.ui_port}/#/experiments/" in artifacts["generation-mlflow"]
    _wait_for("what the flow says to be on its page", lambda: any("stage paths: ran" in line for line in _read_lines(installation, run.id)))

    # Nothing has been trained here, so the rounds end by naming what they miss: the overrides arrived, and so did the error.
    rounds = _wait_for("the typed run to end", lambda: _find_run(installation, "dpo_rounds", "Failed", "Crashed", "Completed"))
    assert (rounds.name, rounds.state_name) == ("dpo_rounds dpo.beta=0.2", "Failed")
    assert "models/reasoner is missing; run the stage that writes it" in rounds.state.message
    assert "stopped by DataError" in _read_artifacts(installation, rounds.id)["dpo-rounds-summary"]


def test_what_a_crash_left_running_is_closed(installation: Installation) -> None:
    """Worker and flow killed at once: nobody reports it. `make status` finds the run; its slot is free again."""
    overrides = ["paths.data=data-crash", "data.train=6000"]
    installation.type_prefect("deployment", "run", "generation/embedded", "-p", f"overrides={json.dumps(overrides)}")

    def find_labelled() -> Any:
        run = _find_run(installation, "generation", "Running")
        return run if run is not None and "visloop.process" in run.labels and (installation.work / "data-crash").is_dir() else None

    run = _wait_for("the run to be at work", find_labelled)
    worker, flow = installation.read_record("worker")["process"]["pid"], int(run.labels["visloop.process"].split()[1])
    os.kill(worker, signal.SIGKILL)
    _wait_for("the worker to be gone", lambda: psutil.Process(worker).status() == "zombie" if psutil.pid_exists(worker) else True)
    printed = installation.operate("status")
    assert "closed as Crashed" not in printed, "its process lives: it goes on without the worker"
    assert "died" in printed and "training: 1 run(s) at once" in printed
    os.kill(flow, signal.SIGKILL)
    with installation.open_client() as client:
        assert client.read_flow_run(run.id).state_name == "Running", "nobody has noticed"
    printed = installation.operate("status")
    assert f"closed as Crashed: {run.name} (was Running): its process {flow} ended" in printed
    with installation.open_client() as client:
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

        assert client.read_flow_run(run.id).state_name == "Crashed"
        tasks = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id])))
    assert {task.state_name for task in tasks} <= {"Completed", "Crashed"}
    assert "closed as Crashed" not in installation.operate("worker"), "closed once; and a worker starts again"
