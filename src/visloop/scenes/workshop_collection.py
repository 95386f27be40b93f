"""Where tools can learn words from, without a network: an open-vocabulary set in LVIS's layout, and folders as an image search fills them.

``<out>/open_vocabulary``  ``annotations.json`` (LVIS v1's layout: images, annotations with box and mask, categories with synonyms and
                           supercategory, and per image the categories that were looked for and are not there), ``pictures/*.png``
``<out>/image_search``     ``<concept>/*.png``, and ``sources.json`` with licence, provenance and the kind of word of every concept

All scenes belong to the train split: no picture of a validation or test task is learned from.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from visloop.errors import ConfigError
from visloop.ids import seed_for
from visloop.records.shards import write_text
from visloop.scenes.box_layouts import scatter_objects
from visloop.scenes.export import LICENCE, assign_split
from visloop.scenes.pictures import encode_png, render_scene
from visloop.scenes.regions import Corners, LocatedObject, locate_objects
from visloop.scenes.workshop import BOXES, WORKSHOP, find_attribute
from visloop.scenes.world import Attribute, Scene, SceneObject, StyledWorld, make_scene

GROUPS: Final[tuple[Attribute, ...]] = ("shape", "color", "pattern")
"""The kinds of words (supercategories) that the sets are about."""
WORDS: Final[tuple[str, ...]] = tuple(word for group in GROUPS for word in WORKSHOP.values(group))
SYNONYMS: Final[dict[str, tuple[str, ...]]] = {
    "circle": ("disc",),
    "bar": ("horizontal bar",),
    "pillar": ("vertical bar",),
    "cross": ("plus sign",),
    "star": ("five-pointed star", "pentagram"),
    "hexagon": ("six-sided polygon",),
    "pentagon": ("five-sided polygon",),
    "semicircle": ("half circle", "half disc"),
    "purple": ("violet",),
    "teal": ("dark cyan", "blue-green"),
    "pink": ("rose",),
    "striped": ("stripes", "stripy"),
    "grid": ("gridded", "grid pattern"),
    "checkered": ("chequered", "checked"),
    "dotted": ("dots", "spotted"),
}
ABSENT: Final = 6
"""Categories per picture that are listed as looked for and not there, at most."""
BOX_SHARE: Final = 0.25
"""Share of pictures in the style of a statement's boxes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionReport:
    """What was written: pictures and annotations of the open-vocabulary set, pictures per search query, and which of these show
    something else (``<concept>/<file>``). The files themselves do not tell them apart, as the web does not."""

    pictures: int
    annotations: int
    found: dict[str, int]
    wrong: tuple[str, ...]


def _draw_words(rng: random.Random, word: str | None = None, *, avoid: str | None = None) -> SceneObject:
    """An object with the word, if one is given, and without ``avoid``; everything else is any word, base or novel."""
    values: dict[str, str] = {
        group: rng.choice([value for value in WORKSHOP.values(group) if value != avoid]) for group in GROUPS if group != "pattern"
    }
    patterns = [pattern for pattern in WORKSHOP.patterns if pattern.name != avoid]
    values["pattern"] = rng.choices([pattern.name for pattern in patterns], [pattern.weight for pattern in patterns])[0]
    if word is not None:
        values[str(find_attribute(word))] = word
    return SceneObject(size=rng.choice(WORKSHOP.values("size")), column=1, row=1, **values)


