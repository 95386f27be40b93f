"""Two known programs as one, for an instruction that asks for two things (CLOVA's programs are straight lines, so that they can be joined).

Where an instruction could be cut is found in its words; how two programs are joined follows from the types of their results: pictures are
chained, numbers are added, yes-or-no answers are joined with ``and``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final
from typing import Literal as Choice

from visloop.assistant.alignment import find_phrases
from visloop.assistant.grammar import format_program, parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, Word, split_words
from visloop.assistant.program import TASK_INPUTS, Argument, Literal, Program, Reference, Statement
from visloop.records.assistant import TaskKind
from visloop.tools.base import FindSignature

JOINTS: Final = frozenset({"and", "then", "next", "afterward", "first", "finally", "also", "plus", "well"})
"""Words that stand between two wishes and belong to neither."""
_CONJUNCTIONS: Final = frozenset({"and", "plus", "well"})
"""Those that say that a wish is meant of two things together."""
_AUXILIARIES: Final = frozenset(
    {"is", "are", "was", "were", "do", "does", "did", "has", "have", "can", "could", "will", "would", "should", "may", "might"}
)
"""Words that a question for yes or no begins with."""
_PLACEHOLDER = re.compile(r"\{[ \t]*(\w+)[ \t]*\}")
_STEP = re.compile(r"\bStep(\d+)")
_YES_NO = re.compile(r"'yes' if (.+) else 'no'")
_LOW_BINDING = re.compile(r"\b(?:or|xor|if)\b")

SplitKind = Choice["sequence", "pair"]
"""``sequence``: two instructions one after the other. ``pair``: one instruction about two things."""


@dataclass(frozen=True, slots=True)
class Split:
    """Two instructions that one could stand for. ``joined``: a word like ``and`` stands between them."""

    first: str
    second: str
    kind: SplitKind
    joined: bool = True


@dataclass(frozen=True, slots=True)
class _Line:
    """One statement of a joined program with its line of the plan."""

    statement: Statement
    plan: str


def asks_yes_no(instruction: str) -> bool:
    """Whether an instruction is a question for yes or no."""
    return any(word.surface.lower() in _AUXILIARIES for word in split_words(instruction)[:1])


def split_instruction(instruction: str, *, lexicon: Lexicon) -> tuple[Split, ...]:
    """Every way to read an instruction as two: cut at a joint between two wishes, or said of two things in turn. Both halves speak of
    something, and nothing but function words stands between two things that share their wish."""
    words = split_words(instruction)
    phrases = find_phrases(words, lexicon=lexicon)
    found = [*_split_pairs(instruction, words, phrases), *_split_sequence(instruction, words, phrases)]
    return tuple(dict.fromkeys(found))


def _split_pairs(instruction: str, words: Sequence[Word], phrases: Sequence[tuple[int, int]]) -> Iterator[Split]:
    for (start, stop), (next_start, next_stop) in pairwise(phrases):
        if any(word.norm not in FUNCTION_WORDS and word.norm not in JOINTS for word in words[stop:next_start]):
            continue
        first = instruction[: words[stop - 1].end] + instruction[words[next_stop - 1].end :]
        second = instruction[: words[start].start] + instruction[words[next_start].start :]
        yield Split(first, second, "pair", any(word.norm in _CONJUNCTIONS for word in words[stop:next_start]))


def _split_sequence(instruction: str, words: Sequence[Word], phrases: Sequence[tuple[int, int]]) -> Iterator[Split]:
    for place in range(1, len(words)):
        gap = instruction[words[place - 1].end : words[place].start]
        if words[place].norm not in JOINTS and not set(gap) & set(",;.:"):
            continue
        start, stop, tail = 0, place, place
        while start < stop and words[start].norm in JOINTS:
            start += 1
        while stop > start and words[stop - 1].norm in JOINTS:
            stop -= 1
        while tail < len(words) and words[tail].norm in JOINTS:
            tail += 1
        inside = any(left < place < right for left, right in phrases)
        if inside or not any(right <= stop for _, right in phrases) or not any(left >= tail for left, _ in phrases):
            continue
        yield Split(instruction[words[start].start : words[stop - 1].end], instruction[words[tail].start :], "sequence")


def compose_programs(
    first: tuple[Sequence[str], str],
    second: tuple[Sequence[str], str],
    *,
    kind: TaskKind,
    find_signature: FindSignature,
    yes_no: bool = False,
) -> list[tuple[tuple[str, ...], str]]:
    """Plan and program of two plans and programs joined, the likeliest way first; empty if their results cannot be joined.

    Two pictures are chained: the second program changes what the first one made. Its objects are looked for in the picture as it was
    (changes only hide things from tools), or else in the changed one. Each variable is defined once, and equal steps are done once.
    Two numbers are added, or, where the answer is ``yes_no``, both have to be above zero.

    Raises:
        ProgramError: a program is malformed.
    """
    lines, others = _pair_lines(*first), _pair_lines(*second)
    result, other = _find_result(lines), _find_result(others)
    if result is None or other is None:
        return []
    types = tuple(_type_result(statement, kind=kind, find_signature=find_signature) for statement in (result.statement, other.statement))
    match types:
        case ("Image", "Image") if len(TASK_INPUTS[kind]) == 1:
            canvas = _find_canvas(others, other, find_signature=find_signature)
            whole = frozenset(line.statement.variable for line in others)
            return [
                _print(_chain(lines, others, result.statement.variable, source=TASK_INPUTS[kind][0], within=within))
                for within in dict.fromkeys((canvas, whole))
                if canvas
            ]
        case ("Number", "Number") if yes_no:
            plan = "Answer yes if the results of %s and %s are both above zero, else no."
            return [_print(_join(lines, others, "'yes' if {%s} > 0 and {%s} > 0 else 'no'", plan))]
        case ("Number", "Number"):
            return [_print(_join(lines, others, "{%s} + {%s}", "Add the results of %s and %s."))]
        case ("Bool", "Bool"):
            return [_print(_join(lines, others, "{%s} and {%s}", "Check that %s and %s both hold."))]
        case ("YesNo", "YesNo"):
            return [_print(_join_answers(lines, others))]
    return []


def _pair_lines(plan: Sequence[str], program: str) -> list[_Line]:
    """Statements with their lines of the plan; empty lines where the plan does not go step by step."""
    statements = parse_program(program).statements
    lines = plan if len(plan) == len(statements) else [""] * len(statements)
    return [_Line(statement, line) for statement, line in zip(statements, lines, strict=True)]


def _find_result(lines: Sequence[_Line]) -> _Line | None:
    """The line whose value is the program's result."""
    shown = lines[-1].statement.find_argument("var") if lines else None
    return next((line for line in lines[:-1] if isinstance(shown, Reference) and line.statement.variable == shown.name), None)


