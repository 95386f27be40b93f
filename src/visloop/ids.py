"""Content hashes, record ids and seeds: every id and every random draw is a function of its inputs."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ID_LENGTH = 16


def hash_text(text: str) -> str:
    """SHA-256 of ``text`` (UTF-8) as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of the canonical JSON form of ``value`` (sorted keys, no spaces)."""
    return hash_text(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def hash_file(path: Path) -> str:
    """SHA-256 of the bytes of one file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def hash_tree(paths: Iterable[Path]) -> str:
    """SHA-256 over files and folders: relative names and contents, in sorted order.

    Folders are walked; hidden files and ``__pycache__`` are left out. A missing path raises FileNotFoundError.
    """
    entries: list[tuple[str, str]] = []
    for path in sorted(paths):
        if path.is_dir():
            files = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in file.relative_to(path).parts)
            )
            entries += [(f"{path.name}/{file.relative_to(path).as_posix()}", hash_file(file)) for file in files]
        else:
            entries.append((path.name, hash_file(path)))
    return hash_json(entries)


def make_id(*parts: object) -> str:
    """A short stable id (16 hex digits) of ``parts``, e.g. ``make_id(sample_id, "path", 3)``."""
    return hash_json([str(part) for part in parts])[:ID_LENGTH]


def seed_for(base_seed: int, *keys: object) -> int:
    """A 63-bit seed that depends on ``base_seed`` and ``keys`` only.

    Draws keyed this way do not depend on shard size or order: eight shards of one equal one shard of eight.
    """
    return int(hash_json([base_seed, *map(str, keys)])[:16], 16) >> 1
