"""What two runs must agree on, and what a finished one may not leave behind."""

import json
import sqlite3
from pathlib import Path
from typing import Any

from visloop.ids import hash_file, hash_json
from visloop.records.shards import TEMPORARY

REPORTS = ("insight_v.json", "clova.json")


def read_outputs(data: Path) -> dict[str, dict[str, str]]:
    """Per stage folder, every file that its manifest names with a hash: of its bytes, for JSON of what is no time in it."""
    stages = {}
    for path in sorted(data.rglob("manifest.json")):
        if ".stage" not in path.parts:
            manifest = json.loads(path.read_text())
            files = {name: _hash(path.parent / name, digest) for name, digest in manifest["files"].items()}
            stages[path.parent.relative_to(data).as_posix()] = {**files, "counts": hash_json(without_seconds(manifest["counts"]))}
    return stages


def read_metrics(data: Path) -> dict[str, Any]:
    """The two reports: rows, paired differences, rounds; without seconds and hashes (which the outputs show)."""
    found = {}
    for name in REPORTS:
        report = json.loads((data / "reports" / name).read_text())
        found[name] = without_seconds({key: value for key, value in report.items() if key != "hashes"})
    return found


def without_seconds(value: Any) -> Any:
    """The value without every entry whose key ends in ``seconds``."""
    if isinstance(value, dict):
        return {key: without_seconds(part) for key, part in value.items() if not key.endswith("seconds")}
    return [without_seconds(part) for part in value] if isinstance(value, list) else value


def list_leftovers(data: Path) -> list[str]:
    """Work in progress that outlived its run: ``.stage`` and checkpoint folders, half-written files."""
    found = {path for pattern in (".stage", ".checkpoints", TEMPORARY) for path in data.rglob(pattern)}
    # The lock of the line of cycles is a folder that stays.
    return sorted(path.relative_to(data).as_posix() for path in found)


def read_history(mlruns: Path) -> dict[str, list[str]]:
    """Names of MLflow's runs by status."""
    with sqlite3.connect(f"file:{mlruns / 'mlflow.db'}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT status, name FROM runs ORDER BY name").fetchall()
    statuses: dict[str, list[str]] = {}
    for status, name in rows:
        statuses.setdefault(status, []).append(name)
    return statuses


def list_differences(wanted: Any, found: Any, *, where: str = "") -> list[str]:
    """Every place at which two JSON values differ."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        keys = sorted({*wanted, *found})
        return [line for key in keys for line in list_differences(wanted.get(key), found.get(key), where=f"{where}/{key}")]
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        pairs = enumerate(zip(wanted, found, strict=True))
        return [line for at, (one, other) in pairs for line in list_differences(one, other, where=f"{where}[{at}]")]
    return [] if wanted == found else [f"{where}: {str(wanted)[:60]} != {str(found)[:60]}"]


def _hash(path: Path, digest: str) -> str:
    if path.suffix not in (".json", ".jsonl"):
        return digest if hash_file(path) == digest else "damaged"
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    return hash_json([without_seconds(json.loads(line)) for line in lines])
