"""Retrieval of demonstrations by the embedding of the instruction alone (CLOVA 3.2), and the random draw in its place.

What an instruction is about (its concept words) says little about which program it needs, so an encoder is wrapped in
``MaskedEncoder``, which shows it ``things`` in their place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from visloop.assistant.lexicon import FUNCTION_WORDS, Lexicon, split_words
from visloop.config_assistant import RetrievalChoice
from visloop.errors import ConfigError
from visloop.ids import seed_for
from visloop.records.assistant import Demonstration, Task

Floats = NDArray[np.float32]


class Encoder(Protocol):
    """Anything that embeds texts: (n, d) float32, rows of length 1, or 0 for a text that says nothing."""

    def encode(self, texts: Sequence[str]) -> Floats: ...


@dataclass(frozen=True, slots=True)
class WordEncoder:
    """Hashed bags of words, word pairs and word pieces; nothing to load or to fit. Function words count less than others."""

    width: int = 4096
    function_weight: float = 0.5

    def encode(self, texts: Sequence[str]) -> Floats:
        from sklearn.feature_extraction import FeatureHasher

        if not texts:
            return np.zeros((0, self.width), dtype=np.float32)
        hasher = FeatureHasher(n_features=self.width, input_type="pair", dtype=np.float32)
        rows = hasher.transform([self._list_features(text) for text in texts]).toarray()
        return _normalize_rows(np.asarray(rows, dtype=np.float32))

    def _list_features(self, text: str) -> list[tuple[str, float]]:
        words = [word.norm for word in split_words(text)]
        features = [(f"w {word}", self.function_weight if word in FUNCTION_WORDS else 1.0) for word in words]
        if words:
            features += [(f"p {first} {second}", 0.5) for first, second in zip(["<", *words], [*words, ">"], strict=True)]
        for word in words:
            if len(word) > 4 and word not in FUNCTION_WORDS:
                features += [(f"c {word[start : start + 4]}", 0.5 / (len(word) - 3)) for start in range(len(word) - 3)]
        return features


@dataclass(frozen=True, slots=True)
class MaskedEncoder:
    """An encoder that sees no concept words. Embeddings are remembered: a pool's instructions come again with every task."""

    encoder: Encoder
    lexicon: Lexicon
    _known: dict[str, Floats] = field(default_factory=dict, init=False, repr=False, compare=False)

    def encode(self, texts: Sequence[str]) -> Floats:
        masked = [self.lexicon.mask(text) for text in texts]
        missing = [text for text in dict.fromkeys(masked) if text not in self._known]
        if missing:
            self._known.update(zip(missing, self.encoder.encode(missing), strict=True))
        return np.stack([self._known[text] for text in masked]) if masked else self.encoder.encode([])


def retrieve(instruction: str, entries: Sequence[Demonstration], *, encoder: Encoder, most: int) -> list[tuple[Demonstration, float]]:
    """The ``most`` entries whose instructions are most like ``instruction``, with cosine similarities, most similar last.

    Of equally similar ones the later in the pool counts as more similar: it was learned later.

    Raises:
        ConfigError: ``most`` is negative.
    """
    _check_number(most)
    if not entries or most == 0:
        return []
    vectors = encoder.encode([instruction, *(entry.instruction for entry in entries)])
    similarities = vectors[1:] @ vectors[0]
    order = np.argsort(similarities.round(5), kind="stable")[-most:]
    return [(entries[index], float(similarities[index])) for index in order]


def draw_entries(task: Task, entries: Sequence[Demonstration], *, most: int, seed: int) -> list[Demonstration]:
    """``most`` entries drawn at random without replacement, the first drawn first.

    The place of an entry depends on ``seed``, the task and the entry alone: neither the order of pool and tasks nor the other entries
    change it, so that a pool that has grown by one entry gives a draw with at most that one exchanged.

    Raises:
        ConfigError: ``most`` is negative.
    """
    _check_number(most)
    return sorted(entries, key=lambda entry: (seed_for(seed, "retrieval", task.id, entry.id), entry.id))[:most]


def choose_entries(
    task: Task, entries: Sequence[Demonstration], *, choice: RetrievalChoice, encoder: Encoder, most: int, seed: int
) -> list[Demonstration]:
    """The ``most`` entries that ``planner.retrieval`` gives a task, the most similar (or first drawn) last.

    Args:
        seed: of the draw; similar entries need none.

    Raises:
        ConfigError: ``most`` is negative.
    """
    if choice is RetrievalChoice.random:
        return draw_entries(task, entries, most=most, seed=seed)[::-1]
    return [entry for entry, _ in retrieve(task.instruction, entries, encoder=encoder, most=most)]


def _check_number(most: int) -> None:
    if most < 0:
        raise ConfigError(f"planner.demonstrations: {most} demonstrations were asked for; use 0 or more")


def _normalize_rows(rows: Floats) -> Floats:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(norms > 0, norms, 1.0), dtype=np.float32)
