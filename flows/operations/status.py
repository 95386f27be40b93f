"""What runs, what is due, what became of it; and the end of all of it."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from flows._servers import read_service
from flows.operations.crashed import close_crashed_runs
from flows.operations.deployments import POOL, open_client
from flows.operations.processes import end_processes, find_flow_processes, stop_service
from flows.operations.services import forget_server

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import DeploymentSchedule, FlowRun

SERVICES = ("server", "mlflow", "worker")
_OPEN_STATES = ("Running", "Pending", "Late", "Cancelling")


def open_output() -> Console:
    """Standard output, wide enough for the tables where it goes to a file."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=140)


def print_status() -> None:
    """Services; with a server also crashed runs (which are closed), queues, deployments and runs that are open."""
    print_services()
    if _is_alive("server"):
        close_crashed()
        print_deployments()
        print_open_runs()


def print_services() -> None:
    """One line per service."""
    table = Table("service", "state", "process", "address", title="Services", title_justify="left")
    for name in SERVICES:
        record = read_service(name)
        if record is None:
            table.add_row(name, "stopped", "", "")
        else:
            alive = record.process.is_alive
            table.add_row(name, "running" if alive else "died", str(record.process.pid), record.url if alive else "")
    open_output().print(table)


def close_crashed() -> None:
    """Close the runs that a crash left open, and say which."""
    console = open_output()
    for run in close_crashed_runs(worker_is_alive=_is_alive("worker")):
        console.print(f"closed as Crashed: {run.name} (was {run.state}): {run.reason}", markup=False, soft_wrap=True)


def print_deployments() -> None:
    """Every deployment with its schedule, its next run and what became of its last one; then the queues."""
    from prefect.client.schemas.sorting import DeploymentSort

    console = open_output()
    with open_client() as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        table = Table("deployment", "queue", "schedule", "next run (UTC)", "last run", title="Deployments", title_justify="left")
        for deployment in sorted(client.read_deployments(sort=DeploymentSort.NAME_ASC), key=lambda item: flows[item.flow_id]):
            runs = _read_runs(client, deployment.id)
            due = [run.expected_start_time for run in runs if run.state_name == "Scheduled" and run.expected_start_time is not None]
            done = [run for run in runs if run.state_name != "Scheduled"]
            table.add_row(
                f"{flows[deployment.flow_id]}/{deployment.name}",
                deployment.work_queue_name or "",
                ", ".join(_describe_schedule(schedule) for schedule in deployment.schedules),
                f"{min(due):%a %d %b %H:%M}" if due else "",
                f"{done[0].state_name}, {_describe_age(done[0])}" if done else "",
            )
        console.print(table)
        for queue in client.read_work_queues(work_pool_name=POOL):
            console.print(f"queue {queue.name}: {queue.concurrency_limit or 'any number of'} run(s) at once")


def print_open_runs() -> None:
    """Runs that are at work or late."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateName
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = FlowRunFilter(state=FlowRunFilterState(name=FlowRunFilterStateName(any_=list(_OPEN_STATES))))
    with open_client() as client:
        runs = client.read_flow_runs(flow_run_filter=wanted, limit=20, sort=FlowRunSort.EXPECTED_START_TIME_DESC)
    table = Table("run", "state", "since", title="Runs", title_justify="left")
    for run in runs:
        table.add_row(run.name, run.state_name, _describe_age(run))
    if runs:
        open_output().print(table)


def stop_everything() -> None:
    """Worker, flow processes, servers: in this order, so that what is stopped can still be told to the server."""
    console = open_output()
    stopped = ["worker"] if stop_service("worker") else []
    flows = find_flow_processes()
    end_processes(flows.values(), grace=10.0)
    if _is_alive("server"):
        close_crashed()
    stopped += [name for name in ("mlflow", "server") if stop_service(name)]
    forget_server()
    console.print(f"stopped: {', '.join(stopped) or 'nothing ran'}" + (f"; {len(flows)} flow run(s)" if flows else ""))


def _is_alive(name: str) -> bool:
    record = read_service(name)
    return record is not None and record.process.is_alive


def _read_runs(client: "SyncPrefectClient", deployment: "UUID") -> "list[FlowRun]":
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
    from prefect.client.schemas.sorting import FlowRunSort

    wanted = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
    return client.read_flow_runs(deployment_filter=wanted, limit=20, sort=FlowRunSort.EXPECTED_START_TIME_DESC)


def _describe_schedule(schedule: "DeploymentSchedule") -> str:
    kind = schedule.schedule
    cron, interval = getattr(kind, "cron", None), getattr(kind, "interval", None)
    text = cron or (f"every {interval.total_seconds():g} s" if interval is not None else str(getattr(kind, "rrule", "")))
    return text if schedule.active else f"{text} (paused)"


def _describe_age(run: "FlowRun") -> str:
    since = run.state.timestamp if run.state is not None else run.created
    if since is None:
        return ""
    minutes = (datetime.now(UTC) - since).total_seconds() / 60
    return f"{minutes * 60:.0f} s ago" if minutes < 2 else f"{minutes:.0f} min ago" if minutes < 120 else f"{minutes / 60:.0f} h ago"
