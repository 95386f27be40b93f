"""What the shipped LM over symbols can do, alone and beside slot filling."""

import json
from pathlib import Path

import pytest

from visloop.assistant.planner import open_planner
from visloop.chat.weights import resolve_model
from visloop.config_assistant import PlannerChoice, PlannerConfig, WriterChoice
from visloop.embedded.planner_exam import examine_planners
from visloop.scenes.workshop import BASE_VOCABULARY


def test_the_shipped_model_does_what_its_card_says():
    figures = json.loads((Path(resolve_model("embedded/planner")) / "figures.json").read_text())["figures"]
    planner = open_planner(PlannerConfig(choice=PlannerChoice.llm, writer=WriterChoice.embedded), vocabulary=BASE_VOCABULARY)
    table = examine_planners({"LM": planner}, count=24)
    for row in ("known family, base wording: seeds", "known family, new wording: seeds"):
        assert table[row]["LM"] == pytest.approx(figures[row]["LM"], abs=0.2)


def test_the_embedded_hybrid_writes_more_programs_right_than_slot_filling():
    """On tasks that neither its recipe nor its card has drawn: new wordings of known families, with the seeds alone."""
    planners = {
        name: open_planner(PlannerConfig(choice=choice, writer=WriterChoice.embedded), vocabulary=BASE_VOCABULARY)
        for name, choice in (("filling", PlannerChoice.slot_filling), ("hybrid", PlannerChoice.hybrid))
    }
    table = examine_planners(planners, count=24, seed=31)["known family, new wording: seeds"]
    assert table["hybrid"] > table["filling"]
