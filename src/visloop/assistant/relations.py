"""A known program about things, narrowed to those that stand in a relation to other things, for an instruction of a family that no
demonstration shows.

Which tool says the relation follows from the words between the two things and the tools' own names and doc lines. Boxes that are looked
for become objects that are segmented and filtered, as relations need objects.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final

from visloop.assistant.alignment import find_phrases
from visloop.assistant.grammar import format_program, parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, split_words
from visloop.assistant.program import Argument, Literal, Program, Reference, Statement
from visloop.tools.base import FindSignature, ToolSignature
from visloop.tools.signatures import SIGNATURES

MOST_BETWEEN: Final = 6
"""Words that may stand between two things whose relation they say."""
_STEP = re.compile(r"\bStep(\d+)")
_LOCATE, _SEGMENT, _FILTER = "LOC", "SEG", "FILTER"


@dataclass(frozen=True, slots=True)
class Relation:
    """``first`` is the instruction without the relation and the other things; ``other`` are the words for these."""

    first: str
    other: str
    tool: str


def find_relations(instruction: str, *, lexicon: Lexicon) -> Iterator[Relation]:
    """Every way to read an instruction as one about things and their relation to other things, which stand behind them."""
    words = split_words(instruction)
    for (_, stop), (start, end) in pairwise(find_phrases(words, lexicon=lexicon)):
        between = [word.norm for word in words[stop:start]]
        if not between or len(between) > MOST_BETWEEN:
            continue
        other = instruction[words[start].start : words[end - 1].end]
        first = instruction[: words[stop - 1].end] + instruction[words[end - 1].end :]
        for tool in _match_tools(between):
            yield Relation(first=first, other=other, tool=tool)


def _match_tools(between: Sequence[str]) -> list[str]:
    """Relation tools that share words of their own with ``between``, the one that shares most first."""
    tools = [signature for signature in SIGNATURES.values() if _is_relation(signature)]
    said = {signature.name: _list_words(signature) for signature in tools}
    found = []
    for name, words in said.items():
        shared = words - set().union(*(other for key, other in said.items() if key != name))
        count = len(shared & set(between))
        if count:
            found.append((-count, name))
    return [name for _, name in sorted(found)]


def _is_relation(signature: ToolSignature) -> bool:
    types = {parameter.name: parameter.types for parameter in signature.parameters}
    return signature.returns == "Objects" and set(types) == {"object", "other"}


def _list_words(signature: ToolSignature) -> set[str]:
    name = signature.name.lower()
    return {word.norm for word in split_words(f"{name} {signature.doc}") if word.norm == name or word.norm not in FUNCTION_WORDS}


def relate_program(
    plan: Sequence[str], program: str, *, relation: Relation, find_signature: FindSignature
) -> tuple[tuple[str, ...], str] | None:
    """Plan and program with every LOC narrowed by the relation; None where there is no LOC, or where a tool is missing.

    Raises:
        ProgramError: the program is malformed.
    """
    statements = parse_program(program).statements
    tools = (_SEGMENT, _FILTER, relation.tool)
    if all(statement.tool != _LOCATE for statement in statements) or any(find_signature(tool) is None for tool in tools):
        return None
    made: list[Statement] = []
    told: list[str] = []
    names: dict[str, str] = {}
    steps: dict[int, int] = {}
    lines = plan if len(plan) == len(statements) else [""] * len(statements)

    def add(tool: str, line: str, **arguments: Argument) -> Reference:
        name = f"OBJ{sum(statement.variable.startswith('OBJ') for statement in (*statements, *made))}"
        made.append(Statement(variable=name, tool=tool, arguments=tuple(arguments.items())))
        told.append(line)
        return Reference(name)

    for number, statement in enumerate(statements, start=1):
        image, wanted = statement.find_argument("image"), statement.find_argument("object")
        if statement.tool == _LOCATE and isinstance(image, Reference) and isinstance(wanted, Literal):
            objects = add(_SEGMENT, f"Segment the objects of {image.name}.", image=image)
            step = len(made)
            own = add(_FILTER, f"Keep each {wanted.value} of Step{step}.", image=image, object=objects, query=wanted)
            others = add(_FILTER, f"Keep each {relation.other} of Step{step}.", image=image, object=objects, query=Literal(relation.other))
            line = f"Keep those of Step{step + 1} for which {relation.tool} holds with one of Step{step + 2}."
            names[statement.variable], steps[number] = add(relation.tool, line, object=own, other=others).name, len(made)
            continue
        arguments = tuple((key, _rename(argument, names)) for key, argument in statement.arguments)
        made.append(replace(statement, arguments=arguments))
        told.append(_STEP.sub(lambda found: f"Step{steps.get(int(found[1]), int(found[1]))}", lines[number - 1]))
        steps[number] = len(made)
    return tuple(told) if all(told) else (), format_program(Program(tuple(made)))


def _rename(argument: Argument, names: Mapping[str, str]) -> Argument:
    return Reference(names.get(argument.name, argument.name)) if isinstance(argument, Reference) else argument
