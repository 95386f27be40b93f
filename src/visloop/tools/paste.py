"""REPLACE without a generator: the object is filled in with its surroundings, and what the words say is drawn from exemplars.

What the words leave open stays the object's own, except for the pattern, which is plain. A learned exemplar is REPLACE's prompt in the
paper's sense: it is kept if CLIP takes what is drawn with it for the concept, on pictures that it was not taken from (CLOVA 3.4).
"""

import time
from collections.abc import Mapping, Sequence
from typing import Self

import cv2
import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.linear_model import RidgeClassifier

from visloop.errors import ToolError
from visloop.ids import make_id
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.clip_engine import ClipEngine
from visloop.tools.clip_model import model_folder
from visloop.tools.clip_tools import CHANCE, take_image, take_objects
from visloop.tools.crops import cut_crop
from visloop.tools.exemplars import (
    COLOR,
    KINDS,
    PATTERN,
    SHAPE,
    Exemplar,
    draw_exemplar,
    find_ink,
    load_exemplars,
    make_exemplar,
    place_shape,
)
from visloop.tools.instances import InstanceCrop, read_instances
from visloop.tools.naming import Region, find_group, open_views
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool
from visloop.tools.queries import read_query
from visloop.tools.signatures import SIGNATURES
from visloop.tools.tuning import draw_folds, split_instances
from visloop.tools.tunings import PASTE_OWNER

OWNER = PASTE_OWNER
PLACEMENT = "exemplar"
_FILL_RADIUS, _FILL_RIM = 3, 2
_MOST_RENDERINGS = 24
_RIDGE = 1.0
"""Of the judge: as strong as one crop of unit length."""


