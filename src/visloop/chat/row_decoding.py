"""Decode a batch of conversations row by row over a ``RowCache``, and keep the cache for the conversations' next turns.

Against a plain ``generate`` call this saves three things. A conversation that was decoded before is continued: only the
tokens behind the longest common prefix are computed, no picture is seen twice. Equal prompts in one batch (several samples
of one question) are encoded once. A row that has finished leaves the computation while the others go on.
All three are exact: a row's keys and values depend on its own tokens only, and its draws on its own seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from visloop.chat.base import Finish, Sampling
from visloop.chat.conversations import ConversationEncoder, Prompt
from visloop.chat.keyed_sampling import KeyedSampler
from visloop.chat.row_cache import RowCache
from visloop.errors import DataError

_FAMILIES = frozenset({"llava", "llava_next", "idefics3", "smolvlm"})
_MASKED_ATTENTION = frozenset({"sdpa", "eager"})
_DONE_SHARE = 0.25
"""Finished rows are moved out of the computation when they are this share of it: moving costs about one step."""


@dataclass(slots=True)
class Decoded:
    """What one row wrote. ``ids`` ends with the end-of-sequence token when ``finish`` is "stop" for that reason."""

    ids: list[int]
    finish: Finish
    prompt_tokens: int


@dataclass(slots=True)
class _Row:
    """One conversation while it is decoded, and afterwards as what lies in the cache.

    ``tokens``: ids whose keys and values are in the cache, pictures as single placeholders. ``expansion``: how many more
    columns the pictures take. ``first_free``: number of leading tokens that must be shared for the pictures to be
    shared too (None: never reuse this row). ``room``: new tokens until the model's limit of positions.
    """

    prompt: Prompt
    tokens: list[int]
    expansion: int
    first_free: int | None
    room: int | None = None
    new: list[int] = field(default_factory=list)
    finish: Finish | None = None


def supports_row_cache(config: Any) -> bool:
    """Whether a model can be decoded over a ``RowCache``: families whose language model has plain full attention and
    positions that count tokens, with an attention that takes an explicit mask. Others go through ``generate``."""
    text = config.get_text_config()
    layers = getattr(text, "layer_types", None) or ["full_attention"]
    rope = getattr(text, "rope_parameters", None) or {}
    return (
        config.model_type in _FAMILIES
        and config._attn_implementation in _MASKED_ATTENTION
        and set(layers) == {"full_attention"}
        and getattr(text, "sliding_window", None) is None
        and "mrope_section" not in rope
    )


class RowDecoder:
    """Decodes for one model; remembers the rows of its last batch until ``forget``."""

    def __init__(self, model: Any, encoder: ConversationEncoder, *, end_ids: frozenset[int], limit: int | None) -> None:
        self._model, self._encoder, self._end_ids, self._limit = model, encoder, end_ids, limit
        self._text = model.config.get_text_config()
        self._picture_id = getattr(model.config, "image_token_id", None)
        self._cache: RowCache | None = None
        self._rows: list[_Row] = []

    def forget(self) -> None:
        """Free the remembered cache."""
        self._cache, self._rows = None, []

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Decoded]:
        """One reply per prompt, in order.

        Raises:
            DataError: the processor refuses one of the prompts.
            ModelError: the logits are not finite.
        """
        matches = [self._find_prefix(prompt) for prompt in prompts]
        known = [index for index, match in enumerate(matches) if match is not None]
        groups = [
            [index for index, match in enumerate(matches) if match is None and bool(prompts[index].pictures) is pictured]
            for pictured in (True, False)
        ]
        parts = [self._continue_rows([(prompts[index], *match) for index in known if (match := matches[index]) is not None])]
        parts += [self._start_rows([prompts[index] for index in group]) for group in groups if group]
        (cache, rows, logits), *others = [part for part in parts if part is not None]
        for more_cache, more_rows, more_logits in others:
            cache.join_rows(more_cache)
            rows += more_rows
            logits = torch.cat([logits, more_logits])
        written = dict(zip([*known, *groups[0], *groups[1]], rows, strict=True))
        self._write_replies(rows, cache, logits, sampling=sampling)
        self._cache, self._rows = cache, rows
        return [
            Decoded(ids=row.new, finish=row.finish or "length", prompt_tokens=len(row.prompt.ids) + row.expansion)
            for _, row in sorted(written.items())
        ]

    def _find_prefix(self, prompt: Prompt) -> tuple[int, int] | None:
        """The remembered slot that shares most with ``prompt``, all its pictures included, and how many tokens they share."""
        best: tuple[int, int] | None = None
        for slot, row in enumerate(self._rows):
            if row.first_free is None or row.prompt.picture_keys != prompt.picture_keys:
                continue
            if prompt.ids[: len(row.tokens)] == tuple(row.tokens):
                shared = len(row.tokens)
            else:
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(row.tokens, prompt.ids, strict=False)))
            shared = min(shared, len(prompt.ids) - 1)
            if shared >= max(1, row.first_free) and (best is None or shared > best[1]):
                best = slot, shared
            if shared == len(row.tokens):
                break
        return best

    def _continue_rows(self, matches: Sequence[tuple[Prompt, int, int]]) -> tuple[RowCache, list[_Row], Tensor] | None:
        """Compute what each conversation adds to its remembered (slot, shared tokens); the rest of the cache is dropped."""
        cache, remembered = self._cache, self._rows
        self.forget()
        if not matches or cache is None:
            return None
        rows = [_Row(prompt, list(prompt.ids), remembered[slot].expansion, remembered[slot].first_free) for prompt, slot, _ in matches]
        self._set_budgets(rows)
        cache.pick_slots([slot for _, slot, _ in matches])
        cache.lengths = [shared + row.expansion for row, (_, _, shared) in zip(rows, matches, strict=True)]
        added = [prompt.ids[shared:] for prompt, _, shared in matches]
        longest = max(map(len, added))
        padded = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in added], device=self._model.device)
        return cache, rows, self._forward(cache, padded, [len(ids) for ids in added])

    def _start_rows(self, prompts: Sequence[Prompt]) -> tuple[RowCache, list[_Row], Tensor]:
        """Encode new conversations, equal ones once, and give each its own slot."""
        places: dict[tuple[object, ...], int] = {}
        slots = [places.setdefault((prompt.ids, prompt.picture_keys), len(places)) for prompt in prompts]
        unique = [prompts[slots.index(slot)] for slot in range(len(places))]
        inputs = self._encoder.encode_prompts(unique, device=self._model.device, dtype=self._model.dtype)
        ids, present = inputs.pop("input_ids"), inputs.pop("attention_mask")
        counts: list[int] = present.sum(dim=-1).tolist()
        tails = [row[len(row) - count :] for row, count in zip(ids.tolist(), counts, strict=True)]
        starts = [_Row(p, list(p.ids), len(tail) - len(p.ids), self._find_free(p, tail)) for p, tail in zip(unique, tails, strict=True)]
        self._set_budgets(starts)
        cache = RowCache(layers=self._text.num_hidden_layers, rows=len(unique), device=self._model.device, dtype=self._model.dtype)
        logits = self._forward(cache, ids, counts, **inputs)
        cache.pick_slots(slots)
        rows = [replace(starts[slot], prompt=prompt, tokens=list(prompt.ids), new=[]) for prompt, slot in zip(prompts, slots, strict=True)]
        return cache, rows, logits[torch.tensor(slots, device=logits.device)]

    def _find_free(self, prompt: Prompt, encoded: list[int]) -> int | None:
        """Number of leading ids up to the last picture; None if the encoded ids do not end as ``prompt.ids`` do."""
        pictures = [place for place, token in enumerate(prompt.ids) if token == self._picture_id]
        if len(pictures) != len(prompt.pictures):
            return None
        first = pictures[-1] + 1 if pictures else 0
        tail = list(prompt.ids[first:])
        return first if encoded[len(encoded) - len(tail) :] == tail and (pictures or encoded == tail) else None

    def _set_budgets(self, rows: Sequence[_Row]) -> None:
        for row in rows:
            length = len(row.prompt.ids) + row.expansion
            row.room = None if self._limit is None else self._limit - length
            if row.room is not None and row.room <= 0:
                raise DataError(f"the conversation has {length} tokens, the model takes {self._limit}; shorten it or use smaller pictures")

    def _forward(self, cache: RowCache, ids: Tensor, counts: Sequence[int], **inputs: Tensor) -> Tensor:
        """Feed ``counts[i]`` tokens of row i, padded on the left; logits (rows, vocabulary) behind the last token."""
        positions, mask = cache.place_tokens(counts)
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _write_replies(self, rows: list[_Row], cache: RowCache, logits: Tensor, *, sampling: Sampling) -> None:
        """Write until every row has finished. Reorders ``rows`` and the cache's slots alike."""
        sampler = KeyedSampler(
            sampling,
            seeds=[row.prompt.seed for row in rows],
            prompts=[row.prompt.ids for row in rows],
            vocab_size=logits.shape[-1],
            device=logits.device,
        )
        active = len(rows)
        for step in range(sampling.max_new_tokens):
            for row, token in zip(rows[:active], sampler.pick_tokens(logits, step=step).tolist(), strict=True):
                if row.finish is None:
                    self._take_token(row, token, sampling=sampling)
            live = sum(row.finish is None for row in rows[:active])
            if live == 0:
                return
            if active - live > _DONE_SHARE * active:
                _park_finished(rows, cache, sampler, active=active, live=live)
                active = live
            going = [row.finish is None for row in rows[:active]]
            ids = [row.new[-1] if goes else 0 for row, goes in zip(rows, going, strict=False)]
            for row, goes in zip(rows, going, strict=False):
                row.tokens += row.new[-1:] if goes else []
            logits = self._forward(cache, torch.tensor(ids, device=logits.device)[:, None], [int(goes) for goes in going])

    def _take_token(self, row: _Row, token: int, *, sampling: Sampling) -> None:
        row.new.append(token)
        if token in self._end_ids or (sampling.stop and self._encoder.ends_with_stop(row.new, stop=sampling.stop)):
            row.finish = "stop"
        elif len(row.new) == sampling.max_new_tokens or len(row.new) == row.room:
            row.finish = "length"


def _park_finished(rows: list[_Row], cache: RowCache, sampler: KeyedSampler, *, active: int, live: int) -> None:
    """Bring the ``live`` unfinished rows among the first ``active`` to the front; the finished keep their cache behind them."""
    done = [slot for slot in range(live) if rows[slot].finish is not None]
    going = [slot for slot in range(live, active) if rows[slot].finish is None]
    order = list(range(active))
    for first, second in zip(done, going, strict=True):
        rows[first], rows[second] = rows[second], rows[first]
        order[first] = second
    if done:
        cache.swap_slots(done, going)
    sampler.reorder(order[:live])
