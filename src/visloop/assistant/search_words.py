"""Instructions as tokens, and what their words may speak of: spelling is repaired against known words, never against a test's."""

import difflib
import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from visloop.assistant.search_space import Lexicon, Space

_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_NUMBERS = {word: str(value) for value, word in enumerate(_NAMES)}
_CUTOFF = 0.8
"""Share of equal letters (difflib) from which an unknown word counts as a misspelt known one."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A word that speaks of a part of the space: ``kind`` is an attribute group, ``number`` or ``part``; ``value`` the word, the
    number or the part."""

    kind: str
    value: str
    position: int


@dataclass(frozen=True, slots=True)
class Reading:
    """An instruction read: ``tokens`` after repair, ``shapes`` the same with attribute words and numbers replaced by their kind,
    ``mentions`` in order, ``unknown`` the positions of words that speak of nothing."""

    tokens: tuple[str, ...]
    shapes: tuple[str, ...]
    mentions: tuple[Mention, ...]
    unknown: tuple[int, ...]

    def find_mentions(self, kind: str) -> list[int]:
        """Positions in ``mentions`` of a kind."""
        return [index for index, mention in enumerate(self.mentions) if mention.kind == kind]

    def list_chunks(self) -> list[int]:
        """For each mention the number of its chunk: attribute words and numbers that follow each other directly (two small blue squares)
        speak of the same thing."""
        chunks: list[int] = []
        last = -2
        for mention in self.mentions:
            if mention.kind == "part":
                chunks.append(chunks[-1] if chunks else 0)
                continue
            chunks.append((chunks[-1] if chunks else 0) + (mention.position - last not in (0, 1)))
            last = mention.position
        return chunks

    def find_part(self, part: str) -> list[int]:
        """Token positions of the words that may speak of a part."""
        return [mention.position for mention in self.mentions if mention.kind == "part" and mention.value == part]


def split_words(text: str) -> list[str]:
    """Lower-case words and numbers, number words as digits, plurals without their s."""
    words = re.findall(r"[a-z]+|\d+", text.lower().replace("'", ""))
    return [_NUMBERS.get(word, _strip_plural(word)) for word in words]


def _strip_plural(word: str) -> str:
    if len(word) > 4 and word.endswith("xes"):
        return word[:-2]
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


@lru_cache(maxsize=100_000)
def _repair(word: str, known: frozenset[str]) -> tuple[str, ...]:
    if word in known or word.isdigit() or len(word) < 2:
        return (word,)
    for cut in range(1, len(word)):
        if word[:cut] in known and word[cut:] in known and (cut > 1 or word[0] == "a") and len(word) - cut > 2:
            return (word[:cut], word[cut:])
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=_CUTOFF)
    return (close[0],) if close else (word,)


def repair_words(text: str, known: Collection[str]) -> tuple[str, ...]:
    """The words of ``text``, unknown ones replaced by the most similar known word, glued ones taken apart."""
    kept = known if isinstance(known, frozenset) else frozenset(known)
    return tuple(part for word in split_words(text) for part in _repair(word, kept))


def collect_words(lexicon: Lexicon, texts: Collection[str], *, least: int = 4) -> frozenset[str]:
    """The words that are known: those of the lexicon, and those that occur in ``least`` or more of the texts."""
    counts: dict[str, int] = defaultdict(int)
    for text in texts:
        for word in set(split_words(text)):
            counts[word] += 1
    return frozenset(word for words in lexicon.values() for word in words) | {word for word, count in counts.items() if count >= least}


def read_instruction(text: str, *, space: Space, lexicon: Lexicon, known: Collection[str]) -> Reading:
    """Tokens of an instruction and what each may speak of. Numbers above the space's largest are no numbers."""
    parts: dict[str, list[str]] = defaultdict(list)
    for part, words in lexicon.items():
        for word in words:
            parts[word].append(part)
    attributes = set(space.words)
    tokens = repair_words(text, known)
    shapes, mentions, unknown = [], [], []
    for position, token in enumerate(tokens):
        found = parts.get(token, [])
        kinds = [(space.group_of(part), part) if part in attributes else ("part", part) for part in found]
        if token.isdigit() and int(token) <= space.limits.largest:
            kinds.append(("number", token))
        mentions += [Mention(kind, value, position) for kind, value in kinds]
        named = next((kind for kind, _ in kinds if kind != "part"), None)
        shapes.append(f"<{named}>" if named else token)
        if not kinds:
            unknown.append(position)
    return Reading(tokens, tuple(shapes), tuple(mentions), tuple(unknown))
