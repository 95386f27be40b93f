"""A stage's folder on disk: built aside, swapped in whole, continued after a crash, guarded against a second writer.

While a stage runs, everything lies in ``<folder>/.stage/``: ``key`` (what is being built), ``build/`` (finished outputs),
``shards/`` (one receipt per finished shard), ``scratch/`` (what a stage needs while it works, no output) and ``lock``. What an
earlier run left in the folder stays whole until the new outputs are; then they replace it, ``manifest.json`` last, and ``.stage``
goes away.
"""

import json
import os
import shutil
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from visloop.errors import DataError
from visloop.ids import hash_file, hash_json, hash_tree
from visloop.records.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest, write_manifest
from visloop.records.shards import TEMPORARY, write_text

STAGE_DIR = ".stage"
_SCRATCH = "scratch"


@dataclass(frozen=True)
class Receipt:
    """A finished shard: the SHA-256 of its file and its counts."""

    sha256: str
    counts: dict[str, float]


def hash_input(path: Path) -> str:
    """The hash of one input: a finished stage's folder by its manifest, another folder or a file by its bytes.

    Raises:
        DataError: nothing is there.
    """
    manifest = read_manifest(path) if path.is_dir() else None
    if manifest is not None:
        return hash_json(manifest.files)
    try:
        return hash_tree([path])
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run the stage that writes it") from error


def find_scratch(build: Path) -> Path:
    """Where the work on ``build`` keeps what is no output: it outlives a kill, and goes when the outputs are in place."""
    return build.parent / _SCRATCH


