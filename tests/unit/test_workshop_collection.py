"""The sources of learning data: what they say about a picture is what is drawn in it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visloop.errors import ConfigError
from visloop.scenes.export import assign_split
from visloop.scenes.recognize import read_object
from visloop.scenes.workshop import BOXES, WORKSHOP, find_attribute
from visloop.scenes.workshop_collection import GROUPS, WORDS, CollectionReport, draw_learning_scene, encode_mask, export_collection

CONCEPTS = ("star", "teal", "grid", "circle")


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CollectionReport]:
    out = tmp_path_factory.mktemp("collection")
    return out, export_collection(out, concepts=CONCEPTS, seed=4, pictures_per_concept=6, hits_per_concept=40)


def decode_mask(value: dict[str, list[int]]) -> np.ndarray:
    """Run lengths back to a mask, written apart from the encoder."""
    height, width = value["size"]
    mask = np.zeros(height * width, dtype=bool)
    position, on = 0, False
    for count in value["counts"]:
        mask[position : position + count] = on
        position, on = position + count, not on
    assert position == height * width
    return mask.reshape(width, height).T


@pytest.mark.parametrize("seed", range(20))
def test_run_lengths_keep_the_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((rng.integers(1, 9), rng.integers(1, 9))) < rng.choice([0.0, 0.2, 0.8, 1.0])
    assert np.array_equal(decode_mask(encode_mask(mask)), mask)


def test_annotations_fit_their_pictures(collection: tuple[Path, CollectionReport]) -> None:
    folder = collection[0] / "open_vocabulary"
    content = json.loads((folder / "annotations.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    assert {category["name"]: category["supercategory"] for category in content["categories"]} == {
        word: find_attribute(word) for word in WORDS
    }
    assert len({entry["id"] for entry in content["annotations"]}) == len(content["annotations"]) == collection[1].annotations
    shown: dict[int, set[str]] = {}
    objects: dict[tuple[int, tuple[float, ...]], dict[str, str]] = {}
    for entry in content["annotations"]:
        mask = decode_mask(entry["segmentation"])
        left, top, width, height = map(int, entry["bbox"])
        outside = mask.copy()
        outside[top : top + height, left : left + width] = False
        assert not outside.any() and mask.sum() == entry["area"]
        word = names[entry["category_id"]]
        shown.setdefault(entry["image_id"], set()).add(word)
        objects.setdefault((entry["image_id"], tuple(entry["bbox"])), {})[str(find_attribute(word))] = word
    read = right = 0
    for image in content["images"]:
        picture = Image.open(folder / "pictures" / image["file_name"])
        assert picture.size == (image["width"], image["height"])
        absent = {names[number] for number in image["neg_category_ids"]}
        assert absent and not absent & shown[image["id"]]
        if image["width"] == WORKSHOP.canvas:
            tone = tuple(float(value) for value in np.median(np.asarray(picture).reshape(-1, 3), axis=0))
            for (number, (left, top, width, height)), words in objects.items():
                if number == image["id"] and read < 30:
                    found = read_object(picture, (left - 1, top - 1, left + width + 1, top + height + 1), tone=tone, spec=WORKSHOP)
                    read += 1
                    right += found is not None and all(getattr(found, group) == words[group] for group in GROUPS)
    assert read > 20 and right / read > 0.9
    for place, concept in enumerate(CONCEPTS):
        assert all(concept in shown[number] for number in range(place * 6 + 1, place * 6 + 7))


def test_search_folders_show_their_concept_except_for_the_wrong_ones(collection: tuple[Path, CollectionReport]) -> None:
    out, report = collection
    sources = json.loads((out / "image_search" / "sources.json").read_text())
    files = sorted(path.relative_to(out / "image_search").as_posix() for path in (out / "image_search").rglob("*.png"))
    assert files == sorted(sources["files"])
    assert sources["groups"] == {concept: find_attribute(concept) for concept in CONCEPTS}
    assert all(entry["licence"] and entry["origin"] for entry in sources["files"].values())
    assert 0.03 < len(report.wrong) / len(files) < 0.2
    # Colours are read without the outline: a search picture may be a crop of any size.
    teal = np.array(next(color.rgb for color in WORKSHOP.colors if color.name == "teal"), dtype=float)
    for name in files:
        if name.startswith("teal/"):
            pixels = np.asarray(Image.open(out / "image_search" / name), dtype=float)
            near = int((np.linalg.norm(pixels - teal, axis=2) < 60).sum())
            assert (near < 20) if name in report.wrong else (near > 40), name


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        export_collection(tmp_path / name, concepts=("star",), seed=1, pictures_per_concept=2, hits_per_concept=2)
    first, second = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("a", "b")
    )
    assert first == second and len(first) == 6


def test_learning_scenes_are_train_scenes_of_both_styles() -> None:
    drawn = [draw_learning_scene("hexagon", seed=seed, objects=(1, 3)) for seed in range(60)]
    assert {assign_split(scene) for scene, _ in drawn} == {"train"}
    assert {spec.name for _, spec in drawn} == {WORKSHOP.name, BOXES.name}
    assert all(any(entry.shape == "hexagon" for entry in scene.boxes[0]) for scene, _ in drawn)


@pytest.mark.parametrize(
    "changes", [{"concepts": ("blob",)}, {"concepts": ()}, {"concepts": ("star", "star")}, {"wrong_share": 2.0}, {"hits_per_concept": 0}]
)
def test_impossible_collections_are_refused(changes: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        export_collection(tmp_path, **({"concepts": ("star",), "seed": 0} | changes))  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
