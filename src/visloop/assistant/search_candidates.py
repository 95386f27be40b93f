"""The programs that an instruction may mean, as meanings with the parts they were made from: a typed space, small enough to list."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visloop.assistant.search_filters import Draft, Part, draft_filters
from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_scenes import Executor, SceneTable
from visloop.assistant.search_space import Space
from visloop.assistant.search_words import Reading


@dataclass(frozen=True, slots=True)
class Candidate:
    """A meaning that an instruction may have, and the choices that led to it."""

    meaning: Meaning
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class _Piece:
    """An atom or a meaning on the way: ``used`` mentions (numbers too), ``words`` token positions, ``parts``; ``start`` its order."""

    atom: Atom
    used: frozenset[int]
    words: frozenset[int]
    parts: tuple[Part, ...]
    start: int

    @property
    def open(self) -> bool:
        """Whether a place or relation in it rests on no word."""
        return any(part[0] in ("place", "relation") and part[-1] == -1 for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Amount:
    sign: str
    number: int
    used: frozenset[int]
    words: frozenset[int]
    parts: tuple[Part, ...]


_RATES = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 0.9999)
"""Bounds between the classes of how often a candidate is true on pictures that nothing is known of."""


_RARE = 0.1
"""Kinds of scenes that make up less than this share of the pictures are not looked at."""


def sort_scenes(scenes: SceneTable, *, space: Space) -> dict[str, NDArray[np.bool_]]:
    """The kinds of scenes in a table, told by the attribute groups of which a task shows one word only (towers are of squares of one
    size), with the tasks (tasks,) of each kind. Rare kinds are left out."""
    owner = scenes.box // scenes.pictures
    single: dict[str, NDArray[np.bool_]] = {}
    for group, words in space.attributes.items():
        shown = np.stack([np.bincount(owner[scenes.masks[word]], minlength=scenes.tasks) > 0 for word in words])
        single[group] = shown.sum(axis=0) == 1
    names = np.array([" ".join(group for group in single if single[group][task]) for task in range(scenes.tasks)])
    found = {str(name): names == name for name in np.unique(names)}
    return {name: tasks for name, tasks in found.items() if tasks.mean() >= _RARE}


def add_rates(candidates: Sequence[Candidate], executor: Executor) -> list[Candidate]:
    """The candidates with more parts: how often each is true on each kind of the executor's scenes. People seldom say what is always so."""
    kinds = sort_scenes(executor.scenes, space=executor.space)
    rated = []
    for candidate in candidates:
        truth = executor.judge(candidate.meaning)
        rates: list[Part] = [("rate", name, int(np.searchsorted(_RATES, truth[tasks].mean()))) for name, tasks in kinds.items()]
        rated.append(Candidate(candidate.meaning, (*candidate.parts, *rates)))
    return rated


def list_candidates(reading: Reading, *, space: Space, open_parts: bool = False) -> list[Candidate]:
    """All meanings that the words allow, at most ``space.limits.candidates``: those that use most words first, then the shorter ones."""
    maker = _Maker(reading, space, open_parts)
    found: dict[tuple[Meaning, tuple[Part, ...]], tuple[int, int]] = {}
    for meaning, used, words, parts in maker.list_meanings():
        unused = [index for index in maker.content if index not in used]
        if len(unused) > space.limits.unused:
            continue
        left = tuple(("unused", reading.mentions[index].kind, index) for index in unused)
        idle = tuple(("idle", position) for position in maker.trigger_words if position not in words)
        spots = [part[1] for part in parts if part[0] == "negation"]
        negations = tuple(("negations", spots.count(spot), len(maker.negations)) for spot in maker.negations)
        leading = [part[-1] for part in parts if part[0] in ("place", "relation")]
        shared: Part = ("shared", len(leading) - len(set(leading)))
        key = meaning, (*parts, *left, *idle, *negations, shared)
        found.setdefault(key, (len(unused) + len(idle), len(parts)))
    ranked = sorted(found, key=lambda key: found[key])
    return [Candidate(meaning, parts) for meaning, parts in ranked[: space.limits.candidates]]


_Found = tuple[Meaning, frozenset[int], frozenset[int], tuple[Part, ...]]


