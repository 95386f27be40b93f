"""Chat with any ``AutoModelForImageTextToText`` in this process: batched, keyed sampling, prefix reuse between turns."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from visloop.chat.adapters import find_base, is_adapter
from visloop.chat.base import ChatReply, ChatRequest, Sampling
from visloop.chat.conversations import ConversationEncoder, Prompt
from visloop.chat.decoding import Decoded, Decoder
from visloop.chat.generate_decoding import GenerateDecoder
from visloop.chat.loads import note_load
from visloop.chat.row_decoding import RowDecoder, supports_row_cache
from visloop.chat.weights import load_arguments, name_model, resolve_model, stamp_weights
from visloop.config import ChatConfig
from visloop.errors import ConfigError, DataError, ModelError

_log = logging.getLogger(__name__)
_CPU_ROOM = 1 << 30
_CPU_MEMORY = ("can't allocate memory", "not enough memory")


@dataclass(eq=False)
class _Loaded:
    """Weights and processor of one model, shared by all chats that mount it."""

    model: Any
    processor: Any


_LOADED: WeakValueDictionary[tuple[object, ...], _Loaded] = WeakValueDictionary()
_LOADING = Lock()


class TransformersChat:
    """A ``ChatModel`` in this process.

    The weights are shared with every other chat of the same model, device and dtype that is still open. A reply depends
    on its own request and ``sampling`` only, floating-point ties apart. One call runs at a time.

    Args:
        config: ``model``, ``device`` (``auto``: an accelerator if there is one), ``dtype`` (``auto``: the checkpoint's, on a CPU
            float32), ``attn_implementation``, ``batch_size``, ``max_image_pixels``.
        keep_bytes: memory for the key-value caches of conversations that may go on; 0 encodes every prompt afresh. By default
            half of the accelerator's memory that is free after loading, or 1 GiB on a CPU.

    Raises:
        ModelError: the model cannot be found or loaded.
        ConfigError: ``dtype`` or ``batch_size`` is not valid.
    """

    def __init__(self, config: ChatConfig, *, keep_bytes: int | None = None) -> None:
        if config.batch_size < 1:
            raise ConfigError(f"batch_size {config.batch_size} of model {config.model!r}; it must be 1 or more")
        self.name = name_model(config.model)
        self._loaded: _Loaded | None = load_model(config)
        model, processor = self._loaded.model, self._loaded.processor
        self._encoder = ConversationEncoder(processor, name=config.model, max_pixels=config.max_image_pixels)
        ends, limit = _find_end_ids(model, processor), _find_limit(model)
        self._decoder: Decoder | None
        if supports_row_cache(model.config):
            keep = _find_room(model.device) if keep_bytes is None else keep_bytes
            self._decoder = RowDecoder(model, self._encoder, end_ids=ends, limit=limit, keep_bytes=keep)
        else:
            self._decoder = GenerateDecoder(model, self._encoder, end_ids=ends, limit=limit)
        self._batch_size = config.batch_size
        self._lock = Lock()

    def reply(self, requests: Sequence[ChatRequest], *, sampling: Sampling) -> list[ChatReply]:
        """Replies in the order of ``requests``; a request that cannot be answered has ``finish="error"`` and says why.

        Raises:
            ModelError: the model itself fails (closed, no chat template, logits that are not finite).
        """
        with self._lock:
            return self._reply(requests, sampling)

    def forget(self) -> None:
        """Drop the caches of past conversations: the next call replies bit for bit like a chat that was just opened."""
        with self._lock:
            if self._decoder is not None:
                self._decoder.forget()

    def close(self) -> None:
        """Let go of the weights and caches; memory is freed when no other chat shares them."""
        with self._lock:
            self._decoder = self._loaded = None
            _free_memory()

    def _reply(self, requests: Sequence[ChatRequest], sampling: Sampling) -> list[ChatReply]:
        if self._decoder is None:
            raise ModelError(f"chat model {self.name!r} was closed; open it again with open_chat")
        replies: dict[int, ChatReply] = {}
        prompts: dict[int, Prompt] = {}
        for index, rendered in enumerate(self._encoder.render_prompts(requests)):
            if isinstance(rendered, DataError):
                replies[index] = ChatReply(text="", finish="error", error=f"request {requests[index].id}: {rendered}")
            else:
                prompts[index] = rendered
        self._decoder.start_call()
        try:
            places = list(prompts)
            waiting = [places[place] for place in self._decoder.order_prompts(list(prompts.values()))]
            while waiting:
                batch, waiting = waiting[: self._batch_size], waiting[self._batch_size :]
                replies |= zip(batch, self._reply_batch([prompts[index] for index in batch], sampling), strict=True)
        finally:
            self._decoder.end_call()
        return [replies[index] for index in range(len(requests))]

    def _reply_batch(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[ChatReply]:
        """Decode one batch; when the memory does not suffice, or a prompt is refused, in halves down to the culprit."""
        if self._decoder is None:
            raise ModelError(f"chat model {self.name!r} was closed")
        try:
            decoded = self._decoder.decode(prompts, sampling=sampling)
            return [self._make_reply(one, sampling) for one in decoded]
        except DataError as error:
            problem = str(error)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            problem = f"out of memory on {self.name!r} even for one conversation: {str(error).splitlines()[0]}"
            self._shrink_batches(len(prompts))
        self._decoder.forget()
        _free_memory()
        if len(prompts) == 1:
            return [ChatReply(text="", finish="error", error=problem)]
        half = (len(prompts) + 1) // 2
        return self._reply_batch(prompts[:half], sampling) + self._reply_batch(prompts[half:], sampling)

    def _shrink_batches(self, failed: int) -> None:
        smaller = max(1, failed // 2)
        if smaller < self._batch_size:
            _log.warning("out of memory with %d conversations on %s: batches of %d from here on", failed, self.name, smaller)
            self._batch_size = smaller

    def _make_reply(self, decoded: Decoded, sampling: Sampling) -> ChatReply:
        return ChatReply(
            text=self._encoder.decode_reply(decoded.ids, stop=sampling.stop),
            finish=decoded.finish,
            prompt_tokens=decoded.prompt_tokens,
            new_tokens=len(decoded.ids),
        )


def load_model(config: ChatConfig) -> _Loaded:
    """The weights and processor of ``config.model``: read once per process while anyone uses them, counted in ``loads``.

    A local or shipped folder is never looked up on the network. A LoRA adapter is merged into its base, so that it decodes
    as fast as full weights.

    Raises:
        ModelError: not found, not loadable as an image-text-to-text model, or an adapter whose base is not the recorded one.
        ConfigError: ``dtype`` is not a torch dtype's name.
    """
    source = resolve_model(config.model)
    device = _pick_device(config.device)
    dtype = _pick_dtype(config.dtype, device=device)
    key = (source, stamp_weights(source), str(device), str(dtype), config.attn_implementation)
    with _LOADING:
        if (loaded := _LOADED.get(key)) is not None:
            return loaded
        base = find_base(source) if is_adapter(source) else source
        try:
            processor: Any = AutoProcessor.from_pretrained(**load_arguments(source), local_files_only=Path(source).is_dir())  # type: ignore[no-untyped-call]
            model: Any = AutoModelForImageTextToText.from_pretrained(
                **load_arguments(base), local_files_only=Path(base).is_dir(), dtype=dtype, attn_implementation=config.attn_implementation
            )
            if base != source:
                model = _merge_adapter(model, source)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise ModelError(
                f"model {config.model!r} ({source}) cannot be loaded: {error}; it must be an image-text-to-text model with its processor"
            ) from error
        note_load(config.model)
        loaded = _Loaded(model.to(device).eval(), processor)
        _LOADED[key] = loaded
        return loaded


def _merge_adapter(model: Any, adapter: str) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload(safe_merge=True)
    except RuntimeError as error:  # shapes that do not fit
        raise ModelError(f"{adapter}: this adapter does not fit its base: {error}") from error


def _pick_device(name: str) -> torch.device:
    if name != "auto":
        return torch.device(name)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _pick_dtype(name: str, *, device: torch.device) -> torch.dtype | str:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ConfigError(f"dtype {name!r} is not a torch dtype; for example auto, float32, bfloat16")
    return dtype


def _find_end_ids(model: Any, processor: Any) -> frozenset[int]:
    """End-of-sequence ids: those of the generation config (one or several) and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in [*ids, processor.tokenizer.eos_token_id] if token is not None)


def _find_limit(model: Any) -> int | None:
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else None


def _find_room(device: torch.device) -> int:
    """Bytes for kept caches."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] // 2)
    return _CPU_ROOM


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error) for part in _CPU_MEMORY)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
