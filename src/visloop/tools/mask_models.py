"""The models behind SEG: MaskFormer and Mask2Former with classes of their own, CLIPSeg with any words. Each with its prompt's place."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from torch import Tensor
from torch.nn.functional import interpolate

from visloop.chat.weights import load_arguments
from visloop.config_assistant import SegmentKind, ToolsConfig
from visloop.errors import ConfigError, ModelError
from visloop.tools.mounted import Mounted
from visloop.tools.prompted import attach_keys, attach_memory, start_prompt
from visloop.tools.tunings import choose_tuning
from visloop.tools.values import Box, Mask, Objects, VisualObject

SMALLEST = 4
"""Pixels; a smaller piece of a mask is no object."""


class MaskModel(Protocol):
    """What SEG asks of a model. A prompt is (tokens, width), the same for all pictures of a call."""

    backend: str
    placement: str
    tokens: int
    width: int
    worded: bool
    """Whether the model finds only what it is asked for in words."""

    def segment(self, images: Sequence[Image.Image], words: Sequence[str], prompt: Tensor | None) -> list[Objects]:
        """The objects of every picture. ``words`` are asked for by models without classes; the others ignore them."""
        ...

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        """Features (n, d) that prompts are looked up by."""
        ...

    def knows(self, word: str) -> bool:
        """Whether the model has a class of that name, or takes any word."""
        ...

    def prepare(self, images: Sequence[Image.Image], masks: Sequence[Mask], concept: str) -> Any:
        """What ``lose`` needs of training pictures, each with the mask (h, w) of the concept in it."""
        ...

    def lose(self, prepared: Any, prompt: Tensor, *, seed: int) -> Tensor:
        """The loss of a prompt on prepared pictures."""
        ...


def bound_mask(mask: Mask, *, label: str, score: float) -> VisualObject:
    """The object of a mask (h, w) that has at least one pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = Box(
        left=float(columns[0]),
        top=float(rows[0]),
        right=float(columns[-1] + 1),
        bottom=float(rows[-1] + 1),
        score=score,
        label=label,
    )
    return VisualObject(box=box, mask=mask, label=label, score=score)


