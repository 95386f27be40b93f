"""What people said, frozen: a folder per cycle (and per round) with their words, what they are about, and the pictures.

Assessments in MLflow can be changed or deleted, and the page's own files are no data of anybody: whoever learns reads the frozen folder
only. A word is consumed when a finished folder names it, so that it is learned from once, also when a cycle is killed: the folder is
written whole before the cycle starts, and a folder without a finished cycle is taken up first.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from filelock import FileLock
from PIL import Image

from flows._layout import Layout
from flows._stage import run_stage
from flows._traces import read_new_feedback
from flows._words import AGENTS_EXPERIMENT, HeldOut, PageQuestion, Refusal, Word, find_contradiction, load_run, read_words
from visloop.config import Config, Scorer
from visloop.datasets.images import store_picture
from visloop.errors import ConfigError, DataError
from visloop.evaluation.assistant import type_answer
from visloop.evaluation.people import complete_word, imply_answer
from visloop.ids import make_id
from visloop.records.assistant import Feedback, Task, Trace
from visloop.records.manifest import MANIFEST_NAME
from visloop.records.reasoning import AnswerType, Sample
from visloop.records.shards import read_shard, write_shard

CYCLE_GATES = ("traces", "critiques", "instances", "demonstrations", "prompts")
"""Suites that a cycle's records pass before anybody uses its pools."""
PEOPLE_CODE = "visloop.evaluation.people"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class FrozenWords:
    """What a cycle learns from: tasks in the order in which people spoke, with word and judged run by task id."""

    tasks: tuple[Task, ...]
    words: dict[str, Feedback]
    seen: dict[str, Trace]


def is_played(layout: Layout, number: int) -> bool:
    """Whether a cycle is finished and its records have passed their gates; cycle 0 has none."""
    gates = [layout.cycle_gate(number, suite) for suite in CYCLE_GATES] if number else []
    return all((folder / MANIFEST_NAME).is_file() for folder in (layout.cycle(number), *gates))


def find_newest_cycle(layout: Layout) -> int | None:
    """The last cycle whose pools may be used; None before cycle 0."""
    return max((number for number in _list_numbers(layout.cycle(0).parent) if is_played(layout, number)), default=None)


def freeze_words(config: Config, layout: Layout) -> int | None:
    """Stage: freeze what people said and nobody has learned from yet. Returns the cycle that is to learn from it, or None: nothing is new.

    A frozen folder whose cycle was not finished comes first. Words that nothing may be learned from (a picture of the evaluation) are
    frozen beside the others with the reason, and wait until there are others.
    """
    home = layout.feedback(0).parent
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / ".lock"):
        waiting = [number for number in list_frozen(layout) if not is_played(layout, number)]
        if waiting:
            return waiting[0]
        words, refused = read_words(layout, mlruns=Path(config.paths.mlruns), consumed=list_consumed(home.iterdir()))
        for refusal in refused:
            _log.warning("feedback %s on run %s: %s", refusal.feedback.id, refusal.feedback.trace_id, refusal.reason)
        if not words:
            return None
        number = max([config.assistant.tasks.cycles, *_list_numbers(layout.cycle(0).parent), *_list_numbers(home)]) + 1
        _freeze_batch(layout, number=number, words=words, refused=refused)
        return number


def _freeze_batch(layout: Layout, *, number: int, words: Sequence[Word], refused: Sequence[Refusal]) -> None:
    folder = layout.feedback(number)

    def work(place: Path) -> dict[str, float]:
        tasks = [_freeze_task(layout, word, place=place, shown=folder) for word in words]
        entries = [complete_word(word.feedback, task=word.run.task, seen=word.run.trace) for word in words]
        write_shard(place / "tasks.jsonl", tasks)
        write_shard(place / "traces.jsonl", [_freeze_result(layout, word.run.trace, place=place, shown=folder) for word in words])
        write_shard(place / "feedback.jsonl", entries)
        write_shard(place / "refused.jsonl", refused)
        return {"words": len(words), "accepted": sum(entry.accepted for entry in entries), "refused": len(refused)}

    ids = [word.feedback.id for word in words] + [item.feedback.id for item in refused]
    run_stage(f"feedback {number}", folder=folder, inputs={}, config={"feedback": ids}, code=[PEOPLE_CODE], work=work)


def _freeze_task(layout: Layout, word: Word, *, place: Path, shown: Path) -> Task:
    task = word.run.task
    copies = [copy_picture(layout, image, place=place, shown=shown) for image in task.images]
    return replace(task, images=tuple(path for path, _ in copies), image_hashes=tuple(digest for _, digest in copies))


def _freeze_result(layout: Layout, trace: Trace, *, place: Path, shown: Path) -> Trace:
    if trace.result_image is None or not (layout.root / trace.result_image).is_file():
        return trace
    return replace(trace, result_image=copy_picture(layout, trace.result_image, place=place, shown=shown)[0])


def copy_picture(layout: Layout, image: str, *, place: Path, shown: Path) -> tuple[str, str]:
    """Copy a picture into a folder that is being frozen: its path relative to the data folder, and the SHA-256 of its bytes.

    Raises:
        DataError: the picture is gone, or does not open.
    """
    source = layout.root / image
    try:
        with Image.open(source) as picture:
            picture.load()
            stored = store_picture(picture.convert("RGB"), out=place / "pictures")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{source}: the picture that feedback is about does not open ({error}); bring it back and run again") from error
    return f"{shown.relative_to(layout.root).as_posix()}/pictures/{stored.name}", stored.sha256


