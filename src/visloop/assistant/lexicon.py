"""Which words of an instruction are template and which are concepts: what retrieval masks and slot filling replaces.

A concept word is one that the tools' vocabulary holds, or one that no demonstration uses outside of its program's concept arguments.
Both are data that the planner has anyway; nothing is read from a task but its instruction.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from visloop.records.assistant import Demonstration
from visloop.tools.signatures import SIGNATURES

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_STRING = re.compile(r"""(\w+)\s*=\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")""")
_CONCEPT_ARGUMENTS = frozenset(signature.concept for signature in SIGNATURES.values() if signature.concept) - {"question"}
"""Arguments whose words are what a task is about. A question is left out: it is made of template words as well."""

_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve"
NUMBERS = {word: number for number, word in enumerate(re.findall(r"\w+", _NUMBER_WORDS))}
_FUNCTION_WORDS = """
    a an the this that these those it its they them there here of in into on onto at to from with without within by for as and or not no
    nor but than then is are was were be been being do does did has have had having can could will would shall should may might must what
    which who whom whose where when why how many much more most less least any some all both each every either neither only just very so
    if out up down off you i we he she his her their our your my me us please
"""
FUNCTION_WORDS = frozenset(re.findall(r"\w+", _FUNCTION_WORDS))
"""Words that carry structure, never a concept, and that say little about what an instruction wants."""


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
        for match in _WORD.finditer(text)
    )


@lru_cache(maxsize=65536)
def normalize_word(word: str) -> str:
    """Lower case, without the ``s`` of a plural or of a possessive, number words as digits."""
    low = word.lower().replace("\u2019", "'")
    low = low.removesuffix("'s").removesuffix("'")
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
    """``vocabulary``: normal forms of words that are surely concepts. ``template``: those that are surely not. Anything else is unknown,
    and treated as a concept that may be left over."""

    vocabulary: frozenset[str]
    template: frozenset[str]

    def is_concept(self, norm: str) -> bool:
        """Whether a word (in normal form) is to be masked: known as a concept, or unknown."""
        return norm in self.vocabulary or not (norm in self.template or norm in FUNCTION_WORDS or norm.isdigit())

    def is_sure(self, norm: str) -> bool:
        """Whether a word (in normal form) must be used by any program for the instruction."""
        return norm in self.vocabulary

    def mask(self, text: str) -> str:
        """The text with every run of concept words replaced by ``things`` and every number by ``number``."""
        masked: list[str] = []
        for word in split_words(text):
            shown = "number" if word.norm.isdigit() else "things" if self.is_concept(word.norm) else word.surface.lower()
            if shown != "things" or masked[-1:] != ["things"]:
                masked.append(shown)
        return " ".join(masked)


def build_lexicon(demonstrations: Iterable[Demonstration], *, vocabulary: Collection[str] = ()) -> Lexicon:
    """The lexicon of a pool: concepts are the words of ``vocabulary`` (what the tools know by name) and of the concept arguments of the
    demonstrations' programs; template words are all others of the seeds' instructions, and those of learned ones that their programs
    do not repeat (a question may name a concept that nobody knew)."""
    entries = list(demonstrations)
    template: set[str] = set()
    for entry in entries:
        said = {word.norm for word in split_words(entry.instruction)}
        if entry.provenance != "seed":
            said -= {word.norm for _, single, double in _STRING.findall(entry.program) for word in split_words(single or double)}
        template |= said
    concepts = {word.norm for text in vocabulary for word in split_words(text)}
    for entry in entries:
        for name, single, double in _STRING.findall(entry.program):
            if name in _CONCEPT_ARGUMENTS:
                concepts.update(word.norm for word in split_words(single or double))
    concepts = {norm for norm in concepts if norm not in FUNCTION_WORDS and not norm.isdigit()}
    return Lexicon(vocabulary=frozenset(concepts), template=frozenset(template - concepts))
