"""The search learns from feedback alone: whether results were right, or what the right answer was (no program is ever shown to it)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from visloop.assistant.search_scenes import Executor, SceneTable, join_scenes
from visloop.assistant.search_scorer import Scorer
from visloop.assistant.search_training import Lesson, build_design, fit_weights
from visloop.assistant.search_words import collect_words, repair_words
from visloop.errors import DataError
from visloop.ids import hash_text
from visloop.records.assistant import Feedback, Trace

_TRUTHS = {"true": True, "yes": True, "false": False, "no": False}


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What feedback on one task says: the right answer, true or false, to an instruction about one scene (a table of one task)."""

    id: str
    instruction: str
    scene: SceneTable
    answer: bool


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


def read_judgement(trace: Trace, feedback: Feedback, *, instruction: str, scene: SceneTable) -> Judgement | None:
    """The judgement that feedback on a trace makes: the right answer where it is given, else the result, or its opposite if it was not
    accepted. None where the answers are not true or false.

    Raises:
        DataError: the feedback is about another trace.
    """
    if feedback.trace_id != trace.id:
        raise DataError(f"feedback {feedback.id} is about trace {feedback.trace_id}, not {trace.id}")
    if feedback.answer is not None:
        answer = _TRUTHS.get(feedback.answer.strip().lower())
    else:
        result = _TRUTHS.get((trace.result or "").strip().lower())
        answer = None if result is None else result is feedback.accepted
    return None if answer is None else Judgement(feedback.task_id, instruction, scene, answer)


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


def learn(scorer: Scorer, judgements: Sequence[Judgement], *, settings: TrainingSettings | None = None) -> Scorer:
    """A new snapshot, fitted to all the judgements given: pass those of earlier cycles too. ``scorer`` gives space and words; its weights
    play no part, so that the result depends on the judgements alone, in whatever order they are.

    Raises:
        DataError: two judgements of one id.
    """
    settings = settings or TrainingSettings()
    prepared = prepare_scorer(scorer, judgements, reference=settings.reference)
    lessons = [make_lesson(prepared, group) for group in group_judgements(judgements)]
    return replace(prepared, weights=fit_scorer(lessons, settings=settings))


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


def fit_scorer(lessons: Sequence[Lesson], *, settings: TrainingSettings) -> dict[str, float]:
    """Weights by feature, rounded to what is saved (float32); weights of nothing are left out."""
    design = build_design(lessons)
    total = np.zeros(len(design.names))
    for model in range(settings.models):
        total += fit_weights(
            design,
            penalty=settings.penalty,
            steps=settings.steps,
            rate=settings.rate,
            dropout=settings.dropout,
            seed=settings.seed + model,
        )
    values = (total / settings.models).astype(np.float32)
    return {name: float(value) for name, value in zip(design.names, values, strict=True) if value != 0}
