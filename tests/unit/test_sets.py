"""Training sets of the two agents and of the ablations."""

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_chat import make_assessed, make_path, make_sample
from visloop.config import SetsConfig
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.reasoning.sets import (
    SUMMARY_KINDS,
    build_answer_set,
    build_direct_set,
    build_multi_turn_set,
    build_reason_set,
    build_summary_set,
    pick_best_paths,
    split_shares,
)
from visloop.records.chains import format_chain, format_thoughts
from visloop.records.reasoning import AssessedPath, Sample

PROMPTS = PromptSet("full")

SHARES = {"optimal": 0.3, "flawed": 0.15, "wrong_answer": 0.15, "agent": 0.3, "general": 0.1}


def reason(samples: list[Sample], assessed: list[AssessedPath], *, seed: int = 0, **changes: object):
    return build_reason_set(samples, assessed, prompts=PROMPTS, config=SetsConfig(**changes), seed=seed)  # type: ignore[arg-type]


def test_the_best_correct_chain_and_only_that() -> None:
    sample = make_sample(answer="yes")
    best = make_assessed("best", score=90.0)
    [example], report = reason([sample], [make_assessed("mid", score=60.0), best, make_assessed("wrong", verdict="wrong", score=99.0)])
    assert example.path_id == "best" and example.band == "high"
    assert [turn.role for turn in example.turns] == ["user", "assistant"]
    assert example.turns[0].text == PROMPTS.render("reason", question=sample.question)
    assert example.turns[1].text == format_chain(best.path.steps, "yes")
    assert (report.size, report.by_kind, report.skipped) == (1, {"reason": 1}, {})


def test_ties_go_to_fewer_tokens_then_to_the_id() -> None:
    items = [make_assessed("b", new_tokens=9), make_assessed("c", new_tokens=8), make_assessed("a", new_tokens=9)]
    assert pick_best_paths(items, min_score=1.0)["q0"].path.id == "c"
    assert pick_best_paths([items[0], items[2]], min_score=1.0)["q0"].path.id == "a"
    assert pick_best_paths(items[::-1], min_score=1.0)["q0"].path.id == "c"


def test_every_question_without_an_example_has_a_reason() -> None:
    samples = [make_sample(f"q{index}") for index in range(5)]
    assessed = [
        make_assessed("p0", sample="q0"),
        make_assessed("p1", sample="q1", verdict="wrong", score=None),
        make_assessed("p2", sample="q2", score=None),
        make_assessed("p3", sample="q3", score=30.0),
    ]
    examples, report = reason(samples, assessed, reason_min_score=50.0)
    assert [example.sample_id for example in examples] == ["q0"]
    assert report.skipped == {"low_score": 1, "no_correct": 1, "no_path": 1, "unscored": 1}


@given(st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5).map(sorted), st.integers(0, 3))
def test_smaller_fractions_are_inside_larger_ones(fractions: list[float], seed: int) -> None:
    samples = [make_sample(f"q{index}") for index in range(20)]
    assessed = [make_assessed(f"p{index}", sample=f"q{index}") for index in range(20)]
    nested = [{example.id for example in reason(samples, assessed, seed=seed, reason_fraction=fraction)[0]} for fraction in fractions]
    assert all(small <= large for small, large in pairwise(nested))


@pytest.mark.parametrize(("fraction", "size"), [(0.25, 5), (0.5, 10), (0.01, 1), (1.0, 20)])
def test_fraction_counts(fraction: float, size: int) -> None:
    samples = [make_sample(f"q{index}") for index in range(20)]
    assessed = [make_assessed(f"p{index}", sample=f"q{index}") for index in range(20)]
    examples, report = reason(samples, assessed, reason_fraction=fraction)
    assert len(examples) == size
    assert report.skipped.get("not_in_fraction", 0) == 20 - size


