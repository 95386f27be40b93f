"""The syntax tree of visual programs (VISPROG's grammar, as CLOVA uses it): straight lines of ``VAR=TOOL(key=value, ...)``.

``grammar`` reads and prints it, ``checks`` finds what is wrong with it, ``interpreter`` runs it.
"""

from dataclasses import dataclass
from typing import TypeAlias

TASK_INPUTS: dict[str, tuple[str, ...]] = {
    "vqa": ("IMAGE",),
    "multi_image": ("LEFT", "MIDDLE", "RIGHT"),
    "editing": ("IMAGE",),
    "tagging": ("IMAGE",),
}
"""The variables that hold a task's pictures, by task kind."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The value of an earlier variable."""

    name: str


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant: text, number, truth value, or None for an argument that is left out on purpose."""

    value: str | int | float | bool | None


Argument: TypeAlias = Reference | Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One line. ``arguments`` keep their order; ``line`` counts from 1, ``columns`` (from 1) say where each argument begins and
    ``tool_column`` where the tool's name does."""

    variable: str
    tool: str
    arguments: tuple[tuple[str, Argument], ...]
    line: int = 0
    columns: tuple[int, ...] = ()
    tool_column: int = 1

    def find_argument(self, name: str) -> Argument | None:
        """The argument of this name, or None."""
        return next((value for key, value in self.arguments if key == name), None)


@dataclass(frozen=True, slots=True)
class Program:
    """Statements in order. Step k of a trace is ``statements[k - 1]``."""

    statements: tuple[Statement, ...]
