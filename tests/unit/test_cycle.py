"""The true loop: every branch, every switch, going on after a kill, and the gate."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.scripted_assistant import NEW_WORDING, WHAT_COLOR, World, make_seed_pools
from visloop.assistant.blame import BlameCritic
from visloop.assistant.cases import Case
from visloop.assistant.cycle import Cycle, CycleResult, run_cycle
from visloop.assistant.cycle_state import CycleState, load_state, open_state, save_state
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.pools import Pools
from visloop.assistant.token_meter import Tokens
from visloop.config_assistant import LearningConfig, ReflectionConfig
from visloop.errors import ConfigError, DataError, ReplyError
from visloop.ids import make_id
from visloop.records.assistant import Critique, Proposal, Task


class ScriptedCritic:
    """Blames what the script says for (task, grain); a missing entry blames nothing."""

    name = "scripted"

    def __init__(self, script: dict[tuple[str, str], tuple[str, int | None]]) -> None:
        self.script, self.asked = script, list[tuple[str, str, int]]()

    def criticize(self, cases: Sequence[Case], *, grain: str, tools: object, seed: int) -> list[Critique]:
        found = []
        for case in cases:
            task = case.trace.task_id
            self.asked.append((task, grain, len(cases)))
            culprit, step = self.script.get((task, grain), ("nothing", None))
            readable = culprit != "unreadable"
            statement = case.execution.program.statements[step - 1] if step and case.execution.program else None
            found.append(
                Critique(
                    id=make_id(case.trace.id, grain, len(case.earlier)),
                    trace_id=case.trace.id,
                    grain=grain,  # type: ignore[arg-type]
                    culprit=culprit if readable else "nothing",  # type: ignore[arg-type]
                    step=step,
                    tool=statement.tool if statement else None,
                    reason=f"the {culprit} is wrong",
                    status="ok" if readable else "unreadable",
                )
            )
        return found


class Paid:
    """A planner or a critic that an LLM is behind: each proposal costs as much as the pool is long, each critique 5 and 1 tokens.
    ``spent`` is the sum, by the fake's own count."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.name, self.spent = inner, inner.name, Tokens()

    def propose(self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Any = None, seed: int) -> list[Proposal]:
        length = len(pool.entries)
        made = self.inner.propose(tasks, pool=pool, attempts=attempts, seed=seed)
        self.spent += Tokens(prompt=(100 + length) * len(made), new=10 * len(made))
        return [replace(proposal, prompt_tokens=100 + length, new_tokens=10) for proposal in made]

    def criticize(self, cases: Sequence[Case], *, grain: Any, tools: Any, seed: int) -> list[Critique]:
        made = self.inner.criticize(cases, grain=grain, tools=tools, seed=seed)
        self.spent += Tokens(prompt=5 * len(made), new=len(made))
        return [replace(critique, prompt_tokens=5, new_tokens=1) for critique in made]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def states(result: CycleResult) -> list[tuple[str | None, str, bool]]:
    return [(outcome.kind, outcome.state, outcome.solved) for outcome in result.records.outcomes]


def run(world: World, tasks: Sequence[Task], critic: object | None = None, **options: object) -> CycleResult:
    gates = {key: options.pop(key) for key in ("replay", "held_out", "on_state", "state", "known") if key in options}
    pools = options.pop("pools", Pools())
    return run_cycle(tasks, parts=world.parts(critic or BlameCritic(), **options), pools=pools, cycle=1, **gates)  # type: ignore[arg-type]


def test_a_tool_is_taught_its_unknown_word_and_later_tasks_profit(world: World) -> None:
    first = world.add("How many teal cells are there?", "teal", "red", "teal")
    later = world.add("Is there a teal cell?", "blue", "teal", "red")
    result = run(world, [first, later])
    assert states(result) == [("prompt", "kept", True), (None, "no_update", True)]
    assert result.pools.prompts.list_concepts("EYE") == ("teal",)
    assert world.tools.tuned == ["teal"], "the second task needed no teaching"
    assert result.records.outcomes[1].reason == "right with what earlier tasks of the stream taught"
    assert result.counts | {"tasks": 2, "right_at_first": 0, "solved": 2} == result.counts
    assert {instance.split for instance in result.records.instances} == {"train", "validation"}
    rerun = next(trace for trace in result.records.traces if trace.id == result.records.outcomes[0].rerun_trace_id)
    assert rerun.steps[0].prompts == tuple(prompt.entry.id for prompt in result.pools.prompts.prompts)


