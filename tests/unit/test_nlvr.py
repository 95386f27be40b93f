"""The NLVR reader on a small synthetic folder in the same layout; on the real one too where VISLOOP_NLVR names it."""

import json
import os
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from visloop.datasets.images import ImageLimits, ReadReport, import_image, store_picture
from visloop.datasets.nlvr import BOX_STARTS, read_nlvr, split_boxes
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_file

COLORS = ("black", "yellow", "blue")


def draw_triptych(number: int) -> Image.Image:
    picture = Image.new("RGBA", (400, 100), (128, 128, 128, 255))
    pen = ImageDraw.Draw(picture)
    for place, start in enumerate(BOX_STARTS):
        pen.rectangle((start, 0, start + 99, 99), fill=(211, 211, 211))
        corner = (start + 5 + number % 50, 5 + number // 50)  # no two pictures are alike
        pen.rectangle((*corner, corner[0] + 10 + place, corner[1] + 20), fill=COLORS[(number + place) % 3])
    return picture


def write_nlvr(root: Path, rows: dict[str, list[dict]]) -> Path:
    number = 0
    for part, lines in rows.items():
        (root / part).mkdir(parents=True)
        (root / part / f"{part}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
        for line in lines:
            folder = root / part / "images" / line["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            for permutation in range(6):
                draw_triptych(number).save(folder / f"{part}-{line['identifier']}-{permutation}.png")
                number += 1
    return root


def make_line(identifier: str, *, sentence: str | None = None, label: str = "true", directory: str = "0") -> dict:
    number = identifier.split("-")[0]
    return {
        "sentence": sentence or f"There are  {number} yellow squares.",
        "label": label,
        "identifier": identifier,
        "directory": directory,
        "evals": {"r0": label},
        "structured_rep": [[], [], []],
    }


@pytest.fixture
def folder(tmp_path) -> Path:
    dev = [make_line(f"{sentence}-{picture}") for sentence in range(12) for picture in range(3)]
    test = [make_line("70-0", label="false"), make_line("70-1"), make_line("71-0", directory="3")]
    return write_nlvr(tmp_path / "nlvr", {"dev": dev, "test": test})


def test_a_line_becomes_a_statement_about_three_pictures(folder, tmp_path):
    result = read_nlvr(folder, out=tmp_path / "images", image_prefix="raw/nlvr/images")
    sample = result.select_split("test")[0]
    assert (sample.question, sample.answer, sample.answer_type) == ("There are 70 yellow squares.", "false", "boolean")
    assert (sample.group, sample.family, sample.source, sample.licence) == ("nlvr-test-70", "statement", "nlvr", "CC-BY-4.0")
    assert len(sample.images) == len(sample.image_hashes) == 3
    whole = Image.open(folder / "test/images/0/test-70-0-0.png").convert("RGB")
    for name, digest, start in zip(sample.images, sample.image_hashes, BOX_STARTS, strict=True):
        path = tmp_path / "images" / name.removeprefix("raw/nlvr/images/")
        assert hash_file(path) == digest
        with Image.open(path) as box:
            assert box.size == (100, 100)
            assert box.convert("RGB").tobytes() == whole.crop((start, 0, start + 100, 100)).tobytes()


def test_counts_groups_and_ids(folder, tmp_path):
    result = read_nlvr(folder, out=tmp_path / "images")
    assert (result.report.read, result.report.kept, result.report.skipped) == (39, 39, [])
    assert len({sample.id for sample in result.samples}) == 39
    assert len(result.select_split("test")) == 3
    assert len(result.select_split("train")) + len(result.select_split("validation")) == 36
    assert {sample.group for sample in result.select_split("test")} == {"nlvr-test-70", "nlvr-test-71"}


def test_reading_twice_gives_the_same_samples_and_files(folder, tmp_path):
    first = read_nlvr(folder, out=tmp_path / "images")
    files = sorted(path.name for path in (tmp_path / "images").rglob("*") if path.is_file())
    assert read_nlvr(folder, out=tmp_path / "images").samples == first.samples
    assert sorted(path.name for path in (tmp_path / "images").rglob("*") if path.is_file()) == files


def test_a_sentence_never_stands_on_both_sides_of_the_split(folder, tmp_path):
    result = read_nlvr(folder, out=tmp_path / "images", validation_share=0.5)
    train, validation = result.select_split("train"), result.select_split("validation")
    assert train
    assert validation
    assert not {sample.group for sample in train} & {sample.group for sample in validation}


def test_groups_joined_by_a_sentence_or_a_scene_stay_together(tmp_path):
    # the same words under other identifiers, and the same pictures in another order
    rows = [make_line(f"{number}-0", sentence=f"sentence {number}") for number in range(30)]
    rows += [make_line(f"{number + 100}-0", sentence=f"Sentence {number}.") for number in range(30)]
    root = write_nlvr(tmp_path / "nlvr", {"dev": rows})
    for number in range(0, 28, 2):
        picture = Image.open(root / f"dev/images/0/dev-{number}-0-0.png")
        boxes = [picture.crop((start, 0, start + 100, 100)) for start in BOX_STARTS]
        for start, box in zip(BOX_STARTS, boxes[::-1], strict=True):
            picture.paste(box, (start, 0))
        picture.save(root / f"dev/images/0/dev-{number + 1}-0-0.png")
    result = read_nlvr(root, out=tmp_path / "images", splits=["train", "validation"], validation_share=0.5)
    split = {sample.group.removeprefix("nlvr-dev-"): sample.split for sample in result.samples}
    assert set(split.values()) == {"train", "validation"}
    for number in range(30):
        assert split[str(number)] == split[str(number + 100)]
    for number in range(0, 28, 2):
        assert split[str(number)] == split[str(number + 1)]


def test_all_orders_of_the_boxes_on_request(folder, tmp_path):
    result = read_nlvr(folder, out=tmp_path / "images", splits=["test"], permutations=range(6))
    assert len(result.samples) == 18
    assert len({sample.id for sample in result.samples}) == 18
    assert {sample.group for sample in result.samples} == {"nlvr-test-70", "nlvr-test-71"}


def test_limits_take_whole_groups(folder, tmp_path):
    result = read_nlvr(folder, out=tmp_path / "images", counts={"train": 7, "test": 3}, validation_share=0.0)
    groups = [sample.group for sample in result.select_split("train")]
    assert len(groups) == 6
    assert all(groups.count(group) == 3 for group in groups)
    assert len(result.select_split("test")) == 3


def damage_picture(root: Path) -> None:
    path = root / "dev/images/0/dev-0-0-0.png"
    path.write_bytes(path.read_bytes()[:100])


def remove_picture(root: Path) -> None:
    (root / "dev/images/0/dev-0-0-0.png").unlink()


def shrink_picture(root: Path) -> None:
    draw_triptych(0).resize((200, 50)).save(root / "dev/images/0/dev-0-0-0.png")


def shift_boxes(root: Path) -> None:
    picture = draw_triptych(0)
    picture.paste((211, 211, 211), (100, 0, 120, 100))
    picture.save(root / "dev/images/0/dev-0-0-0.png")


def change_line(**values):
    def change(root: Path) -> None:
        path = root / "dev/dev.json"
        lines = path.read_text().splitlines()
        lines[0] = json.dumps({**json.loads(lines[0]), **values})
        path.write_text("\n".join(lines) + "\n")

    return change


def cut_line(root: Path) -> None:
    path = root / "dev/dev.json"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0][:40], *lines[1:]]) + "\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_picture, "damaged or cut short"),
        (remove_picture, "cannot be read"),
        (shrink_picture, "200x50"),
        (shift_boxes, "columns 100 to 149"),
        (cut_line, "Invalid JSON"),
        (change_line(label="maybe"), "label"),
        (change_line(identifier="../../x"), "identifier"),
        (change_line(directory="../images"), "directory"),
        (change_line(sentence=""), "sentence"),
        (change_line(identifier="0-1"), "twice"),
    ],
)
def test_a_broken_row_is_counted_with_its_reason(folder, tmp_path, damage, reason):
    damage(folder)
    result = read_nlvr(folder, out=tmp_path / "images", max_skip_rate=0.1)
    [skip] = result.report.skipped
    assert "dev.json:" in skip.where
    assert reason in skip.reason
    assert (result.report.read, result.report.kept, len(result.samples)) == (39, 38, 38)
    with pytest.raises(DataError, match="1 of 39 rows cannot be used"):
        read_nlvr(folder, out=tmp_path / "images", max_skip_rate=0.01)


