"""Held-out predictions of registered versions: which there are, and whether two were made under the same conditions.

They are found by hash: the stages of an evaluation name in their manifest the model or the pools that they examined.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows._candidates import Candidate
from flows._folders import hash_input
from flows._layout import pool_inputs
from flows._records import write_json
from flows._registry import POOLS
from visloop.assistant.pools import POOL_NAMES
from visloop.config import Config
from visloop.errors import DataError
from visloop.evaluation.metrics import is_percentage, measure_outcomes, read_outcomes
from visloop.ids import hash_file, hash_json
from visloop.records.manifest import MANIFEST_NAME, Manifest, check_files, read_manifest
from visloop.records.reasoning import Prediction
from visloop.records.shards import read_shard

_SUBJECT = {"model", *POOL_NAMES}
"""The inputs of an examination that are what is examined."""
_LABELS = {"name", "parts"}
"""Settings of an examination that change no answer."""
_PREDICTIONS, _CONDITIONS, _DIGEST = "predictions.jsonl", "conditions.json", "sha256"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One examination of a version: the predictions, and hashes of what else decided them (questions, sampling, judge, code)."""

    folder: Path
    file: Path
    conditions: Mapping[str, str]

    def read(self) -> list[Prediction]:
        return read_shard(self.file, Prediction)


def find_measured(candidate: Candidate) -> list[Measured]:
    """The examinations of a version that lie in its data folder, intact.

    Raises:
        DataError: there is none, or its files are other than recorded; the command that makes one is named.
    """
    pools = candidate.name == POOLS
    pattern = f"assistant/evaluation/*/{MANIFEST_NAME}" if pools else f"evaluation*/*/{MANIFEST_NAME}"
    shard = "test.jsonl" if pools else "predictions.jsonl"
    subject = _hash_subject(candidate)
    found, damaged = [], []
    for path in sorted(candidate.data.glob(pattern)):
        manifest = read_manifest(path.parent)
        if manifest is None or shard not in manifest.files or not subject:
            continue
        if {role: digest for role, digest in manifest.inputs.items() if role in _SUBJECT} != subject:
            continue
        if check_files(path.parent, manifest):
            damaged.append(path.parent)
        else:
            found.append(Measured(folder=path.parent, file=path.parent / shard, conditions=describe_conditions(manifest)))
    if not found:
        why = f"{damaged[0]} is damaged" if damaged else f"no examination in {candidate.data} names it (stage {str(candidate.stage)[:12]})"
        command = f"python -m flows.{'clova' if pools else 'evaluation'}"
        raise DataError(f"{candidate.label} has no held-out predictions: {why}; run `{command}` with the overrides that it was made with")
    return found


def _hash_subject(candidate: Candidate) -> dict[str, str]:
    """The inputs by which an examination names the version: of a cycle its pools, whose bytes do not depend on how long anything took.
    Empty where the version's folder is gone or holds another version by now."""
    if candidate.stage is None:
        return {}
    if candidate.name != POOLS:
        return {"model": candidate.stage}
    folder = candidate.folder
    if folder is None or not folder.is_dir() or hash_input(folder) != candidate.stage:
        return {}
    return {role: hash_input(path) for role, path in pool_inputs(folder).items()}


def describe_conditions(manifest: Manifest) -> dict[str, str]:
    """What decided the predictions beside the version itself, by name, as short hashes."""
    inputs = {f"input {role}": digest for role, digest in manifest.inputs.items() if role not in _SUBJECT}
    settings = {f"setting {key}": hash_json(value) for key, value in manifest.config.items() if key not in _LABELS}
    return {**inputs, **settings, "code": manifest.code}


def pair_measured(left: Sequence[Measured], right: Sequence[Measured]) -> tuple[Measured, Measured]:
    """One examination of each, made under the same conditions.

    Raises:
        DataError: no two were; what differs is named.
    """
    for one in left:
        for other in right:
            if one.conditions == other.conditions:
                return one, other
    one, other = left[0], right[0]
    keys = sorted({*one.conditions, *other.conditions})
    differing = [key for key in keys if one.conditions.get(key) != other.conditions.get(key)]
    raise DataError(
        f"{one.folder} and {other.folder} were not measured under the same conditions ({', '.join(differing)} differ); "
        "run the evaluation of both again with the same settings and code"
    )


def keep_measured(measured: Measured, folder: Path) -> None:
    """A copy of an examination in ``folder``, so that it can be compared with when its own place holds another one."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(measured.file, folder / _PREDICTIONS)
    write_json(folder / _CONDITIONS, {**measured.conditions, _DIGEST: hash_file(measured.file)})


def read_kept(folder: Path) -> Measured:
    """An examination that ``keep_measured`` kept.

    Raises:
        DataError: it cannot be read, or its bytes changed.
    """
    try:
        conditions = json.loads((folder / _CONDITIONS).read_text(encoding="utf-8"))
        intact = conditions.pop(_DIGEST) == hash_file(folder / _PREDICTIONS)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: the kept predictions cannot be read ({error})") from error
    if not intact:
        raise DataError(f"{folder / _PREDICTIONS}: the bytes changed since the predictions were kept")
    return Measured(folder=folder, file=folder / _PREDICTIONS, conditions=conditions)


def describe_measured(candidate: Candidate, *, config: Config) -> str:
    """The figure of a version on held-out data with its interval, as the promotion reads it; ``not measured`` where there is none."""
    metric, evaluation = config.promotion.metric, config.evaluation
    try:
        outcomes = read_outcomes(find_measured(candidate)[-1].read(), metric=metric, name=candidate.label)
    except DataError:
        return "not measured"
    row = measure_outcomes(outcomes, confidence=evaluation.confidence, bootstrap_samples=evaluation.bootstrap_samples, seed=config.seed)
    factor, digits = (100, 1) if is_percentage(metric) else (1, 2)
    low, high = (f"{factor * end:.{digits}f}" for end in (row.low, row.high))
    return f"{factor * row.value:.{digits}f} [{low}, {high}] of {row.n}"
