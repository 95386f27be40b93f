"""Blame by counterfactual repair and confidence, faults put in on purpose, and what the critics make of them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.fixtures.scripted_assistant import (
    CELL,
    COLORS,
    HOW_MANY,
    IS_THERE,
    MORE_THAN,
    OWNER,
    WHAT_COLOR,
    World,
    draw_row,
    make_seed_pools,
)
from visloop.assistant.answer_trust import ask_about_answers
from visloop.assistant.blame import BlameCritic, BlameLimits
from visloop.assistant.blame_scores import measure_blame
from visloop.assistant.cases import Case
from visloop.assistant.faults import FaultyCase, inject_fault
from visloop.assistant.inference import CounterfactualInference
from visloop.assistant.interpreter import Execution, Job, run_programs
from visloop.assistant.repairs import SOME_OTHER_ANSWER, StepRepairs, find_repairs, list_candidates
from visloop.assistant.runs import make_case, run_proposals
from visloop.errors import ConfigError
from visloop.records.assistant import Critique, Culprit, Feedback, PromptEntry, Proposal
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool
from visloop.tools.values import Box

THRICE = "What color is the cell?"
COMPARE = (
    "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nBOX0=LOC(image=IMAGE,object='red')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"
    "ANSWER1=VQA(image=IMAGE0,question='What color is it?')\n"
    "ANSWER2=EVAL(expr=\"'yes' if {ANSWER0} == {ANSWER1} else 'no'\")\nFINAL_RESULT=RESULT(var=ANSWER2)"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fail(
    world: World, program: str, *cells: str, instruction: str = "How many teal cells are there?", confidence: float | None = None
) -> Case:
    task = world.add(instruction, *cells)
    parts = world.parts(None)
    proposal = Proposal(task_id=task.id, plan=(), program=program, author="test", confidence=confidence)
    [run] = run_proposals([task], [proposal], pools=make_seed_pools(), parts=parts, cycle=0)
    assert not run.right, "a case is a failure"
    return make_case(run, parts=parts)


def know(word: str) -> LearnedPrompt:
    entry = PromptEntry(
        id=word, tool=OWNER, concept=word, backend="eye", placement="table", instance_ids=(), train_accuracy=1.0, validation_accuracy=1.0,
        base_accuracy=1.0, base_accuracy_before=1.0, cycle=0,
    )  # fmt: skip
    return LearnedPrompt(entry=entry, feature=np.zeros(3, np.float32), prompt=np.array([COLORS[word]], np.float32))


def be_sure(case: Case, confidences: Mapping[int, float]) -> Case:
    steps = tuple(replace(step, confidence=confidences.get(step.step)) for step in case.execution.steps)
    return replace(case, execution=replace(case.execution, steps=steps))


def trust_author(case: Case, confidence: float) -> Case:
    return replace(case, trace=replace(case.trace, proposal=replace(case.trace.proposal, confidence=confidence)))


def blame(world: World, case: Case, grain: str = "global", **limits: object) -> Critique:
    [critique] = BlameCritic(limits=BlameLimits(**limits)).criticize([case], grain=grain, tools=world.tools, seed=0)  # type: ignore[arg-type]
    return critique


def test_the_step_whose_repair_makes_the_result_right_is_blamed(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="teal"), "teal", "red", "teal")
    critique = blame(world, case)
    assert (critique.culprit, critique.step, critique.tool, critique.concept) == ("tool", 1, "LOC", "teal")
    assert critique.grain == "global" and critique.confidence is not None and critique.confidence > 0.5
    assert "make the run right" in critique.reason and "0.40" in critique.reason


def test_a_repair_is_found_also_if_the_count_is_off_by_more_than_one(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="teal"), *["teal"] * 5)
    [repairs] = find_repairs([case], tools=world.tools, judge=lambda run, _: run.result == 5, most=3)
    assert repairs[1].values and len(repairs[1].values[0]) == 5, "SEG's own regions are the boxes that could be missing"  # type: ignore[arg-type]
    [repairs] = find_repairs([case], tools=world.tools, judge=lambda run, _: run.result == 1, most=1)
    assert repairs[1].through == (2,), "the right count, credited to the step that the boxes come from"


def test_innocent_steps_are_those_that_no_result_repairs(world: World) -> None:
    program = (
        "BOX0=LOC(image=IMAGE,object='pink')\nANSWER0=COUNT(box=BOX0)\nBOX1=LOC(image=IMAGE,object='red')\n"
        "ANSWER1=COUNT(box=BOX1)\nFINAL_RESULT=RESULT(var=ANSWER1)"
    )
    case = fail(world, program, "teal", "red", "teal")
    [repairs] = find_repairs([case], tools=world.tools, judge=lambda run, _: run.result == 2, most=8)
    assert repairs[1].share == 0 and repairs[3].share > 0
    critique = blame(world, case)
    assert critique.step != 1, "its low confidence does not matter: nothing depends on it"


def test_confidence_decides_between_steps_that_both_could_be_wrong(world: World) -> None:
    case = fail(
        world, MORE_THAN.format(word="red", other="teal"), "teal", "red", "teal", instruction="Are there more red cells than teal cells?"
    )
    assert blame(world, case).step == 3
    swapped = be_sure(case, {1: 0.4, 3: 0.95})
    assert blame(world, swapped).step == 1
    assert blame(world, case, use_confidence=False).step == blame(world, swapped, use_confidence=False).step


def test_a_program_that_no_single_result_repairs_is_guilty(world: World) -> None:
    case = fail(world, IS_THERE.format(word="red"), "red", "red", "blue", instruction="How many red cells are there?")
    critique = blame(world, case)
    assert (critique.culprit, critique.step, critique.tool, critique.confidence) == ("program", None, None, 1.0)
    assert "no other result" in critique.reason


def test_the_authors_doubt_weighs_against_the_program(world: World) -> None:
    sure = fail(world, HOW_MANY.format(word="teal"), "teal", "red", confidence=0.97)
    unsure = fail(world, HOW_MANY.format(word="teal"), "teal", "red", confidence=0.05)
    assert (blame(world, sure).culprit, blame(world, unsure).culprit) == ("tool", "program")


def test_what_was_blamed_before_is_not_blamed_again(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="teal"), "teal", "red")
    first = blame(world, case)
    second = blame(world, replace(case, earlier=(first,)))
    third = blame(world, replace(case, earlier=(first, second)))
    assert [item.culprit for item in (first, second, third)] == ["tool", "program", "nothing"]
    assert len({first.id, second.id, third.id}) == 3


def test_local_takes_the_first_doubtful_step_that_could_be_repaired(world: World) -> None:
    case = fail(
        world, MORE_THAN.format(word="pink", other="teal"), "teal", "pink", "teal", "pink", "pink",
        instruction="Are there more pink cells than teal cells?",
    )  # fmt: skip
    local = blame(world, case, "local")
    assert (local.culprit, local.step, local.grain) == ("tool", 1, "local")
    assert blame(world, replace(case, earlier=(local,)), "local").step != 1
    sure = fail(world, IS_THERE.format(word="red"), "red", "red", instruction="How many red cells are there?")
    assert blame(world, sure, "local").culprit == "program", "every step passes its own check"


def test_from_close_up_sure_parts_are_weighed_where_no_step_is_doubtful(world: World) -> None:
    asked = "Are there more red cells than teal cells?"
    case = be_sure(fail(world, MORE_THAN.format(word="red", other="teal"), "teal", "red", "teal", instruction=asked), {1: 0.9, 3: 0.97})
    program = Critique(id="c", trace_id=case.trace.id, grain="global", culprit="program")
    taught = Critique(id="d", trace_id=case.trace.id, grain="global", culprit="tool", step=3, tool="LOC")
    assert blame(world, case, "local").culprit == "program", "an unknown author is less sure than the steps"
    after = blame(world, replace(case, earlier=(program,)), "local")
    assert (after.culprit, after.step) == ("tool", 1), "another program was no better: the less sure step is next"
    assert "make the run right" in after.reason and "0.90" in after.reason
    surer = trust_author(case, 0.97)
    assert blame(world, replace(surer, earlier=(taught,)), "local").step == 1, (
        "the author is surer of the program than the tool of its step"
    )
    assert blame(world, replace(trust_author(case, 0.4), earlier=(taught,)), "local").culprit == "program"
    assert blame(world, replace(case, earlier=(program, taught, after)), "local").culprit == "nothing"


def test_a_tool_that_does_not_know_the_right_answer_is_blamed_however_sure_it_is_of_its_own(world: World) -> None:
    case = be_sure(fail(world, WHAT_COLOR, "red", "teal", "blue", instruction=THRICE), {1: 0.96})
    critique = blame(world, case)
    assert (critique.culprit, critique.step) == ("tool", 1)
    assert "its confidence is 0.96; asked about the right answer it is 0.40" in critique.reason
    knows = world.tools.with_pool(PromptPool((know("teal"),)))
    [critique] = BlameCritic().criticize([case], grain="global", tools=knows, seed=0)
    assert critique.culprit == "program", "it means what it said"
    [critique] = BlameCritic().criticize([case], grain="local", tools=world.tools, seed=0)
    assert critique.step == 1, "the step fails its own check"


def test_tools_are_asked_about_one_word_only(world: World) -> None:
    colour = fail(world, WHAT_COLOR, "red", "teal", "blue", instruction=THRICE)
    number = fail(world, HOW_MANY.format(word="teal"), "teal", "red")
    values: list[tuple[str, ...]] = [("teal", SOME_OTHER_ANSWER), ("teal", "pink"), ("yes",), ("3",), (SOME_OTHER_ANSWER,), ()]
    found = [{1: StepRepairs(step=1, tried=4, values=given)} for given in values]
    world.tools.batches.clear()
    sure = ask_about_answers(
        [colour] * len(values) + [number], [*found, {1: StepRepairs(step=1, tried=4, values=("teal",))}], tools=world.tools
    )
    assert sure == [{1: 0.4}, {}, {}, {}, {}, {}, {}] and world.tools.batches == [("VQA", 1)]
    assert ask_about_answers([number], [{}], tools=world.tools) == [{}] and len(world.tools.batches) == 1, "nothing to ask"


def test_evidence_is_named_where_feedback_cannot_judge(world: World) -> None:
    case = fail(
        world, MORE_THAN.format(word="red", other="teal"), "teal", "red", "teal", instruction="Are there more red cells than teal cells?"
    )
    told = replace(case.feedback, answer=None, text="the teal cells were not found")
    mute = replace(case, feedback=told)
    critic = BlameCritic()
    judged, unjudged = critic.blame_evidence([case, mute], tools=world.tools)
    assert (judged.grain, unjudged.grain) == ("counterfactual", "confidence")
    assert unjudged.step == 3
    [named] = BlameCritic(limits=BlameLimits(use_confidence=False)).blame_evidence([mute], tools=world.tools)
    assert named.step == 3, "the text names the concept of one step"


def test_interrupted_runs(world: World) -> None:
    case = fail(world, "BOX0=LOC(image=IMAGE,object='teal')\nANSWER0=COUNT(box=BOX7)\nFINAL_RESULT=RESULT(var=ANSWER0)", "teal")
    critique = blame(world, case, "interrupt")
    assert (critique.culprit, critique.step, critique.grain) == ("program", 2, "interrupt") and "BOX7" in critique.reason


@pytest.mark.parametrize(
    ("found", "answer", "expected"),
    [
        ("yes", "no", ["no"]),
        ("2", "4", ["4", "3", "1", "0"]),
        ("green", "teal", ["teal", "red", SOME_OTHER_ANSWER]),
        ("green", "yes", ["red", SOME_OTHER_ANSWER]),
    ],
)
def test_other_answers_are_plausible_ones(world: World, found: str, answer: str, expected: list[str]) -> None:
    program = (
        "ANSWER0=VQA(image=IMAGE,question='What color is it?')\n"
        "ANSWER1=EVAL(expr=\"'a' if {ANSWER0} == 'red' else 'b'\")\nFINAL_RESULT=RESULT(var=ANSWER1)"
    )
    case = fail(world, program, "teal", "blue", "red", instruction=THRICE)
    steps = (replace(case.execution.steps[0], value=found), replace(case.execution.steps[1], value=3), *case.execution.steps[2:])
    steps = (*steps[:-1], replace(steps[-1], value=3))
    changed = replace(case, execution=replace(case.execution, steps=steps), feedback=replace(case.feedback, answer=answer))
    assert list_candidates(changed, 1, find_signature=world.tools.find_signature) == expected


def test_candidates_of_boxes_do_not_hold_their_own_result(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="red"), "red", "teal", "red")
    regions = [Box(left=index * CELL, top=0, right=(index + 1) * CELL, bottom=CELL) for index in range(3)]
    own = case.execution.steps[0].value
    found = list_candidates(case, 1, regions=regions, find_signature=world.tools.find_signature)
    corners = [tuple(box.corners for box in value) for value in found]  # type: ignore[union-attr]
    assert tuple(box.corners for box in own) not in corners and len(set(corners)) == len(corners)  # type: ignore[union-attr]
    assert {len(value) for value in found} >= {0, 1, 2, 3}  # type: ignore[arg-type]


def test_the_right_answer_of_a_question_is_inferred_or_nothing(world: World) -> None:
    case = fail(
        world, "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nR=RESULT(var=ANSWER0)", "red", "teal", "blue", instruction=THRICE
    )
    critique = blame(world, case)
    assert (critique.tool, critique.concept) == ("VQA", None)
    assert CounterfactualInference().infer(case, critique, tools=world.tools, seed=0).answer == "teal"
    same = fail(world, COMPARE, "red", "teal", "blue", instruction="Is there a teal cell?")
    found = CounterfactualInference().infer(same, replace(critique, step=4), tools=world.tools, seed=0)
    assert found.answer == "green", "the two answers are compared: what the other said makes it right"
    either = fail(
        world,
        COMPARE.split("ANSWER2")[0] + "BOX1=LOC(image=IMAGE,object='blue')\nIMAGE1=CROP(image=IMAGE,box=BOX1)\n"
        "ANSWER2=VQA(image=IMAGE1,question='What color is it?')\n"
        "ANSWER3=EVAL(expr=\"'yes' if {ANSWER0} == {ANSWER1} or {ANSWER0} == {ANSWER2} else 'no'\")\nFINAL_RESULT=RESULT(var=ANSWER3)",
        "red", "teal", "blue", instruction="Is there a teal cell?",
    )  # fmt: skip
    found = CounterfactualInference().infer(either, replace(critique, step=1), tools=world.tools, seed=0)
    assert found.answer is None and "2 other answers" in found.reason, "a guess would be learned"
    hopeless = fail(world, IS_THERE.format(word="red"), "red", "red", instruction="How many red cells are there?")
    assert CounterfactualInference().infer(hopeless, replace(critique, step=1), tools=world.tools, seed=0).answer is None


def test_limits_are_checked() -> None:
    for limits in ({"doubt": 1.0}, {"candidates": 0}, {"use_repairs": False, "use_confidence": False}):
        with pytest.raises(ConfigError):
            BlameCritic(limits=BlameLimits(**limits))  # type: ignore[arg-type]


def run_right(world: World, programs: Sequence[tuple[str, tuple[str, ...]]]) -> list[Execution]:
    tasks = [world.add("How many red cells are there?", *cells) for _, cells in programs]
    jobs = [
        Job(task, Proposal(task_id=task.id, plan=(), program=program, author="truth"), {"IMAGE": draw_row(*cells)})
        for task, (program, cells) in zip(tasks, programs, strict=True)
    ]
    return run_programs(jobs, tools=world.tools)


ROWS = [("red", "blue", "green"), ("blue", "blue", "red", "red"), ("green", "red", "red", "red", "blue"), ("red", "green", "green", "blue")]
KNOWN = [HOW_MANY.format(word="red"), MORE_THAN.format(word="red", other="blue"), IS_THERE.format(word="green")]
UNSEEN = [
    COMPARE,
    "BOX0=LOC(image=IMAGE,object='blue')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\nA=VQA(image=IMAGE0,question='Is it red?')\nR=RESULT(var=A)",
]


def inject_all(world: World, culprit: str, *, wrong_confidence: tuple[float, float] | None = (0.2, 0.7)) -> list[FaultyCase]:
    found = []
    for group, programs in (("known", KNOWN), ("unseen", UNSEEN)):
        for execution in run_right(world, [(program, row) for program in programs for row in ROWS]):
            case = inject_fault(
                execution,
                culprit=culprit,  # type: ignore[arg-type]
                tools=world.tools,
                words=("red", "green", "blue"),
                answers=("red", "green", "blue", "yes", "no"),
                wrong_confidence=wrong_confidence,
                group=group,
                seed=3,
            )
            if case is not None:
                found.append(case)
    return found


def test_injected_faults_change_the_result_and_say_what_they_are(world: World) -> None:
    tool_faults = inject_all(world, "tool")
    assert len(tool_faults) >= 12 and {entry.group for entry in tool_faults} == {"known", "unseen"}
    for entry in tool_faults:
        execution, truth = entry.case.execution, entry.truth
        assert execution.status == "finished" and str(execution.result) != entry.case.feedback.answer
        assert truth.tool == execution.steps[truth.step - 1].statement.tool and truth.tool in ("LOC", "VQA")
        assert 0.2 <= (execution.steps[truth.step - 1].confidence or 0) <= 0.7
    program_faults = inject_all(world, "program")
    assert {entry.truth.fault for entry in program_faults} >= {"wrong_constant", "wrong_argument"}
    assert all(entry.truth.culprit == "program" for entry in program_faults)
    twice = [[entry.truth for entry in inject_all(World(world.folder), "program")] for _ in range(2)]
    assert twice[0] == twice[1], "drawn by seed and task"


def test_measured_blame_beats_its_parts_and_is_counted_by_group(world: World) -> None:
    faults = [*inject_all(world, "tool", wrong_confidence=(0.2, 0.9)), *inject_all(world, "program")]
    draw = random.Random(5)
    cases = [_blur(entry, draw) for entry in faults]  # confidences of right and wrong steps overlap, as those of real tools do

    def measure(**limits: object) -> dict[str, object]:
        critic = BlameCritic(limits=BlameLimits(**limits))  # type: ignore[arg-type]
        return measure_blame(cases, lambda given: critic.criticize(given, grain="global", tools=world.tools, seed=0))  # type: ignore[return-value]

    both, repairs = measure(), measure(use_confidence=False)
    assert set(both) == {"all", "known", "unseen"}
    confidence = measure(use_repairs=False)
    assert both["all"].kind > confidence["all"].kind, "re-runs tell wrong programs from wrong steps"  # type: ignore[attr-defined]
    assert both["all"].step > repairs["all"].step, "confidence tells steps apart that both could be wrong"  # type: ignore[attr-defined]
    assert both["all"].unreadable == 0 and both["all"].cases == both["known"].cases + both["unseen"].cases  # type: ignore[attr-defined]
    scores = measure_blame(
        cases,
        lambda given: [Critique(id="c", trace_id=case.trace.id, grain="global", culprit="nothing", status="unreadable") for case in given],
    )
    assert (scores["all"].kind, scores["all"].step, scores["all"].unreadable) == (0.0, 0.0, 1.0)


@dataclass(frozen=True)
class Guilt:
    case: Case
    culprit: Culprit
    steps: frozenset[int] = frozenset()
    tools: frozenset[str] = frozenset()
    group: str = ""


def test_every_guilty_step_counts_and_tools_are_scored_on_tool_faults_only(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="teal"), "teal")
    both = Guilt(case, "tool", frozenset({1, 3}), frozenset({"LOC", "VQA"}), "zoo")
    program = Guilt(case, "program", group="a few")
    given = [("tool", 3, "LOC"), ("tool", 2, "VQA"), ("program", 1, None), ("plan", None, None), ("tool", 3, "LOC")]
    scores = measure_blame(
        [both, both, both, program, program],
        lambda _: [
            Critique(id=f"c{index}", trace_id="t", grain="global", culprit=culprit, step=step, tool=tool)  # type: ignore[arg-type]
            for index, (culprit, step, tool) in enumerate(given)
        ],
    )
    assert list(scores) == ["all", "a few", "zoo"], "all first, whatever the groups are called"
    assert (scores["all"].cases, scores["all"].tool_faults, scores["all"].kind) == (5, 3, 3 / 5)
    assert (scores["zoo"].tool, scores["zoo"].step, scores["zoo"].kind) == (2 / 3, 1 / 3, 2 / 3)
    assert (scores["a few"].tool, scores["a few"].step, scores["a few"].kind) == (None, None, 1 / 2)
    assert (scores["all"].program, scores["zoo"].program, scores["a few"].program) == (1 / 2, None, 1 / 2)
    assert (scores["all"].tool, scores["all"].step) == (2 / 3, 1 / 3), "a program's fault has no guilty step"
    assert measure_blame([], lambda _: []) == {}


def _blur(entry: FaultyCase, draw: random.Random) -> FaultyCase:
    """The right steps with confidences of 0.6 to 0.99."""
    execution, wrong = entry.case.execution, entry.truth.step if entry.truth.culprit == "tool" else 0
    steps = tuple(
        step if step.confidence is None or step.step == wrong else replace(step, confidence=draw.uniform(0.6, 0.99))
        for step in execution.steps
    )
    return replace(entry, case=replace(entry.case, execution=replace(execution, steps=steps)))


def test_feedback_is_needed_only_as_told(world: World) -> None:
    case = fail(world, HOW_MANY.format(word="teal"), "teal")
    other = Feedback(id="f", task_id=case.feedback.task_id, trace_id=case.trace.id, accepted=False, answer="7")
    assert blame(world, replace(case, feedback=other)).culprit in ("tool", "program")
