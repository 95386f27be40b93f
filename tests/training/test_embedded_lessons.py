"""What the embedded models are taught: every reply must be true of the scene, or wrong in the way it is meant to be."""

import json
import math
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch

from visloop.embedded.agreement import measure_agreement, read_entries
from visloop.embedded.judge_lessons import (
    MOST_PATHS,
    JudgedQuestion,
    JudgeMix,
    ScoredPath,
    coarsen_score,
    draw_comparison,
    draw_paths,
    format_scores,
    list_rivals,
    make_judging,
    score_path,
    write_checks,
)
from visloop.embedded.lessons import LessonMix, draw_lesson, draw_lesson_questions, tell_chain, write_stepwise
from visloop.embedded.perception import GroundingMix, describe_scene, draw_find, draw_grounding_turns
from visloop.embedded.pictures import Gallery, draw_scenes
from visloop.embedded.recipe import Recipe, plan_lessons, split_pools
from visloop.embedded.schedule import scale_rate
from visloop.embedded.tower import label_patches
from visloop.prompts.render import PromptSet
from visloop.records.chains import parse_chain, parse_step
from visloop.scenes.questions import draw_questions
from visloop.scenes.steps import execute_find, format_positions, read_summary
from visloop.scenes.verify import verify_steps
from visloop.scenes.world import DEFAULT_WORLD, SceneObject, make_scene

PROMPTS = PromptSet("compact")
RED = SceneObject(shape="circle", color="red", size="small", pattern="plain", column=3, row=1)
BLUE = SceneObject(shape="square", color="blue", size="large", pattern="striped", column=1, row=2)


def verify(scene, question, steps, answer):
    return verify_steps(scene, gold_steps=question.steps, gold_answer=question.answer, steps=steps, answer=answer)


def test_descriptions_put_position_first_and_number_the_boxes():
    assert describe_scene(make_scene(((BLUE, RED),), seed=1)) == "x3 y1 small plain red circle , x1 y2 large striped blue square"
    three = make_scene(((RED,), (BLUE,), (RED,)), seed=1)
    assert describe_scene(three) == (
        "box 1 x3 y1 small plain red circle ; box 2 x1 y2 large striped blue square ; box 3 x3 y1 small plain red circle"
    )


def test_patch_labels_of_one_box_by_hand():
    labels = label_patches([(RED, BLUE)], spec=DEFAULT_WORLD)
    assert labels["occupied"][0].nonzero().flatten().tolist() == [2, 4]
    assert labels["color"][0, 2] == DEFAULT_WORLD.values("color").index("red")
    assert labels["shape"][0, 4] == DEFAULT_WORLD.values("shape").index("square")
    assert (labels["size"][0] == -100).sum() == 14
    assert labels["column"][0, 7] == 3
    assert labels["row"][0, 7] == 1


@pytest.mark.parametrize("boxes", [1, 3])
def test_grounding_replies_are_true_and_existing_filters_find_something(boxes):
    rng = random.Random(1)
    found = []
    for scene in draw_scenes(60, seed=2, spec=DEFAULT_WORLD, boxes=boxes):
        for question, reply in draw_grounding_turns(
            rng, scene, spec=DEFAULT_WORLD, mix=GroundingMix(existing=1.0, described=0.0), prompts=PROMPTS
        ):
            step = read_summary(question, spec=DEFAULT_WORLD)
            assert reply == format_positions(execute_find(step, scene.boxes))
            found.append(reply != "none")
    assert all(found)
    assert len(found) == 360


def test_directions_refer_to_an_object_of_the_box():
    rng = random.Random(4)
    for scene in draw_scenes(60, seed=5, spec=DEFAULT_WORLD):
        step = draw_find(rng, scene, spec=DEFAULT_WORLD, mix=GroundingMix(spatial=1.0))
        places = {entry.column if step.direction in ("left of", "right of") else entry.row for entry in scene.boxes[0]}
        assert step.limit in places


def test_exact_chains_are_flawless_and_damaged_ones_are_not():
    rng = random.Random(0)
    for scene in draw_scenes(60, seed=6, spec=DEFAULT_WORLD):
        for question in draw_questions(scene, seed=1, count=3):
            exact = tell_chain(rng, scene, question, spec=DEFAULT_WORLD, damage=0.0)
            assert verify(scene, question, exact.steps, exact.answer).score == 100
            damaged = tell_chain(rng, scene, question, spec=DEFAULT_WORLD, damage=1.0)
            assert verify(scene, question, damaged.steps, damaged.answer).score < 100


def test_stepwise_turns_hold_one_readable_step_each_and_end_in_the_answer():
    rng = random.Random(0)
    scene = draw_scenes(1, seed=8, spec=DEFAULT_WORLD)[0]
    question = draw_questions(scene, seed=1, families=("relation",))[0]
    told = tell_chain(rng, scene, question, spec=DEFAULT_WORLD, damage=0.0)
    turns = write_stepwise(rng, question, told, prompts=PROMPTS, repaired=0.0)
    assert [text for text, _ in turns] == [f"step {question.question}", "next", "next", "final"]
    assert tuple(parse_step(reply) for _, reply in turns[:-1]) == question.steps
    assert turns[-1][1] == question.answer
    reminded = write_stepwise(rng, question, told, prompts=PROMPTS, repaired=1.0)
    assert [text for text, _ in reminded] == [f"step {question.question}\nrepair", "next\nrepair", "next\nrepair", "final"]


