"""The runs that make the embedded models, at a size of seconds: the same code, fewer steps."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from visloop.embedded.build import Sizes, build_model, build_processor
from visloop.embedded.card import CardFacts, format_table, write_card
from visloop.embedded.checkpoints import StageStore, load_model, save_shipped
from visloop.embedded.language import Stage
from visloop.embedded.pictures import draw_scenes, render_pixels
from visloop.embedded.recipe import JudgeRecipe, Recipe, TowerStage
from visloop.embedded.run_base import BaseRun
from visloop.embedded.run_judge import JudgeRun
from visloop.embedded.tower import train_tower
from visloop.embedded.train import choose_device, train_models
from visloop.errors import ConfigError, ModelError, TrainingError
from visloop.prompts.render import PromptSet
from visloop.scenes.world import DEFAULT_WORLD, WorldSpec

SIZES = Sizes(tower_width=16, tower_layers=1, tower_heads=2, width=16, layers=1, heads=2, feedforward=16)


def shorten(name, steps=3):
    return Stage(name=name, steps=steps, learning_rate=1e-3, batch_size=4, down=0.5)


TINY = Recipe(
    scenes=40,
    statements=6,
    tower=TowerStage(steps=4, held_out=20, accepted=0.0),
    captions=shorten("captions"),
    matching=shorten("matching"),
    grounding=shorten("grounding"),
    lessons=shorten("lessons"),
    statements_stage=shorten("statements"),
    examined=8,
    examined_statements=4,
    grounding_accepted=0.0,
    accepted=0.0,
)
PLAN = JudgeRecipe(checking=shorten("checking"), judging=shorten("judging"), sampled_questions=6, sampled_paths=2)


def make_run(folder: Path, recipe: Recipe = TINY, *, seed: int = 0, lines: list[str] | None = None) -> BaseRun:
    return BaseRun(
        folder / "base",
        stages=folder / "stages",
        recipe=recipe,
        sizes=SIZES,
        spec=DEFAULT_WORLD,
        prompts=PromptSet("compact"),
        seed=seed,
        device="cpu",
        report=(lines if lines is not None else []).append,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    run = make_run(folder)
    run.run()
    run.ship(examined_seed=99)
    return folder


def test_a_continued_run_equals_an_uninterrupted_one(finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "stages")
    for stage in ("grounding", "lessons", "statements"):
        shutil.rmtree(tmp_path / "stages" / stage)
    lines: list[str] = []
    run = make_run(tmp_path, lines=lines)
    run.run()
    assert [line.split()[0] for line in lines if "/" in line] == ["grounding", "lessons", "statements"]
    whole = load_file(finished / "stages" / "statements" / "model.safetensors")
    continued = load_file(tmp_path / "stages" / "statements" / "model.safetensors")
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


def test_only_the_tower_stage_changes_the_tower(finished):
    towers = [load_file(finished / "stages" / stage / "model.safetensors") for stage in ("tower", "statements")]
    changed = {name for name in towers[0] if not torch.equal(towers[0][name], towers[1][name])}
    assert changed
    assert not any("vision_tower" in name for name in changed)
    assert any("multi_modal_projector" in name for name in changed)


def test_stages_of_another_seed_are_not_used(finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "stages")
    assert make_run(tmp_path).store.load("tower", make_run(tmp_path).model) is not None
    other = make_run(tmp_path, seed=1)
    assert other.store.load("tower", other.model) is None
    assert make_run(tmp_path, replace(TINY, scenes=41)).store.load("tower", other.model) is None


def test_a_stage_without_its_mark_is_not_finished(finished, tmp_path):
    shutil.copytree(finished / "stages", tmp_path / "stages")
    (tmp_path / "stages" / "tower" / "stage.json").unlink()
    run = make_run(tmp_path)
    assert run.store.load("tower", run.model) is None


def test_the_shipped_file_is_half_precision_and_loads_as_single(finished):
    stored = load_file(finished / "base" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    model = AutoModelForImageTextToText.from_pretrained(finished / "base")
    assert model.dtype == torch.float32
    exact = load_model(finished / "stages" / "statements")[0].state_dict()
    assert exact.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, exact[name], rtol=6e-4, atol=1e-7)


def test_the_card_reports_the_measured_table(finished):
    card = (finished / "base" / "README.md").read_text()
    model, _ = load_model(finished / "base")
    assert f"{sum(value.numel() for value in model.parameters()):,} parameters" in card
    for row in ("questions", "majority", "direct", "chain greedy", "chain sampled", "stepwise greedy", "stepwise sampled"):
        assert f"| {row} |" in card
    assert "lessons: 3 steps of 4" in card
    seconds = [json.loads(file.read_text())["figures"]["cpu_seconds"] for file in (finished / "stages").glob("*/stage.json")]
    assert len(seconds) == 6
    assert f"{sum(seconds) / 60:.0f} CPU minutes" in card


def test_a_stage_that_misses_its_figure_stops_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"stage tower: reached 0\.\d+, accepted from 0\.980"):
        make_run(tmp_path, replace(TINY, tower=replace(TINY.tower, accepted=0.98))).run()
    assert not (tmp_path / "stages" / "tower" / "stage.json").exists()


def test_a_base_that_says_nothing_readable_makes_no_judge(finished, tmp_path):
    run = JudgeRun(
        finished / "base",
        tmp_path / "judge",
        recipe=TINY,
        plan=PLAN,
        spec=DEFAULT_WORLD,
        prompts=PromptSet("compact"),
        seed=0,
        device="cpu",
        report=[].append,
    )
    with pytest.raises(TrainingError, match="none of the 6 questions got a readable chain"):
        run.run()


def test_judge_without_base_says_which_folder_is_missing(tmp_path):
    with pytest.raises(ModelError, match=str(tmp_path / "base")):
        train_models(tmp_path, models=("judge",), device="cpu", seed=0, recipe=TINY, sizes=SIZES)


def test_a_weight_beyond_half_precision_is_refused(tmp_path):
    processor = build_processor(["red"], sizes=SIZES)
    model = build_model(processor, sizes=SIZES, seed=0)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = 1e6
    with pytest.raises(TrainingError, match="rounding to fp16"):
        save_shipped(model, processor, tmp_path / "model")


def test_weights_depend_on_the_seed_alone():
    processor = build_processor(["red"], sizes=SIZES)
    torch.manual_seed(5)
    first = build_model(processor, sizes=SIZES, seed=3).state_dict()
    torch.manual_seed(6)
    second = build_model(processor, sizes=SIZES, seed=3).state_dict()
    other = build_model(processor, sizes=SIZES, seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_the_tower_learns_colours_and_cells_in_seconds():
    sizes = Sizes()
    processor = build_processor(["red"], sizes=sizes)
    model = build_model(processor, sizes=sizes, seed=0)
    scenes = draw_scenes(400, seed=1, spec=DEFAULT_WORLD)
    pixels, _ = render_pixels(processor, scenes, spec=DEFAULT_WORLD)
    figures = train_tower(
        model,
        pixels,
        [scene.boxes[0] for scene in scenes],
        spec=DEFAULT_WORLD,
        steps=150,
        learning_rate=2e-3,
        batch_size=32,
        held_out=100,
        seed=0,
        report=[].append,
    )
    assert figures["occupied"] > 0.99
    assert figures["color"] > 0.95
    assert figures["column"] > 0.9


def test_a_grid_that_is_not_the_patch_grid_is_refused():
    processor = build_processor(["red"], sizes=SIZES)
    model = build_model(processor, sizes=SIZES, seed=0)
    spec = WorldSpec(grid=5)
    scenes = draw_scenes(4, seed=1, spec=spec)
    pixels, _ = render_pixels(processor, scenes, spec=spec)
    with pytest.raises(TrainingError, match="16 patches, world 'shapes' has 25 cells"):
        train_tower(
            model,
            pixels,
            [scene.boxes[0] for scene in scenes],
            spec=spec,
            steps=1,
            learning_rate=1e-3,
            batch_size=2,
            held_out=1,
            seed=0,
            report=[].append,
        )


def test_a_missing_gpu_is_an_error_and_auto_is_not(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == "cpu"
    with pytest.raises(ConfigError, match="no GPU"):
        choose_device("cuda")


def test_tables_leave_cells_of_missing_columns_empty(tmp_path):
    assert format_table({"a": {"x": 0.5, "y": 12.34}, "b": {"y": 7}}, corner="m").splitlines() == [
        "| m | x | y |",
        "|---|---|---|",
        "| a | 0.500 | 12.3 |",
        "| b |  | 7 |",
    ]
    facts = CardFacts(
        title="T",
        purpose="P",
        recipe=("one",),
        seed=7,
        parameters=1234,
        bytes_on_disk=2_000_000,
        minutes=3.4,
        device="cpu",
        limits=("small",),
    )
    write_card(tmp_path, facts=facts, tables={"Measured": {"a": {"x": 0.5}}})
    card = (tmp_path / "README.md").read_text()
    assert "1,234 parameters, 2.00 MB" in card
    assert "seed 7; 3 CPU minutes" in card
    assert "## Measured\n\n|  | x |" in card


def test_store_keeps_figures(tmp_path):
    processor = build_processor(["red"], sizes=SIZES)
    model = build_model(processor, sizes=SIZES, seed=0)
    store = StageStore(tmp_path, key="k")
    store.save("captions", model, processor, {"loss": 0.5})
    fresh = build_model(processor, sizes=SIZES, seed=1)
    assert store.load("captions", fresh) == {"loss": 0.5}
    assert torch.equal(fresh.lm_head.weight, model.lm_head.weight)
    assert json.loads((tmp_path / "captions" / "stage.json").read_text())["key"] == "k"
