"""What a family of tasks is, and how its words and objects are drawn: phrases about a concept, objects that fit them, near misses."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from visloop.errors import ConfigError
from visloop.records.assistant import LabelledBox, TaskKind
from visloop.scenes.edits import EditStep
from visloop.scenes.filters import Filter, phrase_filter
from visloop.scenes.workshop import BASE_WORDS, BOXES, NOUN, NOVEL_CONCEPTS, NOVEL_WORDS, WORKSHOP, find_attribute
from visloop.scenes.world import ATTRIBUTES, Attribute, Objects, Scene, SceneObject, make_scene

Cell = tuple[int, int]
"""(column, row), from 1."""

SLOT: Final = re.compile(r"<(\w+)>")
"""A slot of a text, by name."""
_PHRASES: Final[tuple[tuple[float, tuple[Attribute, ...]], ...]] = (
    (0.3, ("shape",)),
    (0.38, ("color", "shape")),
    (0.16, ("pattern", "shape")),
    (0.1, ("pattern", "color", "shape")),
    (0.06, ("color",)),
)
NEAR_MISSES: Final = 0.5
"""How often an object that a task does not ask about differs in one word only from one that it asks about."""
NOVEL_OTHERS: Final = 0.15
"""How often, in tasks about a novel word, such an object has a novel word as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One drawn task: what fills the slots of its family's texts, its scene, and its right result."""

    slots: Mapping[str, str]
    scene: Scene
    answer: str | None = None
    boxes: tuple[LabelledBox, ...] = ()
    edits: tuple[EditStep, ...] = ()
    concepts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What a family draws a case from.

    ``words`` decides words and ``rng`` everything else (two statements of a pair share their words). ``focus`` is the novel word that
    the task is about, or None; ``wanted`` is the place, 0 to 1, of the answer among the possible ones, spread evenly over tasks.
    """

    words: random.Random
    rng: random.Random
    focus: str | None = None
    wanted: float = 0.0

    @property
    def positive(self) -> bool:
        """Whether the answer is to be yes (true)."""
        return self.wanted < 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFamily:
    """Tasks of one form. ``base`` are the wordings of the seed demonstrations, ``new`` those that the assistant has not seen; ``<slot>``
    is filled by a case. A held-out family is in no seed demonstration. ``focuses`` are the attributes whose novel words it can be about."""

    name: str
    kind: TaskKind
    base: tuple[str, ...]
    new: tuple[str, ...]
    plan: tuple[str, ...]
    program: tuple[str, ...]
    draw: Callable[[Draw], Case | None] = field(compare=False)
    held_out: bool = False
    focuses: tuple[Attribute, ...] = ("shape", "color", "pattern")

    def list_concepts(self) -> tuple[str, ...]:
        """The novel words that the family can be about."""
        return tuple(word for attribute in self.focuses for word in NOVEL_WORDS[attribute])


def fill_slots(text: str, slots: Mapping[str, str]) -> str:
    """The text with every ``<slot>`` replaced.

    Raises:
        ConfigError: a slot that the case does not fill.
    """

    def find_slot(match: re.Match[str]) -> str:
        if match.group(1) not in slots:
            raise ConfigError(f"nothing fills slot {match.group()} of {text!r}; filled are {sorted(slots)}")
        return slots[match.group(1)]

    return SLOT.sub(find_slot, text)


def add_article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeio' else 'a'} {phrase}"


def name_slots(**phrases: Filter) -> dict[str, str]:
    """For each filter ``x`` the slots ``x`` (singular), ``an_x`` (with article), ``xs`` (plural) and ``an_x_start`` (article at the
    beginning of a sentence)."""
    slots: dict[str, str] = {}
    for name, wanted in phrases.items():
        single = phrase_filter(wanted, spec=WORKSHOP, noun=NOUN)
        counted = phrase_filter(wanted, spec=WORKSHOP, plural=True, noun=NOUN)
        slots |= form_slots(name, single=single, plural=counted)
    return slots


def form_slots(name: str, *, single: str, plural: str) -> dict[str, str]:
    """The slots of one phrase, see ``name_slots``."""
    article = add_article(single)
    return {name: single, f"an_{name}": article, f"an_{name}_start": article[0].upper() + article[1:], f"{name}s": plural}


def list_words(*phrases: Filter) -> tuple[str, ...]:
    """The attribute words of filters, each once, in order."""
    words = [wanted.value(name) for wanted in phrases for name in ATTRIBUTES]
    return tuple(dict.fromkeys(word for word in words if word))


def choose_answer(draw: Draw, choices: Sequence[str], *, focus: Attribute | None = None) -> str:
    """One of the choices, evenly over tasks; the novel word itself where the task is about a word of the asked attribute ``focus``."""
    if draw.focus is not None and find_attribute(draw.focus) == focus:
        return draw.focus
    return choices[int(draw.wanted * len(choices))]


def draw_phrase(draw: Draw, *, focus: str | None = None, without: Attribute | None = None, fixed: Filter = Filter()) -> Filter:  # noqa: B008
    """A filter of one to three base words, never with a value of ``without``; with the novel word ``focus`` in it, where given.
    ``fixed`` words are kept."""
    about = find_attribute(focus) if focus is not None else None
    kinds = [(weight, names) for weight, names in _PHRASES if without not in names]
    if about is not None:
        kinds = [(weight, names) for weight, names in kinds if about in names] or [(1.0, (about,))]
    names = draw.words.choices([names for _, names in kinds], [weight for weight, _ in kinds])[0]
    values: dict[str, str] = {name: draw.words.choice([word for word in BASE_WORDS[name] if word != "plain"]) for name in names}
    if about is not None and focus is not None:
        values[about] = focus
    values |= {name: word for name in ATTRIBUTES if (word := fixed.value(name)) is not None}
    return Filter(**values)


def share_focus(draw: Draw, count: int) -> list[str | None]:
    """The novel word for one of ``count`` phrases, None for the others."""
    chosen = draw.words.randrange(count)
    return [draw.focus if index == chosen else None for index in range(count)]


def overlaps(first: Filter, second: Filter) -> bool:
    """Whether one object could fit both filters."""
    return all(first.value(name) == second.value(name) for name in ATTRIBUTES if first.value(name) and second.value(name))


def fill_object(draw: Draw, wanted: Filter, *, cell: Cell = (1, 1)) -> SceneObject:
    """An object that fits a filter; what the filter leaves open is drawn from the base words."""
    values = {name: wanted.value(name) or draw.rng.choice(BASE_WORDS[name]) for name in ATTRIBUTES if name != "pattern"}
    # Half of all objects are plain, as in the world itself.
    pattern = wanted.pattern or draw.rng.choices(BASE_WORDS["pattern"], [2.0, 1.0, 1.0])[0]
    return SceneObject(pattern=pattern, column=cell[0], row=cell[1], **values)


def miss_filter(draw: Draw, wanted: Filter) -> Filter:
    """The filter with one of its words exchanged for another base word."""
    names = [name for name in wanted.attributes() if name != "size"]
    name = draw.rng.choice(names)
    other = draw.rng.choice([word for word in BASE_WORDS[name] if word != wanted.value(name)])
    return Filter(**{entry: (other if entry == name else wanted.value(entry)) for entry in names})


def draw_others(draw: Draw, *, avoid: Sequence[Filter], cells: Sequence[Cell], near: Sequence[Filter] = ()) -> list[SceneObject]:
    """One object per cell, none of which fits a filter of ``avoid``; every second one differs from a filter of ``near`` (those of
    ``avoid`` if there are none) in one word only. Few of them have a novel word where the task is about one; otherwise none."""
    found: list[SceneObject] = []
    while len(found) < len(cells):
        wanted = Filter()
        models = near or avoid
        if models and draw.rng.random() < NEAR_MISSES:
            wanted = miss_filter(draw, draw.rng.choice(list(models)))
        elif draw.focus is not None and draw.rng.random() < NOVEL_OTHERS:
            word = draw.rng.choice(NOVEL_CONCEPTS)
            wanted = Filter(**{str(find_attribute(word)): word})
        entry = fill_object(draw, wanted, cell=cells[len(found)])
        if not any(other.matches(entry) for other in avoid):
            found.append(entry)
    return found


def deal_cells(draw: Draw) -> list[Cell]:
    """All cells of a single picture in random order."""
    cells = [(index % WORKSHOP.grid + 1, index // WORKSHOP.grid + 1) for index in range(WORKSHOP.grid**2)]
    draw.rng.shuffle(cells)
    return cells


def draw_picture(draw: Draw, wanted: Sequence[Filter], *, avoid: Sequence[Filter] | None = None) -> Scene:
    """A single picture with one object per filter and some others, in random cells. No other object fits a filter of ``avoid``
    (those of ``wanted`` if it is not given)."""
    most = WORKSHOP.objects[1]
    cells = deal_cells(draw)[: draw.rng.randint(max(3, len(wanted)), most)]
    planted = [fill_object(draw, phrase, cell=cell) for phrase, cell in zip(wanted, cells, strict=False)]
    others = draw_others(draw, avoid=list(wanted) if avoid is None else avoid, cells=cells[len(wanted) :])
    return finish_scene(draw, (tuple(planted + others),))


def finish_scene(draw: Draw, boxes: tuple[Objects, ...]) -> Scene:
    """The scene of given objects, with its own noise."""
    return make_scene(boxes, seed=draw.rng.getrandbits(48))


WORLDS: Final = {"vqa": WORKSHOP, "multi_image": BOXES, "editing": WORKSHOP, "tagging": WORKSHOP}
"""The world of each kind of task."""
