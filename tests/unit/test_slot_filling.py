"""Slot filling on the drawn world's instructions and on sentences written here: what is filled, what is refused, what comes next."""

import random
from dataclasses import replace

import pytest

from tests.unit.test_demonstrations import make
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.filling import fill_template
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import build_lexicon, split_words
from visloop.assistant.planner import FailedAttempt, open_planner
from visloop.assistant.proposals import find_problems, normalize_program
from visloop.assistant.retrieval import draw_entries
from visloop.assistant.slot_filling import SlotFillingPlanner
from visloop.assistant.templates import Slot, build_template
from visloop.config_assistant import PlannerConfig, RetrievalChoice
from visloop.errors import ConfigError
from visloop.records.assistant import Critique, Demonstration, Proposal, Task, TaskKind
from visloop.scenes.workshop import BASE_WORDS
from visloop.scenes.workshop_families import Draw, TaskFamily, fill_slots
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.scenes.workshop_tasks import FAMILIES, TASK_INPUTS
from visloop.tools.signatures import find_signature

WORDS = [word for words in BASE_WORDS.values() for word in words]
"""What the shipped tools know by name: no novel word is among them."""


def ask(instruction: str, kind: TaskKind = "vqa") -> Task:
    return Task(
        id=f"task of {instruction}",
        kind=kind,
        instruction=instruction,
        images=("i.png",),
        inputs=TASK_INPUTS[kind],
        family="f",
        wording="base",
        split="train",
        group="g",
        source="test",
    )


def open_filling(**changes: object) -> SlotFillingPlanner:
    planner = open_planner(PlannerConfig(**changes), vocabulary=WORDS)  # type: ignore[arg-type]
    assert isinstance(planner, SlotFillingPlanner)
    return planner


def propose(instruction: str, *entries: Demonstration, kind: TaskKind = "vqa", attempt: FailedAttempt | None = None) -> Proposal:
    [proposal] = open_filling().propose([ask(instruction, kind)], pool=DemonstrationPool(entries), attempts=[attempt])
    return proposal


RELATION = make(
    "Is there a red circle left of the blue square?",
    plan=("Locate the blue square.", "Crop the region left of the box of Step1.", "Count every red circle there.", "Decide.", "Show it."),
    program="""BOX0=LOC(image=IMAGE,object='blue square')
IMAGE0=CROP_LEFTOF(image=IMAGE,box=BOX0)
BOX1=LOC(image=IMAGE0,object='red circle')
ANSWER0=COUNT(box=BOX1)
ANSWER1=EVAL(expr="'yes' if {ANSWER0} > 0 else 'no'")
FINAL_RESULT=RESULT(var=ANSWER1)""",
)
COUNT = make(
    "How many red circles are there?",
    plan=("Locate every red circle.", "Count the boxes of Step1.", "Show it."),
    program="BOX0=LOC(image=IMAGE,object='red circle')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)",
)
TOUCH = make(
    "Exactly one picture has a black circle touching the wall.",
    task_kind="multi_image",
    plan=("Segment the left picture.", "Show it."),
    program="""OBJ0=SEG(image=LEFT)
OBJ1=FILTER(image=LEFT,object=OBJ0,query='black circle')
OBJ2=TOUCHING(image=LEFT,object=OBJ1,target='wall')
ANSWER0=COUNT(box=OBJ2)
ANSWER1=EVAL(expr='(1 if {ANSWER0} > 0 else 0) == 1')
FINAL_ANSWER=RESULT(var=ANSWER1)""",
)


def test_slots_are_what_the_program_repeats_cut_where_arguments_are() -> None:
    entry = make(
        "Blur all but the large red circle and the square, and show one star.",
        task_kind="editing",
        program="""OBJ0=SEG(image=IMAGE)
OBJ1=SELECT(image=IMAGE,object=OBJ0,query='large')
OBJ2=SELECT(image=IMAGE,object=OBJ1,query='red circle,square')
FINAL_RESULT=RESULT(var=OBJ2)""",
    )
    template = build_template(entry, lexicon=build_lexicon(DemonstrationPool((entry,))))
    assert template.slots == (Slot("concept", ("large",)), Slot("concept", ("red", "circle")), Slot("concept", ("square",)))
    assert "star" in template.elements and "1" in template.elements, "what the program leaves out is no slot"


def test_program_plan_and_tool_follow_the_new_words() -> None:
    found = propose("Is there an orange striped bar above the hexagon?", RELATION, COUNT)
    assert found.program.splitlines()[:3] == [
        "BOX0=LOC(image=IMAGE,object='hexagon')",
        "IMAGE0=CROP_ABOVE(image=IMAGE,box=BOX0)",
        "BOX1=LOC(image=IMAGE0,object='orange striped bar')",
    ]
    assert found.plan[:3] == ("Locate the hexagon.", "Crop the region above the box of Step1.", "Count every orange striped bar there.")
    assert (found.author, found.status, found.demonstrations) == ("slot_filling", "ok", (RELATION.id,))
    assert found.confidence is not None and found.confidence > 0.6