def test_only_words_that_the_tool_is_bad_at_are_learned(world: World) -> None:
    task = world.add("Are there more red cells than teal cells?", "teal", "red", "teal", "red", "teal")
    critic = ScriptedCritic({("t00", "global"): ("tool", 1), ("t00", "local"): ("tool", 3)})
    result = run(world, [task], critic)
    assert [grain for _, grain, _ in critic.asked] == ["global", "local"], "LOC of red is not guilty: the loop goes on"
    assert states(result) == [("prompt", "no_update", False), ("prompt", "kept", True)]
    assert "known already" in result.records.outcomes[0].reason
    assert result.pools.prompts.list_concepts("EYE") == ("teal",)
    assert result.known == {("EYE", "red")}
    again = world.add("Are there more red cells than pink cells?", "pink", "red", "pink", "red", "pink")
    critic.script[(again.id, "global")] = ("tool", 1)
    run(world, [again], critic, known=result.known)
    assert world.tools.tuned == ["red", "teal"], "what is known is not tested again"


def test_a_wording_is_learned_as_success_and_failure(world: World) -> None:
    task = world.add(NEW_WORDING.format(word="red"), "red", "red", "blue")
    later = world.add(NEW_WORDING.format(word="blue"), "blue", "red", "blue", "blue")
    result = run(world, [task, later])
    assert states(result) == [("program_demonstration", "kept", True), (None, "no_update", True)]
    entries = result.pools.demonstrations.entries
    repaired = [entry for entry in entries if entry.provenance == "repaired"]
    failed = [entry for entry in entries if entry.outcome == "failure"]
    assert {entry.kind for entry in repaired} == {"plan", "program"}
    assert "COUNT" in repaired[1].program and "EVAL" not in repaired[1].program
    assert [entry.kind for entry in failed] == ["program"] and "EVAL" in failed[0].program and failed[0].reason
    assert not [entry for entry in run(world, [task], use_failures=False).pools.demonstrations.entries if entry.outcome == "failure"]


def test_a_right_run_leaves_its_demonstration_once_and_a_vote(world: World) -> None:
    tasks = [world.add("How many red cells are there?", *["red"] * count) for count in (1, 2, 3)]
    pools = make_seed_pools("How many blue cells are there?")
    result = run(world, tasks, pools=pools)
    programs = result.pools.demonstrations.find("program", "success", "vqa")
    assert [entry.provenance for entry in programs] == ["seed", "accepted"], "one demonstration per instruction"
    assert programs[0].score == 3 and not result.records.outcomes
    assert pools.demonstrations.entries[0].score == 0, "the given pool is as it was"


def test_votes_evict_a_demonstration_that_misleads_but_not_one_whose_tool_was_wrong(world: World) -> None:
    misleading = world.add("Is there a blue cell?", "red", "red")
    pools = make_seed_pools("Is there a red cell?")
    program = "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
    entry = replace(pools.demonstrations.entries[0], program=program, score=-2)
    pools = Pools(demonstrations=type(pools.demonstrations)((entry,)))
    blamed = run(world, [misleading], ScriptedCritic({("t00", "global"): ("program", None)}), pools=pools)
    assert entry.id not in {other.id for other in blamed.pools.demonstrations.entries}
    innocent = run(world, [misleading], ScriptedCritic({("t00", "global"): ("tool", 1), ("t00", "local"): ("tool", 1)}), pools=pools)
    assert [(other.id, other.score) for other in innocent.pools.demonstrations.entries] == [(entry.id, -2)]


