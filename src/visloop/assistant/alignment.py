"""Alignment of a new instruction with a template: which of its words fill which slot.

Dynamic programming over (element of the template, word of the instruction) keeps the best few partial alignments per cell, so that
neighbouring slots try every split of the words between them. The score is an alignment ratio: twice the matched weight over the weight of
both texts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, Word
from visloop.assistant.templates import Slot, Template, slot_kind

LONGEST_FILL = 4
"""Words per slot."""
_KEPT = 4
_FUNCTION_WEIGHT = 0.4
_UNSURE_GAIN, _TEMPLATE_GAIN = 0.8, 0.3
"""What filling a concept slot with an unknown word or with a template word counts, where a known concept counts 1."""
_LENGTH_PENALTY = 0.15
_LOST_PENALTY = 0.5
"""For a number, relation or attribute of the instruction that nothing takes up."""
_STEM = 4


@dataclass(frozen=True, slots=True)
class Alignment:
    """``fills[k]`` is the range of words (start, stop) that slot k takes; ``score`` is 0-1; ``left`` are words that nothing takes up."""

    fills: tuple[tuple[int, int], ...]
    score: float
    left: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Partial:
    gain: float
    fills: tuple[tuple[int, int], ...] = ()
    left: tuple[int, ...] = ()


def align_words(template: Template, words: Sequence[Word], *, lexicon: Lexicon) -> list[Alignment]:
    """The best few ways to read ``words`` as the template's instruction, best first, with different fills.

    Every slot is filled. A word that is surely a concept is never left over; unknown words may be.
    """
    elements = template.elements
    row: list[list[_Partial]] = [[_Partial(0.0)]] + [[] for _ in words]
    _skip_words(row, words, lexicon)
    for element in elements:
        following: list[list[_Partial]] = [[] for _ in range(len(words) + 1)]
        for place, partials in enumerate(row):
            if not partials:
                continue
            if isinstance(element, Slot):
                for stop in range(place + 1, min(place + LONGEST_FILL, len(words)) + 1):
                    gain = _gain_of_fill(element, words[place:stop], lexicon)
                    if gain is not None:
                        following[stop] += [
                            _Partial(partial.gain + gain, (*partial.fills, (place, stop)), partial.left) for partial in partials
                        ]
                continue
            following[place] += partials
            if place < len(words) and (gain := _gain_of_match(element, words[place].norm)):
                following[place + 1] += [_Partial(partial.gain + gain, partial.fills, partial.left) for partial in partials]
        row = [_keep_best(partials) for partials in following]
        _skip_words(row, words, lexicon)
    total = sum(_weigh_word(word.norm) for word in words) + sum(
        len(element.norms) if isinstance(element, Slot) else _weigh_word(element) for element in elements
    )
    return [Alignment(partial.fills, max(0.0, 2 * partial.gain / total), partial.left) for partial in row[-1]] if total else []


def _skip_words(row: list[list[_Partial]], words: Sequence[Word], lexicon: Lexicon) -> None:
    """Let words be left over, where that is allowed: from each cell to the next."""
    for place, word in enumerate(words):
        if not row[place] or lexicon.is_sure(word.norm):
            continue
        lost = _LOST_PENALTY if slot_kind(word.norm, lexicon=lexicon) not in (None, "concept") else 0.0
        row[place + 1] = _keep_best(
            [
                *row[place + 1],
                *(_Partial(partial.gain - lost, partial.fills, (*partial.left, place)) for partial in row[place]),
            ]
        )


def _keep_best(partials: Sequence[_Partial]) -> list[_Partial]:
    best: dict[tuple[tuple[int, int], ...], _Partial] = {}
    for partial in partials:
        if partial.fills not in best or best[partial.fills].gain < partial.gain:
            best[partial.fills] = partial
    return sorted(best.values(), key=lambda partial: -partial.gain)[:_KEPT]


def _gain_of_fill(slot: Slot, words: Sequence[Word], lexicon: Lexicon) -> float | None:
    """What it counts that a slot takes these words; None if it cannot."""
    if slot.kind != "concept":
        fits = len(words) == 1 and slot_kind(words[0].norm, lexicon=lexicon) == slot.kind
        return 1.0 if fits else None
    gain = 0.0
    for word in words:
        if lexicon.is_sure(word.norm):
            gain += 1.0
        elif slot_kind(word.norm, lexicon=lexicon) == "concept":
            gain += _UNSURE_GAIN
        elif word.norm in FUNCTION_WORDS or slot_kind(word.norm, lexicon=lexicon) is not None:
            return None
        else:
            gain += _TEMPLATE_GAIN
    return (gain / len(words) * (len(words) + len(slot.norms))) / 2 - _LENGTH_PENALTY * abs(len(words) - len(slot.norms))


def _gain_of_match(element: str, norm: str) -> float:
    """What it counts that two fixed words meet: their weight if they are the same word, less for the same stem, else nothing."""
    if element == norm:
        return _weigh_word(norm)
    stem = min(len(element), len(norm)) > _STEM and element[: _STEM + 1] == norm[: _STEM + 1]
    return 0.7 if stem and element not in FUNCTION_WORDS else 0.0


def _weigh_word(norm: str) -> float:
    return _FUNCTION_WEIGHT if norm in FUNCTION_WORDS else 1.0
