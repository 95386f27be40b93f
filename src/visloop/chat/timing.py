"""How long a program waits for a chat model: wall time, so for the history alone and never for a record."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from visloop.chat.base import ChatModel, ChatReply, ChatRequest
from visloop.config import Sampling


@dataclass
class TimedChat:
    """The same model with a clock. ``seconds`` is the sum over the calls of ``reply`` so far, those that raised included."""

    inner: ChatModel
    seconds: float = 0.0
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def reply(self, requests: Sequence[ChatRequest], *, sampling: Sampling) -> list[ChatReply]:
        """What the model replies."""
        began = time.perf_counter()
        try:
            return self.inner.reply(requests, sampling=sampling)
        finally:
            self.seconds += time.perf_counter() - began

    def close(self) -> None:
        """Close the model."""
        self.inner.close()
