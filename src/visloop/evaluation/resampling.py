"""Intervals by formula and by resampling: Wilson's, and bootstraps over groups, seeds and strata, all vectorised."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from visloop.errors import ConfigError, DataError

Floats = NDArray[np.float64]

_MAX_CELLS = 1 << 22
"""Draws are made in blocks of at most so many (draw, group) cells, which bounds the memory."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupedValues:
    """Values (n,) with the group of each: the unit that is redrawn."""

    groups: tuple[str, ...]
    values: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Stratum:
    """A part that is redrawn on its own (a category): groups, values (n,) and the weight of its mean in the sum."""

    groups: tuple[str, ...]
    values: Floats
    weight: float = 1.0


def check_levels(confidence: float, bootstrap_samples: int) -> None:
    """Raises ConfigError for a confidence outside 0..1 or no bootstrap sample."""
    if not 0.0 < confidence < 1.0:
        raise ConfigError(f"evaluation.confidence: {confidence} is not between 0 and 1")
    if bootstrap_samples < 1:
        raise ConfigError(f"evaluation.bootstrap_samples: {bootstrap_samples}; at least 1 is needed")


def find_wilson(hits: int, total: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a proportion."""
    interval = binomtest(hits, total).proportion_ci(confidence_level=confidence, method="wilson")
    # rounding can leave the ends a hair inside the estimate at 0 and 1
    return min(float(interval.low), hits / total), max(float(interval.high), hits / total)


def find_percentiles(draws: Floats, confidence: float, value: float) -> tuple[float, float]:
    """Percentile interval of bootstrap draws; it always holds ``value``."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail])
    return min(float(low), value), max(float(high), value)


def _sum_groups(run: GroupedValues) -> tuple[list[str], Floats, Floats]:
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


def bootstrap_means(runs: Sequence[GroupedValues], draws: int, seed: int) -> Floats:
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


def bootstrap_strata(strata: Sequence[Stratum], draws: int, seed: int) -> Floats:
    """``draws`` bootstrap values of the weighted sum of the strata's means; groups are redrawn within each stratum.

    Raises:
        DataError: no stratum, or one without values.
    """
    if not strata or any(len(stratum.values) == 0 for stratum in strata):
        raise DataError(f"{len(strata)} strata, some without values; every category needs at least one question")
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for stratum in strata:
        _, sums, counts = _sum_groups(GroupedValues(stratum.groups, stratum.values))
        total += stratum.weight * _draw_ratios(sums[None], counts[None], draws, rng)[:, 0]
    return total
