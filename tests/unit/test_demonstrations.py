"""The four pools: values that only grow and vote into new ones, and snapshots that notice what happened to them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.assistant.demonstrations import DemonstrationPool, load_demonstrations, make_demonstration, save_demonstrations
from visloop.errors import DataError
from visloop.records.assistant import Demonstration

PROGRAM = "BOX0=LOC(image=IMAGE,object='kite')\nFINAL_RESULT=RESULT(var=BOX0)"


def make(instruction: str = "Where is the kite?", **changes: object) -> Demonstration:
    values: dict[str, object] = {
        "kind": "program",
        "outcome": "success",
        "task_kind": "vqa",
        "plan": ("Locate the kite.", "Show it."),
        "program": PROGRAM,
        "provenance": "seed",
    }
    return make_demonstration(instruction=instruction, **(values | changes))  # type: ignore[arg-type]


FAILURE = make(outcome="failure", reason="Step 1 looks for a bird.", provenance="failed")


def test_the_four_pools_are_kept_apart_by_task_kind_and_in_order() -> None:
    entries = (make("a"), make("b", kind="plan"), FAILURE, make("c", task_kind="editing"), make("d"))
    pool = DemonstrationPool(entries)
    assert [entry.instruction for entry in pool.find("program", "success", "vqa")] == ["a", "d"]
    assert pool.find("plan", "success", "vqa") == (entries[1],)
    assert pool.find("program", "failure", "vqa") == (FAILURE,)
    assert pool.find("plan", "failure", "vqa") == () == pool.find("program", "success", "tagging")
    assert pool.count() == {"plan/success/vqa": 1, "program/failure/vqa": 1, "program/success/editing": 1, "program/success/vqa": 2}


def test_what_says_the_same_is_added_once_whatever_its_history() -> None:
    pool = DemonstrationPool((make(),))
    again = replace(make(provenance="repaired", trace_id="t", cycle=3), id="other", score=5)
    assert pool.add([again]) is pool
    assert len(pool.add([make("x"), replace(make("x"), id="y")]).entries) == 2
    different = (
        make(plan=("Locate the kite. Show it.",)),
        make(outcome="failure", reason="r"),
        make(kind="plan"),
        make(task_kind="editing"),
    )
    assert len(pool.add(different).entries) == 5
    assert len(pool.entries) == 1, "the old snapshot is as it was"


def test_a_taken_id_is_refused() -> None:
    with pytest.raises(DataError, match="occurs twice"):
        DemonstrationPool((make("a"),)).add([replace(make("b"), id=make("a").id)])


def test_votes_change_scores_and_evict_only_what_falls_below() -> None:
    seed, learned = make("a"), make("b", provenance="accepted")
    pool = DemonstrationPool((seed, learned))
    twice = pool.vote({seed.id: -1, learned.id: -1, "gone": 1}, -2).vote({seed.id: -1, learned.id: -1}, -2)
    assert [entry.score for entry in twice.entries] == [-2, -2], "at the limit an entry stays"
    assert twice.vote({seed.id: -1, learned.id: 1}, -2).entries == (replace(learned, score=-1),)
    kept = twice.vote({seed.id: -1, learned.id: -1}, -2, keep_seeds=True)
    assert kept.entries == (replace(seed, score=-3),)
    assert [entry.score for entry in pool.entries] == [0, 0]


def test_the_hash_is_of_contents_and_scores_not_of_order() -> None:
    first, second = make("a"), make("b")
    pool = DemonstrationPool((first, second))
    assert pool.hash == DemonstrationPool((second, first)).hash
    others = (pool.vote({first.id: 1}, -2), pool.vote({first.id: -1}, 0), DemonstrationPool((replace(first, instruction="c"), second)))
    assert len({pool.hash, *(other.hash for other in others)}) == 4


def test_snapshot_comes_back_and_a_missing_folder_is_the_empty_pool(tmp_path: Path) -> None:
    pool = DemonstrationPool((make("Quote \"this\" é 'that'\nand this"), FAILURE)).vote({FAILURE.id: 1}, -2)
    save_demonstrations(pool, tmp_path / "pool")
    again = load_demonstrations(tmp_path / "pool")
    assert again.entries == pool.entries and again.hash == pool.hash
    assert load_demonstrations(tmp_path / "nothing").entries == ()


def spoil(folder: Path, line: int, change: dict[str, object] | str) -> None:
    path = folder / "demonstrations.jsonl"
    lines = path.read_text().splitlines()
    lines[line - 1] = change if isinstance(change, str) else json.dumps(json.loads(lines[line - 1]) | change)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("line", "change", "message"),
    [
        (2, '{"id": "x"', r"demonstrations\.jsonl:2: not a Demonstration"),
        (1, {"outcome": "perhaps"}, r"demonstrations\.jsonl:1: .*outcome"),
        (2, {"reason": " "}, r"demonstrations\.jsonl:2: a failure without a reason"),
        (1, {"program": ""}, r"demonstrations\.jsonl:1: a program demonstration without a program"),
        (2, {"instruction": ""}, r"demonstrations\.jsonl:2: no instruction"),
        (2, {"id": make("a").id}, r"demonstrations\.jsonl:2: id \w+ occurred before"),
        (1, {"instruction": "another"}, r"demonstrations\.jsonl: its entries have the hash"),
        (1, {"score": 7}, "restore the snapshot"),
    ],
)
def test_a_corrupt_snapshot_is_refused_and_named(tmp_path: Path, line: int, change: dict[str, object] | str, message: str) -> None:
    save_demonstrations(DemonstrationPool((make("a"), FAILURE)), tmp_path)
    spoil(tmp_path, line, change)
    with pytest.raises(DataError, match=message):
        load_demonstrations(tmp_path)


def test_a_half_written_snapshot_is_noticed(tmp_path: Path) -> None:
    save_demonstrations(DemonstrationPool((make("a"),)), tmp_path)
    (tmp_path / "snapshot.json").write_text("{")
    with pytest.raises(DataError, match=r"snapshot\.json:1"):
        load_demonstrations(tmp_path)
    (tmp_path / "snapshot.json").unlink()
    with pytest.raises(DataError, match="not written to its end"):
        load_demonstrations(tmp_path)


@pytest.mark.parametrize("changes", [{"program": " "}, {"kind": "plan", "plan": ()}, {"outcome": "failure"}, {"instruction": " "}])
def test_what_teaches_nothing_is_no_demonstration(changes: dict[str, object]) -> None:
    with pytest.raises(DataError):
        make(**changes)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(["program", "plan"]), st.integers(-2, 2)), max_size=12))
def test_adding_in_parts_is_adding_at_once(drawn: list[tuple[str, str, int]]) -> None:
    entries = [make(name, kind=kind) for name, kind, _ in drawn]
    one_by_one = DemonstrationPool()
    for entry in entries:
        one_by_one = one_by_one.add([entry])
    assert one_by_one.hash == DemonstrationPool().add(entries).hash == DemonstrationPool().add(entries[::-1]).hash
    votes = {entry.id: vote for entry, (_, _, vote) in zip(entries, drawn, strict=True)}
    assert {entry.id for entry in one_by_one.vote(votes, 0).entries} == {name for name, vote in votes.items() if vote >= 0}
