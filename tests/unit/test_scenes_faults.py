"""Injected faults: always seen by the verifier, at the step they say, in words the world knows."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_scenes_world import BOXES, SEEDS, WIDE_WORLD
from visloop.errors import DataError
from visloop.records.chains import format_chain, parse_chain
from visloop.scenes.faults import FAULT_KINDS, Fault, inject_fault
from visloop.scenes.questions import draw_questions
from visloop.scenes.verify import verify_steps
from visloop.scenes.vocabulary import list_words, split_words
from visloop.scenes.world import DEFAULT_WORLD, WorldSpec, draw_scene


@settings(deadline=None, max_examples=150)
@given(seed=SEEDS, boxes=BOXES, spec=st.sampled_from([DEFAULT_WORLD, WIDE_WORLD]))
def test_fault_is_found_where_it_was_made(seed: int, boxes: int, spec: WorldSpec) -> None:
    scene = draw_scene(seed, spec=spec, boxes=boxes)
    words = set(list_words(spec))
    for question in draw_questions(scene, seed=seed, spec=spec, count=6):
        fault = inject_fault(scene, question, seed=seed, spec=spec)
        assert fault == inject_fault(scene, question, seed=seed, spec=spec)
        result = verify_steps(
            scene, gold_steps=question.steps, gold_answer=question.answer, steps=fault.steps, answer=fault.answer, spec=spec
        )
        assert result.score < 100, (question, fault)
        assert result.first_error_step == fault.first_error_step, (question, fault)
        assert fault.lucky == result.answer_right == (fault.answer == question.answer)
        text = " ".join(f"{step.summary} {step.reasoning}" for step in fault.steps)
        assert set(split_words(f"{text} {fault.answer}")) <= words
        assert parse_chain(format_chain(fault.steps, fault.answer)).steps == fault.steps


def draw_many(count: int) -> list[Fault]:
    faults = []
    for seed in range(count):
        scene = draw_scene(seed, boxes=1 if seed % 4 else 3)
        faults += [inject_fault(scene, question, seed=seed) for question in draw_questions(scene, seed=seed, count=2)]
    return faults


def test_every_kind_occurs_with_lucky_and_unlucky_chains() -> None:
    faults = draw_many(300)
    kinds = Counter(fault.kind for fault in faults)
    assert set(kinds) == set(FAULT_KINDS)
    assert min(kinds.values()) > 0.03 * len(faults), kinds
    lucky = Counter(fault.kind for fault in faults if fault.lucky)
    for kind in ("attribute", "moved", "dropped", "added", "number", "sign"):
        assert 0 < lucky[kind] < kinds[kind], kind
    assert lucky["final"] == 0
    assert lucky["skipped"] == kinds["skipped"]


def test_damage_is_continued_both_ways() -> None:
    scene = draw_scene(11)
    (question,) = draw_questions(scene, seed=2, families=("count",), count=1)
    faults = [inject_fault(scene, question, seed=seed, kinds=("added",)) for seed in range(60)]
    count = int(question.answer)
    answers = Counter(fault.answer for fault in faults)
    assert set(answers) == {str(count), str(count + 1)}
    assert answers[str(count + 1)] > answers[str(count)]
    for fault in faults:
        assert len(fault.steps[0].reasoning.split(" , ")) == count + 1
        assert fault.steps[1].reasoning == f"{fault.answer} answer {fault.answer}"


def test_kind_without_a_place_in_the_question_is_refused() -> None:
    scene = draw_scene(3)
    (question,) = draw_questions(scene, seed=1, families=("exist",), count=1)
    with pytest.raises(DataError, match="sign"):
        inject_fault(scene, question, seed=1, kinds=("sign", "number"))
