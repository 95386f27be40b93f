"""Train the embedded CLIP: multi-positive contrastive learning of crops and captions of one to three attributes.

The novel words of the world are in the tokenizer, but in no caption: their embeddings are exactly those of the first draw.
"""

import random
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from visloop.embedded.clip_crops import GROUPS, CropSet
from visloop.embedded.schedule import Report, make_schedule
from visloop.ids import seed_for


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipRecipe:
    """How many crops of each kind, how many steps, and what weighs how much.

    ``group_weight`` weighs the classification of every crop among all words of a group beside the contrastive loss: that is the decision
    that the tools take. ``extra_*`` are the code-named outlines, tiles and colours.
    """

    scene_crops: int = 14_000
    box_crops: int = 5_000
    extra_crops: int = 24_000
    extra_shapes: int = 120
    extra_patterns: int = 48
    extra_colors: int = 20
    steps: int = 4_500
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 60
    down: float = 0.7
    group_weight: float = 0.4
    caption_lengths: tuple[int, ...] = (1, 2, 2, 3)
    largest_scale: float = 100.0
    examined: int = 1_500
    least_accuracy: float = 0.97

    def describe(self) -> tuple[str, ...]:
        """The recipe in lines for the model card."""
        return (
            f"{self.scene_crops:,} crops of base-word scenes, {self.box_crops:,} of NLVR's objects in varied sizes, "
            f"{self.extra_crops:,} with extras: {self.extra_shapes} random outlines, "
            f"{self.extra_patterns} random tiles and {self.extra_colors} colours under code names, "
            "none of them a novel word's",
            "regions are those that the tools propose, cut as the tools cut them; two in five without a mask and with a jittered box",
            f"captions of 1 to 3 attributes, multi-positive InfoNCE + {self.group_weight} x classification within each group",
            f"{self.steps:,} steps of {self.batch_size}, AdamW {self.learning_rate:g}, decay over the last {self.down:.0%} of the steps",
        )


def crops_to_pixels(crops: CropSet) -> Tensor:
    """The pixel values (n, 3, 32, 32) that the processor makes of such crops."""
    return (torch.from_numpy(crops.images).permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25


def train_clip(model: CLIPModel, processor: CLIPProcessor, crops: CropSet, *, recipe: ClipRecipe, seed: int, report: Report) -> None:
    """Train ``model`` in place on one thread of the CPU or on its device."""
    vocabulary = {group: tuple(sorted(set(crops.words[group]))) for group in GROUPS}
    labels = torch.tensor([[vocabulary[group].index(word) for word in crops.words[group]] for group in GROUPS]).T
    pixels = crops_to_pixels(crops)
    names = [word for group in GROUPS for word in vocabulary[group]]
    ends = torch.tensor([len(vocabulary[group]) for group in GROUPS]).cumsum(0).tolist()
    starts = [0, *ends[:-1]]
    singles = _tokenize(processor, names)
    optimizer = _make_optimizer(model, recipe)
    schedule = make_schedule(optimizer, steps=recipe.steps, warmup=recipe.warmup, down=recipe.down)
    draw, rng = torch.Generator().manual_seed(seed_for(seed, "batches") % 2**63), random.Random(seed_for(seed, "captions"))
    model.train()
    started = time.process_time()
    for step in range(recipe.steps):
        rows = torch.randint(len(crops), (recipe.batch_size,), generator=draw)
        chosen = labels[rows]
        said = [sorted(rng.sample(range(len(GROUPS)), rng.choice(recipe.caption_lengths))) for _ in range(len(rows))]
        captions = [" ".join(vocabulary[GROUPS[place]][int(chosen[row, place])] for place in places) for row, places in enumerate(said)]
        images = F.normalize(model.get_image_features(pixels[rows]).pooler_output, dim=-1)
        texts = F.normalize(model.get_text_features(**_tokenize(processor, captions)).pooler_output, dim=-1)
        words = F.normalize(model.get_text_features(**singles).pooler_output, dim=-1)
        scale = model.logit_scale.exp().clamp(max=recipe.largest_scale)
        contrast = _contrast(scale * images @ texts.T, _match_captions(chosen, said))
        logits = scale * images @ words.T
        parts = [F.cross_entropy(logits[:, starts[place] : ends[place]], chosen[:, place]) for place in range(len(GROUPS))]
        groups = torch.stack(parts).sum()
        loss = contrast + recipe.group_weight * groups
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            report(f"clip: step {step + 1}, loss {contrast.item():.3f} + {groups.item():.3f}, {time.process_time() - started:.0f} CPU-s")
    model.eval()


def _make_optimizer(model: CLIPModel, recipe: ClipRecipe) -> torch.optim.Optimizer:
    """AdamW; embeddings do not decay, so that a word in no caption keeps its first row."""
    decayed: list[Tensor] = []
    kept: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (kept if parameter.ndim < 2 or "embedding" in name else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))


def _tokenize(processor: CLIPProcessor, texts: list[str]) -> dict[str, Tensor]:
    encoded = processor.tokenizer(texts, padding=True, return_tensors="pt")
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


def _match_captions(chosen: Tensor, said: list[list[int]]) -> Tensor:
    """(crops, captions): 1 where every attribute that the caption names is the crop's."""
    named = torch.zeros(chosen.shape, dtype=torch.bool)
    for row, places in enumerate(said):
        named[row, places] = True
    return ((chosen[:, None] == chosen[None]) | ~named[None]).all(-1).float()


def _contrast(logits: Tensor, matches: Tensor) -> Tensor:
    """Symmetric InfoNCE with several right captions per crop and crops per caption."""
    rows = -(F.log_softmax(logits, 1) * matches).sum(1) / matches.sum(1)
    columns = -(F.log_softmax(logits, 0) * matches).sum(0) / matches.sum(0)
    return (rows.mean() + columns.mean()) / 2