class PasteTool:
    """REPLACE on exemplars.

    Args:
        exemplars: the model's own, by ``<kind>.<word>``.
    """

    owner = OWNER
    learns_questions = False

    def __init__(self, engine: ClipEngine, pool: PromptPool, exemplars: Mapping[str, Exemplar]) -> None:
        self.signature = SIGNATURES["REPLACE"]
        self.engine, self.pool, self.exemplars = engine, pool, dict(exemplars)
        self.bank = engine.open_bank(pool)

    def with_pool(self, pool: PromptPool) -> Self:
        """The same model with another snapshot of prompts."""
        return type(self)(self.engine, pool, self.exemplars)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """The words of the prompt that exemplars can be learned for, in order."""
        senses = self.engine.vocabulary.read_words(str(call.arguments.get("prompt") or ""), learned=self._list_learned())
        return tuple(dict.fromkeys(sense.word for sense in senses if sense.word not in self.engine.vocabulary.refused))

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Results in the order of the calls."""
        return [self._run_call(call) for call in calls]

    def _run_call(self, call: ToolCall) -> ToolResult:
        try:
            image, objects, words = take_image(call), take_objects(call), str(call.arguments["prompt"])
            known, missing, used = self._find_exemplars(words)
        except ToolError as error:
            return ToolResult(value=None, error=f"REPLACE: {error}")
        if not objects:
            return ToolResult(value=image, confidence=CHANCE)
        picture, drawn = np.asarray(image.convert("RGB")), []
        for region in self.engine.regions_of(image, objects):
            picture, mask = replace_region(picture, region, known)
            drawn.append(Region(region.box, mask))
        result = Image.fromarray(picture)
        return ToolResult(value=result, confidence=self._judge(result, drawn, words, guessed=bool(missing)), prompts=used)

    def _judge(self, result: Image.Image, drawn: Sequence[Region], words: str, *, guessed: bool) -> float:
        """How sure CLIP is that what was drawn fits the words."""
        (view,) = open_views(self.bank, [(result, drawn)])
        scored = view.score_query(read_query(words, vocabulary=self.engine.vocabulary, learned=self.bank.groups))
        return float(scored.scores.min()) * (CHANCE if guessed or scored.unknown else 1.0)

    def _list_learned(self) -> dict[str, str]:
        return {concept: self.pool.find_prompts(OWNER, concept)[0].entry.group for concept in self.pool.list_concepts(OWNER)}

    def _find_exemplars(self, words: str) -> tuple[dict[str, Exemplar], tuple[str, ...], tuple[str, ...]]:
        """The exemplars by kind, the words without one, and the ids of the learned ones."""
        learned = self._list_learned()
        senses = self.engine.vocabulary.read_words(words, learned={**self.bank.groups, **learned})
        found: dict[str, Exemplar] = {}
        missing, used = [], []
        for sense in senses:
            if sense.word in self.engine.vocabulary.refused:
                raise ToolError(f"prompt {words!r}: {sense.word!r} is a place, not something to draw")
            if sense.word in learned:
                best = max(self.pool.find_prompts(OWNER, sense.word), key=lambda prompt: prompt.entry.validation_accuracy)
                found[learned[sense.word]] = best.prompt
                used.append(best.entry.id)
            elif f"{sense.group}.{sense.word}" in self.exemplars:
                found[str(sense.group)] = self.exemplars[f"{sense.group}.{sense.word}"]
            else:
                missing.append(sense.word)
        return found, tuple(missing), tuple(used)

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Take exemplars from the train instances; keep those with which CLIP takes enough drawings for the concept.

        What is drawn stands on the pictures of the other instances; a drawing counts if its feature is nearer to the mean of the concept's
        validation crops than to the mean of any other word's. Exemplars of other words cannot change.

        Raises:
            DataError: instances are missing or unreadable.
        """
        started, tuning = time.perf_counter(), self.engine.find_tuning(self.signature.name)
        train, validation = split_instances(instances)
        positives = [
            crop
            for crop in read_instances(train, root=self.engine.root, propose=self.engine.propose)
            if crop.instance.positive and crop.region.mask is not None
        ]
        given = next((entry.group for entry in instances if entry.positive and entry.group), "")
        kind = find_group(concept, given, self.engine.vocabulary)
        judge = _DrawingJudge(
            self.engine, kind, concept, read_instances([*validation, *replay], root=self.engine.root, propose=self.engine.propose)
        )
        own = self.exemplars.get(f"{kind}.{concept}")
        before = judge.measure({} if own is None else {kind: own}, concept)
        base = judge.measure_words({name.split(".")[1]: value for name, value in self.exemplars.items() if name.startswith(f"{kind}.")})
        kept: list[LearnedPrompt] = []
        known = before >= tuning.known_at
        learns = bool(positives) and kind in KINDS and not known
        folds = draw_folds(len(positives), prompts=tuning.prompts, seed=seed) if learns else []
        scores = []
        for fold in folds:
            chosen = [positives[index] for index in fold]
            exemplar = make_exemplar(kind, [(np.asarray(crop.picture), crop.region) for crop in chosen])
            score = judge.measure({kind: exemplar}, concept)
            scores.append(score)
            if score >= tuning.min_validation:
                kept.append(self._make_prompt(concept, kind, chosen, exemplar, score=score, base=base, cycle=cycle))
        pool = self.pool.add_prompts(kept, most_per_concept=tuning.max_prompts) if kept else self.pool
        return TuningReport(
            pool=pool,
            kept=tuple(dict.fromkeys(prompt.entry.id for prompt in kept)),
            refused=len(folds) - len(kept),
            reason=f"known already: {before:.2f} of the drawings are right"
            if known
            else _explain(kept, scores, kind, concept, least=tuning.min_validation),
            validation_before=before,
            validation_after=max((prompt.entry.validation_accuracy for prompt in kept), default=before),
            base_before=base,
            base_after=base,
            seconds=time.perf_counter() - started,
        )

    def _make_prompt(
        self, concept: str, kind: str, crops: Sequence[InstanceCrop], exemplar: Exemplar, *, score: float, base: float, cycle: int
    ) -> LearnedPrompt:
        ids = tuple(crop.instance.id for crop in crops)
        features = self.engine.encoder.encode_images([crop.crop for crop in crops])
        entry = PromptEntry(
            id=make_id(OWNER, self.engine.encoder.name, concept, kind, *ids),
            tool=OWNER,
            concept=concept,
            backend=self.engine.encoder.name,
            placement=PLACEMENT,
            instance_ids=ids,
            train_accuracy=1.0,
            validation_accuracy=score,
            base_accuracy=base,
            base_accuracy_before=base,
            cycle=cycle,
            group=kind,
        )
        return LearnedPrompt(entry=entry, feature=F.normalize(features.mean(0), dim=0).numpy(), prompt=exemplar)