@pytest.mark.parametrize("keep_seeds", [False, True])
def test_a_shipped_demonstration_stays_whatever_its_score_where_seeds_are_kept(world: World, keep_seeds: bool) -> None:
    task = world.add("Is there a blue cell?", "red", "red")
    program = "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
    shipped = replace(make_seed_pools("Is there a red cell?").demonstrations.entries[0], program=program, score=-2)
    learned = replace(shipped, id="learned", instruction="Is there a teal cell?", provenance="accepted")
    critic = ScriptedCritic({("t00", "global"): ("program", None)})
    for entry in (shipped, learned):
        pools = Pools(demonstrations=DemonstrationPool((entry,)))
        result = run(world, [task], critic, pools=pools, learning=LearningConfig(keep_seeds=keep_seeds))
        left = [other.score for other in result.pools.demonstrations.entries if other.id == entry.id]
        assert left == ([-3] if keep_seeds and entry is shipped else []), entry.provenance


def test_global_is_wrong_local_finds_it(world: World) -> None:
    task = world.add("How many teal cells are there?", "teal", "red")
    critic = ScriptedCritic({("t00", "global"): ("program", None), ("t00", "local"): ("tool", 1)})
    result = run(world, [task], critic)
    assert states(result) == [("program_demonstration", "refused", False), ("prompt", "kept", True)]
    assert "no other program" in result.records.outcomes[0].reason
    assert [critique.grain for critique in result.records.critiques] == ["global", "local"]


def test_an_update_is_rolled_back_when_the_task_stays_wrong(world: World) -> None:
    task = world.add("Are there more teal cells than pink cells?", "teal", "pink", "teal")
    world.provider.noisy = frozenset({"teal"})
    critic = ScriptedCritic({("t00", "global"): ("tool", 3), ("t00", "local"): ("tool", 1)})
    result = run(world, [task], critic)
    assert states(result) == [("prompt", "rolled_back", False), ("prompt", "refused", False)]
    assert not result.pools.prompts.prompts and result.records.outcomes[0].prompts == ()
    assert "undone" in result.records.outcomes[0].reason


def test_budget_bounds_the_updates_and_zero_only_runs(world: World) -> None:
    task = world.add("How many teal cells are there?", "teal", "red")
    critic = ScriptedCritic({("t00", "global"): ("program", None), ("t00", "local"): ("tool", 1)})
    result = run(world, [task], critic, learning=LearningConfig(budget=1))
    assert len(result.records.critiques) == 1 and result.counts["solved"] == 0
    critic.asked.clear()
    nothing = run(world, [task], critic, learning=LearningConfig(budget=0))
    assert not critic.asked and not nothing.records.outcomes and len(nothing.records.traces) == 1


def test_an_interrupted_run_gets_the_interrupt_critique_first(world: World) -> None:
    world.planner.repairs = {NEW_WORDING: "BOX0=LOC(image=IMAGE,object='{word}')\nFINAL_RESULT=RESULT(var=BOX9)"}
    task = world.add(NEW_WORDING.format(word="red"), "red", "red")
    critic = ScriptedCritic({("t00", "global"): ("program", None)})
    result = run(world, [task], critic)
    assert [grain for _, grain, _ in critic.asked] == ["global", "local"], "a failed repair is no better place to look from"
    assert "BOX9" in result.records.outcomes[0].reason
    broken = world.add("How many blue cells are there?", "blue", name="b")
    pools = make_seed_pools("How many red cells are there?")
    entry = replace(pools.demonstrations.entries[0], program="BOX0=LOC(image=PICTURE,object='red')\nFINAL_RESULT=RESULT(var=BOX0)")
    critic = ScriptedCritic({("b", "interrupt"): ("program", 1)})
    world.planner.repairs = {
        "How many {word} cells are there?": "BOX0=LOC(image=IMAGE,object='{word}')\nA=COUNT(box=BOX0)\nR=RESULT(var=A)"
    }
    result = run(world, [broken], critic, pools=Pools(demonstrations=type(pools.demonstrations)((entry,))))
    assert critic.asked == [("b", "interrupt", 1)]
    assert states(result) == [("program_demonstration", "kept", True)]


