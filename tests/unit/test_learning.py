"""Teaching a blamed tool: which words, from which data, what is kept, and why something is not."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.scripted_assistant import IS_THERE, ColorProvider, World, make_seed_pools
from tests.fixtures.scripted_chat import ScriptedChat
from visloop.assistant.cases import Case
from visloop.assistant.critics import open_critic, open_inference
from visloop.assistant.learning import ToolUpdate, update_tool
from visloop.assistant.lessons import count_votes, make_failure, make_successes
from visloop.assistant.material import adapt_tools, adapt_tuning, plan_tools, plan_tuning
from visloop.assistant.runs import CycleParts, make_case, run_proposals
from visloop.assistant.safety import Safety
from visloop.config_assistant import CriticChoice, LearningConfig, PromptTuning, ReflectionConfig, RegionBackend, ToolsConfig
from visloop.config_providers import SafetyConfig
from visloop.errors import ConfigError, DataError, TrainingError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Critique, Instance, Proposal
from visloop.tools.prompt_pool import PromptPool

LOC_TEAL = "BOX0=LOC(image=IMAGE,object='teal')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
ASK_COLOR = "ANSWER0=VQA(image=IMAGE,question='What color is it?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
ASK_TEAL = "ANSWER0=VQA(image=IMAGE,question='Is the cell teal?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
SELECT_TEAL = (
    "OBJ0=SEG(image=IMAGE)\nOBJ1=SELECT(image=IMAGE,object=OBJ0,query='teal')\n"
    "IMAGE0=COLORPOP(image=IMAGE,object=OBJ1)\nFINAL_RESULT=RESULT(var=IMAGE0)"
)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def fail(
    world: World, program: str, *cells: str, instruction: str = "How many teal cells are there?", kind: str = "vqa"
) -> tuple[Case, CycleParts]:
    task = replace(world.add(instruction, *cells), kind=kind)
    parts = world.parts(None)
    proposal = Proposal(task_id=task.id, plan=("Look.",), program=program, author="test")
    [run] = run_proposals([task], [proposal], pools=make_seed_pools(), parts=parts, cycle=0)
    return make_case(run, parts=parts), parts


def teach(
    world: World, case: Case, parts: CycleParts, step: int | None, *, providers: Sequence[object] | None = None, **options: object
) -> ToolUpdate:
    statement = case.execution.program.statements[step - 1] if case.execution.program and step else None
    critique = Critique(
        id="c", trace_id=case.trace.id, grain="global", culprit="tool", step=step, tool=statement.tool if statement else None, reason="r"
    )
    sources = parts.sources
    if providers is not None:
        sources = replace(sources, providers=dict.fromkeys(("LOC", "VQA", "SELECT"), providers))
    values = {"tools": world.tools, "pool": PromptPool(), "sources": sources, "plan": parts.plan, "seed": 1, "cycle": 3}
    return update_tool(case, critique, **(values | options))  # type: ignore[arg-type]


def test_prompts_instances_and_figures_of_an_unknown_word(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    update = teach(world, case, parts, 1)
    assert (update.state, update.concepts, update.answer) == ("kept", ("teal",), None)
    assert [prompt.entry.id for prompt in update.pool.prompts] == list(update.kept)
    assert update.pool.prompts[0].entry.cycle == 3
    assert (update.metrics["teal/validation_before"], update.metrics["teal/validation_after"]) == (0.0, 1.0)
    positives = [instance for instance in update.instances if instance.positive]
    assert len(positives) == parts.plan.positives and {instance.concept for instance in update.instances} == {"teal"}
    pictures = {split: {entry.image for entry in update.instances if entry.split == split} for split in ("train", "validation")}
    assert pictures["train"] and pictures["validation"] and not pictures["train"] & pictures["validation"]
    assert teach(world, case, parts, 1).kept == update.kept, "the same again"


def test_noise_is_refused_and_remembered(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    world.provider.noisy = frozenset({"teal"})
    update = teach(world, case, parts, 1)
    assert (update.state, update.kept, update.hopeless) == ("refused", (), {("EYE", "teal")})
    assert not update.pool.prompts
    again = teach(world, case, parts, 1, passed_over=update.hopeless)
    assert again.state == "no_update" and "earlier in the cycle" in again.reason and world.tools.tuned == ["teal"]


def test_a_word_that_has_prompts_is_not_learned_again(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    pool = teach(world, case, parts, 1).pool
    again = teach(world, case, parts, 1, pool=pool, tools=world.tools.with_pool(pool))
    assert (again.state, again.pool.hash) == ("no_update", pool.hash) and "has prompts already" in again.reason


def test_the_inferred_answer_of_a_question_is_what_is_learned(world: World) -> None:
    case, parts = fail(world, ASK_COLOR, "red", "teal", "blue", instruction="What color is the cell?")
    update = teach(world, case, parts, 1)
    assert (update.state, update.answer, update.concepts) == ("kept", "teal", ("teal",))
    [shown] = [instance for instance in update.instances if instance.source == "inference"]
    assert (shown.question, shown.target, shown.label, shown.positive) == ("What color is it?", "teal", "teal", True)
    assert (world.folder / shown.image).is_file() and shown.licence == "CC0-1.0" and case.trace.id in shown.origin
    alone = teach(world, case, parts, 1, providers=[])
    assert [instance.source for instance in alone.instances] == ["inference"], "CLOVA: one picture, checked by the re-run"


def test_a_question_about_a_word_teaches_the_word(world: World) -> None:
    case, parts = fail(world, ASK_TEAL, "teal", instruction="Is there a teal cell?")
    update = teach(world, case, parts, 1)
    assert (update.answer, update.concepts) == ("yes", ("teal",)), "yes has no looks"
    assert all(instance.source == "open_vocabulary" for instance in update.instances)


def test_a_question_without_an_inferred_answer_still_teaches_its_words(world: World) -> None:
    case, parts = fail(world, IS_THERE.format(word="red"), "red", "red")
    asked, _ = fail(world, ASK_TEAL, "teal", "teal", "red")
    hopeless = replace(asked, feedback=replace(case.feedback, answer="2"))
    update = teach(world, hopeless, parts, 1)
    assert update.answer is None and "no other answer makes the result right" in update.reason and update.concepts == ("teal",)
    color, _ = fail(world, ASK_COLOR, "teal", "teal", "red")
    nothing = teach(world, replace(color, feedback=replace(case.feedback, answer=None)), parts, 1)
    assert nothing.state == "no_update" and "names no word" in nothing.reason


def test_a_segmenter_that_cannot_learn_passes_the_word_to_the_step_that_asks(world: World) -> None:
    case, parts = fail(world, SELECT_TEAL, "teal", "red", kind="editing")
    assert case.trace.status == "finished", case.trace.error
    update = teach(world, case, parts, 1)
    assert (update.state, update.concepts) == ("kept", ("teal",))
    assert {instance.tool for instance in update.instances} == {"SELECT"}


@pytest.mark.parametrize(("step", "reason"), [(2, "COUNT learns nothing"), (3, "RESULT learns nothing"), (None, "was not run")])
def test_what_cannot_learn_is_said(world: World, step: int | None, reason: str) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    update = teach(world, case, parts, step)
    assert update.state == "no_update" and reason in update.reason


class Broken:
    source = "image_search"

    def collect(self, concept: str, **_: object) -> list[Instance]:
        raise DataError("the search is down")


class Leaky(ColorProvider):
    """Gives every picture twice, once for each split."""

    def collect(self, concept: str, **options: object) -> list[Instance]:  # type: ignore[override]
        found = super().collect(concept, **options)  # type: ignore[arg-type]
        other = {"train": "validation", "validation": "train"}
        return [*found, *(replace(entry, id=f"{entry.id}b", split=other[entry.split]) for entry in found)]  # type: ignore[arg-type]


def test_data_that_cannot_be_had(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    down = teach(world, case, parts, 1, providers=[Broken()])
    assert (down.state, down.reason) == ("no_data", "'teal': the search is down")
    assert teach(world, case, parts, 1, providers=[]).reason == "'teal': no instances found"
    assert teach(world, case, parts, 1, providers=[Broken(), world.provider]).state == "kept", "the next provider is asked"
    assert not world.tools.with_pool(PromptPool()).pool.prompts
    one = replace(parts.plan, positives=1)
    assert "none left to validate with" in teach(world, case, parts, 1, plan=one).reason
    assert teach(world, case, parts, 1, plan=replace(one, validate=False)).state in ("kept", "refused")


def test_a_forbidden_word_is_not_learned(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    asked: list[str] = []

    class Asked:
        source = "image_search"

        def collect(self, concept: str, **_: object) -> list[Instance]:
            asked.append(concept)
            return []

    def forbid(word: str) -> CycleParts:
        return replace(parts, sources=replace(parts.sources, safety=Safety(SafetyConfig(words=[word]))))

    update = teach(world, case, forbid("TEAL"), 1, providers=[Asked()])
    assert (update.state, update.reason) == ("refused", "'teal' holds 'TEAL', which assistant.safety.words forbids")
    assert not asked and not update.instances and not update.pool.prompts
    assert teach(world, case, forbid("tea"), 1).state == "kept", "whole words only"


def test_a_provider_that_leaks_is_split_again(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    update = teach(world, case, parts, 1, providers=[Leaky(world.folder)])
    splits: dict[str, set[str]] = {}
    for instance in update.instances:
        splits.setdefault(instance.image, set()).add(instance.split)
    assert update.state == "kept" and all(len(found) == 1 for found in splits.values())


def test_a_training_that_fails_is_a_refusal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fall(*_: object, **__: object) -> None:
        raise TrainingError("the loss is nan")

    monkeypatch.setattr("tests.fixtures.scripted_assistant.EyeTool.tune", fall)
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    update = teach(world, case, parts, 1)
    assert (update.state, update.reason) == ("refused", "'teal': the loss is nan")


def test_ablations_change_the_settings_of_every_tool() -> None:
    tools = ToolsConfig(tuning=PromptTuning(steps=5), tunings={"LOC": PromptTuning(steps=6), "CLIP": PromptTuning(steps=7)})
    assert adapt_tools(tools, learning=LearningConfig()) == tools
    loose = adapt_tools(tools, learning=LearningConfig(validate=False, ensemble=False))
    found = {name: (tuning.steps, tuning.min_validation, tuning.max_base_drop, tuning.ensemble) for name, tuning in loose.tunings.items()}
    assert found == {"LOC": (6, 0.0, 1.0, 1), "CLIP": (7, 0.0, 1.0, 1)}
    assert (loose.tuning.steps, loose.tuning.min_validation, loose.tuning.ensemble) == (5, 0.0, 1)


def test_every_tool_has_the_plan_of_its_own_settings() -> None:
    assert plan_tools(ToolsConfig(), validate=True) == plan_tuning(PromptTuning(), validate=True), "one for all where none has any"
    tools = ToolsConfig(
        loc=RegionBackend.owlvit,
        tunings={"LOC": PromptTuning(instances=200), "SELECT": PromptTuning(instances=5, validation=1, negatives=15, known_at=0.9)},
    )
    plan = plan_tools(tools, validate=False)
    select = plan.find_plan("SELECT")
    assert (select.positives, select.negatives, select.known_at, select.validate) == (6, 15, 0.9, False)
    found = {name: plan.find_plan(name).positives for name in ("LOC", "SEG", "SELECT", "FILTER", "CLASSIFY", "VQA", "REPLACE", "MIRROR")}
    assert found == {"LOC": 212, "SEG": 32, "SELECT": 6, "FILTER": 6, "CLASSIFY": 32, "VQA": 32, "REPLACE": 32, "MIRROR": 32}


def test_as_much_is_collected_as_the_taught_tool_wants(world: World) -> None:
    case, parts = fail(world, LOC_TEAL, "teal", "red")
    few = replace(parts.plan, positives=5, negatives=3)
    update = teach(world, case, parts, 1, plan=replace(parts.plan, own={"LOC": few, "SELECT": replace(few, positives=9)}))
    assert [sum(instance.positive is positive for instance in update.instances) for positive in (True, False)] == [5, 3]
    known = teach(world, case, parts, 1, plan=replace(parts.plan, own={"LOC": replace(few, known_at=0.0)}))
    assert "known already" in known.reason


def test_ablations_change_what_the_toolbox_is_opened_with() -> None:
    tuning = PromptTuning()
    assert adapt_tuning(tuning, validate=True, ensemble=True) == tuning
    loose = adapt_tuning(tuning, validate=False, ensemble=False)
    assert (loose.min_validation, loose.max_base_drop, loose.ensemble) == (0.0, 1.0, 1)
    plan = plan_tuning(tuning, validate=False)
    assert (plan.positives, plan.known_at, plan.validate) == (32, 0.7, False)
    assert plan.validation_share == pytest.approx(12 / 32)


def test_parts_that_contradict_each_other_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="validate"):
        world.parts(None, plan=plan_tuning(PromptTuning(), validate=False))
    with pytest.raises(ConfigError, match="budget"):
        world.parts(None, learning=LearningConfig(budget=-1))


def test_lessons_of_a_run(world: World) -> None:
    case, _ = fail(world, LOC_TEAL, "teal", "red")
    task, trace = case.execution.job.task, case.trace
    plan, program = make_successes(task, trace, provenance="accepted", cycle=2)
    assert (plan.kind, plan.program, program.kind, program.program) == ("plan", "", "program", LOC_TEAL)
    assert (program.trace_id, program.cycle, program.score) == (trace.id, 2, 0)
    bare = replace(trace, proposal=replace(trace.proposal, plan=()))
    assert [entry.kind for entry in make_successes(task, bare, provenance="accepted", cycle=2)] == ["program"], (
        "VISPROG's mode has no plans"
    )
    critique = Critique(id="c", trace_id=trace.id, grain="global", culprit="plan", reason="it should count")
    assert [entry.kind for entry in make_failure(task, trace, critique, cycle=2)] == ["plan"]
    assert [entry.kind for entry in make_failure(task, bare, critique, cycle=2)] == ["program"]
    assert make_failure(task, trace, replace(critique, reason=" "), cycle=2) == ()


def test_votes(world: World) -> None:
    case, _ = fail(world, LOC_TEAL, "teal", "red")
    trace = replace(case.trace, proposal=replace(case.trace.proposal, demonstrations=("a", "b")))
    plan = Critique(id="c", trace_id=trace.id, grain="global", culprit="plan")
    tool = replace(plan, culprit="tool")
    assert count_votes(trace, accepted=True, critiques=[], taught_tool=False) == {"a": 1, "b": 1}
    assert count_votes(trace, accepted=False, critiques=[plan, tool], taught_tool=False) == {"a": -1, "b": -1}
    assert count_votes(trace, accepted=False, critiques=[plan, tool], taught_tool=True) == {}, "the program was right after all"
    assert count_votes(trace, accepted=False, critiques=[tool], taught_tool=False) == {}


def test_critics_by_configuration() -> None:
    assert open_critic(ReflectionConfig()).name == "blame:repairs+confidence"
    llm = ReflectionConfig(critic=CriticChoice.llm, temperature=0.7, top_p=0.5, max_new_tokens=99)
    with pytest.raises(ConfigError, match="needs a chat model"):
        open_critic(llm)
    chat = ScriptedChat(lambda request: "")
    assert open_critic(llm, chat=chat, prompts=PromptSet("full")).name == "llm:scripted"
    assert type(open_inference(llm, chat=chat, prompts=PromptSet("full"))).__name__ == "ChatInference"
    assert type(open_inference(ReflectionConfig())).__name__ == "CounterfactualInference"
