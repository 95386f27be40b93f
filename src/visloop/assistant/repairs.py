"""Counterfactual repairs: other results that one step might have had, and which of them alone make the final result right.

Candidates are built from the step's type and the feedback's answer, never from ground truth about the picture: other regions that the
toolbox itself finds, a count that is off by one, another answer. They are tried by re-running the rest of the program, all cases in
one batch (CLOVA 3.4's substitution check, turned into an instrument of blame).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from PIL import Image

from visloop.answers import normalize_answer, read_boolean, read_number
from visloop.assistant.cases import Case, Judge, find_statement, list_learnable_steps
from visloop.assistant.data_flow import list_references
from visloop.assistant.interpreter import run_substitutions
from visloop.assistant.program import Literal as Constant
from visloop.assistant.program import Reference, Statement
from visloop.tools.base import FindSignature, ToolCall, ToolRunner
from visloop.tools.values import Box, Boxes, Objects, Value, VisualObject, overlap_ratio

SOME_OTHER_ANSWER: Final = "something else"
"""Stands for an answer that is none of those at hand: enough to blame a step, nothing to teach it."""
_SAME_REGION = 0.5
_COMPARED = re.compile(r"(?:==|!=)\s*(?:'([^'{}]*)'|\"([^\"{}]*)\")|(?:'([^'{}]*)'|\"([^\"{}]*)\")\s*(?:==|!=)")


@dataclass(frozen=True, kw_only=True, eq=False)
class StepRepairs:
    """What trying other results of one step gave: how many were tried, and those that made the final result right, most likely first."""

    step: int
    tried: int
    values: tuple[Value, ...] = ()
    through: tuple[int, ...] = ()
    """Steps of COUNT whose own result was replaced in place of this step's: right counts that no candidate of this step gives."""

    @property
    def share(self) -> float:
        """Part of the tried results that repair, 0-1."""
        return (len(self.values) + len(self.through)) / self.tried if self.tried else 0.0


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """One substitution: of which case, at which step, credited to which learnable step."""

    case: int
    step: int
    value: Value
    credited: int


@dataclass(slots=True)
class _Tally:
    tried: int = 0
    values: list[Value] = field(default_factory=list)
    through: list[int] = field(default_factory=list)


def find_repairs(cases: Sequence[Case], *, tools: ToolRunner, judge: Judge, most: int) -> list[dict[int, StepRepairs]]:
    """For each case, its learnable steps with the results that would have made the run right; empty where the feedback cannot judge.

    Args:
        most: candidate results tried per step.
    """
    trials: list[_Trial] = []
    regions = _find_regions(cases, tools=tools)
    tallies: list[dict[int, _Tally]] = []
    for index, case in enumerate(cases):
        learnable = list_learnable_steps(case.execution.program, find_signature=tools.find_signature)
        can_judge = case.execution.status == "finished" and judge(case.execution, case.feedback) is not None
        tallies.append({step: _Tally() for step in learnable} if can_judge else {})
        for step in tallies[-1]:
            trials += [
                _Trial(index, step, value, step)
                for value in list_candidates(case, step, regions=regions.get((index, step), ()), find_signature=tools.find_signature)[:most]
            ]
        if can_judge:
            trials += _list_counts(index, case, learnable, find_signature=tools.find_signature)
    runs = run_substitutions([(cases[trial.case].execution, trial.step, trial.value) for trial in trials], tools=tools)
    for trial, run in zip(trials, runs, strict=True):
        tally = tallies[trial.case][trial.credited]
        tally.tried += 1
        if run.status == "finished" and judge(run, cases[trial.case].feedback):
            if trial.step == trial.credited:
                tally.values.append(trial.value)
            else:
                tally.through.append(trial.step)
    return [
        {
            step: StepRepairs(step=step, tried=tally.tried, values=tuple(tally.values), through=tuple(tally.through))
            for step, tally in found.items()
        }
        for found in tallies
    ]