@pytest.mark.parametrize(
    ("reflection", "grains"),
    [
        (ReflectionConfig(), ["global", "local"]),
        (ReflectionConfig(use_global=False), ["local", "local"]),
        (ReflectionConfig(use_local=False), ["global"]),
        (ReflectionConfig(use_global=False, use_local=False), []),
    ],
    ids=["both", "no_global", "no_local", "neither"],
)
def test_reflection_switches(world: World, reflection: ReflectionConfig, grains: list[str]) -> None:
    task = world.add("How many teal cells are there?", "teal")
    critic = ScriptedCritic({("t00", "global"): ("nothing", None), ("t00", "local"): ("nothing", None)})
    result = run(world, [task], critic, reflection=reflection)
    assert [grain for _, grain, _ in critic.asked] == grains
    assert [outcome.state for outcome in result.records.outcomes] == ["no_update"] * len(grains)


def test_update_switches_leave_their_pool_untouched(world: World) -> None:
    word, wording = world.add("How many teal cells are there?", "teal"), world.add(NEW_WORDING.format(word="red"), "red", "red")
    pools = make_seed_pools()
    tools_only = run(world, [word, wording], learning=LearningConfig(update_llm=False), pools=pools)
    assert tools_only.pools.demonstrations.hash == pools.demonstrations.hash and tools_only.pools.prompts.prompts
    planner_only = run(world, [word, wording], learning=LearningConfig(update_tools=False), pools=pools)
    assert not planner_only.pools.prompts.prompts and len(planner_only.pools.demonstrations.entries) > 1
    nothing = run(world, [word, wording], learning=LearningConfig(update_llm=False, update_tools=False), pools=pools)
    assert nothing.pools.says_the_same(pools) and nothing.counts["solved"] == 0


def test_without_validation_everything_is_kept_also_what_hurts(world: World) -> None:
    task = world.add(NEW_WORDING.format(word="red"), "red", "red")
    world.planner.repairs = {NEW_WORDING: WHAT_COLOR}
    critic = ScriptedCritic({("t00", "global"): ("program", None), ("t00", "local"): ("nothing", None)})
    strict = run(world, [task], critic)
    assert states(strict)[0] == ("program_demonstration", "refused", False) and not strict.pools.demonstrations.entries
    assert strict.records.outcomes[0].reason == "the other program is wrong as well: red"
    loose = run(world, [task], critic, learning=LearningConfig(validate=False))
    assert states(loose)[0] == ("program_demonstration", "kept", False)
    assert any("VQA" in entry.program and entry.outcome == "success" for entry in loose.pools.demonstrations.entries)


def test_a_demonstration_that_does_not_teach_the_planner_is_refused(world: World) -> None:
    world.planner.use_demonstrations = False
    task = world.add(NEW_WORDING.format(word="red"), "red", "red")
    result = run(world, [task])
    assert states(result) == [("program_demonstration", "refused", True)]
    assert "still wrong" in result.records.outcomes[0].reason
    assert not [entry for entry in result.pools.demonstrations.entries if entry.provenance == "repaired"]


def test_an_unreadable_critique_blames_nothing_and_too_many_stop_the_cycle(world: World) -> None:
    task = world.add("How many teal cells are there?", "teal")
    critic = ScriptedCritic({("t00", "global"): ("unreadable", None), ("t00", "local"): ("tool", 1)})
    result = run(world, [task], critic, reflection=ReflectionConfig(max_unreadable_rate=0.5))
    assert states(result) == [(None, "no_update", False), ("prompt", "kept", True)]
    assert result.counts["critiques/unreadable"] == 1
    with pytest.raises(ReplyError, match="1 of 2 critiques"):
        run(world, [task], critic, reflection=ReflectionConfig(max_unreadable_rate=0.4))


def test_first_runs_and_first_critiques_are_batches(world: World) -> None:
    tasks = [world.add("How many teal cells are there?", "teal", *["red"] * index) for index in range(4)]
    critic = ScriptedCritic({(task.id, "global"): ("nothing", None) for task in tasks})
    run(world, tasks, critic, reflection=ReflectionConfig(use_local=False))
    assert world.planner.asked == [(4, False)]
    assert ("LOC", 4) in world.tools.batches
    assert [size for _, _, size in critic.asked] == [4] * 4


