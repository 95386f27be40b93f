"""Decode a batch of conversations row by row over a ``RowCache``, and keep the cache for the conversations' next turns.

Against a plain ``generate`` call this saves three things. A conversation that was decoded before is continued: only the
tokens behind the longest common prefix are computed, no picture is seen twice. Equal prompts in one batch (several samples
of one question) are encoded once. A row that has finished leaves the computation while the others go on.
All three are exact: a row's keys and values depend on its own tokens only, and its draws on its own seed.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from visloop.chat.base import Sampling
from visloop.chat.conversations import ConversationEncoder, Prompt
from visloop.chat.decoding import Decoded
from visloop.chat.keyed_sampling import KeyedSampler
from visloop.chat.prefix_store import Batch, Match, PrefixStore, Row
from visloop.chat.row_cache import RowCache
from visloop.errors import DataError

_FAMILIES = frozenset({"llava", "llava_next", "idefics3", "smolvlm"})
_MASKED_ATTENTION = frozenset({"sdpa", "eager"})
_DONE_SHARE = 0.1
"""Finished rows are moved out of the computation when they are this share of it."""


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
    """Decodes for one model, and keeps what it decoded for later calls, up to ``keep_bytes`` of keys and values."""

    def __init__(self, model: Any, encoder: ConversationEncoder, *, end_ids: frozenset[int], limit: int | None, keep_bytes: int) -> None:
        self._model, self._encoder, self._end_ids, self._limit = model, encoder, end_ids, limit
        self._layers = model.config.get_text_config().num_hidden_layers
        self._picture_id = getattr(model.config, "image_token_id", None)
        self._store = PrefixStore(keep_bytes=keep_bytes)

    def start_call(self) -> None:
        """As ``PrefixStore.start_call``."""
        self._store.start_call()

    def end_call(self) -> None:
        """As ``PrefixStore.end_call``."""
        self._store.end_call()

    def forget(self) -> None:
        """Free all kept caches."""
        self._store.forget()

    def order_prompts(self, prompts: Sequence[Prompt]) -> list[int]:
        """Known conversations as they lie in the caches, then new ones by length, which saves padding."""
        matches = self._store.match_prompts(prompts)
        fresh = sorted(set(range(len(prompts))) - set(matches), key=lambda index: len(prompts[index].ids))
        return self._store.sort_matches(matches) + fresh

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Decoded]:
        """As ``Decoder.decode``."""
        matches = self._store.match_prompts(prompts)
        parts = [self._continue_rows(prompts, matches)] if matches else []
        for pictured in (True, False):
            group = [index for index, prompt in enumerate(prompts) if index not in matches and bool(prompt.pictures) is pictured]
            parts += [self._start_rows(prompts, group)] if group else []
        (batch, logits), *others = parts
        for other, more in others:
            batch.cache.join_rows(other.cache)
            batch.rows += other.rows
            logits = torch.cat([logits, more])
        self._write_replies(batch.rows, batch.cache, logits, sampling=sampling)
        self._store.add_batch(batch)
        return [
            Decoded(ids=row.new, finish=row.finish or "length", prompt_tokens=len(row.prompt.ids) + row.expansion)
            for row in sorted(batch.rows, key=lambda row: row.index)
        ]

    def _continue_rows(self, prompts: Sequence[Prompt], matches: Mapping[int, Match]) -> tuple[Batch, Tensor]:
        """Compute what each conversation adds to its kept row."""
        batch = self._store.take_rows(prompts, matches=matches)
        self._measure_room(batch.rows)
        added = [row.prompt.ids[matches[row.index].shared :] for row in batch.rows]
        longest = max(map(len, added))
        ids = torch.tensor([[0] * (longest - len(part)) + list(part) for part in added], device=self._model.device)
        return batch, self._forward(batch.cache, ids, [len(part) for part in added])

    def _start_rows(self, prompts: Sequence[Prompt], group: Sequence[int]) -> tuple[Batch, Tensor]:
        """Encode the new conversations ``group``, equal ones once, and give each its own slot."""
        places: dict[tuple[object, ...], int] = {}
        slots = [places.setdefault((prompts[index].ids, prompts[index].picture_keys), len(places)) for index in group]
        unique = [prompts[group[slots.index(slot)]] for slot in range(len(places))]
        inputs = self._encoder.encode_prompts(unique, device=self._model.device, dtype=self._model.dtype)
        ids, present = inputs.pop("input_ids"), inputs.pop("attention_mask")
        counts: list[int] = present.sum(dim=-1).tolist()
        encoded = [row[len(row) - count :] for row, count in zip(ids.tolist(), counts, strict=True)]
        rows = [
            Row(
                index=index,
                prompt=prompts[index],
                tokens=list(prompts[index].ids),
                expansion=counts[slot] - len(prompts[index].ids),
                first_free=self._find_free(prompts[index], encoded[slot]),
            )
            for index, slot in zip(group, slots, strict=True)
        ]
        self._measure_room(rows)
        cache = RowCache(layers=self._layers, rows=len(unique), device=self._model.device, dtype=self._model.dtype)
        logits = self._forward(cache, ids, counts, **inputs)
        return Batch(cache.pick_slots(slots, move=True), rows), logits[torch.tensor(slots, device=logits.device)]

    def _find_free(self, prompt: Prompt, encoded: list[int]) -> int | None:
        """Number of leading ids up to the last picture; None if the encoded ids do not end as ``prompt.ids`` do."""
        pictures = [place for place, token in enumerate(prompt.ids) if token == self._picture_id]
        if len(pictures) != len(prompt.pictures):
            return None
        first = pictures[-1] + 1 if pictures else 0
        tail = list(prompt.ids[first:])
        return first if encoded[len(encoded) - len(tail) :] == tail and (pictures or encoded == tail) else None

    def _measure_room(self, rows: Sequence[Row]) -> None:
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

    def _write_replies(self, rows: list[Row], cache: RowCache, logits: Tensor, *, sampling: Sampling) -> None:
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

    def _take_token(self, row: Row, token: int, *, sampling: Sampling) -> None:
        row.new.append(token)
        if token in self._end_ids or (sampling.stop and self._encoder.ends_with_stop(row.new, stop=sampling.stop)):
            row.finish = "stop"
        elif len(row.new) == sampling.max_new_tokens or len(row.new) == row.room:
            row.finish = "length"


def _park_finished(rows: list[Row], cache: RowCache, sampler: KeyedSampler, *, active: int, live: int) -> None:
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
