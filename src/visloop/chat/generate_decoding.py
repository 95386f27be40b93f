"""Decode a batch with the model's own ``generate``, for families that a ``RowCache`` cannot serve. Same draws, no reuse."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from visloop.chat.base import Sampling
from visloop.chat.conversations import ConversationEncoder, Prompt
from visloop.chat.decoding import Decoded
from visloop.chat.keyed_sampling import KeyedSampler
from visloop.errors import DataError


class _KeyedChoice(LogitsProcessor):
    """Leaves only the keyed sampler's choice, so that ``generate``'s greedy pick takes it."""

    def __init__(self, sampler: KeyedSampler, *, prompt_columns: int) -> None:
        self._sampler, self._prompt_columns = sampler, prompt_columns

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        tokens = self._sampler.pick_tokens(scores, step=input_ids.shape[1] - self._prompt_columns)
        return torch.full_like(scores, float("-inf")).scatter_(-1, tokens[:, None], 0.0)


class _StopStrings(StoppingCriteria):
    def __init__(self, encoder: ConversationEncoder, *, stop: Sequence[str], prompt_columns: int) -> None:
        self._encoder, self._stop, self._prompt_columns = encoder, stop, prompt_columns

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self._prompt_columns :].tolist()
        done = [self._encoder.ends_with_stop(row, stop=self._stop) for row in rows]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)


class GenerateDecoder:
    """Decodes for one model with ``generate``; remembers nothing."""

    def __init__(self, model: Any, encoder: ConversationEncoder, *, end_ids: frozenset[int], limit: int | None) -> None:
        self._model, self._encoder, self._end_ids, self._limit = model, encoder, end_ids, limit

    def start_call(self) -> None:
        """Nothing to prepare."""

    def order_prompts(self, prompts: Sequence[Prompt]) -> list[int]:
        """By length, which saves padding."""
        return sorted(range(len(prompts)), key=lambda index: len(prompts[index].ids))

    def end_call(self) -> None:
        """Nothing is kept between calls."""

    def forget(self) -> None:
        """Nothing is kept between calls."""

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Decoded]:
        """As ``Decoder.decode``; prompts with and without pictures are decoded apart."""
        found: dict[int, Decoded] = {}
        for pictured in (True, False):
            group = [index for index, prompt in enumerate(prompts) if bool(prompt.pictures) is pictured]
            if group:
                found |= zip(group, self._generate([prompts[index] for index in group], sampling), strict=True)
        return [found[index] for index in range(len(prompts))]

    def _generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Decoded]:
        inputs = self._encoder.encode_prompts(prompts, device=self._model.device, dtype=self._model.dtype)
        columns = inputs["input_ids"].shape[1]
        if self._limit is not None and columns >= self._limit:
            raise DataError(f"the conversation has {columns} tokens, the model takes {self._limit}; shorten it or use smaller pictures")
        sampler = KeyedSampler(
            sampling,
            seeds=[prompt.seed for prompt in prompts],
            prompts=[prompt.ids for prompt in prompts],
            vocab_size=self._model.get_output_embeddings().weight.shape[0],
            device=self._model.device,
        )
        budget = sampling.max_new_tokens if self._limit is None else min(sampling.max_new_tokens, self._limit - columns)
        output = self._model.generate(
            **inputs,
            generation_config=GenerationConfig(  # type: ignore[no-untyped-call]
                do_sample=False,
                max_new_tokens=budget,
                eos_token_id=sorted(self._end_ids) or None,
                pad_token_id=self._encoder.tokenizer.pad_token_id,
            ),
            logits_processor=LogitsProcessorList([_KeyedChoice(sampler, prompt_columns=columns)]),
            stopping_criteria=StoppingCriteriaList(
                [_StopStrings(self._encoder, stop=sampling.stop, prompt_columns=columns)] if sampling.stop else []
            ),
        )
        lengths = inputs["attention_mask"].sum(dim=-1).tolist()
        return [
            self._read_row(row, prompt_tokens=length, sampling=sampling)
            for row, length in zip(output[:, columns:].tolist(), lengths, strict=True)
        ]

    def _read_row(self, row: list[int], *, prompt_tokens: int, sampling: Sampling) -> Decoded:
        """Cut the padding that ``generate`` adds behind a finished row."""
        for count in range(1, len(row) + 1):
            ended = row[count - 1] in self._end_ids
            if ended or (sampling.stop and self._encoder.ends_with_stop(row[:count], stop=sampling.stop)):
                return Decoded(ids=row[:count], finish="stop", prompt_tokens=prompt_tokens)
        return Decoded(ids=row, finish="length", prompt_tokens=prompt_tokens)
