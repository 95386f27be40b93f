"""The three services of a standing installation: Prefect's server, MLflow's server, and the worker that starts flows."""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

from flows._environment import PROJECT_ROOT
from flows._servers import ADDRESS_FILE, ServiceRecord, is_address_file, read_service, write_address_file
from flows._tracking_place import find_place
from flows.operations.deployments import POOL, WORKER, open_client
from flows.operations.processes import HOST, Service, ServiceError, check_port, format_url, start_services
from visloop.errors import ConfigError

WORKDIR = "VISLOOP_WORKDIR"
"""Folder in which runs work, with ``data/`` and ``mlruns/``; the project's own by default."""


def find_workdir() -> Path:
    """The folder in which services are started and runs work.

    Raises:
        ConfigError: VISLOOP_WORKDIR names no folder.
    """
    folder = Path(os.environ.get(WORKDIR) or PROJECT_ROOT).resolve()
    if not folder.is_dir():
        raise ConfigError(f"{WORKDIR}={folder} is no folder; make it, or name another one")
    return folder


def start_servers(*, port: int, ui_port: int) -> list[ServiceRecord]:
    """Start Prefect's server and MLflow's, and leave the former's address where the ``prefect`` command looks for it.

    The database is SQLite in PREFECT_HOME unless PREFECT_API_DATABASE_CONNECTION_URL says otherwise (PostgreSQL). MLflow's server shows
    the history where ``find_place`` knows it to be; where the runs of this folder go to a server already, none is started.

    Raises:
        ConfigError: a port is taken.
        ServiceError: a server did not start.
    """
    folder = find_workdir()
    (folder / "mlruns").mkdir(exist_ok=True)
    place = find_place(folder / "mlruns")
    services = [_prefect_server(port)]
    if not place.uri.startswith("http"):  # else the project's MLflow server is already elsewhere
        services.append(_mlflow_server(ui_port, place.uri))
    for service, number, variable in zip(services, (port, ui_port), ("SERVER_PORT", "UI_PORT"), strict=False):
        record = read_service(service.name)
        if record is None or not record.process.is_alive:
            check_port(number, variable=variable)
    records = start_services(services, folder=folder)
    write_address_file(folder, url=records[0].url)
    return records


def start_worker(*, limit: int) -> ServiceRecord:
    """Start the worker: a process per flow run, at most ``limit`` at once.

    Raises:
        ServiceError: the server does not run, or the worker did not start.
    """
    server = require_server()
    folder = find_workdir()
    python_path = [str(PROJECT_ROOT), str(PROJECT_ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    worker = Service(
        name="worker",
        command=(*_module("prefect"), "worker", "start", "--pool", POOL, "--name", WORKER, "--type", "process", "--limit", str(limit)),
        environment={
            WORKDIR: str(folder),
            "PYTHONPATH": os.pathsep.join(python_path),
            "PREFECT_API_URL": f"{server.url}/api",
            # The worker's log is its terminal, and what our own modules say belongs to a run's page as well.
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
            "PREFECT_LOGGING_EXTRA_LOGGERS": "flows,visloop",
        },
        is_ready=_worker_is_online,
    )
    return start_services([worker], folder=folder)[0]


def require_server() -> ServiceRecord:
    """The standing server.

    Raises:
        ServiceError: it does not run.
    """
    record = read_service("server")
    if record is None or not record.process.is_alive:
        raise ServiceError("Prefect's server does not run; start it with `make server`")
    return record


def forget_server() -> None:
    """Remove the address of a server that was stopped, where it is this project's file."""
    path = find_workdir() / ADDRESS_FILE
    if is_address_file(path):
        path.unlink()


def _prefect_server(port: int) -> Service:
    url = format_url(port)
    return Service(
        name="server",
        command=(*_module("prefect"), "server", "start", "--host", HOST, "--port", str(port)),
        url=url,
        is_ready=lambda: _answers(f"{url}/api/health"),
        environment={"PREFECT_API_URL": f"{url}/api", "PREFECT_SERVER_LOGGING_LEVEL": "WARNING"},
    )


def _mlflow_server(port: int, store: str) -> Service:
    url = format_url(port)
    return Service(
        name="mlflow",
        command=(*_module("mlflow"), "server", "--backend-store-uri", store, "--host", HOST, "--port", str(port), "--workers", "1"),
        url=url,
        is_ready=lambda: _answers(f"{url}/health"),
        environment={"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
    )


def _module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _worker_is_online() -> bool:
    with open_client() as client:
        return any(worker.status == "ONLINE" for worker in client.read_workers_for_work_pool(POOL))
