"""Reads the expressions of EVAL into a syntax tree, within fixed limits.

    expression := logic ("if" logic "else" expression)?
    logic      := or, xor, and, not, comparison (chained; in, not in), + -, * / // %, unary -   (loosest first)
    atom       := {VAR} | number | 'text' | True | False | len(expression) | [expression, ...] | (expression)

Words are the same in any case. There are no names but these, no attributes, no indices, no powers and no other calls.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeAlias

from visloop.errors import ProgramError

MAX_CHARACTERS: Final = 2_000
MAX_DEPTH: Final = 20
MAX_NUMBER: Final = 10**15
"""Limits of an expression: its text, how deep brackets and conditions may nest, and the size of every number in it."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A number, text or truth value as it is written."""

    value: str | int | float | bool


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``{VAR}``: the value of an earlier variable."""

    name: str


@dataclass(frozen=True, slots=True)
class ListOf:
    """``[a, b]``, or ``(a, b)``."""

    entries: "tuple[Expression, ...]"


@dataclass(frozen=True, slots=True)
class Unary:
    """``not a``, ``-a`` or ``len(a)``."""

    operator: str
    operand: "Expression"


@dataclass(frozen=True, slots=True)
class Chain:
    """Operands of equal rank joined by operators: ``1 + 2 - 3``, ``a < b <= c``, ``a or b or c``. One operator fewer than operands; kept
    flat, so that the tree is never deeper than the brackets."""

    level: int
    operands: "tuple[Expression, ...]"
    operators: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """``then if condition else other``."""

    condition: "Expression"
    then: "Expression"
    other: "Expression"


Expression: TypeAlias = Constant | Placeholder | ListOf | Unary | Chain | Choice

OR, XOR, AND, COMPARE, ADD, MULTIPLY = range(6)
_LEVELS: Final = {
    **{"or": OR, "xor": XOR, "and": AND},
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in", "not in"), COMPARE),
    **dict.fromkeys(("+", "-"), ADD),
    **dict.fromkeys(("*", "/", "//", "%"), MULTIPLY),
}
_TOKEN = re.compile(
    r"""[ \t\r\n]*(?:
    (?P<number>[0-9]+(?:\.[0-9]+)?)
    |(?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    |\{[ \t]*(?P<variable>[A-Za-z_][A-Za-z0-9_]{0,63})[ \t]*\}
    |(?P<word>not[ \t\r\n]+in(?![A-Za-z0-9_])|[A-Za-z_][A-Za-z0-9_]*)
    |(?P<sign>==|!=|<=|>=|//|[-+*/%<>()\[\],])
    |(?P<end>\Z)
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_KEYWORDS: Final = frozenset(("if", "else", "or", "xor", "and", "not", "in", "not in", "len", "true", "false"))
_HINTS: Final = {"=": "write == to compare", "{": "write a variable as {NAME}", "&": "write and", "|": "write or", "!": "write not"}


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


@lru_cache(maxsize=1024)  # a program's expression is asked for by its checks, for its variables and for its value; a tree never changes
def parse_expression(text: str) -> Expression:
    """The syntax tree of an expression.

    Raises:
        ProgramError: malformed or beyond the limits; says at which character (from 1), and what would be right.
    """
    if len(text) > MAX_CHARACTERS:
        raise ProgramError(f"the expression has {len(text)} characters, the most are {MAX_CHARACTERS}")
    return _Reader(_split_tokens(text)).read()


def list_placeholders(expression: Expression) -> tuple[str, ...]:
    """The variables that an expression speaks of, in order, each once."""
    match expression:
        case Placeholder(name):
            return (name,)
        case Constant():
            return ()
        case ListOf(entries):
            parts = entries
        case Unary(_, operand):
            parts = (operand,)
        case Chain(_, operands, _):
            parts = operands
        case Choice(condition, then, other):
            parts = (then, condition, other)
    return tuple(dict.fromkeys(name for part in parts for name in list_placeholders(part)))


def _split_tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    while not tokens or tokens[-1].kind != "end":
        found = _TOKEN.match(text, at)
        if found is None or found.lastgroup is None:
            start = len(text) - len(text[at:].lstrip(" \t\r\n"))
            hint = _HINTS.get(text[start], "an expression is made of {VAR}, numbers, texts in quotes and operators")
            raise ProgramError(f"character {start + 1} of the expression: unexpected {text[start : start + 20]!r}; {hint}")
        kind = found.lastgroup
        token = _Token(kind, found[kind], found.start(kind))
        if kind == "word":
            word = " ".join(token.text.lower().split())
            if word not in _KEYWORDS:
                shown = token.text[:64]
                hint = f"write a variable as {{{shown}}} and a text in quotes"
                raise ProgramError(f"character {token.at + 1} of the expression: unknown word {shown!r}; {hint}")
            token = _Token("sign", word, token.at)
        tokens.append(token)
        at = found.end()
    return tokens


class _Reader:
    """Reads tokens by precedence climbing."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._index, self._depth = tokens, 0, 0

    @property
    def _next(self) -> _Token:
        return self._tokens[self._index]

    def _error(self, wanted: str) -> ProgramError:
        found = repr(self._next.text[:20]) if self._next.kind != "end" else "its end"
        return ProgramError(f"character {self._next.at + 1} of the expression: expected {wanted}, found {found}")

    def _take(self, sign: str) -> bool:
        if self._next.kind == "sign" and self._next.text == sign:
            self._index += 1
            return True
        return False

    def _demand(self, sign: str, *, wanted: str) -> None:
        if not self._take(sign):
            raise self._error(wanted)

    def read(self) -> Expression:
        expression = self._read_choice()
        if self._next.kind != "end":
            raise self._error("an operator or the end")
        return expression

    def _read_choice(self) -> Expression:
        then = self._read_chain(OR)
        if not self._take("if"):
            return then
        condition = self._read_chain(OR)
        self._demand("else", wanted="'else' (a condition is: A if CONDITION else B)")
        self._enter()
        other = self._read_choice()
        self._depth -= 1
        return Choice(condition, then, other)

    def _read_chain(self, floor: int) -> Expression:
        """Operands and all operators that bind at least as tightly as ``floor``."""
        left = self._read_operand()
        while (level := self._peek_level()) is not None and level >= floor:
            operands, operators = [left], []
            while self._peek_level() == level:
                operators.append(self._next.text)
                self._index += 1
                operands.append(self._read_chain(level + 1))
            left = Chain(level, tuple(operands), tuple(operators))
        return left

    def _peek_level(self) -> int | None:
        return _LEVELS.get(self._next.text) if self._next.kind == "sign" else None

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ProgramError(f"character {self._next.at + 1} of the expression: nested more than {MAX_DEPTH} deep")

    def _read_operand(self) -> Expression:
        self._enter()
        operand = self._read_simple() or self._read_nested()
        self._depth -= 1
        return operand

    def _read_simple(self) -> Expression | None:
        """A value of one token, or None."""
        token = self._next
        operand: Expression | None = None
        if token.kind == "number":
            operand = Constant(_read_number(token))
        elif token.kind == "text":
            operand = Constant(_read_text(token))
        elif token.kind == "variable":
            operand = Placeholder(token.text)
        elif token.kind == "sign" and token.text in ("true", "false"):
            operand = Constant(token.text == "true")
        if operand is not None:
            self._index += 1
        return operand

    def _read_nested(self) -> Expression:
        if self._take("not"):
            return Unary("not", self._read_chain(COMPARE))
        if self._take("-"):
            return Unary("-", self._read_operand())
        if self._take("len"):
            self._demand("(", wanted="'(' after len")
            operand = self._read_choice()
            self._demand(")", wanted="')'")
            return Unary("len", operand)
        if self._take("["):
            return ListOf(self._read_entries("]"))
        if self._take("("):
            first = self._read_choice()
            if self._take(")"):
                return first
            self._demand(",", wanted="')'")
            return ListOf((first, *self._read_entries(")")))
        raise self._error("a value: {VAR}, a number, a text in quotes, a list or a bracket")

    def _read_entries(self, closing: str) -> tuple[Expression, ...]:
        entries: list[Expression] = []
        while not self._take(closing):
            entries.append(self._read_choice())
            if not self._take(","):
                self._demand(closing, wanted=f"',' or {closing!r}")
                break
        return tuple(entries)


def _read_number(token: _Token) -> int | float:
    value = float(token.text)
    if not value <= MAX_NUMBER:
        raise ProgramError(f"character {token.at + 1} of the expression: a number may be at most {MAX_NUMBER}")
    return value if "." in token.text else int(value)


def _read_text(token: _Token) -> str:
    text = re.sub(r"\\(.)", lambda found: found[1] if found[1] in "\\'\"" else found[0], token.text[1:-1], flags=re.DOTALL)
    if re.search(r"\{[ \t]*[A-Za-z_][A-Za-z0-9_]*[ \t]*\}", text):
        raise ProgramError(f"character {token.at + 1} of the expression: a variable stands inside of quotes; write it without them")
    return text
