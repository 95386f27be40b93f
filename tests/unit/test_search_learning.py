"""Program search: it learns which program is meant from right and wrong answers alone, and which word means which part."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.block_pictures import draw_towers, judge
from visloop.assistant.demonstrations import DemonstrationPool, make_demonstration
from visloop.assistant.planner import FailedAttempt
from visloop.assistant.search import SearchPlanner, open_search_planner
from visloop.assistant.search_judgements import Judgement, read_answer
from visloop.assistant.search_learning import TrainingSettings, group_judgements, learn, make_lesson
from visloop.assistant.search_lexicon import LexiconSettings, learn_lexicon
from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_scenes import Executor
from visloop.assistant.search_scorer import Scorer, load_scorer, save_scorer, start_scorer
from visloop.assistant.search_space import derive_lexicon, join_lexicons, load_pack
from visloop.errors import ConfigError, DataError
from visloop.records.assistant import Critique, Feedback, Proposal, Task, Trace
from visloop.tools.signatures import find_signature

PACK = load_pack("nlvr")
SPACE = PACK.space
QUICK = TrainingSettings(steps=60, rate=0.05, reference=12)
POOL = DemonstrationPool(())


def about(color: str, place: str, number: int = 1, sign: str = ">=") -> Meaning:
    what = Filter(words=((color,),), places=((place, True),)) if place else Filter(words=((color,),))
    return Meaning("boxes", (Atom("count", what),), sign, number)


def ask(instruction: str, meaning: Meaning, *, scenes: int = 6) -> list[Judgement]:
    """Judgements on an instruction that means this: true and false ones, as in NLVR."""
    draw = random.Random(instruction)
    drawn = [draw_towers(draw) for _ in range(4 * scenes)]
    found = judge(instruction, instruction, drawn, [False] * len(drawn), space=SPACE)
    truths = [bool(Executor(item.scene, SPACE).judge(meaning)[0]) for item in found]
    labelled = [replace(item, answer=truth) for item, truth in zip(found, truths, strict=True)]
    kept = [item for truth in (True, False) for item in labelled if item.answer is truth]
    return [item for truth in (True, False) for item in [item for item in kept if item.answer is truth][: scenes // 2]]


@pytest.fixture(scope="module")
def lessons() -> list[Judgement]:
    """ "Exactly N towers" counts pictures, whatever colour and number are named."""
    found = []
    for number, word in ((1, "one"), (2, "two"), (3, "three")):
        for color in ("black", "blue", "yellow"):
            found += ask(f"exactly {word} towers show a {color} block", about(color, "", number, "=="))
    return found


@pytest.fixture(scope="module")
def scorer(lessons: list[Judgement]) -> Scorer:
    return learn(start_scorer(PACK), lessons, settings=QUICK)


def test_right_and_wrong_answers_teach_what_a_new_instruction_means(scorer: Scorer, lessons: list[Judgement]) -> None:
    text = "exactly two towers show a yellow block"
    held_out = [item for item in lessons if item.instruction != text]
    asked = ask(text, about("yellow", "", 2, "=="), scenes=20)
    taught = learn(start_scorer(PACK), held_out, settings=QUICK)

    def measure(one: Scorer) -> float:
        meaning = one.rank(text)[0][0].meaning
        return sum(bool(Executor(item.scene, SPACE).judge(meaning)[0]) is item.answer for item in asked) / len(asked)

    assert measure(taught) == 1.0
    shares = [share for _, share in taught.rank(text)]
    assert sum(shares) == pytest.approx(1.0) and shares == sorted(shares, reverse=True)
    opposite = learn(start_scorer(PACK), [replace(item, answer=not item.answer) for item in held_out], settings=QUICK)
    assert measure(opposite) < 0.7, "it is the answers that teach it"


def test_the_order_of_feedback_changes_nothing(scorer: Scorer, lessons: list[Judgement]) -> None:
    shuffled = random.Random(1).sample(lessons, len(lessons))
    again = learn(replace(scorer, weights={"old": 9.0}), shuffled, settings=QUICK)
    assert again.hash == scorer.hash, "nor do the weights that it had before"
    assert learn(start_scorer(PACK), lessons[:-1], settings=QUICK).hash != scorer.hash
    assert [[item.id for item in group] for group in group_judgements(shuffled)] == [
        [item.id for item in group] for group in group_judgements(lessons)
    ]
    with pytest.raises(DataError, match="given twice"):
        learn(start_scorer(PACK), [lessons[0], lessons[0]], settings=QUICK)


def test_a_lesson_keeps_the_candidates_that_agree_with_every_judgement(scorer: Scorer, lessons: list[Judgement]) -> None:
    group = group_judgements(lessons)[0]
    few, many = make_lesson(scorer, group[:2]), make_lesson(scorer, group)
    assert few.agrees.sum() > many.agrees.sum() > 0
    assert set(many.agrees) == {0.0, 1.0}


def test_feedback_gives_the_answer_or_turns_a_refused_result_round() -> None:
    proposal = Proposal(task_id="t", plan=(), program="p", author="search")
    trace = Trace(id="r", task_id="t", proposal=proposal, steps=(), status="finished", result="True")
    for feedback, answer in (
        (Feedback(id="f", task_id="t", trace_id="r", accepted=True), True),
        (Feedback(id="f", task_id="t", trace_id="r", accepted=False), False),
        (Feedback(id="f", task_id="t", trace_id="r", accepted=False, answer="false"), False),
        (Feedback(id="f", task_id="t", trace_id="r", accepted=False, answer="seven"), None),
    ):
        assert read_answer(trace, feedback) is answer
    person = Feedback(id="f", task_id="t", trace_id="r", accepted=False, source="person")
    assert read_answer(trace, person) is None, "a word that proves nothing about this result"
    assert read_answer(trace, replace(person, accepted=True)) is True and read_answer(trace, replace(person, answer="Yes.")) is True
    unfinished = replace(trace, status="tool_error", result=None)
    assert read_answer(unfinished, Feedback(id="f", task_id="t", trace_id="r", accepted=False)) is None
    with pytest.raises(DataError, match="trace other"):
        read_answer(trace, Feedback(id="f", task_id="t", trace_id="other", accepted=True))


def test_a_snapshot_is_read_back_and_a_changed_one_is_refused(scorer: Scorer, tmp_path: Path) -> None:
    save_scorer(scorer, tmp_path)
    again = load_scorer(tmp_path)
    assert again.hash == scorer.hash
    text = "exactly two towers show a blue block"
    assert again.rank(text) == scorer.rank(text)
    path = tmp_path / "scorer.json"
    changed = json.loads(path.read_text(encoding="utf-8"))
    changed["lexicon"]["top"] = ["foot"]
    path.write_text(json.dumps(changed), encoding="utf-8")
    with pytest.raises(DataError, match="hash"):
        load_scorer(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match="no scorer"):
        load_scorer(tmp_path)


def test_words_for_places_are_learned_from_answers() -> None:
    own = join_lexicons(derive_lexicon(SPACE, find_signature=find_signature), PACK.function_words)
    lessons = [
        item
        for color in ("black", "blue", "yellow")
        for word, place in (("crown", "top"), ("foot", "base"))
        for item in ask(f"some tower shows a {color} block as its {word}", about(color, place), scenes=8)
    ]
    start = start_scorer(PACK, lexicon=own)
    taught, words = learn_lexicon(
        start, lessons, settings=LexiconSettings(rounds=1, support=1.0), training=replace(QUICK, reference=4, models=1)
    )
    parts = {word.word: {found.part for found in words if found.word == word.word} for word in words}
    assert parts.keys() == {"crown", "foot"}, "words that go with every place mean none"
    assert parts["crown"] == {"top"}
    assert parts["foot"] and parts["foot"] <= {"base", "floor", "wall"}, "the lowest block stands at the wall"
    assert "crown" in taught.lexicon["top"] and "crown" not in start.lexicon["top"] and taught.weights == {}


def make_task(text: str, inputs: tuple[str, ...] = ("LEFT", "MIDDLE", "RIGHT")) -> Task:
    return Task(id="t", kind="multi_image", instruction=text, images=("a",) * len(inputs), inputs=inputs, family="f", wording="new",
                split="test", group="g", source="s")  # fmt: skip


def test_the_planner_proposes_the_likeliest_program_that_has_not_failed(scorer: Scorer) -> None:
    planner, task = SearchPlanner(scorer), make_task("exactly two towers show a blue block")
    [first] = planner.propose([task], pool=POOL, seed=0)
    assert (first.author, first.status) == ("search", "ok") and 0 < (first.confidence or 0) <= 1
    critique = Critique(id="c", trace_id="r", grain="global", culprit="program")
    [second] = planner.propose([task], pool=POOL, attempts=[FailedAttempt(proposal=first, critique=critique)], seed=0)
    assert second.status == "ok" and second.program != first.program
    failure = make_demonstration(
        kind="program", outcome="failure", task_kind="multi_image", instruction=task.instruction, plan=first.plan, program=first.program,
        reason="wrong", provenance="failed",
    )  # fmt: skip
    assert planner.propose([task], pool=POOL.add([failure]), seed=7)[0].program == second.program


def test_the_planner_says_what_it_cannot_do(scorer: Scorer) -> None:
    [single] = SearchPlanner(scorer).propose([make_task("a blue block", inputs=("IMAGE",))], pool=POOL, seed=0)
    assert single.status == "failed" and "IMAGE" in (single.error or "")
    with pytest.raises(ConfigError, match="BOTTOM"):
        open_search_planner(find_tool=lambda name: None if name == "BOTTOM" else find_signature(name))
    assert open_search_planner().propose([make_task("a blue block")], pool=POOL, seed=0)[0].status == "ok", "also before any feedback"