@pytest.mark.parametrize("boxes", [1, 3])
def test_a_lesson_holds_the_wanted_turns_about_its_own_scene(boxes):
    rng = random.Random(3)
    mix = LessonMix(chains=1, direct=2, stepwise=0.0, damage=0.0, summarized=0.0, described=0.0)
    for scene in draw_scenes(20, seed=9, spec=DEFAULT_WORLD, boxes=boxes):
        turns = draw_lesson(rng, scene, spec=DEFAULT_WORLD, mix=mix, prompts=PROMPTS)
        kinds = Counter(question.split()[0] for question, _ in turns)
        assert kinds == {"answer": 2, "reason": 1}
        chain = next(parse_chain(reply) for question, reply in turns if question.startswith("reason"))
        assert chain.complete
        for step in chain.steps[:-1]:
            operation = read_summary(step.summary, spec=DEFAULT_WORLD)
            if step.summary.startswith(("find", "box")):
                assert step.reasoning == format_positions(execute_find(operation, scene.boxes))


def test_families_are_drawn_by_weight():
    rng = random.Random(0)
    scenes = draw_scenes(150, seed=10, spec=DEFAULT_WORLD)
    families = Counter(
        question.family
        for scene in scenes
        for question in draw_lesson_questions(
            rng,
            scene,
            spec=DEFAULT_WORLD,
            weights={"exist": 3.0, "count": 1.0} | dict.fromkeys(("compare", "query", "relation", "hop"), 0.0),
            count=4,
        )
    )
    assert set(families) == {"exist", "count"}
    assert families["exist"] / families.total() == pytest.approx(0.75, abs=0.06)


def test_shares_of_the_lesson_stage():
    scenes = draw_scenes(30, seed=1, spec=DEFAULT_WORLD) + draw_scenes(10, seed=1, spec=DEFAULT_WORLD, boxes=3)
    gallery = Gallery(tuple(scenes), torch.zeros(0), tuple((0,) * len(scene.boxes) for scene in scenes))
    pools = split_pools(gallery)
    assert (list(pools.single), list(pools.boxed)) == (list(range(30)), list(range(30, 40)))
    draw = plan_lessons(gallery, pools=pools, recipe=Recipe(boxed=0.25, grounded=0.0), spec=DEFAULT_WORLD, prompts=PROMPTS)
    rng = random.Random(2)
    boxed = sum(draw(rng).scene >= 30 for _ in range(600)) / 600
    assert boxed == pytest.approx(0.25, abs=0.06)


