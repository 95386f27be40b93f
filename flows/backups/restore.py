"""Put a backup into a checkout of the project: after its hashes were compared, with nobody at work, and never over what is there."""

import logging
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from flows._provenance import describe_git
from flows._versioning import find_project
from flows.backups.contents import DATA_DIR, DVC_DIR, MLRUNS_DIR, PREFECT_NAME, PROJECT_DIR, Backup, Places, list_files, read_backup
from flows.backups.databases import move_addresses
from flows.backups.outputs import list_recorded, pull_outputs
from visloop.errors import DataError

_KEPT = frozenset({".dvc", ".gitignore"})
"""What git keeps in the data folder: no reason to call it occupied."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Restored:
    """``moved``: where what was there before lies now; ``remarks``: what the user should know."""

    backup: Backup
    moved: Path | None
    remarks: tuple[str, ...]


def restore_backup(source: Path, places: Places, *, replace: bool = False) -> Restored:
    """Restore the backup in ``source``.

    Args:
        replace: move data, history and Prefect's database that are there aside, into ``backups/replaced-<time>``; else that is refused.

    Raises:
        DataError: the backup is damaged; there is something already; a process is at work there; DVC cannot bring an output back.
    """
    source = source.resolve()
    backup = read_backup(source)
    _refuse_workers(places)
    occupied = _list_occupied(places)
    moved = None
    if occupied and not replace:
        raise DataError(
            f"there is something already: {', '.join(map(str, occupied))}; restore into a fresh clone, or call "
            "`make restore FROM=... REPLACE=1`, which moves it aside first"
        )
    if occupied:
        moved = _move_aside(occupied, places)
    if backup.outs and find_project(places.root) is None:
        raise DataError(f"{places.root} is no checkout of the project (no dvc.yaml there); clone it, then restore inside of the clone")
    _copy_tree(source / PROJECT_DIR, places.root)
    if backup.outs:
        pull_outputs(places.root, backup.outs, source / DVC_DIR)
    _copy_tree(source / DATA_DIR, places.data)
    _copy_tree(source / MLRUNS_DIR, places.mlruns)
    if (source / PREFECT_NAME).is_file():
        places.prefect.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source / PREFECT_NAME, places.prefect)
    if places.database.is_file() and Path(backup.mlruns) != places.mlruns:
        move_addresses(places.database, old=Path(backup.mlruns), new=places.mlruns)
    if backup.outs:
        found = list_recorded(places.root)
        wrong = [out for out, digest in backup.outs.items() if found.get(out) != digest]
        if wrong:
            raise DataError(f"restored, but {', '.join(wrong)} are not what was recorded; call `dvc status` and restore again")
    return Restored(backup=backup, moved=moved, remarks=tuple(_list_remarks(backup, places)))


def _refuse_workers(places: Places) -> None:
    """Nobody may hold a file below the data folder or the history, nor Prefect's database: flows, servers, pages."""
    for process in psutil.process_iter():
        try:
            held = [Path(entry.path) for entry in process.open_files()] if process.pid != os.getpid() else []
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or belongs to somebody else
        for path in held:
            if path == places.prefect or path.is_relative_to(places.data) or path.is_relative_to(places.mlruns):
                raise DataError(
                    f"process {process.pid} ({process.name()}) is at work on {path}; stop flows, servers and the page, then restore"
                )


def _list_occupied(places: Places) -> list[Path]:
    data = (name for name in list_files(places.data) if Path(name).suffix not in _KEPT and Path(name).name not in _KEPT)
    occupied = [places.data] if next(data, None) is not None else []
    occupied += [places.mlruns] if places.mlruns.is_dir() and any(places.mlruns.iterdir()) else []
    return occupied + ([places.prefect] if places.prefect.exists() else [])


def _move_aside(occupied: list[Path], places: Places) -> Path:
    aside = places.root / "backups" / f"replaced-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    aside.mkdir(parents=True)
    for path in occupied:
        for file in path.parent.glob(f"{path.name}*") if path == places.prefect else [path]:  # with the log beside a database
            shutil.move(file, aside / file.name)
    return aside


def _copy_tree(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)


def _list_remarks(backup: Backup, places: Places) -> list[str]:
    remarks = [f"not in the backup, kept by a server: {place}" for place in backup.elsewhere]
    remarks += [f"not whole in the backup, its flow will make it again: {stage}" for stage in backup.torn]
    commit = describe_git(places.root).get("mlflow.source.git.commit", "")
    if backup.commit and commit != backup.commit:
        remarks.append(
            f"the backup is of commit {backup.commit[:12]}, this checkout is at {commit[:12] or 'no commit'}: `git checkout "
            f"{backup.commit[:12]}` gives its code back; with other code, flows make their stages again"
        )
    if backup.dirty:
        remarks.append("the code had changes that were not committed; they are not in the backup")
    return remarks
