"""Intervals against hand-computed values and known coverage; pairing refuses what cannot be paired."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visloop.errors import ConfigError, DataError
from visloop.evaluation.metrics import (
    Outcomes,
    combine_seeds,
    compare_outcomes,
    compare_seeds,
    mcnemar_p,
    measure_accuracy,
    measure_consistency,
    measure_families,
    measure_outcomes,
    read_outcomes,
    subtract_outcomes,
)
from visloop.records.reasoning import Prediction


def predict(index: int, correct: bool, *, group: str | None = None, system: str = "s", family: str = "count", **metrics: float):
    return Prediction(
        sample_id=f"q{index}",
        system=system,
        family=family,
        group=group or f"g{index}",
        answer="1",
        correct=correct,
        status="ok",
        metrics=metrics,
    )


def outcomes(values, groups=None, *, name: str = "s", metric: str = "accuracy") -> Outcomes:
    ids = tuple(f"q{index}" for index in range(len(values)))
    return Outcomes(name, metric, ids, tuple(groups) if groups else ids, np.asarray(values, dtype=float))


def test_accuracy_of_independent_rows_has_wilsons_interval():
    row = measure_accuracy([predict(index, index < 8) for index in range(10)])
    # Wilson, z = 1.959964: centre (0.8 + z²/20) / (1 + z²/10), half width z/(1 + z²/10) * sqrt(0.8*0.2/10 + z²/400)
    z = 1.959964
    centre, scale = (0.8 + z * z / 20) / (1 + z * z / 10), z / (1 + z * z / 10)
    half = scale * math.sqrt(0.016 + z * z / 400)
    assert (row.name, row.metric, row.value, row.n) == ("s", "accuracy", 0.8, 10)
    assert row.low == pytest.approx(centre - half, abs=1e-6)
    assert row.high == pytest.approx(centre + half, abs=1e-6)


def test_rows_of_one_group_widen_the_interval_like_fewer_rows():
    values = [float(index % 2) for index in range(200)]
    alone = measure_outcomes(outcomes(values))
    # four identical rows per scene carry the information of one
    copies = measure_outcomes(outcomes(np.repeat(values, 4), [f"g{index // 4}" for index in range(800)]))
    assert copies.value == alone.value == 0.5
    assert copies.high - copies.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_bootstrap_of_groups_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(200):
        skill = rng.beta(3, 2, size=120)  # each scene has its own difficulty, mean 0.6
        values = (rng.random((120, 3)) < skill[:, None]).astype(float).ravel()
        row = measure_outcomes(outcomes(values, [f"g{index // 3}" for index in range(360)]), bootstrap_samples=400, seed=trial)
        hits += row.low <= 0.6 <= row.high
    assert 180 <= hits <= 199


def test_all_right_in_groups_still_has_an_honest_interval():
    row = measure_outcomes(outcomes([1.0] * 20, [f"g{index // 2}" for index in range(20)]))
    assert row.high == 1.0
    assert row.low == pytest.approx(1 / (1 + 1.959964**2 / 10), abs=1e-6)  # Wilson of 10 right groups of 10


def test_the_order_of_rows_changes_nothing():
    rows = [predict(index, index % 3 == 0, group=f"g{index // 2}") for index in range(40)]
    assert measure_accuracy(rows) == measure_accuracy(rows[::-1])


def test_the_seed_and_the_system_key_the_draws():
    rows = outcomes([0.0, 1.0, 0.3, 0.8, 0.1] * 9, metric="score")
    assert measure_outcomes(rows, seed=1) == measure_outcomes(rows, seed=1)
    assert measure_outcomes(rows, seed=1) != measure_outcomes(rows, seed=2)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0, 100)), min_size=1, max_size=40))
def test_an_interval_always_holds_its_value(rows):
    row = measure_outcomes(
        outcomes([value for _, value in rows], [f"g{group}" for group, _ in rows], metric="path_score"), bootstrap_samples=50
    )
    assert row.low <= row.value <= row.high
    assert min(value for _, value in rows) - 1e-9 <= row.low
    assert row.high <= max(value for _, value in rows) + 1e-9


def test_consistency_counts_a_group_only_when_all_its_rows_are_right():
    rows = [
        predict(0, True, group="a"),
        predict(1, True, group="a"),
        predict(2, True, group="b"),
        predict(3, False, group="b"),
        predict(4, True, group="c"),
        predict(5, False, group="d"),
    ]
    row = measure_consistency(rows)
    assert (row.metric, row.value, row.n) == ("consistency", 0.5, 4)
    assert type(row.value) is float


def test_a_wrong_row_after_right_ones_and_before_them_both_break_a_group():
    for flags in [(True, True, False), (False, True, True), (True, False, True)]:
        assert measure_consistency([predict(index, flag, group="a") for index, flag in enumerate(flags)]).value == 0.0


def test_families_are_measured_apart():
    rows = [predict(index, index != 0, family="count" if index < 4 else "exist") for index in range(10)]
    count, exist = measure_families(rows)
    assert (count.metric, count.value, count.n) == ("accuracy/count", 0.75, 4)
    assert (exist.metric, exist.value, exist.n) == ("accuracy/exist", 1.0, 6)


def test_a_sample_without_the_metric_is_left_out_and_counted():
    rows = [predict(0, True, path_score=80.0), predict(1, True), predict(2, False, path_score=40.0)]
    row = measure_outcomes(read_outcomes(rows, metric="path_score"))
    assert (row.value, row.n) == (60.0, 2)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "none of 0"),
        ([predict(0, True)], "none of 1"),
        ([predict(0, True, score=1.0), predict(0, True, score=1.0)], "q0 was predicted twice"),
        ([predict(0, True, score=1.0), predict(1, True, system="t", score=1.0)], "several systems"),
        ([predict(0, True, score=float("nan"))], "not finite"),
    ],
)
def test_unusable_predictions_are_refused(rows, message):
    with pytest.raises(DataError, match=message):
        read_outcomes(rows, metric="score")


def test_paired_difference_is_narrower_than_two_separate_intervals():
    rng = np.random.default_rng(0)
    weak = (rng.random(400) < 0.6).astype(float)
    strong = np.where(rng.random(400) < 0.1, 1.0, weak)  # never loses a question that the weak one has right
    pair = compare_outcomes(outcomes(strong, name="strong"), outcomes(weak, name="weak"))
    assert pair.difference == pytest.approx(strong.mean() - weak.mean())
    assert 0 < pair.low <= pair.difference <= pair.high
    apart = measure_outcomes(outcomes(strong)), measure_outcomes(outcomes(weak))
    assert pair.high - pair.low < apart[0].high - apart[0].low


def test_pairing_is_by_sample_not_by_position():
    a = outcomes([1.0, 0.0, 1.0])
    b = Outcomes("t", "accuracy", ("q2", "q1", "q0"), ("q2", "q1", "q0"), np.array([1.0, 0.0, 1.0]))
    assert subtract_outcomes(a, b).values.tolist() == [0.0, 0.0, 0.0]


def test_swapping_the_systems_mirrors_the_difference():
    a, b = outcomes([1.0, 0.0, 1.0, 1.0] * 20, name="a"), outcomes([0.0, 0.0, 1.0, 1.0] * 20, name="b")
    there, back = compare_outcomes(a, b), compare_outcomes(b, a)
    assert there.difference == -back.difference == 0.25
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low), abs=0.03)


def test_unequal_sample_sets_cannot_be_paired_on_accuracy():
    with pytest.raises(DataError, match="1 samples were answered by only one"):
        compare_outcomes(outcomes([1.0, 0.0]), outcomes([1.0]))


def test_unequal_metrics_and_groups_cannot_be_paired():
    with pytest.raises(DataError, match="different metrics"):
        compare_outcomes(outcomes([1.0]), outcomes([1.0], metric="path_score"))
    with pytest.raises(DataError, match="two groups"):
        compare_outcomes(outcomes([1.0], ["a"]), outcomes([1.0], ["b"]))


def test_mcnemar_counts_only_disagreements():
    # 8 wins, 1 loss: p = 2 * (C(9,0) + C(9,1)) / 2**9
    a = outcomes([1.0] * 8 + [0.0] + [1.0] * 50)
    b = outcomes([0.0] * 8 + [1.0] + [1.0] * 50)
    assert mcnemar_p(a, b) == pytest.approx(2 * (1 + 9) / 512)
    assert mcnemar_p(a, a) == 1.0
    with pytest.raises(DataError, match="must be 0 or 1"):
        mcnemar_p(outcomes([0.5]), outcomes([1.0]))


def test_one_seed_is_the_plain_cluster_bootstrap():
    run = outcomes([0.2, 0.9, 0.4, 0.7] * 25, [f"g{index // 4}" for index in range(100)], metric="path_score")
    assert combine_seeds([run]).value == measure_outcomes(run).value


def test_seeds_that_disagree_widen_the_interval():
    rng = np.random.default_rng(1)
    alike = [outcomes((rng.random(500) < 0.7).astype(float)) for _ in range(3)]
    apart = [outcomes((rng.random(500) < skill).astype(float)) for skill in (0.5, 0.7, 0.9)]
    narrow, wide = combine_seeds(alike), combine_seeds(apart)
    assert wide.high - wide.low > 3 * (narrow.high - narrow.low)
    assert wide.n == 1500


def test_shared_questions_do_not_average_out_over_seeds():
    values = (np.random.default_rng(2).random(200) < 0.6).astype(float)
    same = combine_seeds([outcomes(values, name="x") for _ in range(3)])
    other = combine_seeds(
        [Outcomes("x", "accuracy", ids := tuple(f"{seed}-{index}" for index in range(200)), ids, values) for seed in range(3)]
    )
    alone = measure_outcomes(outcomes(values))
    assert same.high - same.low == pytest.approx(alone.high - alone.low, rel=0.15)
    assert other.high - other.low < 0.85 * (same.high - same.low)


def test_seeds_are_paired_run_by_run():
    good, bad = outcomes([1.0] * 30 + [0.0] * 10, name="a"), outcomes([1.0] * 20 + [0.0] * 20, name="b")
    pair = compare_seeds([good, good], [bad, bad])
    assert (pair.a, pair.b, pair.difference, pair.n) == ("a", "b", 0.25, 80)
    with pytest.raises(DataError, match="2 runs against 1"):
        compare_seeds([good, good], [bad])


@pytest.mark.parametrize("settings_", [{"confidence": 1.0}, {"confidence": 0.0}, {"bootstrap_samples": 0}])
def test_impossible_levels_are_refused(settings_):
    with pytest.raises(ConfigError, match="evaluation"):
        measure_outcomes(outcomes([1.0, 0.0]), **settings_)