def test_a_batch_begins_with_what_the_one_before_taught(world: World) -> None:
    tasks = [world.add("How many teal cells are there?", *["teal"] * count) for count in (1, 2, 3)]
    at_first = {batch: run(world, tasks, batch=batch).counts["right_at_first"] for batch in (1, 2, None)}
    assert at_first == {1: 2, 2: 1, None: 0}


def stream(world: World) -> list[Task]:
    return [
        world.add("How many red cells are there?", "red", "blue"),
        world.add("How many teal cells are there?", "teal", "teal"),
        world.add(NEW_WORDING.format(word="blue"), "blue", "blue"),
        world.add("Is there a teal cell?", "red", "teal"),
        world.add("Is there a pink cell?", "pink", "red"),
        world.add(NEW_WORDING.format(word="pink"), "pink", "pink"),
    ]


@pytest.mark.parametrize("batch", [None, 1, 4])
@pytest.mark.parametrize("stop", [1, 3, 4, 6])
def test_a_stopped_cycle_goes_on_to_the_same_result(tmp_path: Path, stop: int, batch: int | None) -> None:
    world = World(tmp_path / "pictures")
    tasks, pools, root = stream(world), make_seed_pools(), tmp_path / "states"
    planner, critic = Paid(world.planner), Paid(BlameCritic())
    whole = run(world, tasks, critic, pools=pools, batch=batch, replay=tasks[:1], planner=planner)
    machine = Cycle(tasks, parts=world.parts(critic, batch=batch, planner=planner))
    state = open_state(pools, cycle=1)
    for _ in range(stop):
        state = machine.step(state)
        save_state(state, root, tasks=tasks)
    assert len(list(root.iterdir())) == 1, "earlier states are removed"
    (root / "000099").mkdir()  # a state that was not finished when the run was killed
    loaded = load_state(root, tasks=tasks)
    assert loaded is not None and loaded.position == stop
    rest = run(world, tasks, critic, pools=pools, batch=batch, state=loaded, replay=tasks[:1], planner=planner)
    assert rest.pools.demonstrations.hash == whole.pools.demonstrations.hash
    assert rest.pools.prompts.hash == whole.pools.prompts.hash
    assert [outcome.id for outcome in rest.records.outcomes] == [outcome.id for outcome in whole.records.outcomes]
    assert [trace.id for trace in rest.records.traces] == [trace.id for trace in whole.records.traces]
    assert (rest.gate, rest.counts, rest.known) == (whole.gate, whole.counts, whole.known)
    assert rest.counts["tokens/new"] > 0, "also what was spent before the stop"


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_a_cycle_counts_every_token_of_planner_and_critic_also_those_that_leave_no_record(world: World, batch: int | None) -> None:
    tasks, planner, critic = stream(world), Paid(world.planner), Paid(BlameCritic())
    result = run(world, tasks, critic, planner=planner, batch=batch, pools=make_seed_pools(), replay=tasks[:1])
    spent = planner.spent + critic.spent
    assert (result.counts["tokens/prompt"], result.counts["tokens/new"]) == (spent.prompt, spent.new)
    recorded = sum(trace.proposal.new_tokens for trace in result.records.traces) + sum(item.new_tokens for item in result.records.critiques)
    assert 0 < recorded < spent.new, "the gate's runs are in no record"
    assert not [name for name in run(world, tasks, batch=batch).counts if name.startswith("tokens/")], (
        "without an LLM there is nothing to say"
    )


