"""A demonstration as a template: which words of its instruction its program repeats, and where.

An instruction is a row of fixed words and slots. A slot is a run of words that the program takes up: in an argument (``'red star'``),
in a number (``three`` -> ``== 3``), in a tool or a picture (``left of`` -> ``CROP_LEFTOF``, ``left picture`` -> ``LEFT``). Runs of
concept words are cut where arguments are: ``big red star`` is two slots if the program speaks of ``big`` here and of ``red star`` there.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal as Choice

from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, list_program_words, split_words
from visloop.assistant.program import Literal, Program, Reference
from visloop.records.assistant import Demonstration

SlotKind = Choice["concept", "name", "number", "place", "attribute"]
"""A ``name`` is what is repeated in an argument but is no concept of a tool: an emoji, a set to list, a word of a question."""
PLACES = frozenset({"left", "right", "middle", "above", "below", "top", "bottom", "wall", "corner"})
"""Words for places and directions: they name tools (CROP_LEFTOF, TOP), pictures (LEFT) and targets (``'wall'``)."""
ATTRIBUTES = frozenset({"color", "colour", "shape", "pattern", "size", "material"})
"""What a question may ask for."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Words of the instruction (in normal form) that the program repeats. An ``optional`` one need not be filled: its words, which may
    just be how things are said (``shapes of the garden set``), then stay. What is a whole argument has to be filled."""

    kind: SlotKind
    norms: tuple[str, ...]
    optional: bool = False

    @property
    def is_open(self) -> bool:
        """Whether it holds what an instruction is about, which says nothing about the program that it needs."""
        return self.kind in ("concept", "place", "number") or (self.kind == "name" and not self.optional)


@dataclass(frozen=True, slots=True)
class Template:
    """``elements`` are the instruction's words (normal form) and slots, in order; ``filling.fill_template`` fills program and plan."""

    demonstration: Demonstration
    program: Program
    elements: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in order."""
        return tuple(element for element in self.elements if isinstance(element, Slot))

    @property
    def form(self) -> Hashable:
        """Equal for demonstrations that say the same of other things: same fixed words, same kinds of slots, same tools."""
        shape = tuple((element.kind, element.optional) if isinstance(element, Slot) else element for element in self.elements)
        return shape, tuple(statement.tool for statement in self.program.statements)


def slot_kind(norm: str, *, lexicon: Lexicon) -> SlotKind | None:
    """What kind of slot a word could stand in; None for words that only carry structure."""
    if norm.isdigit():
        return "number"
    if norm in PLACES:
        return "place"
    if norm in ATTRIBUTES:
        return "attribute"
    return "concept" if lexicon.is_concept(norm) else None


def build_template(demonstration: Demonstration, *, lexicon: Lexicon) -> Template:
    """Find the slots of a demonstration.

    Raises:
        ProgramError: its program is malformed.
    """
    program = parse_program(demonstration.program)
    texts = [tuple(word.norm for word in split_words(text)) for text in _list_texts(program)]
    names = {name for statement in program.statements for name in list_name_parts(statement.tool)}
    names |= {
        argument.name.lower() for statement in program.statements for _, argument in statement.arguments if isinstance(argument, Reference)
    }
    norms = [word.norm for word in split_words(demonstration.instruction)]
    repeated = {norm for text in texts for norm in text}
    phrases, _ = list_program_words(demonstration.program)
    concepts = {norm for phrase in phrases for norm in phrase}
    found = [_find_slot(norm, repeated=repeated, concepts=concepts, names=names, lexicon=lexicon) for norm in norms]
    cuts = _find_cuts(norms, [slot is not None and slot.kind in ("concept", "name") for slot in found], texts)
    elements: list[str | Slot] = []
    for index, (norm, slot) in enumerate(zip(norms, found, strict=True)):
        last = elements[-1] if elements else None
        if slot is None:
            elements.append(norm)
        elif (
            isinstance(last, Slot)
            and (slot.kind, slot.optional) == (last.kind, last.optional)
            and slot.kind == "concept"
            and index not in cuts
        ):
            elements[-1] = replace(last, norms=(*last.norms, norm), optional=last.optional and slot.optional)
        else:
            elements.append(slot)
    whole = [replace(element, optional=False) if isinstance(element, Slot) and element.norms in texts else element for element in elements]
    return Template(demonstration, program, tuple(whole))


def _find_slot(norm: str, *, repeated: set[str], concepts: set[str], names: set[str], lexicon: Lexicon) -> Slot | None:
    """The slot that one word of a demonstration is; None if its program does not repeat it, or if it carries structure only."""
    kind = slot_kind(norm, lexicon=lexicon)
    if norm not in repeated and not (kind == "place" and norm in names):
        return None
    if kind is None:
        return None if norm in FUNCTION_WORDS else Slot("name", (norm,), optional=True)
    if kind == "concept" and not lexicon.is_sure(norm) and norm not in concepts:
        return Slot("name", (norm,))
    return Slot(kind, (norm,), optional=kind == "attribute")


def list_name_parts(tool: str) -> list[str]:
    """The words that a tool's name is made of: ``CROP_LEFTOF`` -> ``crop``, ``left``."""
    return [part.removesuffix("OF").lower() for part in tool.split("_")]


def _list_texts(program: Program) -> Iterator[str]:
    for statement in program.statements:
        for _, argument in statement.arguments:
            if isinstance(argument, Literal) and not isinstance(argument.value, bool | None):
                yield str(argument.value)


def _find_cuts(norms: Sequence[str], concepts: Sequence[bool], texts: Sequence[Sequence[str]]) -> set[int]:
    """Indices before which a run of concept words is cut. Each argument is read from left to right as the longest pieces of runs, whole
    runs first where several are as long; where such a piece begins or ends, its run is cut."""
    runs: list[tuple[int, int]] = []
    for index, concept in enumerate(concepts):
        if concept:
            if runs and runs[-1][1] == index:
                runs[-1] = (runs[-1][0], index + 1)
            else:
                runs.append((index, index + 1))
    pieces = [
        (start, stop, (start, stop) == (first, last))
        for first, last in runs
        for start in range(first, last)
        for stop in range(start + 1, last + 1)
    ]
    pieces.sort(key=lambda piece: (piece[0] - piece[1], not piece[2]))
    cuts: set[int] = set()
    for text in texts:
        place = 0
        while place < len(text):
            for start, stop, _ in pieces:
                if tuple(text[place : place + stop - start]) == tuple(norms[start:stop]):
                    cuts.update((start, stop))
                    place += stop - start - 1
                    break
            place += 1
    return cuts
