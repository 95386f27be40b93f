"""The paired test behind a promotion: figures by hand, and who is refused for which reason."""

from collections.abc import Sequence

import numpy as np
import pytest
from scipy.stats import binom

from visloop.errors import DataError
from visloop.evaluation.metrics import Outcomes
from visloop.evaluation.promotion import compare_with_champion, describe_test, list_objections


def make_outcomes(name: str, values: Sequence[float], *, per_scene: int = 1, metric: str = "accuracy") -> Outcomes:
    ids = tuple(f"q{index}" for index in range(len(values)))
    groups = tuple(f"s{index // per_scene}" for index in range(len(values)))
    return Outcomes(name, metric, ids, groups, np.asarray(values, dtype=np.float64))


def pick(*, both: int, won: int, lost: int, neither: int) -> tuple[list[float], list[float]]:
    """Right and wrong of candidate and champion, as counts of the four cases."""
    cases = [(1.0, 1.0)] * both + [(1.0, 0.0)] * won + [(0.0, 1.0)] * lost + [(0.0, 0.0)] * neither
    return [one for one, _ in cases], [other for _, other in cases]


def test_the_figures_are_those_of_the_four_cases() -> None:
    """15 won and 3 lost of 100: difference 12 points, p = 2 P(X <= 3) with X ~ B(18, 1/2) = 2 * 988 / 2**18 = 0.0075."""
    new, old = pick(both=60, won=15, lost=3, neither=22)
    test = compare_with_champion(make_outcomes("new", new), make_outcomes("old", old))
    assert (test.wins, test.losses, test.n, test.groups) == (15, 3, 100, 100)
    assert (test.candidate_value, test.champion_value) == (0.75, 0.63) and test.difference == pytest.approx(0.12)
    assert test.p == pytest.approx(2 * binom.cdf(3, 18, 0.5)) == pytest.approx(2 * 988 / 2**18)
    spread = 1.96 * ((0.18 - 0.12**2) / 100) ** 0.5
    assert (test.low, test.high) == (pytest.approx(0.12 - spread, abs=0.015), pytest.approx(0.12 + spread, abs=0.015))
    assert list_objections(test) == []
    assert "75.0" in describe_test(test) and "15 won, 3 lost of 100 samples in 100 scenes" in describe_test(test)


def test_a_gain_that_may_be_chance_is_refused_by_both_tests() -> None:
    new, old = pick(both=60, won=10, lost=7, neither=23)
    test = compare_with_champion(make_outcomes("new", new), make_outcomes("old", old))
    objections = list_objections(test)
    assert len(objections) == 2
    assert "interval" in objections[0] and "not above +0.0" in objections[0]
    assert "10 samples won, 7 lost" in objections[1] and "not below 0.05" in objections[1]


def test_questions_of_one_scene_count_as_one_for_the_interval() -> None:
    """The same 18 discordant answers, but all of 3 scenes: McNemar's test, which takes them as independent, would let it pass."""
    new, old = pick(both=60, won=15, lost=3, neither=22)
    order = [index for index in range(100) if index < 60 or index >= 78]
    together = [*range(60, 78), *order]
    test = compare_with_champion(
        make_outcomes("new", [new[index] for index in together], per_scene=18),
        make_outcomes("old", [old[index] for index in together], per_scene=18),
    )
    assert test.p is not None and test.p < 0.05 and test.groups == 6
    assert [objection.split()[1] for objection in list_objections(test)] == ["interval"]


def test_other_measures_are_judged_by_the_interval_alone() -> None:
    rng = np.random.default_rng(0)
    old = rng.integers(0, 3, 200) / 2
    new = np.minimum(old + (rng.random(200) < 0.2) * 0.5, 1)
    test = compare_with_champion(make_outcomes("new", new, metric="sampled_accuracy"), make_outcomes("old", old, metric="sampled_accuracy"))
    assert test.p is None and list_objections(test) == [] and "McNemar" not in describe_test(test)
    assert "interval" in list_objections(test, min_gain=0.5)[0]
    scores = [make_outcomes(name, values * 40 + 50, metric="path_score") for name, values in (("new", new), ("old", old))]
    assert f"{new.mean() * 40 + 50:.1f}" in describe_test(compare_with_champion(*scores)), "scores are points already"


def test_the_worse_model_is_refused_however_sure_the_tests_are() -> None:
    new, old = pick(both=60, won=3, lost=15, neither=22)
    test = compare_with_champion(make_outcomes("new", new), make_outcomes("old", old))
    assert test.p is not None and test.p < 0.05
    assert len(list_objections(test)) == 1


def test_other_samples_are_no_pairs() -> None:
    with pytest.raises(DataError, match="answered by only one"):
        compare_with_champion(make_outcomes("new", [1, 0, 1]), make_outcomes("old", [1, 0]))