class _Maker:
    def __init__(self, reading: Reading, space: Space, open_parts: bool) -> None:
        self.reading, self.space, self.open_parts = reading, space, open_parts
        self.content = [index for index, mention in enumerate(reading.mentions) if mention.kind != "part"]
        spoken = {mention.position for index, mention in enumerate(reading.mentions) if mention.kind != "part"}
        self.trigger_words = sorted({mention.position for mention in reading.mentions if mention.kind == "part"} - spoken)
        self.negations = reading.find_part("none")
        self.drafts = draft_filters(reading, space=space, open_parts=open_parts)
        self.small = [draft for draft in self.drafts if draft.what.relation is None]

    def _spoken(self, part: str) -> list[int]:
        return self.reading.find_part(part)

    def _amounts(self, role: str, *, implicit: bool = True) -> Iterator[_Amount]:
        """Every number with every comparison that a word allows; no number: at least one, and none where something is negated."""
        signs = [("plain", -1, ">="), ("plain", -1, "==")]
        signs += [(name, position, sign) for name, sign in self.space.operators.items() for position in self.reading.find_part(name)[:2]]
        if implicit:
            yield _Amount(">=", 1, frozenset(), frozenset(), (("amount", role, "some", -1, -1),))
            for position in self._spoken("none")[:2]:
                parts: tuple[Part, ...] = (("amount", role, "none", -1, position), ("negation", position))
                yield _Amount("==", 0, frozenset(), frozenset([position]), parts)
            for position in self.reading.find_part("exactly")[:1]:
                yield _Amount("==", 1, frozenset(), frozenset([position]), (("amount", role, "exactly", -1, position),))
        for index in self.reading.find_mentions("number"):
            number = int(self.reading.mentions[index].value)
            for name, position, sign in signs:
                part: Part = ("amount", role, f"{name} {sign}" if name == "plain" else name, index, position)
                yield _Amount(sign, number, frozenset([index]), frozenset([position]), (part,))

    def _bind_number(self, amount: _Amount, draft: Draft) -> tuple[Part, ...]:
        """How the number stands to the first attribute word of what it counts."""
        if not amount.used or not draft.used:
            return ()
        place = self.reading.mentions[next(iter(amount.used))].position
        mention = self.reading.mentions[min(draft.used)]
        low, high = sorted((place, mention.position))
        between = sum(other.kind == "number" and low < other.position < high for other in self.reading.mentions)
        return (("bind number", place < mention.position, min(high - low, 6), between),)

    def _count(self, drafts: Iterable[Draft], role: str, amounts: list[_Amount]) -> Iterator[_Piece]:
        for draft in drafts:
            for amount in amounts:
                atom = Atom("count", draft.what, sign=amount.sign, number=amount.number)
                parts = (("form", "count", role), *draft.parts, *amount.parts, *self._bind_number(amount, draft))
                used = draft.used | amount.used
                yield _Piece(atom, used, draft.words | amount.words, parts, min(used, default=10_000))

    def _special(self, role: str) -> Iterator[_Piece]:
        """Statements about all of the objects, and about how many kinds they are of."""
        for position in self._spoken("only")[:2]:
            for draft in self.drafts:
                for more in self.small:
                    tower = [name for name, _ in (*draft.what.places, *more.what.places) if self.space.places[name].tool != "TOUCHING"]
                    fits = bool(more.what.words or more.what.without or more.what.places) and not draft.used & more.used
                    if fits and draft.what != more.what and len(tower) < 2:
                        order: Part = ("every", bool(draft.what != Filter()), draft.start < more.start)
                        parts = (("form", "every", role, position), *draft.parts, *more.parts, order)
                        used = draft.used | more.used
                        atom = Atom("every", draft.what, more.what)
                        yield _Piece(atom, used, draft.words | more.words | {position}, parts, min(used, default=10_000))
        for position in self.reading.find_part("whole")[:2] if role == "box" else []:
            for more in self.small:
                if more.what.words or more.what.without:
                    gap = self.reading.mentions[max(more.used)].position - position
                    parts = (("form", "whole", role, position), *more.parts, ("whole gap", max(-4, min(4, gap))))
                    yield _Piece(Atom("every", Filter(), more.what), more.used, more.words | {position}, parts, more.start)
        for draft in self.small:
            yield from self._kinds(draft, role)

    def _kinds(self, draft: Draft, role: str) -> Iterator[_Piece]:
        for group in ("color", "shape"):
            if any(self.space.group_of(word) == group for words in draft.what.words for word in words):
                continue
            for position in self._spoken("kinds")[:1]:
                for amount in self._amounts("kinds", implicit=False):
                    if amount.number <= 3:
                        atom = Atom("kinds", draft.what, sign=amount.sign, number=amount.number, group=group)
                        parts = (("form", "kinds", role, group, position), *draft.parts, *amount.parts)
                        used = draft.used | amount.used
                        yield _Piece(atom, used, draft.words | amount.words | {position}, parts, min(used, default=10_000))
            for part, sign, number in (("same", "==", 1), ("different", ">=", 2)):
                for position in self._spoken(part)[:2]:
                    kind = self.reading.find_part("kinds")[:1]
                    atom = Atom("kinds", draft.what, sign=sign, number=number, group=group)
                    parts = (("form", part, role, group, position), *draft.parts)
                    yield _Piece(atom, draft.used, draft.words | {position, *kind}, parts, draft.start)
            for position in self._spoken("same")[:1]:
                for amount in self._amounts("most", implicit=False):
                    kind = self.reading.find_part("kinds")[:1]
                    atom = Atom("most", draft.what, sign=amount.sign, number=amount.number, group=group)
                    parts = (("form", "most", role, group, position), *draft.parts, *amount.parts)
                    words = draft.words | amount.words | {position, *kind}
                    used = draft.used | amount.used
                    yield _Piece(atom, used, words, parts, min(used, default=10_000))
        found = self.reading.find_mentions("color")
        names = [self.reading.mentions[index].value for index in found]
        if len(set(names)) == len(names) == 2:
            atom = Atom("exact", draft.what, group="color", named=tuple(sorted(names)))
            parts = (("form", "exact", role), *draft.parts, *(("attribute", "color", index, "exact") for index in found))
            yield _Piece(atom, draft.used | frozenset(found), draft.words, parts, min(found))

    def _list_atoms(self) -> tuple[list[_Piece], list[_Piece]]:
        amounts = list(self._amounts("objects"))
        single = [*self._count(self.drafts, "box", amounts), *self._special("box")]
        short = [piece for piece in single if piece.used]
        return single, short

    def _boxes(self) -> Iterator[_Amount]:
        yield from self._amounts("boxes")
        for position in self._spoken("each")[:2]:
            size = len(self.space.inputs)
            yield _Amount("==", size, frozenset(), frozenset([position]), (("amount", "boxes", "each", -1, position),))

    def list_meanings(self) -> Iterator[_Found]:
        single, short = self._list_atoms()
        need = len(self.content) - self.space.limits.unused
        boxes = list(self._boxes())
        groups: list[tuple[tuple[_Piece, ...], frozenset[int]]] = [((piece,), piece.used) for piece in single]
        groups += self._pairs(short, need)
        least = need - 1
        for pieces, used in groups:
            if len(used) < least:
                continue
            words = frozenset().union(*(piece.words for piece in pieces))
            parts = tuple(part for piece in pieces for part in piece.parts)
            atoms = tuple(piece.atom for piece in pieces)
            for amount in boxes:
                if not amount.used & used:
                    shape: Part = ("meaning", "boxes", len(pieces))
                    yield self._boxes_meaning(atoms, amount), used | amount.used, words | amount.words, (shape, *parts, *amount.parts)
            yield from self._alike(atoms, used, words, parts)
        yield from self._totals(need)
        yield from self._both(short, need)

    @staticmethod
    def _boxes_meaning(atoms: tuple[Atom, ...], amount: _Amount) -> Meaning:
        return Meaning("boxes", atoms, amount.sign, amount.number)

    def _pairs(self, short: list[_Piece], need: int) -> Iterator[tuple[tuple[_Piece, ...], frozenset[int]]]:
        """Two or three statements about one picture, each about words of its own: the next one begins where the last one ended."""
        chunks = self.reading.list_chunks()
        after = {end: [piece for piece in short if piece.start > end and chunks[piece.start] > chunks[end]] for end in range(len(chunks))}
        for first in short:
            for second in after[max(first.used)]:
                if first.open and second.open:
                    continue
                used = first.used | second.used
                if len(used) >= need:
                    yield (first, second), used
                if len(used) >= need or first.atom.form != "count" or second.atom.form != "count":
                    continue
                for third in after[max(second.used)]:
                    if third.atom.form == "count" and not third.open and len(used) + len(third.used) >= need:
                        yield (first, second, third), used | third.used

    def _alike(self, atoms: tuple[Atom, ...], used: frozenset[int], words: frozenset[int], parts: tuple[Part, ...]) -> Iterator[_Found]:
        for part, holds in (("same", True), ("different", False)):
            for position in self._spoken(part)[:1]:
                if position in words:
                    continue
                for kind, group in (("kinds", "color"), ("height", "")):
                    for place in self._spoken(kind)[:1]:
                        bases = [name for name in ("base", "top") if self.reading.find_part(name)] if group else [""]
                        for base in bases:
                            about = Atom("count", Filter(places=((base, True),) if base else ()), group=group)
                            spot = self.reading.find_part(base)[:1] if base else []
                            here = words | {position, place, *spot}
                            shape: Part = ("meaning", "alike", part, kind, base)
                            numbers = frozenset(self.reading.find_mentions("number")[:1])
                            yield Meaning("alike", (about, *atoms), holds=holds), used | numbers, here, (shape, *parts)

    def _totals(self, need: int) -> Iterator[_Found]:
        for piece in (*self._count(self.drafts, "total", list(self._amounts("total"))), *self._special("total")):
            if len(piece.used) < need:
                continue
            yield Meaning("total", (piece.atom,)), piece.used, piece.words, (("meaning", "total", piece.atom.form), *piece.parts)
        for draft in self.drafts:
            for position in self._spoken("same")[:1]:
                meaning = Meaning("same_box", (Atom("count", draft.what),))
                yield meaning, draft.used, draft.words | {position}, (("meaning", "same_box"), *draft.parts)

    def _both(self, short: list[_Piece], need: int) -> Iterator[_Found]:
        """Two statements, each about some picture or about all together."""
        counts = [piece for piece in short if piece.atom.form == "count" and piece.atom.number > 0]
        for pieces, used in self._pairs(counts, max(need, 2)):
            if len(pieces) > 2:
                continue
            words = pieces[0].words | pieces[1].words
            parts = (*pieces[0].parts, *pieces[1].parts)
            for form in ("boxes", "total"):
                halves = tuple(Meaning(form, (piece.atom,)) for piece in pieces)
                yield Meaning("and", parts=halves), used, words, (("meaning", "and", form), *parts)
