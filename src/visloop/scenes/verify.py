"""The exact verifier: checks a candidate chain step by step against the scene. A measuring instrument, never a hidden help.

A step is right when

* it is a find step of this question (same box, filter, negation, direction and limit as one of the exact chain's) and
  reports exactly the true positions, in any order, or
* it is a conclusion of this question and states exactly what follows from the true facts,

and every exact step it rests on has been *named* before it: a conclusion rests on all finds before it, a find with a
direction on the find of its reference, a statement's verdict on its check. Independent finds may come in any order. A
second copy of a step, a true but irrelevant step and malformed text are wrong.

Score: ``1 + 99 r`` with r = right steps / max(steps given, steps needed), so missing and superfluous steps both cost;
``1 + 49 r`` when the answer is wrong. Hence 100 means that everything is right, and a wrong answer never passes 50.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from visloop.errors import DataError
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.steps import Find, Operation, execute_find, read_positions, read_summary
from visloop.scenes.world import DEFAULT_WORLD, Scene, WorldSpec


@dataclass(frozen=True, slots=True)
class PathCheck:
    """What the verifier found. ``first_error_step`` counts from 1.

    It is None when no step is wrong; len(steps) + 1 when the given steps are right but the chain ends too early.
    """

    score: float
    first_error_step: int | None
    steps_right: tuple[bool, ...]
    answer_right: bool


def normalize_step_text(text: str) -> str:
    """Lower-case text with single spaces."""
    return " ".join(text.lower().split())


def list_needed(operations: Sequence[Operation], index: int) -> tuple[int, ...]:
    """Indices of the exact steps that step ``index`` rests on."""
    operation = operations[index]
    if isinstance(operation, Find):
        return (index - 1,) if operation.direction is not None and index > 0 else ()
    return tuple(range(index))


def read_gold(steps: Sequence[ReasoningStep], *, spec: WorldSpec) -> tuple[Operation, ...]:
    """The typed operations of an exact chain.

    Raises:
        DataError: an empty chain, or a summary outside the grammar of the world.
    """
    operations = []
    for number, step in enumerate(steps, start=1):
        operation = read_summary(step.summary, spec=spec)
        if operation is None:
            raise DataError(f"step {number} of an exact chain has the summary {step.summary!r}, which world {spec.name!r} does not know")
        operations.append(operation)
    if not operations:
        raise DataError("an exact chain must have at least one step")
    return tuple(operations)


def _reasoning_right(operation: Operation, reasoning: str, exact: str, scene: Scene) -> bool:
    if not isinstance(operation, Find):
        return reasoning == normalize_step_text(exact)
    positions = read_positions(reasoning)
    return positions is not None and set(positions) == set(execute_find(operation, scene.boxes))


def verify_steps(
    scene: Scene,
    *,
    gold_steps: Sequence[ReasoningStep],
    gold_answer: str,
    steps: Sequence[ReasoningStep],
    answer: str | None,
    spec: WorldSpec = DEFAULT_WORLD,
) -> PathCheck:
    """Check a candidate chain and its final answer (None = no answer); malformed candidates count as wrong, never raise.

    Raises:
        DataError: the *exact* chain is malformed.
    """
    operations = read_gold(gold_steps, spec=spec)
    index_of = {operation: index for index, operation in enumerate(operations)}
    named: set[int] = set()
    right: list[bool] = []
    for step in steps:
        operation = read_summary(normalize_step_text(step.summary), spec=spec)
        index = index_of.get(operation) if operation is not None else None
        if operation is None or index is None or index in named:
            right.append(False)
            continue
        supported = all(needed in named for needed in list_needed(operations, index))
        right.append(supported and _reasoning_right(operation, normalize_step_text(step.reasoning), gold_steps[index].reasoning, scene))
        named.add(index)
    answer_right = answer is not None and normalize_step_text(answer) == normalize_step_text(gold_answer)
    share = sum(right) / max(len(steps), len(operations))
    first_error = next((number for number, good in enumerate(right, start=1) if not good), None)
    if first_error is None and len(right) < len(operations):
        first_error = len(right) + 1
    return PathCheck(1 + (99 if answer_right else 49) * share, first_error, tuple(right), answer_right)
