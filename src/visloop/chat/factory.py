"""Open a chat model by its config. The heavy backends are imported only when one is asked for."""

from dataclasses import astuple
from threading import Lock

from visloop.chat.base import ChatModel
from visloop.chat.weights import resolve_model, stamp_weights
from visloop.config import Backend, ChatConfig

_CACHED: dict[tuple[object, ...], ChatModel] = {}
_LOCK = Lock()


def open_chat(config: ChatConfig) -> ChatModel:
    """The chat model of ``config``, ready to reply. The caller closes it.

    Raises:
        ModelError: the model cannot be found or loaded; its endpoint does not answer or refuses the key.
        ConfigError: a value of ``config`` is out of range.
    """
    if config.backend is Backend.openai:
        from visloop.chat.openai import OpenAIChat

        served = OpenAIChat(config)
        try:
            served.check_endpoint()
        except BaseException:
            served.close()
            raise
        return served
    from visloop.chat.transformers import TransformersChat

    return TransformersChat(config)


def cached_chat(config: ChatConfig) -> ChatModel:
    """The chat model of ``config``, opened at the first call and shared by all later ones with equal values.

    A folder whose weights were rewritten counts as another model. Do not close it yourself: ``close_chats`` does.

    Raises:
        ModelError, ConfigError: as ``open_chat``.
    """
    source = resolve_model(config.model) if config.backend is Backend.transformers else config.model
    key = (source, stamp_weights(source), *astuple(config))
    with _LOCK:
        if key not in _CACHED:
            _CACHED[key] = open_chat(config)
        return _CACHED[key]


def close_chats() -> None:
    """Close every chat model that ``cached_chat`` holds, and free its memory."""
    with _LOCK:
        chats = list(_CACHED.values())
        _CACHED.clear()
    for chat in chats:
        chat.close()
