"""From a statement and the values so far to a call of a tool, and from a tool's result to a value: both checked against the signature.

The static checks have been passed; what is left is what only values can tell: the type that an EVAL gave, and how long a filled text is.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from visloop.assistant.placeholders import fill_placeholders, find_placeholders
from visloop.assistant.program import Reference, Statement
from visloop.errors import ConfigError, ModelError, ProgramError, ToolError
from visloop.tools.base import Parameter, ToolCall, ToolResult, ToolSignature
from visloop.tools.expression_grammar import list_placeholders, parse_expression
from visloop.tools.expressions import EXPRESSION_TOOL
from visloop.tools.failures import note_failure
from visloop.tools.values import Value, ValueType, type_of

_TUPLES: tuple[ValueType, ...] = ("Boxes", "Objects", "List")


@dataclass(frozen=True, slots=True)
class TypedValue:
    """A value with the type that its maker declares: an empty tuple alone does not say what it is empty of."""

    value: Value
    type: ValueType


def bind_call(statement: Statement, signature: ToolSignature, values: Mapping[str, TypedValue]) -> ToolCall:
    """The call of a statement: a value for every parameter (None where it is left out), placeholders of texts filled in, and the values
    behind them. EVAL's text keeps its placeholders.

    Raises:
        ProgramError: a value is missing, has the wrong type, or does not fit into a text.
    """
    arguments: dict[str, Value | None] = {}
    variables: dict[str, Value] = {}
    for parameter in signature.parameters:
        argument = statement.find_argument(parameter.name)
        if isinstance(argument, Reference):
            found = _find_value(argument.name, values)
            _check_type(signature, parameter, found, shown=argument.name)
            arguments[parameter.name] = found.value
            continue
        value = argument.value if argument is not None else None
        if value is None and parameter.required:
            raise ProgramError(f"{signature.name} lacks its argument {parameter.name}")
        if parameter.template and isinstance(value, str):
            names = _find_names(signature, value)
            here = {name: _find_value(name, values).value for name in names}
            variables |= here
            if signature.name != EXPRESSION_TOOL:
                value = fill_placeholders(value, here)
        arguments[parameter.name] = value
    return ToolCall(tool=signature.name, arguments=arguments, variables=variables)


def _find_names(signature: ToolSignature, text: str) -> tuple[str, ...]:
    return list_placeholders(parse_expression(text)) if signature.name == EXPRESSION_TOOL else find_placeholders(text)


def _find_value(name: str, values: Mapping[str, TypedValue]) -> TypedValue:
    if name not in values:
        raise ProgramError(f"{name} has no value; defined are: {', '.join(values)}")
    return values[name]


def _check_type(signature: ToolSignature, parameter: Parameter, found: TypedValue, *, shown: str) -> None:
    empty = isinstance(found.value, tuple) and not found.value and any(name in parameter.types for name in _TUPLES)
    if "Any" not in parameter.types and found.type not in parameter.types and not empty:
        wanted = " or ".join(parameter.types)
        raise ProgramError(f"{parameter.name} of {signature.name} takes {wanted}, but the value of {shown} is {found.type}")


def read_value(value: object, *, declared: ValueType, maker: str) -> TypedValue:
    """A value that ``maker`` gave, with its type, if it has the declared one.

    Raises:
        ToolError: no value, no value of programs, or one of another type.
    """
    if value is None:
        raise ToolError(f"{maker} gave neither a value nor an error; {declared} is wanted")
    try:
        actual = type_of(value)  # type: ignore[arg-type]  # it is asked whether it is a value
    except TypeError as error:
        raise ToolError(f"{maker} gave {error}") from error
    if isinstance(value, tuple) and not value and declared in _TUPLES:
        return TypedValue(value, declared)
    if declared not in ("Any", actual):
        raise ToolError(f"{maker} gave {actual}, its signature says {declared}")
    return TypedValue(value, actual)  # type: ignore[arg-type]  # type_of has accepted it


def read_results(call_tool: Callable[[list[ToolCall]], list[ToolResult]], calls: list[ToolCall]) -> list[ToolResult]:
    """Results of calls of one tool. A tool that breaks its contract (raises, or gives another number of results) is asked again call by
    call, so that one bad call does not fail the others; what then still breaks is a result with ``error``.

    Raises:
        ConfigError, ModelError: the tool cannot be loaded, or a call alone does not fit into memory; no program is to blame for that.
    """
    try:
        results: object = call_tool(calls)
        if isinstance(results, list) and len(results) == len(calls) and all(isinstance(result, ToolResult) for result in results):
            return results
        reason = "the tool did not give one result per call"
    except (ConfigError, ModelError):
        raise
    except Exception as error:  # whatever a tool raises fails its call, never the other programs
        note_failure(error, tool=calls[0].tool if calls else "", calls=len(calls))
        reason = f"{type(error).__name__}: {error}"
    if len(calls) > 1:
        return [read_results(call_tool, [call])[0] for call in calls]
    return [ToolResult(value=None, error=reason)]
