"""Typed JSONL shards: one frozen record per line, written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from visloop.errors import DataError

Record = TypeVar("Record")


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Building a validator costs milliseconds: one per record type."""
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


TEMPORARY = ".*.tmp"
"""Names of files that are not whole yet. A killed process may leave one."""


def write_bytes(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one, also after a crash.

    Args:
        sync: wait until the disk has it, so that it outlives the machine too; without it only the process may die.

    Raises:
        DataError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = ""
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise DataError(f"cannot write {path}: {error.strerror}; free space or fix the permissions and run again") from error


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_shard(path: Path, records: Iterable[Any]) -> int:
    """Write records as JSON lines (keys in field order, UTF-8); returns how many."""
    lines = [json.dumps(asdict(record), ensure_ascii=False, separators=(",", ":")) for record in records]
    write_text(path, "".join(line + "\n" for line in lines))
    return len(lines)


def iterate_shard(path: Path, kind: type[Record]) -> Iterator[Record]:
    """The records of one shard, checked against the fields and types of ``kind``.

    Raises:
        DataError: the file is missing, a line is not JSON, or a record breaks its contract (file:line is named).
    """
    adapter = _adapter(kind)
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield adapter.validate_json(line)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    where = ".".join(str(part) for part in first["loc"]) or "line"
                    raise DataError(f"{path}:{number}: not a {kind.__name__}: {where}: {first['msg']}") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run the stage that writes it") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from error


def read_shard(path: Path, kind: type[Record]) -> list[Record]:
    """All records of one shard; see ``iterate_shard``."""
    return list(iterate_shard(path, kind))


def read_shards(paths: Sequence[Path] | Path, kind: type[Record]) -> list[Record]:
    """All records of several shards, or of every ``*.jsonl`` in a folder in name order."""
    files = sorted(paths.glob("*.jsonl")) if isinstance(paths, Path) else list(paths)
    if not files:
        raise DataError(f"{paths}: no *.jsonl shard there; run the stage that writes it")
    return [record for file in files for record in iterate_shard(file, kind)]
