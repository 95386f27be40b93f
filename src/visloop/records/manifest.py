"""Stage manifests: a stage's folder is finished when its ``manifest.json`` is there, and it is written last."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from visloop.errors import DataError
from visloop.ids import hash_file, hash_json
from visloop.records.shards import write_text

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stage was made from and what it left.

    ``key`` is one hash over inputs, config and code: the same key means that nothing is to be done again.
    ``files`` maps each output, relative to the stage's folder, to its SHA-256; ``shards`` holds the counts of each shard,
    so that one damaged shard can be made again alone. No time stamps: two runs of the same work leave the same bytes.
    """

    stage: str
    inputs: dict[str, str]
    config: dict[str, Any]
    code: str
    files: dict[str, str] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    shards: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return stage_key(stage=self.stage, inputs=self.inputs, config=self.config, code=self.code)


def stage_key(*, stage: str, inputs: dict[str, str], config: dict[str, Any], code: str) -> str:
    """One hash over everything that decides a stage's output."""
    return hash_json({"stage": stage, "inputs": inputs, "config": config, "code": code})


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` atomically, keys sorted."""
    write_text(folder / MANIFEST_NAME, json.dumps(asdict(manifest), indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_manifest(folder: Path) -> Manifest | None:
    """The folder's manifest, or None where the stage has not finished.

    Raises:
        DataError: there is a manifest but it cannot be read.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    try:
        return TypeAdapter(Manifest).validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: not a stage manifest ({error.error_count()} errors); delete it to run the stage again") from error


def check_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names of outputs that are missing or whose bytes changed since the manifest was written."""
    return [name for name, digest in manifest.files.items() if not (folder / name).is_file() or hash_file(folder / name) != digest]
