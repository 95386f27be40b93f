"""A snapshot of what the search has learned: words, weights, pictures to compare with. Saved as JSON and safetensors, with its hash."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file

from visloop.assistant.search_candidates import Candidate, add_rates, list_candidates
from visloop.assistant.search_scenes import Executor, SceneTable
from visloop.assistant.search_space import Lexicon, Pack, Space
from visloop.assistant.search_training import Floats, score_candidates
from visloop.assistant.search_words import Reading, read_instruction
from visloop.errors import DataError
from visloop.ids import hash_json

_SPACE = TypeAdapter(Space)
SCORER_NAME, TENSORS_NAME = "scorer.json", "scorer.safetensors"


@dataclass(frozen=True, eq=False)
class Scorer:
    """``weights`` of features (float32 values); ``known`` words, for the repair of spelling; ``reference``: pictures, with no labels, on
    which candidates are rated (see ``add_rates``); ``open_parts``: parts of the space may be proposed without a word for them;
    ``judgements``: ids of the feedback it was learned from."""

    space: Space
    lexicon: Lexicon
    known: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)
    reference: SceneTable | None = None
    open_parts: bool = False
    judgements: tuple[str, ...] = ()

    @cached_property
    def hash(self) -> str:
        """64 hex digits over everything that decides what is proposed."""
        tensors = {name: array.tolist() for name, array in _collect_tensors(self).items()}
        return hash_json([_describe(self), tensors])

    def read(self, instruction: str) -> Reading:
        """The instruction in the words of this snapshot."""
        return read_instruction(instruction, space=self.space, lexicon=self.lexicon, known=self.known)

    def list_candidates(self, reading: Reading) -> list[Candidate]:
        """What the instruction may mean."""
        found = list_candidates(reading, space=self.space, open_parts=self.open_parts)
        return found if self.reference is None else add_rates(found, Executor(self.reference, self.space))

    def rank(self, instruction: str) -> list[tuple[Candidate, float]]:
        """The candidates with their probabilities, likeliest first; equal ones in the order of the search."""
        reading = self.read(instruction)
        candidates = self.list_candidates(reading)
        if not candidates:
            return []
        scores = score_candidates(reading, candidates, self.weights)
        shares: Floats = np.exp(scores - scores.max())
        shares /= shares.sum()
        return [(candidates[index], float(shares[index])) for index in np.argsort(-scores, kind="stable")]


def start_scorer(pack: Pack, *, lexicon: Lexicon | None = None, open_parts: bool = False) -> Scorer:
    """A scorer that has learned nothing: programs that use most of the words, and the shortest of them, come first."""
    words = pack.lexicon if lexicon is None else lexicon
    return Scorer(pack.space, words, frozenset(word for part in words.values() for word in part), open_parts=open_parts)


def _describe(scorer: Scorer) -> dict[str, object]:
    return {
        "space": _SPACE.dump_python(scorer.space, mode="json"),
        "lexicon": {part: sorted(words) for part, words in scorer.lexicon.items()},
        "known": sorted(scorer.known),
        "features": sorted(scorer.weights),
        "open_parts": scorer.open_parts,
        "judgements": list(scorer.judgements),
        "reference": None if scorer.reference is None else [scorer.reference.tasks, scorer.reference.pictures],
    }


def _collect_tensors(scorer: Scorer) -> dict[str, NDArray[Any]]:
    tensors: dict[str, NDArray[Any]] = {"weights": np.array([scorer.weights[name] for name in sorted(scorer.weights)], dtype=np.float32)}
    if scorer.reference is not None:
        tensors["box"] = scorer.reference.box
        tensors |= {f"mask {name}": mask for name, mask in scorer.reference.masks.items()}
        tensors |= {f"pair {name}": np.argwhere(table) for name, table in scorer.reference.pairs.items()}
    return tensors


def save_scorer(scorer: Scorer, folder: Path) -> None:
    """Write a snapshot into a folder (made if it is not there), the description with the hash last."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: np.ascontiguousarray(array) for name, array in _collect_tensors(scorer).items()}, folder / TENSORS_NAME)
    text = json.dumps(_describe(scorer) | {"hash": scorer.hash}, ensure_ascii=False, indent=1)
    (folder / SCORER_NAME).write_text(text + "\n", encoding="utf-8")


def load_scorer(folder: Path) -> Scorer:
    """Read a snapshot.

    Raises:
        DataError: a file is missing or malformed, or the hash does not fit.
    """
    try:
        found = json.loads((folder / SCORER_NAME).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSORS_NAME)
        scorer = _build(found, tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: no scorer of the program search can be read here: {error}") from error
    if scorer.hash != found["hash"]:
        raise DataError(f"{folder}: the scorer's hash is {scorer.hash[:12]}, its description says {str(found['hash'])[:12]}")
    return scorer


def _build(found: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> Scorer:
    names: Sequence[str] = found["features"]
    counts: Sequence[int] | None = found["reference"]
    reference = None
    if counts is not None:
        pairs = {}
        for name, places in tensors.items():
            if name.startswith("pair "):
                pairs[name[5:]] = np.zeros((len(tensors["box"]), len(tensors["box"])), dtype=np.bool_)
                pairs[name[5:]][places[:, 0], places[:, 1]] = True
        masks = {name[5:]: mask for name, mask in tensors.items() if name.startswith("mask ")}
        reference = SceneTable(counts[0], counts[1], tensors["box"], masks, pairs)
    return Scorer(
        space=_SPACE.validate_python(found["space"]),
        lexicon={part: tuple(words) for part, words in found["lexicon"].items()},
        known=frozenset(found["known"]),
        weights=dict(zip(names, map(float, tensors["weights"]), strict=True)),
        reference=reference,
        open_parts=bool(found["open_parts"]),
        judgements=tuple(found["judgements"]),
    )
