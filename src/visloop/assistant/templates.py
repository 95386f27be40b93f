"""A demonstration as a template: which words of its instruction its program repeats, and where.

An instruction is a row of fixed words and slots. A slot is a run of words that the program takes up: in an argument (``'red star'``),
in a number (``'three'`` -> ``3``), or in the choice of a tool (``left of`` -> ``CROP_LEFTOF``). Runs of concept words are cut where
arguments are: ``big red star`` is two slots if the program speaks of ``big`` here and of ``red star`` there.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal as Choice

from visloop.assistant.grammar import format_program, parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, Word, pluralize_word, split_words
from visloop.assistant.program import Argument, Literal, Program, Statement
from visloop.records.assistant import Demonstration

SlotKind = Choice["concept", "number", "relation", "attribute"]
RELATIONS: Mapping[str, str] = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
"""Words that choose among the tools CROP_LEFTOF, CROP_RIGHTOF, CROP_ABOVE and CROP_BELOW, and how a plan says them."""
ATTRIBUTES = frozenset({"color", "colour", "shape", "pattern", "size"})
_RELATION_TOOL = re.compile(r"^(\w+_)?(LEFTOF|RIGHTOF|ABOVE|BELOW)$")


@dataclass(frozen=True, slots=True)
class Slot:
    """Words of the instruction (in normal form) that the program repeats."""

    kind: SlotKind
    norms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """``elements`` are the instruction's words (normal form) and slots, in order; the program and the plan are filled from them."""

    demonstration: Demonstration
    program: Program
    elements: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in order."""
        return tuple(element for element in self.elements if isinstance(element, Slot))


@dataclass(frozen=True, slots=True)
class _Use:
    """One place of a text, in characters, that one of the slots (by index) fills."""

    slot: int
    start: int
    end: int


def slot_kind(norm: str, *, lexicon: Lexicon) -> SlotKind | None:
    """What kind of slot a word could stand in; None for words that only carry structure."""
    if norm.isdigit():
        return "number"
    if norm in RELATIONS:
        return "relation"
    if norm in ATTRIBUTES:
        return "attribute"
    return "concept" if lexicon.is_concept(norm) else None


def build_template(demonstration: Demonstration, *, lexicon: Lexicon) -> Template:
    """Find the slots of a demonstration.

    Raises:
        ProgramError: its program is malformed.
    """
    program = parse_program(demonstration.program)
    texts = [[word.norm for word in split_words(text)] for text in _list_texts(program)]
    directions = {_direction_of(statement.tool) for statement in program.statements}
    words = split_words(demonstration.instruction)
    kinds = [_kind_in_program(word.norm, texts=texts, directions=directions, lexicon=lexicon) for word in words]
    cuts = _find_cuts([word.norm for word in words], kinds, texts)
    elements: list[str | Slot] = []
    for index, (word, kind) in enumerate(zip(words, kinds, strict=True)):
        last = elements[-1] if elements else None
        if kind is None:
            elements.append(word.norm)
        elif kind == "concept" and isinstance(last, Slot) and last.kind == "concept" and index not in cuts:
            elements[-1] = replace(last, norms=(*last.norms, word.norm))
        else:
            elements.append(Slot(kind, (word.norm,)))
    return Template(demonstration, program, tuple(elements))


def fill_template(template: Template, fills: Sequence[Sequence[Word]]) -> tuple[tuple[str, ...], str]:
    """Plan and program with the words ``fills[k]`` in place of slot k."""
    slots = template.slots
    directions = [(slot.norms[0], fill[0].norm) for slot, fill in zip(slots, fills, strict=True) if slot.kind == "relation"]
    statements = tuple(_fill_statement(statement, slots, fills, dict(directions)) for statement in template.program.statements)
    plan = tuple(_fill_text(line, slots, fills, phrases=True) for line in template.demonstration.plan)
    return plan, format_program(Program(statements))


def _kind_in_program(norm: str, *, texts: Sequence[Sequence[str]], directions: set[str | None], lexicon: Lexicon) -> SlotKind | None:
    """The kind of slot a word of a demonstration is; None if its program does not repeat it."""
    kind = slot_kind(norm, lexicon=lexicon)
    if kind == "relation":
        return kind if norm in directions else None
    return kind if kind and any(norm in text for text in texts) else None


def _find_cuts(norms: Sequence[str], kinds: Sequence[SlotKind | None], texts: Sequence[Sequence[str]]) -> set[int]:
    """Indices before which a run of concept words is cut: the ends of its longest pieces that lie in one argument."""
    cuts: set[int] = set()
    start = 0
    while start < len(norms):
        if kinds[start] != "concept":
            start += 1
            continue
        end = start
        while end < len(norms) and kinds[end] == "concept":
            end += 1
        place = start
        while place < end:
            stop = next(
                stop for stop in range(end, place, -1) if stop == place + 1 or any(_holds(text, norms[place:stop]) for text in texts)
            )
            cuts.add(stop)
            place = stop
        for text in texts:  # an argument that holds a part of a piece cuts it as well
            for place, stop in _shared_pieces(norms[start:end], text):
                cuts.update((start + place, start + stop))
        start = end
    return cuts


def _shared_pieces(run: Sequence[str], text: Sequence[str]) -> list[tuple[int, int]]:
    """The longest pieces of a run that a text holds, from left to right, if they are not the whole run."""
    pieces: list[tuple[int, int]] = []
    place = 0
    while place < len(run):
        stop = next((stop for stop in range(len(run), place, -1) if _holds(text, run[place:stop])), place)
        if stop > place:
            pieces.append((place, stop))
        place = max(stop, place + 1)
    return pieces


def _holds(text: Sequence[str], piece: Sequence[str]) -> bool:
    return any(list(text[start : start + len(piece)]) == list(piece) for start in range(len(text) - len(piece) + 1))


def _list_texts(program: Program) -> list[str]:
    return [
        str(argument.value)
        for statement in program.statements
        for _, argument in statement.arguments
        if isinstance(argument, Literal) and not isinstance(argument.value, bool | None)
    ]


def _direction_of(tool: str) -> str | None:
    found = _RELATION_TOOL.match(tool)
    return found[2].removesuffix("OF").lower() if found else None


def _fill_statement(
    statement: Statement, slots: Sequence[Slot], fills: Sequence[Sequence[Word]], directions: Mapping[str, str]
) -> Statement:
    tool = statement.tool
    direction = _direction_of(tool)
    if direction is not None and direction in directions:
        chosen = directions[direction]
        tool = tool.removesuffix("OF").removesuffix(direction.upper()) + RELATIONS[chosen].replace(" ", "").upper()
    arguments: list[tuple[str, Argument]] = []
    for key, argument in statement.arguments:
        if isinstance(argument, Literal) and isinstance(argument.value, str):
            argument = Literal(_fill_text(argument.value, slots, fills, phrases=False))
        elif isinstance(argument, Literal) and isinstance(argument.value, int) and not isinstance(argument.value, bool):
            argument = Literal(_fill_number(argument.value, slots, fills))
        arguments.append((key, argument))
    return replace(statement, tool=tool, arguments=tuple(arguments))


def _fill_number(value: int, slots: Sequence[Slot], fills: Sequence[Sequence[Word]]) -> int:
    filled = next((fill[0].norm for slot, fill in zip(slots, fills, strict=True) if slot.norms == (str(value),)), str(value))
    return int(filled)


def _fill_text(text: str, slots: Sequence[Slot], fills: Sequence[Sequence[Word]], *, phrases: bool) -> str:
    """The text with every use of a slot replaced; with ``phrases`` relation slots are replaced as phrases as well (plans)."""
    words = split_words(text)
    parts: list[str] = []
    done = 0
    for use in _find_uses(words, slots, phrases=phrases):
        shown = words[use.start : use.end]
        written = RELATIONS[fills[use.slot][0].norm] if slots[use.slot].kind == "relation" else _write_fill(fills[use.slot], shown, text)
        parts += [text[done : shown[0].start], written]
        done = shown[-1].end
    return "".join([*parts, text[done:]])


def _find_uses(words: Sequence[Word], slots: Sequence[Slot], *, phrases: bool) -> list[_Use]:
    """Where a text uses slots: the longest slots first; slots of the same words take turns."""
    norms = [word.norm for word in words]
    taken: dict[int, _Use] = {}
    turns: dict[tuple[str, ...], int] = {}
    for place in range(len(norms)):
        for wanted in sorted({slot.norms for slot in slots}, key=lambda shape: -len(shape)):
            group = [index for index, slot in enumerate(slots) if slot.norms == wanted]
            relation = slots[group[0]].kind == "relation"
            if relation and not phrases:
                continue
            size = len(RELATIONS[wanted[0]].split()) if relation else len(wanted)
            shape = tuple(RELATIONS[wanted[0]].split()) if relation else wanted
            if tuple(norms[place : place + size]) != shape or any(index in taken for index in range(place, place + size)):
                continue
            turn = turns.get(wanted, 0)
            turns[wanted] = turn + 1
            use = _Use(group[min(turn, len(group) - 1)], place, place + size)
            taken.update(dict.fromkeys(range(place, place + size), use))
            break
    return sorted(set(taken.values()), key=lambda use: use.start)


def _write_fill(fill: Sequence[Word], shown: Sequence[Word], text: str) -> str:
    """The fill in the form of what it replaces: singular or plural, digits or words, joined as there, in its case if that has capitals."""
    capitals = any(word.surface != word.surface.lower() for word in shown)
    written = [word.surface if capitals else word.surface.lower() for word in fill]
    last, model = fill[-1], shown[-1]
    if model.norm.isdigit():
        written[-1] = last.norm if model.surface.isdigit() else last.surface
    else:
        single = last.norm if last.norm != last.surface.lower() else written[-1]
        written[-1] = pluralize_word(single) if model.surface.lower() != model.norm else single
    joint = text[shown[0].end : shown[1].start] if len(shown) > 1 else " "
    return joint.join(written)


def is_function_word(norm: str) -> bool:
    """Whether a word carries structure only."""
    return norm in FUNCTION_WORDS
