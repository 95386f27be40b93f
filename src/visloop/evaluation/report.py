"""The report of a run as one JSON file: rows, paired differences, rounds, seconds and hashes."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from visloop.errors import DataError
from visloop.evaluation.metrics import Paired, Row
from visloop.records.shards import write_text


@dataclass(frozen=True, slots=True)
class Report:
    """What one evaluation found. ``rounds``: one entry per model M_t with at least ``round``, ``name`` and ``accepted``;
    ``seconds``: wall time per stage; ``hashes``: what was measured (data, config, models)."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    rows: list[Row]
    paired: list[Paired]
    rounds: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def find_row(self, name: str, metric: str) -> Row | None:
        """The row of a system and metric, or None."""
        return next((row for row in self.rows if row.name == name and row.metric == metric), None)


_ADAPTER = TypeAdapter(Report)
_ROUND_KEYS = {"round": int, "name": str, "accepted": bool}


def check_report(report: Report) -> None:
    """Refuse a report that contradicts itself.

    Raises:
        DataError: a number is not finite or outside its interval, ``n`` is not positive, a (name, metric) or pair occurs
            twice, a pair names an unknown system, or a round lacks ``round``, ``name`` or ``accepted``.
    """
    entries = [(f"row {row.name}/{row.metric}", row.value, row.low, row.high, row.n) for row in report.rows]
    entries += [(f"pair {pair.a} - {pair.b}/{pair.metric}", pair.difference, pair.low, pair.high, pair.n) for pair in report.paired]
    for where, value, low, high, n in entries:
        if not all(math.isfinite(number) for number in (value, low, high)):
            raise DataError(f"report: {where}: value {value}, interval {low}..{high}; all three must be finite")
        if not low <= value <= high:
            raise DataError(f"report: {where}: value {value} is outside its interval {low}..{high}")
        if n < 1:
            raise DataError(f"report: {where}: n is {n}; at least one sample is needed")
    names = [where for where, *_ in entries]
    if len(set(names)) != len(names):
        raise DataError(f"report: {next(name for name in names if names.count(name) > 1)} occurs twice")
    measured = {(row.name, row.metric) for row in report.rows}
    for pair in report.paired:
        for system in (pair.a, pair.b):
            if (system, pair.metric) not in measured:
                raise DataError(f"report: pair {pair.a} - {pair.b}: no row {system}/{pair.metric} to compare")
    for index, entry in enumerate(report.rounds):
        for key, kind in _ROUND_KEYS.items():
            if not isinstance(entry.get(key), kind):
                raise DataError(f"report: rounds[{index}].{key} is {entry.get(key)!r}; {kind.__name__} is needed")
    for stage, seconds in report.seconds.items():
        if not (math.isfinite(seconds) and seconds >= 0):
            raise DataError(f"report: seconds.{stage} is {seconds}; a finite number from 0 up is needed")


def write_report(path: Path, report: Report) -> None:
    """Check the report and write it whole or not at all.

    Raises:
        DataError: see ``check_report``; or the file cannot be written.
    """
    check_report(report)
    try:
        text = json.dumps(asdict(report), indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"report for {path}: rounds hold something that JSON cannot: {error}") from error
    write_text(path, text + "\n")


def read_report(path: Path) -> Report:
    """Read a report and check it.

    Raises:
        DataError: missing, not JSON, a key is missing or unknown, or it contradicts itself.
    """
    try:
        report = _ADAPTER.validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; run the evaluation that writes it") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"{path}: not a report: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from error
    check_report(report)
    return report


def list_systems(rows: Sequence[Row]) -> list[str]:
    """Names in the order of their first row."""
    return list(dict.fromkeys(row.name for row in rows))
