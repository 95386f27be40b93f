"""planner.choice=search: what NLVR's flow learned and saved is opened by the configuration, plans, and its programs run."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.fixtures.block_pictures import BlockTools, draw_blocks, judge, stack
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.interpreter import Job, run_programs
from visloop.assistant.planner import open_planner
from visloop.assistant.search_learning import TrainingSettings
from visloop.assistant.search_scorer import save_scorer
from visloop.assistant.search_space import load_pack
from visloop.config_assistant import PlannerChoice, PlannerConfig
from visloop.errors import ConfigError, DataError
from visloop.evaluation.nlvr_search import Item, measure_search
from visloop.records.assistant import Task
from visloop.scenes.workshop_seeds import seed_demonstrations

SPACE = load_pack("nlvr").space
TOOLS = BlockTools()
TEXT = "exactly two towers show a blue block"
BOXES = Task(
    id="boxes", kind="multi_image", instruction=TEXT, images=("a", "b", "c"), inputs=SPACE.inputs, family="f", wording="new", split="test",
    group="g", source="s",
)  # fmt: skip
PICTURE = replace(BOXES, id="picture", kind="vqa", instruction="How many red circles are there?", images=("a",), inputs=("IMAGE",))
TWO = [stack("blue", "black"), stack("yellow"), stack("black", "blue")]
ONE = [stack("black"), stack("blue"), stack("yellow")]


def test_a_saved_scorer_plans_tasks_of_its_space_and_slot_filling_the_others(tmp_path: Path) -> None:
    items = [Item(entry, "g") for entry in judge("j", TEXT, [TWO, ONE], [True, False], space=SPACE)]
    found = measure_search(load_pack("nlvr"), items, items, tools=TOOLS, settings=TrainingSettings(steps=20, rate=0.05, reference=2))
    save_scorer(found.scorer, tmp_path / "full")
    config = PlannerConfig(choice=PlannerChoice.search, scorer=str(tmp_path / "full"))
    planner = open_planner(config, vocabulary=("red", "circle"), tools=TOOLS)
    assert planner.name == "search"
    pool = DemonstrationPool().add(seed_demonstrations())
    boxes, picture = planner.propose([BOXES, PICTURE], pool=pool, seed=0)
    assert (boxes.author, boxes.status) == ("search", "ok") and (picture.author, picture.status) == ("slot_filling", "ok")
    jobs = [Job(BOXES, boxes, dict(zip(SPACE.inputs, map(draw_blocks, scene), strict=True))) for scene in (TWO, ONE)]
    assert [(entry.status, entry.result) for entry in run_programs(jobs, tools=TOOLS)] == [("finished", True), ("finished", False)]


def test_search_starts_from_its_pack_or_from_a_scorer_that_can_be_read(tmp_path: Path) -> None:
    [proposal] = open_planner(PlannerConfig(choice=PlannerChoice.search)).propose([BOXES], pool=DemonstrationPool(), seed=0)
    assert (proposal.author, proposal.status) == ("search", "ok"), "before any feedback"
    with pytest.raises(ConfigError, match="no task pack 'other'"):
        open_planner(PlannerConfig(choice=PlannerChoice.search, pack="other"))
    with pytest.raises(DataError, match="no scorer"):
        open_planner(PlannerConfig(choice=PlannerChoice.search, scorer=str(tmp_path)))
