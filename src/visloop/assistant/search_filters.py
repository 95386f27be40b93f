"""The filters that an instruction may speak of: every choice of its words, with what was chosen kept as parts for the scorer."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

from visloop.assistant.search_meanings import Filter
from visloop.assistant.search_space import Space
from visloop.assistant.search_words import Reading

Part = tuple[str | int | bool, ...]
"""One choice that a candidate is made of, e.g. ``("attribute", "color", mention, role)``; what the scorer sees of it."""


_REACH = 4
"""Words between which a negation and its attribute, or two alternatives, stand at most."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A filter with how it was read: ``used`` mentions, ``words`` token positions that its places and relations rest on, ``parts``."""

    what: Filter
    used: frozenset[int] = frozenset()
    words: frozenset[int] = frozenset()
    parts: tuple[Part, ...] = ()

    @property
    def start(self) -> int:
        """The first mention used, or a large number: the order of drafts."""
        return min(self.used, default=10_000)

    @property
    def open(self) -> bool:
        """Whether a place or relation rests on no word."""
        return -1 in self.words


def draft_filters(reading: Reading, *, space: Space, open_parts: bool) -> list[Draft]:
    """Every filter that the instruction's words allow, plain ones first. ``open_parts``: places and relations without a word in the
    instruction may be proposed too, one per filter."""
    plain = list(_draft_plain(reading, space))
    located = [*plain, *_locate(plain, reading, space, open_parts)]
    return [*located, *_relate(located, plain, reading, space, open_parts)]


def _draft_plain(reading: Reading, space: Space) -> Iterator[Draft]:
    negated = reading.find_part("none")
    choices: list[list[Draft]] = []
    for group in space.attributes:
        found = reading.find_mentions(group)
        options = [Draft(Filter())]
        for index in found:
            word = reading.mentions[index].value
            options.append(Draft(Filter(words=((word,),)), frozenset([index]), parts=(("attribute", group, index, "is"),)))
            spots = [spot for spot in negated if 0 < reading.mentions[index].position - spot <= _REACH]
            for spot in spots[-1:]:
                parts: tuple[Part, ...] = (("attribute", group, index, "is not"), ("negation", spot))
                options.append(Draft(Filter(without=(word,)), frozenset([index]), frozenset([spot]), parts))
        for first, second in pairwise(found):
            either = (reading.mentions[first].value, reading.mentions[second].value)
            if either[0] != either[1] and reading.mentions[second].position - reading.mentions[first].position <= _REACH:
                both = tuple(("attribute", group, index, "or") for index in (first, second))
                options.append(Draft(Filter(words=(tuple(sorted(either)),)), frozenset([first, second]), parts=both))
        choices.append(options)
    for combination in product(*choices):
        used = frozenset().union(*(option.used for option in combination))
        what = Filter(
            words=tuple(words for option in combination for words in option.what.words),
            without=tuple(word for option in combination for word in option.what.without),
        )
        positions = [reading.mentions[index].position for index in used]
        spread = max(positions) - min(positions) if len(positions) > 1 else 0
        parts = tuple(part for option in combination for part in option.parts)
        words = frozenset().union(*(option.words for option in combination))
        yield Draft(what, used, words, (*parts, ("spread", min(spread, 6))) if len(positions) > 1 else parts)


def _nearest(positions: list[int], position: int) -> list[int]:
    """The last of the positions before ``position``; the first one after it where there is none."""
    before = [spot for spot in positions if spot < position]
    return before[-1:] or positions[:1]


def list_triggers(part: str, reading: Reading, open_parts: bool) -> list[int]:
    """Token positions that may speak of a part; -1 stands for none, where the part may be proposed without a word."""
    found = reading.find_part(part)
    return found[:2] or ([-1] if open_parts and reading.unknown else [])


def _locate(plain: list[Draft], reading: Reading, space: Space, open_parts: bool) -> Iterator[Draft]:
    for draft in plain:
        for place in space.places:
            for position in list_triggers(place, reading, open_parts):
                bound = (*draft.parts, *_bind("place", draft, reading, position))
                words = draft.words | {position}
                for spot in _nearest(reading.find_part("none"), position):
                    what = Filter(draft.what.words, draft.what.without, ((place, False),))
                    parts = (*bound, ("place", place, False, position), ("negation", spot))
                    yield Draft(what, draft.used, words | {spot}, parts)
                what = Filter(draft.what.words, draft.what.without, ((place, True),))
                yield Draft(what, draft.used, words, (*bound, ("place", place, True, position)))


def _bind(kind: str, draft: Draft, reading: Reading, position: int) -> Iterator[Part]:
    """How the attribute words of a filter stand to the word of its place or relation: before or after, with how many others between."""
    if position < 0:
        return
    for index in sorted(draft.used):
        mention = reading.mentions[index]
        low, high = sorted((mention.position, position))
        between = sum(other.kind == mention.kind and low < other.position < high for other in reading.mentions)
        yield "bind", kind, mention.kind, mention.position < position, min(between, 2), min(high - low, 6)


def _relate(located: list[Draft], plain: list[Draft], reading: Reading, space: Space, open_parts: bool) -> Iterator[Draft]:
    for name in space.relations:
        for position in list_triggers(name, reading, open_parts):
            for draft in located:
                if draft.open and position < 0:
                    continue
                if not draft.used or any(abs(position - spot) <= 1 for spot in draft.words):
                    continue  # one word tells one place or one relation
                if space.relations[name].reverse and not all(holds for _, holds in draft.what.places):
                    continue  # a program has no objects "not at the wall" to compare with, only their number
                for other in (*plain, *_echo(draft, reading, space)):
                    if position < 0 and (draft.what.places or not other.used):
                        continue
                    if not other.used or _parted(draft, other, reading, position):
                        yield _make_relation(name, position, draft, other, reading, space)


def _parted(draft: Draft, other: Draft, reading: Reading, position: int) -> bool:
    """Whether the words of two filters do not mix, and the relation's word (if any) does not come after both."""
    ends = sorted((min(item.used), max(item.used)) for item in (draft, other))
    chunks = reading.list_chunks()
    return chunks[ends[0][1]] < chunks[ends[1][0]] and (position < 0 or position < reading.mentions[ends[1][1]].position)


def _echo(draft: Draft, reading: Reading, space: Space) -> Iterator[Draft]:
    """The other objects told by the first ones: of the same colour, or of another one."""
    for words in draft.what.words:
        if len(words) == 1 and space.group_of(words[0]) == "color":
            if reading.find_part("same") or reading.find_part("together"):
                yield Draft(Filter(words=(words,)), parts=(("echo", "same"),))
            if reading.find_part("different"):
                yield Draft(Filter(without=words), parts=(("echo", "different"),))


def _make_relation(name: str, position: int, draft: Draft, other: Draft, reading: Reading, space: Space) -> Draft:
    """The tools tell the upper object: of "a block below a red one" it is the red one that is kept, which exists just as well."""
    relation = space.relations[name]
    first, second = (other.what, draft.what) if relation.reverse else (draft.what, other.what)
    what = Filter(first.words, first.without, first.places, (relation.tool, second))
    order: Part = ("order", name, draft.start < other.start if draft.used and other.used else bool(draft.used), bool(other.used))
    sides = [part if part[0] != "attribute" else (*part, "other") for part in other.parts]
    binds = (*_bind(f"{name} of", draft, reading, position), *_bind(f"{name} other", other, reading, position))
    parts = (*draft.parts, *sides, ("relation", name, position), order, *binds)
    return Draft(what, draft.used | other.used, draft.words | other.words | {position}, parts)
