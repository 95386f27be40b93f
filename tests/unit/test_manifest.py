"""Stage manifests."""

from dataclasses import replace
from pathlib import Path

import pytest

from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest, write_manifest

BASE = Manifest(stage="generate", inputs={"pool": "aa"}, config={"seed": 0}, code="c0", counts={"paths": 4})


def test_round_trip_and_stable_bytes(tmp_path: Path) -> None:
    write_manifest(tmp_path, BASE)
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    assert read_manifest(tmp_path) == BASE
    write_manifest(tmp_path, BASE)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


def test_key_changes_with_everything_that_decides_the_output() -> None:
    changed = [
        replace(BASE, stage="assess"),
        replace(BASE, inputs={"pool": "bb"}),
        replace(BASE, config={"seed": 1}),
        replace(BASE, code="c1"),
    ]
    assert len({BASE.key, *(manifest.key for manifest in changed)}) == 5


def test_key_ignores_what_the_output_was() -> None:
    assert replace(BASE, files={"a": "x"}, counts={}).key == BASE.key


def test_absent_and_broken_manifests(tmp_path: Path) -> None:
    assert read_manifest(tmp_path) is None
    (tmp_path / MANIFEST_NAME).write_text('{"stage": "generate"')  # cut
    with pytest.raises(DataError, match="not a stage manifest"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text('{"stage": "generate"}')  # keys missing
    with pytest.raises(DataError, match="3 errors"):
        read_manifest(tmp_path)


def test_changed_and_missing_outputs_are_named(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    manifest = replace(BASE, files={name: hash_file(tmp_path / name) for name in ("a", "b", "c")})
    assert check_files(tmp_path, manifest) == []
    (tmp_path / "b").write_text("changed")
    (tmp_path / "c").unlink()
    assert check_files(tmp_path, manifest) == ["b", "c"]
