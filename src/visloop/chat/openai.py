"""Chat with any OpenAI-compatible endpoint (vLLM, ``transformers serve``, a hosted API): many requests in flight, few at a time."""

import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import anyio
import anyio.to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal
from openai import (
    APIConnectionError,
    APIStatusError,
    APITimeoutError,
    AsyncOpenAI,
    AuthenticationError,
    OpenAIError,
)
from pydantic import BaseModel, Field, ValidationError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from visloop.chat.base import ChatReply, ChatRequest, Finish, Message, Sampling
from visloop.chat.images import encode_data_url
from visloop.config import ChatConfig
from visloop.errors import ConfigError, DataError, ModelError, ReplyError

_log = logging.getLogger(__name__)
_RETRIED_STATUS = frozenset({408, 409, 429})
_LONGEST_WAIT = 60.0
_FINISHES: dict[str | None, Finish] = {"stop": "stop", None: "stop", "length": "length"}


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(BaseModel):
    """What is read of a completion. Validated here, because the client builds its own objects without a check."""

    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


class OpenAIChat:
    """A ``ChatModel`` behind an endpoint.

    ``reply`` is synchronous; the requests run on an event loop in a thread of its own, so it may be called from any
    thread, also one that runs an event loop. A failed request is tried again after a growing, jittered pause (or the
    server's ``Retry-After``); what still fails becomes a reply with ``finish="error"``.

    Args:
        config: ``model`` (the served name), ``base_url``, ``api_key_env`` (an unset or empty variable means no key, as local
            servers want it), ``concurrency`` (requests in flight), ``timeout_seconds`` (per attempt, by the clock),
            ``max_retries``, ``max_image_pixels``.

    Raises:
        ConfigError: one of these is out of range.
    """

    def __init__(self, config: ChatConfig) -> None:
        for name, value, least in (("concurrency", config.concurrency, 1), ("max_retries", config.max_retries, 0)):
            if value < least:
                raise ConfigError(f"{name} {value} of endpoint {config.base_url}; it must be {least} or more")
        if not config.timeout_seconds > 0:
            raise ConfigError(f"timeout_seconds {config.timeout_seconds} of endpoint {config.base_url}; it must be positive")
        self.name = config.model
        self._config = config
        self._key = os.environ.get(config.api_key_env, "")
        self._client = AsyncOpenAI(base_url=config.base_url, api_key=self._key or "no-key", timeout=config.timeout_seconds, max_retries=0)
        self._slots = anyio.Semaphore(config.concurrency)
        self._exit = ExitStack()
        self._portal: BlockingPortal | None = self._exit.enter_context(start_blocking_portal())

    def check_endpoint(self) -> None:
        """Ask the endpoint for its models, to fail early. Any answer but a refused key counts as being there.

        Raises:
            ModelError: nothing answers at ``base_url``, or the key is refused.
        """
        self._running().call(self._check)

    def reply(self, requests: Sequence[ChatRequest], *, sampling: Sampling) -> list[ChatReply]:
        """Replies in the order of ``requests``; a request that failed for good has ``finish="error"`` and says why.

        Raises:
            ModelError: the chat was closed.
        """
        return self._running().call(self._reply_all, requests, sampling)

    def close(self) -> None:
        """Close the connections and end the thread. A second call does nothing."""
        if self._portal is not None:
            portal, self._portal = self._portal, None
            portal.call(self._client.close)
            self._exit.close()

    def _running(self) -> BlockingPortal:
        if self._portal is None:
            raise ModelError(f"chat model {self.name!r} at {self._config.base_url} was closed; open it again with open_chat")
        return self._portal

    async def _check(self) -> None:
        try:
            with anyio.fail_after(self._config.timeout_seconds):
                await self._client.models.list()
        except (APIConnectionError, TimeoutError) as error:
            raise ModelError(
                f"no chat endpoint answers at {self._config.base_url} ({self._explain(error)}); start the server of model "
                f"{self.name!r} or set base_url"
            ) from error
        except AuthenticationError as error:
            raise ModelError(
                f"{self._config.base_url} refuses the key ({self._explain(error)}); set the environment variable {self._config.api_key_env}"
            ) from error
        except (OpenAIError, ValueError) as error:
            _log.info("%s answers, but lists no models: %s", self._config.base_url, self._explain(error))

    async def _reply_all(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[ChatReply]:
        replies: dict[int, ChatReply] = {}

        async def fill(index: int) -> None:
            async with self._slots:
                replies[index] = await self._reply_one(requests[index], sampling)

        async with anyio.create_task_group() as group:
            for index in range(len(requests)):
                group.start_soon(fill, index)
        return [replies[index] for index in range(len(requests))]

    async def _reply_one(self, request: ChatRequest, sampling: Sampling) -> ChatReply:
        try:
            messages = await anyio.to_thread.run_sync(build_messages, request.messages, self._config.max_image_pixels)
            async for attempt in AsyncRetrying(
                stop=stop_after_attempt(self._config.max_retries + 1),
                wait=_pick_wait,
                retry=retry_if_exception(_is_passing),
                reraise=True,
            ):
                with attempt, anyio.fail_after(self._config.timeout_seconds):
                    response = await self._client.chat.completions.with_raw_response.create(
                        model=self.name, messages=messages, **build_options(sampling, seed=request.seed)
                    )
            return read_completion(response.content)
        except DataError as error:
            problem = f"request {request.id}: {error}"
        except (OpenAIError, ReplyError, TimeoutError, ValueError) as error:
            problem = f"request {request.id} to {self.name!r} at {self._config.base_url}: {self._explain(error)}"
        return ChatReply(text="", finish="error", error=problem)

    def _explain(self, error: Exception) -> str:
        """What went wrong in one line, without the key."""
        if isinstance(error, APITimeoutError | TimeoutError):
            text = f"no reply within {self._config.timeout_seconds:g} s"
        elif isinstance(error, APIConnectionError):
            text = f"no connection ({error.__cause__ or error})"
        elif isinstance(error, APIStatusError):
            text = f"status {error.status_code} ({error.response.text or error.message})"
        elif isinstance(error, ReplyError):
            text = str(error)
        else:
            text = f"malformed body ({error})"
        if self._key:
            text = text.replace(self._key, "***")
        return " ".join(text.split())[:500]


def build_messages(messages: Sequence[Message], max_pixels: int) -> list[Any]:
    """Messages as the endpoint takes them: plain strings, or pictures as base64 data URLs followed by the text.

    Raises:
        DataError: a picture cannot be read.
    """
    return [
        {
            "role": message.role,
            "content": [
                *({"type": "image_url", "image_url": {"url": encode_data_url(path, max_pixels=max_pixels)}} for path in message.images),
                {"type": "text", "text": message.text},
            ]
            if message.images
            else message.text,
        }
        for message in messages
    ]


def build_options(sampling: Sampling, *, seed: int) -> dict[str, Any]:
    """Decoding options of a request; what OpenAI's own schema lacks goes into ``extra_body``, and only when it is switched on."""
    options: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_new_tokens,
        "seed": seed,
    }
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    extra: dict[str, Any] = {}
    if sampling.top_k > 0:
        extra["top_k"] = sampling.top_k
    if sampling.repetition_penalty != 1.0:
        extra["repetition_penalty"] = sampling.repetition_penalty
    return options | ({"extra_body": extra} if extra else {})


