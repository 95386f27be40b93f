"""What the words of a phrase mean to a CLIP, as data: groups of words that exclude each other, synonyms, words that say nothing.

A model's folder may hold a ``vocabulary.json``; a CLIP without one gets the open vocabulary beside this module. No word is in the code.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from visloop.errors import DataError

VOCABULARY_NAME = "vocabulary.json"
OPEN_VOCABULARY = Path(__file__).parent / "open_vocabulary.json"
_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


@dataclass(frozen=True, slots=True)
class Sense:
    """A word of a phrase: the form that the tools know (or would learn) it by, and its group; an unknown word has none."""

    word: str
    group: str | None


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words by group, and what else phrases are made of.

    ``template`` holds ``{}`` for the words of a text; ``unsaid`` words are left out of labels; ``generic`` nouns fit everything;
    ``ignored`` words say nothing; ``refused`` words need another tool (places, relations), so that a phrase with one is not understood.
    ``superlatives`` map words to ``largest`` or ``smallest``; ``sizes`` to the least and most side of a region, as a share of the
    picture's longer side. ``contrasts`` are phrases that an unknown word has to beat beside the known words. With ``join_unknown``,
    unknown words that stand together are one concept.
    """

    groups: Mapping[str, tuple[str, ...]]
    template: str = "{}"
    unsaid: frozenset[str] = frozenset()
    generic: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    refused: frozenset[str] = frozenset()
    synonyms: Mapping[str, str] = field(default_factory=dict)
    superlatives: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    contrasts: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    join_unknown: bool = False

    @cached_property
    def group_of(self) -> dict[str, str]:
        """The group of every known word."""
        return {word: group for group, words in self.groups.items() for word in words}

    def name_group(self, group: str) -> str:
        """The vocabulary's own name of a group (``colour`` and ``color`` are one)."""
        return self.aliases.get(group, group)

    def write_text(self, *words: str) -> str:
        """The text that stands for words, as the model was trained to read it."""
        return self.template.format(" ".join(words))

    def normalize(self, word: str, *, known: Iterable[str] = ()) -> str:
        """The form of one word that the tools know: lower case, synonyms replaced, a plural made singular."""
        learned = set(known)
        for form in (word, *_singular_forms(word)):
            form = self.synonyms.get(form, form)
            if form in learned or form in self.group_of or form in self._grammar:
                return form
        return next(iter(_singular_forms(word)), word)

    @cached_property
    def _grammar(self) -> frozenset[str]:
        return self.generic | self.ignored | self.refused | frozenset(self.superlatives) | frozenset(self.sizes)

    def read_words(self, text: str, *, learned: Mapping[str, str] | None = None) -> tuple[Sense, ...]:
        """The words of a phrase that mean something, in order; articles and generic nouns are left out.

        Args:
            learned: concepts that prompts were learned for, with their groups. One of several words is found as a whole.
        """
        learned = learned or {}
        tokens = _TOKEN.findall(text.lower().replace("-", " "))
        forms = [self.normalize(token, known=learned) for token in tokens]
        longest = max((len(concept.split()) for concept in learned), default=1)
        senses: list[Sense] = []
        place, unknown_before = 0, False
        while place < len(forms):
            width = next((size for size in range(longest, 1, -1) if " ".join(forms[place : place + size]) in learned), 1)
            word = " ".join(forms[place : place + width])
            place += width
            if word in self.generic or word in self.ignored:
                unknown_before = False
                continue
            group = self.group_of.get(word) or learned.get(word)
            known = group is not None or word in self._grammar
            if self.join_unknown and not known and unknown_before:
                senses[-1] = Sense(f"{senses[-1].word} {word}", None)
            else:
                senses.append(Sense(word, group))
            unknown_before = not known
        return tuple(senses)


def _singular_forms(word: str) -> tuple[str, ...]:
    """Singulars that an English plural may have, likeliest first."""
    if len(word) < 4 or not word.endswith("s") or word.endswith("ss") or word.endswith("us"):
        return ()
    if word.endswith("ies"):
        return (word[:-3] + "y", word[:-1])
    if word.endswith(("ses", "xes", "ches", "shes", "sses")):
        return (word[:-2], word[:-1])
    return (word[:-1],)


def load_vocabulary(folder: Path | None) -> Vocabulary:
    """The vocabulary of a model's folder, or the open one.

    Raises:
        DataError: the file is not a vocabulary.
    """
    path = folder / VOCABULARY_NAME if folder is not None and (folder / VOCABULARY_NAME).is_file() else OPEN_VOCABULARY
    try:
        return read_vocabulary(json.loads(path.read_text()))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a vocabulary: {error!r}; see visloop.tools.vocabulary.Vocabulary for its fields") from error


def read_vocabulary(value: Mapping[str, Any]) -> Vocabulary:
    """A vocabulary from its JSON form."""

    def take_set(name: str) -> frozenset[str]:
        return frozenset(value.get(name, ()))

    def take_map(name: str) -> dict[str, str]:
        return dict(value.get(name, {}))

    return Vocabulary(
        groups={str(group): tuple(words) for group, words in value["groups"].items()},
        template=str(value.get("template", "{}")),
        unsaid=take_set("unsaid"),
        generic=take_set("generic"),
        ignored=take_set("ignored"),
        refused=take_set("refused"),
        synonyms=take_map("synonyms"),
        superlatives=take_map("superlatives"),
        sizes={str(word): (float(least), float(most)) for word, (least, most) in value.get("sizes", {}).items()},
        contrasts=tuple(value.get("contrasts", ())),
        aliases=take_map("aliases"),
        join_unknown=bool(value.get("join_unknown", False)),
    )
