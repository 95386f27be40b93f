"""The embedded detector: an OWL-ViT that starts from the embedded CLIP and learns to find base words in drawn pictures.

Three things decide whether it learns at all: heads that do not start saturated (Hugging Face draws them with a spread of 1), an end of
text with the largest id (OWL-ViT pools there), and the towers of a trained CLIP.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import OwlViTConfig, OwlViTForObjectDetection, OwlViTProcessor
from transformers.models.owlvit.image_processing_pil_owlvit import OwlViTImageProcessorPil

from visloop.config_assistant import DetectionLoss
from visloop.embedded.schedule import Report, make_schedule
from visloop.errors import ModelError
from visloop.ids import seed_for
from visloop.scenes.box_layouts import scatter_objects
from visloop.scenes.pictures import render_scene
from visloop.scenes.regions import locate_objects
from visloop.scenes.workshop import BOXES_BASE, NOUN, WORKSHOP_BASE
from visloop.scenes.world import Attribute, Scene, StyledWorld, draw_scene, make_scene
from visloop.tools.detection_loss import compute_focal, generalized_overlap, to_corners
from visloop.tools.detectors import phrase_query

GROUPS: tuple[Attribute, ...] = ("pattern", "color", "shape")
TEXT_LENGTH = 16
"""Tokens that every query is padded to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwlRecipe:
    """Everything that decides the weights, besides the seed and the CLIP.

    ``boxed`` is the share of pictures drawn as NLVR's boxes are. ``combined`` queries of two words join those of one word at each step.
    ``least_f1`` is what the written model must reach on held-out scenes.
    """

    pictures: int = 10_000
    boxed: float = 0.25
    steps: int = 6_000
    batch_size: int = 16
    learning_rate: float = 1.2e-3
    weight_decay: float = 0.02
    warmup: int = 100
    down: float = 0.5
    combined: int = 12
    loss: DetectionLoss = field(default_factory=lambda: DetectionLoss(alpha=0.5, gamma=2.0, box_weight=3.0))
    image_size: int = 96
    examined: int = 150
    least_f1: float = 0.6

    def describe(self) -> tuple[str, ...]:
        """The recipe in lines for the model card."""
        return (
            f"{self.pictures:,} pictures of base words only, {self.boxed:.0%} of them drawn as NLVR's boxes",
            f"{self.steps:,} steps of {self.batch_size} pictures, AdamW {self.learning_rate:g}, decay over the last {self.down:.0%}",
            "an object belongs to the patch that holds its centre; focal loss over all base words, 'object' and "
            f"{self.combined} two-word queries, {self.loss.box_weight:g} x L1 and {self.loss.overlap_weight:g} x GIoU",
            "towers from the embedded CLIP (positions of patches interpolated), heads drawn anew; everything is trained",
        )


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Drawn pictures (n, 3, side, side) uint8 with their objects: boxes (k, 4) as shares (centre, size) and words by group."""

    pixels: Tensor
    boxes: tuple[Tensor, ...]
    words: tuple[tuple[tuple[str, ...], ...], ...]

    def __len__(self) -> int:
        return len(self.pixels)


def list_queries(world: StyledWorld = WORKSHOP_BASE) -> tuple[str, ...]:
    """The one-word queries: every base word of the three groups, and the noun for anything."""
    return (*(word for group in GROUPS for word in world.values(group)), NOUN)


def draw_boxed_scene(seed: int) -> Scene:
    """One NLVR-like box with one to six scattered base objects."""
    rng = random.Random(seed)
    while True:
        entries = draw_scene(rng.getrandbits(48), spec=WORKSHOP_BASE).boxes[0]
        chosen = [replace(entry, pattern="plain" if rng.random() < 0.7 else entry.pattern) for entry in entries[: rng.randint(1, 6)]]
        if placed := scatter_objects(rng, chosen):
            return make_scene((placed,), seed=rng.getrandbits(48))


def draw_scenes(count: int, *, boxed: float, seed: int) -> list[tuple[Scene, StyledWorld]]:
    """Scenes with their worlds; the same seed gives the same scenes."""
    rng = random.Random(seed_for(seed, "owlvit"))
    found: list[tuple[Scene, StyledWorld]] = []
    for index in range(count):
        own = seed_for(seed, "owlvit", index)
        found.append((draw_boxed_scene(own), BOXES_BASE) if rng.random() < boxed else (draw_scene(own, spec=WORKSHOP_BASE), WORKSHOP_BASE))
    return found


def render_pictures(scenes: Sequence[tuple[Scene, StyledWorld]], *, side: int) -> Pictures:
    """Pictures in the size of the model's input, with what is in them."""
    pixels = np.empty((len(scenes), side, side, 3), dtype=np.uint8)
    boxes, words = [], []
    for index, (scene, world) in enumerate(scenes):
        (picture,), (objects,) = render_scene(scene, spec=world), locate_objects(scene, spec=world)
        scale = picture.width
        pixels[index] = np.asarray(picture.resize((side, side)))
        rows = [
            ((left + right) / 2 / scale, (top + bottom) / 2 / scale, (right - left) / scale, (bottom - top) / scale)
            for left, top, right, bottom in (entry.box for entry in objects)
        ]
        boxes.append(torch.tensor(rows, dtype=torch.float32))
        words.append(tuple(tuple(getattr(entry.entry, group) for group in GROUPS) for entry in objects))
    return Pictures(torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), tuple(boxes), tuple(words))