def test_a_folder_that_is_not_nlvr_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.root must be the folder"):
        read_nlvr(tmp_path, out=tmp_path / "images")


def test_impossible_settings_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="permutations"):
        read_nlvr(folder, out=tmp_path, permutations=(6,))
    with pytest.raises(ConfigError, match="validation_share"):
        read_nlvr(folder, out=tmp_path, validation_share=1.5)


def test_boxes_are_cut_where_they_stand():
    picture = draw_triptych(1)
    first, second, third = split_boxes(picture)
    assert [box.getpixel((0, 0))[:3] for box in (first, second, third)] == [(211, 211, 211)] * 3
    assert [box.getpixel((99, 99))[:3] for box in (first, second, third)] == [(211, 211, 211)] * 3


# pictures


def test_an_imported_picture_keeps_its_bytes(tmp_path):
    source = tmp_path / "photo.jpg"
    Image.effect_noise((40, 30), 50).convert("RGB").save(source, quality=90)
    stored = import_image(source, out=tmp_path / "store")
    path = tmp_path / "store" / stored.name
    assert path.read_bytes() == source.read_bytes()
    assert path.name == f"{stored.sha256}.jpg"
    assert import_image(source.read_bytes(), out=tmp_path / "store") == stored


@pytest.mark.parametrize(
    ("data", "limits", "reason"),
    [
        (b"not a picture", ImageLimits(), "not a picture"),
        (b"", ImageLimits(), "not a picture"),
        ("narrow", ImageLimits(), "2x50 pixels"),
        ("long", ImageLimits(max_aspect=10), "aspect up to 10"),
        ("large", ImageLimits(max_bytes=100), "at most 100"),
        ("cut", ImageLimits(), "damaged or cut short"),
    ],
)
def test_unusable_pictures_are_refused_and_nothing_is_left(tmp_path, data, limits, reason):
    if isinstance(data, str):
        size = {"narrow": (2, 50), "long": (200, 10)}.get(data, (50, 50))
        path = tmp_path / "picture.png"
        Image.effect_noise(size, 90).save(path)
        data = path.read_bytes()[: 600 if size == (50, 50) and reason.startswith("damaged") else None]
    with pytest.raises(DataError, match=reason) as caught:
        import_image(data, out=tmp_path / "store", limits=limits)
    assert "candidate" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.png"):
        import_image(tmp_path / "nowhere.png", out=tmp_path)


def test_equal_pictures_share_one_file(tmp_path):
    first, second = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "red")
    assert store_picture(first, out=tmp_path) == store_picture(second, out=tmp_path)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_an_empty_source_is_refused():
    with pytest.raises(DataError, match="there is no row"):
        ReadReport().check_rate("x", limit=0.5)


# the real data


@pytest.mark.skipif("VISLOOP_NLVR" not in os.environ, reason="VISLOOP_NLVR names no folder with NLVR")
def test_the_public_release_is_read_whole(tmp_path):
    result = read_nlvr(Path(os.environ["VISLOOP_NLVR"]), out=tmp_path)
    test = result.select_split("test")
    dev = [sample for sample in result.samples if sample.split != "test"]
    assert (len(dev), len(test), result.report.skipped) == (989, 990, [])
    assert (len({sample.group for sample in dev}), len({sample.group for sample in test})) == (267, 266)
    always_true = [sum(sample.answer == "true" for sample in part) / len(part) for part in (dev, test)]
    assert always_true == pytest.approx([0.553, 0.562], abs=5e-4)
    train, validation = ({tuple(sorted(s.image_hashes)) for s in result.select_split(split)} for split in ("train", "validation"))
    assert not train & validation
