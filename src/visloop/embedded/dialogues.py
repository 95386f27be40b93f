"""Conversations as training sequences: what the chat template writes, as ids, with the loss on every assistant turn."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaProcessor

from visloop.embedded.tokenizer import EOS, IMAGE, PAD, ROLES
from visloop.records.chains import CHAIN_TOKENS

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation about one scene of a gallery (its index there; None: no picture), turns of (user text, assistant text).

    ``lines`` says of every step line inside the ``<thoughts>`` of the user turns whether it is right, in reading order;
    empty where a stage has no use for it.
    """

    scene: int | None
    turns: tuple[tuple[str, str], ...]
    lines: tuple[bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of one conversation, which of them carry loss, and the picture rows its image tokens stand for.

    ``marks``: positions of the line ends of ``Dialogue.lines``, each with whether its line is right.
    """

    ids: list[int]
    loss: list[bool]
    pictures: tuple[int, ...]
    marks: tuple[tuple[int, bool], ...] = ()


class DialogueEncoder:
    """Turns conversations into ids without a processor call per conversation; equal to the chat template's ids (tested).

    Args:
        processor: the model's processor.
        patches: image tokens per picture.
    """

    def __init__(self, processor: LlavaProcessor, *, patches: int) -> None:
        tokenizer = processor.tokenizer
        self._backend = tokenizer.backend_tokenizer
        self._cache: dict[str, list[int]] = {}
        self.pad, self.eos, self.image = (tokenizer.convert_tokens_to_ids(token) for token in (PAD, EOS, IMAGE))
        self.unknown = tokenizer.unk_token_id
        self._user, self._assistant = (tokenizer.convert_tokens_to_ids(ROLES[role]) for role in ("user", "assistant"))
        self._open, self._close, self._newline = (tokenizer.convert_tokens_to_ids(token) for token in (*CHAIN_TOKENS[:2], "\n"))
        self._patches = patches

    def encode_text(self, text: str) -> list[int]:
        """Ids of one text."""
        ids = self._cache.get(text)
        if ids is None:
            ids = self._backend.encode(text, add_special_tokens=False).ids
            if len(self._cache) < 200_000:
                self._cache[text] = ids
        return ids

    def _encode_pictures(self, count: int) -> list[int]:
        picture = [self.image] * self._patches
        if count == 1:
            return picture
        return [token for number in range(1, count + 1) for token in (*self.encode_text(str(number)), *picture)]

    def encode_dialogue(self, dialogue: Dialogue, pictures: tuple[int, ...]) -> Encoded:
        """Ids and loss mask of a whole conversation; the pictures belong to its first user turn."""
        ids: list[int] = []
        loss: list[bool] = []
        for number, (question, reply) in enumerate(dialogue.turns):
            asked = [
                self._user,
                *(self._encode_pictures(len(pictures)) if number == 0 else []),
                *self.encode_text(question),
                self._assistant,
            ]
            said = [*self.encode_text(reply), self.eos]
            ids += asked + said
            loss += [False] * len(asked) + [True] * len(said)
        if not dialogue.lines:
            return Encoded(ids, loss, pictures)
        return Encoded(ids, loss, pictures, tuple(zip(self._find_line_ends(ids), dialogue.lines, strict=True)))

    def _find_line_ends(self, ids: Sequence[int]) -> list[int]:
        """Positions of the line breaks that end a step line: those between the tags, but the one right after the first tag."""
        ends, inside = [], False
        for position, token in enumerate(ids):
            if token in (self._open, self._close):
                inside = token == self._open
            elif inside and token == self._newline and ids[position - 1] != self._open:
                ends.append(position)
        return ends

    def encode_prompt(self, texts: Sequence[str], pictures: int) -> list[int]:
        """Ids of a conversation that waits for a reply; ``texts`` alternate user, assistant, ..., user."""
        ids: list[int] = []
        for number, text in enumerate(texts):
            if number % 2:
                ids += [*self.encode_text(text), self.eos]
            else:
                ids += [self._user, *(self._encode_pictures(pictures) if number == 0 else []), *self.encode_text(text), self._assistant]
        return ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded ``ids`` (b, t), next-token ``labels`` (b, t; -100 where no loss), ``pictures`` rows in reading order.

    ``marks`` (m, 3): row, position and 0/1 of every marked line end.
    """

    ids: Tensor
    labels: Tensor
    pictures: Tensor
    marks: Tensor


def collate_sequences(sequences: Sequence[Encoded], *, pad: int) -> Batch:
    """Pad on the right. With causal attention no real token sees the padding, so no attention mask is needed."""
    longest = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), longest), pad)
    labels = torch.full((len(sequences), longest), IGNORED)
    for row, sequence in enumerate(sequences):
        tokens = torch.tensor(sequence.ids)
        ids[row, : len(tokens)] = tokens
        carried = torch.tensor(sequence.loss[1:])
        labels[row, : len(tokens) - 1][carried] = tokens[1:][carried]
    pictures = torch.tensor([row for sequence in sequences for row in sequence.pictures], dtype=torch.long)
    marks = [(row, position, int(right)) for row, sequence in enumerate(sequences) for position, right in sequence.marks]
    return Batch(ids, labels, pictures, torch.tensor(marks, dtype=torch.long).reshape(-1, 3))