def share_pixels(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks of one picture, 0-1."""
    union = int(np.logical_or(first, second).sum())
    return int(np.logical_and(first, second).sum()) / union if union else 0.0


class QueryMasks:
    """MaskFormer and Mask2Former: queries that each give a class and a mask.

    MaskFormer's prompt stands behind the flattened features that its decoder attends to (CLOVA 3.4, SEG); Mask2Former's behind keys
    and values of every cross-attention, for it attends to another scale in every layer.
    """

    worded = False

    def __init__(self, mounted: Mounted, *, config: ToolsConfig) -> None:
        self.mounted, self._kind, self._threshold = mounted, config.segments, config.segmenter.threshold
        model = mounted.model
        self.backend = model.config.model_type
        self.tokens = choose_tuning(config, "SEG").tokens
        if self.backend == "maskformer":
            self.placement, self.width = "decoder_memory", model.config.decoder_config.hidden_size
        else:
            self.placement, self.width = "decoder_keys", model.config.hidden_dim
        self._labels: dict[int, str] = {int(number): name for number, name in model.config.id2label.items()}

    def _attach(self, prompt: Tensor | None) -> Any:
        decoder = self.mounted.model.model.transformer_module.decoder
        if self.backend == "maskformer":
            return attach_memory(decoder, prompt)
        return attach_keys([layer.cross_attn for layer in decoder.layers], prompt)

    def _encode(self, images: Sequence[Image.Image]) -> dict[str, Tensor]:
        encoded = self.mounted.processor(images=list(images), return_tensors="pt")
        return {name: encoded[name].to(self.mounted.device) for name in ("pixel_values", "pixel_mask")}

    @torch.no_grad()
    def segment(self, images: Sequence[Image.Image], words: Sequence[str], prompt: Tensor | None) -> list[Objects]:
        inputs = self._encode(images)
        with self._attach(prompt):
            output = self.mounted.model(**inputs)
        found = []
        for index, image in enumerate(images):
            # A batch is padded to its largest picture; what is read from the padding would move every mask.
            rows, columns = (int(inputs["pixel_mask"][index].amax(dim=axis).sum()) for axis in (1, 0))
            masks = output.masks_queries_logits[index : index + 1]
            if (rows, columns) != tuple(inputs["pixel_values"].shape[-2:]):
                full = interpolate(masks, size=inputs["pixel_values"].shape[-2:], mode="bilinear", align_corners=False)
                masks = full[..., :rows, :columns]
            one = SimpleNamespace(class_queries_logits=output.class_queries_logits[index : index + 1], masks_queries_logits=masks)
            found.append(self._read(one, (image.height, image.width)))
        return found

    def _read(self, output: Any, size: tuple[int, int]) -> Objects:
        processor = self.mounted.processor
        if self._kind is SegmentKind.panoptic:
            (read,) = processor.post_process_panoptic_segmentation(
                output, threshold=self._threshold, target_sizes=[size], label_ids_to_fuse=set()
            )
            maps = {info["id"]: np.asarray(read["segmentation"] == info["id"]) for info in read["segments_info"]}
        else:
            (read,) = processor.post_process_instance_segmentation(
                output, threshold=self._threshold, target_sizes=[size], return_binary_maps=True
            )
            maps = {info["id"]: np.asarray(read["segmentation"][info["id"]] > 0) for info in read["segments_info"]}
        objects = [
            bound_mask(maps[info["id"]], label=self._labels[info["label_id"]], score=float(info["score"]))
            for info in read["segments_info"]
            if maps[info["id"]].sum() >= SMALLEST
        ]
        return tuple(sorted(objects, key=lambda entry: -entry.score))

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        features = self.mounted.model.model(**self._encode(images)).encoder_last_hidden_state
        pooled: Tensor = features.float().mean(dim=(2, 3))
        return pooled

    def knows(self, word: str) -> bool:
        return self._find_class(word) is not None

    def _find_class(self, word: str) -> int | None:
        """The class of a word, or of the last word of a phrase; COCO's merged classes count under their first name."""
        names = {name.lower().split("-")[0].split(",")[0]: number for number, name in reversed(self._labels.items())}
        return names.get(word.lower(), names.get(word.lower().split()[-1]))

    def prepare(self, images: Sequence[Image.Image], masks: Sequence[Mask], concept: str) -> Any:
        inputs = self._encode(images)
        truths = [torch.as_tensor(mask[None], dtype=torch.float32, device=self.mounted.device) for mask in masks]
        known, plain = self._find_class(concept), self.segment(images, (), None)
        numbers = {name: number for number, name in self._labels.items()}
        labels = []
        for index, objects in enumerate(plain):
            # What the plain model finds elsewhere stays a target, so that a prompt does not unlearn it.
            others = [entry for entry in objects if entry.mask is not None and share_pixels(entry.mask, masks[index]) == 0]
            classes = [self._carry(images[index], masks[index]) if known is None else known, *(numbers[entry.label] for entry in others)]
            stacked = [truths[index], *(torch.as_tensor(np.asarray(entry.mask)[None]).to(truths[index]) for entry in others)]
            truths[index] = self._fit_input(torch.cat(stacked), inputs, index)
            labels.append(torch.tensor(classes, device=self.mounted.device))
        return inputs, truths, labels

    def _fit_input(self, masks: Tensor, inputs: dict[str, Tensor], index: int) -> Tensor:
        """Masks (n, h, w) of a picture as the padded input shows them."""
        rows, columns = (int(inputs["pixel_mask"][index].amax(dim=axis).sum()) for axis in (1, 0))
        height, width = inputs["pixel_values"].shape[-2:]
        scaled = interpolate(masks[:, None], size=(rows, columns), mode="nearest")[:, 0]
        return torch.nn.functional.pad(scaled, (0, width - columns, 0, height - rows))

    @torch.no_grad()
    def _carry(self, image: Image.Image, mask: Mask) -> int:
        """For a word that the model has no class for: the class it is readiest to give to what lies in the mask."""
        inputs = self._encode([image])
        output = self.mounted.model(**inputs)
        truth = self._fit_input(torch.as_tensor(mask[None], dtype=torch.float32, device=self.mounted.device), inputs, 0)
        shown = interpolate(output.masks_queries_logits, size=truth.shape[-2:], mode="bilinear", align_corners=False).sigmoid()[0]
        fit = (shown * truth).sum(dim=(1, 2)) / (shown + truth - shown * truth).sum(dim=(1, 2))
        chances = output.class_queries_logits[0, int(fit.argmax()), :-1]
        return int(chances.argmax())

    def lose(self, prepared: Any, prompt: Tensor, *, seed: int) -> Tensor:
        inputs, truths, labels = prepared
        with torch.random.fork_rng(devices=[]), self._attach(prompt):
            torch.manual_seed(seed)  # Mask2Former compares masks at points drawn at random
            loss: Tensor = self.mounted.model(**inputs, mask_labels=truths, class_labels=labels).loss
        return loss.sum()


class TextMasks:
    """CLIPSeg: one mask per picture and word, cut into connected pieces.

    Its prompt (1, d) is added to what the decoder is conditioned with: the encoder lets no gradient through.
    """

    backend, placement, tokens, worded = "clipseg", "condition", 1, True

    def __init__(self, mounted: Mounted, *, config: ToolsConfig) -> None:
        self.mounted, self._threshold, self._categories = mounted, config.segmenter.threshold, tuple(config.categories)
        self.width: int = mounted.model.config.projection_dim

    def segment(self, images: Sequence[Image.Image], words: Sequence[str], prompt: Tensor | None) -> list[Objects]:
        """As the others; a prompt holds for all of ``words``.

        Raises:
            ConfigError: there are no words to look for.
        """
        asked = tuple(dict.fromkeys(words or self._categories))
        if not asked:
            raise ConfigError("clipseg has no classes of its own: tools.categories must list the words that SEG looks for")
        found: list[list[VisualObject]] = [[] for _ in images]
        for word in asked:
            with torch.no_grad():
                heat = self._score(self._pixels(images), word, prompt).sigmoid()
            for index, image in enumerate(images):
                scaled = interpolate(heat[index][None, None], size=(image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
                found[index] += self._cut(scaled.cpu().numpy(), word)
        return [tuple(sorted(objects, key=lambda entry: -entry.score)) for objects in found]

    def _cut(self, heat: Any, word: str) -> list[VisualObject]:
        pieces, count = ndimage.label(heat > self._threshold)
        masks = [pieces == number for number in range(1, count + 1)]
        return [bound_mask(mask, label=word, score=float(heat[mask].mean())) for mask in masks if mask.sum() >= SMALLEST]

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        pixels: Tensor = self.mounted.processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return pixels.to(self.mounted.device)

    def _score(self, pixels: Tensor, word: str, prompt: Tensor | None) -> Tensor:
        tokens = self.mounted.processor.tokenizer([word], truncation=True, return_tensors="pt").to(self.mounted.device)
        with torch.no_grad():
            condition = self.mounted.model.clip.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
        if prompt is not None:
            condition = condition + prompt.to(condition.dtype)
        output = self.mounted.model(pixel_values=pixels, conditional_embeddings=condition.expand(len(pixels), -1))
        logits: Tensor = output.logits.float()
        return logits.reshape(len(pixels), *logits.shape[-2:])

    @torch.no_grad()
    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        pooled: Tensor = self.mounted.model.clip.get_image_features(pixel_values=self._pixels(images)).pooler_output
        return pooled.float()

    def knows(self, word: str) -> bool:
        return True

    def prepare(self, images: Sequence[Image.Image], masks: Sequence[Mask], concept: str) -> Any:
        pixels = self._pixels(images)
        truths = [torch.as_tensor(mask[None, None], dtype=torch.float32, device=self.mounted.device) for mask in masks]
        scaled = torch.cat([interpolate(truth, size=pixels.shape[-2:], mode="nearest")[:, 0] for truth in truths])
        return pixels, scaled, concept

    def lose(self, prepared: Any, prompt: Tensor, *, seed: int) -> Tensor:
        """Binary cross-entropy and dice, equally weighted."""
        pixels, truths, concept = prepared
        logits = self._score(pixels, concept, prompt)
        shown = logits.sigmoid()
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits, truths)
        dice = 1 - (2 * (shown * truths).sum(dim=(1, 2)) + 1) / (shown.sum(dim=(1, 2)) + truths.sum(dim=(1, 2)) + 1)
        loss: Tensor = entropy + dice.mean()
        return loss


def load_mask_model(source: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    """Model and processor of a folder or hub id.

    Raises:
        ModelError: none of the three architectures.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoProcessor,
        CLIPSegForImageSegmentation,
        Mask2FormerForUniversalSegmentation,
        MaskFormerForInstanceSegmentation,
    )

    kinds: dict[str, tuple[Any, Any]] = {
        "maskformer": (MaskFormerForInstanceSegmentation, AutoImageProcessor),
        "mask2former": (Mask2FormerForUniversalSegmentation, AutoImageProcessor),
        "clipseg": (CLIPSegForImageSegmentation, AutoProcessor),
    }
    found = AutoConfig.from_pretrained(**load_arguments(source)).model_type
    if found not in kinds:
        raise ModelError(f"{source} holds a {found}; SEG's model is one of {', '.join(kinds)}")
    model, processor = kinds[found]
    return model.from_pretrained(**load_arguments(source), dtype=dtype), processor.from_pretrained(**load_arguments(source))


def start_mask_prompt(model: MaskModel, *, spread: float, seed: int) -> Tensor:
    """First values of a prompt of this model."""
    return start_prompt(model.tokens, model.width, spread=spread, seed=seed)
