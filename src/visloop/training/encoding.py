"""Conversations with pictures as token ids and pixel tensors, for any image-text processor, and their batches.

TRL's vision collators run the chat template, the tokenizer and the picture processor again for every batch of every
epoch. Here an example is encoded once and kept while ``CACHE_BYTES`` allow; the batches are the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad
from transformers import ProcessorMixin

from visloop.chat.images import load_image
from visloop.config import ChatConfig
from visloop.errors import DataError, TrainingError
from visloop.records.reasoning import ChatTurn, PreferencePair, SFTExample

CACHE_BYTES = 64 * 2**20
IGNORED_LABEL = -100
_TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of rendered conversation; loss is taken on it where ``trained``."""

    text: str
    trained: bool


@dataclass(frozen=True, slots=True)
class Encoded:
    """One sequence. ``input_ids`` and ``trained`` have shape (length,), ``types`` likewise; ``pictures`` are the model's
    further inputs as its processor gives them for a single example (pixels, sizes, grids)."""

    input_ids: Tensor
    trained: Tensor
    types: Mapping[str, Tensor]
    pictures: Mapping[str, Tensor]


def render_segments(processor: ProcessorMixin, turns: Sequence[ChatTurn], pictures: int, *, every_turn: bool) -> list[Segment]:
    """Cut the rendered chat template into what is given and what is to be learned.

    The pictures come first in the first user turn. What is learned begins right after the template's generation prompt,
    as at inference, and includes the end-of-turn token.

    Raises:
        TrainingError: the last turn is not the assistant's, pictures without a user turn, or a template that renders
            the beginning of a conversation differently once more turns follow.
    """
    if not turns or turns[-1].role != "assistant":
        raise TrainingError("the last turn must be the assistant's: it is what the loss is taken on")
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), None)
    if pictures and first is None:
        raise TrainingError("pictures need a user turn to belong to")
    messages = [
        {"role": turn.role, "content": [{"type": "image"}] * (pictures if index == first else 0) + [{"type": "text", "text": turn.text}]}
        for index, turn in enumerate(turns)
    ]
    chosen = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
    segments, done = [], ""
    for index in chosen if every_turn else chosen[-1:]:
        given = processor.apply_chat_template(messages[:index], tokenize=False, add_generation_prompt=True)
        learned = processor.apply_chat_template(messages[: index + 1], tokenize=False)
        if not (given.startswith(done) and learned.startswith(given)):
            raise TrainingError(
                "the chat template renders earlier turns differently once later ones follow; "
                "train on single-turn examples or use a template that only appends"
            )
        segments += [Segment(given[len(done) :], False), Segment(learned[len(given) :], True)]
        done = learned
    return segments


