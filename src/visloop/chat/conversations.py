"""From a request to what a processor takes: rendered text, its token ids before pictures are expanded, the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
import torch
from PIL import Image

from visloop.chat.base import ChatRequest, Message
from visloop.chat.images import load_image, stamp_file
from visloop.errors import DataError, ModelError

_TAIL_TOKENS = 4
"""Tokens without text of their own (parts of a character, dropped specials) that may lie inside a stop string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """One rendered conversation. ``ids`` has one placeholder per picture; ``pictures`` are named by ``picture_keys``."""

    id: str
    text: str
    ids: tuple[int, ...]
    pictures: tuple[Image.Image, ...] = field(repr=False)
    picture_keys: tuple[str, ...]
    seed: int


class ConversationEncoder:
    """Renders with the model's own chat template and encodes with its own processor (left padding)."""

    def __init__(self, processor: Any, *, name: str, max_pixels: int) -> None:
        self._processor, self._name, self._max_pixels = processor, name, max_pixels
        self.tokenizer = processor.tokenizer
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def render_prompts(self, requests: Sequence[ChatRequest]) -> list[Prompt | DataError]:
        """Render each request up to where the assistant speaks, and open its pictures; what cannot be rendered is the reason why.

        Conversations are rendered and tokenized together, equal ones once: with small models this is a large part of the work.

        Raises:
            ModelError: the model has no chat template.
        """
        if not getattr(self._processor, "chat_template", None):
            raise ModelError(f"model {self._name}: its processor has no chat template; add chat_template.jinja to its folder")
        found: list[Prompt | DataError | None] = [None] * len(requests)
        pictures: dict[int, tuple[Image.Image, ...]] = {}
        places: dict[tuple[Message, ...], int] = {}
        for index, request in enumerate(requests):
            try:
                pictures[index] = self._open_pictures(request)
                places.setdefault(request.messages, len(places))
            except DataError as error:
                found[index] = error
        texts = self._render_texts(list(places))
        readable = [text for text in texts if isinstance(text, str)]
        tokenized = self.tokenizer(readable, add_special_tokens=self._adds_special(readable[0]))["input_ids"] if readable else []
        ids = dict(zip(readable, tokenized, strict=True))
        for index in pictures:
            request, text = requests[index], texts[places[requests[index].messages]]
            if isinstance(text, DataError):
                found[index] = text
                continue
            keys = tuple(f"{path}:{stamp_file(path)}" for message in request.messages for path in message.images)
            found[index] = Prompt(
                id=request.id, text=text, ids=tuple(ids[text]), pictures=pictures[index], picture_keys=keys, seed=request.seed
            )
        return [one for one in found if one is not None]

    def _open_pictures(self, request: ChatRequest) -> tuple[Image.Image, ...]:
        if not request.messages or request.messages[-1].role == "assistant":
            raise DataError("the conversation must end with a user turn")
        files = [path for message in request.messages for path in message.images]
        return tuple(load_image(path, max_pixels=self._max_pixels) for path in files)

    def _render_texts(self, conversations: Sequence[tuple[Message, ...]]) -> list[str | DataError]:
        """All in one call; one by one, to name the culprit, when the template refuses one of them."""
        turns = [
            [
                {"role": message.role, "content": [*({"type": "image"} for _ in message.images), {"type": "text", "text": message.text}]}
                for message in messages
            ]
            for messages in conversations
        ]
        try:
            return list(self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)) if turns else []
        except jinja2.TemplateError as error:
            if len(conversations) == 1:
                roles = ", ".join(message.role for message in conversations[0])
                return [DataError(f"the chat template of {self._name} refuses a conversation of the turns {roles}: {error}")]
        return [text for messages in conversations for text in self._render_texts([messages])]

    def encode_prompts(self, prompts: Sequence[Prompt], *, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Model inputs of several prompts, all with or all without pictures; padded on the left.

        Raises:
            DataError: the processor refuses a picture or a text of these prompts.
        """
        pictures = [list(prompt.pictures) for prompt in prompts]
        try:
            features = self._processor(
                text=[prompt.text for prompt in prompts],
                images=pictures if any(pictures) else None,
                padding=True,
                padding_side="left",
                add_special_tokens=self._adds_special(prompts[0].text),
                return_tensors="pt",
            )
        except (ValueError, TypeError, IndexError, OSError) as error:
            raise DataError(f"the processor of {self._name} refuses the conversation: {error}") from error
        features.pop("token_type_ids", None)
        return dict(features.to(device=device, dtype=dtype))

    def _adds_special(self, text: str) -> bool:
        start = self.tokenizer.bos_token
        return not (start and text.startswith(start))

    def decode_reply(self, ids: Sequence[int], *, stop: Sequence[str]) -> str:
        """The text of generated ``ids`` without special tokens, cut before the first stop string."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text[: find_stop(text, stop)]

    def ends_with_stop(self, ids: Sequence[int], *, stop: Sequence[str]) -> bool:
        """Whether the end of the generated ``ids`` holds a stop string. Only as many tokens are read as one can span."""
        tail = ids[-(max(map(len, stop)) + _TAIL_TOKENS) :]
        return find_stop(self.tokenizer.decode(list(tail), skip_special_tokens=True, clean_up_tokenization_spaces=False), stop) is not None


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins in ``text``, or None."""
    places = [place for part in stop if (place := text.find(part)) >= 0]
    return min(places, default=None)
