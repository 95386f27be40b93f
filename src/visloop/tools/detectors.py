"""LOC by an open-vocabulary detector, OWL-ViT or OWLv2, with learned visual prompts (CLOVA 3.4)."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visloop.chat.weights import load_arguments
from visloop.config_assistant import RegionBackend, ToolsConfig
from visloop.errors import ConfigError, ModelError
from visloop.records.assistant import Instance
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.detection_loss import match_picture
from visloop.tools.mounted import Mounted, mount_model, open_picture, split_batches
from visloop.tools.prompt_pool import Floats, LearnedPrompt, PromptPool
from visloop.tools.prompted import attach_tokens, mix_prompts, optimize_prompt, start_prompt, to_numpy
from visloop.tools.signatures import SIGNATURES
from visloop.tools.tunings import choose_tuning
from visloop.tools.validated_tuning import Learned, Pictures, find_asked, split_concepts, tune_prompts
from visloop.tools.values import Box, Boxes, overlap_ratio

HALVES: Final[Mapping[str, tuple[float, float, float, float]]] = {
    "TOP": (0.0, 0.0, 1.0, 0.5),
    "BOTTOM": (0.0, 0.5, 1.0, 1.0),
    "LEFT": (0.0, 0.0, 0.5, 1.0),
    "RIGHT": (0.5, 0.0, 1.0, 1.0),
}
"""What LOC answers without a model, as shares of the picture."""
_DISTANCE_SCALE: Final = 5.0
"""By which CLOVA's code divides the distance of two pictures' features before the softmax."""


def make_detector(config: ToolsConfig, pool: PromptPool, *, root: Path = Path()) -> "Detector":
    """LOC with the detector of ``config.detector``.

    Args:
        root: the data folder that paths of instances start from.

    Raises:
        ConfigError: ``config.loc`` is another backend.
        ModelError: not an OWL-ViT or OWLv2.
    """
    if config.loc is not RegionBackend.owlvit:
        raise ConfigError(f"tools.loc is {config.loc.value}; this detector is the backend owlvit")
    return Detector(mount_model(config.detector, _load_detector, kind="OWL-ViT or OWLv2"), config=config, pool=pool, root=root)


def _load_detector(source: str, dtype: torch.dtype | str) -> tuple[Any, Any]:
    from transformers import AutoConfig, AutoProcessor, Owlv2ForObjectDetection, OwlViTForObjectDetection

    kinds: dict[str, Any] = {"owlvit": OwlViTForObjectDetection, "owlv2": Owlv2ForObjectDetection}
    found = AutoConfig.from_pretrained(**load_arguments(source)).model_type
    if found not in kinds:
        raise ModelError(f"{source} holds a {found}; LOC's detector is one of {', '.join(kinds)}")
    processor: Any = AutoProcessor.from_pretrained(**load_arguments(source))  # type: ignore[no-untyped-call]
    return kinds[found].from_pretrained(**load_arguments(source), dtype=dtype), processor


def phrase_query(name: str) -> str:
    """The text that a detector is asked for."""
    return f"a photo of a {name}"


def list_boxes(result: ToolResult) -> Boxes:
    """The boxes of a result; none where it is an error."""
    return tuple(entry for entry in result.value if isinstance(entry, Box)) if isinstance(result.value, tuple) else ()


def suppress_overlaps(boxes: Sequence[Box], *, overlap: float) -> Boxes:
    """Boxes from the best downwards, without those that share more than ``overlap`` (IoU) with a better one."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(overlap_ratio(box, other) <= overlap for other in kept):
            kept.append(box)
    return tuple(kept)


