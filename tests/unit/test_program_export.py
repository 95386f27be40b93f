"""Accepted runs as examples: the planner's own prompt, nothing that gives the answer away, and a reason for each run that is left out."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import ScriptedChat
from tests.unit.test_demonstrations import make
from tests.unit.test_llm_planner import as_plan
from tests.unit.test_slot_filling import COUNT, RELATION, ask
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.export import CycleRuns, ExportParts, ExportRow, export_runs
from visloop.assistant.lexicon import build_lexicon
from visloop.assistant.llm_planner import read_plan
from visloop.assistant.planner import open_planner
from visloop.assistant.pools import Pools
from visloop.assistant.retrieval import MaskedEncoder, WordEncoder
from visloop.chat.base import ChatReply
from visloop.config_assistant import PlannerChoice, PlannerConfig, RetrievalChoice
from visloop.errors import DataError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Feedback, Proposal, Task, Trace
from visloop.records.programs import ProgramExample
from visloop.records.reasoning import SFTExample
from visloop.records.shards import read_shard, write_shard
from visloop.tools.signatures import SHIPPED

STARS, MOONS = ask("How many stars are there?"), ask("How many moons are there?")
PLAN = ("Locate every star.", "Count the boxes of Step1.", "Show it.")
PROGRAM = "BOX0=LOC(image=IMAGE,object='star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
POOL = DemonstrationPool((RELATION, COUNT, as_plan(RELATION), as_plan(COUNT)))


def make_parts(seed: int = 0, **changes: object) -> ExportParts:
    planner = PlannerConfig(**changes)  # type: ignore[arg-type]
    return ExportParts(planner=planner, prompts=PromptSet("full"), encoder=WordEncoder(), tools=SHIPPED, seed=seed)


def make_trace(name: str, task: Task = STARS, *, program: str = PROGRAM, plan: tuple[str, ...] = PLAN, **changes: object) -> Trace:
    proposal = Proposal(task_id=task.id, plan=plan, program=program, author="search")
    trace = Trace(id=name, task_id=task.id, proposal=proposal, steps=(), status="finished", result="2")
    return replace(trace, **changes)  # type: ignore[arg-type]


def judge(trace: Trace, accepted: bool = True) -> Feedback:
    return Feedback(id=f"f {trace.id}", task_id=trace.task_id, trace_id=trace.id, accepted=accepted, source="person")


def make_runs(
    *judged: tuple[Trace, bool | None], cycle: int = 1, pool: DemonstrationPool = POOL, tasks: tuple[Task, ...] = ()
) -> CycleRuns:
    return CycleRuns(
        cycle=cycle,
        pools=Pools(demonstrations=pool),
        tasks={task.id: task for task in (STARS, MOONS, *tasks)},
        traces=[trace for trace, _ in judged],
        feedback=[judge(trace, accepted) for trace, accepted in judged if accepted is not None],
    )


def export(*cycles: CycleRuns, **changes: object) -> tuple[list[ProgramExample], list[ExportRow]]:
    return export_runs(cycles, parts=make_parts(**changes))  # type: ignore[arg-type]


def test_an_example_is_what_the_llm_planner_would_ask_and_what_was_right() -> None:
    (plan, program), _ = export(make_runs((make_trace("t"), True)))
    steps = "\n".join(f"Step {number}: {step}" for number, step in enumerate(PLAN, start=1))
    chat = ScriptedChat(lambda request: steps if "/plan/" in request.id else PROGRAM)
    [proposal] = open_planner(PlannerConfig(choice=PlannerChoice.llm), chat=chat).propose([STARS], pool=POOL, seed=0)
    for example, request, answer in zip((plan, program), chat.requests, (steps, PROGRAM), strict=True):
        assert [(turn.role, turn.text) for turn in example.turns] == [("user", request.messages[0].text), ("assistant", answer)]
    assert read_plan(ChatReply(text=plan.turns[1].text, finish="stop")) == PLAN, "the planner reads what the example teaches"
    assert dict.fromkeys([*plan.shown, *program.shown]) == dict.fromkeys(proposal.demonstrations)


def test_demonstrations_that_are_drawn_are_those_that_the_planner_draws() -> None:
    pool = POOL.add([make(f"Is thing {number} here?") for number in range(20)])
    config = {"retrieval": RetrievalChoice.random, "use_plan": False}
    shown = []
    for seed in (3, 4):
        [program], _ = export(make_runs((make_trace("t"), True), pool=pool), seed=seed, **config)
        planner = open_planner(PlannerConfig(choice=PlannerChoice.llm, **config), chat=ScriptedChat(lambda request: PROGRAM))  # type: ignore[arg-type]
        assert planner.propose([STARS], pool=pool, seed=seed)[0].demonstrations == program.shown
        shown.append(program.shown)
    assert shown[0] != shown[1]


def test_an_example_names_where_it_comes_from() -> None:
    (plan, program), _ = export(make_runs((make_trace("t"), True), cycle=3))
    assert (plan.kind, program.kind, plan.id != program.id) == ("plan", "program", True)
    for example in (plan, program):
        assert (example.sample_id, example.path_id, example.cycle, example.author) == (STARS.id, "t", 3, "search")
        assert (example.task_kind, example.provenance, example.source, example.images) == ("vqa", "accepted", "person", ())
        assert example.pools == {"demonstrations": POOL.hash, "prompts": Pools().prompts.hash}
        assert example.prompts_hash == PromptSet("full").hash


def test_the_prompt_shows_nothing_about_the_very_same_instruction() -> None:
    told = replace(COUNT, id="told", instruction=STARS.instruction, program=PROGRAM)
    (_, program), _ = export(make_runs((make_trace("t"), True), pool=POOL.add([told])))
    assert "told" not in program.shown and program.turns[0].text.count(STARS.instruction) == 1


def test_without_plans_there_is_no_word_of_them() -> None:
    for found in (export(make_runs((make_trace("t"), True)), use_plan=False), export(make_runs((make_trace("t", plan=()), True)))):
        (program,), (row,) = found
        assert program.kind == "program" and "Plan:" not in program.turns[0].text
        assert row.examples == {"program": 1}


def test_each_run_that_is_left_out_has_its_reason() -> None:
    held_out = replace(ask("Is there a star?"), split="test")
    runs = make_runs(
        (make_trace("right"), True),
        (make_trace("again"), True),
        (make_trace("other plan", plan=("Look.", *PLAN)), True),
        (make_trace("wrong", MOONS), False),
        (make_trace("mended", MOONS), True),
        (make_trace("nobody"), None),
        (make_trace("broken", status="tool_error"), True),
        (make_trace("test", held_out), True),
        (make_trace("gone", program=PROGRAM.replace("COUNT", "PLUGIN")), True),
        tasks=(held_out,),
    )
    examples, (row, later) = export(runs, make_runs((make_trace("later"), True), cycle=2))
    assert [example.path_id for example in examples] == ["right", "right", "other plan", "mended", "mended"]
    assert {example.path_id: example.provenance for example in examples}["mended"] == "repaired"
    assert row == ExportRow(
        cycle=1,
        traces=9,
        exported=3,
        examples={"plan": 3, "program": 2},
        kinds={"vqa": 3},
        authors={"search": 3},
        provenances={"accepted": 2, "repaired": 1},
        left_out={"breaks a rule": 1, "held out": 1, "not finished": 1, "refused": 1, "repeated": 1, "unjudged": 1},
    )
    assert (later.exported, later.left_out) == (0, {"repeated": 1}), "of all cycles, not of each"
    assert row.exported + sum(row.left_out.values()) == row.traces


def test_a_run_of_no_known_task_is_refused() -> None:
    with pytest.raises(DataError, match=r"cycle 1: run t is of task .*stranger"):
        export(make_runs((make_trace("t", ask("stranger")), True)))


def test_whatever_reads_conversations_reads_them(tmp_path: Path) -> None:
    examples, _ = export(make_runs((make_trace("t"), True)))
    write_shard(tmp_path / "examples.jsonl", examples)
    assert read_shard(tmp_path / "examples.jsonl", ProgramExample) == examples
    read = read_shard(tmp_path / "examples.jsonl", SFTExample)
    assert [(item.id, item.kind, item.turns) for item in read] == [(item.id, item.kind, item.turns) for item in examples]


def test_demonstrations_are_looked_for_as_the_planner_looks() -> None:
    """Concept words are masked: the most similar one is about other things."""
    encoder = MaskedEncoder(WordEncoder(), build_lexicon(POOL))
    assert encoder.lexicon.mask(STARS.instruction) == encoder.lexicon.mask(COUNT.instruction)
    (_, program), _ = export(make_runs((make_trace("t"), True)), demonstrations={"vqa": 1})
    assert program.shown == (COUNT.id,)
