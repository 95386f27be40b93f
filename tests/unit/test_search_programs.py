"""Program search: what meanings hold for drawn blocks, and that the fast executor and the real programs never disagree."""

import random

import pytest

from tests.fixtures.block_pictures import SIZES, Block, BlockTools, box_of, draw_blocks, draw_towers, scatter, stack
from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.interpreter import Job, run_programs
from visloop.assistant.search_candidates import list_candidates
from visloop.assistant.search_meanings import Atom, Filter, Meaning
from visloop.assistant.search_perception import SeenObject, look_at_tasks, scene_from_objects
from visloop.assistant.search_programs import write_program
from visloop.assistant.search_scenes import Executor, join_scenes
from visloop.assistant.search_space import load_pack
from visloop.assistant.search_words import read_instruction
from visloop.errors import ToolError
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.signatures import find_signature

PACK = load_pack("nlvr")
SPACE = PACK.space
TOOLS = BlockTools()
KNOWN = frozenset(word for words in PACK.lexicon.values() for word in words)
INSTRUCTIONS = (
    "exactly two towers hold a blue block over a yellow block",
    "some pile has three blocks and its base is not black",
    "there are at most two yellow squares that do not reach any wall",
    "every tower contains only black or blue blocks",
    "a box holds 3 items of 2 different colors",
    "two towers of the same height but one has a different base color",
    "all circles are in the same box",
    "there is a small triangle at a corner and no big square at the right side",
    "less than 4 blue items, more than 1 black item",
    "a yellow block lies below a black one and two items share the same color",
    "one box where all squares touch another square",
    "the second block of a tower is blue and the third is black",
)
TASK = Task(
    id="t", kind="multi_image", instruction="i", images=("a", "b", "c"), inputs=SPACE.inputs, family="f", wording="new", split="test",
    group="g", source="s",
)  # fmt: skip


def read(text: str):
    return read_instruction(text, space=SPACE, lexicon=PACK.lexicon, known=KNOWN)


def look(*scenes):
    return join_scenes(look_at_tasks([[draw_blocks(blocks) for blocks in scene] for scene in scenes], space=SPACE, tools=TOOLS))


def test_programs_give_what_the_fast_executor_gives() -> None:
    draw = random.Random(3)
    scenes = [make(draw) for _ in range(4) for make in (draw_towers, scatter)]
    executor = Executor(look(*scenes), SPACE)
    pictures = [dict(zip(SPACE.inputs, map(draw_blocks, scene), strict=True)) for scene in scenes]
    forms, atoms, jobs, wanted = set(), set(), [], []
    for text in INSTRUCTIONS:
        candidates = list_candidates(read(text), space=SPACE)
        for candidate in draw.sample(candidates, min(16, len(candidates))):
            meaning = candidate.meaning
            forms.add((meaning.form, meaning.holds))
            atoms |= {atom.form for part in (meaning, *meaning.parts) for atom in part.atoms}
            program, plan = write_program(meaning, space=SPACE)
            assert len(plan) == len(program.splitlines()), "one step of the plan per line (CLOVA 3.2)"
            number = draw.randrange(len(scenes))
            jobs.append(Job(TASK, Proposal(task_id="t", plan=plan, program=program, author="search"), pictures[number]))
            wanted.append((meaning, bool(executor.judge(meaning)[number])))
    executions = run_programs(jobs, tools=TOOLS)
    for execution, (meaning, truth) in zip(executions, wanted, strict=True):
        assert execution.status == "finished", (execution.error, meaning)
        assert execution.result is truth, (meaning, execution.job.proposal.program)
    assert {truth for _, truth in wanted} == {True, False}
    assert forms >= {("total", True), ("boxes", True), ("and", True), ("same_box", True), ("alike", True), ("alike", False)}
    assert atoms == {"count", "every", "kinds", "exact", "most"}


def test_a_program_is_short_readable_and_passes_the_checks() -> None:
    meaning = Meaning("boxes", (Atom("count", Filter(words=(("blue",),), places=(("top", True),)), sign=">=", number=1),), "==", 2)
    text, plan = write_program(meaning, space=SPACE)
    assert text.splitlines()[:5] == [
        "OBJ0=SEG(image=LEFT)",
        "OBJ1=TOP(object=OBJ0)",
        "OBJ2=FILTER(image=LEFT,object=OBJ1,query='blue')",
        "ANSWER0=COUNT(box=OBJ2)",
        'ANSWER1=EVAL(expr="{ANSWER0} >= 1")',
    ]
    assert text.splitlines()[-2:] == [
        'ANSWER6=EVAL(expr="(1 if {ANSWER1} else 0) + (1 if {ANSWER3} else 0) + (1 if {ANSWER5} else 0) == 2")',
        "FINAL_RESULT=RESULT(var=ANSWER6)",
    ]
    assert plan[2] == "Keep those of OBJ1 that are blue"
    assert check_program(parse_program(text), kind="multi_image", find_signature=find_signature) == ()


