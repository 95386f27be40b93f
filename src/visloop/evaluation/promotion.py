"""Is a candidate better than the champion? A paired test on the same held-out samples, and what speaks against the candidate.

Two tests that fail in different ways: McNemar's exact test needs no resampling but takes samples as independent; the bootstrap by
group (scene) does not, and also reads measures that are no plain right or wrong.
"""

from dataclasses import dataclass

import numpy as np

from visloop.evaluation.metrics import Outcomes, compare_outcomes, is_percentage, mcnemar_p, subtract_outcomes


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedTest:
    """Candidate minus champion over the ``n`` samples in ``groups`` scenes that both answered.

    Attributes:
        difference: of the means, with its bootstrap interval ``low``..``high`` (groups redrawn).
        wins, losses: samples on which the candidate did better, and worse.
        p: two-sided p of McNemar's exact test; None for a measure that is not 0 or 1 on every sample.
    """

    candidate: str
    champion: str
    metric: str
    candidate_value: float
    champion_value: float
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    n: int
    groups: int
    p: float | None


def compare_with_champion(
    candidate: Outcomes, champion: Outcomes, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> PairedTest:
    """Test one measure of two models sample by sample.

    Raises:
        DataError: the two were not measured on the same samples, or on different measures.
    """
    difference = subtract_outcomes(candidate, champion)
    paired = compare_outcomes(candidate, champion, confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed)
    binary = all(bool(np.isin(side.values, (0.0, 1.0)).all()) for side in (candidate, champion))
    return PairedTest(
        candidate=candidate.name,
        champion=champion.name,
        metric=candidate.metric,
        candidate_value=float(candidate.values.mean()),
        champion_value=float(champion.values.mean()),
        difference=paired.difference,
        low=paired.low,
        high=paired.high,
        wins=int((difference.values > 0).sum()),
        losses=int((difference.values < 0).sum()),
        n=paired.n,
        groups=len(set(difference.groups)),
        p=mcnemar_p(candidate, champion) if binary else None,
    )


def list_objections(test: PairedTest, *, confidence: float = 0.95, min_gain: float = 0.0) -> list[str]:
    """What speaks against the candidate, in words with the figures; empty: it is better.

    Args:
        confidence: McNemar's p must be below ``1 - confidence``.
        min_gain: the interval's lower end must be above this, in the measure's own unit (0.01 = one point of an accuracy).
    """
    found = []
    if test.low <= min_gain:
        found.append(
            f"the interval of the difference reaches down to {_show(test.low, test.metric)}, not above {_show(min_gain, test.metric)}"
        )
    alpha = 1 - confidence
    if test.p is not None and test.p >= alpha:
        found.append(f"McNemar's exact test: {test.wins} samples won, {test.losses} lost, p = {test.p:.3g}, not below {alpha:.3g}")
    return found


def describe_test(test: PairedTest) -> str:
    """The figures in one line."""
    unit = test.metric
    tail = "" if test.p is None else f", McNemar p = {test.p:.3g}"
    return (
        f"{unit}: {test.candidate} {_show(test.candidate_value, unit, signed=False)}, "
        f"{test.champion} {_show(test.champion_value, unit, signed=False)}; "
        f"difference {_show(test.difference, unit)} [{_show(test.low, unit)}, {_show(test.high, unit)}], "
        f"{test.wins} won, {test.losses} lost of {test.n} samples in {test.groups} scenes{tail}"
    )


def _show(value: float, metric: str, *, signed: bool = True) -> str:
    """Points of a hundred for fractions, the plain number for other measures."""
    scaled = 100 * value if is_percentage(metric) else value
    return f"{scaled:+.1f}" if signed else f"{scaled:.1f}"
