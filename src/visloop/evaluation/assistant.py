"""Is what the assistant did right? One score per task and trace for all four kinds of tasks, and the feedback in words that follows.

Answers: normalised exact match. Tags: precision, recall and F1 of boxes with the right label at an overlap of 0.5 (CLOVA), a task being
right when all tags are. Edits: ``edit_scores``. Only measuring instruments and feedback may read a ``TaskTruth``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from PIL import Image, UnidentifiedImageError

from visloop.answers import compare_answers, normalize_answer, read_boolean, read_number
from visloop.errors import DataError
from visloop.evaluation.edit_scores import PASS, CheckCrop, EditScore, check_objects, score_edit
from visloop.ids import make_id
from visloop.records.assistant import Feedback, LabelledBox, Task, TaskKind, TaskTruth, Trace
from visloop.records.reasoning import Prediction
from visloop.scenes.export import parse_scene
from visloop.scenes.workshop_families import WORLDS
from visloop.scenes.workshop_tasks import SOURCE
from visloop.tools.values import Box, overlap_ratio

OVERLAP: Final = 0.5
"""Intersection over union from which a box is the right one (CLOVA)."""
ANSWERED: Final[tuple[TaskKind, ...]] = ("vqa", "multi_image")
"""Kinds of tasks whose result is an answer in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScore:
    """Whether a trace solved its task, the figures behind it, and what is wrong in words."""

    task_id: str
    trace_id: str
    correct: bool
    metrics: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TagMatch:
    """Counts of one picture: tags that are right, given, and wanted; ``located`` counts boxes that are right whatever their label."""

    right: int
    located: int
    given: int
    wanted: int


def type_answer(answer: str) -> str:
    """The answer type of a ground-truth answer: ``boolean``, ``number`` or ``phrase``."""
    if read_boolean(answer) is not None and len(answer.split()) == 1:
        return "boolean"
    return "number" if read_number(answer) is not None else "phrase"


def score_answer(result: str | None, answer: str) -> bool:
    """Whether a result is the answer, after normalising (yes is true, number words are digits). No result is wrong."""
    return result is not None and compare_answers(result, answer, answer_type=type_answer(answer)) == "correct"


def _count_pairs(given: Sequence[LabelledBox], wanted: Sequence[LabelledBox], *, overlap: float, labels: bool) -> int:
    """How many pairs there are at most in which every given and every wanted box occurs once, best overlaps first."""

    def ratio(first: LabelledBox, second: LabelledBox) -> float:
        one, two = (Box(left=box[0], top=box[1], right=box[2], bottom=box[3]) for box in (first.box, second.box))
        return overlap_ratio(one, two)

    pairs = [
        (ratio(first, second), left, right)
        for left, first in enumerate(given)
        for right, second in enumerate(wanted)
        if not labels or normalize_answer(first.label) == normalize_answer(second.label)
    ]
    used_given: set[int] = set()
    used_wanted: set[int] = set()
    for value, left, right in sorted(pairs, key=lambda pair: -pair[0]):
        if value >= overlap and left not in used_given and right not in used_wanted:
            used_given.add(left)
            used_wanted.add(right)
    return len(used_given)


def match_tags(given: Sequence[LabelledBox], wanted: Sequence[LabelledBox], *, overlap: float = OVERLAP) -> TagMatch:
    """Pair tags with the right ones, each at most once. A tag is right where its label is and the boxes overlap enough."""
    return TagMatch(
        right=_count_pairs(given, wanted, overlap=overlap, labels=True),
        located=_count_pairs(given, wanted, overlap=overlap, labels=False),
        given=len(given),
        wanted=len(wanted),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def measure_tags(matches: Iterable[TagMatch]) -> dict[str, float]:
    """Micro precision, recall and F1 over pictures, of tags and (``located_*``) of boxes whatever their label. A share of nothing is 1."""
    right = located = given = wanted = 0
    for match in matches:
        right, located, given, wanted = right + match.right, located + match.located, given + match.given, wanted + match.wanted
    figures: dict[str, float] = {}
    for prefix, hits in (("", right), ("located_", located)):
        figures |= {
            f"{prefix}precision": _share(hits, given),
            f"{prefix}recall": _share(hits, wanted),
            f"{prefix}f1": _share(2 * hits, given + wanted),
        }
    return figures


def _describe_tags(tags: Sequence[LabelledBox]) -> str:
    shown = [f"{tag.label or 'no name'} at ({', '.join(str(round(value)) for value in tag.box)})" for tag in tags]
    return f"{len(tags)} {'tag' if len(tags) == 1 else 'tags'}" + (": " + "; ".join(shown) if shown else "")


def _open_picture(data: Path, name: str, *, task_id: str) -> Image.Image:
    try:
        with Image.open(data / name) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"task {task_id}: picture {data / name} cannot be read: {error}") from error


