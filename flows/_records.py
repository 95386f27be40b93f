"""What the flows read back from finished stages."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from flows._layout import Layout
from visloop.errors import DataError
from visloop.records.reasoning import GroundTruth, Sample, Split
from visloop.records.shards import read_shard, write_text

SPLITS: tuple[Split, ...] = get_args(Split)


def read_split(layout: Layout, split: Split) -> list[Sample]:
    """All samples of one split."""
    return read_shard(layout.raw / f"{split}.jsonl", Sample)


def read_samples(layout: Layout) -> list[Sample]:
    """All samples of all splits."""
    return [sample for split in SPLITS for sample in read_split(layout, split)]


def read_truths(layout: Layout) -> dict[str, GroundTruth]:
    """Ground truth by sample id: for measuring instruments only. Empty for data that has none."""
    return {truth.sample_id: truth for truth in read_shard(layout.raw / "truth.jsonl", GroundTruth)}


def read_pool(layout: Layout) -> list[Sample]:
    """The questions that get generated chains."""
    return read_shard(layout.pool / "pool.jsonl", Sample)


def read_rest(layout: Layout) -> list[Sample]:
    """Training questions outside of the pool: prompts of the rounds, the agent's own chains, general questions.

    Duplicates and what is also held out are not among them.
    """
    return read_shard(layout.pool / "rest.jsonl", Sample)


def write_json(path: Path, value: Any) -> None:
    """A dataclass or plain value as indented JSON, keys sorted."""
    plain = asdict(value) if hasattr(value, "__dataclass_fields__") else value
    write_text(path, json.dumps(plain, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file of a stage.

    Raises:
        DataError: the file is missing or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}; run the stage that writes it") from error
