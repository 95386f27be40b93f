"""Scores with intervals: proportions, means, consistency, families, paired differences, several seeds.

Rows of one group (a scene, an NLVR sentence) are not independent, so groups are the unit of resampling: an interval is
Wilson's where every row is its own group and the values are 0 or 1, else the percentile interval of a cluster bootstrap.
All draws are keyed by ``seed_for``, so a table is the same on every machine and in every order of its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from visloop.errors import DataError
from visloop.evaluation.resampling import (
    Floats,
    GroupedValues,
    Stratum,
    bootstrap_means,
    bootstrap_strata,
    check_levels,
    find_percentiles,
    find_wilson,
)
from visloop.ids import seed_for
from visloop.records.reasoning import Prediction

_POINT_METRICS = frozenset({"path_score", "chain_tokens", "mme", "mme_perception", "mme_cognition", "ocrbench"})


@dataclass(frozen=True, slots=True)
class Row:
    """One number of one system: ``value`` with its interval ``low``..``high`` over ``n`` rows (groups for consistency)."""

    name: str
    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Paired:
    """System ``a`` minus system ``b`` on the same ``n`` samples."""

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """One metric of one system, sample by sample: ids, groups and values (n,) in the same order."""

    name: str
    metric: str
    sample_ids: tuple[str, ...]
    groups: tuple[str, ...]
    values: Floats


def is_percentage(metric: str) -> bool:
    """Whether a metric is a fraction 0-1 that people read as per cent; path scores, token counts and benchmark sums are not."""
    return metric.split("/", 1)[0] not in _POINT_METRICS


def read_outcomes(predictions: Sequence[Prediction], *, metric: str = "accuracy", name: str | None = None) -> Outcomes:
    """The values of ``metric``: ``accuracy`` is ``Prediction.correct``, any other name is looked up in ``Prediction.metrics``.

    Samples without that metric (an unjudged chain has no path score) are left out; ``Row.n`` tells how many remain.

    Raises:
        DataError: no sample has the metric, a sample occurs twice, or several systems are mixed without a ``name``.
    """
    kept = [row for row in predictions if metric == "accuracy" or metric in row.metrics]
    systems = sorted({row.system for row in kept})
    if not kept:
        raise DataError(f"metric {metric!r}: none of {len(predictions)} predictions has it")
    if name is None and len(systems) > 1:
        raise DataError(f"metric {metric!r}: predictions of several systems ({', '.join(systems)}); measure one system at a time")
    ids = tuple(row.sample_id for row in kept)
    if len(set(ids)) != len(ids):
        twice = next(identifier for identifier in ids if ids.count(identifier) > 1)
        raise DataError(f"metric {metric!r} of {systems[0]}: sample {twice} was predicted twice; one prediction per sample and system")
    values = [float(row.correct) if metric == "accuracy" else row.metrics[metric] for row in kept]
    if not np.all(np.isfinite(values)):
        worst = next(row.sample_id for row, value in zip(kept, values, strict=True) if not np.isfinite(value))
        raise DataError(f"metric {metric!r} of {systems[0]}: sample {worst} has a value that is not finite")
    return Outcomes(name or systems[0], metric, ids, tuple(row.group for row in kept), np.asarray(values, dtype=np.float64))


def measure_outcomes(outcomes: Outcomes, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0) -> Row:
    """Mean with its interval. Wilson for independent 0/1 values of a fraction; where a clustered proportion is exactly 0 or 1 the
    bootstrap says nothing, and Wilson over the number of groups is given instead."""
    check_levels(confidence, bootstrap_samples)
    values, groups = outcomes.values, len(set(outcomes.groups))
    value = float(values.mean())
    binary = is_percentage(outcomes.metric) and bool(np.isin(values, (0.0, 1.0)).all())
    if binary and (groups == len(values) or value in (0.0, 1.0)):
        low, high = find_wilson(round(value * groups), groups, confidence)
    else:
        draws = bootstrap_means([_group(outcomes)], bootstrap_samples, seed_for(seed, "bootstrap", outcomes.name, outcomes.metric))
        low, high = find_percentiles(draws, confidence, value)
    return Row(outcomes.name, outcomes.metric, value, low, high, len(values))


def measure_accuracy(
    predictions: Sequence[Prediction], *, name: str | None = None, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> Row:
    """Share of right answers of one system with its interval."""
    return measure_outcomes(read_outcomes(predictions, name=name), confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed)


def measure_consistency(predictions: Sequence[Prediction], *, name: str | None = None, confidence: float = 0.95) -> Row:
    """Share of groups whose rows are *all* right (NLVR, official definition: a sentence over all its pictures).

    Wilson's interval over groups; ``n`` is the number of groups.
    """
    outcomes = find_consistency(predictions, name=name)
    check_levels(confidence, 1)
    hits, count = int(outcomes.values.sum()), len(outcomes.values)
    low, high = find_wilson(hits, count, confidence)
    return Row(outcomes.name, "consistency", hits / count, low, high, count)


def find_consistency(predictions: Sequence[Prediction], *, name: str | None = None) -> Outcomes:
    """Group by group, whether *all* its rows are right: 1, else 0."""
    outcomes = read_outcomes(predictions, name=name)
    right: dict[str, bool] = {}
    for group, value in zip(outcomes.groups, outcomes.values, strict=True):
        right[group] = right.get(group, True) and bool(value == 1.0)
    groups = tuple(right)
    return Outcomes(outcomes.name, "consistency", groups, groups, np.array([float(right[group]) for group in groups]))


def measure_families(
    predictions: Sequence[Prediction],
    *,
    metric: str = "accuracy",
    name: str | None = None,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
    seed: int = 0,
) -> list[Row]:
    """One row per question family, metric ``<metric>/<family>``, in name order."""
    rows = []
    for family in sorted({row.family for row in predictions}):
        part = read_outcomes([row for row in predictions if row.family == family], metric=metric, name=name)
        named = Outcomes(part.name, f"{metric}/{family}", part.sample_ids, part.groups, part.values)
        rows.append(measure_outcomes(named, confidence=confidence, bootstrap_samples=bootstrap_samples, seed=seed))
    return rows


def measure_strata(
    strata: Sequence[Stratum], *, name: str, metric: str, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> Row:
    """The weighted sum of the strata's means (a benchmark's total over its categories) with a stratified bootstrap interval."""
    check_levels(confidence, bootstrap_samples)
    draws = bootstrap_strata(strata, bootstrap_samples, seed_for(seed, "strata", name, metric))
    value = float(sum(stratum.weight * stratum.values.mean() for stratum in strata))
    low, high = find_percentiles(draws, confidence, value)
    return Row(name, metric, value, low, high, sum(len(stratum.values) for stratum in strata))


def subtract_outcomes(a: Outcomes, b: Outcomes) -> Outcomes:
    """Per-sample differences a - b over the samples that both have, in the order of ``a``.

    Raises:
        DataError: the two metrics differ, no sample is shared, a sample's group differs, or (for accuracy) the sample sets differ.
    """
    if a.metric != b.metric:
        raise DataError(f"cannot pair {a.name} ({a.metric}) with {b.name} ({b.metric}): different metrics")
    if a.metric == "accuracy" and set(a.sample_ids) != set(b.sample_ids):
        lost = len(set(a.sample_ids) ^ set(b.sample_ids))
        raise DataError(f"cannot pair {a.name} with {b.name}: {lost} samples were answered by only one of them; pair equal sample sets")
    other = {sample_id: index for index, sample_id in enumerate(b.sample_ids)}
    shared = [(index, other[sample_id]) for index, sample_id in enumerate(a.sample_ids) if sample_id in other]
    if not shared:
        raise DataError(f"cannot pair {a.name} with {b.name} on {a.metric}: no sample in common")
    left, right = (np.asarray(side) for side in zip(*shared, strict=True))
    groups = tuple(a.groups[index] for index in left)
    moved = [a.sample_ids[i] for i, j in shared if a.groups[i] != b.groups[j]]
    if moved:
        raise DataError(f"cannot pair {a.name} with {b.name}: sample {moved[0]} has two groups")
    ids = tuple(a.sample_ids[index] for index in left)
    return Outcomes(f"{a.name} - {b.name}", a.metric, ids, groups, a.values[left] - b.values[right])


def compare_outcomes(a: Outcomes, b: Outcomes, *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0) -> Paired:
    """Paired difference a - b with the cluster bootstrap's percentile interval."""
    check_levels(confidence, bootstrap_samples)
    difference = subtract_outcomes(a, b)
    value = float(difference.values.mean())
    draws = bootstrap_means([_group(difference)], bootstrap_samples, seed_for(seed, "paired", a.name, b.name, a.metric))
    low, high = find_percentiles(draws, confidence, value)
    return Paired(a.name, b.name, a.metric, value, low, high, len(difference.values))


