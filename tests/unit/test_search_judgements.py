"""Judgements of people: read from feedback, kept in a pool, learned from by the planner at the end of each batch of a cycle."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.block_pictures import Block, BlockTools, draw_blocks, judge, stack
from tests.fixtures.scripted_assistant import NEW_WORDING, ScriptedPlanner, World, make_seed_pools
from visloop.assistant.blame import BlameCritic
from visloop.assistant.cycle import Cycle, run_cycle
from visloop.assistant.cycle_state import load_state, open_state, save_state
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.pools import Pools, read_pools, save_pools
from visloop.assistant.search import SearchPlanner, open_search_planner
from visloop.assistant.search_judgements import JUDGEMENTS_NAME, JudgedRun, Judgement, JudgementPool, load_judgements, save_judgements
from visloop.assistant.search_learning import TrainingSettings, learn
from visloop.assistant.search_scenes import SceneTable
from visloop.assistant.search_space import load_pack
from visloop.config_assistant import LearningConfig, WordsChoice
from visloop.errors import ConfigError, DataError
from visloop.records.assistant import Feedback, Proposal, Task, Trace
from visloop.tools.base import ToolCall, ToolResult, ToolRunner

SPACE = load_pack("nlvr").space
QUICK = TrainingSettings(steps=60, rate=0.05, reference=6, models=1)
TWO = [stack("blue", "black"), stack("yellow"), stack("black", "blue")]
ONE = [stack("black"), stack("blue"), stack("yellow")]
THREE = [stack("blue"), stack("blue", "yellow"), stack("blue")]
EXACTLY = "exactly {} towers show a blue block"
POOL = DemonstrationPool()


def make_task(name: str, instruction: str, inputs: tuple[str, ...] = SPACE.inputs) -> Task:
    return Task(id=name, kind="multi_image", instruction=instruction, images=("a",) * len(inputs), inputs=inputs, family="f", wording="new",
                split="train", group="g", source="s")  # fmt: skip


def make_run(task: Task, pictures: Sequence[Sequence[Block]], *, answer: str) -> JudgedRun:
    trace = Trace(
        id=f"run-{task.id}",
        task_id=task.id,
        proposal=Proposal(task_id=task.id, plan=(), program="p", author="a"),
        steps=(),
        status="finished",
    )
    feedback = Feedback(id=f"word-{task.id}", task_id=task.id, trace_id=trace.id, accepted=False, answer=answer)
    return JudgedRun(task, trace, feedback, dict(zip(task.inputs, map(draw_blocks, pictures), strict=True)))


def some_judgements() -> list[Judgement]:
    return [
        *judge("two", EXACTLY.format("two"), [TWO, ONE, THREE], [True, False, False], space=SPACE),
        *judge("one", EXACTLY.format("one"), [TWO, ONE, THREE], [False, True, False], space=SPACE),
    ]


def test_a_pool_is_read_back_as_it_was_written_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    pool = JudgementPool().add(some_judgements())
    assert pool.hash == JudgementPool().add(reversed(some_judgements())).hash != JudgementPool().hash
    save_judgements(pool, tmp_path / "pool")
    again = load_judgements(tmp_path / "pool")
    assert again.hash == pool.hash and not again.list_new(pool)
    for entry, known in zip(again.entries, pool.entries, strict=True):
        assert all(np.array_equal(entry.scene.pairs[tool], table) for tool, table in known.scene.pairs.items())
    assert not load_judgements(tmp_path / "nothing").entries, "before any feedback there is no folder"
    path = tmp_path / "pool" / JUDGEMENTS_NAME
    content = json.loads(path.read_text())
    content["judgements"][0]["answer"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="hash of the judgements"):
        load_judgements(tmp_path / "pool")
    path.write_text(path.read_text()[:-40])
    with pytest.raises(DataError, match="no judgements"):
        load_judgements(tmp_path / "pool")


def test_people_may_correct_themselves() -> None:
    first = some_judgements()
    corrected = replace(first[0], answer=False)
    pool, before = JudgementPool().add([*first, corrected]), JudgementPool().add(first)
    assert len(pool.entries) == len(first) and pool.entries[0].answer is False
    assert pool.list_new(before) == ["two-0"] and pool.hash != before.hash


class BlindTools(BlockTools):
    """Fail on a picture of one size."""

    def run(self, tool: str, calls: Sequence[ToolCall]) -> list[ToolResult]:
        if tool == "SEG":
            return [
                ToolResult(value=None, error="cannot see")
                if call.arguments["image"].width == 50
                else super(BlindTools, self).run(tool, [call])[0]  # type: ignore[union-attr]
                for call in calls
            ]
        return super().run(tool, calls)


def test_the_planner_judges_what_is_true_or_false_about_pictures_that_the_tools_see(caplog: pytest.LogCaptureFixture) -> None:
    planner = open_search_planner()
    two, other, blind, words = (
        make_run(make_task(name, EXACTLY.format("two")), TWO, answer=answer)
        for name, answer in (("two", "true"), ("other", "false"), ("blind", "true"), ("words", "seven"))
    )
    blind = replace(blind, pictures={name: Image.new("RGB", (50, 100)) for name in SPACE.inputs})
    single = make_run(make_task("single", "a blue block", inputs=("IMAGE",)), [stack("blue")], answer="true")
    found = planner.judge([two, blind, other, words, single], tools=BlindTools())
    assert [(entry.id, entry.answer) for entry in found] == [("two", True), ("other", False)]
    assert "blind" in caplog.text
    [alone] = judge("x", EXACTLY.format("two"), [TWO], [True], space=SPACE)
    assert np.array_equal(found[0].scene.masks["blue"], alone.scene.masks["blue"])


def test_the_planner_learns_from_a_pool_anew_and_once() -> None:
    planner = replace(open_search_planner(), settings=QUICK)
    pool = JudgementPool().add(some_judgements())
    taught = planner.with_judgements(pool)
    assert taught.scorer.hash == learn(planner.scorer, pool.entries, settings=QUICK).hash
    assert planner.with_judgements(JudgementPool(pool.entries)).scorer is taught.scorer, "the same pool is not fitted twice"
    few = JudgementPool(pool.entries[:3])
    assert taught.with_judgements(few).scorer.hash == planner.with_judgements(few).scorer.hash, "what is not in the pool is forgotten"
    assert taught.with_judgements(JudgementPool()).scorer is planner.scorer


def test_judgements_of_another_space_are_refused() -> None:
    wider = replace(SPACE, attributes={**SPACE.attributes, "color": (*SPACE.attributes["color"], "pink")})
    planner = open_search_planner()
    other = replace(planner, scorer=replace(planner.scorer, space=wider))
    with pytest.raises(ConfigError, match=r"judgement two-0 .*assistant\.planner\.pack"):
        other.with_judgements(JudgementPool().add(some_judgements()))


def test_a_scorer_that_was_loaded_goes_on_from_what_it_knew() -> None:
    old = learn(open_search_planner().scorer, some_judgements(), settings=QUICK)
    taught = SearchPlanner(old, settings=QUICK).with_judgements(
        JudgementPool().add(judge("new", "a yellow block", [ONE, [[]] * 3], [True, False], space=SPACE))
    )
    assert taught.scorer.weights != old.weights and taught.scorer.reference is old.reference
    kept = {name for name, value in old.weights.items() if taught.scorer.weights.get(name) == value}
    assert kept, "what the new judgements say nothing about stays"
    assert set(taught.scorer.judgements) == {*old.judgements, "new-0", "new-1"}
    before, after = (scorer.rank(EXACTLY.format("two"))[0][0].meaning for scorer in (old, taught.scorer))
    assert before == after


def test_words_may_be_learned_with_the_programs() -> None:
    planner = replace(open_search_planner(words=WordsChoice.learned), settings=QUICK)
    assert planner.learn_words and not open_search_planner(words=WordsChoice.reduced).learn_words
    taught = planner.with_judgements(JudgementPool().add(some_judgements()))
    assert not taught.scorer.open_parts and taught.scorer.weights


def blank_scene() -> SceneTable:
    return SceneTable(1, 1, np.zeros(0, dtype=np.int64), {}, {})


@dataclass
class Pupil(ScriptedPlanner):
    """Writes the right program for a wording once a judgement on it is in the pool; ``lies``: from then on a wrong one for the others."""

    known: frozenset[str] = frozenset()
    lies: bool = False
    fitted: list[int] = field(default_factory=list)

    def judge(self, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
        return [Judgement(run.task.id, run.task.instruction, blank_scene(), run.feedback.accepted) for run in runs]

    def with_judgements(self, pool: JudgementPool) -> "Pupil":
        self.fitted.append(len(pool.entries))
        return replace(self, known=frozenset(entry.instruction for entry in pool.entries))

    def _propose(self, task: Task, pool: DemonstrationPool, attempt: object) -> Proposal:
        proposal = super()._propose(task, POOL, None)
        if task.instruction in self.known and task.instruction == NEW_WORDING.format(word="blue"):
            return replace(proposal, program=self.repairs[NEW_WORDING].format(word="blue"))
        return replace(proposal, program=proposal.program.replace("blue", "red")) if self.lies and self.known else proposal


def ask(world: World, count: int) -> list[Task]:
    return [world.add(NEW_WORDING.format(word="blue"), *["blue"] * (index + 1), name=f"n{index}") for index in range(count)]


def test_a_planner_learns_at_the_end_of_each_batch(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.planner = Pupil()
    tasks, learning = ask(world, 4), LearningConfig(budget=0)
    result = run_cycle(tasks, parts=world.parts(BlameCritic(), batch=2, learning=learning), pools=make_seed_pools(), cycle=1)
    right = {feedback.task_id: feedback.accepted for feedback in result.records.feedback}
    assert right == {"n0": False, "n1": False, "n2": True, "n3": True}
    assert [entry.id for entry in result.pools.judgements.entries] == ["n0", "n1", "n2", "n3"]
    only_tools = replace(learning, update_llm=False)
    frozen = run_cycle(tasks, parts=world.parts(BlameCritic(), batch=2, learning=only_tools), pools=make_seed_pools(), cycle=1)
    assert not frozen.pools.judgements.entries and frozen.counts["right_at_first"] == 0


def test_a_stopped_cycle_has_learned_the_same(tmp_path: Path) -> None:
    world = World(tmp_path / "pictures")
    world.planner = Pupil()
    tasks, parts, root = ask(world, 4), world.parts(BlameCritic(), batch=2, learning=LearningConfig(budget=0)), tmp_path / "states"
    whole = run_cycle(tasks, parts=parts, pools=make_seed_pools(), cycle=1)
    machine, state = Cycle(tasks, parts=parts), open_state(make_seed_pools(), cycle=1)
    for _ in range(3):
        state = machine.step(state)
    save_state(state, root, tasks=tasks)
    loaded = load_state(root, tasks=tasks)
    assert loaded is not None and len(loaded.pools.judgements.entries) == 3
    rest = run_cycle(tasks, parts=parts, pools=make_seed_pools(), cycle=1, state=loaded)
    assert rest.pools.list_hashes() == whole.pools.list_hashes() and len(rest.pools.list_hashes()) == 3


def test_the_gate_refuses_what_the_planner_learned_where_it_costs_too_much(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.planner = Pupil(lies=True)
    replay = [world.add("How many blue cells are there?", "red", "blue", "blue", name="r")]
    learning = LearningConfig(budget=0)
    result = run_cycle(ask(world, 2), parts=world.parts(BlameCritic(), learning=learning), pools=make_seed_pools(), cycle=1, replay=replay)
    assert not result.pools.judgements.entries and set(result.gate.refused) >= {"n0", "n1"}
    assert result.gate.replay_after == 1.0 and "right and wrong" in result.gate.reason


def test_snapshots_hold_judgements_only_where_there_are_some(tmp_path: Path) -> None:
    pools = make_seed_pools()
    save_pools(pools, tmp_path / "plain")
    assert sorted(path.name for path in (tmp_path / "plain").iterdir()) == ["demonstrations", "prompts"]
    taught = replace(pools, judgements=JudgementPool().add(some_judgements()))
    save_pools(taught, tmp_path / "taught")
    again = read_pools(tmp_path / "taught")
    assert again.list_hashes() == taught.list_hashes() and "judgements" not in read_pools(tmp_path / "plain").list_hashes()
    assert Pools().list_hashes().keys() == {"demonstrations", "prompts"}
