"""Preference pairs: the strategies by hand, the guards, and what must always hold."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_chat import make_assessed, make_sample
from visloop.config import PairConfig, PairStrategy
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.reasoning.pairs import PairReport, build_pairs
from visloop.records.chains import format_chain
from visloop.records.reasoning import AssessedPath, PreferencePair

PROMPTS = PromptSet("full")
RAW = "<thoughts>\nlook: a circle\nlook: another circle\nlook: a third"


def pair_up(
    assessed: list[AssessedPath], *, strategy: str = "best_worst", samples=None, round: int = 0, seed: int = 0, **changes: object
) -> tuple[list[PreferencePair], PairReport]:
    config = PairConfig(strategy=PairStrategy(strategy), **changes)  # type: ignore[arg-type]
    return build_pairs(samples or [make_sample()], assessed, prompts=PROMPTS, config=config, round=round, seed=seed)


def good(name: str, score: float | None = 80.0, **path: object) -> AssessedPath:
    return make_assessed(name, score=score, **path)


def bad(name: str, score: float | None = None, **path: object) -> AssessedPath:
    return make_assessed(name, verdict="wrong", score=score, **path)


def malformed(name: str, *, text: str = RAW, status: str = "truncated", **path: object) -> AssessedPath:
    return make_assessed(name, verdict="unjudged", score=None, status=status, answer=None, replies=(text,), **path)


def names(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen_path_id, pair.rejected_path_id) for pair in pairs]


def test_a_pair_holds_both_texts_verdicts_and_scores() -> None:
    chosen, rejected = good("g", 90.0), bad("b", 30.0)
    [pair], report = pair_up([rejected, chosen], round=2)
    assert pair.prompt == PROMPTS.render("reason", question=make_sample().question)
    assert pair.chosen == format_chain(chosen.path.steps, "yes")
    assert pair.rejected == format_chain(rejected.path.steps, "no")
    assert (pair.chosen_verdict, pair.rejected_verdict, pair.chosen_score, pair.rejected_score) == ("correct", "wrong", 90.0, 30.0)
    assert (pair.round, pair.strategy, pair.images) == (2, "best_worst", ("images/q0.png",))
    assert (report.pairs, report.mean_margin, report.by_rejected, report.no_pair) == (1, 60.0, {"wrong": 1}, {})


def test_best_worst_takes_the_worst_wrong_then_malformed_then_a_clearly_worse_correct_one() -> None:
    items = [good("g90", 90.0), good("g85", 85.0), good("g40", 40.0), bad("b60", 60.0), bad("b10", 10.0), malformed("m")]
    pairs, report = pair_up(items, max_pairs_per_question=9)
    assert names(pairs) == [("g90", "b10"), ("g90", "b60"), ("g90", "m"), ("g90", "g40")], "g85 is within the margin"
    assert report.by_rejected == {"correct": 1, "malformed": 1, "wrong": 2}


def test_correct_flawed_takes_the_near_miss() -> None:
    pairs, _ = pair_up([good("g", 90.0), bad("b60", 60.0), bad("b10", 10.0), bad("none")], strategy="correct_flawed")
    assert names(pairs) == [("g", "b60")]


def test_margin_takes_the_widest_gap_also_between_correct_chains_and_never_chooses_a_wrong_one() -> None:
    items = [good("g90", 90.0), good("g40", 40.0), bad("b70", 70.0), bad("b95", 95.0)]
    pairs, _ = pair_up(items, strategy="margin", max_pairs_per_question=9)
    assert names(pairs) == [("g90", "g40"), ("g90", "b70")], "b95 is above every correct chain"


def test_margin_at_the_limit_counts_and_a_tie_never_does() -> None:
    items = [good("g90", 90.0), good("g70", 70.0)]
    assert names(pair_up(items, strategy="margin", min_margin=20.0)[0]) == [("g90", "g70")]
    assert pair_up(items, strategy="margin", min_margin=20.5)[1].no_pair_counts == {"no_margin": 1}
    tied = [good("a", 80.0), good("b", 80.0)]
    assert pair_up(tied, strategy="margin", min_margin=0.0)[1].no_pair_counts == {"no_margin": 1}


def test_first_error_takes_the_longest_common_beginning() -> None:
    items = [
        good("g", texts=("one", "two", "three")),
        bad("early", texts=("other", "two", "three")),
        bad("late", texts=("one", "two", "else")),
        bad("middle", texts=("one", "else", "three")),
    ]
    pairs, _ = pair_up(items, strategy="first_error", max_pairs_per_question=9)
    assert names(pairs) == [("g", "late"), ("g", "middle"), ("g", "early")]


def test_greedy_pairs_push_what_the_model_says_away_where_it_is_wrong_and_up_where_it_is_right() -> None:
    words = ("a", "b", "c", "d")
    near, far = good("near", texts=words[:3]), good("far", texts=("z",))
    wrong = bad("w", texts=(*words[:2], "x"))
    said_wrong = bad("greedy", texts=("z", "y"), decoding="greedy")
    assert names(pair_up([near, far, wrong, said_wrong], strategy="greedy")[0]) == [("far", "greedy")]
    said_right = good("greedy", texts=("q",), decoding="greedy")
    assert names(pair_up([near, wrong, said_right], strategy="greedy")[0]) == [("greedy", "w")]
    assert names(pair_up([near, far, wrong], strategy="greedy")[0]) == [("near", "w")], "without it: first_error"


def test_first_error_finds_the_correct_chain_that_shares_most() -> None:
    items = [good("best", 95.0, texts=("x", "y")), good("near", 60.0, texts=("one", "two")), bad("b", texts=("one", "else"))]
    assert names(pair_up(items, strategy="first_error")[0]) == [("near", "b")]


@pytest.mark.parametrize(
    ("items", "strategy", "reason"),
    [
        ([], "best_worst", "no_path"),
        ([malformed("m"), malformed("n", status="failed")], "best_worst", "malformed"),
        ([make_assessed("u", verdict="unjudged", score=None)], "best_worst", "unjudged"),
        ([bad("b"), malformed("m")], "best_worst", "all_wrong"),
        ([good("g")], "best_worst", "all_correct"),
        ([good("g"), good("h", 79.0)], "best_worst", "no_margin"),
        ([good("g"), good("h", 20.0)], "correct_flawed", "all_correct"),
        ([good("g"), good("h", 20.0)], "first_error", "all_correct"),
        ([good("g", None), bad("b")], "margin", "unscored"),
        ([good("g"), bad("b")], "correct_flawed", "unscored"),
        ([good("g"), make_assessed("u", verdict="unjudged", score=None)], "first_error", "unjudged"),
        ([good("g", 90.0, texts=("same", "text")), good("h", 50.0, texts=("same", "text"))], "margin", "identical"),
        ([good("g", texts=("short", "so")), bad("b", texts=("long " * 200, "so"))], "best_worst", "too_long"),
        ([good("g", texts=("long " * 200, "so")), bad("b", texts=("short", "so"))], "best_worst", "too_long"),
    ],
)
def test_why_a_question_gave_no_pair(items: list[AssessedPath], strategy: str, reason: str) -> None:
    pairs, report = pair_up(items, strategy=strategy)
    assert pairs == []
    assert report.no_pair == {reason: ("q0",)}


def test_a_candidate_that_falls_to_a_guard_gives_way_to_the_next() -> None:
    items = [good("g"), bad("long", 5.0, texts=("long " * 200, "so")), bad("fit", 50.0)]
    assert names(pair_up(items)[0]) == [("g", "fit")]


def test_malformed_chains_are_rejected_raw_or_left_out() -> None:
    items = [good("g"), malformed("m")]
    [pair], report = pair_up(items)
    assert pair.rejected == RAW and report.by_rejected == {"malformed": 1}
    assert pair_up(items, keep_malformed_rejected=False)[1].no_pair_counts == {"all_correct": 1}


@pytest.mark.parametrize("status", ["failed", "step_limit"])
def test_chains_that_are_no_text_of_the_reasoner_are_never_used(status: str) -> None:
    """A backend error is nobody's fault, and a chain at its step limit is a generator's."""
    assert pair_up([good("g"), malformed("m", status=status)])[0] == []


def test_a_text_is_rejected_once_and_never_both_chosen_and_rejected() -> None:
    items = [good("g90", 90.0), good("g60", 60.0), good("g30", 30.0), bad("b", 5.0), bad("twin", 5.0, texts=("step of b", "so it is"))]
    pairs, _ = pair_up(items, strategy="margin", max_pairs_per_question=9)
    rejected = [pair.rejected for pair in pairs]
    assert len(set(rejected)) == len(rejected)
    assert set(rejected).isdisjoint(pair.chosen for pair in pairs)


@pytest.mark.parametrize(("score", "kept"), [(5.0, ("g60", "long")), (35.0, ("g100", "g60"))])
def test_a_chain_between_two_others_takes_one_side_only(score: float, kept: tuple[str, str]) -> None:
    """The best chain is too short for the worst one; the middle one could be rejected to it and chosen over that one."""
    items = [
        good("g100", 100.0, texts=("s", "so")),
        good("g60", 60.0, texts=("middle " * 10, "so")),
        bad("long", score, texts=("long " * 50, "so")),
    ]
    assert names(pair_up(items, strategy="margin", max_pairs_per_question=9)[0]) == [kept]


def test_the_lowest_correct_chain_is_rejected_first() -> None:
    items = [good("g90", 90.0), good("g40", 40.0), good("g20", 20.0)]
    assert names(pair_up(items, max_pairs_per_question=9)[0]) == [("g90", "g20"), ("g90", "g40")]


def test_the_turns_of_a_generator_are_never_a_rejected_text() -> None:
    turns = make_assessed("m", verdict="unjudged", score=None, status="unparsable", answer=None, replies=(RAW, RAW))
    assert pair_up([good("g"), turns])[1].no_pair_counts == {"all_correct": 1}


def test_order_of_the_chains_does_not_matter() -> None:
    items = [good(f"g{index}", 80.0) for index in range(4)] + [bad(f"b{index}", 10.0) for index in range(4)]
    for strategy in PairStrategy:
        assert pair_up(items, strategy=strategy.value) == pair_up(items[::-1], strategy=strategy.value)
    assert len({names(pair_up(items, seed=seed)[0])[0] for seed in range(20)}) > 1, "ties are broken by the seed"


def test_bad_limits_and_unknown_samples_are_refused() -> None:
    for changes in ({"max_pairs_per_question": 0}, {"max_length_ratio": 0.5}, {"min_margin": -1.0}):
        with pytest.raises(ConfigError):
            pair_up([good("g")], **changes)
    with pytest.raises(DataError):
        pair_up([good("g", sample="q9")])


chains = st.tuples(
    st.sampled_from(["correct", "wrong", "unjudged", "malformed"]),
    st.one_of(st.none(), st.integers(1, 100)),
    st.sampled_from(["a", "b", "c", "d " * 60]),
    st.sampled_from(["q0", "q1", "q2"]),
)


@given(st.lists(chains, max_size=14), st.sampled_from(PairStrategy), st.integers(1, 4), st.booleans(), st.integers(0, 3))
def test_what_must_always_hold(drawn: list[tuple], strategy: PairStrategy, most: int, keep: bool, seed: int) -> None:
    samples = [make_sample(name) for name in ("q0", "q1", "q2")]
    items = []
    for index, (verdict, score, text, sample) in enumerate(drawn):
        if verdict == "malformed":
            items.append(malformed(f"p{index}", sample=sample))
        else:
            items.append(
                make_assessed(
                    f"p{index}", verdict=verdict, score=None if score is None else float(score), sample=sample, texts=(text, "so")
                )
            )
    by_id = {item.path.id: item for item in items}
    pairs, report = pair_up(
        items, strategy=strategy.value, samples=samples, max_pairs_per_question=most, keep_malformed_rejected=keep, seed=seed
    )
    for pair in pairs:
        chosen, rejected = by_id[pair.chosen_path_id], by_id[pair.rejected_path_id]
        assert chosen.verdict == "correct" and chosen.path.status == "finished"
        assert pair.chosen != pair.rejected
        assert chosen.path.sample_id == rejected.path.sample_id == pair.sample_id
        assert rejected.verdict != "unjudged" or (keep and rejected.path.status == "truncated")
        if rejected.verdict == "correct":
            assert pair.chosen_score is not None and pair.rejected_score is not None and pair.chosen_score - pair.rejected_score >= 20.0
        assert max(len(pair.chosen), len(pair.rejected)) <= 3.0 * min(len(pair.chosen), len(pair.rejected))
    assert all(count <= most for count in Counter(pair.sample_id for pair in pairs).values())
    assert len({pair.id for pair in pairs}) == len(pairs)
    refused = [sample for ids in report.no_pair.values() for sample in ids]
    assert sorted([*refused, *{pair.sample_id for pair in pairs}]) == ["q0", "q1", "q2"], "every question is paired or has one reason"
