"""The shipped weights do what their cards say, on scenes that no recipe draws."""

import re

import pytest

from visloop.chat.weights import list_shipped, resolve_model, shipped_folder
from visloop.embedded.checkpoints import load_model
from visloop.embedded.measure import Examination, Outcome, summarize_outcomes
from visloop.embedded.perception import GroundingMix
from visloop.embedded.pictures import draw_scenes
from visloop.embedded.tokenizer import list_vocabulary
from visloop.prompts.render import PromptSet
from visloop.scenes.world import DEFAULT_WORLD

LARGEST_BYTES = 4_000_000


@pytest.fixture(scope="module")
def exam() -> Examination:
    model, processor = load_model(resolve_model("embedded/base"))
    scenes = draw_scenes(150, seed=31, spec=DEFAULT_WORLD)
    return Examination(model, processor, scenes, spec=DEFAULT_WORLD, prompts=PromptSet("compact"), seed=32)


def read_card(name: str, row: str) -> dict[str, float]:
    lines = (shipped_folder() / name / "README.md").read_text().splitlines()
    at = next(index for index, line in enumerate(lines) if line.startswith(f"| {row} |"))
    head = next(index for index in range(at, -1, -1) if lines[index].startswith("|---")) - 1
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[head], lines[at])]
    return {name: float(value) for name, value in zip(cells[0][1:], cells[1][1:], strict=True) if value}


def test_shipped_models_are_small_and_have_cards_without_missing_figures():
    assert {"embedded/base", "embedded/judge"} <= set(list_shipped())
    for name in list_shipped():
        folder = shipped_folder() / name.split("/")[1]
        assert sum(file.stat().st_size for file in folder.iterdir()) < LARGEST_BYTES
        card = (folder / "README.md").read_text()
        assert "nan" not in card
        assert re.search(r"[\d,]+ parameters, \d\.\d\d MB", card)


@pytest.mark.parametrize("name", ["base", "judge"])
def test_the_shipped_vocabulary_is_the_worlds(name):
    _, processor = load_model(resolve_model(f"embedded/{name}"))
    words = list_vocabulary(PromptSet("compact"), spec=DEFAULT_WORLD)
    assert processor.tokenizer.unk_token_id not in processor.tokenizer(list(words))["input_ids"][0]
    for word in words:
        assert processor.tokenizer.unk_token_id not in processor.tokenizer(word)["input_ids"], word


def test_the_base_reasons_as_its_card_says(exam):
    greedy, card = summarize_outcomes(exam.measure_chains(sampled=False)), read_card("base", "chain greedy")
    single = [family for family in greedy if family in card and family not in ("all", "parsed", "score")]
    expected = sum(card[family] for family in single) / len(single)
    assert greedy["all"] == pytest.approx(expected, abs=0.12)
    assert greedy["parsed"] > 0.95
    assert greedy["all"] > exam.majority()["all"] + 0.15


def test_the_base_answers_at_once_worse_than_it_reasons(exam):
    direct, greedy = exam.measure_direct(), exam.measure_chains(sampled=False)
    assert summarize_outcomes(direct)["all"] > exam.majority()["all"] + 0.05
    assert summarize_outcomes(direct)["all"] < summarize_outcomes(greedy)["all"]


def test_the_base_tells_readable_steps(exam):
    assert summarize_outcomes(exam.measure_stepwise(sampled=True))["parsed"] > 0.92


def test_the_base_finds_objects(exam):
    assert exam.measure_grounding(mix=GroundingMix()) > 0.5


def test_outcomes_are_summed_by_family():
    table = summarize_outcomes([Outcome("count", True, True, 100.0), Outcome("count", False, True, 20.0), Outcome("hop", False, False)])
    assert table == {"count": 0.5, "hop": 0.0, "all": pytest.approx(1 / 3), "parsed": pytest.approx(2 / 3), "score": 40.0}
