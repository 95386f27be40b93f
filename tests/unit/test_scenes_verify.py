"""The exact verifier, on chains made by hand with scores computed by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_scenes_world import BOXES, SEEDS
from visloop.errors import DataError
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.questions import draw_questions
from visloop.scenes.verify import PathCheck, verify_steps
from visloop.scenes.world import SceneObject, draw_scene, make_scene

# Row 1: small red circle in column 3. Row 2: striped blue square in column 1, large red circle in column 2.
CANVAS = make_scene(
    (
        (
            SceneObject("circle", "red", "small", "plain", 3, 1),
            SceneObject("square", "blue", "large", "striped", 1, 2),
            SceneObject("circle", "red", "large", "plain", 2, 2),
        ),
    ),
    seed=0,
)
THREE = make_scene(
    (
        (SceneObject("circle", "red", "small", "plain", 1, 1), SceneObject("square", "red", "small", "plain", 2, 1)),
        (SceneObject("square", "blue", "large", "plain", 4, 4),),
        (SceneObject("circle", "red", "large", "plain", 2, 3),),
    ),
    seed=0,
)
COUNT = "find red circle: x3 y1 , x2 y2 / count: 2 answer 2"
COMPARE = "find red circle: x3 y1 , x2 y2 / find blue square: x1 y2 / compare more: 2 1 > answer yes"
RELATION = "find square: x1 y2 / find small circle: x3 y1 / compare left of: x1 x3 < answer yes"
HOP = "find square: x1 y2 / find small circle right of x1: x3 y1 / conclude color: answer red"
STATEMENT = (
    "box 1 find circle: x1 y1 / box 2 find circle: none / box 3 find circle: x2 y3 / "
    "check at least 1: 1 0 1 yes no yes / conclude exactly 2: 2 2 = answer true"
)


def read_chain(text: str) -> tuple[ReasoningStep, ...]:
    """Steps from ``summary: reasoning / summary: reasoning``."""
    pairs = [part.split(": ") for part in text.split(" / ")] if text else []
    return tuple(ReasoningStep(summary=summary, reasoning=reasoning, action="continue") for summary, reasoning in pairs)


def check(gold: str, candidate: str, answer: str | None) -> PathCheck:
    gold_steps = read_chain(gold)
    return verify_steps(
        THREE if gold.startswith("box") else CANVAS,
        gold_steps=gold_steps,
        gold_answer=gold_steps[-1].reasoning.split()[-1],
        steps=read_chain(candidate),
        answer=answer,
    )


@pytest.mark.parametrize("gold", [COUNT, COMPARE, RELATION, HOP, STATEMENT])
def test_exact_chain_scores_100(gold: str) -> None:
    steps = len(read_chain(gold))
    assert check(gold, gold, gold.split()[-1]) == PathCheck(100.0, None, (True,) * steps, True)


@pytest.mark.parametrize(
    ("gold", "candidate", "right", "first_error"),
    [
        # Positions in another order and other capitals say the same.
        (COUNT, "Find red circle: x2 y2 , x3 y1 / count: 2  answer 2", [1, 1], None),
        # Independent finds in another order; the conclusion names its operands in the question's order.
        (COMPARE, "find blue square: x1 y2 / find red circle: x3 y1 , x2 y2 / compare more: 2 1 > answer yes", [1, 1, 1], None),
        (COUNT, "find red circle: x3 y1 / count: 2 answer 2", [0, 1], 1),
        (COUNT, "find red circle: x3 y1 , x2 y2 , x4 y4 / count: 3 answer 3", [0, 0], 1),
        (COUNT, "find circle: x3 y1 , x2 y2 / count: 2 answer 2", [0, 0], 1),  # true, but not what was asked
        (COUNT, "find red circle: x3 y1 , x2 y2 / count: 2 answer 3", [1, 0], 2),
        (COUNT, "find red circle: x3 y1 , x3 y1 , x2 y2 / count: 2 answer 2", [0, 1], 1),
        (COUNT, "find red circle: x03 y1 , x2 y2 / count: 2 answer 2", [0, 1], 1),
        (COUNT, "find red circle: x3 y1 x2 y2 / count: 2 answer 2", [0, 1], 1),
        (COUNT, "count: 2 answer 2", [0], 1),  # nothing to count yet
        (COUNT, "count: 2 answer 2 / find red circle: x3 y1 , x2 y2", [0, 1], 1),
        (COUNT, "find red circle: x3 y1 , x2 y2", [1], 2),  # ends too early
        (COUNT, "", [], 1),
        (COUNT, "find red circle: x3 y1 , x2 y2 / find red circle: x3 y1 , x2 y2 / count: 2 answer 2", [1, 0, 1], 2),
        (COMPARE, "find red circle: x3 y1 , x2 y2 / find blue square: x1 y2 / compare fewer: 2 1 > answer yes", [1, 1, 0], 3),
        (COMPARE, "find red circle: x3 y1 , x2 y2 / find blue square: x1 y2 / compare more: 2 1 < answer yes", [1, 1, 0], 3),
        (COMPARE, "find red circle: x3 y1 , x2 y2 / compare more: 2 1 > answer yes", [1, 0], 2),
        (RELATION, "find square: x1 y2 / find small circle: x3 y1 / compare left of: x1 x2 < answer yes", [1, 1, 0], 3),
        (HOP, "find square: x2 y2 / find small circle right of x2: x3 y1 / conclude color: answer red", [0, 0, 0], 1),  # lucky
        (HOP, "find square: x2 y2 / find small circle right of x1: x3 y1 / conclude color: answer red", [0, 1, 1], 1),
        (HOP, "find small circle right of x1: x3 y1 / conclude color: answer red", [0, 0], 1),
        (HOP, "find square: x1 y2 / find small circle right of y1: x3 y1 / conclude color: answer red", [1, 0, 0], 2),
        (STATEMENT, STATEMENT.replace("box 2 find circle: none", "box 2 find circle: x4 y4"), [1, 0, 1, 1, 1], 2),
        (STATEMENT, STATEMENT.replace("1 0 1 yes no yes", "1 0 1 yes yes yes"), [1, 1, 1, 0, 1], 4),
        (STATEMENT, STATEMENT.replace("box 3 find circle: x2 y3 / ", ""), [1, 1, 0, 0], 3),
        (STATEMENT, STATEMENT.replace("box 3 find", "box 9 find"), [1, 1, 0, 0, 0], 3),
    ],
)
def test_each_step_is_judged(gold: str, candidate: str, right: list[int], first_error: int | None) -> None:
    result = check(gold, candidate, gold.split()[-1])
    assert result.steps_right == tuple(map(bool, right))
    assert result.first_error_step == first_error
    assert result.score == pytest.approx(1 + 99 * sum(right) / max(len(right), len(read_chain(gold))))
    assert result.answer_right


@pytest.mark.parametrize(("answer", "score"), [("2", 100.0), (" 2 ", 100.0), ("3", 50.0), (None, 50.0), ("", 50.0)])
def test_wrong_or_missing_answer_caps_the_score_at_50(answer: str | None, score: float) -> None:
    assert check(COUNT, COUNT, answer).score == score


@settings(deadline=None, max_examples=100)
@given(summary=st.text(max_size=40), reasoning=st.text(max_size=40), answer=st.none() | st.text(max_size=5))
def test_any_text_is_judged_and_none_of_it_raises(summary: str, reasoning: str, answer: str | None) -> None:
    steps = (*read_chain(COUNT)[:1], ReasoningStep(summary=summary, reasoning=reasoning, action="summary"))
    result = verify_steps(CANVAS, gold_steps=read_chain(COUNT), gold_answer="2", steps=steps, answer=answer)
    assert 1 <= result.score <= 100
    assert result.steps_right[0] and not result.steps_right[1]


@pytest.mark.parametrize("summary", ["find", "find ", "find red", "find circle red", "find red red circle", "box find circle", "check 1"])
def test_malformed_summary_is_wrong(summary: str) -> None:
    step = ReasoningStep(summary=summary, reasoning="x3 y1 , x2 y2", action="continue")
    result = verify_steps(CANVAS, gold_steps=read_chain(COUNT), gold_answer="2", steps=(step,), answer="2")
    assert result == PathCheck(1.0, 1, (False,), True)


@pytest.mark.parametrize("gold", ["", "look around: x1 y1", "find orange circle: none / count: 0 answer 0"])
def test_malformed_exact_chain_is_an_error(gold: str) -> None:
    with pytest.raises(DataError, match="exact chain"):
        verify_steps(CANVAS, gold_steps=read_chain(gold), gold_answer="0", steps=(), answer="0")


@settings(deadline=None, max_examples=80)
@given(seed=SEEDS, boxes=BOXES, data=st.data())
def test_drawn_chains_score_100_and_lose_with_every_step_left_out(seed: int, boxes: int, data: st.DataObject) -> None:
    scene = draw_scene(seed, boxes=boxes)
    for question in draw_questions(scene, seed=seed, count=6):
        gold = {"gold_steps": question.steps, "gold_answer": question.answer}
        assert verify_steps(scene, **gold, steps=question.steps, answer=question.answer).score == 100
        index = data.draw(st.integers(0, len(question.steps) - 1))
        shorter = question.steps[:index] + question.steps[index + 1 :]
        assert verify_steps(scene, **gold, steps=shorter, answer=question.answer).score < 100