def _arrange(rng: random.Random, entries: Sequence[SceneObject], spec: StyledWorld) -> Scene | None:
    """The objects at random places of a picture of ``spec``; None where they find no room or the scene is no train scene."""
    if spec is BOXES:
        box = scatter_objects(rng, entries)
    else:
        cells = rng.sample(range(spec.grid**2), len(entries))
        box = tuple(
            SceneObject(entry.shape, entry.color, entry.size, entry.pattern, cell % spec.grid + 1, cell // spec.grid + 1)
            for entry, cell in zip(entries, cells, strict=True)
        )
    scene = make_scene((box,), seed=rng.getrandbits(48)) if box else None
    return scene if scene is not None and assign_split(scene) == "train" else None


def draw_learning_scene(word: str, *, seed: int, objects: tuple[int, int], avoid: str | None = None) -> tuple[Scene, StyledWorld]:
    """A train scene of one picture with at least one object that has ``word``, and the world it is drawn in. Nothing has ``avoid``."""
    attempt = 0
    while True:
        rng = random.Random(seed_for(seed, "learning", word, attempt))
        spec = BOXES if rng.random() < BOX_SHARE else WORKSHOP
        entries = [_draw_words(rng, word, avoid=avoid)] + [_draw_words(rng, avoid=avoid) for _ in range(rng.randint(*objects) - 1)]
        scene = _arrange(rng, entries, spec)
        if scene is not None:
            return scene, spec
        attempt += 1


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask (h, w) as uncompressed run lengths in COCO's order: down the columns, zeros first."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]]))
    counts = lengths.tolist() if not flat[0] else [0, *lengths.tolist()]
    return {"size": [int(mask.shape[0]), int(mask.shape[1])], "counts": counts}


def _describe_object(found: LocatedObject, *, picture: int, first: int, numbers: dict[str, int]) -> Iterator[dict[str, Any]]:
    """One annotation per word of the object: as in LVIS an object can be of several categories."""
    left, top, right, bottom = found.box
    for offset, group in enumerate(GROUPS):
        yield {
            "id": first + offset,
            "image_id": picture,
            "category_id": numbers[getattr(found.entry, group)],
            "bbox": [left, top, right - left, bottom - top],
            "area": int(found.mask.sum()),
            "segmentation": encode_mask(found.mask),
        }


def export_open_vocabulary(out: Path, *, concepts: Sequence[str], seed: int, per_concept: int) -> tuple[int, int]:
    """Write the set in LVIS's layout; returns the numbers of pictures and annotations."""
    numbers = {word: number for number, word in enumerate(WORDS, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    for concept in concepts:
        for index in range(per_concept):
            scene, spec = draw_learning_scene(concept, seed=seed_for(seed, "open_vocabulary", index), objects=(2, 5))
            (located,) = locate_objects(scene, spec=spec)
            number = len(images) + 1
            name = f"{number:06d}.png"
            (out / "pictures" / name).write_bytes(encode_png(render_scene(scene, spec=spec)[0])[0])
            shown = {getattr(found.entry, group) for found in located for group in GROUPS}
            absent = [numbers[word] for word in WORDS if word not in shown]
            rng = random.Random(seed_for(seed, "absent", concept, index))
            side = spec.canvas
            images.append(
                {
                    "id": number,
                    "width": side,
                    "height": side,
                    "file_name": name,
                    "license": 1,
                    "neg_category_ids": sorted(rng.sample(absent, min(ABSENT, len(absent)))),
                    "not_exhaustive_category_ids": [],
                }
            )
            for found in located:
                annotations += _describe_object(found, picture=number, first=len(annotations) + 1, numbers=numbers)
    categories = [
        {"id": number, "name": word, "synonyms": [word, *SYNONYMS.get(word, ())], "supercategory": str(find_attribute(word))}
        for word, number in numbers.items()
    ]
    content = {
        "info": {"description": "Drawn objects with every word that fits them", "version": "1"},
        "licenses": [{"id": 1, "name": LICENCE, "url": ""}],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }
    write_text(out / "annotations.json", json.dumps(content, separators=(",", ":")))
    return len(images), len(annotations)


def _draw_hit(concept: str, *, shown: str, seed: int) -> Image.Image:
    """One picture as a search gives it: mostly one object of the word cut out with some ground, else a small scene."""
    rng = random.Random(seed)
    avoid = concept if shown != concept else None
    if rng.random() < 0.3:
        scene, spec = draw_learning_scene(shown, seed=seed, objects=(1, 3), avoid=avoid)
        return render_scene(scene, spec=spec)[0]
    scene, spec = draw_learning_scene(shown, seed=seed, objects=(1, 1), avoid=avoid)
    picture, ((found,),) = render_scene(scene, spec=spec)[0], locate_objects(scene, spec=spec)
    left, top, right, bottom = found.box
    edges = [rng.randint(2, 7) for _ in range(4)]
    box: Corners = (
        max(0, left - edges[0]),
        max(0, top - edges[1]),
        min(spec.canvas, right + edges[2]),
        min(spec.canvas, bottom + edges[3]),
    )
    return picture.crop(box)


def export_image_search(
    out: Path, *, concepts: Sequence[str], seed: int, per_concept: int, wrong_share: float
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Write a folder per query with its pictures; returns their numbers, and the pictures that show something else."""
    files: dict[str, dict[str, str]] = {}
    wrong: list[str] = []
    for concept in concepts:
        folder = out / concept
        folder.mkdir(parents=True, exist_ok=True)
        group = find_attribute(concept)
        others = [word for word in WORDS if word != concept and find_attribute(word) == group]
        for index in range(per_concept):
            key = seed_for(seed, "image_search", concept, index)
            rng = random.Random(key)
            shown = rng.choice(others) if rng.random() < wrong_share else concept
            name = f"{index:03d}.png"
            (folder / name).write_bytes(encode_png(_draw_hit(concept, shown=shown, seed=key))[0])
            files[f"{concept}/{name}"] = {"query": concept, "origin": f"workshop:{key}", "creator": "visloop.scenes", "licence": LICENCE}
            if shown != concept:
                wrong.append(f"{concept}/{name}")
    content = {"licence": LICENCE, "groups": {concept: find_attribute(concept) for concept in concepts}, "files": files}
    write_text(out / "sources.json", json.dumps(content, indent=1, sort_keys=True))
    return dict.fromkeys(concepts, per_concept), tuple(wrong)


def export_collection(
    out: Path,
    *,
    concepts: Sequence[str] = WORDS,
    seed: int,
    pictures_per_concept: int = 40,
    hits_per_concept: int = 40,
    wrong_share: float = 0.1,
) -> CollectionReport:
    """Write both sources of learning data for ``concepts`` under ``out`` (see the module's text for the files).

    Base concepts belong among the ``concepts`` as well: they are what a novel one is easily taken for. Objects of a concept have any
    other words, base and novel.

    Args:
        pictures_per_concept: pictures of the open-vocabulary set in which a concept surely occurs.
        hits_per_concept: pictures in a concept's search folder.
        wrong_share: share of these that show another word of the same kind instead, 0-1.

    Raises:
        ConfigError: an unknown or doubled concept, a number below 1, or a share outside 0-1.
    """
    unknown = [concept for concept in concepts if concept not in WORDS]
    if unknown or not concepts or len(set(concepts)) != len(concepts):
        raise ConfigError(f"concepts must be different words of {WORDS}, got {tuple(concepts)}")
    if pictures_per_concept < 1 or hits_per_concept < 1 or not 0 <= wrong_share <= 1:
        raise ConfigError(
            f"expected numbers of pictures from 1 and a share of 0-1, got {pictures_per_concept}, {hits_per_concept} and {wrong_share}"
        )
    pictures, annotations = export_open_vocabulary(out / "open_vocabulary", concepts=concepts, seed=seed, per_concept=pictures_per_concept)
    found, wrong = export_image_search(
        out / "image_search", concepts=concepts, seed=seed, per_concept=hits_per_concept, wrong_share=wrong_share
    )
    return CollectionReport(pictures=pictures, annotations=annotations, found=found, wrong=wrong)
