"""What the gates measure on records: a fact is ``ok`` or the words that a person needs to find the fault.

Facts of a record that breaks its contract are empty: the rule ``contract`` names it, the other rules pass over it.
"""

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows._gates import GateContext
from flows._pictures import OK, PictureCheck
from visloop.answers import read_boolean, read_letter, read_number
from visloop.errors import ReplyError
from visloop.records.chains import THOUGHTS_OPEN, format_chain, parse_chain
from visloop.records.reasoning import AssessedPath, Prediction, PreferencePair, ReasoningPath, SFTExample

if TYPE_CHECKING:
    import pandas as pd

CHAIN_KINDS = ("reason", "direct", "multi_turn")
"""Kinds of SFT example in which the model itself writes a chain; in the others it reads one."""

_READERS: dict[str, Callable[[str], object]] = {"boolean": read_boolean, "number": read_number, "letter": read_letter}


@dataclass(frozen=True, slots=True)
class Row:
    """Where one record lies and what it is. ``record`` is None where ``contract`` is not ``ok``; ``raw`` is the line as text."""

    where: str
    id: str
    value: dict[str, Any] | None
    record: Any
    contract: str
    raw: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The rows, and the table of facts about them in the same order."""

    rows: tuple[Row, ...]
    table: "pd.DataFrame"


Facts = dict[str, Any]


def _measure_samples(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    pictures = PictureCheck(context)
    splits_of_group: dict[str, set[str]] = {}
    splits_of_picture: dict[str, set[str]] = {}
    for row in rows:
        if row.record is not None:
            splits_of_group.setdefault(row.record.group, set()).add(row.record.split)
            for digest in row.record.image_hashes:
                splits_of_picture.setdefault(digest, set()).add(row.record.split)
    facts: list[Facts] = []
    for row in rows:
        sample = row.record
        if sample is None:
            facts.append({})
            continue
        shared = [path for path, digest in zip(sample.images, sample.image_hashes, strict=False) if len(splits_of_picture[digest]) > 1]
        facts.append(
            {
                "question_text": OK if sample.question.strip() else "empty",
                "answer_form": _read_form(sample.answer, sample.answer_type),
                "pictures": pictures.check_sample(sample),
                "group_splits": name_splits(splits_of_group[sample.group]),
                "picture_splits": name_splits(splits_of_picture[sample.image_hashes[sample.images.index(shared[0])]]) if shared else OK,
            }
        )
    return facts


def _measure_paths(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    return [{} if row.record is None else _describe_path(row.record, context) for row in rows]


def _describe_path(path: ReasoningPath, context: GateContext) -> Facts:
    finished = path.status == "finished"
    return {
        "sample_known": _find_sample(path.sample_id, context),
        "steps": _check_steps(path) if finished else OK,
        "answer_given": OK if not finished or (path.answer or "").strip() else "finished without an answer",
        "replies_kept": OK if path.replies or path.status == "failed" else "no raw reply",
    }


def _measure_assessed(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    facts: list[Facts] = []
    for row in rows:
        if row.record is None:
            facts.append({})
            continue
        assessed: AssessedPath = row.record
        asked = assessed.score_status != "not_asked"
        facts.append(
            {
                "sample_known": _find_sample(assessed.path.sample_id, context),
                "score": assessed.score,
                "verdict_reached": assessed.verdict if assessed.path.answer is not None else None,
                "score_reached": assessed.score_status if asked else None,
                "verdict_basis": "correct without an answer" if assessed.verdict == "correct" and assessed.path.answer is None else OK,
            }
        )
    return facts


def _measure_sft(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    pictures = PictureCheck(context)
    return [{} if row.record is None else _describe_example(row.record, context, pictures) for row in rows]


def _describe_example(example: SFTExample, context: GateContext, pictures: PictureCheck) -> Facts:
    roles = [turn.role for turn in example.turns]
    spoken = [role for role in roles if role != "system"]
    alternate = all(role == ("user", "assistant")[index % 2] for index, role in enumerate(spoken))
    ordered = bool(spoken) and spoken[-1] == "assistant" and alternate and "system" not in roles[1:]
    written = [turn.text for turn in example.turns if turn.role == "assistant"]
    return {
        "sample_known": _find_sample(example.sample_id, context),
        "sample_split": _find_split(example.sample_id, context),
        "pictures": pictures.check_paths(example.images),
        "pictures_of_sample": _compare_pictures(example.sample_id, example.images, context),
        "pictures_held_out": pictures.find_held_out(example.images),
        "turns": OK if ordered else f"roles {' '.join(roles) or 'none'}",
        "target": OK if written and all(text.strip() for text in written) else "empty",
        "chain": _check_example_chains(example, written),
    }


def _check_example_chains(example: SFTExample, written: Sequence[str]) -> str:
    if example.kind in CHAIN_KINDS and not any(THOUGHTS_OPEN in text for text in written):
        return f"kind {example.kind} without {THOUGHTS_OPEN} in what the model writes"
    for text in written:
        if THOUGHTS_OPEN in text and (fault := _check_chain(text)) != OK:
            return fault
    return OK


def _measure_pairs(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    pictures = PictureCheck(context)
    return [{} if row.record is None else _describe_pair(row.record, context, pictures) for row in rows]


def _describe_pair(pair: PreferencePair, context: GateContext, pictures: PictureCheck) -> Facts:
    known = context.paths or {}
    strangers = [path for path in (pair.chosen_path_id, pair.rejected_path_id) if known.get(path) != pair.sample_id]
    verdict_open = pair.strategy == "margin" or pair.chosen_verdict == "correct"
    return {
        "sample_known": _find_sample(pair.sample_id, context),
        "sample_split": _find_split(pair.sample_id, context),
        "chains_differ": "same text" if pair.chosen.strip() == pair.rejected.strip() else OK,
        "same_question": f"path {strangers[0]} is of sample {known.get(strangers[0])}" if strangers else OK,
        "chosen_verdict_fits": OK if verdict_open else f"chosen is {pair.chosen_verdict} under {pair.strategy}",
        "scores_ordered": _check_scores(pair),
        "chosen_chain": _check_chain(pair.chosen),
        "texts": OK if pair.prompt.strip() and pair.chosen.strip() and pair.rejected.strip() else "prompt, chosen or rejected is empty",
        "pictures": pictures.check_paths(pair.images),
        "pictures_of_sample": _compare_pictures(pair.sample_id, pair.images, context),
        "pictures_held_out": pictures.find_held_out(pair.images),
    }


def _check_scores(pair: PreferencePair) -> str:
    """Where the verdicts agree, the scores must decide; a correct chain against a wrong one is ordered by its verdict."""
    scores = (pair.chosen_score, pair.rejected_score)
    if any(score is not None and not 1 <= score <= 100 for score in scores):
        return f"scores {scores[0]} and {scores[1]} are not in 1-100"
    if pair.chosen_verdict == "wrong" and pair.rejected_verdict == "correct":
        return "a wrong chain preferred to a correct one"
    if pair.chosen_verdict != pair.rejected_verdict:
        return OK
    if pair.chosen_score is None or pair.rejected_score is None:
        return f"both {pair.chosen_verdict}, and a score is missing"
    ordered = pair.chosen_score > pair.rejected_score
    return OK if ordered else f"both {pair.chosen_verdict}, scores {pair.chosen_score:g} and {pair.rejected_score:g}"


def _measure_predictions(rows: Sequence[Row], context: GateContext) -> list[Facts]:
    answered: dict[str, set[str]] = {}
    for row in rows:
        if row.record is not None:
            answered.setdefault(row.record.system, set()).add(row.record.sample_id)
    asked = set().union(*answered.values()) if answered else set()
    facts: list[Facts] = []
    for row in rows:
        if row.record is None:
            facts.append({})
            continue
        prediction: Prediction = row.record
        missing = len(asked) - len(answered[prediction.system])
        sample = context.samples.get(prediction.sample_id)
        labels = sample is None or (sample.family, sample.group) == (prediction.family, prediction.group)
        bad = [f"{name} is {value}" for name, value in prediction.metrics.items() if not math.isfinite(value)]
        facts.append(
            {
                "sample_known": _find_sample(prediction.sample_id, context),
                "sample_split": _find_split(prediction.sample_id, context),
                "labels": OK if labels else f"family {prediction.family}, group {prediction.group} are not the sample's",
                "answer_given": "correct without an answer" if prediction.correct and not (prediction.answer or "").strip() else OK,
                "metrics": bad[0] if bad else OK,
                "coverage": OK if not missing else f"{prediction.system} lacks {missing} samples that others answered",
            }
        )
    return facts


def _read_form(answer: str, answer_type: str) -> str:
    if not answer.strip():
        return "empty"
    reader = _READERS.get(answer_type)
    return OK if reader is None or reader(answer) is not None else f"{answer[:40]!r} is no {answer_type}"


def name_splits(splits: Collection[str]) -> str:
    """``ok`` where a group or picture is in one split only, else the splits that share it."""
    return OK if len(splits) == 1 else " and ".join(sorted(splits))


def _find_sample(sample_id: str, context: GateContext) -> str:
    return OK if sample_id in context.samples else f"no sample {sample_id}"


def _find_split(sample_id: str, context: GateContext) -> str | None:
    sample = context.samples.get(sample_id)
    return None if sample is None else sample.split


def _compare_pictures(sample_id: str, images: tuple[str, ...], context: GateContext) -> str:
    sample = context.samples.get(sample_id)
    return OK if sample is None or sample.images == images else "other pictures than the sample's"


def _check_steps(path: ReasoningPath) -> str:
    if not path.steps:
        return "finished without a step"
    for number, step in enumerate(path.steps, start=1):
        if not step.summary.strip() or not step.reasoning.strip():
            return f"step {number} has no text"
    try:
        read = parse_chain(format_chain(path.steps, path.answer or ""))
    except ReplyError as error:
        return str(error)
    return OK if len(read.steps) == len(path.steps) else f"{len(path.steps)} steps read back as {len(read.steps)}"


def _check_chain(text: str) -> str:
    try:
        chain = parse_chain(text)
    except ReplyError as error:
        return str(error)
    return OK if chain.complete else "the chain is not closed"


MEASURES: dict[str, Callable[[Sequence[Row], GateContext], list[Facts]]] = {
    "samples": _measure_samples,
    "paths": _measure_paths,
    "assessed": _measure_assessed,
    "sft": _measure_sft,
    "pairs": _measure_pairs,
    "predictions": _measure_predictions,
}

FACT_NAMES: dict[str, tuple[str, ...]] = {
    "samples": ("question_text", "answer_form", "pictures", "group_splits", "picture_splits"),
    "paths": ("sample_known", "steps", "answer_given", "replies_kept"),
    "assessed": ("sample_known", "score", "verdict_reached", "score_reached", "verdict_basis"),
    "sft": ("sample_known", "sample_split", "pictures", "pictures_of_sample", "pictures_held_out", "turns", "target", "chain"),
    "pairs": (
        "sample_known",
        "sample_split",
        "chains_differ",
        "same_question",
        "chosen_verdict_fits",
        "scores_ordered",
        "chosen_chain",
        "texts",
        "pictures",
        "pictures_of_sample",
        "pictures_held_out",
    ),
    "predictions": ("sample_known", "sample_split", "labels", "answer_given", "metrics", "coverage"),
}
"""Names of the measured columns, suite by suite: an empty table has them too."""
