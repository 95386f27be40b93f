"""Scores with intervals: proportions, means, consistency, families, paired differences, several seeds.

Rows of one group (a scene, an NLVR sentence) are not independent, so groups are the unit of resampling: an interval is
Wilson's where every row is its own group and the values are 0 or 1, else the percentile interval of a cluster bootstrap.
All draws are keyed by ``seed_for``, so a table is the same on every machine and in every order of its rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from visloop.errors import ConfigError, DataError
from visloop.ids import seed_for
from visloop.records.reasoning import Prediction

Floats = NDArray[np.float64]

_MAX_CELLS = 1 << 22
_POINT_METRICS = frozenset({"path_score", "mme", "mme_perception", "mme_cognition", "ocrbench"})


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
    """Whether a metric is a fraction 0-1 that people read as per cent; path scores and benchmark sums are points."""
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
    _check_levels(confidence, bootstrap_samples)
    values, groups = outcomes.values, len(set(outcomes.groups))
    value = float(values.mean())
    binary = is_percentage(outcomes.metric) and bool(np.isin(values, (0.0, 1.0)).all())
    if binary and (groups == len(values) or value in (0.0, 1.0)):
        low, high = _wilson(round(value * groups), groups, confidence)
    else:
        draws = _bootstrap_means([outcomes], bootstrap_samples, seed_for(seed, "bootstrap", outcomes.name, outcomes.metric))
        low, high = _percentiles(draws, confidence, value)
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
    outcomes = read_outcomes(predictions, name=name)
    _check_levels(confidence, 1)
    right: dict[str, bool] = {}
    for group, value in zip(outcomes.groups, outcomes.values, strict=True):
        right[group] = right.get(group, True) and bool(value == 1.0)
    hits = sum(right.values())
    low, high = _wilson(hits, len(right), confidence)
    return Row(outcomes.name, "consistency", hits / len(right), low, high, len(right))


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
    _check_levels(confidence, bootstrap_samples)
    difference = subtract_outcomes(a, b)
    value = float(difference.values.mean())
    draws = _bootstrap_means([difference], bootstrap_samples, seed_for(seed, "paired", a.name, b.name, a.metric))
    low, high = _percentiles(draws, confidence, value)
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
    _check_levels(confidence, bootstrap_samples)
    if not runs or len({run.metric for run in runs}) != 1:
        raise DataError(f"combine_seeds needs one or more runs of one metric, got {[run.metric for run in runs]}")
    label = name or runs[0].name
    value = float(np.mean([run.values.mean() for run in runs]))
    draws = _bootstrap_means(runs, bootstrap_samples, seed_for(seed, "seeds", label, runs[0].metric))
    low, high = _percentiles(draws, confidence, value)
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


def _check_levels(confidence: float, bootstrap_samples: int) -> None:
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"evaluation.confidence: {confidence} is not between 0 and 1")
    if bootstrap_samples < 1:
        raise ConfigError(f"evaluation.bootstrap_samples: {bootstrap_samples}; at least 1 is needed")


def _wilson(hits: int, total: int, confidence: float) -> tuple[float, float]:
    interval = binomtest(hits, total).proportion_ci(confidence_level=confidence, method="wilson")
    # rounding can leave the ends a hair inside the estimate at 0 and 1
    return min(float(interval.low), hits / total), max(float(interval.high), hits / total)


def _percentiles(draws: Floats, confidence: float, value: float) -> tuple[float, float]:
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return min(float(low), value), max(float(high), value)


def _sum_groups(run: Outcomes) -> tuple[list[str], Floats, Floats]:
    names, codes = np.unique(np.asarray(run.groups, dtype=object).astype(str), return_inverse=True)
    counts = np.bincount(codes).astype(np.float64)
    return names.tolist(), np.bincount(codes, weights=run.values).astype(np.float64), counts


def _draw_ratios(sums: Floats, counts: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """Means (draws, runs) under redrawn groups. ``sums`` and ``counts``: (runs, groups); the runs share each draw."""
    groups = sums.shape[1]
    parts = []
    for start in range(0, draws, max(1, _MAX_CELLS // groups)):
        size = min(draws - start, max(1, _MAX_CELLS // groups))
        picked = rng.integers(groups, size=(size, groups)) + np.arange(size)[:, None] * groups
        weights = np.bincount(picked.ravel(), minlength=size * groups).reshape(size, groups).astype(np.float64)
        parts.append((weights @ sums.T) / (weights @ counts.T))
    return np.concatenate(parts)


def _bootstrap_means(runs: Sequence[Outcomes], draws: int, seed: int) -> Floats:
    """``draws`` bootstrap means over seeds and groups; one run is the plain cluster bootstrap."""
    rng = np.random.default_rng(seed)
    grouped = [_sum_groups(run) for run in runs]
    seeds = len(runs)
    chosen = rng.integers(seeds, size=(draws, seeds))
    if all(names == grouped[0][0] for names, _, _ in grouped):
        ratios = _draw_ratios(np.stack([sums for _, sums, _ in grouped]), np.stack([counts for _, _, counts in grouped]), draws, rng)
        return _average_seeds(np.take_along_axis(ratios, chosen, axis=1))
    means = np.empty((draws, seeds))
    for position in range(seeds):
        for index, (_, sums, counts) in enumerate(grouped):
            rows = chosen[:, position] == index
            if rows.any():
                means[rows, position] = _draw_ratios(sums[None], counts[None], int(rows.sum()), rng)[:, 0]
    return _average_seeds(means)


def _average_seeds(means: Floats) -> Floats:
    return np.asarray(means.mean(axis=1), dtype=np.float64)
