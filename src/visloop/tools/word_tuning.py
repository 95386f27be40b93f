"""Learning one word of a CLIP: soft tokens before it, on frozen weights and frozen features of crops (CLOVA 3.4, SELECT and CLASSIFY).

A new word is learned against the words of its group *and* the words learned before it: what was learned alone interferes once all
are candidates together. The stored features of earlier prompts stand for the instances that those were learned from.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from visloop.config_assistant import PromptTuning
from visloop.records.assistant import Instance
from visloop.tools.instances import InstanceCrop
from visloop.tools.naming import PromptBank, list_words, weigh_prompts
from visloop.tools.prompt_pool import LearnedPrompt
from visloop.tools.tuning import Accuracies

OTHER = -1
"""Label of a negative that shows none of the competing words."""
START_SPREAD = 0.02
NEGATIVE_WEIGHT = 1.0
MARGIN = 2.0
FEATURE_NOISE, FEATURE_COPIES = 0.5, 2
"""How many logits a negative has to stay away from the new word: keeps the known words' borders where they are."""


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
        seed: int,
    ) -> None:
        self.bank, self.concept, self.group, self.config = bank, concept, group, config
        self.encoder = bank.encoder
        self.text = bank.vocabulary.write_text(concept)
        self.words = self._list_rivals([crop.instance for crop in (*train, *validation)])
        self.positives = self._encode([crop for crop in train if crop.instance.positive])
        self.negatives = self._add_stored(self._encode([crop for crop in train if not crop.instance.positive]))
        self.held_out = self._encode([crop for crop in validation if crop.instance.positive])
        base = self._encode([*replay, *(crop for crop in validation if not crop.instance.positive)])
        known = base.labels >= 0
        self.base = Rows(base.features[known], base.labels[known])
        self.rivals = self._encode_rivals()
        self._noise = torch.Generator().manual_seed(seed % 2**63)

    def start_prompt(self, seed: int) -> Tensor:
        """The mean of the group's words, a little disturbed: prompts that start alike can be averaged."""
        words = self.bank.vocabulary.groups.get(self.group) or self.words[:32] or (self.concept,)
        mean = torch.stack([self.encoder.embed_words(word).mean(0) for word in words]).mean(0).cpu()
        noise = torch.randn(self.config.tokens, len(mean), generator=torch.Generator().manual_seed(seed % 2**63))
        return mean + START_SPREAD * noise

    def compute_loss(self, prompt: Tensor, positives: Sequence[int]) -> Tensor:
        """Cross-entropy among rivals and the new word; negatives with a margin."""
        text = self.encoder.encode_prompted([self.text], prompt[None]).cpu()
        wanted = self._logits(self._disturb(self.positives.features[list(positives)]), text)
        loss = -F.log_softmax(wanted, 1)[:, -1].mean()
        if len(self.negatives.labels):
            logits = self._logits(self._disturb(self.negatives.features), text)
            logits = torch.cat([logits[:, :-1], logits[:, -1:] + MARGIN], 1)
            shares = F.log_softmax(logits, 1)
            labels = self.negatives.labels.repeat(FEATURE_COPIES)
            known = labels >= 0
            named = -shares[known, labels[known]]
            others = torch.logsumexp(logits[~known], 1) - torch.logsumexp(logits[~known, :-1], 1)
            loss = loss + NEGATIVE_WEIGHT * torch.cat([named, others]).mean()
        return loss

    def measure_training(self, prompt: Tensor, positives: Sequence[int]) -> float:
        """Share of the train positives for which the new word beats all others."""
        with torch.no_grad():
            text = self.encoder.encode_prompted([self.text], prompt[None]).cpu()
        chosen = self._logits(self.positives.features[list(positives)], text).argmax(1)
        return float((chosen == len(self.words)).float().mean())

    def make_feature(self, positives: Sequence[int]) -> NDArray[np.float32]:
        """The mean feature of the crops, of unit length."""
        feature: NDArray[np.float32] = F.normalize(self.positives.features[list(positives)].mean(0), dim=0).numpy()
        return feature

    def measure(self, prompts: Sequence[LearnedPrompt]) -> Accuracies:
        """Accuracies by the words' own competition; without prompts the new word is the plain, untrained one."""
        novel = self._choose(self.held_out.features, prompts) == len(self.words)
        # Before anything is learned the new word is no candidate: what it costs is measured against the tool as it is.
        base = (self._choose(self.base.features, prompts) if prompts else self._rank(self.base.features)) == self.base.labels
        return Accuracies(_share(novel), _share(base) if len(base) else 1.0)

    def _rank(self, features: Tensor) -> Tensor:
        return (features @ self.rivals.T).argmax(1)

    def _choose(self, features: Tensor, prompts: Sequence[LearnedPrompt]) -> Tensor:
        """The winning word of each crop; the new word has the last index."""
        if not len(features):
            return torch.zeros(0, dtype=torch.long)
        if prompts:
            weighted = [(self.concept, weigh_prompts(prompts, row[None], tuning=self.config)) for row in features]
            texts = self.bank.encode(weighted)
        else:
            texts = self.encoder.encode_texts([self.text]).expand(len(features), -1)
        own = (features * texts).sum(1, keepdim=True)
        return torch.cat([features @ self.rivals.T, own], 1).argmax(1)

    def _disturb(self, features: Tensor) -> Tensor:
        """Features with noise: twenty crops are few in so many dimensions."""
        noise = torch.randn(FEATURE_COPIES, *features.shape, generator=self._noise) / features.shape[1] ** 0.5
        return F.normalize(features + FEATURE_NOISE * noise, dim=-1).flatten(0, 1)

    def _logits(self, features: Tensor, text: Tensor) -> Tensor:
        return self.encoder.scale * features @ torch.cat([self.rivals, text]).T

    def _list_rivals(self, instances: Sequence[Instance]) -> tuple[str, ...]:
        vocabulary = self.bank.vocabulary
        if self.group:
            words = list_words(self.bank, self.group)
        else:
            known = [word for group in vocabulary.groups for word in list_words(self.bank, group)]
            labels = [instance.label for instance in instances if not instance.positive and instance.label]
            words = tuple(dict.fromkeys([*known, *vocabulary.contrasts, *labels]))
        if self.group and len(words) < 2:
            labels = [instance.label for instance in instances if not instance.positive and instance.label]
            words = tuple(dict.fromkeys([*words, *vocabulary.contrasts, *labels]))
        return tuple(word for word in words if word != self.concept)

    def _encode(self, crops: Sequence[InstanceCrop]) -> Rows:
        labels = [self._find_label(crop.instance) for crop in crops]
        return Rows(self.encoder.encode_images([crop.crop for crop in crops]), torch.tensor(labels, dtype=torch.long))

    def _find_label(self, instance: Instance) -> int:
        """The word of this group that a label says ("red circle" among shapes: circle)."""
        if instance.label in self.words:
            return self.words.index(instance.label)
        senses = self.bank.vocabulary.read_words(instance.label, learned=self.bank.groups)
        return next((self.words.index(sense.word) for sense in senses if sense.word in self.words), OTHER)

    def _add_stored(self, rows: Rows) -> Rows:
        """The features that earlier prompts of the group were learned from, as further negatives."""
        stored = [
            (torch.from_numpy(prompt.feature), self.words.index(word))
            for word in self.words
            if word in self.bank.groups
            for prompt in self.bank.pool.find_prompts(self.bank.owner, word)
        ]
        if not stored:
            return rows
        features = torch.cat([rows.features, F.normalize(torch.stack([feature for feature, _ in stored]), dim=-1)])
        return Rows(features, torch.cat([rows.labels, torch.tensor([label for _, label in stored])]))

    def _encode_rivals(self) -> Tensor:
        plain = self.encoder.encode_texts([self.bank.vocabulary.write_text(word) for word in self.words]).clone()
        for index, word in enumerate(self.words):
            if prompts := self.bank.pool.find_prompts(self.bank.owner, word):
                even = [(prompt, 1 / len(prompts)) for prompt in prompts if len(prompt.prompt) == len(prompts[0].prompt)]
                plain[index] = self.bank.encode([(word, even)])[0]
        return plain


def _share(right: Tensor) -> float:
    return float(right.float().mean()) if len(right) else 0.0
