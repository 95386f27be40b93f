"""The ChatModel protocol and its messages. No heavy library is imported here."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from visloop.config import Sampling

__all__ = ["ChatModel", "ChatReply", "ChatRequest", "Finish", "Message", "Role", "Sampling"]

Role = Literal["system", "user", "assistant"]
Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. ``images`` come before the text, in order."""

    role: Role
    text: str
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One conversation that waits for an assistant turn. ``seed`` alone decides the request's random draws."""

    id: str
    messages: tuple[Message, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The assistant turn. ``finish`` "length": cut by the token budget; "error": no reply, ``error`` says why."""

    text: str
    finish: Finish
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None


class ChatModel(Protocol):
    """Anything that answers conversations. Replies come in the order of the requests; a failed request is a reply
    with ``finish="error"``, never an exception, so that one bad picture does not lose a batch."""

    name: str

    def reply(self, requests: Sequence[ChatRequest], *, sampling: Sampling) -> list[ChatReply]: ...

    def close(self) -> None: ...