@pytest.mark.parametrize("fraction", [0.0, 1.5, -1.0])
def test_bad_fraction(fraction: float) -> None:
    with pytest.raises(ConfigError, match="reason_fraction"):
        reason([make_sample()], [], reason_fraction=fraction)


def test_paths_of_unknown_samples_are_refused() -> None:
    with pytest.raises(DataError, match=r"e\.g\. q9"):
        reason([make_sample()], [make_assessed("p", sample="q9")])


def test_multi_turn_set_splits_the_same_chain_over_two_turns() -> None:
    sample, item = make_sample(), make_assessed("p")
    [example], _ = build_multi_turn_set([sample], [item], prompts=PROMPTS, config=SetsConfig(), seed=0)
    assert example.kind == "multi_turn"
    assert [turn.role for turn in example.turns] == ["user", "assistant", "user", "assistant"]
    assert example.turns[1].text == format_thoughts(item.path.steps)
    assert example.turns[3].text == "yes"


def test_direct_set_holds_the_reason_texts_and_plain_answers() -> None:
    samples, general = [make_sample("q0"), make_sample("q1")], [make_sample("g0", family="count", answer="3")]
    assessed = [make_assessed("p0"), make_assessed("p1", sample="q1")]
    examples, report = build_direct_set(samples, assessed, general=general, prompts=PROMPTS, config=SetsConfig(), seed=0)
    twin, _ = reason(samples, assessed)
    assert [example.turns for example in examples[:2]] == [example.turns for example in twin]
    assert examples[2].turns[0].text == PROMPTS.render("direct", question=general[0].question) and examples[2].turns[1].text == "3"
    assert report.by_kind == {"direct": 2, "general": 1} and report.by_family == {"count": 1, "exist": 2}
    assert {example.id for example in examples}.isdisjoint(example.id for example in twin), "sets do not share ids"


def test_answer_set_is_plain_questions_only() -> None:
    examples, report = build_answer_set([make_sample("q0"), make_sample("q1")], prompts=PROMPTS)
    assert all(example.kind == "general" and example.path_id is None for example in examples)
    assert report.size == 2


SAMPLES = [make_sample(f"q{index}") for index in range(10)]
GENERAL = [make_sample(f"g{index}") for index in range(10)]


def rich_data() -> tuple[list[AssessedPath], list]:
    """Ten questions, each with a best, a mid, a low correct chain, two wrong ones, and two chains of the trained agent."""
    assessed = []
    for sample in SAMPLES:
        name = sample.id
        assessed += [
            make_assessed(f"{name}-best", sample=name, score=95.0, band="high"),
            make_assessed(f"{name}-high", sample=name, score=85.0, band="high"),
            make_assessed(f"{name}-mid", sample=name, score=60.0, band="mid"),
            make_assessed(f"{name}-low", sample=name, score=20.0, band="low"),
            make_assessed(f"{name}-wrong1", sample=name, verdict="wrong", score=None),
            make_assessed(f"{name}-wrong2", sample=name, verdict="wrong", score=None),
        ]
    agent = [make_path(f"{s.id}-agent{i}", sample=s.id, index=i, texts=(f"agent {s.id} {i}", "so")) for s in SAMPLES for i in range(2)]
    return assessed, agent


def summary(size: int, *, shares: dict[str, float] | None = None, seed: int = 0, data=None, general=GENERAL, samples=SAMPLES):
    assessed, agent = data or rich_data()
    config = SetsConfig(summary_size=size, summary_shares=shares or SHARES)
    return build_summary_set(samples, assessed, agent_paths=agent, general=general, prompts=PROMPTS, config=config, seed=seed)


def test_summary_shares_are_met_and_every_target_is_the_true_answer() -> None:
    examples, report = summary(20)
    assert report.by_kind == {"agent": 6, "flawed": 3, "general": 2, "optimal": 6, "wrong_answer": 3}
    assert report.shortages == {}
    assert all(example.turns[-1].text == "yes" for example in examples)
    assert len({example.id for example in examples}) == 20


