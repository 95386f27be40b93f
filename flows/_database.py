"""MLflow's database, by default ``mlruns/mlflow.db``: opened once, waited for while it is locked, and the life of the runs in it."""

import logging
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import psutil
from filelock import FileLock
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from flows._provenance import MAX_TAG
from flows._servers import ProcessName
from flows._tracking_place import DATABASE_NAME, find_place
from visloop.errors import ConfigError, DataError

Origin = Literal["new", "resumed", "finished"]
"""``new``; ``resumed``: an unfinished run with the same key is continued; ``finished``: it had already been done."""

KEY_TAG, PROCESS_TAG, ERROR_TAG, RERUNS_TAG = "visloop.run_key", "visloop.process", "visloop.error", "visloop.skipped_reruns"
PARENT_TAG = "mlflow.parentRunId"
_LOCKED_SECONDS = 120.0
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class FoundRun:
    """A run to log into and where it comes from."""

    run_id: str
    origin: Origin


class PatientClient:
    """An ``MlflowClient`` whose calls wait while another process holds the database."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **named: Any) -> Any:
            return call_patiently(lambda: method(*arguments, **named))

        return call


def call_patiently(call: Callable[[], _Result], *, seconds: float = _LOCKED_SECONDS) -> _Result:
    """``call()``, again and again for at most ``seconds`` while SQLite says that the database is locked."""
    retrying = Retrying(
        retry=retry_if_exception(lambda error: "database is locked" in str(error) or "database is busy" in str(error)),
        wait=wait_random_exponential(multiplier=0.1, max=5),
        stop=stop_after_delay(seconds),
        reraise=True,
    )
    return retrying(call)


def connect(mlruns: Path) -> PatientClient:
    """The client of the tracking database and model registry of ``mlruns`` (see ``find_place``); both are made on first use.

    Sets MLflow's process-wide tracking address as well: its registry opens clients of its own.

    Raises:
        DataError: the folder cannot be written, or its ``tracking.json`` not be read.
    """
    folder = mlruns.resolve()
    address = find_place(folder).uri
    client = _open_client(folder, address)
    import mlflow

    if mlflow.get_tracking_uri() != address:
        mlflow.set_tracking_uri(address)
    return client


@cache
def _open_client(folder: Path, address: str) -> PatientClient:
    import mlflow

    for name in ("mlflow", "alembic"):  # after the import, which sets levels of its own
        logging.getLogger(name).setLevel(logging.WARNING)
    _check_writable(folder)
    mlflow.set_tracking_uri(address)
    with FileLock(folder / ".initialise.lock"):  # two processes that migrate an empty database at once break it
        client = PatientClient(mlflow.MlflowClient(tracking_uri=address, registry_uri=address))
        client.search_experiments(max_results=1)
    return client


def _check_writable(folder: Path) -> None:
    """MLflow itself would try for 100 seconds to open a database that it may not write.

    Raises:
        DataError: the folder or the database in it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".initialise.lock").open("a").close()
        if (folder / DATABASE_NAME).exists():
            (folder / DATABASE_NAME).open("r+b").close()
    except OSError as error:
        raise DataError(f"cannot write {error.filename}: {error.strerror}; fix the permissions, or choose another paths.mlruns") from error


def get_experiment(client: PatientClient, name: str, *, mlruns: Path) -> str:
    """The id of the experiment ``name``; made on first use, with its artifacts in ``mlruns/artifacts/<name>`` or where ``find_place`` says.

    Raises:
        ConfigError: a name that cannot be a folder's.
    """
    from mlflow.exceptions import MlflowException

    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"experiment name {name!r}: use letters, digits, '_', '-' and '.', it also names a folder")
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            root = find_place(mlruns).artifacts
            return str(client.create_experiment(name, artifact_location=f"{root}/{name}" if root else None))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another process was faster
            if found is None:
                raise
    return str(found.experiment_id)


def start_run(client: PatientClient, experiment_id: str, *, run_name: str, key: str, tags: Mapping[str, str]) -> FoundRun:
    """The run with this key (and parent, where ``tags`` name one): the finished one, an unfinished one re-opened, or a new one.

    A run that a living process other than this one is at work on is left to it.
    """
    labels = {KEY_TAG: key, **tags}
    parent = f" and tags.`{PARENT_TAG}` = '{tags[PARENT_TAG]}'" if PARENT_TAG in tags else ""
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'{parent}", order_by=["attributes.start_time DESC"])
    for run in found:
        run_id = run.info.run_id
        if run.info.status == "FINISHED":
            client.set_tag(run_id, RERUNS_TAG, str(int(run.data.tags.get(RERUNS_TAG, "0")) + 1))
            return FoundRun(run_id, "finished")
        if run.info.status == "RUNNING" and _works_elsewhere(_read_process(run.data.tags.get(PROCESS_TAG, ""))):
            continue
        resume_run(client, run_id, tags=labels)
        return FoundRun(run_id, "resumed")
    return FoundRun(str(client.create_run(experiment_id, run_name=run_name, tags=_sign(labels)).info.run_id), "new")


def resume_run(client: PatientClient, run_id: str, *, tags: Mapping[str, str]) -> None:
    """Let this process go on with a run that has ended: it says by ``tags`` what goes on with it now, and no longer how it ended before."""
    known = client.get_run(run_id).data.tags
    client.update_run(run_id, status="RUNNING")
    for name, value in _sign(tags).items():
        if known.get(name) != value:
            client.set_tag(run_id, name, value)
    if ERROR_TAG in known:
        client.delete_tag(run_id, ERROR_TAG)


def close_orphans(client: PatientClient, experiment_id: str, *, keep: str) -> None:
    """Mark runs KILLED whose process died without a word, but not those with the key ``keep``, which are continued now."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        process = _read_process(run.data.tags.get(PROCESS_TAG, ""))
        if run.data.tags.get(KEY_TAG) != keep and not _may_live(process):
            client.set_tag(run.info.run_id, ERROR_TAG, "the process ended without closing the run")
            client.set_terminated(run.info.run_id, "KILLED")


def _sign(tags: Mapping[str, str]) -> dict[str, str]:
    """``tags`` and those of this process and user, cut to MLflow's limit."""
    signed = {PROCESS_TAG: str(ProcessName.own()), "mlflow.user": os.environ.get("USER", "unknown"), **tags}
    return {name: str(value)[:MAX_TAG] for name, value in signed.items()}


def _read_process(tag: str) -> ProcessName | None:
    """The process that a run's tag names; None where the tag names none, or one that has certainly ended.

    Older tags are ``host:pid``, without the start. Of this machine they are taken to mean whatever has that number now, except this
    process itself, which signs with its start.
    """
    named = ProcessName.parse(tag)
    host, _, pid = tag.rpartition(":")
    if named is not None or not pid.isdigit():
        return named
    other = ProcessName(host, int(pid), 0.0)
    if not other.is_here:
        return other
    try:
        return None if other.pid == os.getpid() else ProcessName.of(other.pid)
    except psutil.NoSuchProcess:
        return None


def _may_live(process: ProcessName | None) -> bool:
    """Whether it may still be at work. On another machine nothing can be said: taken as living."""
    return process is not None and (not process.is_here or process.is_alive)


def _works_elsewhere(process: ProcessName | None) -> bool:
    """Whether it may be at work and is not this process."""
    return process is not None and _may_live(process) and not (process.is_here and process.pid == os.getpid())
