"""What the tools see in the pictures of tasks, as truth tables over objects, and a fast executor of meanings over them.

A table holds, for every object, which attribute words fit it and in which places it is, and for every pair of objects of one picture
which relation holds: all that a program of the space can ask the tools. Two hundred candidate programs then cost a few milliseconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_space import Space

Flags = NDArray[np.bool_]
Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class SceneTable:
    """The objects of one or more tasks. ``box`` (n,): picture of an object, counted over all tasks; ``masks``: attribute word or place ->
    (n,); ``pairs``: tool -> (n, n), row the object, column the other."""

    tasks: int
    pictures: int
    box: NDArray[np.int64]
    masks: Mapping[str, Flags]
    pairs: Mapping[str, Flags]

    @property
    def size(self) -> int:
        """How many objects."""
        return len(self.box)


def join_scenes(scenes: Sequence[SceneTable]) -> SceneTable:
    """Several tasks as one table, in order. All have the same words, places, relations and number of pictures."""
    first = scenes[0]
    starts = np.cumsum([0, *(scene.tasks * scene.pictures for scene in scenes)])
    sizes = np.cumsum([0, *(scene.size for scene in scenes)])
    pairs = {name: np.zeros((sizes[-1], sizes[-1]), dtype=np.bool_) for name in first.pairs}
    for scene, start, end in zip(scenes, sizes[:-1], sizes[1:], strict=True):
        for name, table in scene.pairs.items():
            pairs[name][start:end, start:end] = table
    return SceneTable(
        tasks=sum(scene.tasks for scene in scenes),
        pictures=first.pictures,
        box=np.concatenate([scene.box + start for scene, start in zip(scenes, starts[:-1], strict=True)]),
        masks={name: np.concatenate([scene.masks[name] for scene in scenes]) for name in first.masks},
        pairs=pairs,
    )


def compare(values: Counts, sign: str, number: int) -> Flags:
    """``values sign number``, element by element."""
    match sign:
        case "==":
            return np.equal(values, number)
        case ">=":
            return np.greater_equal(values, number)
        case "<=":
            return np.less_equal(values, number)
        case ">":
            return np.greater(values, number)
        case "<":
            return np.less(values, number)
    raise ValueError(f"no comparison {sign!r}")


@dataclass(slots=True)
class Executor:
    """Truth of meanings over a table. Results of filters and atoms are kept: candidates of one instruction share most of them."""

    scenes: SceneTable
    space: Space
    _masks: dict[Filter, Flags] = field(default_factory=dict)
    _counts: dict[Filter, Counts] = field(default_factory=dict)
    _atoms: dict[Atom, Flags] = field(default_factory=dict)

    def find_mask(self, what: Filter) -> Flags:
        """(n,): which objects fit."""
        found = self._masks.get(what)
        if found is not None:
            return found
        mask = np.ones(self.scenes.size, dtype=np.bool_)
        for words in what.words:
            some = self.scenes.masks[words[0]]
            for word in words[1:]:
                some = some | self.scenes.masks[word]
            mask = mask & some
        for word in what.without:
            mask = mask & ~self.scenes.masks[word]
        for place, holds in what.places:
            mask = mask & (self.scenes.masks[place] if holds else ~self.scenes.masks[place])
        if what.relation is not None:
            name, other = what.relation
            mask = mask & (self.scenes.pairs[name] & self.find_mask(other)).any(axis=1)
        self._masks[what] = mask
        return mask

    def count_objects(self, what: Filter) -> Counts:
        """(tasks, pictures): how many objects fit."""
        found = self._counts.get(what)
        if found is None:
            shape = self.scenes.tasks, self.scenes.pictures
            found = np.bincount(self.scenes.box[self.find_mask(what)], minlength=shape[0] * shape[1]).reshape(shape)
            self._counts[what] = found
        return found

    def _count_words(self, atom: Atom) -> Counts:
        """(words of the group, tasks, pictures)."""
        return np.stack([self.count_objects(add_word(atom.what, word)) for word in self.space.attributes[atom.group]])

    def _judge_counts(self, atom: Atom, gather: "type[_PerPicture] | type[_Together]") -> Flags:
        total = gather.sum
        match atom.form:
            case "count":
                return compare(total(self.count_objects(atom.what)), atom.sign, atom.number)
            case "every":
                some, both = total(self.count_objects(atom.what)), total(self.count_objects(join_filters(atom.what, atom.more)))
                return np.asarray((some > 0) & (some == both))
            case "kinds":
                return compare((total(self._count_words(atom)) > 0).sum(axis=0), atom.sign, atom.number)
            case "exact":
                present = total(self._count_words(atom)) > 0
                wanted = np.array([word in atom.named for word in self.space.attributes[atom.group]])
                return np.asarray((present == wanted.reshape(-1, *[1] * (present.ndim - 1))).all(axis=0))
            case "most":
                return compare(np.asarray(total(self._count_words(atom)).max(axis=0)), atom.sign, atom.number)
        raise ValueError(f"no atom {atom.form!r}")

    def judge_atom(self, atom: Atom) -> Flags:
        """(tasks, pictures): in which pictures the atom holds."""
        found = self._atoms.get(atom)
        if found is None:
            found = self._atoms[atom] = self._judge_counts(atom, _PerPicture)
        return found

    def judge(self, meaning: Meaning) -> Flags:
        """(tasks,): for which tasks the meaning holds."""
        match meaning.form:
            case "and":
                result = np.ones(self.scenes.tasks, dtype=np.bool_)
                for part in meaning.parts:
                    result = result & self.judge(part)
                return result
            case "total":
                return self._judge_counts(meaning.atoms[0], _Together)
            case "same_box":
                counts = self.count_objects(meaning.atoms[0].what)
                return np.asarray((counts.sum(axis=1) > 0) & (counts.max(axis=1) == counts.sum(axis=1)))
            case "boxes":
                return compare(self._judge_all(meaning.atoms).sum(axis=1), meaning.sign, meaning.number)
            case "alike":
                return self._judge_alike(meaning)
        raise ValueError(f"no meaning {meaning.form!r}")

    def _judge_all(self, atoms: Sequence[Atom]) -> Flags:
        holds = self.judge_atom(atoms[0])
        for atom in atoms[1:]:
            holds = holds & self.judge_atom(atom)
        return holds

    def _judge_alike(self, meaning: Meaning) -> Flags:
        holds, first = self._judge_all(meaning.atoms), meaning.atoms[0]
        found = np.zeros(self.scenes.tasks, dtype=np.bool_)
        values = self._count_words(first) > 0 if first.group else self.count_objects(first.what)[None]
        for left in range(self.scenes.pictures):
            for right in range(left + 1, self.scenes.pictures):
                equal = (
                    (values[..., left] & values[..., right]).any(axis=0) if first.group else (values[..., left] == values[..., right])[0]
                )
                found |= holds[:, left] & holds[:, right] & (equal if meaning.holds else ~equal)
        return found


class _PerPicture:
    @staticmethod
    def sum(counts: Counts) -> Counts:
        return counts


class _Together:
    @staticmethod
    def sum(counts: Counts) -> Counts:
        return np.asarray(counts.sum(axis=-1))


def add_word(what: Filter, word: str) -> Filter:
    """The objects of ``what`` that the word fits too."""
    return Filter((*what.words, (word,)), what.without, what.places, what.relation)


def join_filters(what: Filter, more: Filter) -> Filter:
    """The objects that fit both filters; only one of them may have a relation."""
    if what.relation is not None and more.relation is not None:
        raise ValueError("two relations in one filter")
    return Filter((*what.words, *more.words), (*what.without, *more.without), (*what.places, *more.places), what.relation or more.relation)
