"""Which cycles count: one process at a time plays or takes back cycles of a folder; a rollback sets the later ones aside.

Cycles are numbered by their share of the stream, and each starts from the pools of the one before. So the assistant's pools are those
of the last cycle that is there, and taking cycles back means moving the later folders, unchanged, to ``undone/<rollback>/NN``
beside them. ``rollback.json`` in there is written first and says what is being done: a rollback that was killed is finished by the
next one.
"""

import getpass
import socket
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from flows._folders import hold_lock
from flows._layout import Layout
from flows._people import CYCLE_GATES
from flows._records import write_json
from visloop.assistant.pools import read_pools
from visloop.errors import ConfigError, DataError
from visloop.records.manifest import check_files, read_manifest

RECORD_NAME, DONE_NAME, GATES = "rollback.json", "done", "gates"


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """One rollback: by whom, when (UTC), from the pools of which cycle to those of which; ``cycles`` were set aside. ``pools`` are the
    hashes of the pools of every cycle from ``end`` to the last that was taken back, by its number."""

    id: str
    by: str
    when: str
    start: int
    end: int
    cycles: tuple[int, ...]
    pools: dict[int, dict[str, str]]


_RECORD = TypeAdapter(Rollback)


@contextmanager
def hold_cycles(layout: Layout, *, play: bool = True) -> Iterator[None]:
    """Keep other processes from playing or taking back cycles of this folder. ``play``: for new cycles, which an unfinished rollback
    forbids.

    Raises:
        DataError: another process does so now, or a rollback was not finished.
    """
    folder = layout.cycle(0).parent
    with hold_lock(folder / ".lock", what=f"the cycles in {folder} are being played or taken back"):
        unfinished = find_unfinished(layout) if play else None
        if unfinished is not None:
            command = f"python -m flows.rollback assistant.tasks.back_to={unfinished.end}"
            raise DataError(f"the rollback {unfinished.id} was not finished; finish it first: {command}")
        yield


def start_rollback(layout: Layout, *, end: int) -> Rollback | None:
    """Write down a rollback to cycle ``end``, or find the one that was not finished; None where ``end`` is the last cycle already.

    Raises:
        ConfigError: there is no such cycle.
        DataError: the cycle to go back to is damaged; an unfinished rollback goes elsewhere.
    """
    unfinished = find_unfinished(layout)
    if unfinished is not None and unfinished.end != end:
        raise DataError(f"the rollback {unfinished.id} was not finished; finish it first: assistant.tasks.back_to={unfinished.end}")
    if unfinished is not None:
        return unfinished
    last = layout.find_last_cycle()
    manifest = read_manifest(layout.cycle(end)) if end >= 0 else None
    if manifest is None or end > last:
        raise ConfigError(f"assistant.tasks.back_to={end}: there are the cycles 0 to {last} in {layout.cycle(0).parent}")
    check_cycle_files(layout, end)
    later = tuple(number for number in _list_folders(layout) if number > end)
    if not later:
        return None
    now = datetime.now(UTC)
    record = Rollback(
        id=f"{now:%Y%m%dT%H%M%SZ}-{last:02d}-to-{end:02d}",
        by=f"{getpass.getuser()}@{socket.gethostname()}",
        when=now.isoformat(timespec="seconds"),
        start=last,
        end=end,
        cycles=later,
        pools={number: hash_pools(layout.cycle(number)) for number in range(end, last + 1)},
    )
    write_json(_place(layout, record) / RECORD_NAME, asdict(record))
    return record


def check_cycle_files(layout: Layout, number: int, *, parts: Collection[str] = ()) -> None:
    """Compare the files of a finished cycle with its manifest before anything is made from them. Other stages know a cycle by its manifest
    and would not notice.

    Args:
        parts: names of files and folders in it; by default all that it has.

    Raises:
        DataError: the cycle is not finished, or a file is missing or has other bytes than were written.
    """
    folder = layout.cycle(number)
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} is no finished cycle; play it first (python -m flows.reflect_learn)")
    named = {name: digest for name, digest in manifest.files.items() if not parts or name.partition("/")[0] in parts}
    damaged = check_files(folder, replace(manifest, files=named))
    if damaged:
        raise DataError(
            f"{folder / min(damaged)} is not as it was written ({len(damaged)} of {len(named)} files are missing or changed); restore "
            f"cycle {number} (dvc checkout), or go back to an earlier one (make rollback CYCLE=N), and run again"
        )


def set_aside(layout: Layout, record: Rollback) -> None:
    """Move the later cycles away, the last one first: what stays is a whole history at every moment. May be repeated."""
    place = _place(layout, record)
    (place / GATES).mkdir(exist_ok=True)
    for number in reversed(record.cycles):
        folder = layout.cycle(number)
        pointer = folder.with_name(f"{folder.name}.dvc")  # of a cycle on people's words; it names the folder beside it, there too
        moves = {folder: place / folder.name, pointer: place / pointer.name}
        for suite in CYCLE_GATES:  # a cycle that is played again passes gates of its own
            gate = layout.gate(f"cycle_{number:02d}_{suite}")
            moves[gate] = place / GATES / gate.name
        for source, target in moves.items():
            if source.exists() and not target.exists():
                source.rename(target)


def finish_rollback(layout: Layout, record: Rollback) -> None:
    """Mark a rollback as finished, after everything that belongs to it."""
    (_place(layout, record) / DONE_NAME).touch()


def list_rollbacks(layout: Layout) -> list[Rollback]:
    """All rollbacks of these cycles, oldest first.

    Raises:
        DataError: a record cannot be read.
    """
    found = []
    for path in sorted(layout.undone.glob(f"*/{RECORD_NAME}")):
        try:
            found.append(_RECORD.validate_json(path.read_bytes()))
        except ValidationError as error:
            raise DataError(f"{path}: not the record of a rollback: {error.errors(include_url=False)[0]['msg']}") from error
    return found


def find_unfinished(layout: Layout) -> Rollback | None:
    """The rollback that was killed, if there is one."""
    return next((record for record in list_rollbacks(layout) if not (_place(layout, record) / DONE_NAME).is_file()), None)


def hash_pools(cycle: Path) -> dict[str, str]:
    """The hashes of a cycle's pools; what is wrong with them, where they cannot be read: that may be why a cycle is taken back."""
    try:
        return read_pools(cycle).list_hashes()
    except DataError as error:
        return {"error": str(error)}


def _place(layout: Layout, record: Rollback) -> Path:
    return layout.undone / record.id


def _list_folders(layout: Layout) -> list[int]:
    """Numbers of all cycles that were begun."""
    return sorted(int(folder.name) for folder in layout.cycle(0).parent.iterdir() if folder.is_dir() and folder.name.isdigit())
