"""Prompts of an LM over symbols: demonstrations and an instruction as rows of a closed vocabulary. No heavy library is imported here.

Positions begin anew with every entry of a prompt and every program begins at the same one, so that the same places of two programs are
at distance 0 for a rotary embedding: following a demonstration is then the first thing that a small model learns, and not the last.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

PAD, WRITES, END = "<pad>", "=>", "<end>"
UNKNOWN: Final = "<unknown>"
"""What stands for a symbol that the model does not have."""
PROGRAM_START: Final = 48
"""The position of every program's first symbol; instructions end before it."""


class Grammar(Protocol):
    """What may come next in one row."""

    @property
    def done(self) -> bool: ...

    def list_allowed(self) -> list[str]: ...

    def take(self, symbol: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolPrompt:
    """A row to be written: for an instruction (``asked``), behind demonstrations (instruction, program). ``kind`` opens the prompt."""

    kind: str
    shown: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    asked: tuple[str, ...]
    grammar: Grammar


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenRow:
    """What was written, with the natural logarithm of its probability under the grammar. Not ``finished``: cut by the limit."""

    symbols: tuple[str, ...]
    log_probability: float
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """Ids and positions of a prompt or an episode."""

    ids: list[int]
    positions: list[int]


def code_entries(kind: str, entries: Sequence[tuple[Sequence[str], Sequence[str] | None]], *, ids: Mapping[str, int]) -> Coded:
    """Ids and positions of instructions with their programs; the last program may be None: it begins behind them."""
    unknown = ids[UNKNOWN]
    coded = Coded(ids=[ids[name_kind(kind)]], positions=[0])
    for instruction, program in entries:
        row = [*(ids.get(symbol, unknown) for symbol in instruction), ids[WRITES]]
        coded.ids.extend(row)
        coded.positions.extend(max(0, place) for place in range(PROGRAM_START - len(row), PROGRAM_START))
        if program is not None:
            row = [*(ids.get(symbol, unknown) for symbol in program), ids[END]]
            coded.ids.extend(row)
            coded.positions.extend(range(PROGRAM_START, PROGRAM_START + len(row)))
    return coded


def name_kind(kind: str) -> str:
    """The symbol of a kind of tasks."""
    return f"<kind:{kind}>"
