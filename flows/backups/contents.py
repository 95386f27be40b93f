"""What a backup is: a folder with a description ``backup.json``, written last, that names every file by its hash.

```
backup.json        what is in here, of which commit, where it lay
dvc/               a DVC remote with the outputs that DVC had recorded
data/              every other file of the data folder: what people asked on the page, stages that were not recorded
mlruns/            MLflow's database and artifacts, the gates' pages
prefect.db         Prefect's database
project/           dvc.lock, params.yaml and the pointers below data/, as they lay
```
"""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flows._folders import STAGE_DIR
from flows._tracking_place import DATABASE_NAME, PLACE_NAME
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.shards import write_text

BACKUP_NAME = "backup.json"
DVC_DIR, DATA_DIR, MLRUNS_DIR, PROJECT_DIR, PREFECT_NAME = "dvc", "data", "mlruns", "project", "prefect.db"
FORMAT = 1
_PREFECT_URL = "PREFECT_API_DATABASE_CONNECTION_URL"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a project keeps what a backup holds; absolute folders. ``root`` is where ``dvc.yaml`` lies."""

    root: Path
    data: Path
    mlruns: Path
    prefect: Path

    @classmethod
    def from_config(cls, config: Config, *, root: Path) -> "Places":
        """The places of ``config``, whose folders are relative to ``root``; Prefect's by PREFECT_HOME."""
        home = Path(os.environ.get("PREFECT_HOME", root / ".prefect"))
        return cls(
            root=root.resolve(),
            data=(root / config.paths.data).resolve(),
            mlruns=(root / config.paths.mlruns).resolve(),
            prefect=home.resolve() / PREFECT_NAME,
        )

    @property
    def database(self) -> Path:
        return self.mlruns / DATABASE_NAME


@dataclass(frozen=True, kw_only=True)
class Backup:
    """The description. ``files``: SHA-256 of every file but this one; ``outs``: DVC's hash of each recorded output, relative to the
    project; ``runs``: MLflow runs by experiment; ``elsewhere``: what a backup cannot hold, with the place where it is; ``torn``: stages,
    relative to the data folder, that had no whole version."""

    format: int = FORMAT
    created: str
    commit: str
    dirty: bool
    data: str
    mlruns: str
    outs: dict[str, str] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    torn: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


def list_files(folder: Path, *, skip: frozenset[str] = frozenset()) -> Iterator[str]:
    """Names of all files below ``folder``, relative to it, sorted; folders named in ``skip`` and links are passed over."""
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in skip)
        for name in sorted(names):
            path = Path(place) / name
            if not path.is_symlink():
                yield path.relative_to(folder).as_posix()


def list_data(places: Places, outs: dict[str, str]) -> list[str]:
    """Files of the data folder that no output in ``outs`` covers, and what gates set aside, which DVC ignores.

    Work in progress is left out, and so are pointers (they are in ``project/``).
    """
    return [
        name
        for name in list_files(places.data, skip=frozenset({STAGE_DIR}))
        if not name.endswith(".dvc") and ("quarantine" in Path(name).parts or not is_covered(places.data / name, places, outs))
    ]


def is_covered(path: Path, places: Places, outs: dict[str, str]) -> bool:
    """Whether ``path`` is one of the recorded outputs ``outs``, or lies in one."""
    return any(path.is_relative_to(places.root / out) for out in outs)


def find_elsewhere(places: Places) -> list[str]:
    """Databases on servers: they are named, and backed up by the server's own means."""
    found = []
    place = places.mlruns / PLACE_NAME
    if place.is_file():
        record = json.loads(place.read_text(encoding="utf-8"))
        found.append(f"MLflow's history: {record['uri']}, artifacts: {record['artifacts']}")
    if os.environ.get(_PREFECT_URL):
        found.append(f"Prefect's database: what {_PREFECT_URL} names")
    return found


def write_backup(folder: Path, backup: Backup) -> None:
    write_text(folder / BACKUP_NAME, json.dumps(asdict(backup), indent=2, sort_keys=True) + "\n")


def read_backup(folder: Path) -> Backup:
    """The description of the backup in ``folder``, after every file of it has been compared with its recorded hash.

    Raises:
        DataError: no backup is there, it is of another format, or a file is missing or has other bytes.
    """
    path = folder / BACKUP_NAME
    if not path.is_file():
        raise DataError(f"{folder} is no backup: it has no {BACKUP_NAME}; name the folder that `make backup` printed")
    try:
        backup = TypeAdapter(Backup).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path} cannot be read ({error.error_count()} errors); take another backup") from error
    if backup.format != FORMAT:
        raise DataError(
            f"{path}: format {backup.format}, this version reads {FORMAT}; restore it with the version at commit {backup.commit}"
        )
    damaged = [name for name, digest in backup.files.items() if not (folder / name).is_file() or hash_file(folder / name) != digest]
    if damaged:
        raise DataError(f"{folder}: {len(damaged)} files are missing or have other bytes, first {damaged[0]}; take another backup")
    return backup