def _type_result(statement: Statement, *, kind: TaskKind, find_signature: FindSignature) -> str:
    """The type of a statement's value, with ``YesNo`` for an expression that answers yes or no."""
    signature = find_signature(statement.tool)
    returns = signature.returns if signature is not None else "Any"
    if returns != "Any":
        return returns
    if _YES_NO.fullmatch(_read_expression(statement)):
        return "YesNo"
    return "Bool" if kind == "multi_image" else "Any"


def _read_expression(statement: Statement) -> str:
    match statement.find_argument("expr"):
        case Literal(str() as text):
            return text.strip()
    return ""


def _find_canvas(lines: Sequence[_Line], result: _Line, *, find_signature: FindSignature) -> frozenset[str]:
    """The variables of the statements that make the resulting picture out of the input, one out of the other."""
    makers = {line.statement.variable: line.statement for line in lines}
    found: set[str] = set()
    statement: Statement | None = result.statement
    while statement is not None:
        signature = find_signature(statement.tool)
        source = statement.find_argument("image")
        if signature is None or signature.returns != "Image" or not isinstance(source, Reference):
            return frozenset()
        found.add(statement.variable)
        statement = makers.get(source.name)
    return frozenset(found)


def _chain(lines: Sequence[_Line], others: Sequence[_Line], made: str, *, source: str, within: frozenset[str]) -> list[_Line]:
    """The first program, and the second with ``made`` for ``source`` in its statements ``within``."""
    step = next(number for number, line in enumerate(lines, start=1) if line.statement.variable == made)
    joined, names, steps = list(lines[:-1]), dict[str, str](), dict[int, int]()
    for number, line in enumerate(others, start=1):
        inside = line.statement.variable in within
        shown = names | {source: made} if inside else names
        reads = inside and any(argument == Reference(source) for _, argument in line.statement.arguments)
        moved = _move(line, joined, names=shown, steps=steps)
        if reads and moved.plan:
            moved = replace(moved, plan=f"{moved.plan.removesuffix('.')} in Step{step}'s picture.")
        names[line.statement.variable], steps[number] = _add(joined, moved)
    return joined