def test_kinds_hold_what_their_names_say() -> None:
    examples, _ = summary(20)
    suffixes = {
        kind: {example.path_id.split("-")[1].rstrip("012") for example in examples if example.kind == kind and example.path_id}
        for kind in SUMMARY_KINDS
    }
    assert suffixes == {
        "optimal": {"best"},
        "flawed": {"high", "mid", "low"},
        "wrong_answer": {"wrong"},
        "agent": {"agent"},
        "general": set(),
    }


def test_flawed_chains_come_from_every_band_in_turn() -> None:
    examples, _ = summary(9, shares={"flawed": 1.0})
    assert Counter(example.band for example in examples) == {"high": 3, "mid": 3, "low": 3}
    assert not any("best" in str(example.path_id) for example in examples), "the best chain of a question is not flawed"


def test_one_chain_of_every_question_before_a_second_one() -> None:
    examples, _ = summary(14, shares={"wrong_answer": 1.0})
    assert sorted(Counter(example.sample_id for example in examples).values()) == [1] * 6 + [2] * 4


def test_a_kind_that_runs_short_is_reported_and_not_filled() -> None:
    examples, report = summary(100)
    assert report.by_kind == {"agent": 20, "flawed": 15, "general": 10, "optimal": 10, "wrong_answer": 15}
    assert report.shortages == {"agent": 10, "optimal": 20}
    assert len(examples) == 70


def test_the_same_chain_text_is_used_once_per_question_over_all_kinds() -> None:
    texts = ("the same", "words")
    assessed = [make_assessed("best", texts=texts), make_assessed("twin", texts=texts, score=60.0, band="mid")]
    agent = [make_path("agent", texts=texts)]
    examples, report = summary(4, shares={"optimal": 0.25, "flawed": 0.25, "agent": 0.5}, data=(assessed, agent), samples=SAMPLES[:1])
    assert [example.path_id for example in examples] == ["best"]
    assert report.shortages == {"flawed": 1, "agent": 2}


def test_cut_chains_of_the_agent_are_passed_over() -> None:
    agent = [make_path("cut", status="truncated", answer=None, replies=("<thoughts>\nlook: a",)), make_path("whole", index=1)]
    examples, _ = summary(2, shares={"agent": 1.0}, data=([], agent))
    assert [example.path_id for example in examples] == ["whole"]


def test_the_draw_depends_on_seed_and_ids_not_on_order() -> None:
    assessed, agent = rich_data()
    ids = {example.id for example in summary(20)[0]}
    turned = summary(20, data=(assessed[::-1], agent[::-1]), general=GENERAL[::-1], samples=SAMPLES[::-1])[0]
    assert {example.id for example in turned} == ids
    assert {example.id for example in summary(20, seed=1)[0]} != ids


@given(st.integers(0, 500), st.lists(st.integers(0, 20), min_size=5, max_size=5).filter(any))
def test_shares_become_whole_numbers_that_sum_to_the_size(size: int, weights: list[int]) -> None:
    shares = {kind: weight / sum(weights) for kind, weight in zip(SUMMARY_KINDS, weights, strict=True)}
    counts = split_shares(size, shares=shares)
    assert sum(counts.values()) == size
    assert all(abs(counts[kind] - size * shares[kind]) < 1 for kind in SUMMARY_KINDS)


@pytest.mark.parametrize("shares", [{"optimal": 0.5}, {"best": 1.0}, {"optimal": 1.5, "flawed": -0.5}])
def test_bad_shares_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="summary_shares"):
        split_shares(10, shares=shares)


def test_pictures_of_the_sample_are_on_every_example() -> None:
    samples = [replace(sample, images=(f"{sample.id}-a.png", f"{sample.id}-b.png")) for sample in SAMPLES]
    for example in summary(20, samples=samples)[0]:
        if example.kind != "general":
            assert example.images == (f"{example.sample_id}-a.png", f"{example.sample_id}-b.png")
