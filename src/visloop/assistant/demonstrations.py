"""The four pools of demonstrations: plans and programs, successes and failures, of all task kinds (CLOVA 3.2, 3.4).

A pool is a value. ``add`` and ``vote`` give a new one; ``save_demonstrations`` writes a snapshot
(``demonstrations.jsonl``, then ``snapshot.json`` with its hash), ``load_demonstrations`` reads it back and checks both.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from visloop.errors import DataError
from visloop.ids import hash_json, make_id
from visloop.records.assistant import Demonstration, DemonstrationKind, DemonstrationOutcome, Provenance, TaskKind
from visloop.records.shards import iterate_shard, write_shard, write_text

ENTRIES_NAME, SNAPSHOT_NAME = "demonstrations.jsonl", "snapshot.json"


def make_demonstration(
    *,
    kind: DemonstrationKind,
    outcome: DemonstrationOutcome,
    task_kind: TaskKind,
    instruction: str,
    plan: tuple[str, ...],
    program: str = "",
    reason: str = "",
    provenance: Provenance,
    trace_id: str | None = None,
    cycle: int = 0,
) -> Demonstration:
    """A demonstration whose id is made from what it shows, so that the same one has the same id wherever it arises.

    Raises:
        DataError: a program demonstration without a program, a plan demonstration without a plan, a failure without a reason.
    """
    entry = Demonstration(
        id=make_id("demonstration", kind, outcome, task_kind, instruction, plan, program, reason),
        kind=kind,
        outcome=outcome,
        task_kind=task_kind,
        instruction=instruction,
        plan=plan,
        program=program,
        reason=reason,
        provenance=provenance,
        trace_id=trace_id,
        cycle=cycle,
    )
    check_entry(entry, where=f"demonstration of {instruction!r}")
    return entry


@dataclass(frozen=True, eq=False)
class DemonstrationPool:
    """A snapshot of all demonstrations, in the order in which they came.

    Raises:
        DataError: an id occurs twice.
    """

    entries: tuple[Demonstration, ...] = ()
    _groups: dict[tuple[DemonstrationKind, DemonstrationOutcome, TaskKind], tuple[Demonstration, ...]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        twice = [name for name, count in Counter(entry.id for entry in self.entries).items() if count > 1]
        if twice:
            raise DataError(f"demonstration {twice[0]} occurs twice in one pool; ids must be unique")
        groups: dict[tuple[DemonstrationKind, DemonstrationOutcome, TaskKind], list[Demonstration]] = {}
        for entry in self.entries:
            groups.setdefault((entry.kind, entry.outcome, entry.task_kind), []).append(entry)
        self._groups.update({key: tuple(group) for key, group in groups.items()})

    @cached_property
    def hash(self) -> str:
        """16 hex digits over ids, contents and scores, in any order."""
        return hash_json([[entry.id, *_content(entry), entry.score] for entry in sorted(self.entries, key=lambda entry: entry.id)])[:16]

    def find(self, kind: DemonstrationKind, outcome: DemonstrationOutcome, task_kind: TaskKind) -> tuple[Demonstration, ...]:
        """One of the four pools for one task kind, in the order in which its entries came."""
        return self._groups.get((kind, outcome, task_kind), ())

    def add(self, demonstrations: Iterable[Demonstration]) -> "DemonstrationPool":
        """A pool with these as well. What says exactly the same as an entry that is there already is left out.

        Raises:
            DataError: another entry has the same id.
        """
        known = {_content(entry) for entry in self.entries}
        added: list[Demonstration] = []
        for entry in demonstrations:
            if _content(entry) not in known:
                known.add(_content(entry))
                added.append(entry)
        return DemonstrationPool((*self.entries, *added)) if added else self

    def vote(self, votes: Mapping[str, int], min_score: int, *, keep_seeds: bool = False) -> "DemonstrationPool":
        """A pool whose scores are changed by ``votes`` (id -> +1 after a right run that was shown the entry, -1 after a wrong one; sums
        of several runs are fine), without the entries whose score is then below ``min_score`` (CLOVA: -2).

        Ids that the pool no longer holds are passed over: they may have been evicted since the run. With ``keep_seeds`` shipped
        entries stay whatever their score.
        """
        changed = (replace(entry, score=entry.score + votes[entry.id]) if votes.get(entry.id) else entry for entry in self.entries)
        return DemonstrationPool(
            tuple(entry for entry in changed if entry.score >= min_score or (keep_seeds and entry.provenance == "seed"))
        )

    def count(self) -> dict[str, int]:
        """Entries per pool and task kind (``program/success/vqa``), for reports."""
        return {"/".join(key): len(group) for key, group in sorted(self._groups.items())}


def save_demonstrations(pool: DemonstrationPool, folder: Path) -> None:
    """Write a snapshot into ``folder``: the entries first, their hash last, so that a half-written snapshot is noticed."""
    write_shard(folder / ENTRIES_NAME, pool.entries)
    write_text(folder / SNAPSHOT_NAME, json.dumps({"hash": pool.hash, "counts": pool.count()}, indent=2) + "\n")


def load_demonstrations(folder: Path) -> DemonstrationPool:
    """Read a snapshot; a folder that is not there is the empty pool.

    Raises:
        DataError: a line is corrupt or breaks its contract (file:line is named), or the entries are not those that the hash is of.
    """
    if not folder.is_dir():
        return DemonstrationPool()
    path = folder / ENTRIES_NAME
    entries: dict[str, Demonstration] = {}
    for number, entry in enumerate(iterate_shard(path, Demonstration), start=1):
        check_entry(entry, where=f"{path}:{number}")
        if entry.id in entries:
            raise DataError(f"{path}:{number}: id {entry.id} occurred before; ids must be unique")
        entries[entry.id] = entry
    pool = DemonstrationPool(tuple(entries.values()))
    snapshot = folder / SNAPSHOT_NAME
    try:
        expected = json.loads(snapshot.read_text(encoding="utf-8"))["hash"]
    except FileNotFoundError as error:
        raise DataError(f"{snapshot} is missing: the snapshot was not written to its end; write it again") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise DataError(f"{snapshot}:1: not a JSON object with a hash: {error}") from error
    if expected != pool.hash:
        raise DataError(f"{path}: its entries have the hash {pool.hash}, {SNAPSHOT_NAME} says {expected}; restore the snapshot")
    return pool


def _content(entry: Demonstration) -> tuple[object, ...]:
    """What an entry says, without its history."""
    return (entry.kind, entry.outcome, entry.task_kind, entry.instruction, entry.plan, entry.program, entry.reason)


def check_entry(entry: Demonstration, *, where: str) -> None:
    """Refuse a demonstration that shows nothing.

    Raises:
        DataError: no instruction, plan, program or reason where there must be one; ``where`` it stands is named.
    """
    if not entry.instruction.strip():
        raise DataError(f"{where}: no instruction; retrieval needs one")
    if entry.kind == "plan" and not entry.plan:
        raise DataError(f"{where}: a plan demonstration without steps")
    if entry.kind == "program" and not entry.program.strip():
        raise DataError(f"{where}: a program demonstration without a program")
    if entry.outcome == "failure" and not entry.reason.strip():
        raise DataError(f"{where}: a failure without a reason teaches nothing; say which step was wrong and what it should be")
