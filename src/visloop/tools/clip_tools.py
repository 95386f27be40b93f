"""LOC, SEG, SELECT, FILTER and CLASSIFY on proposed regions that a CLIP names word by word (CLOVA 3.2, 3.4)."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from PIL import Image

from visloop.config_assistant import ToolsConfig
from visloop.errors import ToolError
from visloop.records.assistant import Instance
from visloop.tools.base import Tool, ToolCall, ToolResult, TuningReport
from visloop.tools.clip_engine import OWNER, ClipEngine, load_engine
from visloop.tools.naming import Region, Scored, Scores, View, open_views
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.queries import Query, read_query
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Box, Boxes, Objects, VisualObject, overlap_ratio

HALVES = {"LEFT": (0.0, 0.0, 0.5, 1.0), "RIGHT": (0.5, 0.0, 1.0, 1.0), "TOP": (0.0, 0.0, 1.0, 0.5), "BOTTOM": (0.0, 0.5, 1.0, 1.0)}
"""Boxes of the words that LOC answers without looking, as shares of the picture's width and height."""
CHANCE = 0.5
"""Confidence is multiplied by it where a word is unknown: whether it fits is a guess."""


class ClipTool(ABC):
    """What the tools have in common. A subclass says which regions a call is about, and answers from the view of them."""

    owner = OWNER
    learns_questions = False

    def __init__(self, name: str, engine: ClipEngine, pool: PromptPool) -> None:
        self.signature = SIGNATURES[name]
        self.engine, self.pool = engine, pool
        self.bank = engine.open_bank(pool, tool=name)
        self.threshold = engine.config.clip.threshold

    def with_pool(self, pool: PromptPool) -> Self:
        """The same model with another snapshot of prompts."""
        return type(self)(self.signature.name, self.engine, pool)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Results in the order of the calls; all crops of all calls are encoded together."""
        results: list[ToolResult | None] = []
        pictures: dict[int, tuple[Image.Image, Sequence[Region]]] = {}
        for index, call in enumerate(calls):
            try:
                results.append(self.answer_at_once(call))
                if results[index] is None:
                    pictures[index] = (take_image(call), self.list_regions(call))
            except ToolError as error:
                results[index:] = [self._fail(error)]
        for index, view in zip(pictures, open_views(self.bank, list(pictures.values())), strict=True):
            try:
                results[index] = self.answer(calls[index], view)
            except ToolError as error:
                results[index] = self._fail(error)
        return [result for result in results if result is not None]

    def _fail(self, error: ToolError) -> ToolResult:
        return ToolResult(value=None, error=f"{self.signature.name}: {error}")

    def answer_at_once(self, call: ToolCall) -> ToolResult | None:
        """An answer that needs no look at the picture, or None."""
        return None

    def list_regions(self, call: ToolCall) -> Sequence[Region]:
        """The regions that a call is about."""
        return self.engine.propose(take_image(call))

    @abstractmethod
    def answer(self, call: ToolCall, view: View) -> ToolResult:
        """The result of one call.

        Raises:
            ToolError: the call's words are not understood.
        """

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """The words of the call's concept argument that prompts can be learned for, in order."""
        return self.find_concepts(str(call.arguments.get(self.signature.concept or "") or ""))

    def find_concepts(self, text: str) -> tuple[str, ...]:
        """The words of a text that prompts can be learned for."""
        vocabulary = self.engine.vocabulary
        senses = vocabulary.read_words(text.replace(",", " "), learned=self.bank.groups)
        grammar = vocabulary.refused | vocabulary.sizes.keys() | vocabulary.superlatives.keys()
        return tuple(dict.fromkeys(sense.word for sense in senses if sense.word not in grammar))

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Learn prompts for a word; see ``ClipEngine.tune_word``."""
        return self.engine.tune_word(
            concept,
            pool=self.pool,
            instances=instances,
            replay=replay,
            group=self.guess_group(instances),
            seed=seed,
            cycle=cycle,
            tool=self.signature.name,
        )

    def guess_group(self, instances: Sequence[Instance]) -> str:
        """The concept's group where no instance names one; empty text if nothing tells."""
        return ""

    def read(self, text: str) -> Query:
        """A query in the vocabulary's words."""
        return read_query(text, vocabulary=self.engine.vocabulary, learned=self.bank.groups)

    def trust(self, confidence: float, scored: Iterable[Scored]) -> float:
        """A confidence, lowered where a query has words that nobody taught."""
        return confidence * (CHANCE if any(item.unknown for item in scored) else 1.0)


