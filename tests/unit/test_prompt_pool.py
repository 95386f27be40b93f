"""Snapshots of learned prompts: the same bytes for the same pool, and whatever happened to them is noticed and named."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from visloop.errors import DataError
from visloop.records.assistant import PromptEntry
from visloop.tools.prompt_pool import ENTRIES_NAME, TENSORS_NAME, Floats, LearnedPrompt, PromptPool, load_pool, rank_prompts, save_pool

RESTORE = "dvc checkout.*make rollback"
Tensors = dict[str, Floats]


def make(name: str, *, concept: str = "pink", tool: str = "CLIP", group: str = "color", width: int = 6, tokens: int = 2) -> LearnedPrompt:
    draw = np.random.default_rng(sum(map(ord, name)))
    entry = PromptEntry(
        id=name,
        tool=tool,
        concept=concept,
        backend="clip",
        placement="text prefix",
        instance_ids=("i",),
        train_accuracy=1.0,
        validation_accuracy=0.9,
        base_accuracy=1.0,
        base_accuracy_before=1.0,
        group=group,
    )
    return LearnedPrompt(entry=entry, feature=draw.random(4, dtype=np.float32), prompt=draw.random((tokens, width), dtype=np.float32))


POOL = PromptPool((make("a"), make("b", concept="teal", tokens=3), make("c", tool="LOC", group="", width=8)))


def spoil_tensors(folder: Path, change: Callable[[Tensors], object]) -> None:
    """Write other tensors without checksums, as a snapshot had none before there were any."""
    tensors = load_file(folder / TENSORS_NAME)
    change(tensors)
    save_file(tensors, folder / TENSORS_NAME)


def test_a_snapshot_comes_back_and_a_missing_folder_is_the_empty_pool(tmp_path: Path) -> None:
    save_pool(POOL, tmp_path / "pool")
    again = load_pool(tmp_path / "pool")
    assert [prompt.entry for prompt in again.prompts] == [prompt.entry for prompt in POOL.prompts] and again.hash == POOL.hash
    for first, second in zip(POOL.prompts, again.prompts, strict=True):
        assert np.array_equal(first.feature, second.feature) and np.array_equal(first.prompt, second.prompt)
    save_pool(PromptPool(), tmp_path / "empty")
    assert load_pool(tmp_path / "empty").prompts == () == load_pool(tmp_path / "nothing").prompts


def test_the_same_pool_gives_the_same_bytes_and_no_file_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_pool(POOL, tmp_path / "first")
    save_pool(load_pool(tmp_path / "first"), tmp_path / "second")
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second and set(first) == {ENTRIES_NAME, TENSORS_NAME}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visloop.records.shards.os.replace", fail)
    with pytest.raises(DataError, match="No space left"):
        save_pool(PromptPool(), tmp_path / "first")
    assert {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir()} == first


def test_a_snapshot_killed_between_its_files_is_noticed(tmp_path: Path) -> None:
    save_pool(POOL, tmp_path)
    tensors = (tmp_path / TENSORS_NAME).read_bytes()
    save_pool(POOL.drop_prompts(["c"]), tmp_path)
    (tmp_path / TENSORS_NAME).write_bytes(tensors)
    with pytest.raises(DataError, match=rf"{ENTRIES_NAME}: not as it was written.*{RESTORE}"):
        load_pool(tmp_path)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    """In the header, in the tensors, and in the records: none is read as another pool."""
    save_pool(POOL, tmp_path)
    for name in (TENSORS_NAME, ENTRIES_NAME):
        data = (tmp_path / name).read_bytes()
        for place in range(len(data)):
            spoiled = bytearray(data)
            spoiled[place] ^= 1
            (tmp_path / name).write_bytes(spoiled)
            with pytest.raises(DataError, match=str(tmp_path)):
                load_pool(tmp_path)
        (tmp_path / name).write_bytes(data)
    load_pool(tmp_path)


def test_the_spoiled_file_is_named(tmp_path: Path) -> None:
    save_pool(POOL, tmp_path)
    path = tmp_path / TENSORS_NAME
    path.write_bytes(path.read_bytes()[:-1] + b"\x3e")
    with pytest.raises(DataError, match=rf"{TENSORS_NAME}: not as it was written: the checksum is \w{{16}}, the header.*{RESTORE}"):
        load_pool(tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=rf"{TENSORS_NAME}: not a safetensors file.*{RESTORE}"):
        load_pool(tmp_path)


@pytest.mark.parametrize("name", [TENSORS_NAME, ENTRIES_NAME])
def test_a_missing_file_is_called_missing(tmp_path: Path, name: str) -> None:
    save_pool(POOL, tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is missing: half of a snapshot.*{RESTORE}"):
        load_pool(tmp_path)


def test_a_snapshot_from_before_there_were_checksums_is_read(tmp_path: Path) -> None:
    save_pool(POOL, tmp_path)
    spoil_tensors(tmp_path, lambda tensors: None)
    assert load_pool(tmp_path).hash == POOL.hash
    save_file(load_file(tmp_path / TENSORS_NAME), tmp_path / TENSORS_NAME, metadata={"checksum": "?"})
    with pytest.raises(DataError, match="holds no checksums"):
        load_pool(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["a.prompt"].__setitem__((0, 1), np.nan), "tensor a.prompt of CLIP for 'pink' holds values that are not"),
        (lambda tensors: tensors["b.feature"].__setitem__(0, np.inf), "tensor b.feature of CLIP for 'teal' holds values that are not"),
        (lambda tensors: tensors.update({"b.feature": np.ones(5, np.float32)}), "b.feature .*is 5 wide, a.feature of the same owner 4"),
        (lambda tensors: tensors.update({"b.prompt": np.ones((2, 7), np.float32)}), "b.prompt .*is 7 wide, a.prompt of the same owner 6"),
        (lambda tensors: tensors.update({"a.prompt": np.ones(6, np.float32)}), "a.prompt .*the shape .6,. of float32, wanted 2 dimensions"),
        (lambda tensors: tensors.update({"a.feature": np.ones(0, np.float32)}), "a.feature .*the shape .0,. of float32, wanted 1 dim"),
        (lambda tensors: tensors.update({"a.feature": np.ones(4, np.float64)}), "a.feature .*of float64, wanted"),
        (lambda tensors: tensors.pop("c.prompt"), "tensor c.prompt of LOC for 'pink' is missing"),
        (lambda tensors: tensors.update({"d.prompt": np.ones((2, 6), np.float32)}), "tensor d.prompt belongs to no prompt"),
    ],
    ids=["nan", "inf", "feature width", "prompt width", "dimensions", "empty", "type", "no tensor", "no record"],
)
def test_tensors_that_do_not_fit_are_refused_without_checksums_too(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
) -> None:
    save_pool(POOL, tmp_path)
    spoil_tensors(tmp_path, change)
    with pytest.raises(DataError, match=rf"{TENSORS_NAME}: .*{message}.*{RESTORE}"):
        load_pool(tmp_path)


def test_an_id_occurs_once(tmp_path: Path) -> None:
    save_pool(POOL, tmp_path)
    path = tmp_path / ENTRIES_NAME
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, json.dumps(json.loads(lines[0]) | {"concept": "teal"})]) + "\n")
    with pytest.raises(DataError, match=rf"{ENTRIES_NAME}:4: id a occurred before.*{RESTORE}"):
        load_pool(tmp_path)


def test_words_of_one_owner_may_have_exemplars_of_different_kinds(tmp_path: Path) -> None:
    """REPLACE of the embedded default keeps a mask for a shape and three numbers for a colour."""
    pool = PromptPool((make("s", tool="PASTE", group="shape", width=32, tokens=32), make("t", tool="PASTE", width=3, tokens=1)))
    save_pool(pool, tmp_path)
    assert load_pool(tmp_path).hash == pool.hash


def test_features_of_two_models_are_not_compared() -> None:
    assert [prompt.entry.id for prompt, _ in rank_prompts(POOL.prompts, POOL.prompts[1].feature, most=1)] == ["b"]
    with pytest.raises(DataError, match=r"prompt a of CLIP for 'pink': a feature of shape \(4,\), the model gives \(5,\)"):
        rank_prompts(POOL.prompts, np.ones(5, np.float32), most=1)
