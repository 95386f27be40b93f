"""Runs that a crash left open: found by their process, and closed as Crashed.

A worker reports a flow process that dies under it. When the worker dies as well, or a flow that was started by hand is killed,
nobody does: the run stays ``Running`` for ever and, in a queue with a limit, keeps its slot. So every flow run carries the name of
its process as a label; a run whose process is gone is closed here.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID

from flows._liveness import PROCESS_LABEL
from flows._servers import ProcessName
from flows.operations.deployments import open_client
from flows.operations.processes import find_flow_processes

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

_START_SECONDS = 120.0
"""How long a run may be without a process while its worker lives: the time to start one."""


@dataclass(frozen=True)
class ClosedRun:
    """A run that was closed: its name, the state it was in, and why it was closed."""

    name: str
    state: str
    reason: str


def close_crashed_runs(*, worker_is_alive: bool) -> list[ClosedRun]:
    """Close every open flow run of this machine whose process is gone, with its open task runs.

    Args:
        worker_is_alive: a run that waits for its process gets time only if somebody is there to start one.
    """
    processes = find_flow_processes()
    closed = []
    with open_client() as client:
        for run in _read_open_runs(client):
            reason = _judge(run, living=processes.keys(), worker_is_alive=worker_is_alive)
            if reason is not None:
                _close(client, run, reason)
                closed.append(ClosedRun(run.name, run.state_name or "", reason))
    return closed


def _read_open_runs(client: "SyncPrefectClient") -> "list[FlowRun]":
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType

    states = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING]
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    found: list[FlowRun] = []
    while page := client.read_flow_runs(flow_run_filter=wanted, limit=200, offset=len(found)):
        found += page
    return found


def _judge(run: "FlowRun", *, living: Collection[str], worker_is_alive: bool) -> str | None:
    """Why the run is to be closed; None where its process lives, or nothing can be said."""
    process = ProcessName.parse(str(run.labels.get(PROCESS_LABEL, "")))
    if process is not None:
        return None if not process.is_here or process.is_alive else f"its process {process.pid} ended without closing it"
    if run.deployment_id is None or str(run.id) in living:
        return None
    since = datetime.now(UTC) - (run.state.timestamp if run.state else run.created or datetime.now(UTC))
    if worker_is_alive and since < timedelta(seconds=_START_SECONDS):
        return None
    return "no process of this machine belongs to it"


def _close(client: "SyncPrefectClient", run: "FlowRun", reason: str) -> None:
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterState, TaskRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    this_run = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(str(run.id))]))
    open_tasks = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])))
    for task_run in client.read_task_runs(flow_run_filter=this_run, task_run_filter=open_tasks):
        client.set_task_run_state(task_run.id, Crashed(message=reason), force=True)
    client.set_flow_run_state(run.id, Crashed(message=reason), force=True)
