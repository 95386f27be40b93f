"""Filters ("small red circle"), which objects they pick, and how English and the reasoning steps spell them."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations

from visloop.scenes.world import ATTRIBUTES, Attribute, Objects, SceneObject, WorldSpec

THING = "thing"
"""The noun of a filter without a shape, in steps and as one of the nouns of questions."""


@dataclass(frozen=True, slots=True)
class Filter:
    """Wanted attribute values; None means any. All None picks every object."""

    size: str | None = None
    pattern: str | None = None
    color: str | None = None
    shape: str | None = None

    def value(self, attribute: Attribute) -> str | None:
        """The wanted value of one attribute."""
        wanted: str | None = getattr(self, attribute)
        return wanted

    def attributes(self) -> tuple[Attribute, ...]:
        """The attributes that are constrained."""
        return tuple(attribute for attribute in ATTRIBUTES if self.value(attribute) is not None)

    def matches(self, entry: SceneObject) -> bool:
        """Whether one object has every wanted value."""
        return all(getattr(entry, attribute) == self.value(attribute) for attribute in self.attributes())


def excludes(first: Filter, second: Filter) -> bool:
    """Whether no object can match both: they want different values of one attribute."""
    return any(
        first.value(name) != second.value(name) for name in ATTRIBUTES if first.value(name) is not None and second.value(name) is not None
    )


def select_objects(objects: Iterable[SceneObject], wanted: Filter) -> Objects:
    """The objects that match, in their given order."""
    return tuple(entry for entry in objects if wanted.matches(entry))


def describe_object(entry: SceneObject, attributes: Iterable[Attribute]) -> Filter:
    """The filter that asks for the values ``entry`` has in ``attributes``."""
    return Filter(**{attribute: getattr(entry, attribute) for attribute in attributes})


def index_filters(objects: Objects, *, most: int = 3) -> dict[Filter, Objects]:
    """Every filter of 1 to ``most`` attributes that some object matches, with all the objects it picks."""
    found: dict[Filter, list[SceneObject]] = {}
    for entry in objects:
        for size in range(1, most + 1):
            for attributes in combinations(ATTRIBUTES, size):
                found.setdefault(describe_object(entry, attributes), []).append(entry)
    return {wanted: tuple(entries) for wanted, entries in found.items()}


def change_value(wanted: Filter, attribute: Attribute, value: str | None) -> Filter:
    """The filter with one attribute's value replaced (None drops the attribute)."""
    return replace(wanted, **{attribute: value})


def name_filter(wanted: Filter) -> str:
    """The filter in a step's words, e.g. ``small striped red circle`` or ``red thing``."""
    words = [wanted.value(attribute) for attribute in ATTRIBUTES[:-1]]
    return " ".join([word for word in words if word] + [wanted.shape or THING])


def read_filter(words: list[str], *, spec: WorldSpec) -> Filter | None:
    """The filter that ``name_filter`` spells as exactly these words; None for any others."""
    if not words:
        return None
    values: dict[str, str | None] = {}
    for word in words[:-1]:
        owners = [attribute for attribute in ATTRIBUTES[:-1] if word in spec.values(attribute)]
        if not owners or owners[0] in values:
            return None
        values[owners[0]] = word
    if words[-1] != THING and words[-1] not in spec.values("shape"):
        return None
    wanted = Filter(**values, shape=None if words[-1] == THING else words[-1])
    return wanted if name_filter(wanted).split() == words else None


def phrase_filter(wanted: Filter, *, spec: WorldSpec, plural: bool = False, noun: str = THING) -> str:
    """The filter in a question's words; ``noun`` stands in for a missing shape (plural: + s)."""
    name = wanted.shape or noun
    if plural:
        name = next((shape.plural for shape in spec.shapes if shape.name == wanted.shape), f"{noun}s")
    words = [wanted.value(attribute) for attribute in ATTRIBUTES[:-1]]
    return " ".join([word for word in words if word] + [name])
