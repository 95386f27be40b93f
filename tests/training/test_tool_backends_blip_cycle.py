"""VQA by BLIP inside a cycle: it learns from the one inferred answer, and keeps what accepted runs asked (CLOVA 3.4)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from PIL import Image

from tests.fixtures.scripted_assistant import ScriptedTools, World
from tests.fixtures.tiny_vision import SIDE, draw_picture, train_blip
from visloop.assistant.cases import Case
from visloop.assistant.cycle import CycleResult, run_cycle
from visloop.assistant.pools import Pools
from visloop.config_assistant import PromptTuning, ToolsConfig, VisionConfig, VqaBackend
from visloop.ids import make_id
from visloop.records.assistant import Critique, Proposal, Task
from visloop.tools.answerers import ANCHORS, BlipAnswerer, make_answerer
from visloop.tools.base import Tool
from visloop.tools.prompt_pool import PromptPool

PROGRAM = "ANSWER0=VQA(image=IMAGE,question='what color is the thing ?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
TUNING = PromptTuning(steps=100, learning_rate=0.1, min_validation=0.9, max_base_drop=0.05, temperature=0.02, init_std=0.3, tokens=3)


@dataclass(frozen=True)
class BlipTools(ScriptedTools):
    """The small toolbox with a real BLIP behind VQA."""

    answerer: BlipAnswerer | None = None

    def find_tool(self, name: str) -> Tool | None:
        assert self.answerer is not None
        return self.answerer.with_pool(self.pool) if name == "VQA" else super().find_tool(name)


@dataclass
class BlipWorld(World):
    """Pictures of one block; what colour it is is asked."""

    pictures: dict[str, Image.Image] = field(default_factory=dict)

    def show(self, color: str) -> Task:
        task = self.add("What color is the cell?", color)
        place = 4 + len(self.pictures)
        self.pictures[task.id], _ = draw_picture(color, box=(place, 6, place + 16, 24), size=(SIDE, SIDE), seed=len(self.pictures))
        return task

    def load_inputs(self, task: Task) -> dict[str, Image.Image]:
        return {"IMAGE": self.pictures[task.id]}


class OneProgram:
    """Asks for the colour, whatever the task says."""

    name = "one program"

    def propose(self, tasks: Sequence[Task], **given: object) -> list[Proposal]:
        return [Proposal(task_id=task.id, plan=("Ask.",), program=PROGRAM, author=self.name) for task in tasks]


class BlamesVqa:
    """Whatever went wrong, the answer of step 1 did."""

    name = "blames VQA"

    def criticize(self, cases: Sequence[Case], *, grain: str, tools: object, seed: int) -> list[Critique]:
        return [
            Critique(
                id=make_id(case.trace.id, grain, len(case.earlier)),
                trace_id=case.trace.id,
                grain=grain,  # type: ignore[arg-type]
                culprit="tool",
                step=1,
                tool="VQA",
                reason="wrong answer",
            )
            for case in cases
        ]


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_blip(tmp_path_factory.mktemp("blip") / "blip")


def run(world: BlipWorld, blip: Path, *colors: str, pools: Pools | None = None) -> CycleResult:
    vision = VisionConfig(model=str(blip), device="cpu", batch_size=4)
    config = ToolsConfig(vqa=VqaBackend.blip, answerer=vision, tuning=TUNING)
    answerer = make_answerer(config, PromptPool(), root=world.folder)
    assert isinstance(answerer, BlipAnswerer)
    world.tools = BlipTools(answerer=answerer)
    tasks = [world.show(color) for color in colors]
    parts = replace(world.parts(BlamesVqa()), planner=OneProgram())
    return run_cycle(tasks, parts=parts, pools=pools or Pools(), cycle=1)


def test_one_inferred_answer_is_learned_and_known_questions_keep_theirs(tmp_path: Path, blip: Path) -> None:
    world = BlipWorld(tmp_path)
    result = run(world, blip, "red", "blue", "red", "blue", "star", "red", "blue")
    assert [(item.state, item.solved) for item in result.records.outcomes] == [("kept", True)], result.records.outcomes
    [shown] = [item for item in result.records.instances if item.source == "inference"]
    assert (shown.source, shown.question, shown.target) == ("inference", "what color is the thing ?", "star")
    prompts = result.pools.prompts
    assert set(prompts.list_concepts("VQA")) == {ANCHORS, "star"}
    anchored = {name for prompt in prompts.prompts if prompt.entry.concept == ANCHORS for name in prompt.entry.instance_ids}
    assert anchored == {item.id for item in result.records.instances if item.source == "accepted"}, "an anchor says what it was made of"
    assert world.provider.asked == [], "pictures without a question are of no use"
    later = run(BlipWorld(tmp_path), blip, "red", "blue", "red", "blue", "star", pools=result.pools)
    assert later.counts["right_at_first"] == 5, "what was taught is known, and so is what was known before"


def test_without_a_right_answer_nothing_is_learned(tmp_path: Path, blip: Path) -> None:
    world = BlipWorld(tmp_path)
    world.truths = _Silent()
    result = run(world, blip, "star")
    assert not result.records.instances and {item.state for item in result.records.outcomes} == {"no_update"}


class _Silent(dict[str, str]):
    """Feedback whose right answer no picture question could have."""

    def __getitem__(self, task: str) -> str:
        return ""
