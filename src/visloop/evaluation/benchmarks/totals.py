"""The official totals of each benchmark over its questions, as rows with intervals: the headline number first."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from visloop.datasets.benchmarks import BenchmarkItem
from visloop.errors import DataError
from visloop.evaluation.metrics import Outcomes, Row, measure_consistency, measure_outcomes, measure_strata
from visloop.evaluation.resampling import Stratum
from visloop.records.reasoning import Prediction

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MME_MAXIMUM = 2800.0
OCRBENCH_MAXIMUM = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalSettings:
    """Whose rows these are, and how their intervals are made."""

    system: str
    seed: int
    confidence: float
    bootstrap_samples: int


def _outcomes(name: str, predictions: Sequence[Prediction], settings: TotalSettings, *, benchmark: str) -> Outcomes:
    values = np.array([prediction.metrics[benchmark] for prediction in predictions], dtype=np.float64)
    ids, groups = tuple(row.sample_id for row in predictions), tuple(row.group for row in predictions)
    return Outcomes(settings.system, name, ids, groups, values)


def _measure(outcomes: Outcomes, settings: TotalSettings) -> Row:
    return measure_outcomes(outcomes, confidence=settings.confidence, bootstrap_samples=settings.bootstrap_samples, seed=settings.seed)


def _measure_strata(name: str, strata: Sequence[Stratum], settings: TotalSettings) -> Row:
    return measure_strata(
        strata,
        name=settings.system,
        metric=name,
        confidence=settings.confidence,
        bootstrap_samples=settings.bootstrap_samples,
        seed=settings.seed,
    )


def _by_family(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    families: dict[str, list[Prediction]] = defaultdict(list)
    for prediction in predictions:
        families[prediction.family].append(prediction)
    return dict(sorted(families.items()))


def total_mean(name: str, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction], settings: TotalSettings) -> list[Row]:
    """The mean over all questions, then over each family."""
    rows = [_measure(_outcomes(name, predictions, settings, benchmark=name), settings)]
    families = _by_family(predictions)
    if len(families) > 1:
        rows += [_measure(_outcomes(f"{name}/{family}", part, settings, benchmark=name), settings) for family, part in families.items()]
    return rows


def _total_mmbench(name: str, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction], settings: TotalSettings) -> list[Row]:
    """Circular accuracy (a question counts when all its rotations are right); ``mmbench/vanilla`` is the first pass alone."""
    circular = measure_consistency(predictions, name=settings.system, confidence=settings.confidence)
    first: dict[str, tuple[int, Prediction]] = {}
    for item, prediction in zip(items, predictions, strict=True):
        turn = int(item.details["key"])
        if prediction.group not in first or turn < first[prediction.group][0]:
            first[prediction.group] = turn, prediction
    vanilla = [prediction for _, prediction in first.values()]
    rows = [Row(settings.system, name, circular.value, circular.low, circular.high, circular.n)]
    return [*rows, _measure(_outcomes(f"{name}/vanilla", vanilla, settings, benchmark=name), settings)]


def _total_mme(name: str, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction], settings: TotalSettings) -> list[Row]:
    """Per category acc + acc+ (both questions of a picture right), 0-200; perception sums ten categories, cognition four."""
    strata = {}
    for family, part in _by_family(predictions).items():
        if family not in PERCEPTION + COGNITION:
            raise DataError(f"MME: unknown category {family!r}; known: {', '.join(PERCEPTION + COGNITION)}")
        pictures: dict[str, list[bool]] = defaultdict(list)
        for prediction in part:
            pictures[prediction.group].append(prediction.correct)
        odd = [group for group, verdicts in pictures.items() if len(verdicts) != 2]
        if odd:
            raise DataError(f"MME: picture {odd[0]} has {len(pictures[odd[0]])} questions; acc+ needs both of them")
        values = np.array([100.0 * np.mean(verdicts) + 100.0 * all(verdicts) for verdicts in pictures.values()], dtype=np.float64)
        strata[family] = Stratum(tuple(pictures), values)
    rows = [_measure_strata("mme", list(strata.values()), settings)]
    for part_name, categories in (("mme_perception", PERCEPTION), ("mme_cognition", COGNITION)):
        found = [strata[category] for category in categories if category in strata]
        if found:
            rows.append(_measure_strata(part_name, found, settings))
    return rows + [_measure_strata(f"mme/{category}", [stratum], settings) for category, stratum in strata.items()]


def _total_mmstar(name: str, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction], settings: TotalSettings) -> list[Row]:
    """The mean over the fine categories, not over questions; then the accuracy of each broad category."""
    fine: dict[str, list[Prediction]] = defaultdict(list)
    for item, prediction in zip(items, predictions, strict=True):
        fine[item.details["l2_category"]].append(prediction)
    strata = [
        Stratum(tuple(row.group for row in part), np.array([row.metrics[name] for row in part]), weight=1.0 / len(fine))
        for _, part in sorted(fine.items())
    ]
    families = _by_family(predictions).items()
    parts = [_measure(_outcomes(f"{name}/{family}", part, settings, benchmark=name), settings) for family, part in families]
    return [_measure_strata(name, strata, settings), *parts]


def _total_ocrbench(name: str, items: Sequence[BenchmarkItem], predictions: Sequence[Prediction], settings: TotalSettings) -> list[Row]:
    """Right answers per 1,000 questions (the whole benchmark has 1,000, so this is their number); then each type's accuracy."""
    values = np.array([prediction.metrics[name] for prediction in predictions], dtype=np.float64)
    whole = Stratum(tuple(prediction.group for prediction in predictions), values, weight=OCRBENCH_MAXIMUM)
    families = _by_family(predictions).items()
    parts = [_measure(_outcomes(f"ocrbench_type/{family}", part, settings, benchmark=name), settings) for family, part in families]
    return [_measure_strata(name, [whole], settings), *parts]


TOTALS: dict[str, Callable[[str, Sequence[BenchmarkItem], Sequence[Prediction], TotalSettings], list[Row]]] = {
    "mmbench": _total_mmbench,
    "mme": _total_mme,
    "mmstar": _total_mmstar,
    "ocrbench": _total_ocrbench,
}
