"""EVAL: the value of an expression over earlier variables, computed without Python's own evaluator (CLOVA's tool EVAL).

``expression_grammar`` reads the text; this module computes. What answers mean follows CLOVA: the answer 'yes' or 'no' of a variable is a
truth value, except beside ``==``, ``!=`` and ``in``, where it is compared as text; an answer in digits is a number; ``xor`` is ``!=``.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final, TypeAlias

from PIL import Image

from visloop.errors import ProgramError
from visloop.tools.base import ToolCall, ToolResult, ToolSignature
from visloop.tools.expression_grammar import (
    AND,
    COMPARE,
    MAX_NUMBER,
    OR,
    XOR,
    Chain,
    Choice,
    Constant,
    Expression,
    ListOf,
    Placeholder,
    Unary,
    parse_expression,
)
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Boxes, Objects, Value

EXPRESSION_TOOL: Final = "EVAL"
MAX_TEXT: Final = 10_000
MAX_ENTRIES: Final = 10_000
MAX_STEPS: Final = 200_000
"""Limits of what an expression works on: characters of a text, entries of a list, and steps in all (an entry that is looked at, or
16 characters of a text)."""

Atom: TypeAlias = str | int | float | bool
_Result: TypeAlias = Atom | tuple[Atom, ...] | Boxes | Objects

_DIGITS = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]{1,15})?")
_TRUTHS: Final = {"yes": True, "no": False, "true": True, "false": False}


def evaluate_expression(text: str, variables: Mapping[str, Value]) -> Atom | tuple[str, ...] | Boxes | Objects:
    """The value of an expression; ``variables`` are those behind its ``{VAR}``.

    Numbers are computed as in Python, except that a division of whole numbers without remainder gives a whole number. Texts are compared
    without regard to case and outer spaces, and equal a number or truth value that they spell. ``and`` and ``or`` give one of their
    operands. Boxes and objects count their entries in ``len`` and in truth tests; the texts 'yes' and 'no' are as true as they say. A list
    as the result is a list of texts.

    Raises:
        ProgramError: malformed, an undefined variable, operands that do not fit, a division by zero, or a limit reached.
    """
    result = _Evaluator(variables).evaluate(parse_expression(text))
    if isinstance(result, tuple) and any(isinstance(entry, str | int | float) for entry in result):
        return tuple(str(entry) for entry in result)
    return result  # type: ignore[return-value]  # a tuple without texts and numbers: boxes, objects, or empty


class EvalTool:
    """The tool EVAL. A call whose expression is wrong is a result with ``error``."""

    signature: ToolSignature = SIGNATURES[EXPRESSION_TOOL]

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """One result per call, in order."""
        return [self._evaluate(call) for call in calls]

    def _evaluate(self, call: ToolCall) -> ToolResult:
        text = call.arguments.get("expr")
        if not isinstance(text, str):
            return ToolResult(value=None, error="EVAL needs expr='...', a text")
        try:
            return ToolResult(value=evaluate_expression(text, call.variables))
        except ProgramError as error:
            return ToolResult(value=None, error=str(error))


class _Evaluator:
    """Computes one expression; every node once, so that the work is bounded by the text's length and the steps counted here."""

    def __init__(self, variables: Mapping[str, Value]) -> None:
        self._variables, self._steps = variables, 0

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise ProgramError(f"the expression needs more than {MAX_STEPS} steps")

    def evaluate(self, node: Expression) -> _Result:
        match node:
            case Constant(value):
                return value
            case Placeholder(name):
                found = self._look_up(name)
                return _TRUTHS[found.lower()] if isinstance(found, str) and found.lower() in ("yes", "no") else found
            case ListOf(entries):
                return tuple(self._take_atom(entry) for entry in entries)
            case Unary("not", operand):
                return not _is_true(self.evaluate(operand))
            case Unary("len", operand):
                return self._count(operand)
            case Unary(_, operand):
                return _bound(-_need_number(self.evaluate(operand), "-"))
            case Choice(condition, then, other):
                return self.evaluate(then if _is_true(self.evaluate(condition)) else other)
            case Chain(level, operands, operators):
                return self._evaluate_chain(level, operands, operators)

    def _look_up(self, name: str) -> _Result:
        """The value of a variable; an answer in digits is a number, outer spaces of a text are cut."""
        if name not in self._variables:
            known = ", ".join(sorted(self._variables)) or "none"
            raise ProgramError(f"{{{name}}} is not defined; defined are: {known}")
        value = self._variables[name]
        if isinstance(value, Image.Image):
            raise ProgramError(f"{{{name}}} is a picture; an expression computes with texts, numbers, boxes and objects")
        if isinstance(value, str | tuple):
            most, what = (MAX_TEXT, "characters") if isinstance(value, str) else (MAX_ENTRIES, "entries")
            if len(value) > most:
                raise ProgramError(f"{{{name}}} has {len(value)} {what}, the most are {most}")
        if isinstance(value, str):
            self._spend(len(value) // 16)
            stripped = value.strip()
            return _read_digits(stripped) if _DIGITS.fullmatch(stripped) else stripped
        return value if isinstance(value, tuple) else _bound(value)

    def _take_atom(self, node: Expression) -> Atom:
        value = self.evaluate(node)
        if isinstance(value, tuple):
            raise ProgramError("a list holds texts and numbers only, no lists, boxes or objects")
        return value

    def _count(self, node: Expression) -> int:
        value = self._look_up(node.name) if isinstance(node, Placeholder) else self.evaluate(node)
        if isinstance(value, str | tuple):
            return len(value)
        raise ProgramError(f"len takes boxes, objects, a list or a text, not {_show(value)}")

    def _evaluate_chain(self, level: int, operands: tuple[Expression, ...], operators: tuple[str, ...]) -> _Result:
        if level in (OR, AND):
            value = self.evaluate(operands[0])
            for operand in operands[1:]:
                if _is_true(value) == (level == OR):
                    break
                value = self.evaluate(operand)
            return value
        if level == COMPARE:
            return self._compare_chain(operands, operators)
        value = self.evaluate(operands[0])
        for operator, operand in zip(operators, operands[1:], strict=True):
            other = self.evaluate(operand)
            value = not self._are_equal(value, other) if level == XOR else self._calculate(operator, value, other)
        return value

    def _compare_chain(self, operands: tuple[Expression, ...], operators: tuple[str, ...]) -> bool:
        """``a < b == c``: true if every neighbouring pair is. Later operands are not computed after a pair that is false."""
        as_text = {place + side for place, operator in enumerate(operators) for side in (0, 1) if operator in ("==", "!=", "in", "not in")}
        values = (
            self._look_up(node.name) if place in as_text and isinstance(node, Placeholder) else self.evaluate(node)
            for place, node in enumerate(operands)
        )
        return all(self._compare(operator, left, right) for operator, (left, right) in zip(operators, pairwise(values), strict=False))

    def _compare(self, operator: str, left: _Result, right: _Result) -> bool:
        if operator in ("==", "!="):
            return self._are_equal(left, right) == (operator == "==")
        if operator in ("in", "not in"):
            return self._contains(right, left) == (operator == "in")
        if isinstance(left, str) and isinstance(right, str):
            self._spend((len(left) + len(right)) // 16 + 1)
            first, second = left.casefold(), right.casefold()
            return _order(operator, (first > second) - (first < second))
        a, b = _need_number(left, operator), _need_number(right, operator)
        return _order(operator, (a > b) - (a < b))

    def _contains(self, whole: _Result, part: _Result) -> bool:
        if isinstance(whole, str) and isinstance(part, str | int | float) and not isinstance(part, bool):
            self._spend(len(whole) // 16 + 1)
            return str(part).casefold() in whole.casefold()
        if isinstance(whole, tuple) and not isinstance(part, tuple):
            return any(isinstance(entry, str | int | float) and self._are_equal(entry, part) for entry in whole)
        raise ProgramError(f"'in' looks for a text or number in a list or text, not for {_show(part)} in {_show(whole)}")

    def _are_equal(self, left: _Result, right: _Result) -> bool:
        self._spend(1)
        if isinstance(left, tuple) or isinstance(right, tuple):
            return self._are_equal_lists(left, right)
        if isinstance(left, str) and isinstance(right, str):
            self._spend((len(left) + len(right)) // 16)
            return left.strip().casefold() == right.strip().casefold()
        if isinstance(left, str):
            left, right = right, left
        if isinstance(right, str):
            spelled = right.strip().lower()
            if isinstance(left, bool):
                return _TRUTHS.get(spelled) is left
            return _DIGITS.fullmatch(spelled) is not None and _read_digits(spelled) == left
        return left == right

    def _are_equal_lists(self, left: _Result, right: _Result) -> bool:
        if not (isinstance(left, tuple) and isinstance(right, tuple)):
            raise ProgramError(f"{_show(left)} cannot be compared with {_show(right)}; write len(...) for how many there are")
        self._spend(min(len(left), len(right)))
        if len(left) != len(right):
            return False
        atoms = str | int | float
        return all(
            self._are_equal(a, b) if isinstance(a, atoms) and isinstance(b, atoms) else a == b for a, b in zip(left, right, strict=True)
        )

    def _calculate(self, operator: str, left: _Result, right: _Result) -> _Result:
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            if len(left) + len(right) > MAX_TEXT:
                raise ProgramError(f"the text would have more than {MAX_TEXT} characters")
            self._spend((len(left) + len(right)) // 16)
            return left + right
        a, b = _need_number(left, operator), _need_number(right, operator)
        if operator in ("/", "//", "%") and b == 0:
            raise ProgramError(f"division by zero: {a} {operator} {b}")
        match operator:
            case "+":
                return _bound(a + b)
            case "-":
                return _bound(a - b)
            case "*":
                return _bound(a * b)
            case "//":
                return _bound(a // b)
            case "%":
                return _bound(a % b)
        whole = isinstance(a, int) and isinstance(b, int) and a % b == 0
        return _bound(a // b if whole else a / b)


def _order(operator: str, sign: int) -> bool:
    """Whether a comparison with this sign (-1, 0, 1) fulfils the operator."""
    return {"<": sign < 0, "<=": sign <= 0, ">": sign > 0, ">=": sign >= 0}[operator]


def _is_true(value: _Result) -> bool:
    """Truth as in Python, but the texts 'yes' and 'no' mean what they say."""
    if isinstance(value, str):
        return _TRUTHS.get(value.strip().lower(), bool(value))
    return bool(value)


def _need_number(value: _Result, operator: str) -> int | float:
    if isinstance(value, int | float):
        return value
    hint = "; write len(...) for how many there are" if isinstance(value, tuple) else ""
    raise ProgramError(f"{operator!r} takes numbers, not {_show(value)}{hint}")


def _bound(value: int | float) -> int | float:
    if not -MAX_NUMBER <= value <= MAX_NUMBER:
        raise ProgramError(f"a number is out of range: at most {MAX_NUMBER} in size")
    return value


def _read_digits(digits: str) -> int | float:
    return float(digits) if "." in digits else int(digits)


def _show(value: _Result) -> str:
    return f"{len(value)} boxes, objects or entries" if isinstance(value, tuple) else repr(value)[:40]
