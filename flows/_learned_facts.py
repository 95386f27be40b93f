"""What the gates measure on what the assistant learns from and what it has learned: instances, demonstrations, prompts."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flows._assistant_context import AssistantContext, fold_text
from flows._facts import Facts, Row
from flows._pictures import OK, PictureCheck
from visloop.answers import read_boolean
from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.errors import ProgramError
from visloop.records.assistant import Demonstration, Instance, PromptEntry
from visloop.tools.prompt_pool import ANCHORS, QUESTION_STATES
from visloop.tools.tunings import list_tunings

_SLACK = 1e-9


def _measure_instances(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    pictures = PictureCheck(context)
    splits: dict[tuple[str, str, str], set[str]] = {}
    for row in rows:
        if row.record is not None:
            splits.setdefault(_name_picture(row.record, pictures), set()).add(row.record.split)
    facts: list[Facts] = []
    for row in rows:
        if row.record is None:
            facts.append({})
            continue
        instance: Instance = row.record
        in_splits = splits[_name_picture(instance, pictures)]
        files = [instance.image, *([instance.mask] if instance.mask else [])]
        facts.append(
            {
                "pictures": pictures.check_paths(files),
                "box_place": _check_box(instance, pictures),
                "label_fits": _check_label(instance),
                "picture_splits": OK if len(in_splits) == 1 else f"{instance.image} is in train and in validation",
                "pictures_held_out": pictures.find_held_out([instance.image]),
                "provenance": _check_provenance(instance),
            }
        )
    return facts


def _name_picture(instance: Instance, pictures: PictureCheck) -> tuple[str, str, str]:
    """What may be in one split only: the bytes of a picture, for one concept of one tool. Other concepts draw their own splits."""
    return instance.tool, instance.concept, pictures.hash_picture(instance.image) or instance.image


def _check_box(instance: Instance, pictures: PictureCheck) -> str:
    width, height = pictures.read_size(instance.image)
    if not width:
        return OK  # the rule on pictures names it
    if instance.mask and pictures.read_size(instance.mask) not in ((0, 0), (width, height)):
        return "the mask of {}x{} pixels is on a picture of {}x{}".format(*pictures.read_size(instance.mask), width, height)
    if instance.box is None:
        return OK
    left, top, right, bottom = instance.box
    inside = 0 <= left < right <= width + _SLACK and 0 <= top < bottom <= height + _SLACK
    return OK if inside else f"box {left:g}, {top:g}, {right:g}, {bottom:g} on a picture of {width}x{height}"


def _check_label(instance: Instance) -> str:
    """A positive shows its concept. The label of an inferred instance is the right answer to a question: it is the concept itself, or the
    question holds the concept, and the picture shows it unless the answer denies it."""
    shows = fold_text(instance.label) == fold_text(instance.concept)
    if instance.source == "inference":
        shows = shows or read_boolean(instance.label) is not False
    kind = "positive" if instance.positive else "negative"
    return OK if shows == instance.positive else f"a {kind} of {instance.concept!r} is labelled {instance.label!r}"


def _check_provenance(instance: Instance) -> str:
    if instance.source != "image_search":
        return OK
    missing = [name for name in ("licence", "origin") if not getattr(instance, name).strip()]
    return f"no {' and no '.join(missing)}" if missing else OK


def _measure_demonstrations(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    return [{} if row.record is None else _describe_demonstration(row.record, context) for row in rows]


def _describe_demonstration(entry: Demonstration, context: AssistantContext) -> Facts:
    shown = entry.instruction.strip() and (entry.plan if entry.kind == "plan" else entry.program.strip())
    runs = entry.kind == "program" and entry.outcome == "success"
    return {
        "content": OK if shown else f"no instruction, or a {entry.kind} demonstration without a {entry.kind}",
        "program": _check_shown(entry, context) if runs and shown else OK,
        "reason_given": OK if entry.outcome == "success" or entry.reason.strip() else "a failure without a reason",
        "instruction_held_out": _check_leak(entry, context),
    }


def _check_leak(entry: Demonstration, context: AssistantContext) -> str:
    """What was learned was learned from a train task. A shipped demonstration was written before tasks were drawn, and short
    instructions of a small vocabulary come again."""
    leaked = entry.provenance != "seed" and fold_text(entry.instruction) in context.evaluation_instructions
    return f"{entry.instruction!r} is the instruction of a held-out task" if leaked else OK


def _check_shown(entry: Demonstration, context: AssistantContext) -> str:
    try:
        program = parse_program(entry.program)
    except ProgramError as error:
        return str(error)
    problems = check_program(program, kind=entry.task_kind, find_signature=context.find_signature)
    return problems[0].describe() if problems else OK


def _measure_prompts(rows: Sequence[Row], context: AssistantContext) -> list[Facts]:
    entries: list[PromptEntry] = [row.record for row in rows if row.record is not None]
    counts = Counter((entry.tool, entry.concept) for entry in entries)
    tensors = _load_tensors(context.tensors) if context.tensors is not None else "no tensors"
    return [{} if row.record is None else _describe_prompt(row.record, context, counts, tensors) for row in rows]


def _describe_prompt(
    entry: PromptEntry, context: AssistantContext, counts: Mapping[tuple[str, str], int], tensors: Mapping[str, Any] | str
) -> Facts:
    # tools that share their prompts may have settings of their own: which of them learned this one is not in its record
    tunings, count = list_tunings(context.tools, entry.tool), counts[(entry.tool, entry.concept)]
    least, allowed = min(tuning.min_validation for tuning in tunings), max(tuning.max_base_drop for tuning in tunings)
    most = max(tuning.max_prompts for tuning in tunings)
    figures = (entry.train_accuracy, entry.validation_accuracy, entry.base_accuracy, entry.base_accuracy_before)
    drop = entry.base_accuracy_before - entry.base_accuracy
    validated = entry.validation_accuracy >= least - _SLACK
    harmless = drop <= allowed + _SLACK
    return {
        "figures": OK if all(math.isfinite(value) and 0 <= value <= 1 for value in figures) else f"accuracies {figures}",
        "validated": OK if validated else f"{entry.validation_accuracy:g} of the validation instances, wanted {least:g}",
        "harmless": OK if harmless else f"costs {drop:g} of the replay set, allowed {allowed:g}",
        "tensors": _check_tensors(entry, tensors),
        "concept_count": (
            OK
            if count <= most or entry.concept == ANCHORS or entry.placement == QUESTION_STATES
            else f"{count} prompts of {entry.tool} for {entry.concept!r}, allowed {most}"
        ),
    }


def _load_tensors(path: Path) -> Mapping[str, Any] | str:
    """The arrays by name, or why there are none."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, KeyError) as error:
        return f"{path.name} cannot be read: {error}"


def _check_tensors(entry: PromptEntry, tensors: Mapping[str, Any] | str) -> str:
    if isinstance(tensors, str):
        return tensors
    for part, dimensions in (("feature", 1), ("prompt", 2)):
        found = tensors.get(f"{entry.id}.{part}")
        if found is None:
            return f"no tensor {entry.id}.{part}"
        if found.ndim != dimensions or not found.size:
            return f"{entry.id}.{part} has the shape {found.shape}, wanted {dimensions} dimensions"
        if not np.isfinite(found).all():
            return f"{entry.id}.{part} holds values that are not finite"
    return OK


LEARNED_MEASURES: dict[str, Callable[[Sequence[Row], AssistantContext], list[Facts]]] = {
    "instances": _measure_instances,
    "demonstrations": _measure_demonstrations,
    "prompts": _measure_prompts,
}

LEARNED_FACTS: dict[str, tuple[str, ...]] = {
    "instances": ("pictures", "box_place", "label_fits", "picture_splits", "pictures_held_out", "provenance"),
    "demonstrations": ("content", "program", "reason_given", "instruction_held_out"),
    "prompts": ("figures", "validated", "harmless", "tensors", "concept_count"),
}
