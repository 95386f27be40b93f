"""What may come next in a program of symbols: grammar-constrained decoding, so that an LM writes well-typed programs only."""

import re
from collections.abc import Sequence
from typing import Final

from visloop.assistant.checks import EXPRESSION_TYPES, RESULT_TOOL
from visloop.assistant.program import TASK_INPUTS
from visloop.assistant.symbols import CAPITAL, CLOSE, NOTHING, OPEN, SPACE, SymbolRow
from visloop.records.assistant import TaskKind
from visloop.tools.base import Parameter, ToolSignature
from visloop.tools.expressions import EXPRESSION_TOOL
from visloop.tools.values import ValueType

MOST_LINES: Final = 20
MOST_TEXT: Final = 90
"""Symbols of one text."""
_RESERVED = re.compile(r"</?\w.*>|v\d+|\d+:|[A-Z_]{2,}")
"""What stands for phrases, numbers and marks; variables, line numbers, tools and pictures."""
_HALVES = frozenset({"LEFT", "RIGHT", "TOP", "BOTTOM"})
"""What LOC takes for halves of a picture."""


class SymbolGrammar:
    """Follows one program as it is written.

    A line is its number, a tool of the task's kind, and for each parameter a variable of its type that is there, a text, a number, or
    nothing where it is not required. A text has words and signs, phrases and numbers of the instruction, and variables where it is a
    template. RESULT ends the program. What an expression means is not looked at: the checks do that.

    Args:
        vocabulary: all symbols that the LM has.
        inputs: the variables that hold pictures; None: all that the kind of task has.
    """

    def __init__(
        self,
        kind: TaskKind,
        row: SymbolRow,
        *,
        signatures: Sequence[ToolSignature],
        vocabulary: Sequence[str],
        inputs: Sequence[str] | None = None,
    ) -> None:
        known = set(vocabulary)
        self._tools = {signature.name: signature for signature in signatures if signature.name in known}
        self._types: dict[str, ValueType] = dict.fromkeys(TASK_INPUTS[kind] if inputs is None else inputs, "Image")
        self._numbers = [symbol for symbol in row.symbols if symbol.startswith("<n")]
        self._texts = _list_texts(row, vocabulary)
        self._line, self._numbered, self._text_length = 1, False, -1
        self._tool: ToolSignature | None = None
        self._open: list[Parameter] = []
        self.done = False

    def list_allowed(self) -> list[str]:
        """The symbols that may come next; none of a finished program."""
        if self.done:
            return []
        if self._text_length >= 0:
            return self._list_text_symbols()
        if self._tool is None:
            if not self._numbered:
                return [f"{self._line}:"]
            if self._line >= MOST_LINES:
                return [RESULT_TOOL]
            return [name for name, tool in self._tools.items() if all(self._list_values(tool, parameter) for parameter in tool.parameters)]
        return self._list_values(self._tool, self._open[0])

    def _list_values(self, tool: ToolSignature, parameter: Parameter) -> list[str]:
        if tool.name == RESULT_TOOL:
            return [name for name in self._types if name.startswith("v")]
        found: list[str] = []
        if tool.name != EXPRESSION_TOOL:
            found += [name for name, kind in self._types.items() if kind == "Any" or "Any" in parameter.types or kind in parameter.types]
        if "Text" in parameter.types:
            found.append(OPEN)
        if "Number" in parameter.types:
            found += [*map(str, range(13)), *self._numbers]
        return found if parameter.required else [*found, NOTHING]

    def _list_text_symbols(self) -> list[str]:
        if self._text_length >= MOST_TEXT:
            return [CLOSE]
        names = [name for name, kind in self._types.items() if name.startswith("v") and kind in ("Any", *EXPRESSION_TYPES)]
        inserted = [led + name for name in names for led in ("", SPACE)] if self._open[0].template else []
        return [*self._texts, *inserted, *([CLOSE] if self._text_length else [])]

    def take(self, symbol: str) -> None:
        """Go on behind ``symbol``, one of those that are allowed."""
        if self._text_length >= 0:
            if symbol == CLOSE:
                self._text_length = -1
                self._end_argument()
            else:
                self._text_length += 1
        elif self._tool is not None:
            if symbol == OPEN:
                self._text_length = 0
            else:
                self._end_argument()
        elif self._numbered:
            self._tool = self._tools[symbol]
            self._open = list(self._tool.parameters)
        else:
            self._numbered = True

    def _end_argument(self) -> None:
        assert self._tool is not None
        self._open.pop(0)
        if not self._open:
            self._types[f"v{self._line - 1}"] = self._tool.returns
            self.done = self._tool.name == RESULT_TOOL
            self._line, self._numbered, self._tool = self._line + 1, False, None


def _list_texts(row: SymbolRow, vocabulary: Sequence[str]) -> list[str]:
    """The symbols of texts for an instruction: words and signs, and of what stands for phrases and numbers only its own."""
    has = set(row.symbols)
    found = []
    for symbol in vocabulary:
        bare = symbol.removeprefix(SPACE)
        if not _RESERVED.fullmatch(bare) or bare in has or bare in _HALVES or symbol == CAPITAL:
            found.append(symbol)
    return found