def list_candidates(case: Case, step: int, *, regions: Sequence[Box] = (), find_signature: FindSignature) -> list[Value]:
    """Other results that a learnable step might have had, the nearest to its own first; empty for steps whose result is a picture."""
    execution = case.execution
    statement, executed = find_statement(execution.program, step), execution.steps[step - 1]
    signature = find_signature(statement.tool) if statement else None
    if statement is None or signature is None or executed.value is None:
        return []
    if signature.returns == "Boxes":
        return _other_boxes(_as_boxes(executed.value), regions, answer=case.feedback.answer)
    if signature.returns == "Objects":
        given = executed.call.arguments.get("object") if executed.call else None
        categories = executed.call.arguments.get("categories") if executed.call else None
        return _other_objects(_as_objects(executed.value), given, categories)
    if signature.returns == "Text" and isinstance(executed.value, str):
        return list(_other_answers(executed.value, case, statement))
    return []


def _find_regions(cases: Sequence[Case], *, tools: ToolRunner) -> dict[tuple[int, int], list[Box]]:
    """Boxes of everything in the pictures that box-finding steps saw, from the toolbox's own SEG; thirds where there is none."""
    wanted: list[tuple[tuple[int, int], Image.Image]] = []
    for index, case in enumerate(cases):
        for step in list_learnable_steps(case.execution.program, find_signature=tools.find_signature):
            executed = case.execution.steps[step - 1] if step <= len(case.execution.steps) else None
            picture = executed.call.arguments.get("image") if executed and executed.call else None
            signature = tools.find_signature(executed.statement.tool) if executed else None
            if signature and signature.returns == "Boxes" and isinstance(picture, Image.Image):
                wanted.append(((index, step), picture))
    if not wanted:
        return {}
    if tools.find_signature("SEG") is None:
        return {key: _thirds(picture) for key, picture in wanted}
    results = tools.run("SEG", [ToolCall(tool="SEG", arguments={"image": picture}) for _, picture in wanted])
    found: dict[tuple[int, int], list[Box]] = {}
    for (key, picture), result in zip(wanted, results, strict=True):
        objects = _as_objects(result.value) if result.error is None and result.value is not None else ()
        found[key] = [item.box for item in objects] or _thirds(picture)
    return found


def _thirds(picture: Image.Image) -> list[Box]:
    width, height = picture.width / 3, picture.height / 3
    return [
        Box(left=column * width, top=row * height, right=(column + 1) * width, bottom=(row + 1) * height)
        for row in range(3)
        for column in range(3)
    ]


def _other_boxes(found: Boxes, regions: Sequence[Box], *, answer: str | None) -> list[Value]:
    missing = [region for region in regions if all(overlap_ratio(region, box) < _SAME_REGION for box in found)]
    candidates: list[Boxes] = []
    if found:
        candidates += [found[:-1], *([()] if len(found) > 1 else [])]
    if missing:
        candidates.append((*found, missing[0]))
    candidates += [(found[index], *found[:index], *found[index + 1 :]) for index in range(1, len(found))]
    number = read_number(answer) if answer is not None else None
    if number is not None and number.is_integer() and 0 <= number <= len(found) + len(missing):
        candidates.insert(0, (*found, *missing)[: int(number)])
    candidates += [(region, *found[1:]) for region in missing]
    return _distinct(candidates, own=found)


def _other_objects(found: Objects, given: Value | None, categories: Value | None) -> list[Value]:
    names = categories if isinstance(categories, tuple) else tuple(str(categories).split(",")) if isinstance(categories, str) else ()
    labels = [name.strip() for name in names if isinstance(name, str)]
    candidates: list[Objects] = []
    if labels:
        candidates += [
            tuple(replace(item, label=label) if other == index else item for other, item in enumerate(found))
            for index in range(len(found))
            for label in labels
            if label != found[index].label
        ]
    pool = _as_objects(given) if given is not None else ()
    missing = [item for item in pool if all(overlap_ratio(item.box, other.box) < _SAME_REGION for other in found)]
    candidates += [(item,) for item in missing]
    candidates += [tuple(item for other, item in enumerate(found) if other != index) for index in range(len(found))]
    candidates += [(*found, item) for item in missing]
    if pool:
        candidates.append(pool)
    return _distinct(candidates, own=found)


