"""Blame without a model, beside the LLM's critiques: counterfactual repair and step confidence.

Each learnable step is a hypothesis "this step alone is wrong", the program is one more. A step weighs the odds that its own confidence
gives to being wrong; the program weighs the odds that its author's confidence gives. A step that no tried result repairs counts a third
where another step is repaired (what is right may not have been tried), and nothing where no step is: then the program is guilty. A step
that the result does not depend on is innocent. A tool's confidence speaks of what it said; where a question has one right answer, what
counts is the lower one of that and of its confidence when it is asked about that answer (``answer_trust``).

Repairs hardly tell a step that is wrong and sure of it from a wrong program, whose fault other results of innocent steps hide: any weight
that finds the one first loses as many of the other (``docs/log.md``). So a sure step does not come before a program in doubt, but from
close up, when learning from the first suspect did not help, it comes next; and a sure program comes after a step that is less so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from visloop.assistant.answer_trust import ask_about_answers
from visloop.assistant.cases import (
    Case,
    Judge,
    ReflectionGrain,
    find_statement,
    find_used_steps,
    judge_by_answer,
    list_learnable_steps,
    read_concept,
)
from visloop.assistant.repairs import StepRepairs, find_repairs
from visloop.errors import ConfigError
from visloop.ids import make_id
from visloop.records.assistant import Critique, Culprit, Grain
from visloop.tools.base import ToolRunner

_LEAST, _MOST = 0.02, 0.98
_UNREPAIRED = 0.3
_GUESSED = 0.7
_MENTIONED = 3.0
"""Factor of the odds of a step whose concept the feedback's text names, where it names not every step's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlameLimits:
    """``candidates``: other results tried per step. ``doubt``: confidence below which a step is wrong by itself (local). ``unknown``:
    confidence taken for a step or author that gives none. ``use_repairs``, ``use_confidence``: which evidence counts."""

    candidates: int = 8
    doubt: float = 0.6
    unknown: float = 0.7
    use_repairs: bool = True
    use_confidence: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspicion:
    """How guilty one part is, 0-1 over all parts of a case; ``step`` None: the program."""

    step: int | None
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What re-runs of a case gave, empty where they cannot be judged; ``asked``: how sure tools are of what repairs their steps, 0-1."""

    repairs: Mapping[int, StepRepairs] = field(default_factory=dict)
    asked: Mapping[int, float] = field(default_factory=dict)

    def is_repaired(self, step: int) -> bool:
        """Whether another result of the step alone makes the run right."""
        return bool(self.repairs) and self.repairs[step].share > 0


class BlameCritic:
    """Critiques from re-runs and confidences.

    Args:
        judge: whether a re-run's result would be accepted by what the feedback told.

    Raises:
        ConfigError: limits out of range, or no evidence at all.
    """

    def __init__(self, *, limits: BlameLimits | None = None, judge: Judge = judge_by_answer) -> None:
        self._limits, self._judge = limits or BlameLimits(), judge
        if not (0 < self._limits.doubt < 1 and 0 < self._limits.unknown < 1 and self._limits.candidates >= 1):
            raise ConfigError("reflection: doubt and unknown must be between 0 and 1, candidates at least 1")
        if not (self._limits.use_repairs or self._limits.use_confidence):
            raise ConfigError("reflection: blame needs repairs, confidence, or both")
        parts = [name for name, used in (("repairs", self._limits.use_repairs), ("confidence", self._limits.use_confidence)) if used]
        self.name = f"blame:{'+'.join(parts)}"

    def criticize(self, cases: Sequence[Case], *, grain: ReflectionGrain, tools: ToolRunner, seed: int) -> list[Critique]:
        """One critique per case, in order; ``global`` takes the best suspect of the whole run, ``local`` the first step that fails
        its own check, else the best suspect of the whole run. Nothing is drawn: ``seed`` is not used."""
        if grain == "interrupt":
            return [self._blame_interrupt(case, tools=tools) for case in cases]
        evidence = self._find_evidence(cases, tools=tools)
        blame = self._blame_globally if grain == "global" else self._blame_locally
        return [blame(case, found, grain, tools) for case, found in zip(cases, evidence, strict=True)]

    def blame_evidence(self, cases: Sequence[Case], *, tools: ToolRunner) -> list[Critique]:
        """The best suspects under the name of their evidence: ``counterfactual`` where re-runs could be judged, else ``confidence``."""
        evidence = self._find_evidence(cases, tools=tools)
        return [
            self._blame_globally(case, found, "counterfactual" if found.repairs else "confidence", tools)
            for case, found in zip(cases, evidence, strict=True)
        ]

    def weigh(self, case: Case, evidence: Evidence, *, tools: ToolRunner) -> list[Suspicion]:
        """All suspects of a finished run, the guiltiest first, earlier steps first where they are equal; weights sum to 1."""
        weights: dict[int | None, float] = {}
        tried = {(critique.culprit, critique.step) for critique in case.earlier}
        mentioned, used = _find_mentioned(case, tools=tools), find_used_steps(case.execution.program)
        for step in list_learnable_steps(case.execution.program, find_signature=tools.find_signature):
            if step > len(case.execution.steps) or ("tool", step) in tried or step not in used:
                continue
            confidence = _read_confidence(case, step, evidence)
            # A tool that guesses at a word guesses in every picture: that no single repair helps does not clear it.
            guessed = confidence is not None and confidence < self._limits.doubt and self._limits.use_confidence
            repaired = max(_weigh_repairs(step, evidence), _GUESSED if guessed else 0.0)
            weights[step] = self._odds(confidence) * repaired * (_MENTIONED if step in mentioned else 1.0)
        if not any(culprit in ("plan", "program") for culprit, _ in tried):
            weights[None] = self._odds(case.trace.proposal.confidence)
        total = sum(weights.values())
        ranked = sorted(weights.items(), key=lambda entry: (-entry[1], entry[0] is None, entry[0] or 0))
        return [Suspicion(step=step, weight=weight / total) for step, weight in ranked if weight > 0]

    def _find_evidence(self, cases: Sequence[Case], *, tools: ToolRunner) -> list[Evidence]:
        if not self._limits.use_repairs:
            return [Evidence() for _ in cases]
        repairs = find_repairs(cases, tools=tools, judge=self._judge, most=self._limits.candidates)
        asked = ask_about_answers(cases, repairs, tools=tools) if self._limits.use_confidence else [{} for _ in cases]
        return [Evidence(repairs=found, asked=sure) for found, sure in zip(repairs, asked, strict=True)]

    def _odds(self, confidence: float | None) -> float:
        """The odds of being wrong at this confidence."""
        known = self._limits.unknown if confidence is None or not self._limits.use_confidence else confidence
        bounded = min(max(known, _LEAST), _MOST)
        return (1 - bounded) / bounded

    def _blame_globally(self, case: Case, evidence: Evidence, grain: Grain, tools: ToolRunner) -> Critique:
        suspects = self.weigh(case, evidence, tools=tools)
        if not suspects:
            return self._make(case, grain, "nothing", None, "every suspect was repaired before, without success", tools=tools)
        best = suspects[0]
        if best.step is None:
            reason = (
                "no other result of a single step makes the run right" if len(suspects) == 1 and evidence.repairs else "no step is doubtful"
            )
            return self._make(case, grain, "program", None, f"the program is the best suspect: {reason}", tools=tools, weight=best.weight)
        return self._make(case, grain, "tool", best.step, self._explain(case, best.step, evidence), tools=tools, weight=best.weight)

    def _blame_locally(self, case: Case, evidence: Evidence, grain: Grain, tools: ToolRunner) -> Critique:
        tried, used = {(critique.culprit, critique.step) for critique in case.earlier}, find_used_steps(case.execution.program)
        for step in list_learnable_steps(case.execution.program, find_signature=tools.find_signature):
            if step > len(case.execution.steps) or ("tool", step) in tried or step not in used:
                continue
            confidence = _read_confidence(case, step, evidence) if self._limits.use_confidence else None
            doubtful = confidence is None or confidence < self._limits.doubt
            repairable = not evidence.repairs or evidence.is_repaired(step)
            # without a confidence only a repair speaks against the step, so one of the two must be there
            if doubtful and repairable and (evidence.repairs or confidence is not None):
                weight = 1 - confidence if confidence is not None else evidence.repairs[step].share
                return self._make(case, grain, "tool", step, self._explain(case, step, evidence), tools=tools, weight=weight)
        # no step speaks against itself: a sure program is no better a suspect than a sure step
        suspects = self.weigh(case, evidence, tools=tools)
        if not suspects:
            return self._make(case, grain, "nothing", None, "every step passes its own check", tools=tools)
        best = suspects[0]
        if best.step is None:
            return self._make(case, grain, "program", None, "every step passes its own check, so the program is wrong", tools=tools)
        return self._make(case, grain, "tool", best.step, self._explain(case, best.step, evidence), tools=tools, weight=best.weight)

    def _blame_interrupt(self, case: Case, *, tools: ToolRunner) -> Critique:
        """A program that raised is wrong, except where a tool that can learn failed by itself."""
        execution = case.execution
        step = execution.error_step
        learnable = step is not None and step in list_learnable_steps(execution.program, find_signature=tools.find_signature)
        culprit: Culprit = "tool" if execution.status == "tool_error" and learnable else "program"
        tried = {"program" if critique.culprit == "plan" else critique.culprit for critique in case.earlier}
        if culprit == "tool" and "tool" in tried:
            culprit = "program"
        return self._make(case, "interrupt", culprit, step, execution.error or "the run stopped", tools=tools)

    def _explain(self, case: Case, step: int, evidence: Evidence) -> str:
        executed = case.execution.steps[step - 1]
        parts = []
        if evidence.repairs:
            found = evidence.repairs[step]
            parts.append(f"{len(found.values) + len(found.through)} of {found.tried} other results of this step make the run right")
        if executed.confidence is not None:
            parts.append(f"its confidence is {executed.confidence:.2f}")
        if step in evidence.asked:
            parts.append(f"asked about the right answer it is {evidence.asked[step]:.2f}")
        return f"Step{step} {executed.statement.tool}: {'; '.join(parts) or 'the first suspect'}"

    def _make(
        self,
        case: Case,
        grain: Grain,
        culprit: Culprit,
        step: int | None,
        reason: str,
        *,
        tools: ToolRunner,
        weight: float | None = None,
    ) -> Critique:
        statement = find_statement(case.execution.program, step)
        concept = read_concept(case.execution, step, find_signature=tools.find_signature) if culprit == "tool" and step else None
        return Critique(
            id=make_id("critique", case.trace.id, grain, self.name, len(case.earlier)),
            trace_id=case.trace.id,
            grain=grain,
            culprit=culprit,
            step=step,
            tool=statement.tool if statement else None,
            concept=concept,
            reason=reason,
            author=self.name,
            confidence=weight,
        )


def _read_confidence(case: Case, step: int, evidence: Evidence) -> float | None:
    """A step's confidence in what it said, or in what it should have said where that is lower."""
    own, asked = case.execution.steps[step - 1].confidence, evidence.asked.get(step)
    return own if asked is None else min(asked, 1.0 if own is None else own)


def _weigh_repairs(step: int, evidence: Evidence) -> float:
    """The factor that re-runs put on a step's odds; 1 where they could not be judged."""
    if not evidence.repairs or evidence.is_repaired(step):
        return 1.0
    return _UNREPAIRED if any(found.share > 0 for found in evidence.repairs.values()) else 0.0


def _find_mentioned(case: Case, *, tools: ToolRunner) -> frozenset[int]:
    """Steps whose concept words all stand in the feedback's text; none where that is true of every step that has a concept."""
    words = set(case.feedback.text.lower().replace(",", " ").replace(".", " ").replace("'", " ").split())
    concepts = {
        step: set(concept.lower().replace(",", " ").split())
        for step in list_learnable_steps(case.execution.program, find_signature=tools.find_signature)
        if (concept := read_concept(case.execution, step, find_signature=tools.find_signature))
    }
    named = frozenset(step for step, concept in concepts.items() if concept and concept <= words)
    return named if len(named) < len(concepts) else frozenset()
