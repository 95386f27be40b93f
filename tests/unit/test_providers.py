"""Outside data: LVIS files, pictures by search from a server that misbehaves, folders, and what keeps train and validation apart."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.fixtures.outside_data import Server, make_lvis, png, serve_search, write_lvis
from visloop.assistant.providers import ImageSearchProvider, OpenVocabularyProvider, check_no_leak, picture_hash, split_instances
from visloop.datasets.folder_search import FolderImageSearch
from visloop.datasets.image_search import FetchLimits, HttpImageSearch, SearchReport, check_address
from visloop.datasets.images import store_picture
from visloop.datasets.lvis import draw_mask, normalize_name, read_lvis
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_text
from visloop.records.assistant import Instance

# LVIS


@pytest.fixture
def lvis(tmp_path: Path) -> Path:
    return write_lvis(tmp_path)


def test_categories_are_found_by_name_synonym_and_plural(lvis: Path) -> None:
    found = read_lvis(lvis)
    names = {
        word: category.id if (category := found.find_category(word)) else None
        for word in ("Kitty", "cats", "traffic light", "stoplights", "bird")
    }
    assert names == {"Kitty": 1, "cats": 1, "traffic light": 3, "stoplights": 3, "bird": None}
    assert normalize_name("Traffic_light_(signal)") == "traffic light"


def test_negatives_are_never_the_concept_and_the_confusable_come_first(lvis: Path) -> None:
    found = read_lvis(lvis)
    tiers = [[region.id for region in tier] for tier in found.find_negatives(1)]
    assert tiers == [[13], [14], [11]], "same group, looked for and absent, beside a cat"
    assert [[region.id for region in tier] for tier in found.find_negatives(2)] == [[10, 12], [], []], "a dog was not looked for"
    content = make_lvis()
    content["annotations"].append({"id": 15, "image_id": 1, "category_id": 2, "bbox": [0, 0, 5, 5]})
    lvis.write_text(json.dumps(content))
    first, _, _ = read_lvis(lvis).find_negatives(1)
    assert [region.id for region in first] == [13], "what is called a dog and a cat is no negative of either"


def test_masks_from_polygons_and_run_lengths(lvis: Path) -> None:
    content = make_lvis()
    content["annotations"][2]["segmentation"] = {"size": [10, 20], "counts": [10, 10, 180]}
    lvis.write_text(json.dumps(content))
    regions = {region.id: region for region in read_lvis(lvis).regions}
    polygon = draw_mask(regions[10], width=20, height=10)
    assert polygon is not None and polygon.shape == (10, 20) and polygon[2, 2] and not polygon[8, 8]
    runs = draw_mask(regions[12], width=20, height=10)
    assert runs is not None and runs[:, 1].all() and runs.sum() == 10, "run lengths go down the columns"
    assert draw_mask(regions[13], width=20, height=10) is None
    with pytest.raises(DataError, match="200 pixels for a picture of 10x10"):
        draw_mask(regions[12], width=10, height=10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categories": None}, "annotations"),
        ({"annotations": [{"id": 1, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, r"annotations\[0\]: image 9"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 21, 1]}]}, "does not lie in its picture of 20x10"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1]}]}, "a bbox of four numbers"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}] * 2}, "annotation 1 occurs twice"),
        ({"images": [{"id": 1, "width": 20, "height": 10, "file_name": "../secret.png"}]}, "no path below"),
        ({"images": [{"id": 1, "width": 20, "height": 10, "file_name": "/etc/passwd"}]}, "no path below"),
        ({"images": [{"id": 1, "width": 0, "height": 10, "file_name": "a.png"}]}, r"images\[0\].width"),
    ],
)
def test_broken_annotation_files_are_refused_with_the_place(lvis: Path, change: dict[str, Any], message: str) -> None:
    lvis.write_text(json.dumps(make_lvis(**change)))
    with pytest.raises(DataError, match=message):
        read_lvis(lvis)


def test_lvis_pictures_by_their_address(lvis: Path) -> None:
    images = [
        {"id": number, "width": 20, "height": 10, "coco_url": f"http://images.example/val2017/{number:04d}.jpg"} for number in (1, 2, 3, 4)
    ]
    lvis.write_text(json.dumps(make_lvis(images=images)))
    assert read_lvis(lvis).pictures[2].path == "val2017/0002.jpg"
    lvis.write_text("[]")
    with pytest.raises(DataError, match="no images"):
        read_lvis(lvis)


def test_open_vocabulary_instances(lvis: Path, tmp_path: Path) -> None:
    provider = OpenVocabularyProvider(read_lvis(lvis), pictures=tmp_path, out=tmp_path / "out", prefix="taught/")
    found = provider.collect("kitty", tool="SEG", positives=5, negatives=2, seed=1)
    assert sorted((entry.positive, entry.label, entry.group) for entry in found) == [
        (False, "dog", "animal"),
        (False, "traffic light", "road"),
        (True, "kitty", "animal"),
        (True, "kitty", "animal"),
    ]
    first = next(entry for entry in found if entry.origin == "p1.png#10")
    assert first.box == (0.0, 0.0, 5.0, 5.0) and first.licence == "CC BY 2.0" and first.image.startswith("taught/")
    assert first.mask is not None
    with Image.open(tmp_path / "out" / first.mask.removeprefix("taught/")) as mask:
        assert mask.size == (20, 10) and np.asarray(mask)[2, 2] == 255
    assert all(entry.mask is None for entry in provider.collect("cat", tool="LOC", positives=5, negatives=0, seed=1))
    assert {entry.split for entry in found if entry.positive} == {"train", "validation"}
    check_no_leak(found)
    assert provider.collect("bird", tool="LOC", positives=5, negatives=5, seed=1) == []
    assert provider.collect("cat", tool="LOC", positives=1, negatives=0, seed=1)[0].id in {
        entry.id for entry in provider.collect("cat", tool="LOC", positives=2, negatives=0, seed=1)
    }


def test_a_damaged_picture_is_skipped_with_its_reason(lvis: Path, tmp_path: Path) -> None:
    (tmp_path / "p2.png").write_bytes(png()[:40])
    (tmp_path / "p3.png").write_bytes(png(size=(30, 10)))
    provider = OpenVocabularyProvider(read_lvis(lvis), pictures=tmp_path, out=tmp_path / "out")
    found = provider.collect("cat", tool="LOC", positives=5, negatives=5, seed=1)
    assert [entry.origin for entry in found if entry.positive] == ["p1.png#10"]
    assert {skip.where for skip in provider.skipped} == {"annotation 12", "annotation 13"}
    assert any("30x10 pixels, the file says 20x10" in skip.reason for skip in provider.skipped)


# splits


def make_instance(name: str, picture: str, *, positive: bool = True) -> Instance:
    image = f"aa/{hash_text(picture)}.png"
    return Instance(id=name, tool="LOC", concept="cat", image=image, positive=positive, split="train", source="open_vocabulary")


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=25), st.integers(0, 3))
def test_no_picture_is_ever_in_both_splits(entries: list[tuple[int, bool]], seed: int) -> None:
    instances = [make_instance(str(index), str(picture), positive=positive) for index, (picture, positive) in enumerate(entries)]
    split = split_instances(instances, validation_share=0.35, seed=seed)
    check_no_leak(split)
    assert [entry.id for entry in split] == [entry.id for entry in instances]
    pictures = {entry.image for entry in instances if entry.positive}
    if len(pictures) > 1:
        assert {entry.split for entry in split if entry.positive} == {"train", "validation"}
    backwards = split_instances(instances[::-1], validation_share=0.35, seed=seed)
    assert backwards[::-1] == split, "the order of the instances does not matter"


def test_the_share_of_validation_pictures() -> None:
    instances = [make_instance(str(number), str(number), positive=number < 40) for number in range(60)]
    split = split_instances(instances, validation_share=0.35, seed=0)
    assert [sum(entry.positive is positive and entry.split == "validation" for entry in split) for positive in (True, False)] == [14, 7]


def test_leaks_and_unnamed_pictures_are_refused() -> None:
    one, other = make_instance("1", "x"), make_instance("2", "x")
    with pytest.raises(DataError, match="in train and in validation"):
        check_no_leak([one, Instance(**{**_fields(other), "split": "validation"})])
    with pytest.raises(DataError, match="content hash"):
        picture_hash("pictures/cat.png")
    with pytest.raises(ConfigError):
        split_instances([one], validation_share=1.0, seed=0)


def _fields(instance: Instance) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in Instance.__slots__}


# search


@pytest.fixture
def server() -> Iterator[Server]:
    with serve_search() as found:
        yield found


def open_search(server: Server, out: Path, **changes: Any) -> HttpImageSearch:
    limits = FetchLimits(timeout=0.5, deadline=0.8, max_bytes=200_000)
    return HttpImageSearch(f"{server.base}/search", out=out, **{"limits": limits, "allow_private": True} | changes)


def test_pictures_come_with_address_licence_and_hash(server: Server, tmp_path: Path) -> None:
    server.name("teal  car", "/good/1.png", "/moved", "/good/2.png")
    server.hits["teal car"] = server.hits.pop("teal  car")
    report = SearchReport()
    found = open_search(server, tmp_path).find_pictures("teal/../car", most=2, report=report)
    assert [(entry.origin, entry.licence, entry.creator) for entry in found] == [
        (f"{server.base}/page/good/1.png", "by 4.0", "Ann"),
        (f"{server.base}/page/moved", "by 4.0", "Ann"),
    ]
    assert all((tmp_path / entry.name).is_file() and entry.sha256 in entry.name for entry in found)
    safe = {"unstable__include_sensitive_results": ["false"]}
    assert server.queries == [{"q": ["teal car"], "page_size": ["4"], "license": ["cc0,pdm,by,by-sa"], **safe}]
    assert (report.seen, report.stored, report.refused) == (2, 2, [])


def test_hits_are_asked_for_page_by_page_as_far_as_needed(server: Server, tmp_path: Path) -> None:
    server.name("x", *(f"/good/{'a' * number}.png" for number in range(1, 8)))
    report = SearchReport()
    found = open_search(server, tmp_path, page_size=2).find_pictures("x", most=3, report=report)
    assert len(found) == 3 and [query.get("page") for query in server.queries] == [None, ["2"]]
    assert {query["page_size"][0] for query in server.queries} == {"2"}
    server.hits["x"][2:] = [{"url": 3}]
    found = open_search(server, tmp_path, page_size=2).find_pictures("x", most=5, report=report)
    assert len(found) == 2, "what came before the page that failed is not lost"
    assert report.refused[-1].where == "x, page 2" and "does not answer as Openverse does" in report.refused[-1].reason
    with pytest.raises(ConfigError, match="a page of 0 hits"):
        open_search(server, tmp_path, page_size=0)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/page.html", "content type 'text/html'"),
        ("/lie", "picture"),
        ("/huge", "more than 200000 bytes"),
        ("/silent", "no answer within 0.5 seconds"),
        ("/loop", "more than 3 redirects"),
        ("/inside", "no plain http"),
        ("/missing", "status 404"),
    ],
)
def test_what_is_no_picture_is_refused_with_a_reason(server: Server, tmp_path: Path, path: str, reason: str) -> None:
    server.name("x", path, "/good/1.png")
    report = SearchReport()
    found = open_search(server, tmp_path).find_pictures("x", most=2, report=report)
    assert len(found) == 1 and len(report.refused) == 1
    assert reason in report.refused[0].reason and report.refused[0].where.endswith(path)
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 1, "nothing of it is left"


def test_a_server_that_drips_does_not_hold_the_run(server: Server, tmp_path: Path) -> None:
    server.name("x", "/drip")
    report, started = SearchReport(), time.monotonic()
    assert open_search(server, tmp_path).find_pictures("x", most=1, report=report) == []
    assert 0.7 < time.monotonic() - started < 3.0
    assert "not whole after 0.8 seconds" in report.refused[0].reason


@pytest.mark.parametrize("licence", ["by-nc", None, ""])
def test_other_licences_are_not_taken(server: Server, tmp_path: Path, licence: str | None) -> None:
    server.name("x", "/good/1.png", licence=licence)
    report = SearchReport()
    assert open_search(server, tmp_path).find_pictures("x", most=1, report=report) == []
    assert "licence" in report.refused[0].reason


def test_what_the_service_marks_as_sensitive_is_not_fetched(server: Server, tmp_path: Path) -> None:
    server.name("x", "/good/1.png", "/good/22.png", "/good/333.png", "/good/4444.png")
    marks = ({"mature": True}, {"mature": False, "unstable__sensitivity": []}, {"unstable__sensitivity": ["sensitive_text"]})
    for hit, mark in zip(server.hits["x"], marks, strict=False):
        hit |= mark
    report = SearchReport()
    found = open_search(server, tmp_path).find_pictures("x", most=4, report=report)
    assert [entry.origin.rpartition("/")[2] for entry in found] == ["22.png", "4444.png"]
    assert [(skip.where.rpartition("/")[2], skip.reason) for skip in report.refused] == [
        ("1.png", "marked by the service: mature"),
        ("333.png", "marked by the service: sensitive_text"),
    ]
    assert "mature" not in server.queries[0], "whatever its value is, that parameter of Openverse's switches sensitive results on"
    assert len(open_search(server, tmp_path, safe=False).find_pictures("x", most=4, report=report)) == 4
    assert "unstable__include_sensitive_results" not in server.queries[1]


def test_private_addresses_are_refused_unless_allowed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"127\.0\.0\.1, which is not public"):
        open_search(server, tmp_path, allow_private=False).find_pictures("x", most=1, report=SearchReport())
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", ("10.1.2.3", 80)), (0, 0, 0, "", ("93.184.216.34", 80))])
    with pytest.raises(DataError, match=r"10\.1\.2\.3"):
        check_address("https://public.example/a.png", allow_private=False)
    for address in ("ftp://a/b", "http://user:secret@a/b", "http://a:99999/", "https:///x", "file:///etc/passwd"):
        with pytest.raises(DataError, match="address"):
            check_address(address, allow_private=True)


def test_a_search_that_speaks_another_language_is_an_error(server: Server, tmp_path: Path) -> None:
    search = HttpImageSearch(f"{server.base}/page.html", out=tmp_path, allow_private=True)
    with pytest.raises(DataError, match="image search for 'x': content type"):
        search.find_pictures("x", most=1, report=SearchReport())
    server.hits["x"] = [{"url": 3}]
    with pytest.raises(DataError, match="does not answer as Openverse does"):
        open_search(server, tmp_path).find_pictures("x", most=1, report=SearchReport())
    assert open_search(server, tmp_path).find_pictures("///", most=1, report=SearchReport()) == []
    with pytest.raises(ConfigError):
        HttpImageSearch("file:///etc", out=tmp_path)


def test_search_instances_with_named_negatives(server: Server, tmp_path: Path) -> None:
    server.name("teal", "/good/1.png", "/good/22.png", "/good/1.png", "/same")
    server.name("cyan", "/same", "/good/333.png")
    asked: list[tuple[str, str, int]] = []

    def name_negatives(concept: str, group: str, most: int) -> tuple[str, ...]:
        asked.append((concept, group, most))
        return ("Teal", "cyan")

    provider = ImageSearchProvider(open_search(server, tmp_path), prefix="taught", name_negatives=name_negatives, confusable=2)
    found = provider.collect("teal", tool="SELECT", positives=3, negatives=4, seed=0)
    assert [(entry.label, entry.positive) for entry in found] == [("teal", True)] * 3 + [("cyan", False)]
    assert asked == [("teal", "", 2)], "the concept itself is no negative"
    assert len({entry.image for entry in found}) == 4, "a picture that is found for both counts for the concept"
    assert all(entry.source == "image_search" and entry.licence == "by 4.0" and entry.origin for entry in found)
    check_no_leak(found)


# folders


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "library"
    for concept, count in (("teal", 4), ("pink", 3), ("striped", 2), ("red_car", 1)):
        (root / concept).mkdir(parents=True)
        for number in range(count):
            (root / concept / f"{number}.png").write_bytes(png((number, sum(concept.encode()) % 256, 9)))
    return root


def test_folder_instances_take_siblings_as_negatives(library: Path, tmp_path: Path) -> None:
    groups = {"teal": "color", "pink": "color", "red car": "thing", "striped": "pattern", "absent": "color"}
    source = FolderImageSearch(library, out=tmp_path / "out", groups=groups, licence="CC0-1.0")
    provider = ImageSearchProvider(source)
    found = provider.collect("teal", tool="CLASSIFY", positives=3, negatives=5, seed=0)
    assert [(entry.label, entry.group) for entry in found] == [("teal", "color")] * 3 + [("pink", "color")] * 3
    assert found[0].origin == "teal/0.png" and found[0].licence == "CC0-1.0"
    assert provider.collect("Red  Car", tool="CLASSIFY", positives=3, negatives=0, seed=0)[0].group == "thing"
    assert provider.collect("unknown", tool="CLASSIFY", positives=3, negatives=5, seed=0) == []


def test_folders_say_their_licence_and_groups_in_a_file(library: Path, tmp_path: Path) -> None:
    (library / "sources.json").write_text(json.dumps({"licence": "CC0-1.0", "groups": {"teal": "color", "pink": "color"}, "files": {}}))
    source = FolderImageSearch(library, out=tmp_path / "out")
    assert (source.find_group("Teal"), source.list_siblings("teal")) == ("color", ("pink",))
    assert source.find_pictures("teal", most=1, report=SearchReport())[0].licence == "CC0-1.0"
    (library / "sources.json").write_text('{"groups": ["teal"]}')
    with pytest.raises(DataError, match=r"sources\.json: needs licence and groups"):
        FolderImageSearch(library, out=tmp_path / "out")


def test_readers_take_what_the_drawn_world_writes(tmp_path: Path) -> None:
    from visloop.scenes.workshop_collection import export_collection

    export_collection(
        tmp_path, concepts=("star", "circle", "teal", "red"), seed=0, pictures_per_concept=4, hits_per_concept=3, wrong_share=0.0
    )
    folder = tmp_path / "open_vocabulary"
    annotations = read_lvis(folder / "annotations.json")
    provider = OpenVocabularyProvider(annotations, pictures=folder / "pictures", out=tmp_path / "out")
    found = provider.collect("teal", tool="SEG", positives=4, negatives=8, seed=0)
    assert sum(entry.positive for entry in found) == 4 and not provider.skipped
    boxes = {(entry.image, entry.box) for entry in found if entry.positive}
    assert not boxes & {(entry.image, entry.box) for entry in found if not entry.positive}, "a teal star is no negative of teal"
    assert all(entry.mask and entry.licence for entry in found) and found[0].group == "color"
    search = ImageSearchProvider(FolderImageSearch(tmp_path / "image_search", out=tmp_path / "out"))
    pictures = search.collect("star", tool="SELECT", positives=3, negatives=3, seed=0)
    assert [entry.label for entry in pictures] == ["star"] * 3 + ["circle"] * 3 and pictures[0].group == "shape" and pictures[0].licence


@pytest.mark.parametrize("query", ["../library/teal", "..", "", "/etc", "teal/../pink"])
def test_a_term_never_becomes_a_path(library: Path, tmp_path: Path, query: str) -> None:
    source = FolderImageSearch(library, out=tmp_path / "out")
    assert source.find_pictures(query, most=5, report=SearchReport()) == []


def test_folders_skip_links_and_damage(library: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png((99, 99, 99)))
    (library / "pink" / "0.png").unlink()
    (library / "pink" / "0.png").symlink_to(secret)
    (library / "pink" / "1.png").write_bytes(b"broken")
    (library / "link").symlink_to(tmp_path)
    report = SearchReport()
    source = FolderImageSearch(library, out=tmp_path / "out")
    assert [entry.origin for entry in source.find_pictures("pink", most=9, report=report)] == ["pink/2.png"]
    assert [skip.where for skip in report.refused] == ["pink/0.png", "pink/1.png"]
    assert source.find_pictures("link", most=9, report=report) == []
    with pytest.raises(DataError, match="no folder"):
        FolderImageSearch(tmp_path / "nowhere", out=tmp_path)


def test_stored_pictures_have_names_that_splits_can_read(tmp_path: Path) -> None:
    stored = store_picture(Image.new("RGB", (8, 8)), out=tmp_path)
    assert picture_hash(f"any/{stored.name}") == stored.sha256
