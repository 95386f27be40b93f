"""Which words of an instruction are template and which are concepts: what retrieval masks and slot filling replaces.

A concept word is one that the tools' vocabulary holds, or one that no demonstration uses outside of its program's concept arguments.
Both are data that the planner has anyway; nothing is read from a task but its instruction.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache

from visloop.assistant.grammar import parse_program
from visloop.assistant.program import Literal
from visloop.errors import ProgramError
from visloop.records.assistant import Demonstration
from visloop.tools.signatures import find_signature

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
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
    template: set[str] = set()
    concepts = {word.norm for text in vocabulary for word in split_words(text)}
    for entry in demonstrations:
        said = {word.norm for word in split_words(entry.instruction)}
        named, repeated = _list_program_words(entry.program)
        concepts |= named
        template |= said if entry.provenance == "seed" else said - repeated
    concepts = {norm for norm in concepts if norm not in FUNCTION_WORDS and not norm.isdigit()}
    return Lexicon(vocabulary=frozenset(concepts), template=frozenset(template - concepts))


@lru_cache(maxsize=4096)
def _list_program_words(text: str) -> tuple[frozenset[str], frozenset[str]]:
    """The words of a program's concept arguments, and those of all its texts. A question is no concept argument: it is made of template
    words as well. None for a text that is no program."""
    try:
        program = parse_program(text)
    except ProgramError:
        return frozenset(), frozenset()
    named: set[str] = set()
    repeated: set[str] = set()
    for statement in program.statements:
        signature = find_signature(statement.tool)
        for key, argument in statement.arguments:
            if isinstance(argument, Literal) and isinstance(argument.value, str):
                words = {word.norm for word in split_words(argument.value)}
                repeated |= words
                if signature is not None and key == signature.concept != "question":
                    named |= words
    return frozenset(named), frozenset(repeated)