def test_only_the_compared_number_changes_and_targets_and_plurals_fit() -> None:
    found = propose("Exactly two pictures have a teal star touching the bottom.", TOUCH, kind="multi_image")
    assert "target='bottom'" in found.program and "query='teal star'" in found.program
    assert "(1 if {ANSWER0} > 0 else 0) == 2" in found.program
    assert "object='blue star'" in propose("How many blue stars are there?", RELATION, COUNT).program


def test_a_picture_named_by_a_word_is_another_picture() -> None:
    entry = make(
        "The left picture shows more bars than the middle picture.",
        task_kind="multi_image",
        plan=("Locate every bar in the left picture.", "Locate every bar in the middle picture.", "Show it."),
        program="""BOX0=LOC(image=LEFT,object='bar')
BOX1=LOC(image=MIDDLE,object='bar')
ANSWER0=COUNT(box=BOX0)
ANSWER1=COUNT(box=BOX1)
ANSWER2=EVAL(expr='{ANSWER0} > {ANSWER1}')
FINAL_ANSWER=RESULT(var=ANSWER2)""",
    )
    found = propose("The right picture shows more pink hearts than the left picture.", entry, kind="multi_image")
    assert found.program.splitlines()[:2] == ["BOX0=LOC(image=RIGHT,object='pink heart')", "BOX1=LOC(image=LEFT,object='pink heart')"]
    assert found.plan[:2] == ("Locate every pink heart in the right picture.", "Locate every pink heart in the left picture.")


def test_a_known_concept_is_never_left_out() -> None:
    found = propose("How many red circles are there, and how many blue squares?", COUNT)
    assert (found.status, found.program) == ("failed", "")
    assert found.error is not None and "store one of that wording" in found.error


def test_a_filled_program_that_breaks_a_rule_is_no_candidate() -> None:
    wrong_tool = make("Count the red circle.", program="OBJ0=SEG(image=IMAGE)\nFINAL_RESULT=RESULT(var=OBJ0)")
    broken = make("Count every red circle.", program="BOX0=LOC(image=IMAGE,object='red circle'")
    undefined = make("Count any red circle.", program="ANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)")
    assert propose("Count the blue square.", wrong_tool, broken, undefined).status == "failed"


def fail(proposal: Proposal) -> FailedAttempt:
    return FailedAttempt(proposal=proposal, critique=Critique(id="c", trace_id="t", grain="global", culprit="program", reason="r"))


def test_after_a_failed_attempt_the_next_best_is_proposed_and_then_none() -> None:
    instruction = "How many red circles are there left of the blue square?"
    other = make("How many red circles are there left of the blue square in all?", program=RELATION.program.replace("> 0", "> 1"))
    first = propose(instruction, RELATION, other)
    second = propose(instruction, RELATION, other, attempt=fail(first))
    assert first.status == second.status == "ok"
    assert normalize_program(first.program) != normalize_program(second.program)
    renamed = replace(first, program=first.program.replace("BOX0", "PLACE"))
    assert propose(instruction, RELATION, other, attempt=fail(renamed)).program == second.program, "other names are no other program"
    known = make(instruction, outcome="failure", reason="wrong", program=second.program, provenance="failed")
    third = propose(instruction, RELATION, other, known, attempt=fail(first))
    assert third.status == "failed" and third.error is not None and "tried before" in third.error


def test_without_plans_only_the_program_is_filled() -> None:
    [found] = open_filling(use_plan=False).propose([ask("How many bars are there?")], pool=DemonstrationPool((COUNT,)))
    assert found.plan == () and "object='bar'" in found.program


def test_attempts_of_other_tasks_are_refused() -> None:
    planner, pool = open_filling(), DemonstrationPool((COUNT,))
    [proposal] = planner.propose([ask("How many bars are there?")], pool=pool)
    for attempts in ([None, None], [fail(replace(proposal, task_id="another"))]):
        with pytest.raises(ConfigError, match="its own attempt"):
            planner.propose([ask("How many bars are there?")], pool=pool, attempts=attempts)


def draw(family: TaskFamily, text: str, rng: random.Random, *, novel: bool) -> tuple[str, tuple[str, ...], str]:
    case = None
    while case is None:
        words = family.list_concepts()
        case = family.draw(Draw(words=rng, rng=rng, focus=rng.choice(words) if novel and words else None, wanted=rng.random()))
    plan, program = (tuple(fill_slots(line, case.slots) for line in lines) for lines in (family.plan, family.program))
    return fill_slots(text, case.slots), plan, "\n".join(program)


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_every_known_wording_is_planned_rightly_with_novel_words(kind: TaskKind) -> None:
    pool, planner = DemonstrationPool(seed_demonstrations()), open_filling()
    wordings = [(family, text) for family in FAMILIES[kind] if not family.held_out for text in family.base]
    for index, (family, wording) in enumerate(wordings):
        instruction, _, program = draw(family, wording, random.Random(index), novel=True)
        [found] = planner.propose([ask(instruction, kind)], pool=pool)
        assert normalize_program(found.program) == normalize_program(program), instruction


