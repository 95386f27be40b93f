"""English wordings of every question form, as data. Those after the first tuple of a form are held out for tests.

Slots: ``{a}`` and ``{b}`` are filters in the singular, ``{as}`` and ``{bs}`` in the plural, ``{an_a}`` with its article,
``{attribute}`` the asked attribute, ``{direction}`` a direction, ``{choice}`` the values of an attribute ("small or large").
Statements put a condition (``{what}``) into a sentence about the boxes.
"""

import re
from dataclasses import dataclass
from typing import Literal

from visloop.scenes.filters import THING
from visloop.scenes.steps import Direction

Wording = Literal["train", "held_out", "all"]


@dataclass(frozen=True, slots=True)
class Wordings:
    """The wordings of one form: used everywhere, and held out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def choose(self, wording: Wording) -> tuple[str, ...]:
        """The wordings of the named part."""
        return {"train": self.train, "held_out": self.held_out, "all": self.train + self.held_out}[wording]


NOUNS: tuple[str, ...] = (THING, "object", "item")
"""Nouns of a filter without a shape."""

NUMBER_WORDS: tuple[str, ...] = ("no", "one", "two", "three")

DIRECTION_PHRASES: dict[Direction, tuple[str, ...]] = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "higher than"),
    "below": ("below", "lower than"),
}

QUESTIONS: dict[str, Wordings] = {
    "exist": Wordings(
        ("Is there {an_a}?", "Are there any {as}?", "Does the picture show {an_a}?", "Can you see {an_a}?"),
        ("Does the picture show any {as}?", "Can you see any {as}?"),
    ),
    "count": Wordings(
        ("How many {as} are there?", "Count the {as}.", "What is the number of {as}?", "How many {as} does the picture show?"),
        ("How many {as} can you see?", "Tell me the number of {as}."),
    ),
    "compare more": Wordings(
        (
            "Are there more {as} than {bs}?",
            "Do the {as} outnumber the {bs}?",
            "Is the number of {as} greater than the number of {bs}?",
            "Does the picture show more {as} than {bs}?",
        ),
        ("Can you see more {as} than {bs}?",),
    ),
    "compare fewer": Wordings(
        (
            "Are there fewer {as} than {bs}?",
            "Are the {as} outnumbered by the {bs}?",
            "Is the number of {as} lower than the number of {bs}?",
            "Does the picture show fewer {as} than {bs}?",
        ),
        ("Can you see fewer {as} than {bs}?",),
    ),
    "compare same": Wordings(
        (
            "Are there as many {as} as {bs}?",
            "Is the number of {as} the same as the number of {bs}?",
            "Does the picture show as many {as} as {bs}?",
            "Are there the same number of {as} and {bs}?",
        ),
        ("Can you see as many {as} as {bs}?",),
    ),
    "query": Wordings(
        (
            "What {attribute} is the {a}?",
            "What is the {attribute} of the {a}?",
            "Which {attribute} does the {a} have?",
            "Tell me the {attribute} of the {a}.",
        ),
        ("Which {attribute} is the {a}?", "What {attribute} does the {a} have?"),
    ),
    "query choice": Wordings(
        (
            "Is the {a} {choice}?",
            "Which is the {a}, {choice}?",
            "What is the {a}, {choice}?",
            "Tell me if the {a} is {choice}.",
        ),
        ("Can you see if the {a} is {choice}?",),
    ),
    "relation": Wordings(
        (
            "Is the {a} {direction} the {b}?",
            "Does the {a} lie {direction} the {b}?",
            "Can you see the {a} {direction} the {b}?",
            "Does the picture show the {a} {direction} the {b}?",
        ),
        ("Tell me if the {a} is {direction} the {b}.",),
    ),
    "hop query": Wordings(
        (
            "What {attribute} is the {b} {direction} the {a}?",
            "What is the {attribute} of the {b} {direction} the {a}?",
            "Which {attribute} does the {b} {direction} the {a} have?",
            "Tell me the {attribute} of the {b} {direction} the {a}.",
        ),
        ("Which {attribute} is the {b} {direction} the {a}?", "What {attribute} does the {b} {direction} the {a} have?"),
    ),
    "hop count": Wordings(
        (
            "How many {bs} are {direction} the {a}?",
            "Count the {bs} {direction} the {a}.",
            "What is the number of {bs} {direction} the {a}?",
            "How many {bs} lie {direction} the {a}?",
        ),
        ("How many {bs} can you see {direction} the {a}?", "Tell me the number of {bs} {direction} the {a}."),
    ),
    "boxes at least 1": Wordings(
        ("There is a box with {what}.", "At least one box has {what}.", "One or more boxes have {what}.", "Some box contains {what}."),
        ("At least one box contains {what}.",),
    ),
    "boxes at least 2": Wordings(
        (
            "At least two boxes have {what}.",
            "Two or more boxes contain {what}.",
            "There are at least two boxes with {what}.",
            "No fewer than two boxes have {what}.",
        ),
        ("Two or more boxes have {what}.",),
    ),
    "boxes at most 1": Wordings(
        (
            "At most one box has {what}.",
            "No more than one box contains {what}.",
            "There is at most one box with {what}.",
            "Fewer than two boxes have {what}.",
        ),
        ("No more than one box has {what}.",),
    ),
    "boxes exactly 0": Wordings(
        ("No box has {what}.", "None of the boxes contains {what}.", "There is no box with {what}.", "No box contains {what}."),
        ("None of the boxes has {what}.",),
    ),
    "boxes exactly 1": Wordings(
        (
            "Exactly one box has {what}.",
            "There is exactly one box with {what}.",
            "Only one box contains {what}.",
            "Just one box has {what}.",
        ),
        ("Only one box has {what}.",),
    ),
    "boxes exactly 2": Wordings(
        (
            "Exactly two boxes have {what}.",
            "There are exactly two boxes with {what}.",
            "Only two boxes contain {what}.",
            "Just two boxes have {what}.",
        ),
        ("Only two boxes have {what}.",),
    ),
    "boxes exactly 3": Wordings(
        ("Every box has {what}.", "All boxes contain {what}.", "All three boxes have {what}.", "Each box contains {what}."),
        ("Each box has {what}.", "All three boxes contain {what}."),
    ),
    "has at least 1": Wordings(("{an_a}", "at least one {a}"), ("one or more {as}",)),
    "has at least 2": Wordings(("at least two {as}", "two or more {as}"), ("no fewer than two {as}",)),
    "has at most 1": Wordings(("at most one {a}", "no more than one {a}"), ("fewer than two {as}",)),
    "has exactly 1": Wordings(("exactly one {a}", "just one {a}"), ("only one {a}",)),
    "has exactly 2": Wordings(("exactly two {as}", "just two {as}"), ("only two {as}",)),
    "has only": Wordings(("only {as}", "nothing but {as}"), ("just {as}",)),
}

_SLOT = re.compile(r"\{\w+\}")


def add_article(phrase: str) -> str:
    """The phrase after "a" or "an"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def list_literal_texts() -> tuple[str, ...]:
    """All text of the wordings that does not come from slots, with the direction phrases, nouns and articles."""
    texts = [_SLOT.sub(" ", text) for wordings in QUESTIONS.values() for text in wordings.choose("all")]
    phrases = [phrase for choices in DIRECTION_PHRASES.values() for phrase in choices]
    nouns = [text for noun in NOUNS for text in (noun, f"{noun}s")]
    return (*texts, *phrases, *nouns, "a an or")