def read_completion(body: str | bytes) -> ChatReply:
    """The reply in the body of a chat completion.

    Raises:
        ReplyError: it is no completion, has no choice or no text, or ended for another reason than "stop" or "length".
    """
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise ReplyError(f"malformed body: {where}: {first['msg']}; a chat completion was expected, not {body[:200]!r}") from error
    choice, usage = completion.choices[0], completion.usage or _Usage()
    if choice.message.content is None:
        refusal = choice.message.refusal
        raise ReplyError(f"the model refused: {refusal}" if refusal else f"malformed body: no text, finish {choice.finish_reason!r}")
    if choice.finish_reason not in _FINISHES:
        raise ReplyError(f"finish reason {choice.finish_reason!r}; stop or length was expected")
    return ChatReply(
        text=choice.message.content,
        finish=_FINISHES[choice.finish_reason],
        prompt_tokens=usage.prompt_tokens or 0,
        new_tokens=usage.completion_tokens or 0,
    )


def _is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed later: no connection, no reply in time, overload, a fault of the server."""
    if isinstance(error, APIStatusError):
        return error.status_code in _RETRIED_STATUS or error.status_code >= 500
    return isinstance(error, APIConnectionError | TimeoutError)


def _pick_wait(state: RetryCallState) -> float:
    """Seconds before the next attempt: what the server asks for, else exponential with full jitter."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.response.headers.get("retry-after", "") if isinstance(error, APIStatusError) else ""
    if asked.isdecimal():
        return min(float(asked), _LONGEST_WAIT)
    return float(wait_random_exponential(multiplier=0.5, max=8)(state))
