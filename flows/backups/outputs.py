"""Outputs that DVC has recorded, to and from a remote that only a backup knows."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flows._versioning import set_scm
from visloop.errors import DataError

_REMOTE = "backup"


def list_recorded(root: Path) -> dict[str, str]:
    """DVC's hash of every output that lies in the workspace with the bytes that are recorded, by path relative to ``root``."""
    with _open(root) as repo:
        recorded = [out for out in repo.index.outs if _is_recorded(out)]
        return {Path(out.fs_path).relative_to(root.resolve()).as_posix(): str(out.hash_info.value) for out in recorded}


def push_outputs(root: Path, outs: Iterable[str], remote: Path) -> None:
    """Store the recorded bytes of ``outs`` in ``remote``.

    Raises:
        DataError: DVC cannot do it; its own words are given.
    """
    with _open(root, remote) as repo:
        repo.push(targets=[str(root / out) for out in outs], remote=_REMOTE)


def pull_outputs(root: Path, outs: Iterable[str], remote: Path) -> None:
    """Bring ``outs`` into the workspace from ``remote``, in place of what lies there.

    Raises:
        DataError: DVC cannot do it; its own words are given.
    """
    with _open(root, remote) as repo:
        repo.pull(targets=[str(root / out) for out in outs], remote=_REMOTE, force=True)


def _is_recorded(out: Any) -> bool:
    try:
        return bool(out.use_cache and out.hash_info and out.exists and not out.changed_checksum() and not out.changed_cache())
    except OSError:
        return False  # a stage is just replacing it


@contextmanager
def _open(root: Path, remote: Path | None = None) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    set_scm(root)
    config = {} if remote is None else {"remote": {_REMOTE: {"url": str(remote)}}}
    try:
        with Repo(str(root), config=config, _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        raise DataError(f"DVC failed in {root}: {error}") from error
