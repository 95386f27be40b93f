"""Samples on disk: scenes with their questions as PNG files and records, split by what the scenes show."""

import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from visloop.errors import ConfigError, DataError
from visloop.ids import make_id, seed_for
from visloop.records.reasoning import GroundTruth, Sample, Split
from visloop.scenes.pictures import encode_png, render_scene
from visloop.scenes.programs import FAMILIES, Family
from visloop.scenes.questions import STATEMENT_BOXES, SceneQuestion, draw_questions, families_of
from visloop.scenes.wordings import Wording
from visloop.scenes.world import DEFAULT_WORLD, Scene, WorldSpec, draw_scene, hash_content, scene_from_json, scene_to_json

SPLIT_SHARES: dict[Split, float] = {"train": 0.7, "validation": 0.15, "test": 0.15}
"""The share of all scenes that belongs to each split. It never depends on how many samples are asked for."""

SOURCE, LICENCE = "scenes", "Apache-2.0"


@dataclass(frozen=True, slots=True)
class ExportedSplit:
    """The records of one split, row by row, with the scenes they ask about (in the order of the groups)."""

    samples: list[Sample] = field(default_factory=list)
    ground_truth: list[GroundTruth] = field(default_factory=list)
    scenes: list[Scene] = field(default_factory=list)


def assign_split(scene: Scene) -> Split:
    """The split of a scene, decided by the hash of its objects alone: the same picture content is never in two splits."""
    place = int(hash_content(scene.boxes)[:12], 16) / 16**12
    for split, share in SPLIT_SHARES.items():
        if place < share:
            return split
        place -= share
    return "test"


def _draw_scenes(seed: int, *, families: Sequence[Family], spec: WorldSpec) -> Iterator[Scene]:
    """Endless different scenes; three boxes as often as the statement family's share of ``families``."""
    share = families.count("statement") / len(families)
    seen: set[str] = set()
    index = 0
    while True:
        scene_seed = seed_for(seed, "export", index)
        boxes = STATEMENT_BOXES if random.Random(scene_seed).random() < share else 1
        scene = draw_scene(scene_seed, spec=spec, boxes=boxes)
        index += 1
        content = hash_content(scene.boxes)
        if content not in seen:
            seen.add(content)
            yield scene


def _draw_balanced(
    scene: Scene, *, seed: int, families: Sequence[Family], drawn: Counter[Family], count: int, spec: WorldSpec, wording: Wording
) -> list[SceneQuestion]:
    """Up to ``count`` questions of one scene, the families that were drawn least first; ``drawn`` is brought up to date."""
    questions: list[SceneQuestion] = []
    each = 1 + (count - 1) // len(families)
    for family in sorted(families, key=lambda name: drawn[name]):
        wanted = min(each, count - len(questions))
        found = draw_questions(scene, seed=seed, spec=spec, families=(family,), count=wanted, wording=wording)
        questions += found
        drawn[family] += len(found)
        if len(questions) == count:
            break
    return questions


def save_picture(picture: Image.Image, *, out: Path) -> tuple[str, str]:
    """Write one picture as ``<first two hex>/<sha256>.png`` under ``out``; returns this name and the hash."""
    data, digest = encode_png(picture)
    path = out / digest[:2] / f"{digest}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return f"{digest[:2]}/{path.name}", digest


def save_pictures(scene: Scene, *, out: Path, spec: WorldSpec = DEFAULT_WORLD) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Write the scene's pictures as ``<first two hex>/<sha256>.png`` under ``out``; returns these names and the hashes."""
    saved = [save_picture(picture, out=out) for picture in render_scene(scene, spec=spec)]
    return tuple(name for name, _ in saved), tuple(digest for _, digest in saved)