def test_rate_goes_up_stays_and_comes_down_to_a_tenth():
    rates = [scale_rate(step, steps=100, warmup=10, down=0.5) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:51] == [1.0] * 42
    assert rates[75] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[100] == pytest.approx(0.1)
    assert [scale_rate(step, steps=10, warmup=0, down=0.0) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize(("score", "coarse"), [(1.0, 5), (7.4, 5), (50.0, 50), (97.4, 95), (97.6, 100), (100.0, 100)])
def test_scores_become_multiples_of_five(score, coarse):
    assert coarsen_score(score) == coarse


def test_judged_paths_carry_the_verifiers_verdict_and_are_all_different():
    rng = random.Random(0)
    lucky = 0
    for scene in draw_scenes(40, seed=11, spec=DEFAULT_WORLD):
        question = draw_questions(scene, seed=2)[0]
        paths = draw_paths(rng, scene, question, spec=DEFAULT_WORLD, count=5, exact=1.0)
        assert len({(path.steps, path.answer) for path in paths}) == len(paths) <= 5
        assert sum(path.score == 100 and path.error == 0 for path in paths) == 1
        for path in paths:
            check = verify(scene, question, path.steps, path.answer)
            assert (path.score, path.error) == (coarsen_score(check.score), check.first_error_step or 0)
            lucky += path.error > 0 and path.answer == question.answer
        entries = json.loads(format_scores(paths))
        assert [(entry["id"], entry["score"], entry["error"]) for entry in entries] == [
            (number, path.score, path.error) for number, path in enumerate(paths, start=1)
        ]
        assert draw_paths(rng, scene, question, spec=DEFAULT_WORLD, count=1, exact=0.0)
    assert lucky > 20


def test_comparisons_are_balanced_and_rivals_are_of_the_same_kind():
    assert list_rivals("yes", spec=DEFAULT_WORLD) == ("no",)
    assert list_rivals("red", spec=DEFAULT_WORLD) == ("green", "blue", "yellow")
    assert set(list_rivals("3", spec=DEFAULT_WORLD)) == {"0", "1", "2", "4", "5", "6"}
    rng = random.Random(0)
    scene = draw_scenes(1, seed=12, spec=DEFAULT_WORLD)[0]
    question = draw_questions(scene, seed=2, families=("query",))[0]
    turns = [draw_comparison(rng, question, spec=DEFAULT_WORLD, prompts=PROMPTS) for _ in range(300)]
    assert Counter(reply for _, reply in turns)["yes"] == pytest.approx(150, abs=40)
    for text, reply in turns:
        candidate = text.rsplit(" : ", 1)[1]
        assert (question.answer in candidate.split()) == (reply == "yes")


def test_judge_conversations_never_show_more_paths_than_asked_and_comparisons_have_no_picture():
    scenes = draw_scenes(20, seed=13, spec=DEFAULT_WORLD)
    gallery = Gallery(tuple(scenes), torch.zeros(0), tuple((index,) for index in range(20)))
    question = draw_questions(scenes[0], seed=3)[0]
    path = score_path(scenes[0], question, question.steps, question.answer, spec=DEFAULT_WORLD)
    pool = [JudgedQuestion(0, question, (path,) * 12)]
    mix = JudgeMix(compared=0.3, checked=0.0, sampled=0.3, hidden_answer=0.0)
    draw = make_judging(gallery, scenes=range(20), pool=pool, spec=DEFAULT_WORLD, mix=mix, prompts=PROMPTS)
    rng = random.Random(1)
    for _ in range(100):
        dialogue = draw(rng)
        ((text, reply),) = dialogue.turns
        assert (dialogue.scene is None) == text.startswith("same ") == (reply in ("yes", "no"))
        if dialogue.scene is not None:
            entries = json.loads(reply)
            assert 1 <= len(entries) == text.count("<thoughts>") <= MOST_PATHS


def test_checks_ask_of_every_line_whether_it_is_right():
    scene = make_scene(((RED, BLUE),), seed=1)
    question = draw_questions(scene, seed=3, families=("exist",))[0]
    wrong = replace(question.steps[0], reasoning="x4 y4")
    paths = [
        score_path(scene, question, (wrong, question.steps[1]), question.answer, spec=DEFAULT_WORLD),
        score_path(scene, question, question.steps, question.answer, spec=DEFAULT_WORLD),
    ]
    first, second = (f"{step.summary}: {step.reasoning}" for step in question.steps)
    assert write_checks(question, paths) == (
        (f"check {question.question} : {question.answer}\npath 1\n{wrong.summary}: x4 y4", "no"),
        (second, "yes"),
        (f"path 2\n{first}", "yes"),
        (second, "yes"),
    )


def read_replies(replies, counts):
    return [[read_entries(reply).get(number) for number in range(1, count + 1)] for reply, count in zip(replies, counts, strict=True)]


def make_path(score, error):
    return ScoredPath((), "yes", score, error)


def test_agreement_by_hand():
    question = draw_questions(draw_scenes(1, seed=14, spec=DEFAULT_WORLD)[0], seed=3)[0]
    judged = JudgedQuestion(0, question, (make_path(100, 0), make_path(50, 2), make_path(20, 1)))
    same_score = JudgedQuestion(0, question, (make_path(100, 0), make_path(100, 0)))
    perfect = '[{"id": 1, "score": 90, "error": 0}, {"id": 2, "score": 60, "error": 2}, {"id": 3, "score": 5, "error": 2}]'
    table = measure_agreement(
        [judged, same_score], read_replies([perfect, '[{"id":1,"score":5,"error":0},{"id":2,"score":100,"error":1}]'], [3, 2])
    )
    assert table["rank"] == pytest.approx(1.0)
    assert table["ranked questions"] == 1
    assert table["pairs"] == 1.0
    assert table["error step"] == pytest.approx(3 / 5)
    assert table["flawless found"] == pytest.approx(2 / 3)
    assert table["flawed found"] == 1.0
    reverse = '[{"id": 1, "score": 5, "error": 0}, {"id": 2, "score": 60, "error": 2}, {"id": 3, "score": 90, "error": 1}]'
    flat = '[{"id": 1, "score": 5, "error": 0}, {"id": 2, "score": 5, "error": 0}, {"id": 3, "score": 5, "error": 0}]'
    table = measure_agreement([judged, judged, judged], read_replies([reverse, flat, "no JSON"], [3, 3, 3]))
    assert table["rank"] == pytest.approx(-0.5)
    assert table["pairs"] == pytest.approx((0 + 0 + 0 + 0.5 * 3) / 6)
    assert table["parsed"] == pytest.approx(6 / 9)
    assert math.isnan(measure_agreement([same_score], read_replies(["{}"], [2]))["rank"])


@pytest.mark.parametrize("reply", ["", "[", "yes", "{}", "[1, 2]", '[{"id": 1, "score": 5}]', '{"id": 1}'])
def test_malformed_judge_replies_have_no_entries(reply):
    assert read_entries(reply) == {}