def _join(lines: Sequence[_Line], others: Sequence[_Line], expression: str, plan: str) -> list[_Line]:
    """Both programs, and an expression over their results."""
    joined, names, steps = list(lines[:-1]), dict[str, str](), dict[int, int]()
    for number, line in enumerate(others[:-1], start=1):
        names[line.statement.variable], steps[number] = _add(joined, _move(line, joined, names=names, steps=steps))
    result, other = _shown_variable(lines), names[_shown_variable(others)]
    return _end(joined, lines[-1], expression % (result, other), plan % (_tell_step(joined, result), _tell_step(joined, other)))


def _join_answers(lines: Sequence[_Line], others: Sequence[_Line]) -> list[_Line]:
    """Both programs without their answers, and one answer: yes if both would say yes."""
    conditions: list[str] = []
    joined: list[_Line] = []
    for part in (lines, others):
        names, steps = dict[str, str](), dict[int, int]()
        for number, line in enumerate(part[:-1], start=1):
            moved = _move(line, joined, names=names, steps=steps) if joined else line
            if line.statement.variable == _shown_variable(part):
                condition = _YES_NO.sub(r"\1", _read_expression(moved.statement))
                conditions.append(f"({condition})" if _LOW_BINDING.search(condition) else condition)
                continue
            names[line.statement.variable], steps[number] = _add(joined, moved)
    used = [_PLACEHOLDER.findall(condition) for condition in conditions]
    told = " and ".join(dict.fromkeys(_tell_step(joined, name) for names_used in used for name in names_used))
    return _end(joined, lines[-1], f"'yes' if {' and '.join(conditions)} else 'no'", f"Answer yes if {told} both allow it, else no.")


def _end(joined: Sequence[_Line], last: _Line, expression: str, plan: str) -> list[_Line]:
    """The lines with an expression and the result at their end."""
    name = _rename("ANSWER0", joined)
    told = any(line.plan for line in joined)
    final = Statement(variable=name, tool="EVAL", arguments=(("expr", Literal(expression)),))
    shown = replace(last.statement, arguments=(("var", Reference(name)),))
    return [*joined, _Line(final, plan if told else ""), _Line(shown, last.plan)]


def _shown_variable(lines: Sequence[_Line]) -> str:
    shown = lines[-1].statement.find_argument("var")
    return shown.name if isinstance(shown, Reference) else ""


def _tell_step(lines: Sequence[_Line], variable: str) -> str:
    return next((f"Step{number}" for number, line in enumerate(lines, start=1) if line.statement.variable == variable), variable)


def _move(line: _Line, joined: Sequence[_Line], *, names: Mapping[str, str], steps: Mapping[int, int]) -> _Line:
    """A line of the second program as it stands after ``joined``: with a name that is free, and with the new names of what it uses."""
    statement = line.statement
    moved = replace(
        statement,
        variable=_rename(statement.variable, joined),
        arguments=tuple((key, _rename_argument(argument, names)) for key, argument in statement.arguments),
    )
    return _Line(moved, _STEP.sub(lambda found: f"Step{steps.get(int(found[1]), int(found[1]))}", line.plan))


def _rename_argument(argument: Argument, names: Mapping[str, str]) -> Argument:
    match argument:
        case Reference(name):
            return Reference(names.get(name, name))
        case Literal(str() as text):
            return Literal(_PLACEHOLDER.sub(lambda found: "{" + names.get(found[1], found[1]) + "}", text))
    return argument


def _rename(variable: str, joined: Sequence[_Line]) -> str:
    """The variable's name with the first number that is free."""
    taken = {line.statement.variable for line in joined}
    if variable not in taken:
        return variable
    stem, number = variable.rstrip("0123456789"), 0
    while f"{stem}{number}" in taken:
        number += 1
    return f"{stem}{number}"


def _add(joined: list[_Line], line: _Line) -> tuple[str, int]:
    """Put a line at the end, unless the same is done already; the variable that holds its value, and its step."""
    for number, known in enumerate(joined, start=1):
        if (known.statement.tool, known.statement.arguments) == (line.statement.tool, line.statement.arguments):
            return known.statement.variable, number
    joined.append(line)
    return line.statement.variable, len(joined)


def _print(lines: Sequence[_Line]) -> tuple[tuple[str, ...], str]:
    plan = tuple(line.plan for line in lines)
    return plan if all(plan) else (), format_program(Program(tuple(line.statement for line in lines)))
