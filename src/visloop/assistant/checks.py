"""What is wrong with a program before it runs: names, arguments, types, tools of the task, placeholders, expressions, the last line.

A program without problems can still fail while it runs (an EVAL gives a type only then); the interpreter checks that as it goes.
"""

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from visloop.assistant.placeholders import FILLABLE, find_placeholders
from visloop.assistant.program import TASK_INPUTS, Argument, Program, Reference, Statement
from visloop.assistant.program import Literal as Constant
from visloop.errors import ProgramError
from visloop.records.assistant import TaskKind
from visloop.tools.base import FindSignature, Parameter, ToolSignature
from visloop.tools.expression_grammar import list_placeholders, parse_expression
from visloop.tools.expressions import EXPRESSION_TOOL
from visloop.tools.signatures import ALIASES, SIGNATURES
from visloop.tools.values import ValueType, type_of

RESULT_TOOL: Final = "RESULT"
MAX_PROBLEMS: Final = 20
"""Checking stops where there are so many."""
EXPRESSION_TYPES: Final[tuple[ValueType, ...]] = ("Text", "Number", "Bool", "List", "Boxes", "Objects")
"""Types that an expression can compute with."""

ProblemCode = Literal[
    "unknown_tool",
    "tool_not_allowed",
    "unknown_argument",
    "missing_argument",
    "duplicate_argument",
    "undefined_variable",
    "reassigned_variable",
    "wrong_type",
    "malformed_placeholder",
    "undefined_placeholder",
    "malformed_expression",
    "no_result",
]


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a program, where it is (from 1), and in words what would be right."""

    line: int
    column: int
    code: ProblemCode
    message: str

    def describe(self) -> str:
        """``line 2, column 7: ...``"""
        return f"line {self.line}, column {self.column}: {self.message}"


def check_program(
    program: Program,
    *,
    kind: TaskKind,
    find_signature: FindSignature,
    inputs: Sequence[str] | None = None,
) -> tuple[Problem, ...]:
    """The problems of a program, in order of place. ``inputs``: the variables that hold pictures; None: all that the kind of task has.

    Every variable is assigned once and before its use, every tool belongs to the kind of task, arguments are those of its signature and
    have its types, and the last line is RESULT. What follows from a problem alone (the type of an unknown tool's variable) is not
    reported.
    """
    checker = _Checker(kind=kind, find_signature=find_signature, inputs=TASK_INPUTS[kind] if inputs is None else inputs)
    for statement in program.statements:
        checker.check_statement(statement)
        if len(checker.problems) >= MAX_PROBLEMS:
            break
    else:
        checker.check_end(program)
    return tuple(sorted(checker.problems, key=lambda problem: (problem.line, problem.column)))


class _Checker:
    """Goes down the lines, with the types of the variables so far."""

    def __init__(self, *, kind: TaskKind, find_signature: FindSignature, inputs: Iterable[str]) -> None:
        self.problems: list[Problem] = []
        self._kind, self._find_signature = kind, find_signature
        self._types: dict[str, ValueType] = dict.fromkeys(inputs, "Image")
        self._assigned: dict[str, int] = {}

    def _report(self, statement: Statement, code: ProblemCode, message: str, *, column: int = 1) -> None:
        self.problems.append(Problem(statement.line, column, code, message))

    def check_statement(self, statement: Statement) -> None:
        signature = self._find_signature(statement.tool)
        if signature is None:
            self._report(statement, "unknown_tool", self._explain_unknown_tool(statement.tool), column=statement.tool_column)
            returns: ValueType = "Any"
        else:
            if self._kind not in signature.kinds:
                message = f"{signature.name} may not be used in tasks of kind {self._kind}; tools that may: {', '.join(self._list_tools())}"
                self._report(statement, "tool_not_allowed", message, column=statement.tool_column)
            self._check_arguments(statement, signature)
            returns = signature.returns
            passed = statement.find_argument("var") if signature.name == RESULT_TOOL else None
            if isinstance(passed, Reference):
                returns = self._types.get(passed.name, "Any")
        name = statement.variable
        if name in self._types:
            where = f"on line {self._assigned[name]}" if name in self._assigned else "as an input"
            self._report(statement, "reassigned_variable", f"{name} is defined {where} already; give this line's value a new name")
        else:
            self._types[name] = returns
            self._assigned[name] = statement.line

    def check_end(self, program: Program) -> None:
        last = program.statements[-1] if program.statements else Statement(variable="", tool="", arguments=(), line=1)
        signature = self._find_signature(last.tool)
        if signature is None or signature.name != RESULT_TOOL:
            name = last.variable or "ANSWER0"
            message = f"the program does not end with its result; add a last line FINAL_RESULT={RESULT_TOOL}(var={name})"
            self._report(last, "no_result", message, column=last.tool_column)

    def _list_tools(self) -> list[str]:
        """Names of catalogue tools that the program may use here."""
        return [name for name, known in SIGNATURES.items() if self._kind in known.kinds and self._find_signature(name) is not None]

    def _explain_unknown_tool(self, name: str) -> str:
        allowed = self._list_tools()
        near = difflib.get_close_matches(name.upper(), [*allowed, *ALIASES], n=1)
        return f"there is no tool {name}; " + (f"did you mean {near[0]}?" if near else f"tools are: {', '.join(allowed)}")

    def _check_arguments(self, statement: Statement, signature: ToolSignature) -> None:
        names = [parameter.name for parameter in signature.parameters]
        seen: set[str] = set()
        for place, (key, value) in enumerate(statement.arguments):
            if len(self.problems) >= MAX_PROBLEMS:
                return
            column = statement.columns[place] if place < len(statement.columns) else 1
            if key in seen:
                self._report(statement, "duplicate_argument", f"{key} is given twice; leave one out", column=column)
                continue
            seen.add(key)
            parameter = signature.find_parameter(key)
            if parameter is None:
                near = difflib.get_close_matches(key, names, n=1)
                hint = f"did you mean {near[0]}?" if near else f"its arguments are: {', '.join(names)}"
                self._report(statement, "unknown_argument", f"{signature.name} has no argument {key}; {hint}", column=column)
            elif value == Constant(None):
                if parameter.required:
                    message = f"{key} of {signature.name} may not be None; it takes {_name_types(parameter.types)}"
                    self._report(statement, "missing_argument", message, column=column)
            else:
                self._check_value(statement, signature, parameter, value, column=column)
        for parameter in signature.parameters:
            if parameter.required and parameter.name not in seen:
                message = f"{signature.name} lacks its argument {parameter.name} ({_name_types(parameter.types)})"
                self._report(statement, "missing_argument", message, column=statement.tool_column)

    def _check_value(self, statement: Statement, signature: ToolSignature, parameter: Parameter, value: Argument, *, column: int) -> None:
        if isinstance(value, Reference):
            if value.name not in self._types:
                message = f"{value.name} is not defined; {self._explain_undefined(value.name, parameter)}"
                self._report(statement, "undefined_variable", message, column=column)
                return
            if signature.name == EXPRESSION_TOOL:
                message = f"{parameter.name} is an expression in quotes, not a variable; write {parameter.name}='{{{value.name}}}'"
                self._report(statement, "malformed_expression", message, column=column)
                return
        given = self._find_type(value)
        if given != "Any" and "Any" not in parameter.types and given not in parameter.types:
            message = f"{parameter.name} of {signature.name} takes {_name_types(parameter.types)}, but {_show(value)} is {given}"
            self._report(statement, "wrong_type", message + self._suggest_tools(parameter), column=column)
        elif parameter.template and not isinstance(value, Reference) and isinstance(value.value, str):
            self._check_template(statement, signature, value.value, column=column)

    def _find_type(self, value: Argument) -> ValueType:
        if isinstance(value, Reference):
            return self._types[value.name]
        return "Any" if value.value is None else type_of(value.value)

    def _explain_undefined(self, name: str, parameter: Parameter | None) -> str:
        near = difflib.get_close_matches(name, list(self._types), n=1)
        quotes = f"; a text stands in quotes: '{name}'" if parameter is not None and "Text" in parameter.types else ""
        return (f"did you mean {near[0]}?" if near else f"defined here are: {', '.join(self._types) or 'none'}") + quotes

    def _suggest_tools(self, parameter: Parameter) -> str:
        makers = [name for name in self._list_tools() if SIGNATURES[name].returns in parameter.types]
        return f"; made by {', '.join(makers)}" if makers else ""

    def _check_template(self, statement: Statement, signature: ToolSignature, text: str, *, column: int) -> None:
        is_expression = signature.name == EXPRESSION_TOOL
        try:
            names = list_placeholders(parse_expression(text)) if is_expression else find_placeholders(text)
        except ProgramError as error:
            self._report(statement, "malformed_expression" if is_expression else "malformed_placeholder", str(error), column=column)
            return
        fitting = EXPRESSION_TYPES if is_expression else FILLABLE
        for name in names:
            if name not in self._types:
                message = f"{{{name}}} is not defined; {self._explain_undefined(name, None)}"
                self._report(statement, "undefined_placeholder", message, column=column)
            elif self._types[name] not in ("Any", *fitting):
                message = (
                    f"{{{name}}} is {self._types[name]}; {'an expression' if is_expression else 'a text'} takes {_name_types(fitting)}"
                )
                self._report(statement, "wrong_type", message, column=column)


def _name_types(types: Sequence[ValueType]) -> str:
    return " or ".join(types)


def _show(value: Argument) -> str:
    shown = value.name if isinstance(value, Reference) else repr(value.value)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
