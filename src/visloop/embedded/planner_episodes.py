"""What the embedded LM of plans is trained on: episodes of at most one demonstration and an instruction with its program, as symbols.

Half of the episodes are of made-up families, whose demonstration has the same wording or nearly so; the others of real ones, with a
demonstration of the same family, of another, of a made-up one, or none. Words of instructions are hidden now and then, as if nobody knew
them, and it varies which concepts the tools know.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, split_words
from visloop.assistant.symbols import encode_instruction, encode_program
from visloop.assistant.templates import ATTRIBUTES, PLACES
from visloop.embedded.planner_families import BASE_CONCEPTS, OTHER_CONCEPTS, PlannerFamily, draw_slots
from visloop.embedded.planner_inventions import Inventor
from visloop.records.assistant import TaskKind
from visloop.scenes.workshop_families import SLOT, fill_slots
from visloop.tools.signatures import find_signature

KINDS: Final[dict[TaskKind, float]] = {"vqa": 1.0, "multi_image": 0.8, "editing": 1.0, "tagging": 0.8}
"""How often each kind comes."""
_CONCEPTS: Final = BASE_CONCEPTS | set(OTHER_CONCEPTS)
Text = tuple[str, str]
"""An instruction and its program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An instruction and its program as symbols; ``learned``: the program counts in the loss."""

    instruction: tuple[str, ...]
    program: tuple[str, ...]
    learned: bool


class EpisodeSource:
    """Draws episodes. ``words`` are the words that stand for themselves."""

    def __init__(self, families: Sequence[PlannerFamily]) -> None:
        self._families = {kind: [family for family in families if family.kind == kind] for kind in KINDS}
        said = {word.norm for family in families for text in family.wordings for word in split_words(SLOT.sub(" ", text))}
        words = said | PLACES | ATTRIBUTES | FUNCTION_WORDS
        self.words = frozenset(word for word in words if word not in _CONCEPTS and not word.isdigit())
        self._sorted = tuple(sorted(self.words))
        self._inventor = Inventor(self._families, self._sorted)

    def draw(self, rng: random.Random, *, copying: bool = False) -> tuple[TaskKind, tuple[Entry, ...]]:
        """An episode; the last entry is what is asked. ``copying``: made-up families only, in the very wording of their demonstration."""
        while True:
            [kind] = rng.choices(list(KINDS), list(KINDS.values()))
            share = rng.choice((0.0, 0.0, 0.03, 0.08, 0.15))
            hidden = {word for word in self._sorted if rng.random() < share} if share else set()
            share = rng.choice((0.0, 0.3, 0.7, 1.0))
            sure = BASE_CONCEPTS | {word for word in OTHER_CONCEPTS if rng.random() < share}
            invented = copying or rng.random() < 0.5
            texts = self._draw_invented(rng, kind, copying=copying) if invented else self._draw_real(rng, kind)
            entries = tuple(self._encode(text, learned, words=self.words - hidden, sure=sure) for text, learned in texts)
            # a concept in words is one that its instruction does not say in these words: nothing to be learned from
            if not any(symbol in _CONCEPTS for entry in entries for symbol in entry.program):
                return kind, entries

    def _encode(self, text: Text, learned: bool, *, words: Collection[str], sure: Collection[str]) -> Entry:
        row = encode_instruction(text[0], words=words, is_sure=sure.__contains__)
        program = encode_program(parse_program(text[1]), row, find_signature=find_signature)
        return Entry(instruction=row.symbols, program=program, learned=learned)

    def _draw_invented(self, rng: random.Random, kind: TaskKind, *, copying: bool) -> list[tuple[Text, bool]]:
        wording, lines = self._inventor.invent(rng, kind)
        shown = _fill(wording, lines, draw_slots(rng))
        asked = wording if copying or rng.random() < 0.6 else self._inventor.perturb(wording, rng)
        return [(shown, False), (_fill(asked, lines, draw_slots(rng)), True)]

    def _draw_real(self, rng: random.Random, kind: TaskKind) -> list[tuple[Text, bool]]:
        family = rng.choice(self._families[kind])
        texts: list[tuple[Text, bool]] = []
        if rng.random() < 0.88:
            if rng.random() < 0.15:
                wording, lines = self._inventor.invent(rng, kind)
                texts.append((_fill(wording, lines, draw_slots(rng)), False))
            else:
                texts.append((self._draw_family(family if rng.random() < 0.5 else rng.choice(self._families[kind]), rng), True))
        wording, slots = family.draw(rng)
        if rng.random() < 0.2:
            wording = self._inventor.perturb(wording, rng)
        return [*texts, (_fill(wording, family.program, slots), True)]

    def _draw_family(self, family: PlannerFamily, rng: random.Random) -> Text:
        wording, slots = family.draw(rng)
        return _fill(wording, family.program, slots)


def _fill(wording: str, lines: Sequence[str], slots: dict[str, str]) -> Text:
    return fill_slots(wording, slots), "\n".join(fill_slots(line, slots) for line in lines)