def _other_answers(found: str, case: Case, statement: Statement) -> Iterable[Value]:
    """Yes and no flip; numbers go one up or down; words become the feedback's answer, words that later expressions ask for, or what
    other steps answered."""
    truth = read_boolean(found)
    if truth is not None and normalize_answer(found) in ("yes", "no", "true", "false"):
        return ["no" if truth else "yes"]
    answer = case.feedback.answer
    number = read_number(found)
    if number is not None and number.is_integer():
        wanted = read_number(answer) if answer is not None else None
        options = [*([int(wanted)] if wanted is not None else []), int(number) + 1, int(number) - 1, 0]
        return [str(option) for option in dict.fromkeys(options) if option >= 0 and option != int(number)]
    words: list[str] = [answer] if answer and read_boolean(answer) is None else []
    program = case.execution.program
    for later in program.statements if program else ():
        if statement.variable in list_references(later):
            for _, value in later.arguments:
                if isinstance(value, Constant) and isinstance(value.value, str):
                    words += [next(filter(None, found), "") for found in _COMPARED.findall(value.value)]
    words += [
        executed.value for executed in case.execution.steps if isinstance(executed.value, str) and executed.statement.tool == statement.tool
    ]
    words.append(SOME_OTHER_ANSWER)
    own = {normalize_answer(found), "yes", "no", "true", "false", ""}
    return [word for word in dict.fromkeys(words) if normalize_answer(word) not in own]


def _list_counts(index: int, case: Case, learnable: Sequence[int], *, find_signature: FindSignature) -> list[_Trial]:
    """Other numbers at COUNT, credited to the nearest learnable step that its regions come from: a count may be off by more than one."""
    program, trials = case.execution.program, []
    if program is None:
        return []
    for step, statement in enumerate(program.statements, start=1):
        value = case.execution.steps[step - 1].value
        if statement.tool != "COUNT" or not isinstance(value, int) or isinstance(value, bool):
            continue
        source = _find_source(program.statements, step, learnable)
        wanted = read_number(case.feedback.answer) if case.feedback.answer is not None else None
        options = [*([int(wanted)] if wanted is not None and wanted.is_integer() else []), value + 1, value - 1]
        if source is not None:
            trials += [_Trial(index, step, option, source) for option in dict.fromkeys(options) if option >= 0 and option != value]
    return trials


def _find_source(statements: Sequence[Statement], step: int, learnable: Sequence[int]) -> int | None:
    where = {statement.variable: number for number, statement in enumerate(statements, start=1)}
    queue = [step]
    while queue:
        number = queue.pop(0)
        if number in learnable:
            return number
        names: Mapping[str, int] = where
        regions = [value.name for key, value in statements[number - 1].arguments if isinstance(value, Reference) and key != "image"]
        queue += [names[name] for name in regions if name in names and names[name] < number]
    return None


def _as_boxes(value: Value) -> Boxes:
    return tuple(item for item in value if isinstance(item, Box)) if isinstance(value, tuple) else ()


def _as_objects(value: Value) -> Objects:
    return tuple(item for item in value if isinstance(item, VisualObject)) if isinstance(value, tuple) else ()


def _distinct(candidates: Iterable[Boxes] | Iterable[Objects], *, own: Boxes | Objects) -> list[Value]:
    def key(items: Boxes | Objects) -> tuple[object, ...]:
        return tuple((item.box.corners, item.label) if isinstance(item, VisualObject) else item.corners for item in items)

    kept: dict[tuple[object, ...], Value] = {}
    for items in candidates:
        kept.setdefault(key(items), items)
    kept.pop(key(own), None)
    return list(kept.values())
