"""What regions are called: every word competes with the other words of its group, the learned ones among them (CLOVA 3.4).

A learned concept's prompt is the combination of its stored prompts, P = sum_j w_j P_j, with w the softmax of the similarities between
the stored features and that of the crop: the picture that CLIP is given.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from visloop.config_assistant import PromptTuning
from visloop.tools.clip_model import ClipEncoder
from visloop.tools.crops import cut_crop
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool
from visloop.tools.queries import Alternative, Query
from visloop.tools.values import Box, Mask
from visloop.tools.vocabulary import Sense, Vocabulary

Scores = NDArray[np.float64]
Weighted: TypeAlias = tuple[tuple[LearnedPrompt, float], ...]
TextFeatures: TypeAlias = dict[tuple[object, ...], Tensor]
"""Text features (d,) by concept, prompts' content and weights."""
_MOST_FEATURES = 50_000
WEIGHT_STEPS = 16
"""Weights of an ensemble are rounded to this part of one, so that pictures with almost the same weights share their text features."""


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """A box and, where it is known, its mask (height, width) of the whole picture."""

    box: Box
    mask: Mask | None = None

    @property
    def size(self) -> float:
        """Square pixels."""
        return self.box.area if self.mask is None else float(self.mask.sum())


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """How well each region fits a query (n,), 0-1; the ids of the learned prompts of its words; its words that nobody taught."""

    scores: Scores
    prompts: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


class PromptBank:
    """The learned prompts of one owner in a pool, and the text features of their combinations.

    ``features`` are those known of other pools on the same encoder: most prompts of a pool were in the pool before it.
    """

    def __init__(
        self,
        encoder: ClipEncoder,
        vocabulary: Vocabulary,
        *,
        pool: PromptPool,
        owner: str,
        tuning: PromptTuning,
        features: TextFeatures | None = None,
    ) -> None:
        self.encoder, self.vocabulary, self.pool, self.owner, self.tuning = encoder, vocabulary, pool, owner, tuning
        self.features: TextFeatures = {} if features is None else features
        self._digests: dict[int, tuple[LearnedPrompt, bytes]] = {}

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group of every concept that prompts were learned for; empty text where the vocabulary has no such group: such a concept
        competes with every known word."""
        return {
            concept: find_group(concept, self.pool.find_prompts(self.owner, concept)[0].entry.group, self.vocabulary)
            for concept in self.pool.list_concepts(self.owner)
        }

    def encode_for(self, concept: str, features: Tensor) -> Tensor:
        """The text feature (n, d) of a learned concept for each of several crops with ``features`` (n, d)."""
        prompts = self.pool.find_prompts(self.owner, concept)
        return self.encode([(concept, weighted) for weighted in weigh_prompts(prompts, features, tuning=self.tuning)])

    def encode(self, chosen: Sequence[tuple[str, Weighted]]) -> Tensor:
        """Text features (n, d) of concepts with their weighted prompts; equal combinations are computed once."""
        if len(self.features) > _MOST_FEATURES:
            self.features.clear()
        keys: list[tuple[object, ...]] = [
            (concept, *((self._digest(prompt), weight) for prompt, weight in weighted)) for concept, weighted in chosen
        ]
        new = {key: item for key, item in zip(keys, chosen, strict=True) if key not in self.features}
        for key, (concept, weighted) in new.items():
            # One at a time: in a batch the last bits would depend on which combinations the process has met before.
            with torch.no_grad():
                (feature,) = self.encoder.encode_prompted([self.vocabulary.write_text(concept)], combine_prompts(weighted)[None]).cpu()
            self.features[key] = feature
        return torch.stack([self.features[key] for key in keys]) if keys else torch.zeros(0, self.encoder.feature_width)

    def _digest(self, prompt: LearnedPrompt) -> bytes:
        """Of a prompt's values: prompts learned from the same instances against other pools have one id."""
        known = self._digests.get(id(prompt))
        if known is None:  # the prompt is kept with its digest, so that its id is not given again
            known = self._digests[id(prompt)] = prompt, hashlib.blake2b(prompt.prompt.tobytes(), digest_size=16).digest()
        return known[1]


def find_group(concept: str, given: str, vocabulary: Vocabulary) -> str:
    """The vocabulary's group of a concept that is filed under ``given`` elsewhere; empty text if it has none."""
    named = vocabulary.name_group(given)
    return vocabulary.group_of.get(concept) or (named if named in vocabulary.groups else "")


def weigh_prompts(prompts: Sequence[LearnedPrompt], features: Tensor, *, tuning: PromptTuning) -> list[Weighted]:
    """For each crop with a unit feature (n, d) the concept's prompts that are combined, with weights that sum to one.

    With ``tuning.ensemble`` 1 the prompt that validated best is used alone, whatever the crop.
    """
    if tuning.ensemble == 1 or len(prompts) == 1:
        return [((max(prompts, key=lambda prompt: prompt.entry.validation_accuracy), 1.0),)] * len(features)
    fitting = [prompt for prompt in prompts if len(prompt.prompt) == len(prompts[0].prompt)]
    keys = torch.nn.functional.normalize(torch.from_numpy(np.stack([prompt.feature for prompt in fitting])), dim=-1)
    similarities, order = torch.sort(features @ keys.T, dim=1, descending=True, stable=True)
    weights = torch.softmax(similarities[:, : tuning.ensemble] / tuning.temperature, 1).numpy()
    steps = max(WEIGHT_STEPS, 4 * weights.shape[1])
    weights = (weights * steps).round() / steps
    weights = weights / weights.sum(axis=1, keepdims=True)
    return [
        tuple((fitting[index], float(weight)) for index, weight in zip(row, line, strict=False) if weight > 0)
        for row, line in zip(order.tolist(), weights, strict=True)
    ]