class Detector:
    """LOC. As in CLOVA, prompts are asked only where the plain model finds nothing: base detections never change.

    Prompts (tokens, hidden) stand behind the patches in the first vision layer and are dropped before the heads. A text's prompts are
    those of the whole phrase, or else of its words.
    """

    signature = SIGNATURES["LOC"]
    owner = "LOC"
    learns_questions = False
    backend = "owlvit"
    placement = "visual_tokens"

    def __init__(self, mounted: Mounted, *, config: ToolsConfig, pool: PromptPool, root: Path = Path()) -> None:
        self.mounted, self.config, self.pool, self.root = mounted, config, pool, root
        self.model_name = mounted.name
        self._tuning = choose_tuning(config, self.owner)
        model = mounted.model
        self._square = model.config.model_type == "owlv2"  # it pads pictures to a square; OWL-ViT stretches them
        self._base = getattr(model, model.config.model_type)

    def with_pool(self, pool: PromptPool) -> "Detector":
        """The same detector with other prompts."""
        return Detector(self.mounted, config=self.config, pool=pool, root=self.root)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """Words of the object's name, then the name."""
        name = call.arguments.get("object")
        return split_concepts(name) if isinstance(name, str) and name not in HALVES else ()

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Boxes (pixels, best first) of every call; ``confidence`` is the best score."""
        results: dict[int, ToolResult] = {}
        asked: dict[int, tuple[Image.Image, str]] = {}
        for index, call in enumerate(calls):
            image, name = call.arguments.get("image"), call.arguments.get("object")
            if not isinstance(image, Image.Image) or not isinstance(name, str) or not name.strip():
                results[index] = ToolResult(value=None, error=f"LOC needs a picture and a name; got {image!r} and {name!r}")
            elif name in HALVES:
                results[index] = ToolResult(value=(_half(image, name),), confidence=1.0)
            else:
                asked[index] = (image.convert("RGB"), name.strip())
        places = list(asked)
        for batch in split_batches(len(places), self.config.detector.batch_size):
            chosen = [places[at] for at in batch]
            with self.mounted.lock:
                results |= zip(chosen, self._detect([asked[index] for index in chosen]), strict=True)
        return [results[index] for index in range(len(calls))]

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn visual prompts for one name; see ``LearnableTool``. Instances have boxes, and labels for what else is there."""
        with self.mounted.lock:
            return tune_prompts(
                self, concept, pool=self.pool, instances=instances, replay=replay, tuning=self._tuning, seed=seed, cycle=cycle
            )

    def _detect(self, asked: Sequence[tuple[Image.Image, str]]) -> list[ToolResult]:
        logits, boxes, features = self._forward([image for image, _ in asked], [name for _, name in asked])
        results = []
        for (image, name), scores, corners, feature in zip(asked, logits, boxes, features, strict=True):
            found = self._collect(image, name, scores, corners)
            used: tuple[str, ...] = ()
            prompts = find_asked(self.pool, self.owner, name)
            if not found and prompts and (blended := self._blend(image, name, prompts, feature)):
                prompt, used = blended
                again = self._forward([image], [name], prompt)
                found = self._collect(image, name, again[0][0], again[1][0])
            confidence = found[0].score if found else None
            results.append(ToolResult(value=found, confidence=confidence, prompts=used))
        return results

    @torch.no_grad()
    def _forward(self, images: Sequence[Image.Image], names: Sequence[str], prompt: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Scores (n, places), boxes (n, places, 4) and class tokens (n, width) of one name per picture."""
        inputs = self._encode(images, [[phrase_query(name)] for name in names])
        with attach_tokens(self._base.vision_model.encoder, prompt):
            output = self.mounted.model(**inputs)
        return torch.sigmoid(output.logits[..., 0].float()), output.pred_boxes.float(), output.vision_model_output.pooler_output.float()

    def _encode(self, images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> dict[str, Tensor]:
        encoded = self.mounted.processor(text=[list(row) for row in texts], images=list(images), truncation=True, return_tensors="pt")
        return {name: value.to(self.mounted.device) for name, value in encoded.items()}

    def _frame(self, image: Image.Image) -> tuple[float, float]:
        """Width and height in pixels of what the model's input shows."""
        side = float(max(image.size))
        return (side, side) if self._square else (float(image.width), float(image.height))

    def _collect(self, image: Image.Image, name: str, scores: Tensor, boxes: Tensor) -> Boxes:
        width, height = self._frame(image)
        found = []
        for place in torch.nonzero(scores > self.config.detector.threshold)[:, 0].tolist():
            x, y, w, h = boxes[place].tolist()
            corners = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            left, top, right, bottom = (
                min(max(value, 0.0), float(limit)) for value, limit in zip(corners, (*image.size, *image.size), strict=True)
            )
            if right > left and bottom > top:
                found.append(Box(left=left, top=top, right=right, bottom=bottom, score=float(scores[place]), label=name))
        return suppress_overlaps(found, overlap=self.config.detector.overlap)

    def _blend(
        self, image: Image.Image, name: str, prompts: Sequence[LearnedPrompt], feature: Tensor
    ) -> tuple[Tensor, tuple[str, ...]] | None:
        """CLOVA's ensemble for LOC: prompts that find something, weighted by how near their pictures are and by how much they find."""
        counts: list[int] = []
        for batch in split_batches(len(prompts), self.config.detector.batch_size):
            stacked = torch.stack([torch.tensor(prompts[index].prompt, device=self.mounted.device) for index in batch])
            scores, _, _ = self._forward([image] * len(batch), [name] * len(batch), stacked)
            counts += (scores >= self.config.detector.threshold).sum(dim=1).tolist()
        finders = [index for index, count in enumerate(counts) if count >= 1]
        if not finders:
            return None
        weights = weigh_finders(to_numpy(feature), [prompts[index].feature for index in finders], [counts[index] for index in finders])
        best = np.argsort(-weights, kind="stable")[: self._tuning.ensemble]
        return mix_prompts([prompts[finders[index]] for index in best], weights[best], device=self.mounted.device)

    # What the tuning asks for.

    def learn(self, concept: str, *, pictures: Pictures, negatives: Sequence[Instance], seed: int) -> Learned:
        """One visual prompt from the boxes of some pictures."""
        items = [item for picture in pictures for item in picture]
        names = self._draw_names(concept, [*items, *negatives], seed=seed)
        images = [open_picture(self.root, picture[0].image) for picture in pictures]
        others: dict[str, list[Instance]] = {}
        for item in negatives:
            others.setdefault(item.image, []).append(item)
        targets = []
        for image, picture in zip(images, pictures, strict=True):
            shown = [item for item in (*picture, *others.get(picture[0].image, ())) if item.box]
            labels = [concept if item.positive else item.label for item in shown]
            rows = [(names.index(label), self._share(image, item)) for label, item in zip(labels, shown, strict=True) if label in names]
            targets.append((self._to_device([row[0] for row in rows], torch.long), self._to_device([row[1] for row in rows])))
        queries = self._encode_names(names)
        pixels = self.mounted.processor.image_processor(images=images, return_tensors="pt")["pixel_values"].to(self.mounted.device)
        size = min(max(1, self._tuning.batch_size), len(images))

        def match(prompt: Tensor, rows: Sequence[int]) -> list[Any]:
            logits, boxes = self._score(pixels[list(rows)], queries, prompt)
            pairs = (targets[row] for row in rows)
            return [
                match_picture(logit, box, names=index, targets=truth, weights=self.config.detection)
                for logit, box, (index, truth) in zip(logits, boxes, pairs, strict=True)
            ]

        def lose(prompt: Tensor, step: int) -> Tensor:
            rows = [(step * size + offset) % len(images) for offset in range(size)]
            return torch.stack([matched.loss for matched in match(prompt, rows)]).mean()

        @torch.no_grad()
        def accuracy(prompt: Tensor) -> float:
            right = []
            for batch in split_batches(len(images), size):
                for matched in match(prompt, batch):
                    scored = bool((matched.scores >= self.config.detector.threshold).all() and matched.right.all())
                    right.append(scored and float(matched.overlaps.mean()) >= self._tuning.min_overlap)
            return sum(right) / len(right)

        width = self.mounted.model.config.vision_config.hidden_size
        first = start_prompt(self._tuning.tokens, width, spread=self._tuning.init_std, seed=seed).to(self.mounted.device)
        tuned = optimize_prompt(first, lose, tuning=self._tuning, optimizer=torch.optim.Adam, fits=lambda prompt: accuracy(prompt) == 1.0)
        _, _, features = self._forward(images, [concept] * len(images))
        return Learned(prompt=to_numpy(tuned.prompt), feature=to_numpy(features.mean(dim=0)), train_accuracy=accuracy(tuned.prompt))

    def measure(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of instances where asking for the concept gives a box on the right place."""
        found = self._ask([(item.image, concept) for item in instances], pool)
        return _mean([_hits(boxes, item, overlap=self._tuning.min_overlap) for boxes, item in zip(found, instances, strict=True)])

    def measure_base(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Two questions per instance: is it found under its own name, and left alone where the concept is asked for?"""
        named = self._ask([(item.image, item.label or item.concept) for item in instances], pool)
        asked = self._ask([(item.image, concept) for item in instances], pool)
        overlap = self._tuning.min_overlap
        own = [_hits(boxes, item, overlap=overlap) for boxes, item in zip(named, instances, strict=True)]
        left = [not _hits(boxes, item, overlap=overlap) for boxes, item in zip(asked, instances, strict=True)]
        return _mean([*own, *left])

    def _ask(self, asked: Sequence[tuple[str, str]], pool: PromptPool) -> list[Boxes]:
        pictures = {name: open_picture(self.root, name) for name, _ in asked}
        calls = [ToolCall(tool="LOC", arguments={"image": pictures[image], "object": name}) for image, name in asked]
        results = self.with_pool(pool).run(calls)
        return [list_boxes(result) for result in results]

    def _draw_names(self, concept: str, items: Sequence[Instance], *, seed: int) -> list[str]:
        """The concept, other names that the instances mention, and the empty text."""
        others = sorted({item.label for item in items if not item.positive and item.label and item.label != concept})
        random.Random(seed).shuffle(others)
        return [concept, *others[: self.config.detection.texts], " "]

    @torch.no_grad()
    def _encode_names(self, names: Sequence[str]) -> Tensor:
        texts = [name if name == " " else phrase_query(name) for name in names]
        encoded = self.mounted.processor(text=[texts], truncation=True, return_tensors="pt").to(self.mounted.device)
        output = self._base.get_text_features(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"])
        queries: Tensor = output.pooler_output[None]
        return queries

    def _score(self, pixels: Tensor, queries: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        model = self.mounted.model
        with attach_tokens(self._base.vision_model.encoder, prompt):
            grid, _ = model.image_embedder(pixel_values=pixels)
        flat = grid.flatten(1, 2)
        logits, _ = model.class_predictor(flat, queries.expand(len(pixels), -1, -1), None)
        return logits.float(), model.box_predictor(flat, grid).float()

    def _share(self, image: Image.Image, item: Instance) -> tuple[float, float, float, float]:
        width, height = self._frame(image)
        left, top, right, bottom = item.box or (0.0, 0.0, *map(float, image.size))
        return (left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height

    def _to_device(self, rows: Sequence[Any], dtype: torch.dtype = torch.float32) -> Tensor:
        shape = (len(rows),) if dtype == torch.long else (len(rows), 4)
        return torch.tensor(rows, dtype=dtype, device=self.mounted.device).reshape(shape)


def weigh_finders(feature: Floats, features: Sequence[Floats], counts: Sequence[int]) -> Floats:
    """Weights (n,) of CLOVA's ensemble for LOC: half a softmax of the negative distances / 5, half the shares of what is found."""
    distances = np.linalg.norm(np.stack(features) - feature, axis=1) / _DISTANCE_SCALE
    near = np.exp(distances.min() - distances)
    weights: Floats = (0.5 * (near / near.sum() + np.asarray(counts) / np.sum(counts))).astype(np.float32)
    return weights


def _half(image: Image.Image, name: str) -> Box:
    left, top, right, bottom = HALVES[name]
    return Box(left=left * image.width, top=top * image.height, right=right * image.width, bottom=bottom * image.height, label=name)


def _hits(boxes: Boxes, item: Instance, *, overlap: float) -> bool:
    if item.box is None:
        return bool(boxes)
    left, top, right, bottom = item.box
    target = Box(left=left, top=top, right=right, bottom=bottom)
    return any(overlap_ratio(box, target) >= overlap for box in boxes)


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