def read_frozen(folder: Path) -> FrozenWords:
    """What a frozen folder holds."""
    entries, traces = read_shard(folder / "feedback.jsonl", Feedback), read_shard(folder / "traces.jsonl", Trace)
    return FrozenWords(
        tasks=tuple(read_shard(folder / "tasks.jsonl", Task)),
        words={entry.task_id: entry for entry in entries},
        seen={trace.task_id: trace for trace in traces},
    )


def list_frozen(layout: Layout) -> list[int]:
    """The cycles that people's feedback is frozen for."""
    return [number for number in _list_numbers(layout.feedback(0).parent) if (layout.feedback(number) / MANIFEST_NAME).is_file()]


def find_frozen(config: Config, layout: Layout, number: int) -> Path | None:
    """The feedback that a cycle learns from; None for a cycle of the drawn stream.

    Raises:
        ConfigError: the number was a cycle of people's feedback, and the stream now asks for it.
    """
    folder = layout.feedback(number)
    if not (folder / MANIFEST_NAME).is_file():
        return None
    if number <= config.assistant.tasks.cycles:
        raise ConfigError(
            f"cycle {number} is one of people's feedback ({folder}): set assistant.tasks.cycles below {number}, or give the longer stream "
            "a folder of its own by paths.cycles"
        )
    return folder


def list_consumed(folders: Iterable[Path]) -> frozenset[str]:
    """Ids of the feedback in those of the folders that are finished."""
    found: set[str] = set()
    for folder in folders:
        if (folder / MANIFEST_NAME).is_file():
            found |= {entry.id for entry in read_shard(folder / "feedback.jsonl", Feedback)}
            found |= {item.feedback.id for item in read_shard(folder / "refused.jsonl", Refusal)}
    return frozenset(found)


def _list_numbers(home: Path) -> list[int]:
    return sorted(int(folder.name) for folder in home.glob("*") if re.fullmatch(r"\d{2,}", folder.name)) if home.is_dir() else []


def freeze_questions(config: Config, layout: Layout, number: int) -> Path | None:
    """Stage: people's questions for the prompts of round ``number``, those that the two agents got wrong and people know the answer to.

    Frozen when the round starts, also where there are none: what is said later is for the next round. None where the round plays without:
    it started before there was such a folder, or its chains are scored by the verifier, which knows drawn scenes only.
    """
    folder = layout.questions(number)
    if (folder / MANIFEST_NAME).is_file():
        return folder
    if config.assess.scorer is Scorer.verifier or any((layout.round(number) / name).exists() for name in ("paths", "report")):
        return None
    layout.round(number).mkdir(parents=True, exist_ok=True)
    home = layout.round(0).parent
    with FileLock(home / ".people.lock"):
        if (folder / MANIFEST_NAME).is_file():
            return folder
        samples, entries, refused = _read_questions(config, layout, consumed=list_consumed(list_question_folders(layout)))

        def work(place: Path) -> dict[str, float]:
            write_shard(place / "samples.jsonl", [_freeze_sample(layout, sample, place=place, shown=folder) for sample in samples])
            write_shard(place / "feedback.jsonl", entries)
            write_shard(place / "refused.jsonl", refused)
            return {"questions": len(samples), "words": len(entries), "refused": len(refused)}

        ids = [entry.id for entry in entries] + [item.feedback.id for item in refused]
        run_stage(
            f"round {number} people", folder=folder, inputs={}, config={"feedback": ids}, code=["visloop.evaluation.people"], work=work
        )
    return folder


def _read_questions(config: Config, layout: Layout, *, consumed: frozenset[str]) -> tuple[list[Sample], list[Feedback], list[Refusal]]:
    """New prompts by what people said, all words that they said, and those that no prompt comes from, with the reason."""
    held_out = HeldOut(layout)
    samples: dict[str, Sample] = {}
    entries: list[Feedback] = []
    refused: list[Refusal] = []
    for said in read_new_feedback(AGENTS_EXPERIMENT, mlruns=Path(config.paths.mlruns), consumed=consumed):
        entry, question = said, cast(PageQuestion | None, load_run(layout, PageQuestion, said.trace_id))
        reason = "its run is not stored in this data folder"
        if question is not None:
            entry = imply_answer(entry, result=question.result)
            reason = held_out.find_question(question) or find_contradiction(entry, result=question.result) or ""
            if not reason and not entry.accepted and not entry.answer:
                reason = "the right answer is not given: chains cannot be told apart"
        if question is None or reason:
            refused.append(Refusal(feedback=entry, reason=reason))
            continue
        entries.append(entry)
        if not entry.accepted and entry.answer:
            samples[question.sample.id] = _make_prompt(question.sample, entry.answer)
    return list({sample.id: sample for sample in samples.values()}.values()), entries, refused


def _make_prompt(sample: Sample, answer: str) -> Sample:
    """The question as a prompt, the person's answer as the right one; the id follows from both."""
    kind = cast(AnswerType, type_answer(answer))
    return replace(sample, id=make_id("person", sample.id, answer), answer=answer, answer_type=kind, split="train", source="person")


def _freeze_sample(layout: Layout, sample: Sample, *, place: Path, shown: Path) -> Sample:
    copies = [copy_picture(layout, image, place=place, shown=shown) for image in sample.images]
    return replace(sample, images=tuple(path for path, _ in copies), image_hashes=tuple(digest for _, digest in copies))


def list_question_folders(layout: Layout) -> list[Path]:
    """The folders of people's questions, by round."""
    return [layout.questions(number) for number in _list_numbers(layout.round(0).parent)]


def read_questions(folder: Path | None) -> list[Sample]:
    """The prompts of a frozen folder; none where there is none."""
    return [] if folder is None else read_shard(folder / "samples.jsonl", Sample)