def test_a_prompt_that_has_become_longer_is_no_reason_to_run_the_same_program_again(world: World) -> None:
    tasks = [world.add(NEW_WORDING.format(word="red"), "red", "red"), world.add("Is there a teal cell?", "blue", "blue")]
    world.truths[tasks[1].id] = "yes"  # a person who gives wrong feedback: the second task stays wrong whatever is learned
    options = {"learning": LearningConfig(update_tools=False), "reflection": ReflectionConfig(use_local=False)}
    batches = []
    for more in ({}, {"planner": Paid(world.planner)}):
        before = len(world.tools.batches)
        result = run(world, tasks, **options, **more)  # type: ignore[arg-type]
        assert result.pools.demonstrations.entries, "the second task is planned again with what the first one taught"
        batches.append(world.tools.batches[before:])
    assert batches[0] == batches[1]


def test_states_are_pure_and_belong_to_their_stream(world: World, tmp_path: Path) -> None:
    tasks = stream(world)
    machine = Cycle(tasks, parts=world.parts(BlameCritic()))
    seen: list[CycleState] = []
    run(world, tasks, on_state=seen.append)
    assert [state.position for state in seen] == [1, 2, 3, 4, 5, 6]
    again = machine.step(seen[1])
    assert again.pools.demonstrations.hash == seen[2].pools.demonstrations.hash and seen[1].position == 2
    save_state(seen[0], tmp_path / "states", tasks=tasks)
    with pytest.raises(DataError, match="another stream"):
        load_state(tmp_path / "states", tasks=tasks[:3])
    assert load_state(tmp_path / "nothing", tasks=tasks) is None
    with pytest.raises(ConfigError, match="twice"):
        Cycle([tasks[0], tasks[0]], parts=world.parts(BlameCritic()))
    with pytest.raises(ConfigError, match="1 of 6 tasks are done"):
        machine.close(seen[0], start=Pools())


@pytest.mark.parametrize("newest", ["evil", "teal"])
def test_the_gate_refuses_the_prompts_that_make_it_forget_and_keeps_the_others(world: World, newest: str) -> None:
    world.provider.lies = {"rosso": "red"}
    teal = world.add("How many teal cells are there?", "teal", "teal")
    world.rows["evil"], world.truths["evil"] = ("red", "red"), "2"
    evil = replace(teal, id="evil", instruction="How many rosso cells are there?", group="evil")
    replay = [world.add("How many red cells are there?", "red", *["blue"] * index, name=f"r{index}") for index in range(3)]
    held_out = [world.add("Is there a teal cell?", "teal", "red", name="h")]
    tasks = [teal, evil] if newest == "evil" else [evil, teal]
    result = run(world, tasks, replay=replay, held_out=held_out)
    assert states(result) == [("prompt", "kept", True), ("prompt", "kept", True)]
    assert result.pools.prompts.list_concepts("EYE") == ("teal",)
    gate = result.gate
    assert (gate.replay_before, gate.replay_after, gate.held_out_before, gate.held_out_after) == (1.0, 1.0, 0.0, 1.0)
    assert len(gate.refused) == 1 and "rosso" in gate.reason and gate.gained == ("h",) and not gate.forgotten
    loose = run(world, tasks, replay=replay, learning=LearningConfig(validate=False))
    assert loose.gate.replay_after == 0.0 and not loose.gate.refused and len(loose.gate.forgotten) == 3
    tolerant = run(world, tasks, replay=replay, learning=LearningConfig(max_replay_drop=1.0))
    assert len(tolerant.pools.prompts.prompts) == 2


def test_the_gate_refuses_demonstrations_that_mislead(world: World) -> None:
    wrong = "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
    task = world.add("How many red cells are there?", "red", "blue")
    world.truths[task.id] = "blue"  # a person who gives wrong feedback
    replay = [world.add("How many blue cells are there?", "red", "blue", name="r")]
    world.planner.repairs = {"How many {word} cells are there?": wrong}
    critic = ScriptedCritic({("t00", "global"): ("program", None)})
    result = run(world, [task], critic, replay=replay)
    assert states(result) == [("program_demonstration", "kept", True)]
    assert not result.pools.demonstrations.entries and result.gate.replay_after == 1.0 and result.gate.refused


def test_held_out_tasks_are_not_in_the_stream(world: World) -> None:
    task = world.add("How many red cells are there?", "red")
    with pytest.raises(ConfigError, match="held-out task t00"):
        run(world, [task], held_out=[task])