def combine_prompts(weighted: Weighted) -> Tensor:
    """P = sum_j w_j P_j (CLOVA 3.4): (tokens, width)."""
    return torch.from_numpy(sum(np.float32(weight) * prompt.prompt for prompt, weight in weighted))


class View:
    """The regions of one picture with their features, ready to be named."""

    def __init__(self, bank: PromptBank, image: Image.Image, regions: Sequence[Region], features: Tensor) -> None:
        self.bank, self.image, self.regions, self.features = bank, image, tuple(regions), features
        self._tables: dict[object, tuple[tuple[str, ...], Scores]] = {}

    def __len__(self) -> int:
        return len(self.regions)

    def name_group(self, group: str) -> tuple[tuple[str, ...], Scores]:
        """The words of a group, learned ones last, and the probability of each for every region (n, words)."""
        if group not in self._tables:
            words = list_words(self.bank, group)
            self._tables[group] = (words, self._softmax(words))
        return self._tables[group]

    def score_word(self, sense: Sense, *, rivals: Sequence[str] = ()) -> Scores:
        """The probability (n,) that a word fits each region. A word without a group has to beat all words, contrasts and ``rivals``."""
        if sense.group:
            words, probabilities = self.name_group(sense.group)
        else:
            words = tuple(dict.fromkeys([*list_all_words(self.bank), *rivals, sense.word]))
            probabilities = self._softmax(words)
        return probabilities[:, words.index(sense.word)]

    def score_query(self, query: Query, *, rivals: Sequence[str] = ()) -> Scored:
        """How well the regions fit a query; a superlative leaves one region."""
        total = np.zeros(len(self))
        for part in query.alternatives:
            total = np.maximum(total, self._score_alternative(part, rivals))
        if query.negated:
            total = 1 - total
        if query.superlative is not None and len(self):
            sign = 1 if query.superlative == "largest" else -1
            best = max(range(len(self)), key=lambda index: (total[index] >= 0.5, sign * self.regions[index].size))
            total = np.where(np.arange(len(self)) == best, total, 0.0)
        senses = query.list_senses()
        unknown = tuple(sense.word for sense in senses if sense.word not in self.bank.groups and sense.group is None)
        return Scored(total, self.list_prompts(sense.word for sense in senses), unknown)

    def list_prompts(self, words: Iterable[str]) -> tuple[str, ...]:
        """The ids of the prompts that stand for these words; all of a word's, as every crop has weights of its own."""
        pool, owner = self.bank.pool, self.bank.owner
        return tuple(prompt.entry.id for word in words for prompt in pool.find_prompts(owner, word))

    def _score_alternative(self, part: Alternative, rivals: Sequence[str]) -> Scores:
        wanted = self._multiply(part.wanted, part.sizes, rivals)
        if part.unwanted or part.unwanted_sizes:
            wanted = wanted * (1 - self._multiply(part.unwanted, part.unwanted_sizes, rivals))
        return wanted

    def _multiply(self, senses: Sequence[Sense], sizes: Sequence[str], rivals: Sequence[str]) -> Scores:
        """The product of the words' probabilities; a size word fits or does not."""
        product = np.ones(len(self))
        for sense in senses:
            product = product * self.score_word(sense, rivals=rivals)
        for size in sizes:
            least, most = self.bank.vocabulary.sizes[size]
            side = max(self.image.size)
            longer = [max(region.box.right - region.box.left, region.box.bottom - region.box.top) / side for region in self.regions]
            product = product * np.array([float(least <= value < most) for value in longer]).reshape(-1)
        return product

    def _softmax(self, words: Sequence[str]) -> Scores:
        logits = self.bank.encoder.scale * compare_words(self.bank, words, self.features)
        found: Scores = torch.softmax(logits.double(), dim=1).numpy()
        return found


def list_words(bank: PromptBank, group: str) -> tuple[str, ...]:
    """The words that compete in a group: the vocabulary's, then the learned ones."""
    own = bank.vocabulary.groups.get(group, ())
    learned = (concept for concept, place in bank.groups.items() if place == group and concept not in own)
    return (*own, *learned)


def list_all_words(bank: PromptBank) -> tuple[str, ...]:
    """The words that one without a group has to beat: those of all groups, the learned ones among them, and the contrasts."""
    known = (word for group in bank.vocabulary.groups for word in list_words(bank, group))
    return tuple(dict.fromkeys([*known, *bank.vocabulary.contrasts]))


def compare_words(bank: PromptBank, words: Sequence[str], features: Tensor) -> Tensor:
    """Cosine similarities (n, words) of crops with words: a learned word has its prompts, another is as the model reads it."""
    plain = bank.encoder.encode_texts([bank.vocabulary.write_text(word) for word in words])
    found = features @ plain.T
    for index, word in enumerate(words):
        if word in bank.groups and len(features):
            found[:, index] = (features * bank.encode_for(word, features)).sum(1)
    return found


def open_views(bank: PromptBank, pictures: Sequence[tuple[Image.Image, Sequence[Region]]]) -> list[View]:
    """Views of several pictures; all crops are encoded together."""
    crops: list[Image.Image] = []
    counts = []
    for image, regions in pictures:
        pixels = np.asarray(image.convert("RGB"))
        crops += [cut_crop(pixels, region.box, region.mask) for region in regions]
        counts.append(len(regions))
    features = bank.encoder.encode_images(crops).split(counts)
    return [View(bank, image, regions, part) for (image, regions), part in zip(pictures, features, strict=True)]
