"""Learning one word of a CLIP: soft tokens before it, on frozen weights and frozen features of crops (CLOVA 3.4, SELECT and CLASSIFY).

A new word is learned against the words of its group *and* the words learned before it: what was learned alone interferes once all
are candidates together. The stored features of earlier prompts stand for the instances that those were learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visloop.config_assistant import PromptTuning
from visloop.records.assistant import Instance
from visloop.tools.anchors import Anchors
from visloop.tools.crops import cut_crop
from visloop.tools.instances import InstanceCrop
from visloop.tools.naming import PromptBank, compare_words, list_all_words, list_words
from visloop.tools.prompt_pool import LearnedPrompt
from visloop.tools.tuning import Accuracies

OTHER = -1
"""Label of a negative that shows none of the competing words."""
NEGATIVE_WEIGHT = 4.0
MARGIN, POSITIVE_MARGIN = 0.5, 0.5
"""How many logits a negative, and a positive, has to be on its side of the border: keeps the known words' borders where they are."""
ALIGNMENT = 0.5
"""Pull of the text vector to the mean of its crops: of the vectors that part the train crops, the most central one generalizes best."""
VARIANTS, BOX_JITTER = 4, 0.08


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Unit features (n, d) of crops and the index of the word that each shows among the candidates, or ``OTHER``."""

    features: Tensor
    labels: Tensor


class WordProblem:
    """One concept of one group, as ``visloop.tools.tuning`` asks for it.

    Args:
        bank: the prompts learned so far.
        group: the concept's group; empty text: it competes with every known word.
        train, validation: crops of the concept's positives and negatives.
        replay: crops of known words; those of another group are not touched by the new word and are left out.
        anchors: features of known words to learn against; the gate does not use them.
    """

    def __init__(
        self,
        bank: PromptBank,
        *,
        concept: str,
        group: str,
        train: Sequence[InstanceCrop],
        validation: Sequence[InstanceCrop],
        replay: Sequence[InstanceCrop],
        config: PromptTuning,
        anchors: Anchors | None = None,
    ) -> None:
        self.bank, self.concept, self.group, self.config = bank, concept, group, config
        self.encoder = bank.encoder
        self.text = bank.vocabulary.write_text(concept)
        self.words = self._list_rivals([crop.instance for crop in (*train, *validation)])
        taught = [crop for crop in train if crop.instance.positive]
        self.positives = self._encode(taught)
        self.variants = self._encode_variants(taught)
        self.negatives = self._add_stored(self._encode([crop for crop in train if not crop.instance.positive]), anchors)
        self.held_out = self._encode([crop for crop in validation if crop.instance.positive])
        base = self._encode([*replay, *(crop for crop in validation if not crop.instance.positive)])
        known = base.labels >= 0
        self.base = Rows(base.features[known], base.labels[known])
        self.of_positives = compare_words(bank, self.words, self.positives.features)
        self.of_variants = compare_words(bank, self.words, self.variants.flatten(0, 1)).unflatten(0, self.variants.shape[:2])
        self.of_negatives = compare_words(bank, self.words, self.negatives.features)

    def start_prompt(self, seed: int) -> Tensor:
        """The mean of the group's words, a little disturbed: prompts that start alike can be averaged."""
        words = self.bank.vocabulary.groups.get(self.group) or self.words[:32] or (self.concept,)
        mean = torch.stack([self.encoder.embed_words(word).mean(0) for word in words]).mean(0).cpu()
        noise = torch.randn(self.config.tokens, len(mean), generator=torch.Generator().manual_seed(seed % 2**63))
        return mean + self.config.init_std * noise

    def compute_loss(self, prompt: Tensor, positives: Sequence[int]) -> Tensor:
        """Cross-entropy among rivals and the new word; negatives with a margin."""
        text = self.encoder.encode_prompted([self.text], prompt[None]).cpu()
        rows = list(positives)
        own = self.variants[rows].flatten(0, 1)
        rivals = self.encoder.scale * self.of_variants[rows].flatten(0, 1)
        new = self.encoder.scale * own @ text.T - POSITIVE_MARGIN
        loss = -F.log_softmax(torch.cat([rivals, new], 1), 1)[:, -1].mean()
        loss = loss + ALIGNMENT * (1 - (text[0] * F.normalize(own.mean(0), dim=0)).sum())
        if len(self.negatives.labels):
            logits = self.encoder.scale * torch.cat([self.of_negatives, self.negatives.features @ text.T], 1)
            logits = torch.cat([logits[:, :-1], logits[:, -1:] + MARGIN], 1)
            known = self.negatives.labels >= 0
            named = -F.log_softmax(logits, 1)[known, self.negatives.labels[known]]
            others = torch.logsumexp(logits[~known], 1) - torch.logsumexp(logits[~known, :-1], 1)
            loss = loss + NEGATIVE_WEIGHT * torch.cat([named, others]).mean()
        return loss

    def measure_training(self, prompt: Tensor, positives: Sequence[int]) -> float:
        """Share of the train positives for which the new word beats all others."""
        with torch.no_grad():
            text = self.encoder.encode_prompted([self.text], prompt[None]).cpu()
        rows = list(positives)
        chosen = torch.cat([self.of_positives[rows], self.positives.features[rows] @ text.T], 1).argmax(1)
        return float((chosen == len(self.words)).float().mean())

    def make_feature(self, positives: Sequence[int]) -> NDArray[np.float32]:
        """The mean feature of the crops, of unit length."""
        feature: NDArray[np.float32] = F.normalize(self.positives.features[list(positives)].mean(0), dim=0).numpy()
        return feature

    def measure(self, prompts: Sequence[LearnedPrompt]) -> Accuracies:
        """Accuracies as the tools decide. Without prompts a word that the model does not know has to beat all known words."""
        bank = self.bank if not prompts else self._with_prompts(prompts)
        taught = self.concept in bank.groups
        rivals = self.words if taught or self.concept in bank.vocabulary.group_of else list_all_words(bank)
        novel = self._choose(bank, self.held_out.features, (*rivals, self.concept)) == len(rivals)
        # A word that nobody taught is no candidate: what it costs is measured against the tool as it is.
        base = self._choose(bank, self.base.features, (*self.words, self.concept) if taught else self.words) == self.base.labels
        return Accuracies(_share(novel), _share(base) if len(base) else 1.0)

    def _choose(self, bank: PromptBank, features: Tensor, words: Sequence[str]) -> Tensor:
        """The place of the winning word of each crop, as the tools compute it."""
        return compare_words(bank, words, features).argmax(1) if len(features) else torch.zeros(0, dtype=torch.long)

    def _with_prompts(self, prompts: Sequence[LearnedPrompt]) -> PromptBank:
        bank = self.bank
        pool = bank.pool.add_prompts(prompts, most_per_concept=self.config.max_prompts)
        return PromptBank(self.encoder, bank.vocabulary, pool=pool, owner=bank.owner, tuning=self.config, features=bank.features)

    def _list_rivals(self, instances: Sequence[Instance]) -> tuple[str, ...]:
        vocabulary = self.bank.vocabulary
        if self.group:
            words = list_words(self.bank, self.group)
        else:
            labels = [instance.label for instance in instances if not instance.positive and instance.label]
            words = tuple(dict.fromkeys([*list_all_words(self.bank), *labels]))
        if self.group and len(words) < 2:
            labels = [instance.label for instance in instances if not instance.positive and instance.label]
            words = tuple(dict.fromkeys([*words, *vocabulary.contrasts, *labels]))
        return tuple(word for word in words if word != self.concept)

    def _encode(self, crops: Sequence[InstanceCrop]) -> Rows:
        labels = [self._find_label(crop.instance) for crop in crops]
        return Rows(self.encoder.encode_images([crop.crop for crop in crops]), torch.tensor(labels, dtype=torch.long))

    def _encode_variants(self, crops: Sequence[InstanceCrop]) -> Tensor:
        """Features (n, variants, d): the crop itself and crops whose box is a little off, so that few instances tell more."""
        draw = np.random.default_rng(len(crops))
        images = []
        for crop in crops:
            pixels, box = np.asarray(crop.picture), crop.region.box
            sides = (box.right - box.left, box.bottom - box.top) * 2
            images.append(crop.crop)
            for _ in range(VARIANTS - 1):
                left, top, right, bottom = np.array(box.corners) + draw.uniform(-BOX_JITTER, BOX_JITTER, 4) * sides
                images.append(cut_crop(pixels, replace(box, left=left, top=top, right=right, bottom=bottom), crop.region.mask))
        return self.encoder.encode_images(images).unflatten(0, (len(crops), VARIANTS))

    def _find_label(self, instance: Instance) -> int:
        """The word of this group that a label says ("red circle" among shapes: circle)."""
        if instance.label in self.words:
            return self.words.index(instance.label)
        senses = self.bank.vocabulary.read_words(instance.label, learned=self.bank.groups)
        return next((self.words.index(sense.word) for sense in senses if sense.word in self.words), OTHER)

    def _add_stored(self, rows: Rows, anchors: Anchors | None) -> Rows:
        """The model's anchors of the group, and the features that earlier prompts were learned from, as further negatives."""
        stored = [
            (torch.from_numpy(prompt.feature), self.words.index(word))
            for word in self.words
            if word in self.bank.groups
            for prompt in self.bank.pool.find_prompts(self.bank.owner, word)
        ]
        if anchors is not None and self.group:
            stored += zip(*(part.unbind() for part in anchors.list_group(self.group, self.words)), strict=True)
        if not stored:
            return rows
        features = torch.cat([rows.features, F.normalize(torch.stack([feature for feature, _ in stored]), dim=-1)])
        return Rows(features, torch.cat([rows.labels, torch.tensor([int(label) for _, label in stored])]))


def _share(right: Tensor) -> float:
    return float(right.float().mean()) if len(right) else 0.0
