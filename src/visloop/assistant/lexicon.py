"""Which words of an instruction are template and which are concepts: what retrieval masks and slot filling replaces.

A concept word is one that the tools' vocabulary holds, or one that no demonstration uses outside of its program's concept arguments.
Both are data that the planner has anyway; nothing is read from a task but its instruction.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.grammar import parse_program
from visloop.assistant.program import Literal
from visloop.errors import ProgramError
from visloop.tools.signatures import find_signature

WORD: Final = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
"""What is a word of a text."""
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: number for number, word in enumerate(re.findall(r"\w+", _NUMBER_WORDS))}
_FUNCTION_WORDS = """
    a an the this that these those it its they them there here of in into on onto at to from with without within by for as and or not no
    nor but than then is are was were be been being do does did has have had having can could will would shall should may might must what
    which who whom whose where when why how many much more most less least any some all both each every either neither only just very so
    if out up down off you i we he she his her their our your my me us please
"""
FUNCTION_WORDS = frozenset(re.findall(r"\w+", _FUNCTION_WORDS))
"""Words that carry structure, never a concept."""
FILLERS = frozenset(
    re.findall(r"\w+", "a the of in on to it its is are was were be been do does did has have had that this these those you i me")
)
"""Those of them that say little about what an instruction wants."""
_FILLER_WEIGHT = 0.6
_LEAST_WEIGHT = 0.5
"""Of a word that every demonstration has."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a text: as written, its normal form, and where it stands (character offsets)."""

    surface: str
    norm: str
    start: int
    end: int


@lru_cache(maxsize=4096)
def split_words(text: str) -> tuple[Word, ...]:
    """The words of ``text`` in order; punctuation is left out."""
    return tuple(
        Word(surface=match.group(), norm=normalize_word(match.group()), start=match.start(), end=match.end())
        for match in WORD.finditer(text)
    )


@lru_cache(maxsize=65536)
def normalize_word(word: str) -> str:
    """Lower case, without the ``s`` of a plural or of a possessive, number words as digits, ``an`` as ``a``."""
    low = word.lower().replace("\u2019", "'")
    low = low.removesuffix("'s").removesuffix("'")
    if low == "an":
        return "a"
    if low in NUMBERS:
        return str(NUMBERS[low])
    if len(low) > 4 and low.endswith("ies"):
        return low[:-3] + "y"
    if len(low) > 4 and low.endswith(("sses", "xes", "zes", "ches", "shes")):
        return low[:-2]
    if len(low) > 3 and low.endswith("s") and not low.endswith(("ss", "us", "is", "as")):
        return low[:-1]
    return low


def pluralize_word(word: str) -> str:
    """The regular plural of a noun."""
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return word + "es"
    return word[:-1] + "ies" if len(word) > 2 and word.endswith("y") and word[-2] not in "aeiou" else word + "s"


@dataclass(frozen=True, slots=True)
class Lexicon:
    """What is known of words, in normal form: ``concepts`` are surely concepts, ``modifiers`` those of them that another
    one follows (``red`` in ``red star``);
    ``template`` are words that are surely none. Anything else is unknown: treated as a concept that may be left over. ``weights`` say
    how much a template word tells about what is wanted, 0-1: less the more demonstrations have it."""

    concepts: frozenset[str] = frozenset()
    modifiers: frozenset[str] = frozenset()
    template: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)

    def is_concept(self, norm: str) -> bool:
        """Whether a word is to be masked: known as a concept, or unknown."""
        return norm in self.concepts or not (norm in self.template or norm in FUNCTION_WORDS or norm.isdigit())

    def is_sure(self, norm: str) -> bool:
        """Whether a word must be used by any program for the instruction."""
        return norm in self.concepts

    def weigh(self, norm: str) -> float:
        """How much it tells that two instructions share a word, 0-1."""
        return self.weights.get(norm, _FILLER_WEIGHT if norm in FILLERS else 1.0)

    def mask(self, text: str) -> str:
        """The text with every run of concept words replaced by ``things`` and every number by ``number``."""
        masked: list[str] = []
        for word in split_words(text):
            shown = "number" if word.norm.isdigit() else "things" if self.is_concept(word.norm) else word.surface.lower()
            if shown != "things" or masked[-1:] != ["things"]:
                masked.append(shown)
        return " ".join(masked)


def build_lexicon(pool: DemonstrationPool, *, vocabulary: Collection[str] = ()) -> Lexicon:
    """The lexicon of a pool: concepts are the words of ``vocabulary`` (what the tools know by name) and of the concept arguments of the
    seeds' programs; template words are all others of the seeds' instructions, and those of learned successes that their programs do not
    repeat (a question may name a concept that nobody knew, and a program that was right by chance is no authority on words)."""
    template: set[str] = set()
    concepts = {word.norm for text in vocabulary for word in split_words(text)}
    modifiers: set[str] = set()
    said_in: Counter[str] = Counter()
    successes = {entry.instruction: entry for entry in pool.entries if entry.outcome == "success" and entry.kind == "program"}
    for entry in successes.values():
        said = {word.norm for word in split_words(entry.instruction)}
        said_in.update(said)
        phrases, repeated = list_program_words(entry.program)
        if entry.provenance == "seed":
            concepts |= {norm for phrase in phrases for norm in phrase}
            modifiers |= {norm for phrase in phrases for norm in phrase[:-1]}
            template |= said
        else:
            template |= said - repeated
    concepts = {norm for norm in concepts if norm not in FUNCTION_WORDS and not norm.isdigit()}
    scale = math.log(1 + len(successes)) or 1.0
    weights = {
        norm: (_FILLER_WEIGHT if norm in FILLERS else 1.0) * max(_LEAST_WEIGHT, 1 - math.log(count) / scale)
        for norm, count in said_in.items()
    }
    return Lexicon(frozenset(concepts), frozenset(modifiers & concepts), frozenset(template - concepts), weights)


@lru_cache(maxsize=4096)
def list_program_words(text: str) -> tuple[frozenset[tuple[str, ...]], frozenset[str]]:
    """The phrases of a program's concept arguments, and the words of all its texts. A question is no concept argument: it is made of
    template words as well. Nothing for a text that is no program."""
    try:
        program = parse_program(text)
    except ProgramError:
        return frozenset(), frozenset()
    phrases: set[tuple[str, ...]] = set()
    repeated: set[str] = set()
    for statement in program.statements:
        signature = find_signature(statement.tool)
        for key, argument in statement.arguments:
            if isinstance(argument, Literal) and isinstance(argument.value, str):
                repeated |= {word.norm for word in split_words(argument.value)}
                if signature is not None and key == signature.concept != "question":
                    phrases |= {tuple(word.norm for word in split_words(part)) for part in argument.value.split(",")}
    return frozenset(phrases), frozenset(repeated)
