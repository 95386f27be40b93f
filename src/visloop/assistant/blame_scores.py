"""How well a critic finds the guilty part of failed runs whose guilt is known: an instrument for measuring, never part of a cycle."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from visloop.assistant.cases import Case
from visloop.records.assistant import Critique, Culprit

ALL = "all"
"""The group of all cases."""


class KnownGuilt(Protocol):
    """A failed run that is known to fail because of its program, or of the results of some steps (``steps``, from 1, and their
    ``tools``): each of them is guilty. ``group`` is what scores are told apart by; empty: none."""

    @property
    def case(self) -> Case: ...
    @property
    def culprit(self) -> Culprit: ...
    @property
    def steps(self) -> Collection[int]: ...
    @property
    def tools(self) -> Collection[str]: ...
    @property
    def group(self) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameScores:
    """How often a critic was right. ``kind``: tool or program (plan counts as program), of all cases; ``program``: of the cases with a
    program fault; ``tool`` and ``step``: a guilty one named, of the cases with a tool fault; ``unreadable``: of all."""

    cases: int
    tool_faults: int
    kind: float
    program: float | None
    tool: float | None
    step: float | None
    unreadable: float


def measure_blame(cases: Sequence[KnownGuilt], blame: Callable[[Sequence[Case]], Sequence[Critique]]) -> dict[str, BlameScores]:
    """Scores of one critic of all cases, under ``ALL``, and then per group, in order.

    Args:
        blame: one critique per case, e.g. ``lambda cases: critic.criticize(cases, grain="global", tools=tools, seed=0)``.
    """
    critiques = blame([entry.case for entry in cases])
    by_group: dict[str, list[tuple[KnownGuilt, Critique]]] = defaultdict(list)
    for entry, critique in zip(cases, critiques, strict=True):
        for group in (ALL, *([entry.group] if entry.group else [])):
            by_group[group].append((entry, critique))
    return {group: _score(by_group[group]) for group in sorted(by_group, key=lambda group: (group != ALL, group))}


def _score(pairs: Sequence[tuple[KnownGuilt, Critique]]) -> BlameScores:
    tool_faults = [(entry, critique) for entry, critique in pairs if entry.culprit == "tool"]

    def share(hits: int, total: int) -> float | None:
        return hits / total if total else None

    found = [(entry.culprit, "program" if critique.culprit == "plan" else critique.culprit) for entry, critique in pairs]
    programs = [culprit == "program" for guilty, culprit in found if guilty == "program"]
    named = [critique.culprit == "tool" and critique.tool in entry.tools for entry, critique in tool_faults]
    placed = [critique.culprit == "tool" and critique.step in entry.steps for entry, critique in tool_faults]
    return BlameScores(
        cases=len(pairs),
        tool_faults=len(tool_faults),
        kind=sum(guilty == culprit for guilty, culprit in found) / len(pairs),
        program=share(sum(programs), len(programs)),
        tool=share(sum(named), len(tool_faults)),
        step=share(sum(placed), len(tool_faults)),
        unreadable=sum(critique.status != "ok" for _, critique in pairs) / len(pairs),
    )