@contextmanager
def hold_lock(folder: Path, *, what: str) -> Iterator[None]:
    """Hold ``folder/lock`` for this process; who holds it stands beside it. A process that dies lets go.

    Raises:
        DataError: another process holds it (``what`` says what it does), or the folder cannot be written.
    """
    owner = folder / "owner"
    held = FileLock(folder / "lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire()
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    except Timeout as error:
        who = owner.read_text().strip() if owner.is_file() else "another process"
        raise DataError(f"{what} by {who}; wait for it, or stop it and run again") from error
    except OSError as error:
        held.release()
        raise DataError(f"cannot write {folder}: {error.strerror}; free space or fix the permissions") from error
    try:
        yield
    finally:
        held.release()


class StageFolder:
    """The folder of one stage and the work in progress inside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stage_dir = folder / STAGE_DIR
        self.build = self.stage_dir / "build"
        self.scratch = find_scratch(self.build)
        self._receipts = self.stage_dir / "shards"
        self._key_file = self.stage_dir / "key"

    def read_finished(self, key: str) -> Manifest | None:
        """The manifest where the folder is finished under ``key`` and every output has its recorded bytes; else None."""
        manifest = read_manifest(self.folder)
        if manifest is None or manifest.key != key or check_files(self.folder, manifest):
            return None
        return manifest

    def is_started(self) -> bool:
        """Whether a stage is at work here or has finished. Work is looked for twice: it may begin or end with a swap in between."""
        return self.stage_dir.is_dir() or (self.folder / MANIFEST_NAME).is_file() or self.stage_dir.is_dir()

    def read_sealed(self) -> Manifest | None:
        """The manifest of the newest outputs that are whole, also while they are swapped in; None where there are none yet.

        For readers without the lock. A manifest moves from ``build`` to the folder, so both are looked at twice.
        """
        for folder in (self.build, self.folder, self.build, self.folder):
            with suppress(FileNotFoundError):  # moved after it was seen
                manifest = read_manifest(folder)
                if manifest is not None:
                    return manifest
        return None

    def has_leftovers(self, key: str) -> bool:
        """Whether work on ``key`` is left beside the outputs, or what is left belongs to no key: a crash came after they were in place."""
        return self._is_work_on(key) or (self.stage_dir.is_dir() and not self._key_file.is_file())

    def remove_leftovers(self) -> None:
        """Remove the work in progress; the caller holds the lock and the outputs are in place.

        The key goes after what it names: killed in between, the next run still finds whose the rest is.
        """
        self._remove_work()
        if self.stage_dir.exists():
            shutil.rmtree(self.stage_dir)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for this process.

        Raises:
            DataError: another process is at work on it, or the folder cannot be written.
        """
        with hold_lock(self.stage_dir, what=f"{self.folder} is being written"):
            yield

    def prepare(self, key: str) -> None:
        """Make ``build`` ready for ``key``: keep what an interrupted run with the same key left, drop the rest.

        Shards of a finished folder with the same key whose bytes are intact are taken over, so that only damaged ones are
        made again. Files that a kill left half-written go.
        """
        if not self._is_work_on(key):
            self._key_file.unlink(missing_ok=True)  # first: what is half removed must be nobody's to continue
            self._remove_work()
            write_text(self._key_file, key)
        self.build.mkdir(exist_ok=True)
        self._receipts.mkdir(exist_ok=True)
        for path in (*self.build.rglob(TEMPORARY), *self.scratch.rglob(TEMPORARY)):
            path.unlink()
        manifest = read_manifest(self.folder)
        if manifest is not None and manifest.key == key:
            damaged = check_files(self.folder, manifest)
            for name, counts in manifest.shards.items():
                if name not in damaged:
                    self.write_receipt(name, Receipt(manifest.files[name], counts))
                    os.replace(self.folder / name, self.build / name)

    def _is_work_on(self, key: str) -> bool:
        return self._key_file.is_file() and self._key_file.read_text() == key

    def _remove_work(self) -> None:
        for path in (self.build, self._receipts, self.scratch):
            if path.exists():
                shutil.rmtree(path)

    def discard_build(self) -> None:
        """Empty ``build``: for work that cannot continue from what a killed run left."""
        shutil.rmtree(self.build)
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.build.mkdir()

    def read_receipt(self, name: str) -> Receipt | None:
        """The receipt of a shard whose file in ``build`` still has the recorded bytes; else None."""
        path = self._receipts / f"{name}.json"
        if not path.is_file() or not (self.build / name).is_file():
            return None
        receipt = Receipt(**json.loads(path.read_text()))
        return receipt if hash_file(self.build / name) == receipt.sha256 else None

    def write_receipt(self, name: str, receipt: Receipt) -> None:
        write_text(self._receipts / f"{name}.json", json.dumps({"sha256": receipt.sha256, "counts": receipt.counts}))

    def list_outputs(self) -> dict[str, str]:
        """Every file in ``build`` with its SHA-256, by relative name."""
        files = sorted(path for path in self.build.rglob("*") if path.is_file() and path != self.build / MANIFEST_NAME)
        return {path.relative_to(self.build).as_posix(): hash_file(path) for path in files}

    def seal(self, manifest: Manifest) -> None:
        """Declare ``build`` complete and swap it in."""
        write_manifest(self.build, manifest)
        self._swap(manifest)

    def complete_swap(self, key: str) -> Manifest | None:
        """Finish a swap that a crash interrupted; None where there is none for ``key``."""
        manifest = read_manifest(self.build) if self.build.is_dir() else None
        if manifest is None or manifest.key != key:
            return None
        for name, digest in manifest.files.items():
            path = self.build / name if (self.build / name).is_file() else self.folder / name
            if not path.is_file() or hash_file(path) != digest:
                (self.build / MANIFEST_NAME).unlink()
                return None
        self._swap(manifest)
        return manifest

    def _swap(self, manifest: Manifest) -> None:
        """Replace the folder's content by ``build``. Each step may be repeated, so a crash in between does no harm."""
        (self.folder / MANIFEST_NAME).unlink(missing_ok=True)
        for name in manifest.files:
            source, target = self.build / name, self.folder / name
            if source.is_file():
                make_way(target, self.folder)
                os.replace(source, target)
        _remove_strangers(self.folder, keep=manifest.files)
        os.replace(self.build / MANIFEST_NAME, self.folder / MANIFEST_NAME)
        self.remove_leftovers()


def make_way(target: Path, folder: Path) -> None:
    """Clear what an older layout left where ``target`` goes: a folder of that name, or a file in place of a parent."""
    for parent in reversed([path for path in target.parents if path.is_relative_to(folder) and path != folder]):
        if parent.is_file():
            parent.unlink()
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)


def _remove_strangers(folder: Path, *, keep: Collection[str]) -> None:
    names = set(keep)
    for path in sorted(folder.rglob("*"), reverse=True):
        relative = path.relative_to(folder)
        if relative.parts[0] == STAGE_DIR:
            continue
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif relative.as_posix() not in names:
            path.unlink()
