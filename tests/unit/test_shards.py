"""Typed JSONL shards."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import make_assessed, make_path, make_sample
from visloop.errors import DataError
from visloop.records.assistant import Critique, Proposal
from visloop.records.reasoning import AssessedPath, ReasoningPath, Sample
from visloop.records.shards import read_shard, read_shards, write_shard, write_text


def test_records_come_back_equal_and_bytes_are_stable(tmp_path: Path) -> None:
    paths = [make_path("p0"), make_path("p1", status="failed", answer=None, steps=(), replies=(), error="timeout")]
    assert write_shard(tmp_path / "a.jsonl", paths) == 2
    assert read_shard(tmp_path / "a.jsonl", ReasoningPath) == paths
    write_shard(tmp_path / "b.jsonl", read_shard(tmp_path / "a.jsonl", ReasoningPath))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_nested_records_and_foreign_letters_come_back(tmp_path: Path) -> None:
    items = [make_assessed("p0"), make_assessed("p1", verdict="wrong", score=None, texts=("größe 三", "done"))]
    write_shard(tmp_path / "a.jsonl", items)
    assert read_shard(tmp_path / "a.jsonl", AssessedPath) == items


def test_records_from_before_tokens_were_counted_are_read(tmp_path: Path) -> None:
    proposal = Proposal(task_id="t", plan=(), program="", author="llm:m", replies=("p",), prompt_tokens=7, new_tokens=2)
    critique = Critique(id="c", trace_id="r", grain="global", culprit="nothing", prompt_tokens=7, new_tokens=2)
    path = tmp_path / "a.jsonl"
    for record in (proposal, critique):
        write_shard(path, [record])
        assert read_shard(path, type(record)) == [record]
        path.write_text(path.read_text().replace(',"prompt_tokens":7,"new_tokens":2', ""))
        assert read_shard(path, type(record)) == [replace(record, prompt_tokens=0, new_tokens=0)]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda text: text[:-20], r"a\.jsonl:2: not a Sample"),  # cut in the middle of the last record
        (lambda text: text.replace('"train"', '"trian"', 1), r"a\.jsonl:1: not a Sample: split"),  # unknown split
        (lambda text: text.replace('"question":', '"quest":', 1), r"a\.jsonl:1: not a Sample: question"),  # key renamed
        (lambda text: "[]\n" + text, r"a\.jsonl:1"),  # no object
    ],
)
def test_damage_is_named_with_file_and_line(tmp_path: Path, damage, complaint: str) -> None:
    path = tmp_path / "a.jsonl"
    write_shard(path, [make_sample("q0"), make_sample("q1")])
    path.write_text(damage(path.read_text()))
    with pytest.raises(DataError, match=complaint):
        read_shard(path, Sample)


def test_missing_and_binary_files_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        read_shard(tmp_path / "none.jsonl", Sample)
    (tmp_path / "bin.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="UTF-8"):
        read_shard(tmp_path / "bin.jsonl", Sample)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.jsonl"):
        read_shards(tmp_path / "empty", Sample)


def test_shards_of_a_folder_are_read_in_name_order(tmp_path: Path) -> None:
    for name in ("002", "000", "001"):
        write_shard(tmp_path / f"{name}.jsonl", [make_sample(name)])
    assert [sample.id for sample in read_shards(tmp_path, Sample)] == ["000", "001", "002"]


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    write_text(path, "old\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("visloop.records.shards.os.fsync", full)
    with pytest.raises(DataError, match="No space left"):
        write_text(path, "new\n")
    assert path.read_text() == "old\n"
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
