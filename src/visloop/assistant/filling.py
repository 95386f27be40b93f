"""Filling a template: the words of a new instruction in place of the demonstration's, in its program and its plan."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from visloop.assistant.grammar import format_program
from visloop.assistant.lexicon import Word, pluralize_word, split_words
from visloop.assistant.program import TASK_INPUTS, Argument, Literal, Program, Reference, Statement
from visloop.assistant.templates import Slot, Template, list_name_parts
from visloop.errors import ProgramError
from visloop.tools.signatures import find_signature

Fill = Sequence[Word]
_PHRASES = {"left": ("left", "of"), "right": ("right", "of")}
"""How a text says a direction that takes more than its word."""
_COMPARED = re.compile(r"(?:[=!]=|[<>]=?)\s*$")
_ARTICLE = re.compile(r"\b([Aa])n? $")


@dataclass(frozen=True, slots=True)
class _Use:
    """Words ``start`` to ``stop`` of a text that slot ``slot`` fills."""

    slot: int
    start: int
    stop: int


def fill_template(template: Template, fills: Sequence[Fill]) -> tuple[tuple[str, ...], str]:
    """Plan and program with the words ``fills[k]`` in place of slot k; a slot without words keeps its own.

    Raises:
        ProgramError: there is no tool or picture for a place.
    """
    slots = [slot for slot, fill in zip(template.slots, fills, strict=True) if fill]
    fills = [fill for fill in fills if fill]
    inputs = TASK_INPUTS[template.demonstration.task_kind]
    statements = tuple(_fill_statement(statement, slots, fills, inputs) for statement in template.program.statements)
    plan = tuple(_fill_text(line, slots, fills) for line in template.demonstration.plan)
    return plan, format_program(Program(statements))


def _fill_statement(statement: Statement, slots: Sequence[Slot], fills: Sequence[Fill], inputs: Sequence[str]) -> Statement:
    places = {slot.norms[0]: fill[0].norm for slot, fill in zip(slots, fills, strict=True) if slot.kind == "place"}
    arguments: list[tuple[str, Argument]] = []
    for key, argument in statement.arguments:
        match argument:
            case Reference(name) if name in inputs and name.lower() in places:
                argument = Reference(places[name.lower()].upper())
                if argument.name not in inputs:
                    raise ProgramError(f"there is no picture {argument.name}; there are {', '.join(inputs)}")
            case Literal(str() as text):
                argument = Literal(_fill_text(text, slots, fills, expression=statement.tool == "EVAL"))
            case Literal(int() as number) if not isinstance(number, bool):
                argument = Literal(_fill_number(number, slots, fills))
        arguments.append((key, argument))
    return replace(statement, tool=_fill_tool(statement.tool, places), arguments=tuple(arguments))


def _fill_tool(tool: str, places: Mapping[str, str]) -> str:
    """The tool of the same kind for another place: CROP_LEFTOF -> CROP_ABOVE, TOP -> BOTTOM."""
    for part, place in ((part, places[part]) for part in list_name_parts(tool) if part in places):
        for suffix in ("OF", ""):
            name = re.sub(rf"{part.upper()}(OF)?$", place.upper() + suffix, tool)
            if find_signature(name) is not None:
                return name
        raise ProgramError(f"there is no tool like {tool} for {place!r}")
    return tool


def _fill_number(number: int, slots: Sequence[Slot], fills: Sequence[Fill]) -> int:
    return next((int(fill[0].norm) for slot, fill in zip(slots, fills, strict=True) if slot.norms == (str(number),)), number)


def _fill_text(text: str, slots: Sequence[Slot], fills: Sequence[Fill], *, expression: bool = False) -> str:
    """The text with every use of a slot replaced."""
    words = split_words(text)
    parts: list[str] = []
    done = 0
    for use in _find_uses(text, words, slots, expression=expression):
        shown = words[use.start : use.stop]
        before = text[done : shown[0].start]
        written = _write_fill(fills[use.slot], shown, text, place=slots[use.slot].kind == "place")
        if not expression:
            before = _ARTICLE.sub(lambda found: f"{found[1]}{'n' if written[:1].lower() in 'aeio' else ''} ", before)  # noqa: B023
        parts += [before, written]
        done = shown[-1].end
    return "".join([*parts, text[done:]])


def _find_uses(text: str, words: Sequence[Word], slots: Sequence[Slot], *, expression: bool) -> list[_Use]:
    """Where a text uses slots: longer slots before shorter ones, slots of the same words in turns. In an expression a number is a slot's
    only where something is compared with it."""
    norms = tuple(word.norm for word in words)
    shapes: dict[tuple[str, ...], list[_Use]] = {}
    for index, slot in enumerate(slots):
        shapes.setdefault(slot.norms, []).append(_Use(index, 0, 0))
        if slot.kind == "place" and slot.norms[0] in _PHRASES:
            shapes.setdefault(_PHRASES[slot.norms[0]], []).append(_Use(index, 0, 0))
    uses: list[_Use] = []
    turns: dict[tuple[str, ...], int] = {}
    place = 0
    while place < len(norms):
        found = next((shape for shape in sorted(shapes, key=len, reverse=True) if norms[place : place + len(shape)] == shape), None)
        if found is None or (expression and norms[place].isdigit() and not _COMPARED.search(text[: words[place].start])):
            place += 1
            continue
        turn = turns[found] = turns.get(found, -1) + 1
        uses.append(replace(shapes[found][min(turn, len(shapes[found]) - 1)], start=place, stop=place + len(found)))
        place += len(found)
    return uses


def _write_fill(fill: Fill, shown: Sequence[Word], text: str, *, place: bool) -> str:
    """The fill in the form of what it replaces: singular or plural, digits or words, joined as there, with capitals if that has some."""
    model = shown[-1]
    if place:
        directed = len(shown) > 1 or model.norm in ("above", "below")
        phrase = " ".join(_PHRASES[fill[0].norm]) if directed and fill[0].norm in _PHRASES else fill[0].norm
        return phrase.upper() if model.surface.isupper() else phrase
    capitals = any(word.surface != word.surface.lower() for word in shown)
    written = [word.surface if capitals else word.surface.lower() for word in fill]
    last = fill[-1]
    if model.norm.isdigit():
        written[-1] = last.norm if model.surface.isdigit() else written[-1]
    else:
        single = last.norm if last.norm != last.surface.lower() else written[-1]
        written[-1] = pluralize_word(single) if model.surface.lower() != model.norm else single
    joint = text[shown[0].end : shown[1].start] if len(shown) > 1 else " "
    return joint.join(written)
