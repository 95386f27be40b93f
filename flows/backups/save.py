"""Take a backup while everything may be at work: history first, then the data, so that all that the history tells of is there.

Stages are copied whole, also while a flow replaces them. Work in progress (``.stage``) is not in a backup; a restored project makes it
again.
"""

import logging
import shutil
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from flows._provenance import describe_git
from flows._tracking_place import DATABASE_NAME
from flows._versioning import PARAMS_NAME, find_project
from flows.backups.contents import (
    DATA_DIR,
    DVC_DIR,
    MLRUNS_DIR,
    PREFECT_NAME,
    PROJECT_DIR,
    Backup,
    Places,
    find_elsewhere,
    list_data,
    list_files,
    write_backup,
)
from flows.backups.databases import copy_database, count_runs
from flows.backups.outputs import list_recorded, push_outputs
from flows.backups.stages import copy_stages
from visloop.errors import DataError
from visloop.ids import hash_file

_TRIES = 8
_log = logging.getLogger(__name__)


def save_backup(target: Path, places: Places) -> Backup:
    """Write a backup into the new folder ``target``. It gets its name when it is whole; until then it is called ``<target>.part``.

    Raises:
        DataError: ``target`` is there already, lies in the data folder, or something cannot be read.
    """
    target = target.resolve()
    if target.exists():
        raise DataError(f"{target} is there already; name a new folder: make backup TO=...")
    if target.is_relative_to(places.data) or target.is_relative_to(places.mlruns):
        raise DataError(f"{target} lies in what is to be saved; name a folder outside of {places.data} and {places.mlruns}")
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    runs = _save_history(part, places)
    outs = _save_recorded(part, places)
    torn = _save_rest(part / DATA_DIR, places, outs)
    git = describe_git(places.root)
    backup = Backup(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=git.get("mlflow.source.git.commit", ""),
        dirty=git.get("git_dirty") == "true",
        data=str(places.data),
        mlruns=str(places.mlruns),
        outs=outs,
        runs=runs,
        elsewhere=tuple(find_elsewhere(places)),
        torn=tuple(torn),
        files={name: hash_file(part / name) for name in list_files(part)},
    )
    write_backup(part, backup)
    part.rename(target)
    return backup


def _save_history(part: Path, places: Places) -> dict[str, int]:
    if places.prefect.is_file():
        copy_database(places.prefect, part / PREFECT_NAME)
    runs = {}
    if places.database.is_file():
        copy_database(places.database, part / MLRUNS_DIR / DATABASE_NAME)
        runs = count_runs(part / MLRUNS_DIR / DATABASE_NAME)
    if places.mlruns.is_dir():
        own = (DATABASE_NAME, f"{DATABASE_NAME}-wal", f"{DATABASE_NAME}-shm", f"{DATABASE_NAME}-journal")
        _copy_files((name for name in list_files(places.mlruns) if name not in own), places.mlruns, part / MLRUNS_DIR)
    return runs


def _save_recorded(part: Path, places: Places) -> dict[str, str]:
    """What DVC has recorded, as a remote of its own, and the files that say what was recorded."""
    if find_project(places.root) is None:
        return {}
    records = _read_records(places)
    for _ in range(_TRIES):
        outs = list_recorded(places.root)
        if outs:
            push_outputs(places.root, outs, part / DVC_DIR)
        before, records = records, _read_records(places)
        if records == before:
            break
    else:
        raise DataError(f"{places.root}: what DVC has recorded changes all the time; take the backup when fewer flows are at work")
    for name, content in records.items():
        (part / PROJECT_DIR / name).parent.mkdir(parents=True, exist_ok=True)
        (part / PROJECT_DIR / name).write_bytes(content)
    return outs


def _read_records(places: Places) -> dict[str, bytes]:
    """``dvc.lock``, ``params.yaml`` and the pointers below the data folder, by their path in the project."""
    pointers = places.data.rglob("*.dvc") if places.data.is_relative_to(places.root) else ()
    files = [*(places.root / name for name in ("dvc.lock", PARAMS_NAME)), *pointers]
    return {path.relative_to(places.root).as_posix(): path.read_bytes() for path in sorted(files) if path.is_file()}


def _save_rest(target: Path, places: Places, outs: dict[str, str]) -> list[str]:
    """Every other file of the data folder; returns the stages of which no whole version could be copied."""
    if not places.data.is_dir():
        return []
    _copy_files(list_data(places, outs), places.data, target)
    return copy_stages(target, places, outs)


def _copy_files(names: Iterable[str], source: Path, target: Path) -> None:
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copy2(source / name, target / name)
        except FileNotFoundError:
            _log.debug("%s vanished while it was copied", source / name)