BLUE, YELLOW, ALL = Filter(words=(("blue",),)), Filter(words=(("yellow",),)), Filter()
TOWERS = [stack("blue", "yellow", "black"), stack("yellow"), stack("black", "blue")]


@pytest.mark.parametrize(
    ("what", "counts"),
    [
        (ALL, [3, 1, 2]),
        (Filter(places=(("top", True),)), [1, 1, 1]),
        (Filter(words=(("blue",),), places=(("top", True),)), [1, 0, 0]),
        (Filter(words=(("blue",),), places=(("base", False),)), [1, 0, 0]),
        (Filter(places=(("second", True),)), [1, 0, 1]),
        (Filter(places=(("third", True),)), [1, 0, 0]),
        (Filter(places=(("wall", True),)), [1, 1, 1]),
        (Filter(relation=("ABOVE", Filter(words=(("black",),)))), [2, 0, 0]),
        (Filter(relation=("ON", Filter(words=(("black",),)))), [1, 0, 0]),
        (Filter(words=(("blue", "yellow"),)), [2, 1, 1]),
        (Filter(without=("blue",)), [2, 1, 1]),
    ],
)
def test_filters_count_the_objects_that_fit(what: Filter, counts: list[int]) -> None:
    assert Executor(look(TOWERS), SPACE).count_objects(what).tolist() == [counts]


def same(*, group: str, holds: bool) -> Meaning:
    about = Atom("count", Filter(places=(("base", True),)) if group else ALL, group=group)
    return Meaning("alike", (about,), holds=holds)


@pytest.mark.parametrize(
    ("meaning", "truth"),
    [
        (Meaning("total", (Atom("count", BLUE, sign="==", number=2),)), True),
        (Meaning("total", (Atom("count", BLUE, sign=">", number=2),)), False),
        (Meaning("boxes", (Atom("kinds", ALL, sign="==", number=1, group="color"),), "==", 1), True),
        (Meaning("boxes", (Atom("exact", ALL, group="color", named=("black", "blue")),), "==", 1), True),
        (Meaning("boxes", (Atom("most", ALL, sign=">=", number=2, group="color"),)), False),
        (Meaning("boxes", (Atom("every", ALL, YELLOW),), "==", 1), True),
        (Meaning("boxes", (Atom("every", BLUE, Filter(places=(("top", True),))),), "==", 1), True),
        (Meaning("same_box", (Atom("count", BLUE),)), False),
        (Meaning("same_box", (Atom("count", Filter(words=(("circle",),))),)), False),
        (same(group="", holds=True), False),
        (same(group="", holds=False), True),
        (same(group="color", holds=True), False),
    ],
)
def test_meanings_hold_or_not(meaning: Meaning, truth: bool) -> None:
    [found] = Executor(look(TOWERS), SPACE).judge(meaning)
    assert bool(found) is truth


def test_several_tasks_in_one_table_are_judged_as_each_by_itself() -> None:
    draw = random.Random(5)
    scenes = [make(draw) for _ in range(3) for make in (draw_towers, scatter)]
    together, alone = Executor(look(*scenes), SPACE), [Executor(look(scene), SPACE) for scene in scenes]
    for candidate in list_candidates(read(INSTRUCTIONS[0]), space=SPACE)[::7]:
        assert together.judge(candidate.meaning).tolist() == [bool(one.judge(candidate.meaning)[0]) for one in alone]


def know(block: Block) -> SeenObject:
    color, shape, _, _, side = block
    return SeenObject({color, shape, SIZES[min(SIZES, key=lambda size: abs(size - side))]}, box_of(block))


def test_objects_with_known_words_give_the_table_that_the_tools_see() -> None:
    draw = random.Random(9)
    for make in (draw_towers, scatter):
        scene = make(draw)
        seen = look(scene)
        known = [[know(block) for block in blocks] for blocks in scene]
        table = scene_from_objects(known, space=SPACE, tools=TOOLS)
        for what in (ALL, BLUE, Filter(words=(("square",),), places=(("wall", True),)), Filter(relation=("ABOVE", YELLOW))):
            assert Executor(table, SPACE).count_objects(what).tolist() == Executor(seen, SPACE).count_objects(what).tolist()


def test_a_scene_that_a_tool_fails_on_is_no_empty_scene() -> None:
    class Broken(BlockTools):
        def run(self, tool: str, calls: list[ToolCall]) -> list[ToolResult]:
            return [ToolResult(value=None, error="out of order")] * len(calls) if tool == "FILTER" else super().run(tool, calls)

    with pytest.raises(ToolError, match="FILTER: out of order"):
        look_at_tasks([[draw_blocks(stack("blue"))] * 3], space=SPACE, tools=Broken())
