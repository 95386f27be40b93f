"""The recipe of the embedded detector at a size of seconds: its data, its start, its loss, its measures, and what it writes."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from tests.fixtures.tiny_vision import save_clip
from visloop.chat.weights import resolve_model
from visloop.config_assistant import RegionBackend, ToolsConfig
from visloop.embedded.owlvit import (
    OwlRecipe,
    OwlTrainer,
    build_owlvit,
    combine_words,
    draw_scenes,
    list_queries,
    render_pictures,
    stretch_positions,
)
from visloop.embedded.owlvit_measure import Judged, average_precision, choose_threshold, draw_pairs, judge_boxes, judge_detector, score_f1
from visloop.embedded.train_owlvit import train_owlvit
from visloop.errors import ModelError, TrainingError
from visloop.scenes.workshop import NOVEL_CONCEPTS
from visloop.tools.detectors import make_detector
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.values import Box

TINY = OwlRecipe(pictures=24, steps=25, batch_size=4, examined=3, least_f1=0.0, learning_rate=3e-3, warmup=5)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


def load(clip: Path):
    return CLIPModel.from_pretrained(clip), CLIPProcessor.from_pretrained(clip)


def test_pictures_hold_base_words_and_exact_boxes():
    pictures = render_pictures(draw_scenes(12, boxed=0.5, seed=3), side=96)
    said = {word for objects in pictures.words for words in objects for word in words}
    assert said and not said & set(NOVEL_CONCEPTS) and said <= set(list_queries())
    assert {len(pictures), pictures.pixels.shape[0]} == {12} and pictures.pixels.shape[1:] == (3, 96, 96)
    for pixels, boxes in zip(pictures.pixels, pictures.boxes, strict=True):
        assert (boxes > 0).all() and (boxes < 1).all()
        x, y = (boxes[0, :2] * 96).long()
        corner = pixels[:, :2, :2].float().mean(dim=(1, 2))
        assert (pixels[:, y, x].float() - corner).abs().max() > 15, "a box's centre lies on an object, not on the ground"
    again = render_pictures(draw_scenes(12, boxed=0.5, seed=3), side=96)
    assert torch.equal(pictures.pixels, again.pixels)


def test_the_start_is_the_clips_towers_under_fresh_heads(clip):
    tower, processor = load(clip)
    model, reader = build_owlvit(tower, processor, image_size=96, seed=0)
    own, given = model.owlvit.state_dict(), tower.state_dict()
    assert torch.equal(own["vision_model.pre_layernorm.weight"], given["vision_model.pre_layrnorm.weight"])
    text = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(own[text], given[text])
    places = "vision_model.embeddings.position_embedding.weight"
    assert own[places].shape[0] == 12 * 12 + 1 and torch.equal(own[places][0], given[places][0])
    trainer = OwlTrainer(model, reader, recipe=TINY)
    pictures = render_pictures(draw_scenes(2, boxed=0.0, seed=1), side=96)
    inputs = reader(text=[["a photo of a star"]] * 2, images=[Image.fromarray(p.permute(1, 2, 0).numpy()) for p in pictures.pixels])
    assert torch.allclose(inputs["pixel_values"], trainer.normalize(pictures.pixels), atol=1e-5)
    with torch.no_grad():
        output = model(**inputs)
    assert output.logits.std() < 5, "heads do not start saturated"
    sizes = output.pred_boxes[..., 2:]
    assert float(sizes.min()) > 0.02 and float(sizes.max()) < 0.3
    processor.tokenizer.add_tokens(["late"])
    with pytest.raises(ModelError, match="not the largest"):
        build_owlvit(tower, processor, image_size=96, seed=0)


def test_positions_are_stretched_over_the_same_picture():
    old = torch.cat([torch.full((1, 1), 9.0), torch.arange(4.0).repeat(4)[:, None]])  # grows from left to right
    wide = stretch_positions(old, grid=8)
    rows = wide[1:].reshape(8, 8)
    assert float(wide[0]) == 9.0
    assert torch.allclose(rows, rows[:1].expand(8, 8), atol=1e-5)
    assert (rows[0].diff() > 0).all()


def test_an_object_belongs_to_the_patch_of_its_centre(clip):
    model, reader = build_owlvit(*load(clip), image_size=96, seed=0)
    trainer = OwlTrainer(model, reader, recipe=TINY)
    places = trainer.assign_patches(torch.tensor([[0.0, 0.0, 0.1, 0.1], [0.999, 0.01, 0.1, 0.1], [0.5, 0.999, 0.1, 0.1]]))
    assert places.tolist() == [0, 11, 11 * 12 + 6]


def test_training_lowers_the_loss_and_the_written_model_is_what_is_measured(clip, tmp_path):
    lines: list[str] = []
    table = train_owlvit(tmp_path, clip=str(clip), recipe=TINY, seed=0, device="cpu", report=lines.append)
    pictures = render_pictures(draw_scenes(TINY.pictures, boxed=TINY.boxed, seed=0), side=96)
    model, reader = build_owlvit(*load(clip), image_size=96, seed=0)
    with torch.no_grad():
        before = sum(OwlTrainer(model, reader, recipe=TINY).compute_loss(pictures, range(8), list_queries()))
        written = type(model).from_pretrained(tmp_path / "owlvit")
        after = sum(OwlTrainer(written, reader, recipe=TINY).compute_loss(pictures, range(8), list_queries()))
    assert float(after) < 0.7 * float(before)
    assert written.dtype == torch.float32
    figures = json.loads((tmp_path / "owlvit" / "figures.json").read_text())
    assert figures["figures"] == table and figures["recipe"]["steps"] == TINY.steps
    card = (tmp_path / "owlvit" / "README.md").read_text()
    assert "pipeline_tag: zero-shot-object-detection" in card and f"{table['all']['to find']:.0f}" in card
    with pytest.raises(TrainingError, match="accepted from"):
        train_owlvit(tmp_path, clip=str(clip), recipe=replace(TINY, steps=1, least_f1=0.9), seed=0, device="cpu", report=lines.append)


def test_the_shipped_detector_finds_what_its_card_says():
    """On scenes that neither the recipe nor the card has drawn."""
    figures = json.loads((Path(resolve_model("embedded/owlvit")) / "figures.json").read_text())
    config = ToolsConfig(loc=RegionBackend.owlvit)
    assert config.detector.threshold == figures["threshold"], "chosen on scenes of its own when the model was trained"
    scenes = draw_scenes(40, boxed=0.25, seed=77)
    judged = judge_detector(make_detector(config, PromptPool()), scenes, (*list_queries(), *draw_pairs(scenes, seed=77)))
    assert score_f1(list(judged.values()), threshold=config.detector.threshold) == pytest.approx(figures["figures"]["all"]["F1"], abs=0.04)


def test_two_words_of_an_object_are_asked_in_their_order():
    words = ("striped", "red", "circle")
    drawn = {combine_words(words, random.Random(seed)) for seed in range(40)}
    assert drawn == {"striped red", "striped circle", "red circle"}
    scenes = draw_scenes(5, boxed=0.0, seed=3)
    shown = [{entry.pattern, entry.color, entry.shape} for scene, _ in scenes for entry in scene.boxes[0]]
    pairs = draw_pairs(scenes, seed=1)
    assert pairs and all(any(set(pair.split()) <= words for words in shown) for pair in pairs)


def make_box(left: float, score: float) -> Box:
    return Box(left=left, top=0, right=left + 10, bottom=10, score=score)


def test_average_precision_and_f1_by_hand():
    truth = [[make_box(0, 1), make_box(20, 1)], [make_box(0, 1)], []]
    found = [[make_box(1, 0.9), make_box(0, 0.8)], [make_box(40, 0.7)], [make_box(0, 0.2)]]
    judged = judge_boxes(found, truth)
    assert judged == Judged((0.9, 0.8, 0.7, 0.2), (True, False, False, False), 3), "a box that is found twice counts once"
    assert average_precision(judged) == pytest.approx(1 / 3)
    assert average_precision(Judged((0.9, 0.8, 0.7), (True, False, True), 2)) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(Judged((), (), 2)) == 0.0
    assert score_f1([judged], threshold=0.85) == pytest.approx(2 * 1 / (1 + 3))
    assert choose_threshold({"a": Judged((0.9, 0.6, 0.3), (True, True, False), 2)}) == pytest.approx(0.32)
    assert np.isfinite(score_f1([Judged((), (), 0)], threshold=0.5))
