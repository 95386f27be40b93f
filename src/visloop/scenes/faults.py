"""Damaged copies of exact chains: training data with known first errors for the base model and the judge.

One place is damaged; what follows either follows from the damage (``consistent``) or stays as in the exact chain, so that
lucky chains (a wrong step, the right answer) occur as they do in sampled chains.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from visloop.errors import DataError
from visloop.ids import seed_for
from visloop.records.reasoning import ReasoningStep
from visloop.scenes.filters import change_value
from visloop.scenes.questions import SceneQuestion
from visloop.scenes.steps import (
    Conclusion,
    Find,
    Finding,
    answer_of,
    compare_numbers,
    coordinate_of,
    execute_conclusion,
    execute_find,
    format_positions,
    holds_for,
    read_positions,
    summarize_operation,
    write_check,
)
from visloop.scenes.verify import list_needed, read_gold
from visloop.scenes.world import ATTRIBUTES, DEFAULT_WORLD, Scene, WorldSpec

FaultKind = Literal["attribute", "moved", "dropped", "added", "number", "sign", "final", "skipped"]
FAULT_KINDS: tuple[FaultKind, ...] = ("attribute", "moved", "dropped", "added", "number", "sign", "final", "skipped")
CONSISTENT_SHARE = 0.85
"""How often the rest of a damaged chain follows from the damage."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A damaged chain. ``first_error_step`` counts from 1; ``lucky`` says that its answer is right nevertheless."""

    kind: FaultKind
    steps: tuple[ReasoningStep, ...]
    answer: str
    first_error_step: int
    lucky: bool


def _texts_to_steps(texts: Sequence[tuple[str, str]]) -> tuple[ReasoningStep, ...]:
    last = len(texts) - 1
    return tuple(
        ReasoningStep(summary=summary, reasoning=reasoning, action="summary" if index == last else "continue")
        for index, (summary, reasoning) in enumerate(texts)
    )


def _redo_conclusion(operation: Conclusion, words: Sequence[str]) -> str:
    """The conclusion that follows from the numbers ``words`` start with."""
    if operation.kind == "count":
        return f"{words[0]} answer {words[0]}"
    if operation.kind == "check":
        return write_check(operation, [int(word) for word in words if word.isdigit()])
    first, second = (int(word.lstrip("xy")) for word in words[:2])
    sign = compare_numbers(first, second)
    yes, no = ("true", "false") if operation.kind == "statement" else ("yes", "no")
    return f"{words[0]} {words[1]} {sign} answer {yes if holds_for(operation.word, sign) else no}"


