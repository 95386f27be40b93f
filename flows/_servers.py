"""Servers of this project: those that `make server` left running, and Prefect's temporary ones that outlived their flow.

Without a standing server each flow process starts its own and stops it at the end; after ``kill -9``, or when the start timed
out, it would run on, hold the database and answer nobody.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from visloop.errors import DataError

OWNER = "VISLOOP_SERVER_OWNER"
"""Set by ``set_environment`` to the id of the flow's process; a server inherits it."""

ADDRESS_FILE = "prefect.toml"
_ADDRESS_HEAD = "# Written by `make server`, removed by `make stop`: where the `prefect` command finds this project's server.\n"

_DATABASE_ADDRESSES = ("PREFECT_SERVER_DATABASE_CONNECTION_URL", "PREFECT_API_DATABASE_CONNECTION_URL")
"""Prefect's variables, present and older name, by which a user puts its database elsewhere."""

_CLOCK_SLACK = 2.0
"""Seconds by which two readings of one process's start may differ: the clock may be set meanwhile."""


@dataclass(frozen=True)
class ProcessName:
    """A process that can be told from a later one with the same number: machine, number, and when it started (Unix time)."""

    host: str
    pid: int
    started: float

    @classmethod
    def own(cls) -> "ProcessName":
        """The calling process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessName":
        """A process of this machine.

        Raises:
            psutil.NoSuchProcess: it has ended.
        """
        return cls(socket.gethostname(), pid, round(psutil.Process(pid).create_time(), 2))

    @classmethod
    def parse(cls, text: str) -> "ProcessName | None":
        """What ``str`` wrote; None where the text is something else."""
        host, _, rest = text.partition(" ")
        pid, _, started = rest.partition(" ")
        try:
            return cls(host, int(pid), float(started))
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.started:.2f}"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to this machine: of others nothing can be said."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs here; a process that only waits to be collected by its parent does not."""
        try:
            process = psutil.Process(self.pid)
            return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < _CLOCK_SLACK)
        except psutil.NoSuchProcess:
            return False


@dataclass(frozen=True)
class ServiceRecord:
    """The pid file of a service that runs on behind the terminal. ``url`` is what a person opens; the worker has none."""

    process: ProcessName
    url: str


def locate_service(name: str, *, suffix: str = ".json") -> Path:
    """The pid file (or, by suffix, the log) of ``server``, ``mlflow`` or ``worker`` in this PREFECT_HOME."""
    return Path(os.environ["PREFECT_HOME"]) / "services" / f"{name}{suffix}"


def read_service(name: str) -> ServiceRecord | None:
    """What the pid file of a service says, whether it is alive or not; None without a readable one."""
    try:
        values = json.loads(locate_service(name).read_text(encoding="utf-8"))
        return ServiceRecord(ProcessName(**values["process"]), values["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_service(name: str, record: ServiceRecord) -> None:
    """Write the pid file, whole or not at all."""
    path = locate_service(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(asdict(record)), encoding="utf-8")
    os.replace(aside, path)


def choose_server() -> None:
    """Let this process use the standing server, where there is one and the user has named no other.

    Where there is none, its address may still lie in the working directory (the server was killed, or belongs to another
    PREFECT_HOME): an empty PREFECT_API_URL makes Prefect start a temporary server all the same.
    """
    if "PREFECT_API_URL" in os.environ:
        return
    record = read_service("server")
    if record is not None and record.process.is_alive:
        os.environ["PREFECT_API_URL"] = f"{record.url}/api"
    elif is_address_file(Path(ADDRESS_FILE)):
        os.environ["PREFECT_API_URL"] = ""


def prepare_database() -> None:
    """Make Prefect's own SQLite database where this PREFECT_HOME has none and a temporary server will want one.

    Two flows that are started at once would each let their server make it, and break each other's. It is made aside and put in place
    whole, so that a database which is there is never half made.

    Raises:
        DataError: it cannot be made; Prefect's own words are given.
    """
    if any(os.environ.get(name) for name in ("PREFECT_API_URL", *_DATABASE_ADDRESSES)):
        return
    home = Path(os.environ["PREFECT_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    database, aside = home / "prefect.db", home / "prefect.db.new"
    with FileLock(home / ".initialise.lock"):
        if database.exists():
            return
        aside.unlink(missing_ok=True)  # a kill left it half made
        environment = {**os.environ, _DATABASE_ADDRESSES[0]: f"sqlite+aiosqlite:///{aside.resolve()}"}
        command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DataError(f"Prefect's database {database} cannot be made: {done.stderr.strip()[-500:]}")
        os.replace(aside, database)


def write_address_file(folder: Path, *, url: str) -> None:
    """Leave the address of the standing server where the ``prefect`` command looks for it when it is called in ``folder``."""
    text = f'{_ADDRESS_HEAD}home = "{os.environ["PREFECT_HOME"]}"\n\n[api]\nurl = "{url}/api"\n'
    (folder / ADDRESS_FILE).write_text(text, encoding="utf-8")


def is_address_file(path: Path) -> bool:
    """Whether ``write_address_file`` wrote it; a user may have a ``prefect.toml`` of another origin."""
    return path.is_file() and path.read_text(encoding="utf-8").startswith(_ADDRESS_HEAD)


def stop_orphaned_servers() -> list[int]:
    """Stop temporary servers of this PREFECT_HOME whose flow process is gone; returns their process ids."""
    stopped = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if _is_ours(environment) and not psutil.pid_exists(int(environment[OWNER])):
                process.terminate()
                stopped.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or belongs to somebody else
    return stopped


def _is_ours(environment: dict[str, str]) -> bool:
    temporary = environment.get("PREFECT__SERVER_EPHEMERAL") == "1"
    return temporary and environment.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME") and environment.get(OWNER, "").isdigit()
