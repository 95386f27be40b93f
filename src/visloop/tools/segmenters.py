"""SEG by a segmentation model, with prompts learned for concepts that it misses (CLOVA 3.4)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visloop.config_assistant import RegionBackend, ToolsConfig
from visloop.errors import ConfigError, ModelError, VisloopError
from visloop.records.assistant import Instance
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.mask_models import MaskModel, QueryMasks, TextMasks, load_mask_model, share_pixels, start_mask_prompt
from visloop.tools.mounted import Mounted, mount_model, open_picture, split_batches
from visloop.tools.prompt_pool import Floats, LearnedPrompt, PromptPool
from visloop.tools.prompted import mix_prompts, optimize_prompt, to_numpy
from visloop.tools.signatures import SIGNATURES
from visloop.tools.tunings import choose_tuning
from visloop.tools.validated_tuning import Learned, Pictures, find_asked, split_concepts, tune_prompts
from visloop.tools.values import Mask, Objects, VisualObject

_KINDS: Final = {RegionBackend.maskformer: ("maskformer", "mask2former"), RegionBackend.clipseg: ("clipseg",)}


def make_segmenter(config: ToolsConfig, pool: PromptPool, *, root: Path = Path()) -> "Segmenter":
    """SEG with the model of ``config.segmenter``.

    Args:
        root: the data folder that paths of instances start from.

    Raises:
        ConfigError: ``config.seg`` is another backend.
        ModelError: the model is not of the backend's kind.
    """
    if config.seg not in _KINDS:
        raise ConfigError(f"tools.seg is {config.seg.value}; this segmenter is one of {', '.join(kind.value for kind in _KINDS)}")
    mounted = mount_model(config.segmenter, load_mask_model, kind="segmentation model")
    found = mounted.model.config.model_type
    if found not in _KINDS[config.seg]:
        raise ModelError(f"{config.segmenter.model} holds a {found}; tools.seg={config.seg.value} needs {' or '.join(_KINDS[config.seg])}")
    model: MaskModel = TextMasks(mounted, config=config) if found == "clipseg" else QueryMasks(mounted, config=config)
    return Segmenter(mounted, model, config=config, pool=pool, root=root)


class Segmenter:
    """SEG. Without learned prompts for what is asked, the objects are the plain model's.

    With prompts the picture is segmented once more per concept. Objects of that pass that the plain one does not have are added with
    the concept as their label; where the model has a class of that name, they also replace the plain ones that they cover.
    """

    signature = SIGNATURES["SEG"]
    owner = "SEG"
    learns_questions = False

    def __init__(self, mounted: Mounted, model: MaskModel, *, config: ToolsConfig, pool: PromptPool, root: Path = Path()) -> None:
        self.mounted, self.config, self.pool, self.root = mounted, config, pool, root
        self.backend, self.placement, self.model_name = model.backend, model.placement, mounted.name
        self._model, self._tuning = model, choose_tuning(config, self.owner)

    def with_pool(self, pool: PromptPool) -> "Segmenter":
        """The same segmenter with other prompts."""
        return Segmenter(self.mounted, self._model, config=self.config, pool=pool, root=self.root)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """Words of what later steps ask for."""
        return tuple(dict.fromkeys(concept for phrase in _list_phrases(call) for concept in split_concepts(phrase)))

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """The objects of every call's picture, best first."""
        results: dict[int, ToolResult] = {}
        asked: dict[int, tuple[Image.Image, tuple[str, ...]]] = {}
        for index, call in enumerate(calls):
            image = call.arguments.get("image")
            if isinstance(image, Image.Image):
                asked[index] = (image.convert("RGB"), _list_phrases(call))
            else:
                results[index] = ToolResult(value=None, error=f"SEG needs a picture; got {image!r}")
        # Pictures of one size share a batch: padding would change what the model sees of the smaller ones.
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, (image, _) in asked.items():
            sizes.setdefault(image.size, []).append(index)
        for group in sizes.values():
            for batch in split_batches(len(group), self.config.segmenter.batch_size):
                chosen = [group[at] for at in batch]
                with self.mounted.lock:
                    results |= zip(chosen, self._segment([asked[index] for index in chosen]), strict=True)
        return [results[index] for index in range(len(calls))]

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn prompts for one concept; see ``LearnableTool``. Instances have masks (a picture that is white there), or else boxes."""
        with self.mounted.lock:
            return tune_prompts(
                self, concept, pool=self.pool, instances=instances, replay=replay, tuning=self._tuning, seed=seed, cycle=cycle
            )

    def _segment(self, asked: Sequence[tuple[Image.Image, tuple[str, ...]]]) -> list[ToolResult]:
        try:
            if self._model.worded:
                results = [self._model.segment([image], phrases, None)[0] for image, phrases in asked]
            else:
                results = self._model.segment([image for image, _ in asked], (), None)
        except VisloopError as error:
            return [ToolResult(value=None, error=str(error)) for _ in asked]
        found = []
        for (image, phrases), plain in zip(asked, results, strict=True):
            objects = plain
            used: list[str] = []
            for phrase in phrases:
                if prompts := find_asked(self.pool, self.owner, phrase):
                    prompt, ids = self._blend(image, prompts)
                    objects = self._join(objects, self._model.segment([image], (phrase,), prompt)[0], phrase)
                    used += ids
            confidence = sum(entry.score for entry in objects) / len(objects) if objects else None
            found.append(ToolResult(value=objects, confidence=confidence, prompts=tuple(used)))
        return found

    def _join(self, plain: Objects, prompted: Objects, phrase: str) -> Objects:
        named = [entry for entry in prompted if self._is_named(entry, phrase)]
        kept = [entry for entry in plain if not (self._model.worded and entry.label == phrase)]
        added: list[VisualObject] = []
        for entry in named:
            twins = [other for other in kept if _cover(other, entry) > self.config.segmenter.overlap]
            if twins and not self._model.knows(phrase):
                continue
            kept = [other for other in kept if not any(other is twin for twin in twins)]
            added.append(VisualObject(box=entry.box, mask=entry.mask, label=phrase, score=entry.score))
        return tuple(sorted([*kept, *added], key=lambda entry: -entry.score))

    def _is_named(self, entry: VisualObject, phrase: str) -> bool:
        """Whether an object of the prompted pass may be the concept: any, unless the model has a class for it."""
        if not self._model.knows(phrase):
            return True
        return entry.label.lower().split("-")[0].split(",")[0] in {phrase.lower(), phrase.lower().split()[-1]}

    def _blend(self, image: Image.Image, prompts: Sequence[LearnedPrompt]) -> tuple[Tensor, tuple[str, ...]]:
        weights, chosen = weigh_inner(to_numpy(self._model.encode([image])[0]), prompts, most=self._tuning.ensemble)
        return mix_prompts(chosen, weights, device=self.mounted.device)

    # What the tuning asks for.

    def learn(self, concept: str, *, pictures: Pictures, negatives: Sequence[Instance], seed: int) -> Learned:
        """One prompt from the masks of some pictures."""
        images = [open_picture(self.root, picture[0].image) for picture in pictures]
        masks = [
            np.logical_or.reduce([self._open_mask(item, image) for item in picture])
            for picture, image in zip(pictures, images, strict=True)
        ]
        size = min(max(1, self._tuning.batch_size), len(images))
        batches = [
            self._model.prepare([images[index] for index in batch], [masks[index] for index in batch], concept)
            for batch in split_batches(len(images), size)
        ]

        def accuracy(prompt: Tensor) -> float:
            right = []
            for image, mask in zip(images, masks, strict=True):
                found = self._model.segment([image], (concept,), prompt)[0]
                covers = [share_pixels(entry.mask, mask) for entry in found if entry.mask is not None and self._is_named(entry, concept)]
                right.append(max(covers, default=0.0) >= self._tuning.min_overlap)
            return sum(right) / len(right)

        first = start_mask_prompt(self._model, spread=self._tuning.init_std, seed=seed).to(self.mounted.device)
        tuned = optimize_prompt(
            first,
            lambda prompt, step: self._model.lose(batches[step % len(batches)], prompt, seed=seed % 2**63),
            tuning=self._tuning,
            optimizer=torch.optim.AdamW,
            fits=lambda prompt: accuracy(prompt) == 1.0,
        )
        feature = to_numpy(torch.cat([self._model.encode([image]) for image in images]).mean(dim=0))
        return Learned(prompt=to_numpy(tuned.prompt), feature=feature, train_accuracy=accuracy(tuned.prompt))

    def measure(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of instances whose mask an object of that name covers."""
        return _mean([self._covers(concept, objects, item) for objects, item in self._ask(concept, instances, pool)])

    def measure_base(self, concept: str, instances: Sequence[Instance], *, pool: PromptPool) -> float:
        """Share of instances that, with the concept asked for, still have an object in their place that is not called by its name."""
        asked = self._ask(concept, instances, pool)
        return _mean([not self._covers(concept, objects, item) and self._covers(None, objects, item) for objects, item in asked])

    def _ask(self, concept: str, instances: Sequence[Instance], pool: PromptPool) -> list[tuple[Objects, Instance]]:
        tool = self.with_pool(pool)
        pictures = {item.image: open_picture(self.root, item.image) for item in instances}
        calls = [ToolCall(tool="SEG", arguments={"image": picture}, concepts=(concept,)) for picture in pictures.values()]
        found = dict(zip(pictures, tool.run(calls), strict=True))
        objects = {
            image: tuple(entry for entry in (result.value or ()) if isinstance(entry, VisualObject))  # type: ignore[union-attr]
            for image, result in found.items()
        }
        return [(objects[item.image], item) for item in instances]

    def _covers(self, name: str | None, objects: Objects, item: Instance) -> bool:
        named = [
            entry for entry in objects if name is None or (self._is_named(entry, name) if self._model.knows(name) else entry.label == name)
        ]
        if not named:
            return False
        size = named[0].mask.shape if named[0].mask is not None else (0, 0)
        mask = self._open_mask(item, Image.new("RGB", (size[1], size[0])))
        return any(entry.mask is not None and share_pixels(entry.mask, mask) >= self._tuning.min_overlap for entry in named)

    def _open_mask(self, item: Instance, image: Image.Image) -> Mask:
        if item.mask is not None:
            opened = open_picture(self.root, item.mask).convert("L").resize(image.size, Image.Resampling.NEAREST)
            return np.asarray(opened) > 127
        mask = np.zeros((image.height, image.width), dtype=np.bool_)
        left, top, right, bottom = (round(value) for value in item.box or (0, 0, *image.size))
        mask[top:bottom, left:right] = True
        return mask


def weigh_inner(feature: Floats, prompts: Sequence[LearnedPrompt], *, most: int) -> tuple[Floats, list[LearnedPrompt]]:
    """CLOVA's ensemble for SEG: softmax weights over the inner products of the ``most`` largest, with their prompts."""
    products = np.stack([prompt.feature for prompt in prompts]).astype(np.float64) @ feature
    best = np.argsort(-products, kind="stable")[:most]
    weights = np.exp(products[best] - products[best[0]])
    shares: Floats = (weights / weights.sum()).astype(np.float32)
    return shares, [prompts[index] for index in best]


def _list_phrases(call: ToolCall) -> tuple[str, ...]:
    """Single queries: SELECT takes several, separated by commas."""
    phrases = [phrase.strip().lower() for words in call.concepts for phrase in words.split(",")]
    return tuple(dict.fromkeys(phrase for phrase in phrases if phrase))


def _cover(first: VisualObject, second: VisualObject) -> float:
    return share_pixels(first.mask, second.mask) if first.mask is not None and second.mask is not None else 0.0


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
