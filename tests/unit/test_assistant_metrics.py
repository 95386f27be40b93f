"""Scores of the assistant's results: exact answers, tags, edits zone by zone, and the feedback in words."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from visloop.errors import DataError
from visloop.evaluation.assistant import make_feedback, make_prediction, match_tags, measure_tags, score_answer, score_task
from visloop.evaluation.edit_scores import PASS, EditScore, score_edit
from visloop.evaluation.metrics import measure_consistency
from visloop.records.assistant import LabelledBox, Proposal, Task, TaskTruth, Trace
from visloop.scenes.edits import EditStep, apply_edits, draw_emoji
from visloop.scenes.export import save_picture
from visloop.scenes.filters import Filter
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import locate_objects
from visloop.scenes.workshop import WORKSHOP
from visloop.scenes.workshop_tasks import mark_region
from visloop.scenes.world import Scene, SceneObject, make_scene

SCENE = make_scene(
    (
        (
            SceneObject("square", "blue", "large", "plain", 1, 1),
            SceneObject("circle", "red", "medium", "dotted", 3, 1),
            SceneObject("heart", "yellow", "medium", "plain", 2, 2),
            SceneObject("bar", "green", "medium", "plain", 1, 3),
        ),
    ),
    seed=11,
)
ORIGINAL = render_scene(SCENE, spec=WORKSHOP)[0]
TASK = Task(
    id="t",
    kind="vqa",
    instruction="?",
    images=("a.png",),
    inputs=("IMAGE",),
    family="f",
    wording="base",
    split="test",
    group="g",
    source="workshop",
)


def make_trace(**changes: object) -> Trace:
    proposal = Proposal(task_id="t", plan=(), program="", author="test")
    return Trace(**{"id": "r", "task_id": "t", "proposal": proposal, "steps": (), "status": "finished", **changes})  # type: ignore[arg-type]


def replace_task(**changes: object) -> Task:
    return Task(**{name: getattr(TASK, name) for name in Task.__dataclass_fields__} | changes)  # type: ignore[arg-type]


def tag(label: str, left: float, top: float, right: float, bottom: float) -> LabelledBox:
    return LabelledBox(box=(left, top, right, bottom), label=label)


@pytest.mark.parametrize(
    ("result", "answer", "right"),
    [
        ("yes", "yes", True),
        ("True", "yes", True),
        ("Yes.", "true", True),
        ("no", "yes", False),
        ("yes and no", "yes", False),
        ("3", "3", True),
        ("three", "3", True),
        ("3.0", "3", True),
        ("4", "3", False),
        ("0", "no", False),
        ("a star", "star", True),
        ("stars", "star", False),
        ("dark red", "red", False),
        ("", "red", False),
        (None, "red", False),
    ],
)
def test_answers_are_compared_after_normalising(result: str | None, answer: str, right: bool) -> None:
    assert score_answer(result, answer) is right


def test_tags_by_hand() -> None:
    wanted = [tag("star", 0, 0, 10, 10), tag("heart", 20, 0, 30, 10)]
    # right, right place but wrong name, nothing there; a second tag on the star counts as wrong
    given = [tag("The Star", 0, 0, 10, 9), tag("star", 21, 0, 30, 10), tag("heart", 50, 50, 60, 60), tag("star", 0, 0, 10, 10)]
    match = match_tags(given, wanted)
    assert (match.right, match.located, match.given, match.wanted) == (1, 2, 4, 2)
    figures = measure_tags([match, match_tags([], []), match_tags([], wanted)])
    assert figures["precision"] == 1 / 4
    assert figures["recall"] == 1 / 4
    assert figures["f1"] == pytest.approx(2 * 1 / (4 + 4))
    assert figures["located_precision"] == 2 / 4


def test_overlap_of_exactly_a_half_counts_and_less_does_not() -> None:
    assert match_tags([tag("x", 0, 0, 10, 10)], [tag("x", 0, 0, 10, 20)]).right == 1
    assert match_tags([tag("x", 0, 0, 10, 9)], [tag("x", 0, 0, 10, 20)]).right == 0


@given(
    boxes=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 30)), max_size=6),
    others=st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.integers(0, 30)), max_size=6),
)
def test_tag_counts_are_bounded_and_symmetric(boxes: list[tuple[str, int, int]], others: list[tuple[str, int, int]]) -> None:
    first, second = ([tag(label, x, y, x + 8, y + 8) for label, x, y in entries] for entries in (boxes, others))
    match, back = match_tags(first, second), match_tags(second, first)
    assert (match.right, match.given, match.wanted) == (back.right, back.wanted, back.given)
    assert 0 <= match.right <= match.located <= min(match.given, match.wanted)
    assert all(0 <= value <= 1 for value in measure_tags([match]).values())
    assert match_tags(first, first).right == len(first)


def score(edited: Image.Image, *steps: EditStep, scene: Scene = SCENE) -> EditScore:
    original = render_scene(scene, spec=WORKSHOP)[0]
    target = apply_edits(scene, steps, spec=WORKSHOP)
    return score_edit(original, edited, target, region=mark_region(scene, steps), scene=scene)


def edit(*steps: EditStep) -> Image.Image:
    return apply_edits(SCENE, steps, spec=WORKSHOP)


RED_STAR = EditStep(operation="replace", objects=(0,), words=Filter(color="red", shape="star"))
POP = EditStep(operation="color_pop", objects=(1,))
BLUR = EditStep(operation="blur", objects=(1,))
HIDE = EditStep(operation="hide", objects=(2,), emoji="sad_face")
STEPS = [(RED_STAR,), (POP,), (BLUR,), (HIDE,), (BLUR, HIDE)]


@pytest.mark.parametrize("steps", STEPS)
def test_the_right_picture_scores_full_and_the_untouched_one_nothing(steps: tuple[EditStep, ...]) -> None:
    assert score(edit(*steps), *steps).score > 0.97
    assert score(edit(*steps), *steps).notes == ()
    untouched = score(ORIGINAL, *steps)
    assert untouched.score < 0.35
    assert untouched.notes


@pytest.mark.parametrize(
    ("done", "wanted"),
    [
        (EditStep(operation="color_pop", objects=(0,)), POP),
        (EditStep(operation="color_pop", objects=(1, 3)), POP),
        (EditStep(operation="color_pop", objects=(1,)), EditStep(operation="color_pop", objects=(1, 3))),
        (EditStep(operation="blur", objects=(0,)), BLUR),
        (EditStep(operation="blur", objects=(1, 2)), BLUR),
        (POP, BLUR),
        (BLUR, POP),
        (EditStep(operation="hide", objects=(0,), emoji="sad_face"), HIDE),
        (EditStep(operation="replace", objects=(3,), words=Filter(color="red", shape="star")), RED_STAR),
        (EditStep(operation="replace", objects=(0,), words=Filter(color="red", shape="hexagon")), RED_STAR),
        (EditStep(operation="replace", objects=(0,), words=Filter(color="pink", shape="star")), RED_STAR),
    ],
)
def test_an_edit_of_another_object_or_kind_fails(done: EditStep, wanted: EditStep) -> None:
    result = score(edit(done), wanted)
    assert result.score < PASS
    assert result.notes


def test_two_edits_need_both() -> None:
    assert score(edit(BLUR), BLUR, HIDE).score < PASS
    assert score(edit(HIDE), BLUR, HIDE).score < PASS


def paste_example(words: Filter, *, seed: int) -> Image.Image:
    """What a tool would do that fills the place of the first object and pastes another drawing of the words, of another size and turn."""
    rng = random.Random(seed)
    size = rng.choice(["medium", "large"])
    entry = SceneObject(words.shape or "", words.color or "", size, words.pattern or "plain", 2, 2)
    example = make_scene(((entry,),), seed=seed)
    (found,) = locate_objects(example, spec=WORKSHOP)[0]
    drawn = np.asarray(render_scene(example, spec=WORKSHOP)[0])
    pixels = np.array(ORIGINAL)
    place = locate_objects(SCENE, spec=WORKSHOP)[0][0]
    left, top, right, bottom = (round(value) for value in place.box)
    pixels[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = np.median(pixels[60:90, 60:90].reshape(-1, 3), axis=0)
    rows, columns = np.nonzero(found.mask)
    down, over = round(place.center[1] - found.center[1]), round(place.center[0] - found.center[0])
    inside = (rows + down >= 0) & (columns + over >= 0)
    pixels[rows[inside] + down, columns[inside] + over] = drawn[rows[inside], columns[inside]]
    return Image.fromarray(pixels)


@settings(deadline=None, max_examples=15)
@given(
    shape=st.sampled_from(WORKSHOP.values("shape")),
    color=st.sampled_from(WORKSHOP.values("color")),
    pattern=st.sampled_from([None, "striped", "grid", "dotted"]),
    seed=st.integers(0, 10**6),
)
def test_another_drawing_of_the_words_is_right_and_of_other_words_wrong(shape: str, color: str, pattern: str | None, seed: int) -> None:
    words = Filter(color=color, shape=shape, pattern=pattern)
    step = EditStep(operation="replace", objects=(0,), words=words)
    result = score(paste_example(words, seed=seed), step)
    assert result.score >= PASS, result.notes
    other = random.Random(seed).choice([name for name in WORKSHOP.values("color") if name != color])
    assert score(paste_example(Filter(color=other, shape=shape, pattern=pattern), seed=seed), step).score < PASS


def test_an_emoji_of_the_objects_size_hides_it() -> None:
    (_, _, heart, _) = locate_objects(SCENE, spec=WORKSHOP)[0]
    left, top, right, bottom = (round(value) for value in heart.box)
    side = max(right - left, bottom - top)
    picture = ORIGINAL.copy()
    face = draw_emoji("sad_face", side=side)
    picture.paste(face, ((left + right - side) // 2, (top + bottom - side) // 2), face)
    assert score(picture, HIDE).score >= PASS


def test_without_a_scene_the_check_decides_about_new_objects() -> None:
    region = mark_region(SCENE, (RED_STAR,))
    seen: list[tuple[tuple[int, int], str]] = []

    def check(crop: Image.Image, words: str) -> float:
        seen.append((crop.size, words))
        return 0.9

    good = score_edit(ORIGINAL, edit(RED_STAR), edit(RED_STAR), region=region, check=check)
    assert good.score == pytest.approx(0.9)
    left, top, right, bottom = region[0].box
    assert seen == [((round(right - left), round(bottom - top)), "red star")]
    assert score_edit(ORIGINAL, edit(RED_STAR), edit(RED_STAR), region=region, check=lambda crop, words: 0.1).score < PASS
    assert score_edit(ORIGINAL, edit(POP), edit(RED_STAR), region=region, check=check).score < PASS


def test_where_the_check_cannot_say_pixels_decide() -> None:
    region = mark_region(SCENE, (RED_STAR,))
    assert score_edit(ORIGINAL, edit(RED_STAR), edit(RED_STAR), region=region, check=lambda crop, words: None).score == 1.0
    wrong = score_edit(ORIGINAL, ORIGINAL, edit(RED_STAR), region=region, check=lambda crop, words: None)
    assert wrong.score < PASS and wrong.check is None


def test_a_run_without_a_picture_fits_no_words(tmp_path: Path) -> None:
    names = [save_picture(picture, out=tmp_path)[0] for picture in (ORIGINAL, edit(RED_STAR))]
    task = replace_task(kind="editing", images=(names[0],), source="photos")
    truth = TaskTruth(task_id="t", program="", target=names[1], region=mark_region(SCENE, (RED_STAR,)))

    def score_with(check: Any, **trace: Any) -> dict[str, float]:
        return score_task(make_trace(**trace), truth, task=task, data=tmp_path, check=check).metrics

    stopped = {"status": "tool_error", "error": "LOC: no model"}
    assert score_with(lambda crop, words: 0.9, result_image=names[1])["check"] == 0.9
    assert score_with(lambda crop, words: 0.9, **stopped)["check"] == 0.0 == score_with(lambda crop, words: 0.9, result="text")["check"]
    assert "check" not in score_with(lambda crop, words: None, **stopped)


def test_scores_and_feedback_of_a_question() -> None:
    truth = TaskTruth(task_id="t", program="", answer="star")
    right, wrong = (make_trace(result=result) for result in ("a star", "heart"))
    good = score_task(right, truth, task=TASK, data=Path("."))
    assert good.correct and make_feedback(right, truth, score=good).text == ""
    bad = score_task(wrong, truth, task=TASK, data=Path("."))
    feedback = make_feedback(wrong, truth, score=bad)
    assert not bad.correct and not feedback.accepted
    assert feedback.answer == "star" and feedback.text == "The correct answer should be star."


def test_a_run_that_stopped_is_wrong_even_with_the_right_answer() -> None:
    truth = TaskTruth(task_id="t", program="", answer="star")
    trace = make_trace(result="star", status="tool_error", error="LOC: no model")
    scored = score_task(trace, truth, task=TASK, data=Path("."))
    assert not scored.correct and scored.metrics["finished"] == 0.0
    assert "LOC: no model" in make_feedback(trace, truth, score=scored).text


def test_scores_and_feedback_of_tags() -> None:
    task = replace_task(kind="tagging")
    truth = TaskTruth(task_id="t", program="", boxes=(tag("star", 0, 0, 10, 10),))
    right = score_task(make_trace(result_boxes=(tag("star", 0, 1, 10, 10),)), truth, task=task, data=Path("."))
    assert right.correct and right.metrics["right"] == 1
    trace = make_trace(result_boxes=(tag("star", 0, 1, 10, 10), tag("heart", 40, 40, 50, 50)))
    extra = score_task(trace, truth, task=task, data=Path("."))
    assert not extra.correct and extra.metrics["precision"] == 0.5
    text = make_feedback(trace, truth, score=extra).text
    assert (
        text == "There should be 1 tag: star at (0, 0, 10, 10). The result has 2 tags: star at (0, 1, 10, 10); heart at (40, 40, 50, 50)."
    )


def test_scores_and_feedback_of_an_edit(tmp_path: Path) -> None:
    names = [save_picture(picture, out=tmp_path)[0] for picture in (ORIGINAL, edit(RED_STAR), edit(POP))]
    task = replace_task(kind="editing", images=(names[0],), source="photos")
    truth = TaskTruth(task_id="t", program="", target=names[1], region=mark_region(SCENE, (RED_STAR,)))
    assert score_task(make_trace(result_image=names[1]), truth, task=task, data=tmp_path).correct
    trace = make_trace(result_image=names[2])
    scored = score_task(trace, truth, task=task, data=tmp_path)
    assert not scored.correct and scored.metrics["outside"] < 0.9
    assert make_feedback(trace, truth, score=scored).text
    nothing = score_task(make_trace(result="text"), truth, task=task, data=tmp_path)
    assert not nothing.correct and nothing.notes == ("The result should be a picture.",)
    with pytest.raises(DataError, match="cannot be read"):
        score_task(make_trace(result_image="none.png"), truth, task=task, data=tmp_path)


def test_records_of_different_tasks_are_refused() -> None:
    truth = TaskTruth(task_id="other", program="", answer="star")
    with pytest.raises(DataError, match="must be one task"):
        score_task(make_trace(result="star"), truth, task=TASK, data=Path("."))
    scored = score_task(make_trace(result="star"), TaskTruth(task_id="t", program="", answer="star"), task=TASK, data=Path("."))
    with pytest.raises(DataError, match="score is of trace"):
        make_feedback(make_trace(id="s"), truth, score=scored)


def test_predictions_measure_consistency_of_statements() -> None:
    rows = []
    for number, (group, result) in enumerate([("g", "true"), ("g", "false"), ("h", "true"), ("h", "true")]):
        task = replace_task(id=f"t{number}", kind="multi_image", group=group)
        trace = make_trace(task_id=task.id, result=result)
        scored = score_task(trace, TaskTruth(task_id=task.id, program="", answer="true"), task=task, data=Path("."))
        rows.append(make_prediction(task, trace, score=scored, system="s"))
    assert measure_consistency(rows).value == 0.5