class Encoder:
    """Encodes conversations and pairs, and remembers the encodings while they fit in ``cache_bytes``.

    Args:
        processor: tokenizer, picture processor and chat template of the model.
        image_root: the folder that the records' picture paths are relative to.
        max_image_pixels: larger pictures are scaled down, as at inference.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        image_root: Path,
        *,
        max_image_pixels: int = ChatConfig.max_image_pixels,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self.processor, self.image_root, self.max_image_pixels = processor, Path(image_root), max_image_pixels
        self.pad_token_id: int = processor.tokenizer.pad_token_id
        self._free = cache_bytes
        self._known: dict[str, tuple[Encoded, ...]] = {}
        self._pictures: dict[tuple[str, ...], Mapping[str, Tensor]] = {}

    def encode_example(self, example: SFTExample) -> Encoded:
        """The sequence of a conversation. Loss: the last assistant turn, or every one for ``multi_turn``."""
        if known := self._known.get(example.id):
            return known[0]
        segments = self._render(example.id, example.turns, len(example.images), every_turn=example.kind == "multi_turn")
        head = self._encode_head(example.id, segments[0], example.images)
        return self._remember(example.id, example.images, (self._append(head, segments[1:]),))[0]

    def encode_pair(self, pair: PreferencePair) -> tuple[Encoded, Encoded]:
        """The chosen and the rejected sequence; both begin with the same prompt and pictures."""
        if known := self._known.get(pair.id):
            return known[0], known[1]
        head, sequences = None, []
        for text in (pair.chosen, pair.rejected):
            turns = (ChatTurn(role="user", text=pair.prompt), ChatTurn(role="assistant", text=text))
            segments = self._render(pair.id, turns, len(pair.images), every_turn=False)
            head = head or self._encode_head(pair.id, segments[0], pair.images)
            sequences.append(self._append(head, segments[1:]))
        chosen, rejected = self._remember(pair.id, pair.images, tuple(sequences))
        return chosen, rejected

    def _render(self, name: str, turns: Sequence[ChatTurn], pictures: int, *, every_turn: bool) -> list[Segment]:
        try:
            return render_segments(self.processor, turns, pictures, every_turn=every_turn)
        except TrainingError as error:
            raise TrainingError(f"example {name}: {error}") from error

    def _encode_head(self, name: str, segment: Segment, images: Sequence[str]) -> Encoded:
        tokenizer = self.processor.tokenizer
        # As the processor's own apply_chat_template does: a template that writes the BOS token gets no second one.
        special = not (tokenizer.bos_token and segment.text.startswith(tokenizer.bos_token))
        opened = [self._open_picture(name, image) for image in images]
        inputs = self.processor(images=[opened] if opened else None, text=[segment.text], add_special_tokens=special, return_tensors="pt")
        ids = inputs.pop("input_ids")[0]
        inputs.pop("attention_mask", None)
        types = {key: inputs.pop(key)[0] for key in _TOKEN_TYPES if key in inputs}
        return Encoded(ids, torch.zeros_like(ids, dtype=torch.bool), types, dict(inputs))

    def _append(self, head: Encoded, segments: Sequence[Segment]) -> Encoded:
        parts = [torch.tensor(self.processor.tokenizer(segment.text, add_special_tokens=False)["input_ids"]) for segment in segments]
        masks = [torch.full_like(part, segment.trained, dtype=torch.bool) for part, segment in zip(parts, segments, strict=True)]
        ids = torch.cat([head.input_ids, *parts])
        types = {key: pad(value, (0, len(ids) - len(value))) for key, value in head.types.items()}
        return Encoded(ids, torch.cat([head.trained, *masks]), types, head.pictures)

    def _open_picture(self, name: str, image: str) -> Image.Image:
        try:
            return load_image(self.image_root / image, max_pixels=self.max_image_pixels)
        except DataError as error:
            raise DataError(f"example {name}: {error}") from error

    def _remember(self, name: str, images: tuple[str, ...], sequences: tuple[Encoded, ...]) -> tuple[Encoded, ...]:
        pictures = self._pictures.get(images)
        tensors = [tensor for item in sequences for tensor in (item.input_ids, item.trained, *item.types.values())]
        size = sum(tensor.nbytes for tensor in [*tensors, *(sequences[0].pictures.values() if pictures is None else ())])
        if size > self._free:
            return sequences
        self._free -= size
        shared = self._pictures.setdefault(images, sequences[0].pictures)
        kept = tuple(Encoded(item.input_ids, item.trained, item.types, shared) for item in sequences)
        self._known[name] = kept
        return kept


def stack_sequences(sequences: Sequence[Encoded], *, pad_token_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right: ``input_ids``, ``attention_mask``, ``trained`` of shape (batch, longest), the token
    types, and the pictures joined along their first dimension (zeros fill the others, as the processors do)."""
    length = max(len(item.input_ids) for item in sequences)

    def fill(values: Sequence[Tensor], value: int) -> Tensor:
        return torch.stack([pad(row, (0, length - len(row)), value=value) for row in values])

    batch = {
        "input_ids": fill([item.input_ids for item in sequences], pad_token_id),
        "attention_mask": fill([torch.ones_like(item.input_ids) for item in sequences], 0),
        "trained": fill([item.trained for item in sequences], 0),
    }
    for key in sequences[0].types:
        batch[key] = fill([item.types[key] for item in sequences], 0)
    for key in dict.fromkeys(key for item in sequences for key in item.pictures):
        batch[key] = _join([item.pictures[key] for item in sequences if key in item.pictures])
    return batch


def _join(values: Sequence[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [wanted - size for wanted, size in zip(shape, value.shape[1:], strict=True)]
        padded.append(pad(value, [extra for size in reversed(missing) for extra in (0, size)]) if any(missing) else value)
    return torch.cat(padded)


class SFTCollator:
    """Turns rows that hold an ``index`` into a batch with ``labels`` for SFTTrainer."""

    def __init__(self, encoder: Encoder, examples: Sequence[SFTExample]) -> None:
        self.encoder, self.examples = encoder, examples

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        sequences = [self.encoder.encode_example(self.examples[row["index"]]) for row in rows]
        batch = stack_sequences(sequences, pad_token_id=self.encoder.pad_token_id)
        batch["labels"] = batch["input_ids"].masked_fill(~batch.pop("trained"), IGNORED_LABEL)
        return batch


class PairCollator:
    """Turns rows that hold an ``index`` into a batch for DPOTrainer: first all chosen sequences, then all rejected ones."""

    def __init__(self, encoder: Encoder, pairs: Sequence[PreferencePair]) -> None:
        self.encoder, self.pairs = encoder, pairs

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        encoded = [self.encoder.encode_pair(self.pairs[row["index"]]) for row in rows]
        sequences = [chosen for chosen, _ in encoded] + [rejected for _, rejected in encoded]
        batch = stack_sequences(sequences, pad_token_id=self.encoder.pad_token_id)
        batch["completion_mask"] = batch.pop("trained").long()
        return batch