def take_image(call: ToolCall) -> Image.Image:
    """The call's picture."""
    image = call.arguments["image"]
    if not isinstance(image, Image.Image):
        raise ToolError(f"argument image must be a picture, got {type(image).__name__}")
    return image


def take_objects(call: ToolCall) -> Objects:
    """The call's objects; boxes become objects without masks."""
    values = call.arguments["object"]
    if not isinstance(values, tuple):
        raise ToolError(f"argument object must be boxes or objects, got {type(values).__name__}")
    return tuple(_take_object(value) for value in values)


def _take_object(value: Box | VisualObject | str) -> VisualObject:
    if isinstance(value, str):
        raise ToolError(f"argument object must be boxes or objects, got the text {value!r}")
    return value if isinstance(value, VisualObject) else VisualObject(box=value, label=value.label)


def measure_certainty(scores: Scores) -> float:
    """The probability of the least certain of several yes-or-no decisions; of none, a guess."""
    return float(np.maximum(scores, 1 - scores).min()) if len(scores) else CHANCE


def suppress_overlaps(boxes: Sequence[Box], *, overlap: float) -> Boxes:
    """Boxes by falling score, without those that overlap a better one by ``overlap`` (intersection over union) or more."""
    kept: list[Box] = []
    for box in sorted(boxes, key=lambda box: -box.score):
        if all(overlap_ratio(box, other) < overlap for other in kept):
            kept.append(box)
    return tuple(kept)


class LocTool(ClipTool):
    """Boxes of what fits the words."""

    def answer_at_once(self, call: ToolCall) -> ToolResult | None:
        half = HALVES.get(str(call.arguments["object"]))
        if half is None:
            return None
        width, height = take_image(call).size
        left, top, right, bottom = half
        box = Box(left=left * width, top=top * height, right=right * width, bottom=bottom * height, label=str(call.arguments["object"]))
        return ToolResult(value=(box,), confidence=1.0)

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        text = str(call.arguments["object"])
        scored = view.score_query(self.read(text))
        boxes = [
            Box(left=left, top=top, right=right, bottom=bottom, score=float(score), label=text)
            for (left, top, right, bottom), score in zip((region.box.corners for region in view.regions), scored.scores, strict=True)
            if score >= self.threshold
        ]
        value = suppress_overlaps(boxes, overlap=self.engine.config.clip.overlap)
        return ToolResult(value=value, confidence=self.trust(measure_certainty(scored.scores), [scored]), prompts=scored.prompts)


class SegTool(ClipTool):
    """Every region with its mask, named by the likeliest word of every group."""

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        return ()

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        labels: list[list[str]] = [[] for _ in view.regions]
        scores = np.ones(len(view))
        for group in self.engine.vocabulary.groups:
            words, probabilities = view.name_group(group)
            for index, best in enumerate(probabilities.argmax(axis=1)):
                labels[index].append(words[best])
                scores[index] *= probabilities[index, best]
        unsaid = self.engine.vocabulary.unsaid
        objects = tuple(
            VisualObject(box=region.box, mask=region.mask, label=" ".join(word for word in label if word not in unsaid), score=float(score))
            for region, label, score in zip(view.regions, labels, scores, strict=True)
        )
        used = view.list_prompts(dict.fromkeys(word for label in labels for word in label))
        return ToolResult(value=objects, confidence=float(scores.min()) if len(scores) else CHANCE, prompts=used)


class _ObjectTool(ClipTool):
    """A tool over given objects."""

    def list_regions(self, call: ToolCall) -> Sequence[Region]:
        return self.engine.regions_of(take_image(call), take_objects(call))