class _Damage:
    """One attempt at damaging one exact chain; every method returns (texts, answer, first error) or None where it does not apply."""

    def __init__(self, scene: Scene, question: SceneQuestion, *, rng: random.Random, spec: WorldSpec) -> None:
        self.scene, self.question, self.rng, self.spec = scene, question, rng, spec
        self.operations = read_gold(question.steps, spec=spec)
        self.texts = [(step.summary, step.reasoning) for step in question.steps]
        self.finds = [index for index, operation in enumerate(self.operations) if isinstance(operation, Find)]

    def guess_answer(self) -> str:
        """Some answer of the question's kind, right or wrong."""
        last = self.operations[-1]
        if self.question.answer_type == "boolean":
            return self.rng.choice(("true", "false") if self.question.family == "statement" else ("yes", "no"))
        if isinstance(last, Conclusion) and last.kind == "query":
            return self.rng.choice(self.spec.values(next(name for name in ATTRIBUTES if name == last.word)))
        return str(self.rng.randint(0, self.spec.objects[1]))

    def continue_from(self, texts: list[tuple[str, str]], index: int) -> tuple[list[tuple[str, str]], str]:
        """Complete a chain whose step ``index`` was damaged, consistently or as in the exact chain."""
        if index < len(self.texts) - 1 and self.rng.random() >= CONSISTENT_SHARE:
            return texts + self.texts[index + 1 :], self.question.answer
        found: list[Finding] = []
        for number, operation in enumerate(self.operations):
            if number <= index:
                positions = read_positions(texts[number][1]) if isinstance(operation, Find) else None
                if isinstance(operation, Find) and positions is not None:
                    found.append(Finding(operation, positions))
                continue
            if isinstance(operation, Find):
                step = self._relocate(operation, found)
                found.append(Finding(step, execute_find(step, self.scene.boxes)))
                texts.append((summarize_operation(step), format_positions(found[-1].positions)))
                continue
            reasoning = execute_conclusion(operation, found, self.scene.boxes, previous=texts[-1][1])
            texts.append((summarize_operation(operation), reasoning or f"answer {self.guess_answer()}"))
        return texts, answer_of(texts[-1][1]) or self.guess_answer()

    def _relocate(self, step: Find, found: Sequence[Finding]) -> Find:
        """A find with a direction looks from wherever the damaged chain put its reference."""
        if step.direction is None or not found or not found[-1].positions:
            return step
        return replace(step, limit=coordinate_of(self.rng.choice(found[-1].positions), step.direction))

    def damage_attribute(self) -> tuple[list[tuple[str, str]], str, int] | None:
        """Another value, or one attribute forgotten, in the filter of a find step."""
        index = self.rng.choice(self.finds)
        step = self.operations[index]
        if not isinstance(step, Find) or not step.wanted.attributes():
            return None
        attribute = self.rng.choice(step.wanted.attributes())
        values: list[str | None] = [value for value in self.spec.values(attribute) if value != step.wanted.value(attribute)]
        if len(step.wanted.attributes()) > 1:
            values.append(None)
        changed = replace(step, wanted=change_value(step.wanted, attribute, self.rng.choice(values)))
        if changed in self.operations:
            return None
        text = (summarize_operation(changed), format_positions(execute_find(changed, self.scene.boxes)))
        return *self.continue_from([*self.texts[:index], text], index), index + 1

    def damage_positions(self, kind: FaultKind) -> tuple[list[tuple[str, str]], str, int] | None:
        """One position moved to another cell, dropped, or added."""
        index = self.rng.choice(self.finds)
        step = self.operations[index]
        if not isinstance(step, Find):
            return None
        positions = list(execute_find(step, self.scene.boxes))
        axis = range(1, self.spec.grid + 1)
        others = [(column, row) for column in axis for row in axis if (column, row) not in positions]
        box = self.scene.boxes[step.box - 1 if step.box else 0]
        filled = [(entry.column, entry.row) for entry in box if (entry.column, entry.row) not in positions]
        # Mistakes of perception mostly confuse real objects; ghosts in empty cells are the rarer kind.
        stranger = self.rng.choice(filled if filled and self.rng.random() < 0.8 else others) if others else None
        if kind == "added" and stranger is not None:
            positions.append(stranger)
        elif kind == "dropped" and positions:
            positions.remove(self.rng.choice(positions))
        elif kind == "moved" and positions and stranger is not None:
            positions[self.rng.randrange(len(positions))] = stranger
        else:
            return None
        text = (self.texts[index][0], format_positions(positions))
        return *self.continue_from([*self.texts[:index], text], index), index + 1

    def _replace_word(self, index: int, place: int, choices: Sequence[str]) -> list[tuple[str, str]] | None:
        words = self.texts[index][1].split(" ")
        options = [choice for choice in choices if choice != words[place]]
        if not options:
            return None
        words[place] = self.rng.choice(options)
        return [*self.texts[:index], (self.texts[index][0], " ".join(words))]

    def damage_number(self) -> tuple[list[tuple[str, str]], str, int] | None:
        """A wrong count or coordinate in a conclusion; the rest of the conclusion follows from it or not."""
        index = self.rng.randrange(len(self.operations))
        operation = self.operations[index]
        if isinstance(operation, Find) or operation.kind in ("exist", "query"):
            return None
        words = self.texts[index][1].split(" ")
        numerals = [place for place, word in enumerate(words) if word.lstrip("xy").isdigit() and place < 3]
        if operation.kind == "count":
            numerals = [0]
        place = self.rng.choice(numerals)
        prefix = words[place][:-1] if words[place][0] in "xy" else ""
        value = int(words[place][len(prefix) :])
        least, most = (1, self.spec.grid) if prefix else (0, self.spec.grid**2)
        near = [str(number) for number in (value - 1, value + 1) if least <= number <= most]
        texts = self._replace_word(index, place, [prefix + number for number in near])
        if texts is None:
            return None
        if operation.kind == "count" or self.rng.random() < CONSISTENT_SHARE:
            texts[index] = (texts[index][0], _redo_conclusion(operation, texts[index][1].split(" ")))
        return *self.continue_from(texts, index), index + 1

    def damage_sign(self) -> tuple[list[tuple[str, str]], str, int] | None:
        """A wrong order sign or a wrong flag of a box."""
        index = self.rng.choice([index for index in range(len(self.operations)) if index not in self.finds])
        words = self.texts[index][1].split(" ")
        operation = self.operations[index]
        if isinstance(operation, Conclusion) and operation.kind == "check":
            flags = [place for place, word in enumerate(words) if word in ("yes", "no")]
            texts = self._replace_word(index, self.rng.choice(flags), ("yes", "no"))
        else:
            signs = [place for place, word in enumerate(words) if word in "<>="]
            texts = self._replace_word(index, signs[0], ("<", ">", "=")) if signs else None
            if texts is not None and self.rng.random() < CONSISTENT_SHARE:
                words = [*texts[index][1].split(" ")[:-1], self.guess_answer()]
                texts[index] = (texts[index][0], " ".join(words))
        return None if texts is None else (*self.continue_from(texts, index), index + 1)

    def damage_final(self) -> tuple[list[tuple[str, str]], str, int] | None:
        """Right reasoning up to the last word, which is wrong."""
        wrong = next(answer for answer in iter(self.guess_answer, None) if answer != self.question.answer)
        words = [*self.texts[-1][1].split(" ")[:-1], wrong]
        return [*self.texts[:-1], (self.texts[-1][0], " ".join(words))], wrong, len(self.texts)

    def skip_step(self) -> tuple[list[tuple[str, str]], str, int] | None:
        """One step left out; the first error is the first step that rests on it."""
        index = self.rng.randrange(len(self.operations) - 1)
        dependants = [later for later in range(index + 1, len(self.operations)) if index in list_needed(self.operations, later)]
        return [*self.texts[:index], *self.texts[index + 1 :]], self.question.answer, min(dependants)

    def apply(self, kind: FaultKind) -> tuple[list[tuple[str, str]], str, int] | None:
        """Damage of one kind, or None where the question offers no place for it (this time)."""
        if kind in ("moved", "dropped", "added"):
            return self.damage_positions(kind)
        return {
            "attribute": self.damage_attribute,
            "number": self.damage_number,
            "sign": self.damage_sign,
            "final": self.damage_final,
            "skipped": self.skip_step,
        }[kind]()


def inject_fault(
    scene: Scene,
    question: SceneQuestion,
    *,
    seed: int,
    spec: WorldSpec = DEFAULT_WORLD,
    kinds: Sequence[FaultKind] = FAULT_KINDS,
) -> Fault:
    """One damaged copy of a question's exact chain; the kind is drawn first, among those the question has a place for.

    Raises:
        DataError: none of ``kinds`` applies to the question.
    """
    rng = random.Random(seed_for(seed, "fault", scene.id, question.question))
    damage = _Damage(scene, question, rng=rng, spec=spec)
    for kind in rng.sample(kinds, len(kinds)):
        for _ in range(6):
            drawn = damage.apply(kind)
            if drawn is not None:
                texts, answer, first_error = drawn
                return Fault(kind, _texts_to_steps(texts), answer, first_error, answer == question.answer)
    raise DataError(f"none of the faults {tuple(kinds)} applies to the question {question.question!r} of scene {scene.id}")
