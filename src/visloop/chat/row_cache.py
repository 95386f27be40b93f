"""A key-value cache whose rows have their own lengths, so that conversations of unequal length go on side by side.

Row i holds its tokens in columns 0 .. length_i - 1, without holes. New tokens are written behind them, and an explicit
attention mask lets a token see its own row's columns up to itself. Hence a row can be cut to any prefix by setting its
length, rows can be picked, swapped and joined, and what lies behind a row's length is never read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

_SPARE_SHARE, _LEAST_SPARE = 32, 4
"""Room is made for a 32nd of the columns, at least 4, at a time. Not for more: gaps between the rows' columns break the
memory's read-ahead (attention over 100 of 128 columns took three times as long as over 100 of 104)."""


@dataclass(frozen=True, slots=True)
class _Writing:
    """Where the tokens of the current forward call go: cells (rows, tokens), the columns attention reads, the columns needed."""

    rows: Tensor
    columns: Tensor
    width: int
    capacity: int


class RowLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one layer: (slots, heads, columns, head width). The rows of a call are the first slots."""

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.writing: _Writing | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_zeros(rows, heads, 0, width)
        self.values = value_states.new_zeros(rows, heads, 0, value_states.shape[-1])
        self.is_initialized = True

    def fill(self, keys: Tensor, values: Tensor) -> None:
        """Take ``keys`` and ``values`` as one's own."""
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def reserve(self, columns: int) -> None:
        """Make room for ``columns`` columns. New room is zero: masked cells still enter the matrix products."""
        if (missing := columns - self.keys.shape[2]) > 0:
            self.keys = torch.nn.functional.pad(self.keys, (0, 0, 0, missing))
            self.values = torch.nn.functional.pad(self.values, (0, 0, 0, missing))

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens (rows, heads, tokens, head width); return keys and values of those rows, as views."""
        if self.writing is None:
            raise RuntimeError("RowCache.place_tokens must be called before the model's forward")
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        where = self.writing
        if where.capacity > self.keys.shape[2]:
            self.reserve(where.capacity + max(_LEAST_SPARE, where.capacity // _SPARE_SHARE))
        self.keys[where.rows, :, where.columns] = key_states.transpose(1, 2)
        self.values[where.rows, :, where.columns] = value_states.transpose(1, 2)
        rows = key_states.shape[0]
        return self.keys[:rows, :, : where.width], self.values[:rows, :, : where.width]

    def get_seq_length(self) -> int:
        return 0 if self.writing is None else self.writing.width

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_max_length(self) -> int:
        return -1


class RowCache(Cache):
    """All layers, and the length of every slot in ``lengths``."""

    layers: list[RowLayer]  # type: ignore[assignment]

    def __init__(self, *, layers: int, rows: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(layers=[RowLayer() for _ in range(layers)])
        self.lengths = [0] * rows
        self._device, self._dtype = device, dtype

    def place_tokens(self, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Say that the next forward call brings ``counts[i]`` tokens for slot i, padded on the left to the longest.

        The lengths grow by ``counts``; padding is written behind them, where it is never read and soon overwritten.

        A count of 0 is a row that waits.

        Returns:
            Position ids (rows, tokens), and the additive attention mask (rows, 1, tokens, columns).
        """
        rows, tokens = len(counts), max(counts)
        before = torch.tensor(self.lengths[:rows])[:, None]
        fresh = torch.tensor(list(counts))[:, None]
        place = torch.arange(tokens)[None] - (tokens - fresh)
        columns = torch.where(place >= 0, before + place, before + tokens + place)
        self.lengths[:rows] = [length + count for length, count in zip(self.lengths[:rows], counts, strict=True)]
        width, capacity = max(self.lengths[:rows]), int(before.max()) + tokens
        columns = columns.to(self._device)
        writing = _Writing(torch.arange(rows, device=self._device)[:, None], columns, width, capacity)
        for layer in self.layers:
            layer.writing = writing
        hidden = torch.arange(width, device=self._device)[None, None] > columns[:, :, None]
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device).masked_fill_(hidden, torch.finfo(self._dtype).min)
        return columns, mask[:, None]

    def pick_slots(self, slots: Sequence[int], *, lengths: Sequence[int] | None = None, move: bool = False) -> "RowCache":
        """A cache of ``slots``, in that order, as a copy without spare room.

        Args:
            slots: a slot may be named several times.
            lengths: cut the picked rows to these lengths.
            move: the caller gives this cache up; if ``slots`` are all its slots as they stand, it is returned itself.
        """
        kept = [self.lengths[slot] for slot in slots] if lengths is None else list(lengths)
        if move and list(slots) == list(range(len(self.lengths))):
            self.lengths = kept
            return self
        picked = RowCache(layers=len(self.layers), rows=0, device=self._device, dtype=self._dtype)
        picked.lengths = kept
        index, longest = torch.tensor(list(slots), device=self._device), max(picked.lengths)
        for layer, source in zip(picked.layers, self.layers, strict=True):
            layer.fill(source.keys[:, :, :longest].index_select(0, index), source.values[:, :, :longest].index_select(0, index))
        return picked

    def swap_slots(self, first: Sequence[int], second: Sequence[int]) -> None:
        """Exchange slot ``first[k]`` with slot ``second[k]`` for every k; the two lists share no slot."""
        target, source = [*first, *second], [*second, *first]
        to, of = torch.tensor(target, device=self._device), torch.tensor(source, device=self._device)
        for layer in self.layers:
            layer.keys[to], layer.values[to] = layer.keys[of], layer.values[of]
        moved = [self.lengths[slot] for slot in source]
        for slot, length in zip(target, moved, strict=True):
            self.lengths[slot] = length

    def join_rows(self, other: "RowCache") -> None:
        """Append the slots of ``other`` behind one's own."""
        for layer, more in zip(self.layers, other.layers, strict=True):
            columns = max(layer.keys.shape[2], more.keys.shape[2])
            layer.reserve(columns)
            more.reserve(columns)
            layer.keys, layer.values = torch.cat([layer.keys, more.keys]), torch.cat([layer.values, more.values])
        self.lengths += other.lengths

    def count_bytes(self) -> int:
        """Memory of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers)
