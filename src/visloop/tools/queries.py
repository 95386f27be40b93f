"""Queries of tools in words: alternatives ("red or blue"), negation ("not round"), sizes and superlatives around words of groups."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from visloop.errors import ToolError
from visloop.tools.vocabulary import Sense, Vocabulary

_OR = re.compile(r"\bor\b")
_NOT = re.compile(r"\b(?:not|non|no|isn't|aren't|without)\b")


@dataclass(frozen=True, slots=True)
class Alternative:
    """Words that all have to fit, words of which none may fit together, and sizes."""

    wanted: tuple[Sense, ...] = ()
    unwanted: tuple[Sense, ...] = ()
    sizes: tuple[str, ...] = ()
    unwanted_sizes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Query:
    """What is asked for: one of the alternatives (none of them, if ``negated``), and of what fits the largest or smallest, if named."""

    alternatives: tuple[Alternative, ...]
    negated: bool = False
    superlative: str | None = None

    def list_senses(self) -> tuple[Sense, ...]:
        """All words of groups or of none, in order, once each."""
        return tuple(dict.fromkeys(sense for part in self.alternatives for sense in (*part.wanted, *part.unwanted)))


def read_query(text: str, *, vocabulary: Vocabulary, learned: Mapping[str, str] | None = None) -> Query:
    """Read a query. Nothing but articles and generic nouns is a query that everything fits.

    Raises:
        ToolError: the query speaks of places or relations, which no region has by itself.
    """
    parts = _OR.split(text.lower())
    halves = [_NOT.split(part, maxsplit=1) for part in parts]
    negated = len(halves[0]) > 1 and not halves[0][0].strip() and all(len(half) == 1 for half in halves[1:])
    if negated:
        halves = [[halves[0][1]], *halves[1:]]
    superlative: str | None = None
    alternatives = []
    for half in halves:
        sides: list[tuple[tuple[Sense, ...], tuple[str, ...]]] = []
        for side in (half[0], half[1] if len(half) > 1 else ""):
            senses = vocabulary.read_words(side, learned=learned)
            refused = [sense.word for sense in senses if sense.word in vocabulary.refused]
            if refused:
                raise ToolError(f"query {text!r}: {refused[0]!r} is no property of a region; a place needs a tool of its own")
            superlative = next(
                (vocabulary.superlatives[sense.word] for sense in senses if sense.word in vocabulary.superlatives), superlative
            )
            sizes = tuple(sense.word for sense in senses if sense.word in vocabulary.sizes)
            kept = tuple(sense for sense in senses if sense.word not in vocabulary.sizes and sense.word not in vocabulary.superlatives)
            sides.append((kept, sizes))
        alternatives.append(Alternative(sides[0][0], sides[1][0], sides[0][1], sides[1][1]))
    return Query(_share_noun(tuple(alternatives), vocabulary), negated, superlative)


def _share_noun(alternatives: tuple[Alternative, ...], vocabulary: Vocabulary) -> tuple[Alternative, ...]:
    """ "red or blue square" means squares in both: a last word of the last group is shared with alternatives that have none."""
    noun_group = list(vocabulary.groups)[-1] if vocabulary.groups else None
    last = alternatives[-1].wanted
    if len(alternatives) < 2 or not last or last[-1].group != noun_group:
        return alternatives
    return tuple(
        part
        if any(sense.group == noun_group or sense.group is None for sense in part.wanted)
        else Alternative((*part.wanted, last[-1]), part.unwanted, part.sizes, part.unwanted_sizes)
        for part in alternatives
    )
