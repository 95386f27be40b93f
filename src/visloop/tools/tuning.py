"""Training-validation prompt tuning on frozen weights (CLOVA 3.4), for any tool that can say its loss and its accuracy.

Several prompts are learned per concept, each from other instances. A prompt is kept if it is right often enough on instances that
no prompt was learned from, and costs little on the replay set; what is kept must pass the same rule together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from visloop.config_assistant import PromptTuning
from visloop.errors import DataError, TrainingError
from visloop.ids import make_id
from visloop.records.assistant import Instance, PromptEntry
from visloop.tools.prompt_pool import LearnedPrompt

FOLD_SHARE = 0.75
"""Share of the positive train instances that one prompt learns from."""
FLAT_AFTER, FLAT_GAIN = 25, 1e-3
"""A prompt is finished when its loss has not fallen by ``FLAT_GAIN`` for ``FLAT_AFTER`` steps."""


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Fractions 0-1: ``novel`` of the validation instances of the concept, ``base`` of the replay set."""

    novel: float
    base: float


class PromptProblem(Protocol):
    """What is learned: one concept of one tool, with its instances already encoded."""

    def start_prompt(self, seed: int) -> Tensor:
        """A first prompt (tokens, width)."""
        ...

    def compute_loss(self, prompt: Tensor, positives: Sequence[int]) -> Tensor:
        """The loss of a prompt on some of the positive train instances and on all negatives."""
        ...

    def measure_training(self, prompt: Tensor, positives: Sequence[int]) -> float:
        """Share of those train instances that the prompt gets right."""
        ...

    def make_feature(self, positives: Sequence[int]) -> NDArray[np.float32]:
        """The feature (d,) of the pictures that a prompt was learned from."""
        ...

    def measure(self, prompts: Sequence[LearnedPrompt]) -> Accuracies:
        """Accuracies with these prompts of the concept, combined as they will be when the tool runs; none: the plain tool."""
        ...


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning gave: the prompts that are kept, how many were refused and why, and the accuracies before and after."""

    kept: tuple[LearnedPrompt, ...]
    refused: int
    reason: str
    before: Accuracies
    after: Accuracies


def split_instances(instances: Sequence[Instance]) -> tuple[list[Instance], list[Instance]]:
    """(train, validation). A picture's region may be in one of them only.

    Raises:
        DataError: the same region of the same picture is learned from and validated on.
    """
    train = [entry for entry in instances if entry.split == "train"]
    validation = [entry for entry in instances if entry.split == "validation"]
    shared = {(entry.image, entry.box) for entry in train} & {(entry.image, entry.box) for entry in validation}
    if shared:
        image, box = min(shared, key=str)
        raise DataError(f"{image}, box {box}: a train instance is a validation instance too; validate on what was not learned from")
    return train, validation


def draw_folds(count: int, *, prompts: int, seed: int) -> list[list[int]]:
    """For each prompt the indices, of ``count`` positives, that it learns from: a random share; no two shares are equal."""
    draw = np.random.default_rng(seed)
    size = max(1, round(FOLD_SHARE * count))
    folds: list[list[int]] = []
    for _ in range(20 * prompts):
        fold = sorted(draw.choice(count, size, replace=False).tolist())
        if fold not in folds:
            folds.append(fold)
        if len(folds) == prompts:
            break
    return folds


def fit_prompt(start: Tensor, loss: Callable[[Tensor], Tensor], *, config: PromptTuning) -> Tensor:
    """Minimise ``loss`` over one prompt, weights frozen; the best prompt seen is returned.

    Raises:
        TrainingError: the loss is not a number.
    """
    prompt = start.clone().requires_grad_(True)
    optimizer = torch.optim.AdamW([prompt], lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, eta_min=0.1 * config.learning_rate)
    best, lowest, waited = start.clone(), float("inf"), 0
    for step in range(config.steps):
        value = loss(prompt)
        if not torch.isfinite(value):
            raise TrainingError(f"prompt tuning: the loss is {value.item()} at step {step}; lower tuning.learning_rate")
        waited = 0 if value.item() < lowest - FLAT_GAIN else waited + 1
        if value.item() < lowest:
            best, lowest = prompt.detach().clone(), value.item()
        if waited > FLAT_AFTER:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return best


def learn_prompts(
    problem: PromptProblem,
    *,
    positives: Sequence[Instance],
    entry: PromptEntry,
    config: PromptTuning,
    seed: int,
) -> Tuned:
    """Learn ``config.prompts`` prompts and keep those that pass (CLOVA 3.4).

    Args:
        positives: the train instances of the concept, in the problem's order.
        entry: what the prompts' records have in common; id, instances and accuracies are filled in.
    """
    before = problem.measure(())
    if before.novel >= config.known_at:
        return Tuned((), 0, f"known already: right on {before.novel:.2f} of the validation instances", before, before)
    floor = before.base - config.max_base_drop
    learned: list[tuple[LearnedPrompt, Accuracies]] = []
    for number, fold in enumerate(draw_folds(len(positives), prompts=config.prompts, seed=seed)):
        start = problem.start_prompt(seed + number)
        prompt = fit_prompt(start, lambda given, fold=fold: problem.compute_loss(given, fold), config=config)  # type: ignore[misc]
        ids = tuple(positives[index].id for index in fold)
        made = LearnedPrompt(
            entry=_fill(entry, ids, problem.measure_training(prompt, fold), Accuracies(0.0, 0.0), before, seed),
            feature=problem.make_feature(fold),
            prompt=prompt.numpy().astype(np.float32),
        )
        found = problem.measure((made,))
        filled = _fill(entry, ids, made.entry.train_accuracy, found, before, seed)
        learned.append((LearnedPrompt(entry=filled, feature=made.feature, prompt=made.prompt), found))
    passed = [item for item in learned if item[1].novel >= config.min_validation and item[1].base >= floor]
    return _agree(problem, passed, learned=learned, before=before, floor=floor, config=config)


def _fill(entry: PromptEntry, ids: tuple[str, ...], train: float, found: Accuracies, before: Accuracies, seed: int) -> PromptEntry:
    return PromptEntry(
        id=make_id(entry.tool, entry.backend, entry.placement, entry.concept, seed, *ids),
        tool=entry.tool,
        concept=entry.concept,
        backend=entry.backend,
        placement=entry.placement,
        group=entry.group,
        instance_ids=ids,
        train_accuracy=train,
        validation_accuracy=found.novel,
        base_accuracy=found.base,
        base_accuracy_before=before.base,
        cycle=entry.cycle,
    )


def _agree(
    problem: PromptProblem,
    passed: list[tuple[LearnedPrompt, Accuracies]],
    *,
    learned: list[tuple[LearnedPrompt, Accuracies]],
    before: Accuracies,
    floor: float,
    config: PromptTuning,
) -> Tuned:
    """Keep the largest set of passed prompts, best first, that passes together as well."""
    ranked = sorted(passed, key=lambda item: -(item[1].novel + item[1].base))[: config.max_prompts]
    while ranked:
        prompts = tuple(item[0] for item in ranked)
        after = problem.measure(prompts)
        if after.novel >= config.min_validation and after.base >= floor:
            return Tuned(prompts, len(learned) - len(prompts), "", before, after)
        ranked = ranked[:-1]
    if not learned:
        return Tuned((), 0, "there are no train instances", before, before)
    best = max(learned, key=lambda item: item[1].novel + item[1].base)[1]
    reason = (
        f"no prompt passed: the best one is right on {best.novel:.2f} of the validation instances (at least {config.min_validation:.2f}) "
        f"and on {best.base:.2f} of the replay set (at least {floor:.2f})"
    )
    return Tuned((), len(learned), reason, before, before)
