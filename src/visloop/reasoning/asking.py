"""Asking a chat model: one batch per turn, with the pictures of a sample in its first user turn."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message
from visloop.config import Sampling
from visloop.errors import DataError, ModelError
from visloop.ids import seed_for
from visloop.records.reasoning import Sample


def ask_model(requests: Sequence[ChatRequest], *, model: ChatModel, sampling: Sampling) -> list[ChatReply]:
    """Send all requests as one batch; no requests, no call.

    Raises:
        ModelError: the backend broke its contract of one reply per request, in order.
    """
    if not requests:
        return []
    replies = model.reply(requests, sampling=sampling)
    if len(replies) != len(requests):
        raise ModelError(f"model {model.name}: {len(replies)} replies to {len(requests)} requests; a backend must give one each, in order")
    return replies


def open_dialogue(sample: Sample, text: str, *, image_root: Path) -> tuple[Message, ...]:
    """The first user turn: the sample's pictures in order, then ``text``."""
    return (Message(role="user", text=text, images=tuple(image_root / image for image in sample.images)),)


def ask_once(
    samples: Sequence[Sample],
    *,
    texts: Sequence[str],
    keys: Sequence[str],
    model: ChatModel,
    sampling: Sampling,
    seed: int,
    image_root: Path,
) -> list[ChatReply]:
    """One single-turn request per sample with its pictures; ``keys`` are the request ids and decide the random draws."""
    requests = [
        ChatRequest(id=key, messages=open_dialogue(sample, text, image_root=image_root), seed=seed_for(seed, key))
        for sample, text, key in zip(samples, texts, keys, strict=True)
    ]
    return ask_model(requests, model=model, sampling=sampling)


def index_samples(samples: Iterable[Sample], *, needed: Iterable[str] = ()) -> Mapping[str, Sample]:
    """Samples by id.

    Raises:
        DataError: an id occurs twice, or one of ``needed`` (the sample ids of other records) has no sample.
    """
    by_id: dict[str, Sample] = {}
    for sample in samples:
        if sample.id in by_id:
            raise DataError(f"sample {sample.id} occurs twice; sample ids must be unique")
        by_id[sample.id] = sample
    missing = sorted(set(needed) - set(by_id))
    if missing:
        raise DataError(f"{len(missing)} records belong to samples that were not given, e.g. {missing[0]}; pass the shard's own samples")
    return by_id
