"""The eleven public benchmarks (and MMMU-Pro's two parts) as samples with what their scorers need.

Rows come from a local folder with ``*.parquet`` or ``*.jsonl`` files, or from the hub where that is asked for. Field names
are those of the lmms-eval copies. Every question ends with the short instruction for its answer format.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from visloop.datasets.benchmark_fields import BENCHMARKS, MMBENCH_STEP, BenchmarkSource, Draft, list_options
from visloop.datasets.images import ImageLimits, ReadReport, import_image
from visloop.errors import ConfigError, DataError
from visloop.ids import make_id
from visloop.records.reasoning import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkItem:
    """One benchmark question. ``answers``: every accepted gold answer; ``options``: texts of A, B, ...; ``details``: fields
    that the benchmark's scorer reads (category, answer type, precision, ...)."""

    sample: Sample
    benchmark: str
    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


def read_benchmark(
    name: str,
    *,
    out: Path,
    root: Path | None = None,
    image_prefix: str = "",
    allow_download: bool = False,
    limit: int | None = None,
    circular: bool = True,
    max_skip_rate: float = 0.01,
    limits: ImageLimits | None = None,
) -> tuple[list[BenchmarkItem], ReadReport]:
    """Read one benchmark.

    Args:
        name: a key of ``BENCHMARKS``.
        out: folder of the pictures (stored once by content hash).
        root: local folder with parquet or jsonl files of the split; a jsonl's pictures are paths relative to its file.
        image_prefix: the path of ``out`` relative to the data folder.
        allow_download: read from the hub where no ``root`` is given; nothing is fetched without it.
        limit: the first rows only. MME's pairs and MMBench's rotations are then cut where they fall.
        circular: MMBench: make the rotations of the options where the data has one row per question.
        max_skip_rate: share of broken rows above which the data is refused.

    Raises:
        ConfigError: an unknown name, or neither ``root`` nor ``allow_download``.
        DataError: no rows, or too many broken ones.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"no benchmark {name!r}; known: {', '.join(BENCHMARKS)}")
    source = BENCHMARKS[name]
    if root is None and not allow_download:
        raise ConfigError(f"benchmark {name}: name a folder with its parquet or jsonl files, or allow to fetch {source.hub_id}")
    rows = _read_folder(root) if root is not None else _read_hub(source)
    report, items, prefix = ReadReport(), [], f"{image_prefix.rstrip('/')}/" if image_prefix else ""
    for where, row in rows:
        if limit is not None and report.read >= limit:
            break
        report.read += 1
        try:
            draft = source.convert(row)
            draft = draft if draft.key else replace(draft, key=str(report.read))
            items.append(_make_item(name, draft, base=where, out=out, prefix=prefix, limits=limits))
        except KeyError as error:
            report.skip(where.label, f"no field {error}; found {', '.join(sorted(row))}")
        except DataError as error:
            report.skip(where.label, str(error))
        except (ValueError, TypeError, AttributeError) as error:
            report.skip(where.label, f"a field has an unexpected type or value: {error}")
        else:
            report.kept += 1
    report.check_rate(f"benchmark {name}", limit=max_skip_rate)
    ids = [item.sample.id for item in items]
    if len(set(ids)) != len(ids):
        twice = next(item for item in items if ids.count(item.sample.id) > 1)
        raise DataError(f"benchmark {name}: question {twice.details['key']} occurs twice; give the files of one split only")
    return (rotate_options(items) if name == "mmbench" and circular else items), report


def rotate_options(items: list[BenchmarkItem]) -> list[BenchmarkItem]:
    """MMBench's circular evaluation: each question once per rotation of its options, in one group.

    Data that holds rotations already (several rows of one group) is left as it is.
    """
    groups = [item.sample.group for item in items]
    if len(set(groups)) != len(groups):
        return items
    rotated = []
    for item in items:
        key = int(item.details["key"])
        count, right = len(item.options), ord(item.answers[0]) - ord("A")
        for turn in range(count):
            options = item.options[turn:] + item.options[:turn]
            letter = chr(ord("A") + (right - turn) % count)
            question = item.sample.question.replace(list_options(item.options), list_options(options))
            turned = str(key + turn * MMBENCH_STEP)
            sample = replace(item.sample, id=make_id("mmbench", turned), question=question, answer=letter)
            details = {**item.details, "key": turned}
            rotated.append(replace(item, sample=sample, answers=(letter,), options=options, details=details))
    return rotated


@dataclass(frozen=True, slots=True)
class _Where:
    label: str
    folder: Path | None


def _read_folder(root: Path) -> Iterator[tuple[_Where, dict[str, Any]]]:
    files = sorted(path for path in root.rglob("*") if path.suffix in (".parquet", ".jsonl"))
    if not files:
        raise DataError(f"{root}: no *.parquet and no *.jsonl file there")
    for path in files:
        for number, row in enumerate(_read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path), start=1):
            yield _Where(f"{path}:{number}", path.parent), row


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=64):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a readable parquet file ({error})") from error


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: a JSON object per line is needed, got {type(row).__name__}")
            yield row


def _read_hub(source: BenchmarkSource) -> Iterator[tuple[_Where, dict[str, Any]]]:
    import datasets

    try:
        rows = datasets.load_dataset(source.hub_id, source.config, split=source.split)
    except (OSError, ValueError) as error:
        raise DataError(f"{source.hub_id}: cannot be loaded from the hub ({error})") from error
    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
    for number, row in enumerate(rows, start=1):
        yield _Where(f"{source.hub_id}[{source.split}]:{number}", None), row


def _make_item(name: str, draft: Draft, *, base: _Where, out: Path, prefix: str, limits: ImageLimits | None) -> BenchmarkItem:
    if not draft.question.strip():
        raise DataError(f"question {draft.key}: empty text")
    if not draft.answers or not all(answer.strip() for answer in draft.answers):
        raise DataError(f"question {draft.key}: no gold answer, or an empty one; this split cannot be scored here")
    if not draft.images:
        raise DataError(f"question {draft.key}: no picture")
    stored = [import_image(_open_source(image, base.folder), out=out, limits=limits) for image in draft.images]
    sample = Sample(
        id=make_id(name, draft.key),
        images=tuple(prefix + image.name for image in stored),
        question=draft.question,
        answer=draft.answers[0],
        answer_type=draft.answer_type,
        family=draft.family,
        split="test",
        source=name,
        group=f"{name}-{draft.group or stored[0].sha256[:16]}",
        image_hashes=tuple(image.sha256 for image in stored),
    )
    details = {"key": draft.key, **draft.details}
    return BenchmarkItem(sample=sample, benchmark=name, answers=draft.answers, options=draft.options, details=details)


def _open_source(image: Any, folder: Path | None) -> Path | bytes:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        raise DataError(f"a picture must be bytes, a path or a mapping of one, got {type(image).__name__}")
    if folder is None or not (folder / image).resolve().is_relative_to(folder.resolve()):
        raise DataError(f"picture {image!r} lies outside the data's folder")
    return folder / image
