"""Data gates between two stages, by Great Expectations: a suite per record type, and a failing one stops the flow.

``check_records`` measures facts on every record (``_frames``), checks them against the suite's rules (``_suites``), leaves an HTML
page and a JSON result, and on failure sets the refused rows aside and raises ``GateError``. The library is imported on first use.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from flows._assistant_context import ASSISTANT_SUITE_NAMES, AssistantContext, check_assistant_request
from visloop.errors import ConfigError, GateError
from visloop.records.reasoning import Sample
from visloop.records.shards import write_text

if TYPE_CHECKING:
    from flows._facts import Frame

SUITE_NAMES = ("samples", "paths", "assessed", "sft", "pairs", "predictions")
PAGE_NAME, RESULT_NAME = "index.html", "result.json"
_SHOWN_ROWS = 3
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GateContext:
    """What the rules compare records with.

    Attributes:
        data: the data folder, to which image paths are relative.
        samples: known samples by id; empty for the gate on the samples themselves.
        evaluation_pictures: SHA-256 of the pictures of each question that training must not see, one set per question.
        picture_hashes: recorded SHA-256 by image path; other pictures are hashed from disk.
        paths: sample id by path id; the ``pairs`` gate needs it.
        max_unjudged_rate: share of records, 0-1, that may be ``unjudged`` (``assessed``).
    """

    data: Path
    samples: Mapping[str, Sample] = field(default_factory=dict)
    evaluation_pictures: frozenset[frozenset[str]] = frozenset()
    picture_hashes: Mapping[str, str] = field(default_factory=dict)
    paths: Mapping[str, str] | None = None
    max_unjudged_rate: float = 0.05

    @classmethod
    def from_samples(
        cls,
        samples: Iterable[Sample],
        *,
        data: Path,
        paths: Mapping[str, str] | None = None,
        max_unjudged_rate: float = 0.05,
    ) -> "GateContext":
        """Context over all splits: the pictures of validation and test samples are what training must not see."""
        known = {sample.id: sample for sample in samples}
        hashes = {path: digest for sample in known.values() for path, digest in zip(sample.images, sample.image_hashes, strict=False)}
        held_out = frozenset(frozenset(sample.image_hashes) for sample in known.values() if sample.split != "train")
        return cls(
            data=data,
            samples=known,
            evaluation_pictures=held_out,
            picture_hashes=hashes,
            paths=paths,
            max_unjudged_rate=max_unjudged_rate,
        )


Context: TypeAlias = GateContext | AssistantContext


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    """One rule of a suite: how many records break it, and the first of them as ``id at file:line: what was found``."""

    rule: str
    description: str
    severity: str
    passed: bool
    refused: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """Outcome of one gate. ``folder`` holds ``index.html`` and ``result.json``; ``quarantine`` is None where nothing was set aside."""

    suite: str
    rows: int
    passed: bool
    rules: tuple[RuleResult, ...]
    folder: Path
    quarantine: Path | None
    seconds: float


def check_records(
    records: Sequence[Any] | Path,
    *,
    suite: str,
    out: Path,
    context: Context,
    quarantine: Path | None = None,
) -> GateResult:
    """Let records through to the next stage, or refuse them.

    Args:
        records: records, or a folder of ``*.jsonl`` shards, or a list of shard files. Files are read line by line, so that a
            truncated or foreign line is refused with its ``file:line`` beside all other bad rows.
        suite: one of ``SUITE_NAMES``, or of the assistant's ``ASSISTANT_SUITE_NAMES`` with an ``AssistantContext``.
        out: folder for the HTML page and the JSON result (both differ from run to run: keep it out of versioned folders).
        quarantine: folder for refused rows; ``quarantine/`` beside the shard folder, or beside ``out`` for records in memory.

    Raises:
        GateError: a critical rule is broken; suite, rules and first rows are named, all rows lie in ``<quarantine>/<suite>.jsonl``.
        ConfigError: unknown suite, or a context without what the suite compares with.
        DataError: no shard in the folder.
    """
    _check_request(suite, context)
    started = time.perf_counter()
    from flows._frames import build_frame
    from flows._suites import run_suite

    frame = build_frame(records, suite=suite, context=context)
    outcome = run_suite(frame, suite=suite, context=context)
    rules = tuple(_describe_rule(entry, frame) for entry in outcome.rules)
    aside = (quarantine or _default_quarantine(records, out)) / f"{suite}.jsonl"
    passed = all(rule.passed for rule in rules if rule.severity == "critical")
    if passed:
        _clear_quarantine(aside)
    else:
        _write_quarantine(aside, outcome.rows_by_rule(critical_only=True), frame)
    result = GateResult(
        suite=suite,
        rows=len(frame.rows),
        passed=passed,
        rules=rules,
        folder=out,
        quarantine=None if passed else aside,
        seconds=round(time.perf_counter() - started, 3),
    )
    write_text(out / PAGE_NAME, outcome.page)
    write_text(out / RESULT_NAME, _format_result(result) + "\n")
    for rule in rules:
        if not rule.passed and rule.severity != "critical":
            _LOG.warning("gate %s: %s broken by %d of %d records, let through", suite, rule.rule, rule.refused, len(frame.rows))
    if not passed:
        raise GateError(_describe_failure(result))
    return result


def _check_request(suite: str, context: Context) -> None:
    if suite not in (*SUITE_NAMES, *ASSISTANT_SUITE_NAMES):
        raise ConfigError(f"unknown suite {suite!r}; known are {', '.join((*SUITE_NAMES, *ASSISTANT_SUITE_NAMES))}")
    wanted = GateContext if suite in SUITE_NAMES else AssistantContext
    if not isinstance(context, wanted):
        raise ConfigError(f"suite {suite!r} needs a {wanted.__name__}, got a {type(context).__name__}")
    if isinstance(context, AssistantContext):
        check_assistant_request(suite, context)
        return
    if suite != "samples" and not context.samples:
        raise ConfigError(f"suite {suite!r} needs context.samples: build the context with GateContext.from_samples")
    if suite == "pairs" and context.paths is None:
        raise ConfigError("suite 'pairs' needs context.paths, the sample id of every assessed path by path id")


def _default_quarantine(records: Sequence[Any] | Path, out: Path) -> Path:
    if isinstance(records, Path):
        stage = records if records.is_dir() else records.parent
    elif len(records) and isinstance(records[0], Path):
        stage = records[0].parent
    else:
        stage = out
    return stage.parent / "quarantine"


def _describe_rule(entry: Any, frame: "Frame") -> RuleResult:
    examples = tuple(
        f"{frame.rows[row].id} at {frame.rows[row].where}" + (f": {found}" if found else "")
        for row, found in list(entry.found.items())[:_SHOWN_ROWS]
    )
    return RuleResult(
        rule=entry.rule,
        description=entry.description,
        severity=entry.severity,
        passed=entry.passed,
        refused=len(entry.found),
        examples=examples or ((entry.note,) if entry.note else ()),
    )


def _describe_failure(result: GateResult) -> str:
    broken = [rule for rule in result.rules if not rule.passed and rule.severity == "critical"]
    parts = [f"{rule.rule} ({rule.refused}; {rule.description}): " + "; ".join(rule.examples) for rule in broken]
    return (
        f"gate {result.suite!r} refused data of {result.rows} records. Broken rules: " + " | ".join(parts) + f". Refused rows are in "
        f"{result.quarantine}, the report is {result.folder / PAGE_NAME}; repair or remove them where they were made, then run again"
    )


def _format_result(result: GateResult) -> str:
    value = asdict(result) | {"folder": result.folder.as_posix(), "quarantine": result.quarantine and result.quarantine.as_posix()}
    return json.dumps(value, indent=2, ensure_ascii=False)


def _write_quarantine(path: Path, rows_by_rule: Mapping[str, Sequence[int]], frame: "Frame") -> None:
    rules: dict[int, list[str]] = {}
    for rule, rows in rows_by_rule.items():
        for row in rows:
            rules.setdefault(row, []).append(rule)
    lines = []
    for row, broken in sorted(rules.items()):
        entry = frame.rows[row]
        value = {"id": entry.id, "where": entry.where, "rules": broken, "record": entry.value if entry.value is not None else entry.raw}
        lines.append(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    write_text(path, "".join(lines))
    _LOG.error("set %d rows aside in %s: %s", len(lines), path, dict(Counter(rule for broken in rules.values() for rule in broken)))


def _clear_quarantine(path: Path) -> None:
    """Remove what an earlier, refused attempt left: the data has been repaired since."""
    path.unlink(missing_ok=True)
    if path.parent.is_dir() and not any(path.parent.iterdir()):
        path.parent.rmdir()
