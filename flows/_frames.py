"""Records as a table for the gates: one row per record, good or bad, one column per thing that a rule asks about."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from flows._assistant_facts import ASSISTANT_FACTS, ASSISTANT_MEASURES
from flows._facts import FACT_NAMES, MEASURES, Facts, Frame, Row
from flows._gates import Context
from flows._pictures import OK
from visloop.errors import DataError
from visloop.records.assistant import Critique, Demonstration, Instance, PromptEntry, Task, Trace
from visloop.records.reasoning import AssessedPath, Prediction, PreferencePair, ReasoningPath, Sample, SFTExample

RECORD_KINDS: dict[str, type[Any]] = {
    "samples": Sample,
    "paths": ReasoningPath,
    "assessed": AssessedPath,
    "sft": SFTExample,
    "pairs": PreferencePair,
    "predictions": Prediction,
    "tasks": Task,
    "traces": Trace,
    "critiques": Critique,
    "instances": Instance,
    "demonstrations": Demonstration,
    "prompts": PromptEntry,
}
PLAIN_NAMES: dict[str, tuple[str, ...]] = {
    "samples": ("id", "split", "answer_type"),
    "paths": ("id", "sample_id", "index", "model", "status"),
    "assessed": ("id", "sample_id", "verdict", "score_status"),
    "sft": ("id", "sample_id", "kind"),
    "pairs": ("id", "sample_id", "strategy"),
    "predictions": ("sample_id", "system", "status"),
    "tasks": ("id", "kind", "wording", "split"),
    "traces": ("id", "status"),
    "critiques": ("id", "grain", "culprit", "status"),
    "instances": ("id", "split", "source"),
    "demonstrations": ("id", "kind", "outcome", "task_kind", "provenance"),
    "prompts": ("id",),
}
"""Fields that rules read as they stand in the file, also where the record breaks its contract."""
_MEASURES: dict[str, Callable[[Sequence[Row], Any], list[Facts]]] = {**MEASURES, **ASSISTANT_MEASURES}
_FACT_NAMES = {**FACT_NAMES, **ASSISTANT_FACTS}


def build_frame(records: Sequence[Any] | Path, *, suite: str, context: Context) -> Frame:
    """Read ``records`` (see ``check_records``) and measure the facts that ``suite`` asks about.

    Raises:
        DataError: no shard in the folder, or a shard that cannot be read at all.
    """
    rows = tuple(read_rows(records, kind=RECORD_KINDS[suite]))
    columns: dict[str, list[Any]] = {"row": list(range(len(rows))), "contract": [row.contract for row in rows]}
    measured = _MEASURES[suite](rows, context)
    for name in _FACT_NAMES[suite]:
        columns[name] = [None if row.record is None else facts[name] for row, facts in zip(rows, measured, strict=True)]
    for name in PLAIN_NAMES[suite]:
        columns[name] = [None if row.value is None else _plain(row.value.get(name)) for row in rows]
    table = pd.DataFrame({name: pd.Series(values, dtype=_dtype(name)) for name, values in columns.items()})
    return Frame(rows, table)


def read_rows(records: Sequence[Any] | Path, *, kind: type[Any]) -> Iterator[Row]:
    """Every record with the place where it lies, good or bad: ``file:line`` for shards, ``record N`` in memory."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    if isinstance(records, Path):
        files = sorted(records.glob("*.jsonl")) if records.is_dir() else [records]
        if not files:
            raise DataError(f"{records}: no *.jsonl shard there; run the stage that writes it")
    elif records and all(isinstance(entry, Path) for entry in records):
        files = list(records)
    else:
        for number, record in enumerate(records):
            value = asdict(record)
            yield _check_contract(value, where=f"record {number}", raw="", adapter=adapter)
        return
    for file in files:
        try:
            lines = file.read_bytes().split(b"\n")
        except OSError as error:
            raise DataError(f"{file} cannot be read: {error.strerror}; run the stage that writes it") from error
        if lines[-1] == b"":
            lines.pop()
        for number, line in enumerate(lines, start=1):
            where, raw = f"{file.as_posix()}:{number}", line.decode("utf-8", errors="replace")
            try:
                value = json.loads(line)
            except ValueError as error:
                yield Row(where, "?", None, None, f"not JSON: {error}", raw)
                continue
            if isinstance(value, dict):
                yield _check_contract(value, where=where, raw=raw, adapter=adapter)
            else:
                yield Row(where, "?", None, None, f"not a JSON object but {type(value).__name__}", raw)


def _check_contract(value: dict[str, Any], *, where: str, raw: str, adapter: TypeAdapter[Any]) -> Row:
    nested = value.get("path")
    flat = {**nested, **value} if isinstance(nested, dict) else value
    name = str(flat.get("id") or flat.get("sample_id") or "?")
    try:
        record = adapter.validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        return Row(where, name, flat, None, f"{field}: {first['msg']}", raw)
    return Row(where, name, flat, record, OK, raw)


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _dtype(name: str) -> str:
    return {"row": "int64", "score": "float64"}.get(name, "object")
