"""Truth tables of scenes: from the tools themselves, or from objects whose words and boxes are known."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from visloop.assistant.search_scenes import Flags, SceneTable
from visloop.assistant.search_space import Space
from visloop.errors import ConfigError
from visloop.tools.values import Box

_TOUCH = 1.0
"""Pixels between an object and a wall, or two objects, that still count as touching."""


@dataclass(frozen=True, slots=True)
class SeenObject:
    """An object of one picture: the attribute words that fit it, and its box in pixels."""

    words: Collection[str]
    box: Box


def scene_from_objects(pictures: Sequence[Sequence[SeenObject]], *, space: Space, side: float = 100.0, gap: float = 2.0) -> SceneTable:
    """The table of one task from the objects of its pictures (``side`` pixels wide and high).

    Raises:
        ConfigError: the space has a place or relation that boxes do not tell.
    """
    items = [item for picture in pictures for item in picture]
    box = np.array([index for index, picture in enumerate(pictures) for _ in picture], dtype=np.int64)
    left, top, right, bottom = np.array([item.box.corners for item in items], dtype=np.float64).reshape(-1, 4).T
    same = box[:, None] == box[None, :]
    np.fill_diagonal(same, False)
    overlap = (left[:, None] < right[None, :]) & (left[None, :] < right[:, None])
    drop = top[None, :] - bottom[:, None]
    on = same & overlap & (np.abs(drop) <= gap)
    above = same & (drop >= -gap)
    apart_x = np.maximum(left[:, None] - right[None, :], left[None, :] - right[:, None])
    apart_y = np.maximum(top[:, None] - bottom[None, :], top[None, :] - bottom[:, None])
    relations = {"ON": on, "ABOVE": above, "TOUCHING": same & (np.maximum(apart_x, apart_y) <= gap)}
    walls = {
        "left": left <= _TOUCH,
        "right": right >= side - _TOUCH,
        "top": top <= _TOUCH,
        "bottom": bottom >= side - _TOUCH,
    }
    walls["wall"] = walls["left"] | walls["right"] | walls["top"] | walls["bottom"]
    walls["corner"] = (walls["left"] | walls["right"]) & (walls["top"] | walls["bottom"])
    masks: dict[str, Flags] = {word: np.array([word in item.words for item in items], dtype=np.bool_) for word in space.words}
    for name, place in space.places.items():
        if place.tool == "TOUCHING" and place.target in walls:
            masks[name] = walls[place.target]
        elif place.tool == "TOP":
            masks[name] = ~on.any(axis=0)
        elif place.tool == "BOTTOM":
            masks[name] = ~on.any(axis=1)
        elif place.tool in relations and place.other in masks:
            masks[name] = (relations[place.tool] & masks[place.other]).any(axis=1)
        else:
            raise ConfigError(f"space {space.name}: place {name}: no way to tell {place.tool} {place.target or place.other} from boxes")
    pairs = {}
    for name, relation in space.relations.items():
        if relation.tool not in relations:
            raise ConfigError(f"space {space.name}: relation {name}: no way to tell {relation.tool} from boxes")
        pairs[name] = relations[relation.tool].T if relation.reverse else relations[relation.tool]
    return SceneTable(tasks=1, pictures=len(pictures), box=box, masks=masks, pairs=pairs)