def mcnemar_p(a: Outcomes, b: Outcomes) -> float:
    """Exact two-sided McNemar p of two 0/1 outcomes on the same samples. For reference only: it ignores groups.

    Raises:
        DataError: values other than 0 and 1.
    """
    if not (np.isin(a.values, (0.0, 1.0)).all() and np.isin(b.values, (0.0, 1.0)).all()):
        raise DataError(f"McNemar's test of {a.name} and {b.name} on {a.metric}: values must be 0 or 1")
    difference = subtract_outcomes(a, b).values
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return float(binomtest(wins, wins + losses, 0.5).pvalue) if wins + losses else 1.0


def combine_seeds(
    runs: Sequence[Outcomes], *, name: str | None = None, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> Row:
    """Mean over seeds with a hierarchical bootstrap: seeds are redrawn, then groups.

    Where all runs answered the same groups, one draw of groups serves every seed of a bootstrap sample: the questions' luck
    is shared and must not average out. Else groups are redrawn within each seed. With k seeds the seed part of the interval is
    too narrow by about sqrt((k-1)/k) (resampling k of k values), so three seeds are a rough guide. ``n`` counts rows of all runs.

    Raises:
        DataError: no run, or runs of different metrics.
    """
    check_levels(confidence, bootstrap_samples)
    if not runs or len({run.metric for run in runs}) != 1:
        raise DataError(f"combine_seeds needs one or more runs of one metric, got {[run.metric for run in runs]}")
    label = name or runs[0].name
    value = float(np.mean([run.values.mean() for run in runs]))
    draws = bootstrap_means([_group(run) for run in runs], bootstrap_samples, seed_for(seed, "seeds", label, runs[0].metric))
    low, high = find_percentiles(draws, confidence, value)
    return Row(label, runs[0].metric, value, low, high, sum(len(run.values) for run in runs))


def compare_seeds(
    a: Sequence[Outcomes], b: Sequence[Outcomes], *, confidence: float = 0.95, bootstrap_samples: int = 2000, seed: int = 0
) -> Paired:
    """Paired difference over seeds: run i of ``a`` against run i of ``b``, then as in ``combine_seeds``."""
    if len(a) != len(b):
        raise DataError(f"compare_seeds: {len(a)} runs against {len(b)}; pair the runs of the same seeds")
    row = combine_seeds(
        [subtract_outcomes(left, right) for left, right in zip(a, b, strict=True)],
        confidence=confidence,
        bootstrap_samples=bootstrap_samples,
        seed=seed,
    )
    return Paired(a[0].name, b[0].name, row.metric, row.value, row.low, row.high, row.n)


def _group(outcomes: Outcomes) -> GroupedValues:
    return GroupedValues(outcomes.groups, outcomes.values)
