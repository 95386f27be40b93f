"""Reads and prints visual programs: the grammar of VISPROG, as its published programs and CLOVA's use it.

    program := line ("\\n" line)*            line := VAR "=" TOOL "(" KEY "=" value ("," KEY "=" value)* ")"
    value   := VAR | 'text' | "text" | number | None | True | False

Spaces may stand around every sign. A text ends at the first of its quotes that ``, KEY=`` or the line's closing bracket follows, so that
apostrophes need no backslash (``question='Is it Rosa's hat?'``); backslash escapes are read as Python reads them. Keys are the same in
any case (``Image=``). Whether tools, keys and types are right is asked by ``checks``.
"""

import math
import re
from functools import lru_cache
from typing import Final

from visloop.assistant.program import Argument, Literal, Program, Reference, Statement
from visloop.errors import ProgramError

MAX_CHARACTERS: Final = 20_000
MAX_STATEMENTS: Final = 100
MAX_NAME: Final = 64
MAX_NUMBER: Final = 10**15
"""Limits of a program that is read: far above what a planner writes, and low enough that reading takes milliseconds."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![A-Za-z0-9_.])")
_SPACE = re.compile(r"[ \t\r]*")
_TEXT_END = re.compile(r"[ \t\r]*(?:,[ \t\r]*[A-Za-z_][A-Za-z0-9_]*[ \t\r]*=|\)[ \t\r]*\Z)")
_QUOTE_OR_ESCAPE = {quote: re.compile(rf"[{quote}\\]") for quote in "'\""}
_ESCAPE = re.compile(r"\\(?:([\\'\"ntr0])|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4}))")
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "t": "\t", "r": "\r", "0": "\0"}
_UNREADABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_TO_ESCAPE = re.compile("[\\\\\x00-\x1f\x7f-\x9f]")
_WORDS: Final = {"None": None, "True": True, "False": False}


class ProgramSyntaxError(ProgramError):
    """A text is no program. ``line`` and ``column`` count from 1; ``step`` is the number of the line among those that are not blank."""

    def __init__(self, message: str, *, line: int, column: int, step: int = 1) -> None:
        super().__init__(f"line {line}, column {column}: {message}")
        self.line, self.column, self.step = line, column, step


@lru_cache(maxsize=4096)
def parse_program(text: str) -> Program:
    """The syntax tree of a program text. Blank lines are skipped; ``Statement.line`` counts them.

    Raises:
        ProgramSyntaxError: malformed, empty, or beyond the limits above; says where, and what would be right.
    """
    if len(text) > MAX_CHARACTERS:
        raise ProgramSyntaxError(f"the program has {len(text)} characters, the most are {MAX_CHARACTERS}", line=1, column=1)
    lines = text.split("\n")
    statements: list[Statement] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip(" \t\r"):
            continue
        step = len(statements) + 1
        if step > MAX_STATEMENTS:
            raise ProgramSyntaxError(f"the program has more than {MAX_STATEMENTS} lines", line=number, column=1, step=step)
        statements.append(_LineReader(line, number=number, step=step).read_statement())
    if not statements:
        raise ProgramSyntaxError("the program is empty; write lines VAR=TOOL(key=value, ...), the last one with RESULT", line=1, column=1)
    return Program(tuple(statements))


class _LineReader:
    """Reads one line from left to right."""

    def __init__(self, text: str, *, number: int, step: int) -> None:
        self._text, self._number, self._step, self._at = text, number, step, 0
        if found := _UNREADABLE.search(text):
            raise self._error(f"a program may not hold the character {found.group()!r}; write it as an escape in a text", at=found.start())

    def _error(self, message: str, *, at: int | None = None) -> ProgramSyntaxError:
        column = (self._at if at is None else at) + 1
        return ProgramSyntaxError(message, line=self._number, column=column, step=self._step)

    def _skip_space(self) -> None:
        found = _SPACE.match(self._text, self._at)
        if found:
            self._at = found.end()

    def _show_rest(self) -> str:
        rest = self._text[self._at : self._at + 20]
        return repr(rest) if rest else "the end of the line"

    def _take_sign(self, sign: str, *, after: str) -> None:
        self._skip_space()
        if not self._text.startswith(sign, self._at):
            raise self._error(f"expected {sign!r} after {after}, found {self._show_rest()}; a line is VAR=TOOL(key=value, ...)")
        self._at += len(sign)

    def _take_name(self, what: str) -> tuple[str, int]:
        self._skip_space()
        found = _NAME.match(self._text, self._at)
        if found is None:
            raise self._error(f"expected {what}, found {self._show_rest()}; a line is VAR=TOOL(key=value, ...)")
        if len(found.group()) > MAX_NAME:
            raise self._error(f"{what} has {len(found.group())} characters, the most are {MAX_NAME}")
        start, self._at = self._at, found.end()
        return found.group(), start

    def read_statement(self) -> Statement:
        variable, start = self._take_name("a variable")
        if variable in _WORDS:
            raise self._error(f"{variable} is a value and cannot be assigned", at=start)
        self._take_sign("=", after="the variable")
        tool, tool_start = self._take_name("the name of a tool")
        if tool in _WORDS:
            raise self._error(f"{tool} is a value and no tool", at=tool_start)
        self._take_sign("(", after=f"the tool {tool}")
        arguments: list[tuple[str, Argument]] = []
        columns: list[int] = []
        self._skip_space()
        while not self._text.startswith(")", self._at):
            if arguments:
                self._take_sign(",", after=f"the argument {arguments[-1][0]}")
            key, start = self._take_name("the name of an argument")
            self._take_sign("=", after=f"the argument's name {key}")
            columns.append(start + 1)
            arguments.append((key.lower(), self._read_value(key)))
            self._skip_space()
        self._at += 1
        self._skip_space()
        if self._at < len(self._text):
            raise self._error(f"expected the end of the line after ')', found {self._show_rest()}; a line holds one call")
        return Statement(
            variable=variable,
            tool=tool,
            arguments=tuple(arguments),
            line=self._number,
            columns=tuple(columns),
            tool_column=tool_start + 1,
        )

    def _read_value(self, key: str) -> Argument:
        self._skip_space()
        if self._text[self._at : self._at + 1] in ("'", '"'):
            return Literal(self._read_text())
        if found := _NUMBER.match(self._text, self._at):
            value = _read_number(found.group(), whole=found.group(1) is None and found.group(2) is None)
            if value is None:
                raise self._error(f"a number may be at most {MAX_NUMBER}")
            self._at = found.end()
            return Literal(value)
        if not _NAME.match(self._text, self._at):
            wanted = "a variable, a text in quotes, a number or None"
            raise self._error(f"expected the value of {key} ({wanted}), found {self._show_rest()}")
        name, _ = self._take_name("a variable")
        return Literal(_WORDS[name]) if name in _WORDS else Reference(name)

    def _read_text(self) -> str:
        """The text at the cursor. It ends at the first of its quotes behind which the call can go on."""
        start, quote = self._at, self._text[self._at]
        at = start + 1
        while found := _QUOTE_OR_ESCAPE[quote].search(self._text, at):
            at = found.end()
            if found.group() == "\\":
                at += 1
            elif _TEXT_END.match(self._text, at):
                self._at = at
                text = _ESCAPE.sub(_unescape, self._text[start + 1 : at - 1])
                if _SURROGATE.search(text):
                    raise self._error("the text holds half of a surrogate pair", at=start)
                return text
        raise self._error(f"the text is not closed: expected {quote} and then ',' or ')'", at=start)


def _read_number(digits: str, *, whole: bool) -> int | float | None:
    """The number, or None where it is out of range."""
    value = float(digits)
    if not math.isfinite(value) or abs(value) > MAX_NUMBER:
        return None
    return int(value) if whole else value  # exact: doubles hold every whole number up to 2 ** 53


def _unescape(found: re.Match[str]) -> str:
    if found.group(1):
        return _ESCAPED[found.group(1)]
    return chr(int(found.group(2) or found.group(3), 16))


def format_program(program: Program) -> str:
    """The program as text that ``parse_program`` reads back to the same meaning, one line per statement.

    Raises:
        ProgramError: the tree holds a name or a value that the grammar cannot express.
    """
    return "\n".join(format_statement(statement) for statement in program.statements)


def format_statement(statement: Statement) -> str:
    """One line, as published programs are written: ``BOX0=LOC(image=IMAGE,object='kite')``.

    Raises:
        ProgramError: a name or a value that the grammar cannot express.
    """
    arguments = ",".join(f"{_format_name(key)}={format_argument(value)}" for key, value in statement.arguments)
    return f"{_format_name(statement.variable)}={_format_name(statement.tool)}({arguments})"


def format_argument(argument: Argument) -> str:
    """A value as it is written in a program. A text is in single quotes unless it holds some and no double ones.

    Raises:
        ProgramError: a value that the grammar cannot express: a number out of range, half of a surrogate pair.
    """
    if isinstance(argument, Reference):
        return _format_name(argument.name)
    value = argument.value
    if not isinstance(value, str):
        if isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:
            raise ProgramError(f"the number {value} is out of range: at most {MAX_NUMBER}")
        return repr(value)
    if _SURROGATE.search(value):
        raise ProgramError(f"the text {value[:40]!r} holds half of a surrogate pair")
    quote = '"' if "'" in value and '"' not in value else "'"
    return quote + _TO_ESCAPE.sub(_escape, value).replace(quote, f"\\{quote}") + quote


def _escape(found: re.Match[str]) -> str:
    letter = found.group()
    return {"\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(letter) or f"\\x{ord(letter):02x}"


def _format_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME or name in _WORDS:
        raise ProgramError(f"{name[:40]!r} is no name of a program: letters, digits and underscores, at most {MAX_NAME}")
    return name
