"""NLVR's statements as tasks of the assistant: three pictures, true or false, with the label as all that is known of the right program."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from visloop.datasets.nlvr import FAMILY, SOURCE, read_nlvr
from visloop.ids import hash_text
from visloop.records.assistant import Task, TaskTruth
from visloop.records.reasoning import Sample, Split

VALIDATION_PARTS = ("held_out", "replay", "base")
"""Who shares the dev sentences of the validation split, in this order; no sentence is in two parts."""


def read_nlvr_tasks(
    root: Path, *, out: Path, image_prefix: str, inputs: tuple[str, str, str], counts: Mapping[str, int]
) -> dict[str, list[tuple[Task, TaskTruth]]]:
    """The parts of a task set, by name: ``stream`` (dev, in a drawn order), ``held_out``, ``replay``, ``base`` (other dev sentences) and
    ``test``.

    A task's wording is ``base`` where its sentence occurs in the stream word for word, else ``new``.

    Args:
        root: the folder with ``dev`` and ``test``.
        out: folder of the cropped pictures; ``image_prefix`` is its path relative to the data folder.
        inputs: the program variables that hold the pictures.
        counts: tasks per part at most; sentences stay whole, so that a part may have a few less.

    Raises:
        DataError: the data cannot be read.
    """
    wanted: dict[Split, int] = {
        "train": counts["stream"],
        "validation": sum(counts[part] for part in VALIDATION_PARTS),
        "test": counts["test"],
    }
    samples = read_nlvr(root, out=out, image_prefix=image_prefix, counts=wanted).samples
    stream = sorted((sample for sample in samples if sample.split == "train"), key=lambda sample: hash_text(f"stream {sample.id}"))
    known = {_normalize(sample.question) for sample in stream}
    parts: dict[str, list[Sample]] = {"stream": stream, **{part: [] for part in VALIDATION_PARTS}}
    for group in _list_groups([sample for sample in samples if sample.split == "validation"]):
        part = next((part for part in VALIDATION_PARTS if len(parts[part]) + len(group) <= counts[part]), None)
        if part is not None:
            parts[part] += group
    parts["test"] = [sample for sample in samples if sample.split == "test"]
    return {part: [_make_task(sample, inputs=inputs, known=known) for sample in found] for part, found in parts.items()}


def _normalize(sentence: str) -> str:
    return " ".join(sentence.lower().split()).rstrip(".")


def _list_groups(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of one sentence together; sentences that say the same, word for word, too."""
    groups: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: (hash_text(f"group {_normalize(sample.question)}"), sample.id)):
        groups.setdefault(_normalize(sample.question), []).append(sample)
    return list(groups.values())


def _make_task(sample: Sample, *, inputs: tuple[str, str, str], known: Collection[str]) -> tuple[Task, TaskTruth]:
    task = Task(
        id=sample.id,
        kind="multi_image",
        instruction=sample.question,
        images=sample.images,
        inputs=inputs,
        family=FAMILY,
        wording="base" if _normalize(sample.question) in known else "new",
        split=sample.split,
        group=sample.group,
        source=SOURCE,
        image_hashes=sample.image_hashes,
        licence=sample.licence,
    )
    return task, TaskTruth(task_id=sample.id, program="", answer=sample.answer)
