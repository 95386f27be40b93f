"""Alignment of a new instruction with a template: which of its words fill which slot.

Dynamic programming over (element of the template, word of the instruction) keeps the best few partial alignments per cell, so that
neighbouring slots try every split of the words between them. The score is an alignment ratio: twice the matched weight over the weight of
both texts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, permutations

from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, Word
from visloop.assistant.templates import Slot, Template, slot_kind

LONGEST_FILL = 4
"""Words per slot."""
_KEPT = 4
_MOST_ORDERS = 6
_SLOT_WEIGHT = 1.0
_UNSURE, _UNINTRODUCED, _TEMPLATE = 0.6, -0.5, -0.3
"""What a concept slot gains by a word, where a known concept gains 1: an unknown word after a determiner or a modifier, one without,
a template word. A slot for a name gains by any word that is no known concept."""
_TRAILING_PENALTY = 0.8
"""For an unknown word after a known noun."""
_BAG = 0.5
"""How much of the score is words in common wherever they stand."""
DETERMINERS = frozenset({"a", "an", "the", "any", "every", "each", "all", "many", "some", "no", "more", "both", "and", "or", "than", "of"})
_LENGTH_PENALTY = 0.15
_SPLIT_PENALTY = 0.6
"""For two slots that take neighbouring words although fixed words stand between them in the template."""
_LOST_PENALTY = 0.5
"""For a number, place or attribute of the instruction that the template does not speak of, and for an attribute that only it speaks of."""
_STEM = 4
_LOOSE = 0.3
"""The most that a filling counts whose other words were not looked at."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """``fills[k]`` is the range of words (start, stop) that slot k takes, empty for an optional one that takes none; ``score`` is 0-1."""

    fills: tuple[tuple[int, int], ...]
    score: float


@dataclass(frozen=True, slots=True)
class _Partial:
    gain: float
    fills: tuple[tuple[int, int], ...] = ()


def align_words(template: Template, words: Sequence[Word], *, lexicon: Lexicon) -> list[Alignment]:
    """The best few ways to read ``words`` as the template's instruction, best first, with different fills.

    Every slot that is not optional is filled. A word that is surely a concept is never left over; unknown words may be. Slots of one kind
    are filled in their order; slots of different kinds may change their turns.
    """
    found: dict[tuple[tuple[int, int], ...], Alignment] = {}
    for turns in _order_slots(template.slots):
        for alignment in _align_in_order(template, turns, words, lexicon):
            if alignment.fills not in found or found[alignment.fills].score < alignment.score:
                found[alignment.fills] = alignment
    return sorted(found.values(), key=lambda alignment: -alignment.score)


def _order_slots(slots: Sequence[Slot]) -> list[tuple[int, ...]]:
    """In which orders slots may have their turns: optional ones in their place, others of one kind in their order; their own order
    first, and no others if there are more than ``_MOST_ORDERS``."""
    free = [index for index, slot in enumerate(slots) if not slot.optional]
    own = tuple(range(len(slots)))
    counts = Counter(slots[index].kind for index in free)
    if math.factorial(len(free)) // math.prod(map(math.factorial, counts.values())) > _MOST_ORDERS:
        return [own]
    orders = {own: None}
    for kinds in permutations([slots[index].kind for index in free]):
        queues = {kind: [index for index in free if slots[index].kind == kind] for kind in counts}
        turns = list(own)
        for place, kind in zip(free, kinds, strict=True):
            turns[place] = queues[kind].pop(0)
        orders[tuple(turns)] = None
    return list(orders)


def _align_in_order(template: Template, turns: Sequence[int], words: Sequence[Word], lexicon: Lexicon) -> list[Alignment]:
    """Alignments with slot ``turns[k]`` in the place of slot k."""
    slots = template.slots
    order = iter(turns)
    elements = [slots[next(order)] if isinstance(element, Slot) else element for element in template.elements]
    row: list[list[_Partial]] = [[_Partial(0.0)]] + [[] for _ in words]
    spoken = {norm for element in elements for norm in ((element,) if isinstance(element, str) else element.norms)}
    lost = [0.0 if word.norm in spoken or slot_kind(word.norm, lexicon=lexicon) in (None, "concept") else _LOST_PENALTY for word in words]
    _skip_words(row, words, lost, lexicon)
    said = {word.norm for word in words}
    apart = False
    for element in elements:
        following: list[list[_Partial]] = [[] for _ in range(len(words) + 1)]
        for place, partials in enumerate(row):
            if not partials:
                continue
            if isinstance(element, Slot):
                if element.optional:
                    missed = _LOST_PENALTY if element.kind == "attribute" and element.norms[0] not in said else 0.0
                    following[place] += [_Partial(partial.gain - missed, (*partial.fills, (place, place))) for partial in partials]
                for stop in range(place + 1, min(place + LONGEST_FILL, len(words)) + 1):
                    gain = _gain_of_fill(element, words, place, stop, lexicon)
                    if gain is not None:
                        following[stop] += [
                            _Partial(
                                partial.gain + gain - (_SPLIT_PENALTY if apart and _ends_at(partial, place) else 0.0),
                                (*partial.fills, (place, stop)),
                            )
                            for partial in partials
                        ]
                continue
            following[place] += partials
            if place < len(words) and (gain := _gain_of_match(element, words[place].norm, lexicon)):
                following[place + 1] += [_Partial(partial.gain + gain, partial.fills) for partial in partials]
        apart = not isinstance(element, Slot)
        row = [_keep_best(partials) for partials in following]
        _skip_words(row, words, lost, lexicon)
    back = {index: turn for turn, index in enumerate(turns)}
    ordered = [_Partial(partial.gain, tuple(partial.fills[back[index]] for index in range(len(slots)))) for partial in row[-1]]
    return [_score(partial, template, words, lexicon) for partial in ordered]


def _score(partial: _Partial, template: Template, words: Sequence[Word], lexicon: Lexicon) -> Alignment:
    """The alignment ratio, mixed with the share of words in common wherever they stand."""
    weight, fixed = 0.0, list[str]()
    for element in template.elements:
        weight += lexicon.weigh(element) if isinstance(element, str) else _SLOT_WEIGHT
        if isinstance(element, str):
            fixed.append(element)
        elif not element.is_open:
            fixed += element.norms
    taken: set[int] = set()
    opened: set[int] = set()
    for slot, (start, stop) in zip(template.slots, partial.fills, strict=True):
        weight += _SLOT_WEIGHT if start < stop else 0.0
        taken.update(range(start, stop))
        opened.update(range(start, stop) if slot.is_open else ())
    weight += sum(lexicon.weigh(word.norm) for place, word in enumerate(words) if place not in taken)
    bag = _share_words([word.norm for place, word in enumerate(words) if place not in opened], fixed, lexicon)
    ratio = max(0.0, 2 * partial.gain / weight) if weight else 0.0
    return Alignment(partial.fills, (1 - _BAG) * ratio + _BAG * bag)


def _share_words(first: Sequence[str], second: Sequence[str], lexicon: Lexicon) -> float:
    """The weight of words that two texts share, in any order, as a ratio of the weight of both."""
    bags = []
    for norms in (first, second):
        bag: dict[str, float] = {}
        for norm in norms:
            stem = norm[: _STEM + 1]
            bag[stem] = max(bag.get(stem, 0.0), lexicon.weigh(norm))
        bags.append(bag)
    total = sum(bags[0].values()) + sum(bags[1].values())
    return sum(bags[0][stem] + bags[1][stem] for stem in bags[0].keys() & bags[1].keys()) / total if total else 1.0


def _skip_words(row: list[list[_Partial]], words: Sequence[Word], lost: Sequence[float], lexicon: Lexicon) -> None:
    """Let words be left over, where that is allowed: from each cell to the next."""
    for place, word in enumerate(words):
        if not row[place] or lexicon.is_sure(word.norm):
            continue
        row[place + 1] = _keep_best(
            [
                *row[place + 1],
                *(_Partial(partial.gain - lost[place], partial.fills) for partial in row[place]),
            ]
        )


def _ends_at(partial: _Partial, place: int) -> bool:
    """Whether the last slot that took words took the word before ``place``."""
    return any(start < stop == place for start, stop in partial.fills[-1:])


def _keep_best(partials: Sequence[_Partial]) -> list[_Partial]:
    best: dict[tuple[tuple[int, int], ...], _Partial] = {}
    for partial in partials:
        if partial.fills not in best or best[partial.fills].gain < partial.gain:
            best[partial.fills] = partial
    return sorted(best.values(), key=lambda partial: -partial.gain)[:_KEPT]


def _gain_of_fill(slot: Slot, words: Sequence[Word], start: int, stop: int, lexicon: Lexicon) -> float | None:
    """What it counts that a slot takes words ``start`` to ``stop``; None if it cannot."""
    taken = words[start:stop]
    if tuple(word.norm for word in taken) == slot.norms:
        return _SLOT_WEIGHT
    kinds = [slot_kind(word.norm, lexicon=lexicon) for word in taken]
    if slot.kind not in ("concept", "name"):
        return _SLOT_WEIGHT if kinds == [slot.kind] else None
    gains: list[float] = []
    penalty = _LENGTH_PENALTY * abs(len(taken) - len(slot.norms))
    for place, (word, kind) in enumerate(zip(taken, kinds, strict=True), start=start):
        before = words[place - 1].norm if place else ""
        if lexicon.is_sure(word.norm):
            gains.append(1.0 if slot.kind == "concept" else _UNINTRODUCED)
        elif word.norm in FUNCTION_WORDS or kind not in (None, "concept"):
            return None
        elif slot.kind == "name":
            gains.append(_UNSURE)
        elif kind is None:
            gains.append(_TEMPLATE)
        elif place > start and lexicon.is_sure(before) and before not in lexicon.modifiers:
            gains.append(0.0)
            penalty += _TRAILING_PENALTY
        else:
            introduced = before in DETERMINERS or before.isdigit() or (place > start and gains[-1] > 0) or taken[-1].norm == slot.norms[-1]
            gains.append(_UNSURE if introduced else _UNINTRODUCED)
    return _SLOT_WEIGHT * sum(gains) / len(gains) - penalty


def _gain_of_match(element: str, norm: str, lexicon: Lexicon) -> float:
    """What it counts that two fixed words meet: their weight if they are the same word, less for the same stem, else nothing."""
    if element == norm:
        return lexicon.weigh(norm)
    stem = min(len(element), len(norm)) > _STEM and element[: _STEM + 1] == norm[: _STEM + 1]
    return 0.7 * min(lexicon.weigh(element), lexicon.weigh(norm)) if stem and element not in FUNCTION_WORDS else 0.0


def find_phrases(words: Sequence[Word], *, lexicon: Lexicon, unknown: bool = False) -> list[tuple[int, int]]:
    """The runs of words (start, stop) that name things, in order: each has a word that is surely a concept, or, only with ``unknown``
    or after a determiner, words that nobody knows. What follows a known noun belongs to the sentence."""
    phrases: list[tuple[int, int]] = []
    place = 0
    while place < len(words):
        start = place
        while place < len(words) and slot_kind(words[place].norm, lexicon=lexicon) == "concept":
            place += 1
        if start == place:
            place += 1
            continue
        sure = [index for index in range(start, place) if lexicon.is_sure(words[index].norm)]
        if sure:
            noun = words[sure[-1]].norm not in lexicon.modifiers
            phrases.append((start, sure[-1] + 1 if noun else min(sure[-1] + 2, place)))
        elif unknown or (start and words[start - 1].norm in DETERMINERS):
            phrases.append((start, place))
    return phrases


def fit_phrases(template: Template, words: Sequence[Word], *, lexicon: Lexicon) -> list[Alignment]:
    """Fill a template's slots with the phrases of an instruction in their order, whatever its other words are: for when nothing that fits
    better was right. Every known concept is used; the score says how many words the two share, and is below that of any good alignment."""
    wanted = [slot for slot in template.slots if not slot.optional]
    phrases = find_phrases(words, lexicon=lexicon, unknown=True)
    sure = {phrase for phrase in phrases if any(lexicon.is_sure(word.norm) for word in words[slice(*phrase)])}
    pieces: dict[str, list[tuple[int, int]]] = {
        kind: [(place, place + 1) for place, word in enumerate(words) if slot_kind(word.norm, lexicon=lexicon) == kind]
        for kind in ("place", "number")
    }
    number = sum(slot.kind == "concept" for slot in wanted)
    if any(slot.kind not in ("concept", "place", "number") for slot in wanted):
        return []
    if any(sum(slot.kind == kind for slot in wanted) != len(found) for kind, found in pieces.items()):
        return []
    fixed = [norm for element in template.elements for norm in ((element,) if isinstance(element, str) else ())]
    found = []
    for chosen in combinations(phrases, number):
        if not sure <= set(chosen):
            continue
        queues = {kind: list(ranges) for kind, ranges in pieces.items()} | {"concept": list(chosen)}
        fills = tuple((0, 0) if slot.optional else queues[slot.kind].pop(0) for slot in template.slots)
        taken = {place for start, stop in fills for place in range(start, stop)}
        shared = _share_words([word.norm for place, word in enumerate(words) if place not in taken], fixed, lexicon)
        found.append(Alignment(fills, _LOOSE * shared))
    return sorted(found, key=lambda alignment: -alignment.score)
