"""Where every object of a scene lies in its picture: exact boxes and masks, computed as the picture is drawn. For measuring only."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from visloop.ids import seed_for
from visloop.scenes.pictures import cover_window, lay_out, open_window
from visloop.scenes.world import Scene, SceneObject, WorldSpec, check_scene

Corners = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, eq=False)
class LocatedObject:
    """One object with its box (left, top, right, bottom in pixels; right and bottom exclusive) and its mask (h, w) of the picture.

    A pixel belongs to the object where the outline covers at least half of it.
    """

    entry: SceneObject
    box: Corners
    mask: NDArray[np.bool_]

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) of the box, in pixels."""
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


def bound_mask(mask: NDArray[np.bool_]) -> Corners:
    """The smallest box around the true pixels of a mask (h, w), which must have one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def locate_objects(scene: Scene, *, spec: WorldSpec) -> tuple[tuple[LocatedObject, ...], ...]:
    """The objects of every picture of a scene, in the scene's order.

    Raises:
        DataError: the scene is not of the world ``spec``.
    """
    check_scene(scene, spec=spec)
    side = spec.canvas if len(scene.boxes) == 1 else spec.box_canvas
    located = []
    for index, objects in enumerate(scene.boxes):
        layout = lay_out(objects, seed=seed_for(scene.seed, "picture", index), side=side, spec=spec)
        found = []
        for placed in layout.placed:
            window = open_window(placed, side=side)
            mask = np.zeros((side, side), dtype=np.bool_)
            mask[window.rows, window.columns] = cover_window(placed, window, spec=spec) >= 0.5
            found.append(LocatedObject(placed.entry, bound_mask(mask), mask))
        located.append(tuple(found))
    return tuple(located)
