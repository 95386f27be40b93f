"""The search learns from feedback alone: whether results were right, or what the right answer was (no program is ever shown to it)."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from visloop.assistant.search_judgements import Judgement
from visloop.assistant.search_scenes import Executor, join_scenes
from visloop.assistant.search_scorer import Scorer
from visloop.assistant.search_training import Lesson, build_design, fit_weights
from visloop.assistant.search_words import collect_words, repair_words
from visloop.errors import DataError
from visloop.ids import hash_text


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """How the scorer is fitted: ``penalty`` on squared weights, ``steps`` of Adam from ``rate`` to nothing, ``dropout`` of features,
    ``models`` with other seeds whose weights are averaged, ``reference``: tasks on whose pictures candidates are rated."""

    penalty: float = 0.3
    steps: int = 200
    rate: float = 0.02
    dropout: float = 0.3
    models: int = 3
    reference: int = 96
    seed: int = 0


def group_judgements(judgements: Sequence[Judgement]) -> list[list[Judgement]]:
    """Judgements on the same words together, everything in the order of ids: the order in which feedback came changes nothing.

    Raises:
        DataError: two judgements of one id.
    """
    ordered = sorted(judgements, key=lambda item: item.id)
    twice = next((item.id for item, after in pairwise(ordered) if item.id == after.id), None)
    if twice is not None:
        raise DataError(f"judgement {twice} is given twice; one judgement per task")
    groups: dict[tuple[str, ...], list[Judgement]] = defaultdict(list)
    for item in ordered:
        groups[repair_words(item.instruction, ())].append(item)
    return list(groups.values())


def make_lesson(scorer: Scorer, judgements: Sequence[Judgement]) -> Lesson:
    """The candidates of one instruction, and which of them agree with all of its judgements."""
    reading = scorer.read(judgements[0].instruction)
    candidates = scorer.list_candidates(reading)
    executor = Executor(join_scenes([item.scene for item in judgements]), scorer.space)
    answers = np.array([item.answer for item in judgements])
    agrees = [float((executor.judge(candidate.meaning) == answers).all()) for candidate in candidates]
    return Lesson(reading, candidates, np.array(agrees, dtype=np.float64))


def learn(scorer: Scorer, judgements: Sequence[Judgement], *, settings: TrainingSettings | None = None, go_on: bool = False) -> Scorer:
    """A new snapshot, fitted to all the judgements given: pass those of earlier cycles too. ``scorer`` gives space and words; its weights
    play no part, so that the result depends on the judgements alone, in whatever order they are.

    With ``go_on`` its weights are where learning starts from and returns to, and its reference pictures stay: for a scorer whose own
    judgements are no longer at hand.

    Raises:
        DataError: two judgements of one id.
    """
    settings = settings or TrainingSettings()
    prepared = prepare_scorer(scorer, judgements, reference=settings.reference)
    if go_on:
        prepared = replace(
            prepared,
            known=prepared.known | scorer.known,
            reference=prepared.reference if scorer.reference is None else scorer.reference,
            judgements=(*scorer.judgements, *prepared.judgements),
        )
    lessons = [make_lesson(prepared, group) for group in group_judgements(judgements)]
    return replace(prepared, weights=fit_scorer(lessons, settings=settings, start=scorer.weights if go_on else {}))


def prepare_scorer(scorer: Scorer, judgements: Sequence[Judgement], *, reference: int) -> Scorer:
    """A snapshot with the words and reference pictures that the judgements give, and no weights yet."""
    groups = group_judgements(judgements)
    known = collect_words(scorer.lexicon, [group[0].instruction for group in groups])
    drawn = sorted(judgements, key=lambda item: hash_text(f"reference {item.id}"))[:reference]
    return replace(
        scorer,
        known=known,
        weights={},
        reference=join_scenes([item.scene for item in drawn]) if drawn else None,
        judgements=tuple(item.id for group in groups for item in group),
    )


def fit_scorer(lessons: Sequence[Lesson], *, settings: TrainingSettings, start: Mapping[str, float] | None = None) -> dict[str, float]:
    """Weights by feature, rounded to what is saved (float32); weights of nothing are left out. ``start``: weights that the penalty pulls
    to; those of features that no lesson has stay."""
    design, start = build_design(lessons), start or {}
    first = np.array([start.get(name, 0.0) for name in design.names])
    total = np.zeros(len(design.names))
    for model in range(settings.models):
        total += fit_weights(
            design,
            start=first,
            penalty=settings.penalty,
            steps=settings.steps,
            rate=settings.rate,
            dropout=settings.dropout,
            seed=settings.seed + model,
        )
    values = (total / settings.models).astype(np.float32)
    fitted = dict(zip(design.names, map(float, values), strict=True))
    return {name: value for name, value in {**start, **fitted}.items() if value != 0}