class SelectTool(_ObjectTool):
    """For each of the queries the objects that fit, or else the one that fits best."""

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        objects = take_objects(call)
        if not objects:
            return ToolResult(value=(), confidence=CHANCE)
        queries = [part.strip() for part in str(call.arguments["query"]).split(",") if part.strip()]
        category = call.arguments.get("category")
        kind = view.score_query(self.read(str(category))) if category else None
        chosen: dict[int, VisualObject] = {}
        asked, best = [], 1.0
        for text in queries:
            scored = view.score_query(self.read(text))
            scores = scored.scores if kind is None else scored.scores * kind.scores
            fitting = np.flatnonzero(scores >= self.threshold)
            for index in fitting.tolist() if len(fitting) else [int(scores.argmax())]:
                chosen.setdefault(index, _relabel(objects[index], text, float(scores[index])))
            asked.append(scored)
            best = min(best, float(scores.max()))
        used = tuple(dict.fromkeys(prompt for scored in [*asked, *([kind] if kind else [])] for prompt in scored.prompts))
        return ToolResult(value=tuple(chosen[index] for index in sorted(chosen)), confidence=self.trust(best, asked), prompts=used)


class FilterTool(_ObjectTool):
    """All of the objects that fit, also none. Labels stay as they are."""

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        scored = view.score_query(self.read(str(call.arguments["query"])))
        kept = tuple(item for item, score in zip(take_objects(call), scored.scores, strict=True) if score >= self.threshold)
        return ToolResult(value=kept, confidence=self.trust(measure_certainty(scored.scores), [scored]), prompts=scored.prompts)


class ClassifyTool(_ObjectTool):
    """One category: the object that fits it best. Several: the best category of every object, then the best object of every category."""

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        return tuple(dict.fromkeys(word for category in _take_categories(call) for word in self.find_concepts(category)))

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        objects, categories = take_objects(call), _take_categories(call)
        if not categories:
            raise ToolError("argument categories is empty; give at least one name")
        if not objects:
            return ToolResult(value=(), confidence=CHANCE)
        scored = [view.score_query(self.read(category), rivals=categories) for category in categories]
        table = np.stack([item.scores for item in scored])
        winners = table.argmax(axis=0)
        tagged: dict[int, VisualObject] = {}
        for place, category in enumerate(categories):
            own = np.flatnonzero(winners == place)
            if len(own):
                index = int(own[table[place, own].argmax()])
                tagged[index] = _relabel(objects[index], category, float(table[place, index]))
        value = tuple(tagged[index] for index in sorted(tagged))
        used = tuple(dict.fromkeys(prompt for item in scored for prompt in item.prompts))
        return ToolResult(value=value, confidence=self.trust(min(item.score for item in value), scored), prompts=used)


def _relabel(item: VisualObject, label: str, score: float) -> VisualObject:
    return VisualObject(box=item.box, mask=item.mask, label=label, score=score)


def _take_categories(call: ToolCall) -> tuple[str, ...]:
    given = call.arguments["categories"]
    names = given.split(",") if isinstance(given, str) else [str(name) for name in given] if isinstance(given, tuple) else []
    return tuple(dict.fromkeys(name.strip() for name in names if name.strip()))


def make_clip_tools(config: ToolsConfig, pool: PromptPool, *, root: Path = Path()) -> dict[str, Tool]:
    """All tools that one CLIP carries, by name, sharing the loaded model.

    Args:
        root: the data folder that the paths of instances start from, for tuning.

    Raises:
        ModelError, DataError: the model, its vocabulary or its exemplars cannot be loaded.
    """
    from visloop.tools.clip_questions import VqaTool
    from visloop.tools.paste import load_paste_tool

    engine = load_engine(config, root=root)
    kinds: dict[str, type[ClipTool]] = {
        "LOC": LocTool, "SEG": SegTool, "SELECT": SelectTool, "FILTER": FilterTool, "CLASSIFY": ClassifyTool, "VQA": VqaTool,
    }  # fmt: skip
    return {name: kind(name, engine, pool) for name, kind in kinds.items()} | {"REPLACE": load_paste_tool(engine, pool)}
