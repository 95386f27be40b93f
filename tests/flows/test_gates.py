"""Every rule of every suite refuses data that breaks it, and names the row; data that keeps all rules passes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flows._gates import SUITE_NAMES, GateContext, GateResult, check_records
from flows._suites import SUITES, run_suite
from visloop.errors import ConfigError, DataError, GateError
from visloop.ids import hash_file
from visloop.records.chains import format_chain
from visloop.records.reasoning import (
    AssessedPath,
    ChatTurn,
    Prediction,
    PreferencePair,
    ReasoningPath,
    ReasoningStep,
    Sample,
    SFTExample,
)
from visloop.records.shards import write_shard

STEPS = (
    ReasoningStep(summary="look", reasoning="two red circles are there", action="continue"),
    ReasoningStep(summary="count", reasoning="that makes two", action="summary"),
)
COUNT = 6


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with pictures: six to train on, two held out, and a truncated one."""
    root = tmp_path_factory.mktemp("data")
    (root / "images").mkdir()
    for index in range(COUNT + 2):
        Image.new("RGB", (16, 16), (index * 20, 10, 200)).save(root / f"images/{index}.png")
    whole = (root / "images/0.png").read_bytes()
    (root / "images/cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "images/copy.png").write_bytes((root / f"images/{COUNT}.png").read_bytes())
    return root


def make_sample(data: Path, index: int, **changes: Any) -> Sample:
    name = f"images/{index}.png"
    sample = Sample(
        id=f"s{index}",
        images=(name,),
        question="how many red circles ?",
        answer="2",
        answer_type="number",
        family="count",
        split="train" if index < COUNT else "test",
        source="scenes",
        group=f"g{index}",
        image_hashes=(hash_file(data / name),),
    )
    return replace(sample, **changes)


def make_path(index: int, **changes: Any) -> ReasoningPath:
    path = ReasoningPath(
        id=f"p{index}",
        sample_id=f"s{index // 2}",
        index=index % 2,
        steps=STEPS,
        answer="2",
        status="finished",
        replies=("{}", "2"),
        repairs=0,
        seed=0,
        model="base",
        prompts_hash="0",
    )
    return replace(path, **changes)


def make_assessed(index: int, path: dict[str, Any] | None = None, **changes: Any) -> AssessedPath:
    assessed = AssessedPath(
        path=make_path(index, **(path or {})),
        verdict="correct",
        rule_verdict="correct",
        judge_verdict=None,
        score_status="scored",
        score=80.0,
        score_spread=0.0,
        first_error_step=None,
        band="high",
    )
    return replace(assessed, **changes)


def make_example(index: int, **changes: Any) -> SFTExample:
    turns = (ChatTurn(role="user", text="reason how many"), ChatTurn(role="assistant", text=format_chain(STEPS, "2")))
    return replace(
        SFTExample(id=f"e{index}", sample_id=f"s{index}", kind="reason", images=(f"images/{index}.png",), turns=turns), **changes
    )


def make_pair(index: int, **changes: Any) -> PreferencePair:
    pair = PreferencePair(
        id=f"d{index}",
        sample_id=f"s{index}",
        images=(f"images/{index}.png",),
        prompt="reason how many",
        chosen=format_chain(STEPS, "2"),
        rejected=format_chain(STEPS, "3"),
        chosen_path_id=f"p{2 * index}",
        rejected_path_id=f"p{2 * index + 1}",
        chosen_verdict="correct",
        rejected_verdict="wrong",
        chosen_score=80.0,
        rejected_score=None,
        strategy="best_worst",
        round=1,
    )
    return replace(pair, **changes)


def make_prediction(data: Path, index: int, **changes: Any) -> Prediction:
    sample = make_sample(data, COUNT + index % 2)
    prediction = Prediction(
        sample_id=sample.id,
        system=("direct", "agents")[index // 2],
        family=sample.family,
        group=sample.group,
        answer="2",
        correct=True,
        status="ok",
        metrics={"tokens": 12.0},
    )
    return replace(prediction, **changes)


def make_good(suite: str, data: Path) -> list[Any]:
    makers: dict[str, tuple[Callable[[int], Any], int]] = {
        "samples": (lambda index: make_sample(data, index), COUNT + 2),
        "paths": (make_path, 2 * COUNT),
        "assessed": (make_assessed, 2 * COUNT),
        "sft": (make_example, COUNT),
        "pairs": (make_pair, COUNT),
        "predictions": (lambda index: make_prediction(data, index), 4),
    }
    make, count = makers[suite]
    return [make(index) for index in range(count)]


@pytest.fixture(scope="module")
def context(data: Path) -> GateContext:
    samples = [make_sample(data, index) for index in range(COUNT + 2)]
    paths = {path.id: path.sample_id for path in make_good("paths", data)}
    return GateContext.from_samples(samples, data=data, paths=paths, max_unjudged_rate=0.25)


def check(records: Any, suite: str, context: GateContext, tmp_path: Path) -> GateResult:
    return check_records(records, suite=suite, out=tmp_path / "gate", context=context)


def read_broken(folder: Path) -> set[str]:
    result = json.loads((folder / "result.json").read_text())
    return {rule["rule"] for rule in result["rules"] if not rule["passed"] and rule["severity"] == "critical"}


@pytest.mark.parametrize("suite", SUITE_NAMES)
def test_good_records_pass(suite: str, data: Path, context: GateContext, tmp_path: Path) -> None:
    result = check(make_good(suite, data), suite, context, tmp_path)
    assert result.passed and all(rule.passed and rule.refused == 0 for rule in result.rules)
    assert result.rows == len(make_good(suite, data)) and result.quarantine is None
    assert not (tmp_path / "quarantine").exists()
    page = (tmp_path / "gate/index.html").read_text()
    assert all(rule.description in page for rule in result.rules)


def change(row: int = 1, /, **changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda records: [replace(record, **changes) if number == row else record for number, record in enumerate(records)]


def change_path(row: int = 1, /, **changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda records: [
        replace(record, path=replace(record.path, **changes)) if number == row else record for number, record in enumerate(records)
    ]


def change_all(count: int, **changes: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda records: [replace(record, **changes) if number < count else record for number, record in enumerate(records)]


def write_turns(*turns: tuple[str, str]) -> tuple[ChatTurn, ...]:
    return tuple(ChatTurn(role=role, text=text) for role, text in turns)  # type: ignore[arg-type]


BLANK_STEP = ReasoningStep(summary="look", reasoning=" ", action="continue")
SPLIT_STEP = ReasoningStep(summary="look", reasoning="first\nsecond: line", action="continue")
CLOSED = "<thoughts>\nlook: at it\n</thoughts>\n<output>2</output>"

MUTATIONS: list[tuple[str, set[str], Callable[[list[Any]], list[Any]]]] = [
    ("samples", {"not_empty"}, lambda records: []),
    ("samples", {"contract"}, change(question=7)),
    ("samples", {"ids_unique"}, change(id="s0")),
    ("samples", {"split_known", "contract"}, change(split="dev")),
    ("samples", {"answer_type_known", "contract"}, change(answer_type="colour")),
    ("samples", {"question_given"}, change(question="  ")),
    ("samples", {"answer_fits_type"}, change(answer=" ")),
    ("samples", {"answer_fits_type"}, change(answer="red")),
    ("samples", {"answer_fits_type"}, change(answer="maybe", answer_type="boolean")),
    ("samples", {"answer_fits_type"}, change(answer="the left one", answer_type="letter")),
    ("samples", {"pictures_open"}, change(images=())),
    ("samples", {"pictures_open"}, change(images=("images/none.png",))),
    ("samples", {"pictures_open"}, change(images=("images/cut.png",))),
    ("samples", {"pictures_open"}, change(images=("../secret.png",))),
    ("samples", {"pictures_open"}, change(image_hashes=())),
    ("samples", {"pictures_open"}, change(image_hashes=("0" * 64,))),
    ("samples", {"group_in_one_split"}, change(group=f"g{COUNT}")),
    ("paths", {"ids_unique"}, change(id="p0")),
    ("paths", {"index_unique"}, change(index=0)),
    ("paths", {"sample_known"}, change(sample_id="nobody")),
    ("paths", {"status_known", "contract"}, change(status="done")),
    ("paths", {"steps_parse"}, change(steps=())),
    ("paths", {"steps_parse"}, change(steps=(BLANK_STEP, STEPS[1]))),
    ("paths", {"steps_parse"}, change(steps=(SPLIT_STEP, STEPS[1]))),
    ("paths", {"answer_given"}, change(answer=None)),
    ("paths", {"replies_kept"}, change(replies=())),
    ("assessed", {"ids_unique"}, change_path(id="p0")),
    ("assessed", {"sample_known"}, change_path(sample_id="nobody")),
    ("assessed", {"verdict_known", "contract"}, change(verdict="probably")),
    ("assessed", {"score_status_known", "contract"}, change(score_status="skipped")),
    ("assessed", {"verdict_has_answer"}, change_path(answer=None, status="step_limit")),
    ("assessed", {"score_range"}, change(score=0.0)),
    ("assessed", {"score_range"}, change(score=100.5)),
    ("assessed", {"score_given"}, change(score=None)),
    ("assessed", {"score_given"}, change(score=float("nan"))),
    ("assessed", {"score_absent"}, change(score_status="not_asked")),
    ("assessed", {"unjudged_verdicts"}, change_all(4, verdict="unjudged")),
    ("assessed", {"unjudged_scores"}, change_all(4, score_status="unjudged", score=None)),
    ("sft", {"ids_unique"}, change(id="e0")),
    ("sft", {"kind_known", "contract"}, change(kind="other")),
    ("sft", {"sample_known"}, change(sample_id="nobody")),
    ("sft", {"training_split", "no_evaluation_picture"}, change(sample_id=f"s{COUNT}", images=(f"images/{COUNT}.png",))),
    ("sft", {"no_evaluation_picture", "pictures_of_sample"}, change(images=("images/copy.png",))),
    ("sft", {"pictures_of_sample"}, change(images=("images/0.png",))),
    ("sft", {"pictures_exist", "pictures_of_sample"}, change(images=())),
    ("sft", {"pictures_exist", "pictures_of_sample"}, change(images=("images/cut.png",))),
    ("sft", {"turns_ordered"}, change(turns=write_turns(("assistant", CLOSED)))),
    ("sft", {"turns_ordered"}, change(turns=write_turns(("user", "reason"), ("assistant", CLOSED), ("user", "and ?")))),
    ("sft", {"turns_ordered", "target_given"}, change(kind="general", turns=())),
    ("sft", {"target_given"}, change(kind="general", turns=write_turns(("user", "how many"), ("assistant", " ")))),
    ("sft", {"chain_parses"}, change(turns=write_turns(("user", "reason"), ("assistant", "2")))),
    ("sft", {"chain_parses"}, change(turns=write_turns(("user", "reason"), ("assistant", "<thoughts>\nlook: at it")))),
    ("sft", {"chain_parses"}, change(turns=write_turns(("user", "reason"), ("assistant", "<thoughts>\n\n</thoughts>")))),
    ("pairs", {"ids_unique"}, change(id="d0")),
    ("pairs", {"sample_known", "same_question"}, change(sample_id="nobody")),
    ("pairs", {"training_split", "no_evaluation_picture", "same_question"}, change(sample_id=f"s{COUNT}", images=(f"images/{COUNT}.png",))),
    ("pairs", {"no_evaluation_picture", "pictures_of_sample"}, change(images=("images/copy.png",))),
    ("pairs", {"pictures_of_sample"}, change(images=("images/0.png",))),
    ("pairs", {"pictures_exist", "pictures_of_sample"}, change(images=("images/none.png",))),
    ("pairs", {"texts_given"}, change(prompt="")),
    ("pairs", {"chains_differ"}, change(rejected=format_chain(STEPS, "2") + "\n")),
    ("pairs", {"same_question"}, change(rejected_path_id="p0")),
    ("pairs", {"same_question"}, change(chosen_path_id="nobody")),
    ("pairs", {"chosen_correct"}, change(chosen_verdict="unjudged")),
    ("pairs", {"chosen_correct", "scores_ordered"}, change(chosen_verdict="wrong", rejected_verdict="correct")),
    ("pairs", {"scores_ordered"}, change(strategy="margin", chosen_verdict="wrong", rejected_verdict="correct")),
    ("pairs", {"scores_ordered"}, change(strategy="margin", rejected_verdict="correct", rejected_score=80.0)),
    ("pairs", {"scores_ordered"}, change(strategy="margin", rejected_verdict="correct", rejected_score=None)),
    ("pairs", {"scores_ordered"}, change(rejected_score=0.5)),
    ("pairs", {"chosen_parses"}, change(chosen="it is 2")),
    ("predictions", {"answered_once", "same_samples"}, change(sample_id=f"s{COUNT}", group=f"g{COUNT}")),
    ("predictions", {"status_known", "contract", "same_samples"}, change(status="fine")),
    ("predictions", {"sample_known", "same_samples"}, change(sample_id="nobody")),
    ("predictions", {"held_out", "same_samples"}, change(sample_id="s0", group="g0")),
    ("predictions", {"labels_match"}, change(family="exist")),
    ("predictions", {"answer_given"}, change(answer=None)),
    ("predictions", {"metrics_finite"}, change(metrics={"score": float("nan")})),
    ("predictions", {"same_samples"}, lambda records: records[:-1]),
]


NAMES = [f"{suite}-{'+'.join(sorted(rules))}" for suite, rules, _ in MUTATIONS]


@pytest.mark.parametrize(("suite", "broken", "mutate"), MUTATIONS, ids=NAMES)
def test_broken_records_are_refused(
    suite: str, broken: set[str], mutate: Callable[[list[Any]], list[Any]], data: Path, context: GateContext, tmp_path: Path
) -> None:
    """Exactly the rules that the data breaks are named, by the error, the result and the quarantined rows alike."""
    records = mutate(make_good(suite, data))
    with pytest.raises(GateError) as caught:
        check(records, suite, context, tmp_path)
    assert read_broken(tmp_path / "gate") == broken
    assert all(rule in str(caught.value) for rule in broken) and f"gate {suite!r}" in str(caught.value)
    rows = [json.loads(line) for line in (tmp_path / f"quarantine/{suite}.jsonl").read_text().splitlines()]
    assert {rule for row in rows for rule in row["rules"]} == broken - {"not_empty"}
    if broken != {"not_empty"}:
        assert rows[0]["where"] in str(caught.value) and rows[0]["record"]


def test_every_rule_has_data_that_breaks_it(context: GateContext) -> None:
    """The list above is complete: no rule of any suite is untested (a warning is tested on its own below)."""
    tested = {(suite, rule) for suite, rules, _ in MUTATIONS for rule in rules}
    critical = {(suite, rule.meta["rule"]) for suite in SUITE_NAMES for rule in SUITES[suite](context) if rule.severity == "critical"}
    assert critical - tested == set()


def test_rate_at_the_limit_passes_and_one_more_fails(context: GateContext, data: Path, tmp_path: Path) -> None:
    records = change_all(3, verdict="unjudged")(make_good("assessed", data))
    assert check(records, "assessed", context, tmp_path).passed
    unfinished = change_path(11, answer=None, status="truncated")(records)
    unfinished = change(11, verdict="unjudged", score_status="not_asked", score=None)(unfinished)
    with pytest.raises(GateError, match="unjudged_verdicts"):  # 3 of the 11 that have an answer are over a quarter
        check(unfinished, "assessed", context, tmp_path)


def test_picture_shared_by_two_splits_is_a_warning(
    data: Path, context: GateContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = make_sample(data, COUNT)
    records = change(images=held_out.images, image_hashes=held_out.image_hashes)(make_good("samples", data))
    result = check(records, "samples", context, tmp_path)
    rule = next(rule for rule in result.rules if rule.rule == "picture_in_one_split")
    assert result.passed and not rule.passed and rule.refused == 2
    assert "picture_in_one_split" in caplog.text


def test_margin_pair_of_two_correct_chains_passes(context: GateContext, data: Path, tmp_path: Path) -> None:
    records = change(strategy="margin", rejected_verdict="correct", rejected_score=40.0)(make_good("pairs", data))
    assert check(records, "pairs", context, tmp_path).passed


def test_shards_are_read_line_by_line_and_rows_named(data: Path, context: GateContext, tmp_path: Path) -> None:
    """A truncated shard is refused with its line, beside a bad record in another file; good rows are not set aside."""
    stage = tmp_path / "reasoning/paths"
    write_shard(stage / "0000.jsonl", [make_path(0), make_path(1)])
    write_shard(stage / "0001.jsonl", [make_path(2), make_path(3, sample_id="nobody"), make_path(4)])
    second = stage / "0001.jsonl"
    second.write_bytes(second.read_bytes()[:-40])
    with pytest.raises(GateError) as caught:
        check([stage / "0000.jsonl", second], "paths", context, tmp_path / "elsewhere")
    message = str(caught.value)
    assert "0001.jsonl:3: not JSON" in message and "p3 at" in message and "0001.jsonl:2: no sample nobody" in message
    rows = [json.loads(line) for line in (tmp_path / "reasoning/quarantine/paths.jsonl").read_text().splitlines()]
    assert [(row["where"].rsplit("/", 1)[1], row["rules"]) for row in rows] == [
        ("0001.jsonl:2", ["sample_known"]),
        ("0001.jsonl:3", ["contract"]),
    ]
    assert isinstance(rows[1]["record"], str) and rows[1]["record"].startswith('{"id":"p4"')


def test_repaired_data_clears_the_quarantine(data: Path, context: GateContext, tmp_path: Path) -> None:
    stage = tmp_path / "paths"
    write_shard(stage / "0000.jsonl", [make_path(0, answer=None)])
    with pytest.raises(GateError):
        check(stage, "paths", context, tmp_path)
    assert (tmp_path / "quarantine/paths.jsonl").is_file()
    write_shard(stage / "0000.jsonl", [make_path(0)])
    assert check(stage, "paths", context, tmp_path).passed
    assert not (tmp_path / "quarantine").exists()


def test_lines_that_are_no_records_are_refused(context: GateContext, tmp_path: Path) -> None:
    stage = tmp_path / "pairs"
    stage.mkdir()
    (stage / "0.jsonl").write_bytes(b'[1,2]\n\n"text"\n{"id":"x"}\n\xff\xfe\n')
    with pytest.raises(GateError):
        check(stage, "pairs", context, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "quarantine/pairs.jsonl").read_text().splitlines()]
    assert [row["where"].rsplit(":", 1)[1] for row in rows] == ["1", "2", "3", "4", "5"]
    assert all(row["rules"] == ["contract"] for row in rows)


def test_unusable_requests_are_named(data: Path, context: GateContext, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown suite 'chains'"):
        check([], "chains", context, tmp_path)
    with pytest.raises(ConfigError, match=r"context\.samples"):
        check([make_path(0)], "paths", GateContext(data=data), tmp_path)
    with pytest.raises(ConfigError, match=r"context\.paths"):
        check([make_pair(0)], "pairs", replace(context, paths=None), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \*\.jsonl"):
        check(tmp_path / "empty", "paths", context, tmp_path)


def test_rule_that_cannot_be_checked_counts_as_broken(data: Path, context: GateContext) -> None:
    """A missing column raises inside the library; the gate must not take that for success."""
    from flows._frames import build_frame

    frame = build_frame(make_good("paths", data), suite="paths", context=context)
    broken = replace(frame, table=frame.table.drop(columns=["steps"]))
    outcome = run_suite(broken, suite="paths", context=context)
    rule = next(rule for rule in outcome.rules if rule.rule == "steps_parse")
    assert not rule.passed and "steps" in rule.note


def test_page_needs_no_network(data: Path, context: GateContext, tmp_path: Path) -> None:
    check(make_good("samples", data), "samples", context, tmp_path)
    page = (tmp_path / "gate/index.html").read_text()
    assert 'src="http' not in page and "<link" not in page and "<table" in page
