"""Conversations that teach seeing: describe every object (captions) and find the objects a filter picks (grounding).

Dense multi-turn grounding is what teaches the language model to match words with patches; questions alone do not.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from visloop.embedded.dialogues import Dialogue
from visloop.embedded.pictures import Gallery
from visloop.prompts.render import PromptSet
from visloop.scenes.filters import Filter, describe_object, name_filter
from visloop.scenes.steps import DIRECTIONS, Find, axis_of, execute_find, format_positions, summarize_operation
from visloop.scenes.world import ATTRIBUTES, Scene, SceneObject, WorldSpec

ATTRIBUTE_COUNTS = ((1, 0.60), (2, 0.29), (3, 0.11))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingMix:
    """Shares of a grounding conversation's find turns. ``existing``: the filter is read off an object of the picture."""

    turns: int = 6
    existing: float = 0.65
    spatial: float = 0.0
    negated: float = 0.0
    described: float = 0.1


def name_object(entry: SceneObject) -> str:
    """Position first: the attributes are then read off a patch the model has already chosen."""
    return f"x{entry.column} y{entry.row} {name_filter(describe_object(entry, ATTRIBUTES))}"


def describe_scene(scene: Scene) -> str:
    """All objects by row and column; boxes of three are numbered."""
    texts = [" , ".join(name_object(entry) for entry in box) for box in scene.boxes]
    if len(texts) == 1:
        return texts[0]
    return " ; ".join(f"box {number} {text}" for number, text in enumerate(texts, start=1))


def draw_filter(rng: random.Random, objects: Sequence[SceneObject], *, spec: WorldSpec, existing: float) -> Filter:
    """A filter of one to three attributes, with probability ``existing`` one that some object matches."""
    count = rng.choices([size for size, _ in ATTRIBUTE_COUNTS], [weight for _, weight in ATTRIBUTE_COUNTS])[0]
    attributes = rng.sample(ATTRIBUTES, count)
    if rng.random() < existing:
        return describe_object(rng.choice(objects), attributes)
    return Filter(**{attribute: rng.choice(spec.values(attribute)) for attribute in attributes})


def draw_find(rng: random.Random, scene: Scene, *, spec: WorldSpec, mix: GroundingMix) -> Find:
    """A find step for one of the scene's boxes; directions refer to the column or row of one of its objects."""
    box = rng.randint(1, len(scene.boxes)) if len(scene.boxes) > 1 else 0
    objects = scene.boxes[max(0, box - 1)]
    wanted = draw_filter(rng, objects, spec=spec, existing=mix.existing)
    kind = rng.random()
    if kind < mix.spatial:
        if rng.random() < 0.3:
            wanted = Filter()
        direction = rng.choice(DIRECTIONS)
        anchor = rng.choice(objects)
        limit = anchor.column if axis_of(direction) == "x" else anchor.row
        return Find(wanted, box, direction=direction, limit=limit)
    return Find(wanted, box, negated=kind < mix.spatial + mix.negated)


def draw_grounding_turns(
    rng: random.Random, scene: Scene, *, spec: WorldSpec, mix: GroundingMix, prompts: PromptSet
) -> tuple[tuple[str, str], ...]:
    """``mix.turns`` find turns about one scene, and now and then its description."""
    turns = []
    for _ in range(mix.turns):
        step = draw_find(rng, scene, spec=spec, mix=mix)
        turns.append((summarize_operation(step), format_positions(execute_find(step, scene.boxes))))
    if rng.random() < mix.described:
        turns.insert(rng.randrange(len(turns) + 1), (prompts.render("describe"), describe_scene(scene)))
    return tuple(turns)


def make_captions(gallery: Gallery, *, scenes: Sequence[int], prompts: PromptSet) -> Callable[[random.Random], Dialogue]:
    """A source of one-turn descriptions of the given scenes."""
    prompt = prompts.render("describe")

    def draw(rng: random.Random) -> Dialogue:
        index = rng.choice(scenes)
        return Dialogue(index, ((prompt, describe_scene(gallery.scenes[index])),))

    return draw


def make_grounding(
    gallery: Gallery, *, scenes: Sequence[int], spec: WorldSpec, mix: GroundingMix, prompts: PromptSet
) -> Callable[[random.Random], Dialogue]:
    """A source of grounding conversations about the given scenes."""

    def draw(rng: random.Random) -> Dialogue:
        index = rng.choice(scenes)
        return Dialogue(index, draw_grounding_turns(rng, gallery.scenes[index], spec=spec, mix=mix, prompts=prompts))

    return draw