def build_owlvit(clip: Any, processor: Any, *, image_size: int, seed: int) -> tuple[OwlViTForObjectDetection, OwlViTProcessor]:
    """An OWL-ViT with the towers of a CLIP and new heads.

    Raises:
        ModelError: the CLIP's end of text has not the largest id, or a weight has no place.
    """
    tokenizer = processor.tokenizer
    if tokenizer.eos_token_id != max(tokenizer.get_vocab().values()):
        raise ModelError(f"end of text has id {tokenizer.eos_token_id}, which is not the largest: OWL-ViT would pool at another token")
    text, vision = clip.config.text_config.to_dict(), clip.config.vision_config.to_dict()
    config = OwlViTConfig(text_config=text, vision_config=vision | {"image_size": image_size}, projection_dim=clip.config.projection_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = OwlViTForObjectDetection(config)
        reset_heads(model)
    state = {_rename(name): value for name, value in clip.state_dict().items()}
    places = "vision_model.embeddings.position_embedding.weight"
    state[places] = stretch_positions(state[places], grid=image_size // clip.config.vision_config.patch_size)
    missing, unexpected = model.owlvit.load_state_dict(state, strict=False)
    if missing or unexpected:
        raise ModelError(f"the CLIP does not fit: missing {missing}, without a place {unexpected}")
    pictures = processor.image_processor
    images = OwlViTImageProcessorPil(
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        image_mean=list(pictures.image_mean),
        image_std=list(pictures.image_std),
    )
    tokenizer.model_max_length = min(TEXT_LENGTH, clip.config.text_config.max_position_embeddings)
    reader: OwlViTProcessor = OwlViTProcessor(images, tokenizer)  # type: ignore[no-untyped-call]
    return model, reader


def reset_heads(model: OwlViTForObjectDetection) -> None:
    """Heads from which training starts: boxes near their patch, scores of every text low."""
    for head in (model.class_head, model.box_head):
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)
    with torch.no_grad():
        model.box_head.dense2.weight.mul_(0.1)
        for layer, bias in ((model.class_head.logit_scale, 9.0), (model.class_head.logit_shift, -0.5)):
            layer.weight.zero_()
            layer.bias.fill_(bias)


def stretch_positions(weight: Tensor, *, grid: int) -> Tensor:
    """Position embeddings (1 + old * old, width) for a grid of another side; the class token keeps its own."""
    old = round((len(weight) - 1) ** 0.5)
    patches = weight[1:].T.reshape(1, -1, old, old)
    wider = interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([weight[:1], wider.reshape(weight.shape[1], -1).T])


def _rename(name: str) -> str:
    return name.replace("pre_layrnorm", "pre_layernorm")


class OwlTrainer:
    """The loss of a batch, and the training loop."""

    def __init__(self, model: Any, processor: Any, *, recipe: OwlRecipe, device: str = "cpu") -> None:
        self.model, self.processor, self.recipe, self.device = model.to(device), processor, recipe, device
        images = processor.image_processor
        self._mean = torch.tensor(images.image_mean, device=device)[:, None, None]
        self._std = torch.tensor(images.image_std, device=device)[:, None, None]
        self._grid = recipe.image_size // model.config.vision_config.patch_size

    def normalize(self, pixels: Tensor) -> Tensor:
        """What the processor makes of pictures (n, 3, side, side) of its own size."""
        return (pixels.to(self.device).float() / 255 - self._mean) / self._std

    def compute_loss(self, pictures: Pictures, rows: Sequence[int], queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Focal loss, and box loss, of some pictures for some queries."""
        grid, _ = self.model.image_embedder(pixel_values=self.normalize(pictures.pixels[list(rows)]))
        flat = grid.flatten(1, 2)
        logits, _ = self.model.class_predictor(flat, self._encode(queries).expand(len(flat), -1, -1), None)
        boxes = self.model.box_predictor(flat, grid)
        truth = torch.cat([pictures.boxes[row] for row in rows]).to(self.device)
        owners = torch.tensor([at for at, row in enumerate(rows) for _ in pictures.words[row]], device=self.device)
        places = self.assign_patches(truth)
        fits = torch.tensor(
            [[_fits(query, words) for query in queries] for row in rows for words in pictures.words[row]], device=self.device
        )
        wanted = torch.zeros_like(logits)
        wanted[owners, places] = fits.float()
        loss, count = self.recipe.loss, max(1, len(truth))
        focal = compute_focal(logits, wanted, alpha=loss.alpha, gamma=loss.gamma).sum() / count
        found = boxes[owners, places]
        overlaps = generalized_overlap(to_corners(found), to_corners(truth)).diagonal()
        box = loss.box_weight * (found - truth).abs().sum() / count + loss.overlap_weight * (1 - overlaps).sum() / count
        weighted: Tensor = loss.class_weight * focal
        return weighted, box

    def assign_patches(self, boxes: Tensor) -> Tensor:
        """The patch (n,) that holds the centre of each box (n, 4)."""
        cells: Tensor = (boxes[:, :2] * self._grid).long().clamp(0, self._grid - 1)
        places: Tensor = cells[:, 1] * self._grid + cells[:, 0]
        return places

    def train(self, pictures: Pictures, *, seed: int, report: Report) -> None:
        """Train in place."""
        recipe, singles = self.recipe, list_queries()
        optimizer = _make_optimizer(self.model, recipe)
        schedule = make_schedule(optimizer, steps=recipe.steps, warmup=recipe.warmup, down=recipe.down)
        rng = random.Random(seed_for(seed, "batches"))
        self.model.train()
        started = time.process_time()
        for step in range(recipe.steps):
            rows = rng.sample(range(len(pictures)), recipe.batch_size)
            shown = [words for row in rows for words in pictures.words[row]]
            combined = [combine_words(words, rng) for words in rng.choices(shown, k=recipe.combined)]
            focal, box = self.compute_loss(pictures, rows, [*singles, *combined])
            optimizer.zero_grad()
            (focal + box).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            if (step + 1) % 250 == 0 or step + 1 == recipe.steps:
                cost = time.process_time() - started
                report(f"owlvit: step {step + 1}, focal {focal.item():.3f}, boxes {box.item():.3f}, {cost:.0f} CPU-s")
        self.model.eval()

    def _encode(self, queries: Sequence[str]) -> Tensor:
        encoded = self.processor(text=[[phrase_query(query) for query in queries]], return_tensors="pt").to(self.device)
        output = self.model.owlvit.get_text_features(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        features: Tensor = output.pooler_output[None]
        return features


def combine_words(words: Sequence[str], rng: random.Random) -> str:
    """A query of two of an object's words, in their order: "striped circle", "red circle", "striped red"."""
    return " ".join(words[at] for at in sorted(rng.sample(range(len(words)), 2)))


def _fits(query: str, words: Sequence[str]) -> bool:
    return query == NOUN or set(query.split()) <= set(words)


def _make_optimizer(model: nn.Module, recipe: OwlRecipe) -> torch.optim.Optimizer:
    """AdamW; embeddings do not decay, so that words which are never shown keep their rows."""
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or "embedding" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
