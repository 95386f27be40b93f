"""A benchmark's score from its items and a system's replies, with intervals, and the averages over benchmarks.

Only a final answer may be scored: a chain of reasoning inflates every rule that looks for a text inside the reply.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import ConfigError, DataError
from visloop.evaluation.benchmarks.choices import Convention
from visloop.evaluation.benchmarks.rules import JUDGED, RULES, Reading, Verdict
from visloop.evaluation.benchmarks.totals import MME_MAXIMUM, OCRBENCH_MAXIMUM, TOTALS, TotalSettings, total_mean
from visloop.evaluation.metrics import Row
from visloop.ids import seed_for
from visloop.records.reasoning import Prediction

MMMU_PRO_PARTS = ("mmmu_pro_standard", "mmmu_pro_vision")
Mode = Literal["rules", "judge"]
"""How answers were read: by rules alone, or (MMBench, MathVista) from what a judge extracted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkScore:
    """One system on one benchmark. ``rows``: the official number first, then its parts. ``parse_failures``: replies that held
    no readable answer (guessed where the official rule guesses); ``missing``: questions without any reply, scored wrong."""

    benchmark: str
    rows: tuple[Row, ...]
    predictions: tuple[Prediction, ...]
    parse_failures: int
    missing: int
    mode: Mode
    convention: Convention

    @property
    def parse_failure_rate(self) -> float:
        return self.parse_failures / len(self.predictions)


def score_benchmark(
    items: Sequence[BenchmarkItem],
    replies: Mapping[str, str | None],
    *,
    system: str,
    seed: int = 0,
    convention: Convention = "official",
    extractions: Mapping[str, str] | None = None,
    confidence: float = 0.95,
    bootstrap_samples: int = 2000,
) -> BenchmarkScore:
    """Score the final answers of one system by the benchmark's own rules.

    Args:
        items: all questions of one benchmark.
        replies: final answers by sample id; None or no entry is a missing answer.
        seed: keys the guesses that MMMU's and MMBench's rules make for unreadable replies, and the bootstrap.
        convention: whose variant of the rules, see ``choices.Convention``.
        extractions: answers that a judge read out of the replies, by sample id, for MMBench (letters) and MathVista; without
            them both are read by rules, and ``mode`` says so.

    Raises:
        ConfigError: an unknown benchmark, or extractions for one that has no judge.
        DataError: no items, items of several benchmarks, replies to unknown questions, or MME pictures without both questions.
    """
    names = sorted({item.benchmark for item in items})
    if len(names) != 1:
        raise DataError(f"score_benchmark needs the items of one benchmark, got {names or 'none'}")
    name = names[0]
    if name not in RULES:
        raise ConfigError(f"no scorer for benchmark {name!r}; known: {', '.join(RULES)}")
    if extractions is not None and name not in JUDGED:
        raise ConfigError(f"benchmark {name} is scored by rules alone; a judge is used for {', '.join(sorted(JUDGED))}")
    unknown = sorted(set(replies) - {item.sample.id for item in items})
    if unknown:
        raise DataError(f"benchmark {name}: {len(unknown)} replies to questions that were not asked, e.g. {unknown[0]}")
    predictions, failures, missing = [], 0, 0
    for item in items:
        reply = replies.get(item.sample.id)
        extracted = extractions.get(item.sample.id) if extractions is not None else None
        reading = Reading(seed=seed_for(seed, "guess", item.sample.id), convention=convention, extracted=extracted)
        verdict = Verdict(0.0) if reply is None else RULES[name](item, reply, reading)
        missing += reply is None
        failures += not verdict.readable
        predictions.append(_make_prediction(item, reply, verdict, system=system))
    settings = TotalSettings(system=system, seed=seed, confidence=confidence, bootstrap_samples=bootstrap_samples)
    return BenchmarkScore(
        benchmark=name,
        rows=tuple(TOTALS.get(name, total_mean)(name, items, predictions, settings)),
        predictions=tuple(predictions),
        parse_failures=failures,
        missing=missing,
        mode="judge" if extractions is not None else "rules",
        convention=convention,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """Means of benchmark scores, all on 0-100. Which numbers enter is part of the name: ``without_mme`` leaves MME out,
    ``with_mme`` takes its perception + cognition sum as a percentage of 2800. (A mean that mixes MME as a fraction of 1 with
    percentages, as in the paper's table, is not one of them.)"""

    benchmarks: tuple[str, ...]
    percentages: Mapping[str, float]
    without_mme: float
    with_mme: float | None


def average_benchmarks(scores: Sequence[BenchmarkScore], *, benchmarks: Sequence[str]) -> Averages:
    """The averages over exactly the named benchmarks; MMMU-Pro's two parts count once, as their mean, under ``mmmu_pro``.

    Raises:
        DataError: a named benchmark has no score, or one besides MME would remain none.
    """
    percentages = {score.benchmark: to_percentage(score) for score in scores}
    parts = [percentages[part] for part in MMMU_PRO_PARTS if part in percentages]
    if len(parts) == len(MMMU_PRO_PARTS):
        percentages["mmmu_pro"] = float(np.mean(parts))
    lost = [name for name in benchmarks if name not in percentages]
    if lost or not set(benchmarks) - {"mme"}:
        raise DataError(f"average over {', '.join(benchmarks) or 'nothing'}: no score of {', '.join(lost) or 'a benchmark besides MME'}")
    chosen = {name: percentages[name] for name in benchmarks}
    rest = [value for name, value in chosen.items() if name != "mme"]
    whole = float(np.mean(list(chosen.values()))) if "mme" in chosen else None
    return Averages(benchmarks=tuple(benchmarks), percentages=chosen, without_mme=float(np.mean(rest)), with_mme=whole)


def list_averaged(names: Sequence[str]) -> list[str]:
    """What an average over all of ``names`` names: MMMU-Pro's parts, where both are there, as one."""
    whole = set(MMMU_PRO_PARTS) <= set(names)
    return list(dict.fromkeys("mmmu_pro" if whole and name in MMMU_PRO_PARTS else name for name in names))


def to_percentage(score: BenchmarkScore) -> float:
    """The official number on 0-100: MME's sum over 2800, OCRBench's over 1000, all others are fractions."""
    value = score.rows[0].value
    return 100.0 * value / {"mme": MME_MAXIMUM, "ocrbench": OCRBENCH_MAXIMUM}.get(score.benchmark, 1.0)


def _make_prediction(item: BenchmarkItem, reply: str | None, verdict: Verdict, *, system: str) -> Prediction:
    return Prediction(
        sample_id=item.sample.id,
        system=system,
        family=item.sample.family,
        group=item.sample.group,
        answer=reply,
        correct=verdict.value == 1.0,
        status="answer_missing" if reply is None else "ok",
        metrics={item.benchmark: verdict.value},
    )
