"""Exported samples: complete, balanced, reproducible, and split so that no content is on two sides."""

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from visloop.errors import ConfigError, DataError
from visloop.scenes.export import SPLIT_SHARES, ExportedSplit, assign_split, export_dataset, parse_scene
from visloop.scenes.pictures import render_scene
from visloop.scenes.verify import verify_steps
from visloop.scenes.world import draw_scene, hash_content

COUNTS = {"train": 84, "validation": 28, "test": 28}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ExportedSplit]]:
    out = tmp_path_factory.mktemp("images")
    return out, export_dataset(out, seed=7, counts=COUNTS, questions_per_scene=2, image_prefix="raw/images")


def test_counts_and_families_are_as_asked(exported: tuple[Path, dict[str, ExportedSplit]]) -> None:
    for split, part in exported[1].items():
        assert len(part.samples) == len(part.ground_truth) == COUNTS[split]
        families = Counter(sample.family for sample in part.samples)
        assert len(families) == 7
        assert max(families.values()) - min(families.values()) <= 1, families
        assert max(Counter(sample.group for sample in part.samples).values()) == 2
        assert {sample.group for sample in part.samples} == {scene.id for scene in part.scenes}


def test_records_fit_their_pictures_and_scenes(exported: tuple[Path, dict[str, ExportedSplit]]) -> None:
    out, splits = exported
    for split, part in splits.items():
        for sample, truth in zip(part.samples, part.ground_truth, strict=True):
            scene = parse_scene(truth.scene)
            assert (truth.sample_id, sample.group, sample.split, assign_split(scene)) == (sample.id, scene.id, split, split)
            assert len(sample.images) == (3 if sample.family == "statement" else 1)
            for name, digest, picture in zip(sample.images, sample.image_hashes, render_scene(scene), strict=True):
                assert name == f"raw/images/{digest[:2]}/{digest}.png"
                path = out / digest[:2] / f"{digest}.png"
                assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
                with Image.open(path) as stored:
                    assert stored.tobytes() == picture.tobytes()
            check = verify_steps(scene, gold_steps=truth.steps, gold_answer=sample.answer, steps=truth.steps, answer=sample.answer)
            assert check.score == 100


def test_splits_share_no_content_picture_or_id(exported: tuple[Path, dict[str, ExportedSplit]]) -> None:
    parts = list(exported[1].values())
    for values in (
        [{digest for sample in part.samples for digest in sample.image_hashes} for part in parts],
        [{hash_content(scene.boxes) for scene in part.scenes} for part in parts],
        [{sample.id for sample in part.samples} for part in parts],
    ):
        assert sum(map(len, values)) == len(set.union(*values))
    assert sum(len(part.samples) for part in parts) == len({sample.id for part in parts for sample in part.samples})


def test_same_seed_gives_the_same_records_in_any_order(tmp_path: Path, exported: tuple[Path, dict[str, ExportedSplit]]) -> None:
    backwards = dict(reversed(COUNTS.items()))
    again = export_dataset(tmp_path, seed=7, counts=backwards, questions_per_scene=2, image_prefix="raw/images")
    assert again == exported[1]
    alone = export_dataset(tmp_path, seed=7, counts={"test": COUNTS["test"]}, questions_per_scene=2, image_prefix="raw/images")
    assert alone["test"] == exported[1]["test"]
    other = export_dataset(tmp_path, seed=8, counts={"test": 28}, questions_per_scene=2)
    assert not {sample.id for sample in other["test"].samples} & {sample.id for sample in alone["test"].samples}


def test_split_depends_on_content_only_and_keeps_its_shares() -> None:
    scenes = [draw_scene(seed) for seed in range(2000)]
    for scene in scenes[:50]:
        assert assign_split(scene) == assign_split(replace(scene, seed=scene.seed + 1, id="other"))
    found = Counter(map(assign_split, scenes))
    for split, share in SPLIT_SHARES.items():
        assert abs(found[split] / len(scenes) - share) < 0.04


def test_one_family_only(tmp_path: Path) -> None:
    part = export_dataset(tmp_path, seed=1, counts={"test": 9}, families=("statement",), questions_per_scene=4)["test"]
    assert [sample.family for sample in part.samples] == ["statement"] * 9
    assert max(Counter(sample.group for sample in part.samples).values()) == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"counts": {"dev": 3}},
        {"counts": {"test": -1}},
        {"families": ()},
        {"families": ("count", "count")},
        {"families": ("riddle",)},
        {"questions_per_scene": 0},
    ],
)
def test_impossible_request_is_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        export_dataset(tmp_path, **({"seed": 1, "counts": {"test": 2}} | changes))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["", "[1", "[]", '{"boxes": []}', "null"])
def test_text_that_is_no_scene_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        parse_scene(text)