def _score_edit(trace: Trace, truth: TaskTruth, *, task: Task, data: Path, check: CheckCrop | None) -> EditScore | None:
    if truth.target is None:
        raise DataError(f"task {task.id}: the truth of an editing task must have a target picture")
    if trace.result_image is None:
        return None
    return score_edit(
        _open_picture(data, task.images[0], task_id=task.id),
        _open_picture(data, trace.result_image, task_id=task.id),
        _open_picture(data, truth.target, task_id=task.id),
        region=truth.region,
        scene=parse_scene(truth.scene) if truth.scene and task.source == SOURCE else None,
        spec=WORLDS[task.kind],
        check=check,
    )


def _can_check(truth: TaskTruth, *, data: Path, check: CheckCrop) -> bool:
    """Whether the check would have said something of a new object. Where none is there it fits none of the words, so that a run without
    a picture counts in the mean as the others do."""
    if truth.target is None:
        return False
    target = _open_picture(data, truth.target, task_id=truth.task_id)
    return check_objects(target, truth.region, check=check) is not None


def score_task(
    trace: Trace, truth: TaskTruth, *, task: Task, data: Path, check: CheckCrop | None = None, threshold: float = PASS
) -> TaskScore:
    """Whether one trace solved its task. A run that did not finish did not.

    Args:
        data: the data folder that picture paths are relative to (read for editing tasks only).
        check: how well a crop of an edited picture fits words, 0-1; its mean is the metric ``check`` (absent where it says nothing, 0
            where there is no picture), and it decides where no scene does.
        threshold: edit score from which an edit is right.

    Raises:
        DataError: trace, truth and task are not of one task, the truth lacks what its kind needs, or a picture cannot be read.
    """
    if not trace.task_id == truth.task_id == task.id:
        raise DataError(f"trace {trace.id} of task {trace.task_id}, truth of task {truth.task_id}, task {task.id}: must be one task")
    finished = trace.status == "finished"
    metrics, notes, correct = {"finished": float(finished)}, [], False
    if not finished:
        notes.append(f"The program did not run to its end: {trace.error or trace.status}.")
    if task.kind in ANSWERED:
        if truth.answer is None:
            raise DataError(f"task {task.id}: the truth of a {task.kind} task must have an answer")
        correct = finished and score_answer(trace.result, truth.answer)
        notes.append(f"The correct answer should be {truth.answer}.")
    elif task.kind == "tagging":
        given = trace.result_boxes if finished else ()
        match = match_tags(given, truth.boxes)
        metrics |= {"right": match.right, "located": match.located, "given": match.given, "wanted": match.wanted}
        metrics |= measure_tags([match])
        correct = finished and match.right == match.given == match.wanted
        notes.append(f"There should be {_describe_tags(truth.boxes)}. The result has {_describe_tags(given)}.")
    else:
        score = _score_edit(trace, truth, task=task, data=data, check=check) if finished else None
        metrics |= {"edit_score": score.score, "inside": score.inside, "outside": score.outside} if score else {"edit_score": 0.0}
        if score is not None and score.check is not None:
            metrics["check"] = score.check
        elif score is None and check is not None and _can_check(truth, data=data, check=check):
            metrics["check"] = 0.0
        correct = score is not None and score.score >= threshold
        notes += score.notes if score is not None else []
        if finished and score is None:
            notes.append("The result should be a picture.")
    return TaskScore(task_id=task.id, trace_id=trace.id, correct=correct, metrics=metrics, notes=() if correct else tuple(notes))


def make_feedback(trace: Trace, truth: TaskTruth, *, score: TaskScore) -> Feedback:
    """The feedback that ground truth gives on a trace: accepted or not, the right answer where there is one, and what was wrong.

    Raises:
        DataError: the score is of another trace.
    """
    if score.trace_id != trace.id:
        raise DataError(f"trace {trace.id}: the score is of trace {score.trace_id}")
    return Feedback(
        id=make_id("feedback", "ground_truth", trace.id),
        task_id=truth.task_id,
        trace_id=trace.id,
        accepted=score.correct,
        answer=truth.answer,
        text=" ".join(score.notes),
    )


def make_prediction(task: Task, trace: Trace, *, score: TaskScore, system: str) -> Prediction:
    """The task as a row for ``evaluation.metrics``: accuracy, consistency of groups (NLVR), families, paired differences."""
    return Prediction(
        sample_id=task.id,
        system=system,
        family=task.family,
        group=task.group,
        answer=trace.result,
        correct=score.correct,
        status="ok" if trace.status == "finished" else "failed",
        metrics=score.metrics,
    )
