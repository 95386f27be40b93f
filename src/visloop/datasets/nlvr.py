"""NLVR (Suhr, Lewis, Yeh, Artzi, ACL 2017) in the public repository's layout, as samples of a statement about three pictures.

``<root>/<split>/<split>.json`` holds one JSON object per line; the picture of a line is
``<root>/<split>/images/<directory>/<split>-<identifier>-<k>.png``, 400x100 pixels, where k = 0..5 are the six orders of the
boxes. The three boxes of 100x100 stand at x = 0, 150 and 300, grey columns between them. ``dev`` is divided into train and
validation, ``test`` is the test split. A group is a sentence with all its pictures: the unit of consistency.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from visloop.chat.images import load_image
from visloop.datasets.images import DatasetRead, ReadReport, store_picture
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_text, make_id
from visloop.records.reasoning import Sample, Split

SOURCE, LICENCE, FAMILY = "nlvr", "CC-BY-4.0", "statement"
PERMUTATIONS = range(6)
BOX_STARTS = (0, 150, 300)
BOX_SIDE = 100
_SIZE = (400, 100)
_GAPS = ((100, 150), (250, 300))
_GAP_COLOR = (128, 128, 128)


@checked_dataclass(frozen=True)
class _Line:
    sentence: str = Field(min_length=1)
    label: Literal["true", "false"] = Field()
    identifier: str = Field(pattern=r"^\d+-\d+$")
    directory: str = Field(pattern=r"^\w+$")


_LINE = TypeAdapter(_Line)


@dataclass(frozen=True, slots=True)
class _Example:
    line: _Line
    part: str
    permutation: int
    images: tuple[str, ...]
    hashes: tuple[str, ...]


def split_boxes(picture: Image.Image) -> tuple[Image.Image, Image.Image, Image.Image]:
    """The three boxes of an NLVR picture, 100x100 each, left to right.

    Raises:
        DataError: another size, or no grey columns between the boxes.
    """
    if picture.size != _SIZE:
        raise DataError(f"a picture of {picture.width}x{picture.height} pixels; NLVR's are {_SIZE[0]}x{_SIZE[1]}")
    pixels = np.asarray(picture.convert("RGB"))
    for start, end in _GAPS:
        if not (pixels[:, start:end] == _GAP_COLOR).all():
            raise DataError(f"columns {start} to {end - 1} are not the grey between two boxes; is this an NLVR picture?")
    first, second, third = (picture.crop((start, 0, start + BOX_SIDE, BOX_SIDE)) for start in BOX_STARTS)
    return first, second, third


def read_nlvr(
    root: Path,
    *,
    out: Path,
    image_prefix: str = "",
    splits: Sequence[Split] = ("train", "validation", "test"),
    counts: Mapping[Split, int] | None = None,
    permutations: Sequence[int] = (0,),
    validation_share: float = 0.2,
    max_skip_rate: float = 0.01,
) -> DatasetRead:
    """Read NLVR: question = the sentence, three pictures, answer "true" or "false".

    Sentences that share their text or a scene go to the same side of train/validation, so that neither is learnt by heart.

    Args:
        root: the folder with ``dev`` and ``test``.
        out: folder of the cropped pictures (stored once by content hash).
        image_prefix: what to put before the pictures' names in the records: the path of ``out`` relative to the data folder.
        counts: at most so many samples of a split; whole groups are taken, in an order keyed by their ids. None means all.
        permutations: which of the six box orders; the official picture scores use all six.
        validation_share: share of the dev sentences that become the validation split.
        max_skip_rate: share of broken lines or pictures above which the data is refused.

    Raises:
        ConfigError: an unknown permutation or a share outside 0..1.
        DataError: a file is missing, or too much of it is broken; single broken rows are counted in the report.
    """
    if not permutations or not set(permutations) <= set(PERMUTATIONS):
        raise ConfigError(f"data: permutations must be some of 0 to 5, got {list(permutations)}")
    if not 0.0 <= validation_share <= 1.0:
        raise ConfigError(f"data: validation_share must be from 0 to 1, got {validation_share}")
    report = ReadReport()
    examples: list[_Example] = []
    parts = [part for part, wanted in (("dev", {"train", "validation"}), ("test", {"test"})) if wanted & set(splits)]
    for part in parts:
        examples += _read_part(root, part, out=out, permutations=permutations, report=report)
    report.check_rate(str(root), limit=max_skip_rate)
    assigned = _assign_splits(examples, validation_share=validation_share)
    prefix = f"{image_prefix.rstrip('/')}/" if image_prefix else ""
    samples = [_make_sample(example, split=assigned[_group_of(example)], prefix=prefix) for example in examples]
    kept = _limit_groups([sample for sample in samples if sample.split in splits], counts or {})
    return DatasetRead(kept, report)


def _read_part(root: Path, part: str, *, out: Path, permutations: Sequence[int], report: ReadReport) -> list[_Example]:
    path = root / part / f"{part}.json"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; data.root must be the folder that holds NLVR's dev and test") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start}") from error
    examples = []
    seen: set[str] = set()
    for number, raw in enumerate(text.splitlines(), start=1):
        if not raw.strip():
            continue
        report.read += len(permutations)
        try:
            line = _LINE.validate_json(raw)
            if line.identifier in seen:
                raise DataError(f"identifier {line.identifier} occurs twice")
        except (ValidationError, DataError) as error:
            for _ in permutations:
                report.skip(f"{path}:{number}", _explain(error))
            continue
        seen.add(line.identifier)
        for permutation in permutations:
            picture = root / part / "images" / line.directory / f"{part}-{line.identifier}-{permutation}.png"
            try:
                boxes = split_boxes(load_image(picture, max_pixels=_SIZE[0] * _SIZE[1]))
            except DataError as error:
                report.skip(f"{path}:{number}", str(error) if str(picture) in str(error) else f"{picture}: {error}")
                continue
            stored = [store_picture(box, out=out) for box in boxes]
            names, hashes = tuple(image.name for image in stored), tuple(image.sha256 for image in stored)
            examples.append(_Example(line, part, permutation, names, hashes))
            report.kept += 1
    return examples


def _explain(error: ValidationError | DataError) -> str:
    if isinstance(error, DataError):
        return str(error)
    first = error.errors(include_url=False, include_input=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'line'}: {first['msg']}"


def _group_of(example: _Example) -> str:
    return f"nlvr-{example.part}-{example.line.identifier.split('-', 1)[0]}"


def _make_sample(example: _Example, *, split: Split, prefix: str) -> Sample:
    return Sample(
        id=make_id(SOURCE, example.part, example.line.identifier, example.permutation),
        images=tuple(prefix + name for name in example.images),
        question=" ".join(example.line.sentence.split()),
        answer=example.line.label,
        answer_type="boolean",
        family=FAMILY,
        split=split,
        source=SOURCE,
        group=_group_of(example),
        image_hashes=example.hashes,
        licence=LICENCE,
    )


def _assign_splits(examples: Sequence[_Example], *, validation_share: float) -> dict[str, Split]:
    """Group -> split. Groups joined by a sentence or by a scene (the same three boxes in any order) stay together."""
    parent: dict[str, str] = {}

    def find_root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = key = parent[parent[key]]
        return key

    for example in examples:
        group = _group_of(example)
        scene = json.dumps(sorted(example.hashes))
        sentence = " ".join(example.line.sentence.lower().split()).rstrip(".")
        for key in (f"sentence {example.part} {sentence}", f"scene {example.part} {scene}"):
            first, second = sorted((find_root(group), find_root(key)))
            parent[second] = first
    members: dict[str, list[str]] = defaultdict(list)
    for group in sorted({_group_of(example) for example in examples}):
        members[find_root(group)].append(group)
    splits: dict[str, Split] = {}
    for groups in members.values():
        place = int(hash_text(groups[0])[:12], 16) / 16**12
        dev: Split = "validation" if place < validation_share else "train"
        for group in groups:
            splits[group] = "test" if group.startswith("nlvr-test-") else dev
    return splits


def _limit_groups(samples: Sequence[Sample], counts: Mapping[Split, int]) -> list[Sample]:
    sizes: dict[tuple[Split, str], int] = defaultdict(int)
    for sample in samples:
        sizes[sample.split, sample.group] += 1
    taken: dict[Split, int] = defaultdict(int)
    chosen = set()
    for (split, group), size in sorted(sizes.items(), key=lambda item: hash_text(f"order {item[0][1]}")):
        if split not in counts or taken[split] + size <= counts[split]:
            taken[split] += size
            chosen.add((split, group))
    return [sample for sample in samples if (sample.split, sample.group) in chosen]