def make_records(
    scene: Scene, question: SceneQuestion, *, split: Split, images: tuple[str, ...], image_hashes: tuple[str, ...]
) -> tuple[Sample, GroundTruth]:
    """The sample and the ground truth of one question; the scene is kept as JSON text."""
    sample_id = make_id("scenes", scene.id, question.form, question.question)
    sample = Sample(
        id=sample_id,
        images=images,
        question=question.question,
        answer=question.answer,
        answer_type=question.answer_type,
        family=question.family,
        split=split,
        source=SOURCE,
        group=scene.id,
        image_hashes=image_hashes,
        licence=LICENCE,
    )
    return sample, GroundTruth(sample_id=sample_id, scene=format_scene(scene), steps=question.steps)


def format_scene(scene: Scene) -> str:
    """The scene as one line of JSON, the form in which ``GroundTruth.scene`` holds it."""
    return json.dumps(scene_to_json(scene), separators=(",", ":"))


def parse_scene(text: str) -> Scene:
    """Read ``GroundTruth.scene``.

    Raises:
        DataError: not the JSON of a scene.
    """
    try:
        return scene_from_json(json.loads(text))
    except json.JSONDecodeError as error:
        raise DataError(f"a scene must be JSON text, got {text[:80]!r}: {error}") from error


def export_dataset(
    out: Path,
    *,
    seed: int,
    counts: Mapping[Split, int],
    families: Sequence[Family] = FAMILIES,
    spec: WorldSpec = DEFAULT_WORLD,
    questions_per_scene: int = 1,
    image_prefix: str = "",
    wording: Wording = "train",
) -> dict[Split, ExportedSplit]:
    """Draw samples and write their pictures under ``out``; records are returned, the caller writes them.

    Scenes are split by their content, and the family that a split has fewest of comes first, so the families are balanced
    to within what the scenes allow. The order of ``counts`` does not matter, and a split does not depend on the others.

    Args:
        out: folder of the pictures, e.g. ``data/raw/scenes/images``.
        counts: number of samples (questions) per split.
        questions_per_scene: at most this many questions share a scene (a ``group``).
        image_prefix: what to put before the pictures' names in the records: the path of ``out`` relative to the data folder.
        wording: which wordings the questions use (held-out ones are for tests of wording).

    Raises:
        ConfigError: an unknown split or family, a negative count, no family, or questions_per_scene below 1.
    """
    if not set(counts) <= set(SPLIT_SHARES) or min(counts.values(), default=0) < 0:
        raise ConfigError(f"counts must map {sorted(SPLIT_SHARES)} to numbers from 0, got {dict(counts)}")
    if not families or not set(families) <= set(FAMILIES) or len(set(families)) != len(families):
        raise ConfigError(f"families must be different ones of {FAMILIES}, got {tuple(families)}")
    if questions_per_scene < 1:
        raise ConfigError(f"questions_per_scene must be at least 1, got {questions_per_scene}")
    exported: dict[Split, ExportedSplit] = {split: ExportedSplit() for split in counts}
    drawn: dict[Split, Counter[Family]] = {split: Counter() for split in counts}
    missing: dict[Split, dict[int, int]] = {}
    for split, count in counts.items():
        statements = round(count * families.count("statement") / len(families))
        missing[split] = {STATEMENT_BOXES: statements, 1: count - statements}
    prefix = f"{image_prefix.rstrip('/')}/" if image_prefix else ""
    scenes = _draw_scenes(seed, families=families, spec=spec)
    while any(number for left in missing.values() for number in left.values()):
        scene = next(scenes)
        split, boxes = assign_split(scene), len(scene.boxes)
        count = min(questions_per_scene, missing.get(split, {}).get(boxes, 0))
        if count == 0:
            continue
        possible = [family for family in families if family in families_of(boxes)]
        questions = _draw_balanced(scene, seed=seed, families=possible, drawn=drawn[split], count=count, spec=spec, wording=wording)
        if not questions:
            continue
        missing[split][boxes] -= len(questions)
        names, hashes = save_pictures(scene, out=out, spec=spec)
        exported[split].scenes.append(scene)
        for question in questions:
            images = tuple(prefix + name for name in names)
            sample, truth = make_records(scene, question, split=split, images=images, image_hashes=hashes)
            exported[split].samples.append(sample)
            exported[split].ground_truth.append(truth)
    return exported
