"""The prompt pool: concept -> learned prompts with the features of the pictures they were learned from (CLOVA 3.4).

A pool is a value. ``add_prompts`` and ``drop_prompts`` give a new one; ``save_pool`` writes a snapshot (``prompts.jsonl`` and
``prompts.safetensors``), ``load_pool`` reads it back. Several million floats fit; look-up is by tool and concept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visloop.errors import DataError
from visloop.ids import hash_json
from visloop.records.assistant import PromptEntry
from visloop.records.shards import read_shard, write_shard

ENTRIES_NAME, TENSORS_NAME = "prompts.jsonl", "prompts.safetensors"
ANCHORS: Final = "(anchors)"
"""The concept under which the zero prompts of questions that were right already lie in the pool: as many as there are questions."""
QUESTION_STATES: Final = "question_states"
"""The placement of prompts of single questions: an answer has as many as there were questions for it."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LearnedPrompt:
    """One prompt with its tensors: ``feature`` (d,) of the picture it was learned from, ``prompt`` (tokens, width)."""

    entry: PromptEntry
    feature: Floats
    prompt: Floats


@dataclass(frozen=True, eq=False)
class PromptPool:
    """A snapshot of learned prompts. ``hash`` depends on their ids only: an id is made from what the prompt was learned with."""

    prompts: tuple[LearnedPrompt, ...] = ()
    _index: dict[tuple[str, str], tuple[LearnedPrompt, ...]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        groups: dict[tuple[str, str], list[LearnedPrompt]] = {}
        for prompt in self.prompts:
            groups.setdefault((prompt.entry.tool, prompt.entry.concept), []).append(prompt)
        self._index.update({key: tuple(group) for key, group in groups.items()})

    @cached_property
    def hash(self) -> str:
        """16 hex digits over the ids of the prompts, in any order."""
        return hash_json(sorted(prompt.entry.id for prompt in self.prompts))[:16]

    def find_prompts(self, tool: str, concept: str) -> tuple[LearnedPrompt, ...]:
        """The prompts of one concept of one tool; empty if there are none."""
        return self._index.get((tool, concept), ())

    def list_concepts(self, tool: str) -> tuple[str, ...]:
        """Concepts that have prompts for a tool, sorted."""
        return tuple(sorted(concept for owner, concept in self._index if owner == tool))

    def list_learned(self) -> dict[str, list[str]]:
        """What was learned, by the owner of the prompts; anchors are no words."""
        owners = sorted({owner for owner, _ in self._index})
        return {owner: [concept for concept in self.list_concepts(owner) if concept != ANCHORS] for owner in owners}

    def add_prompts(self, prompts: Iterable[LearnedPrompt], *, most_per_concept: int | None) -> "PromptPool":
        """A pool with these as well. A prompt whose id is there already is not added twice; a concept keeps the
        ``most_per_concept`` prompts that validated best, older ones first where they are equal (None: all)."""
        known = {prompt.entry.id for prompt in self.prompts}
        added = [prompt for prompt in prompts if prompt.entry.id not in known]
        limited = {(prompt.entry.tool, prompt.entry.concept) for prompt in added} if most_per_concept is not None else set()
        merged = [*self.prompts, *{prompt.entry.id: prompt for prompt in added}.values()]
        dropped: set[str] = set()
        for key in limited:
            group = [prompt for prompt in merged if (prompt.entry.tool, prompt.entry.concept) == key]
            ranked = sorted(group, key=lambda prompt: -prompt.entry.validation_accuracy)
            dropped.update(prompt.entry.id for prompt in ranked[most_per_concept:])
        return PromptPool(tuple(prompt for prompt in merged if prompt.entry.id not in dropped))

    def drop_prompts(self, ids: Iterable[str]) -> "PromptPool":
        """A pool without the named prompts."""
        gone = set(ids)
        return PromptPool(tuple(prompt for prompt in self.prompts if prompt.entry.id not in gone))


def rank_prompts(prompts: Sequence[LearnedPrompt], feature: Floats, *, most: int) -> list[tuple[LearnedPrompt, float]]:
    """The ``most`` prompts whose features are most like ``feature`` (d,), with their cosine similarities, most similar first."""
    if not prompts:
        return []
    keys = np.stack([prompt.feature for prompt in prompts])
    norms = np.linalg.norm(keys, axis=1) * float(np.linalg.norm(feature))
    similarities = keys @ feature / np.maximum(norms, 1e-12)
    order = np.argsort(-similarities, kind="stable")[:most]
    return [(prompts[index], float(similarities[index])) for index in order]


def save_pool(pool: PromptPool, folder: Path) -> None:
    """Write a snapshot into ``folder``: the tensors first, the records last."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors: Mapping[str, Floats] = {
        f"{prompt.entry.id}.{name}": np.ascontiguousarray(tensor, dtype=np.float32)
        for prompt in pool.prompts
        for name, tensor in (("feature", prompt.feature), ("prompt", prompt.prompt))
    }
    save_file(dict(tensors), folder / TENSORS_NAME)
    write_shard(folder / ENTRIES_NAME, [prompt.entry for prompt in pool.prompts])


def load_pool(folder: Path) -> PromptPool:
    """Read a snapshot; a folder that is not there is the empty pool.

    Raises:
        DataError: the records and the tensors do not belong together, or a file is corrupt.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not folder.is_dir():
        return PromptPool()
    entries = read_shard(folder / ENTRIES_NAME, PromptEntry)
    try:
        tensors = load_file(folder / TENSORS_NAME)
        return PromptPool(
            tuple(
                LearnedPrompt(entry=entry, feature=tensors[f"{entry.id}.feature"], prompt=tensors[f"{entry.id}.prompt"])
                for entry in entries
            )
        )
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / TENSORS_NAME}: not a safetensors file: {error}") from error
    except KeyError as error:
        raise DataError(f"{folder}: {ENTRIES_NAME} names a prompt without tensor {error} in {TENSORS_NAME}") from error
