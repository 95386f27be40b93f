"""Scenes as pixel tensors and as frozen tower features. Pixels come from the processor itself, never from a second path."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from visloop.ids import seed_for
from visloop.scenes.pictures import render_scene
from visloop.scenes.world import Scene, WorldSpec, draw_scene


def draw_scenes(count: int, *, seed: int, spec: WorldSpec, boxes: int = 1) -> list[Scene]:
    """``count`` scenes keyed by ``seed`` and their index, so a larger pool begins with the smaller one."""
    return [draw_scene(seed_for(seed, "scene", boxes, index), spec=spec, boxes=boxes) for index in range(count)]


def process_pictures(processor: LlavaProcessor, pictures: Sequence[Image.Image]) -> Tensor:
    """Pixel values (n, 3, side, side) as the processor makes them for a conversation."""
    pixels: Tensor = processor.image_processor(images=list(pictures), return_tensors="pt")["pixel_values"]
    return pixels


def render_pixels(processor: LlavaProcessor, scenes: Iterable[Scene], *, spec: WorldSpec) -> tuple[Tensor, list[tuple[int, ...]]]:
    """All pictures of ``scenes`` as one tensor (n, 3, side, side), and for each scene the rows of its pictures."""
    chunks, rows, held, count = [], [], [], 0
    for scene in scenes:
        pictures = render_scene(scene, spec=spec)
        rows.append(tuple(range(count, count + len(pictures))))
        count += len(pictures)
        held += pictures
        if len(held) >= 256:
            chunks.append(process_pictures(processor, held))
            held = []
    if held:
        chunks.append(process_pictures(processor, held))
    return torch.cat(chunks), rows


@torch.no_grad()
def encode_pictures(model: LlavaForConditionalGeneration, pixels: Tensor, *, batch_size: int = 512) -> Tensor:
    """Tower features (n, patches, tower width) before the projector, in the dtype of ``pixels``, on the model's device."""
    tower, device = model.model.vision_tower, model.device
    layer = model.config.vision_feature_layer
    return torch.cat([tower(chunk.to(device), output_hidden_states=True).hidden_states[layer][:, 1:] for chunk in pixels.split(batch_size)])


@dataclass(frozen=True, slots=True)
class Gallery:
    """A pool of scenes with the tower features of their pictures (n, patches, width) and each scene's picture rows."""

    scenes: tuple[Scene, ...]
    features: Tensor
    rows: tuple[tuple[int, ...], ...]


def build_gallery(model: LlavaForConditionalGeneration, processor: LlavaProcessor, scenes: Sequence[Scene], *, spec: WorldSpec) -> Gallery:
    """Render ``scenes`` and pass their pictures through the tower once; later stages leave the tower frozen."""
    pixels, rows = render_pixels(processor, scenes, spec=spec)
    return Gallery(tuple(scenes), encode_pictures(model, pixels), tuple(rows))