def _explain(kept: Sequence[LearnedPrompt], scores: Sequence[float], kind: str, concept: str, *, least: float) -> str:
    if kept:
        return ""
    if kind not in KINDS:
        return f"{concept!r} is no {', '.join(KINDS)}: nothing else can be drawn from exemplars"
    if not scores:
        return "there is no train instance whose region is known"
    return f"no exemplar passed: CLIP takes at most {max(scores):.2f} of the drawings for {concept!r}, at least {least:.2f} are needed"


def replace_region(
    picture: NDArray[np.uint8], region: Region, words: Mapping[str, Exemplar]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The picture with one region replaced, and the mask of what is drawn."""
    height, width = picture.shape[:2]
    mask = region.mask if region.mask is not None else _fill_box(region, picture.shape[:2])
    whole = ndimage.binary_fill_holes(mask)
    color, _ = find_ink(picture[mask].astype(np.float64))
    if COLOR in words:
        color = words[COLOR].reshape(3).astype(np.float64) * 255
    rim = ndimage.binary_dilation(whole, iterations=_FILL_RIM).astype(np.uint8)
    filled = cv2.inpaint(np.ascontiguousarray(picture), rim, _FILL_RADIUS, cv2.INPAINT_TELEA)
    cover = place_shape(words[SHAPE], region.box, size=(width, height)) if SHAPE in words else whole.astype(np.float32)
    return draw_exemplar(np.asarray(filled, np.uint8), region.box, cover=cover, color=color, ink=words.get(PATTERN))


def _fill_box(region: Region, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    mask = np.zeros(shape, np.bool_)
    box = region.box
    mask[int(box.top) : int(np.ceil(box.bottom)), int(box.left) : int(np.ceil(box.right))] = True
    return mask


class _DrawingJudge:
    """Whether CLIP takes drawings for a word: a linear classifier over its features of held-out crops decides. (The nearest mean would
    be led astray by what a few crops share besides the word.)"""

    def __init__(self, engine: ClipEngine, kind: str, concept: str, crops: Sequence[InstanceCrop]) -> None:
        self.engine, self.kind = engine, kind
        features = engine.encoder.encode_images([crop.crop for crop in crops])
        # A replay instance is a positive too, but of its own word.
        own = [crop.instance.positive and crop.instance.concept == concept for crop in crops]
        labels = [concept if shows else self._find_word(crop.instance.label) for crop, shows in zip(crops, own, strict=True)]
        self.words = tuple(sorted({label for label in labels if label}))
        shown = [index for index, label in enumerate(labels) if label]
        self.classifier = RidgeClassifier(alpha=_RIDGE, class_weight="balanced") if len(self.words) > 1 else None
        if self.classifier is not None:
            self.classifier.fit(features[shown].numpy(), [labels[index] for index in shown])
        others = [crop for crop, shows in zip(crops, own, strict=True) if not shows and crop.region.mask is not None]
        self.places = others[:_MOST_RENDERINGS]

    def _find_word(self, label: str) -> str | None:
        senses = self.engine.vocabulary.read_words(label)
        return next((sense.word for sense in senses if sense.group == self.kind), None)

    def measure(self, exemplars: Mapping[str, Exemplar], word: str) -> float:
        """Share of the places at which what is drawn is taken for ``word``."""
        if self.classifier is None or word not in self.words or not self.places:
            return 0.0
        crops = []
        for place in self.places:
            picture, mask = replace_region(np.asarray(place.picture), place.region, exemplars)
            crops.append(cut_crop(picture, place.region.box, mask))
        chosen = self.classifier.predict(self.engine.encoder.encode_images(crops).numpy())
        return float(np.mean(chosen == word))

    def measure_words(self, exemplars: Mapping[str, Exemplar]) -> float:
        """The mean of ``measure`` over known words."""
        found = [self.measure({self.kind: exemplar}, word) for word, exemplar in exemplars.items() if word in self.words]
        return float(np.mean(found)) if found else 1.0


def load_paste_tool(engine: ClipEngine, pool: PromptPool) -> PasteTool:
    """REPLACE with the exemplars that lie beside the CLIP's weights.

    Raises:
        DataError: the exemplars' file is corrupt.
    """
    return PasteTool(engine, pool, load_exemplars(model_folder(engine.config.clip)))
