"""The prompt pool: concept -> learned prompts with the features of the pictures they were learned from (CLOVA 3.4).

A pool is a value. ``add_prompts`` and ``drop_prompts`` give a new one; ``save_pool`` writes a snapshot (``prompts.jsonl``, then
``prompts.safetensors``, whose header holds the checksums of both), ``load_pool`` reads it back and checks it. Several million floats fit;
look-up is by tool and concept.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from visloop.errors import DataError
from visloop.ids import hash_file, hash_json
from visloop.records.assistant import PromptEntry
from visloop.records.shards import iterate_shard, write_bytes, write_shard

ENTRIES_NAME, TENSORS_NAME = "prompts.jsonl", "prompts.safetensors"
_CHECKSUMS: Final = "checksums"
"""The one key of the header's metadata: of several, safetensors would write the order by chance."""
_PARTS: Final = (("feature", 1), ("prompt", 2))
"""The tensors of a prompt with their numbers of dimensions."""
_RESTORE: Final = "restore the snapshot (dvc checkout) or go back to an earlier cycle (make rollback CYCLE=N)"
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
    """The ``most`` prompts whose features are most like ``feature`` (d,), with their cosine similarities, most similar first.

    Raises:
        DataError: a prompt was learned with features of another width: by another model.
    """
    if not prompts:
        return []
    stranger = next((prompt for prompt in prompts if prompt.feature.shape != feature.shape), None)
    if stranger is not None:
        entry = stranger.entry
        raise DataError(
            f"prompt {entry.id} of {entry.tool} for {entry.concept!r}: a feature of shape {stranger.feature.shape}, the model gives "
            f"{feature.shape}; use the model that it was learned with, or learn it again"
        )
    keys = np.stack([prompt.feature for prompt in prompts])
    norms = np.linalg.norm(keys, axis=1) * float(np.linalg.norm(feature))
    similarities = keys @ feature / np.maximum(norms, 1e-12)
    order = np.argsort(-similarities, kind="stable")[:most]
    return [(prompts[index], float(similarities[index])) for index in order]


def save_pool(pool: PromptPool, folder: Path) -> None:
    """Write a snapshot into ``folder``: the records first, the tensors with the checksums last, so that a half-written snapshot is
    noticed. The same pool gives the same bytes."""
    from safetensors.numpy import save

    tensors: Mapping[str, Floats] = {
        f"{prompt.entry.id}.{name}": np.ascontiguousarray(tensor, dtype=np.float32)
        for prompt in pool.prompts
        for name, tensor in (("feature", prompt.feature), ("prompt", prompt.prompt))
    }
    write_shard(folder / ENTRIES_NAME, [prompt.entry for prompt in pool.prompts])
    checksums = {ENTRIES_NAME: hash_file(folder / ENTRIES_NAME), TENSORS_NAME: _hash_tensors(tensors)}
    write_bytes(folder / TENSORS_NAME, save(dict(tensors), metadata={_CHECKSUMS: json.dumps(checksums, sort_keys=True)}))


def load_pool(folder: Path) -> PromptPool:
    """Read a snapshot; a folder that is not there is the empty pool.

    A header without any metadata is of a snapshot from before there were checksums: everything else of it is checked.

    Raises:
        DataError: a file is missing, corrupt, or not as it was written; an id occurs twice; records and tensors do not belong together; a
            tensor is not finite, or of another shape than those of the same owner.
    """
    if not folder.is_dir():
        return PromptPool()
    for name in (ENTRIES_NAME, TENSORS_NAME):
        if not (folder / name).is_file():
            raise DataError(f"{folder / name} is missing: half of a snapshot; {_RESTORE}")
    entries = _read_entries(folder / ENTRIES_NAME)
    tensors, metadata = _read_tensors(folder / TENSORS_NAME)
    if metadata is not None:
        _check_sums(folder, tensors, metadata)
    _check_tensors(folder / TENSORS_NAME, entries, tensors)
    return PromptPool(
        tuple(LearnedPrompt(entry=entry, feature=tensors[f"{entry.id}.feature"], prompt=tensors[f"{entry.id}.prompt"]) for entry in entries)
    )


def _read_entries(path: Path) -> list[PromptEntry]:
    entries: dict[str, PromptEntry] = {}
    for number, entry in enumerate(iterate_shard(path, PromptEntry), start=1):
        if entry.id in entries:
            raise DataError(f"{path}:{number}: id {entry.id} occurred before; ids must be unique: {_RESTORE}")
        entries[entry.id] = entry
    return list(entries.values())


def _read_tensors(path: Path) -> tuple[dict[str, Floats], dict[str, str] | None]:
    """The tensors by name, and the header's metadata; None where it has none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: not a safetensors file: {error}; {_RESTORE}") from error


def _check_sums(folder: Path, tensors: Mapping[str, Floats], metadata: Mapping[str, str]) -> None:
    """Compare both files with the checksums in the header."""
    path = folder / TENSORS_NAME
    try:
        expected = dict(json.loads(metadata[_CHECKSUMS]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: its header holds no checksums that can be read: {_RESTORE}") from error
    for name, found in ((TENSORS_NAME, _hash_tensors(tensors)), (ENTRIES_NAME, hash_file(folder / ENTRIES_NAME))):
        if expected.get(name) != found:
            raise DataError(
                f"{folder / name}: not as it was written: the checksum is {found[:16]}, the header of {TENSORS_NAME} says "
                f"{str(expected.get(name))[:16]}; {_RESTORE}"
            )


def _check_tensors(path: Path, entries: Sequence[PromptEntry], tensors: Mapping[str, Floats]) -> None:
    """Each prompt has its tensors, finite and of the shapes that prompts of one owner share: features are compared with each other, and
    prompts of one group of concepts are mixed. How many tokens a prompt has is its own."""
    for name in sorted(set(tensors) - {f"{entry.id}.{part}" for entry in entries for part, _ in _PARTS}):
        raise DataError(f"{path}: tensor {name} belongs to no prompt in {ENTRIES_NAME}; {_RESTORE}")
    widths: dict[tuple[str, ...], tuple[int, str]] = {}
    for entry in entries:
        for part, dimensions in _PARTS:
            name = f"{entry.id}.{part}"
            where = f"{path}: tensor {name} of {entry.tool} for {entry.concept!r}"
            tensor = tensors.get(name)
            if tensor is None:
                raise DataError(f"{where} is missing, {ENTRIES_NAME} names its prompt; {_RESTORE}")
            if tensor.dtype != np.float32 or tensor.ndim != dimensions or not tensor.size:
                raise DataError(
                    f"{where} has the shape {tensor.shape} of {tensor.dtype}, wanted {dimensions} dimensions of float32; {_RESTORE}"
                )
            if not np.isfinite(tensor).all():
                raise DataError(f"{where} holds values that are not finite; {_RESTORE}")
            owner = (part, entry.tool) if part == "feature" else (part, entry.tool, entry.group)
            width, first = widths.setdefault(owner, (tensor.shape[-1], name))
            if tensor.shape[-1] != width:
                raise DataError(f"{where} is {tensor.shape[-1]} wide, {first} of the same owner {width}: two models made them; {_RESTORE}")


def _hash_tensors(tensors: Mapping[str, Floats]) -> str:
    """SHA-256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()
