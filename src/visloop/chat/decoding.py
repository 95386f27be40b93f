"""What the in-process backend asks of a way to decode: by rows over a cache, or by the model's own ``generate``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from visloop.chat.base import Finish, Sampling
from visloop.chat.conversations import Prompt


@dataclass(frozen=True, slots=True)
class Decoded:
    """What one row wrote: token ids (an end-of-sequence token included), why it ended, and the prompt's expanded length."""

    ids: list[int]
    finish: Finish
    prompt_tokens: int


class Decoder(Protocol):
    """Decodes the batches of one call: ``start_call``, ``order_prompts``, ``decode`` for each batch, ``end_call``."""

    def start_call(self) -> None: ...

    def order_prompts(self, prompts: Sequence[Prompt]) -> list[int]:
        """The order in which the prompts are best cut into batches."""
        ...

    def decode(self, prompts: Sequence[Prompt], *, sampling: Sampling) -> list[Decoded]:
        """One reply per prompt, in order.

        Raises:
            DataError: the processor refuses one of the prompts, or one is longer than the model takes.
            ModelError: the logits are not finite.
        """
        ...

    def end_call(self) -> None: ...

    def forget(self) -> None:
        """Free what is kept between calls."""
        ...