@pytest.mark.parametrize("kind", list(FAMILIES))
def test_one_stored_demonstration_teaches_a_new_wording_and_a_new_family(kind: TaskKind) -> None:
    pool, planner = DemonstrationPool(seed_demonstrations()), open_filling()
    wordings = [(family, text) for family in FAMILIES[kind] for text in (family.new if not family.held_out else family.base)]
    before = after = 0
    for index, (family, wording) in enumerate(wordings):
        shown, plan, program = draw(family, wording, random.Random(index), novel=False)
        lesson = make(shown, task_kind=kind, plan=plan, program=program, provenance="repaired")
        instruction, _, right = draw(family, wording, random.Random(100 + index), novel=True)
        for learned in (False, True):
            [found] = planner.propose([ask(instruction, kind)], pool=pool.add([lesson]) if learned else pool)
            solved = normalize_program(found.program) == normalize_program(right)
            before, after = before + (solved and not learned), after + (solved and learned)
    assert before < 0.75 * len(wordings)
    assert after == len(wordings)


def test_filling_a_demonstration_with_its_own_words_gives_it_back() -> None:
    entries = [entry for entry in seed_demonstrations() if entry.kind == "program" and entry.outcome == "success"]
    lexicon = build_lexicon(DemonstrationPool(tuple(entries)), vocabulary=WORDS)
    for entry in entries:
        template = build_template(entry, lexicon=lexicon)
        words = list(split_words(entry.instruction))
        fills, place = [], 0
        for element in template.elements:
            size = len(element.norms) if isinstance(element, Slot) else 1
            if isinstance(element, Slot):
                fills.append(words[place : place + size])
            place += size
        plan, program = fill_template(template, fills)
        assert parse_program(program) == parse_program(entry.program), entry.instruction
        assert plan == entry.plan
        assert find_problems(program, task=ask(entry.instruction, entry.task_kind), find_signature=find_signature) == ()


def repair(instruction: str, kind: TaskKind, *, most: int) -> list[Proposal]:
    """The first proposal for an instruction and those after it, each with all earlier ones known as wrong."""
    pool, planner, task = DemonstrationPool(seed_demonstrations()), open_filling(), ask(instruction, kind)
    [first] = planner.propose([task], pool=pool)
    found, attempt = [first], fail(first)
    for _ in range(most):
        [proposal] = planner.propose([task], pool=pool, attempts=[attempt])
        found.append(proposal)
        attempt = replace(attempt, tried=(*attempt.tried, proposal.program))
    return found


@pytest.mark.parametrize(
    ("instruction", "line"),
    [
        ("Swap out the green cross and put a pink heart in its place.", "REPLACE(image=IMAGE,object=OBJ1,prompt='pink heart')"),
        ("Make the surroundings of the teal heart look out of focus.", "BGBLUR(image=IMAGE,object=OBJ1)"),
    ],
)
def test_repair_tries_other_forms_first(instruction: str, line: str) -> None:
    found = repair(instruction, "editing", most=4)
    forms = [tuple(statement.tool for statement in parse_program(proposal.program).statements) for proposal in found]
    assert len(set(forms[:4])) == 4
    assert any(line in proposal.program for proposal in found)


@pytest.mark.parametrize(
    ("instruction", "kind", "line"),
    [
        (
            "Blur all but the star, then cover the black object with sad_face.",
            "editing",
            "EMOJI(image=IMAGE0,object=OBJ2,emoji='sad_face')",
        ),
        ("Tag the diamond and the pink bar.", "tagging", "IMAGE1=TAG(image=IMAGE0,object=OBJ1)"),
        ("Count the pink arrows and the red crosses together.", "vqa", "EVAL(expr='{ANSWER0} + {ANSWER1}')"),
        ("Is there both a blue arrow and a striped cross?", "vqa", "'yes' if {ANSWER0} > 0 and {ANSWER1} > 0 else 'no'"),
    ],
)
def test_what_is_asked_of_two_things_is_composed_in_the_first_repair(instruction: str, kind: TaskKind, line: str) -> None:
    first, *later = repair(instruction, kind, most=1)
    assert line not in first.program
    assert line in later[0].program and later[0].author == "slot_filling" and later[0].plan


def test_forms_may_be_tried_in_the_order_of_a_draw() -> None:
    task, pool = ask("How many bars are there?"), DemonstrationPool((RELATION, COUNT))
    assert open_filling(candidates=1).propose([task], pool=pool)[0].demonstrations == (COUNT.id,)
    for seed in range(12):
        [first] = draw_entries(task, pool.entries, most=1, seed=seed)
        [found] = open_filling(candidates=1, retrieval=RetrievalChoice.random).propose([task], pool=pool, seed=seed)
        assert found.status == ("ok" if first == COUNT else "failed"), "the only form that is tried is the one that was drawn"
    [both] = open_filling(candidates=2, retrieval=RetrievalChoice.random).propose([task], pool=pool, seed=0)
    assert both.demonstrations == (COUNT.id,), "of those that are tried the best fitting one is taken"
