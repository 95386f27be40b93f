"""What people said of the search's results: a judgement per task, and the pool of all of them, from which a scorer is learned.

A judgement holds what the tools saw in the task's pictures, so that every candidate program of its instruction can be tried on it again
without them. A pool is immutable; it is saved as JSON and safetensors, with its hash.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from visloop.answers import read_boolean
from visloop.assistant.search_scenes import SceneTable
from visloop.assistant.search_space import Space
from visloop.errors import DataError
from visloop.ids import hash_json
from visloop.records.assistant import Feedback, Task, Trace
from visloop.records.shards import write_text

JUDGEMENTS_NAME, SCENES_NAME = "judgements.json", "scenes.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class JudgedRun:
    """A run of a task with its pictures by variable, and what was said of it."""

    task: Task
    trace: Trace
    feedback: Feedback
    pictures: Mapping[str, Image.Image]


@dataclass(frozen=True, slots=True, eq=False)
class Judgement:
    """What feedback on one task says: the right answer, true or false, to an instruction about one scene (a table of one task)."""

    id: str
    instruction: str
    scene: SceneTable
    answer: bool


def read_answer(trace: Trace, feedback: Feedback) -> bool | None:
    """The right answer according to feedback on a trace: the one that it holds, else the result, or its opposite if that was not
    accepted. None where the answers are not true or false, and where a person's word tells none: what it does not prove about a result
    is not accepted, and need not be wrong.

    Raises:
        DataError: the feedback is about another trace.
    """
    if feedback.trace_id != trace.id:
        raise DataError(f"feedback {feedback.id} is about trace {feedback.trace_id}, not {trace.id}")
    if feedback.answer is not None:
        return read_boolean(feedback.answer)
    result = read_boolean(trace.result or "")
    if result is None or (feedback.source == "person" and not feedback.accepted):
        return None
    return result is feedback.accepted


@dataclass(frozen=True, eq=False)
class JudgementPool:
    """Judgements, one per task."""

    entries: tuple[Judgement, ...] = ()

    def add(self, judgements: Iterable[Judgement]) -> "JudgementPool":
        """These judgements too. Of two on one task the later one counts: people may correct themselves."""
        return JudgementPool(tuple({entry.id: entry for entry in (*self.entries, *judgements)}.values()))

    def find_misfit(self, space: Space) -> str | None:
        """The id of a judgement whose scene was not seen by this space's words, places and relations; None where all were."""
        masks, pairs = {*space.words, *space.places}, {relation.tool for relation in space.relations.values()}
        fits = (entry.scene.masks.keys() == masks and entry.scene.pairs.keys() == pairs for entry in self.entries)
        return next((entry.id for entry, fit in zip(self.entries, fits, strict=True) if not fit), None)

    def list_new(self, before: "JudgementPool") -> list[str]:
        """Ids of judgements that ``before`` does not have, or has otherwise."""
        known = {(entry.id, entry.instruction, entry.answer) for entry in before.entries}
        return [entry.id for entry in self.entries if (entry.id, entry.instruction, entry.answer) not in known]

    @cached_property
    def hash(self) -> str:
        """64 hex digits over everything that is learned from; the order plays no part."""
        return _hash(sorted(self.entries, key=lambda entry: entry.id))


def _hash(entries: Sequence[Judgement]) -> str:
    tensors = _collect_tensors(entries)
    return hash_json([[_describe(entry) for entry in entries], {name: array.tolist() for name, array in sorted(tensors.items())}])


def _describe(entry: Judgement) -> dict[str, Any]:
    scene = entry.scene
    return {
        "id": entry.id,
        "instruction": entry.instruction,
        "answer": entry.answer,
        "pictures": scene.pictures,
        "objects": scene.size,
        "pairs": {tool: int(table.sum()) for tool, table in sorted(scene.pairs.items())},
    }


def _collect_tensors(entries: Sequence[Judgement]) -> dict[str, NDArray[Any]]:
    """All scenes behind one another: ``box`` (n,), ``mask <word>`` (n,), ``pair <tool>`` (m, 2), objects counted within their scene."""
    if not entries:
        return {}
    scenes = [entry.scene for entry in entries]
    tensors: dict[str, NDArray[Any]] = {"box": np.concatenate([scene.box for scene in scenes]).astype(np.int32)}
    for word in sorted(scenes[0].masks):
        tensors[f"mask {word}"] = np.concatenate([scene.masks[word] for scene in scenes])
    for tool in sorted(scenes[0].pairs):
        tensors[f"pair {tool}"] = np.concatenate([np.argwhere(scene.pairs[tool]) for scene in scenes]).astype(np.int32)
    return tensors


def save_judgements(pool: JudgementPool, folder: Path) -> None:
    """Write a pool into a folder (made if it is not there), the list with the hash last."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in _collect_tensors(pool.entries).items()}, folder / SCENES_NAME)
    content = {"judgements": [_describe(entry) for entry in pool.entries], "hash": pool.hash}
    write_text(folder / JUDGEMENTS_NAME, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


def load_judgements(folder: Path) -> JudgementPool:
    """Read a pool; an empty one where the folder is not there.

    Raises:
        DataError: a file is missing or malformed, or the hash does not fit.
    """
    if not folder.is_dir():
        return JudgementPool()
    try:
        content = json.loads((folder / JUDGEMENTS_NAME).read_text(encoding="utf-8"))
        pool = JudgementPool(_build(content["judgements"], load_file(folder / SCENES_NAME)))
        wanted = str(content["hash"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{folder}: no judgements of the program search can be read here: {error}") from error
    if pool.hash != wanted:
        raise DataError(f"{folder}: the hash of the judgements is {pool.hash[:12]}, their list says {wanted[:12]}")
    return pool


def _build(described: Sequence[Mapping[str, Any]], tensors: Mapping[str, NDArray[Any]]) -> tuple[Judgement, ...]:
    entries, start = [], 0
    pair_starts = dict.fromkeys((name for name in tensors if name.startswith("pair ")), 0)
    for item in described:
        size = int(item["objects"])
        span = slice(start, start + size)
        pairs = {}
        for name, first in pair_starts.items():
            last = first + int(item["pairs"][name[5:]])
            pairs[name[5:]] = np.zeros((size, size), dtype=np.bool_)
            places = tensors[name][first:last]
            pairs[name[5:]][places[:, 0], places[:, 1]] = True
            pair_starts[name] = last
        masks = {name[5:]: mask[span] for name, mask in tensors.items() if name.startswith("mask ")}
        scene = SceneTable(1, int(item["pictures"]), tensors["box"][span].astype(np.int64), masks, pairs)
        entries.append(Judgement(str(item["id"]), str(item["instruction"]), scene, bool(item["answer"])))
        start += size
    return tuple(entries)
