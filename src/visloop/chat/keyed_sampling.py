"""Pick tokens so that a reply depends on its request's seed only, whatever else is in the batch.

Each row draws its uniform numbers from its own counter-based generator before decoding starts; a token is the inverse of
the filtered distribution's cumulative sum (in vocabulary order) at the step's number. Batch size, order and padding
cannot change the draws; they can only change logits by floating-point noise, which matters at near ties.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from visloop.config import Sampling
from visloop.errors import ModelError


class KeyedSampler:
    """Draws and filters for the rows of one batch.

    Args:
        sampling: temperature (0 is greedy), top_k, top_p, repetition_penalty, max_new_tokens.
        seeds: one per row.
        prompts: token ids of each row's prompt; the repetition penalty counts them as seen.
        vocab_size: width of the logits.
    """

    def __init__(
        self, sampling: Sampling, *, seeds: Sequence[int], prompts: Sequence[Sequence[int]], vocab_size: int, device: torch.device
    ) -> None:
        self._sampling = sampling
        self._uniforms: Tensor | None = None
        self._seen: Tensor | None = None
        if sampling.temperature > 0:
            draws = [np.random.Generator(np.random.Philox(seed)).random(sampling.max_new_tokens) for seed in seeds]
            self._uniforms = torch.from_numpy(np.stack(draws)).to(device)
        if sampling.repetition_penalty != 1.0:
            self._seen = torch.zeros(len(seeds), vocab_size, dtype=torch.bool, device=device)
            for row, prompt in enumerate(prompts):
                self._seen[row, torch.tensor(list(prompt), device=device)] = True

    def reorder(self, order: Sequence[int]) -> None:
        """Keep the rows ``order``, in that order."""
        index = torch.tensor(list(order))
        if self._uniforms is not None:
            self._uniforms = self._uniforms[index.to(self._uniforms.device)]
        if self._seen is not None:
            self._seen = self._seen[index.to(self._seen.device)]

    def pick_tokens(self, logits: Tensor, *, step: int) -> Tensor:
        """The next token of every row: (rows, vocabulary) logits in, (rows,) ids out. ``step`` counts from 0.

        Raises:
            ModelError: the logits are not finite (an overflow: the dtype is too narrow, or the weights are broken).
        """
        scores = self._penalize(logits)
        if self._uniforms is None:
            best, tokens = scores.max(dim=-1)
            self._check_finite(best)
        else:
            probabilities = filter_probabilities(scores, sampling=self._sampling)
            cumulative = probabilities.cumsum(dim=-1)
            total = cumulative[:, -1:]
            self._check_finite(total)
            target = torch.minimum(self._uniforms[:, step : step + 1] * total, torch.nextafter(total, torch.zeros_like(total)))
            tokens = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
        if self._seen is not None:
            self._seen[torch.arange(len(tokens), device=tokens.device), tokens] = True
        return tokens

    def _penalize(self, logits: Tensor) -> Tensor:
        scores = logits.float()
        if self._seen is None:
            return scores
        penalty = self._sampling.repetition_penalty
        return torch.where(self._seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)

    @staticmethod
    def _check_finite(values: Tensor) -> None:
        if not bool(torch.isfinite(values).all()):
            raise ModelError("the model's logits are not finite; load it with dtype bfloat16 or float32, or check its weights")


def filter_probabilities(scores: Tensor, *, sampling: Sampling) -> Tensor:
    """Temperature, then top-k, then top-p over (rows, vocabulary) scores; float64 probabilities that sum to 1 per row.

    top-p keeps the smallest set of most probable tokens whose mass reaches ``top_p`` (nucleus sampling, Holtzman et al. 2020).
    """
    scores = scores.double() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        floor = scores.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < floor, float("-inf"))
    probabilities = scores.softmax(dim=-1)
    if sampling.top_p < 1.0:
        ordered, places = probabilities.sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered >= sampling.top_p
        outside[:, 0] = False
        probabilities = probabilities.masked_fill(outside.scatter(-1, places, outside), 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities
