"""The state of a reflect-and-learn cycle: a value after every feedback, that a flow can save and go on from.

What a cycle becomes depends on its first state, its tasks, its parts and its seed only, so that a cycle that was stopped and continued
equals one that ran through.
"""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from visloop.assistant.pools import Pools, read_pools, save_pools
from visloop.assistant.token_meter import Tokens
from visloop.errors import DataError
from visloop.records.assistant import Critique, Feedback, Instance, Task, Trace, UpdateOutcome
from visloop.records.shards import read_shard, write_shard, write_text

STATE_NAME = "state.json"
_KINDS: dict[str, Any] = {"traces": Trace, "feedback": Feedback, "critiques": Critique, "instances": Instance, "outcomes": UpdateOutcome}


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleRecords:
    """Everything that happened, in order. A record's id occurs once."""

    traces: tuple[Trace, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    critiques: tuple[Critique, ...] = ()
    instances: tuple[Instance, ...] = ()
    outcomes: tuple[UpdateOutcome, ...] = ()

    def add(self, other: "CycleRecords") -> "CycleRecords":
        """These records, then those of ``other`` that are not here yet."""
        return CycleRecords(**{name: _merge(getattr(self, name), getattr(other, name)) for name in _KINDS})


def _merge(known: tuple[Any, ...], added: Iterable[Any]) -> tuple[Any, ...]:
    ids = {record.id for record in known}
    fresh: dict[str, Any] = {}
    for record in added:
        if record.id not in ids:
            fresh.setdefault(record.id, record)
    return (*known, *fresh.values())


@dataclass(frozen=True, kw_only=True)
class CycleState:
    """After ``position`` tasks of the stream. ``opening``: the pools with which the present batch was run at first; ``pools``: with all
    that was kept since. ``known`` and ``hopeless`` are (owner, word) pairs that need no teaching, or had it without success. ``tokens``:
    what planner and critic cost so far."""

    cycle: int
    opening: Pools
    pools: Pools
    position: int = 0
    records: CycleRecords = field(default_factory=CycleRecords)
    known: frozenset[tuple[str, str]] = frozenset()
    hopeless: frozenset[tuple[str, str]] = frozenset()
    tokens: Tokens = field(default_factory=Tokens)

    def advance(self, *, batch: int, **changes: Any) -> Self:
        """The state after one more task; at the end of a batch its pools become the next one's opening."""
        after = replace(self, position=self.position + 1, **changes)
        return replace(after, opening=after.pools) if after.position % batch == 0 else after


def open_state(pools: Pools, *, cycle: int, known: frozenset[tuple[str, str]] = frozenset()) -> CycleState:
    """The state before the first task."""
    return CycleState(cycle=cycle, opening=pools, pools=pools, known=known)


def save_state(state: CycleState, root: Path, *, tasks: Sequence[Task]) -> None:
    """Write a state into ``<root>/<position>`` and remove the earlier ones. Its ``state.json`` comes last: a folder without it was not
    finished, and the one before is still there."""
    folder = root / f"{state.position:06d}"
    for name, pools in (("opening", state.opening), ("pools", state.pools)):
        save_pools(pools, folder / name)
    for name in _KINDS:
        write_shard(folder / f"{name}.jsonl", getattr(state.records, name))
    content = {
        "cycle": state.cycle,
        "position": state.position,
        "known": sorted(state.known),
        "hopeless": sorted(state.hopeless),
        "tokens": asdict(state.tokens),
        "tasks": [task.id for task in tasks],
    }
    write_text(folder / STATE_NAME, json.dumps(content, indent=2) + "\n")
    for other in _list_folders(root):
        if other != folder:
            shutil.rmtree(other)


def load_state(root: Path, *, tasks: Sequence[Task]) -> CycleState | None:
    """The newest finished state below ``root``; None where there is none.

    Raises:
        DataError: a file of it is missing or corrupt, or it is of another stream of tasks.
    """
    folder = next((folder for folder in reversed(_list_folders(root)) if (folder / STATE_NAME).is_file()), None)
    if folder is None:
        return None
    path = folder / STATE_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cycle, position, ids = int(content["cycle"]), int(content["position"]), list(content["tasks"])
        known, hopeless = (frozenset((str(owner), str(word)) for owner, word in content[key]) for key in ("known", "hopeless"))
        tokens = Tokens(**{name: int(count) for name, count in content.get("tokens", {}).items()})
    except (json.JSONDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the state of a cycle: {error}") from error
    if ids != [task.id for task in tasks]:
        raise DataError(f"{path}: the state of another stream of tasks; remove its folder or give the stream that it belongs to")
    opening, pools = (read_pools(folder / name) for name in ("opening", "pools"))
    records: Mapping[str, Any] = {name: tuple(read_shard(folder / f"{name}.jsonl", kind)) for name, kind in _KINDS.items()}
    return CycleState(
        cycle=cycle,
        position=position,
        opening=opening,
        pools=pools,
        records=CycleRecords(**records),
        known=known,
        hopeless=hopeless,
        tokens=tokens,
    )


def _list_folders(root: Path) -> list[Path]:
    return sorted(folder for folder in root.iterdir() if folder.is_dir() and folder.name.isdigit()) if root.is_dir() else []
