"""Services that run on behind the terminal: started apart, found again by their pid files, stopped with all their children."""

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows._servers import ProcessName, ServiceRecord, locate_service, read_service, write_service
from visloop.errors import ConfigError, VisloopError

HOST = "127.0.0.1"
_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""The worker sets it for the process of a flow run; what that process starts inherits it."""
_POLL_SECONDS = 0.25
_LOG_LINES = 15


class ServiceError(VisloopError):
    """A service did not start, or is needed and does not run."""


@dataclass(frozen=True)
class Service:
    """One service: how it is started, and how to see that it answers.

    Attributes:
        name: of its pid file and log.
        command: program and arguments.
        is_ready: asked until it is true.
        url: what a person opens; empty for the worker.
        environment: further variables.
        patience: seconds to become ready.
    """

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[], bool]
    url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    patience: float = 300.0


def format_url(port: int) -> str:
    """The address of a server of this machine."""
    return f"http://127.0.0.1:{port}"


def check_port(port: int, *, variable: str) -> None:
    """Refuse a port on which something listens already.

    Raises:
        ConfigError: naming the variable that chooses another one.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ConfigError(f"port {port} of {HOST} is taken by another program; choose a free one: {variable}=NUMBER") from error


def start_services(services: Sequence[Service], *, folder: Path) -> list[ServiceRecord]:
    """Start services in ``folder`` side by side and wait until all answer; one that runs already is left as it is.

    Raises:
        ServiceError: one ended, or did not answer in time; the end of its log is shown. What was started with it goes on.
    """
    for service in services:
        record = read_service(service.name)
        if record is None or not record.process.is_alive:
            stop_service(service.name)  # what a killed one has left
            _launch(service, folder=folder)
    return [_await(service) for service in services]


def _launch(service: Service, *, folder: Path) -> None:
    log = locate_service(service.name, suffix=".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(
            service.command,
            cwd=folder,
            env={**os.environ, **service.environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it outlives this terminal, and its children can be found by the session
        )
    write_service(service.name, ServiceRecord(ProcessName.of(process.pid), service.url))


def _await(service: Service) -> ServiceRecord:
    record = read_service(service.name)
    assert record is not None
    deadline = time.monotonic() + service.patience
    while not service.is_ready():
        ended = not record.process.is_alive
        if ended or time.monotonic() > deadline:
            log = locate_service(service.name, suffix=".log")
            stop_service(service.name)
            what = "ended" if ended else f"did not answer within {service.patience:.0f} s"
            raise ServiceError(f"{service.name} {what}; the end of {log}:\n{_read_end(log)}")
        time.sleep(_POLL_SECONDS)
    return record


def stop_service(name: str, *, grace: float = 30.0) -> bool:
    """Stop a service and what it started; whether there was anything to stop. The pid file goes away.

    Flows of a worker that was killed are not touched: they go on to their end. A worker that is asked to stop ends its flows itself.
    """
    record = read_service(name)
    if record is None:
        return False
    family = _find_session(record.process)
    if record.process.is_alive:
        leader = psutil.Process(record.process.pid)
        _signal(leader.terminate)
        _wait([leader], grace)
    end_processes([*family, *_find_session(record.process)], grace=5.0)
    locate_service(name).unlink(missing_ok=True)
    return bool(family)


def end_processes(processes: Iterable[psutil.Process], *, grace: float) -> None:
    """Ask processes to end, wait, and kill those that do not."""
    living = [process for process in processes if process.is_running()]
    for process in living:
        _signal(process.terminate)
    for process in _wait(living, grace):
        _signal(process.kill)
    _wait(living, 10.0)


def find_flow_processes() -> dict[str, psutil.Process]:
    """Processes of this PREFECT_HOME that a worker started, by the id of their flow run; also those whose worker was killed."""
    found: dict[str, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            run_id = environment.get(_RUN_VARIABLE)
            if run_id and environment.get("PREFECT_HOME") == os.environ["PREFECT_HOME"] and process.status() != psutil.STATUS_ZOMBIE:
                # Children inherit the variable: the one that started first is the run's own.
                known = found.get(run_id)
                if known is None or process.create_time() < known.create_time():
                    found[run_id] = process
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _find_session(leader: ProcessName) -> list[psutil.Process]:
    """Living processes of the session that ``leader`` opened, itself included, flows of a worker excluded.

    The number of a session is not given away while one of them lives.
    """
    members = []
    for process in psutil.process_iter():
        try:
            same = os.getsid(process.pid) == leader.pid and process.create_time() >= leader.started - 2
            if same and process.status() != psutil.STATUS_ZOMBIE and _RUN_VARIABLE not in process.environ():
                members.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            continue
    return members


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that are still alive after at most ``seconds``; a zombie is not, whoever should collect it."""
    deadline = time.monotonic() + seconds
    living = processes
    while living := [process for process in living if _lives(process)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return living


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _signal(send: Callable[[], None]) -> None:
    with suppress(psutil.NoSuchProcess):
        send()


def _read_end(log: Path) -> str:
    return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:])
