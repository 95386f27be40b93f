"""Learning for a blamed tool (CLOVA 3.4): collect instances of the words that it does not know, tune prompts, keep what validates.

A blamed call speaks of several words; only those that the tool is really bad at are learned. Nothing is changed in place: what was
learned is a new snapshot of the prompt pool.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, Self, TypeGuard

from visloop.assistant.cases import ANSWERED_LATER, Case
from visloop.assistant.data_flow import find_concept_step
from visloop.assistant.material import TeachingSources, TuningPlan, collect_instances, find_shortage, fit_examples, is_word, make_inferred
from visloop.errors import DataError, ModelError, ToolError, TrainingError
from visloop.ids import seed_for
from visloop.records.assistant import Critique, Instance, UpdateState
from visloop.tools.base import LearnableTool, Tool, ToolCall, ToolRunner, TuningReport
from visloop.tools.prompt_pool import PromptPool


class LearningTools(ToolRunner, Protocol):
    """A toolbox whose tools can be taught."""

    def find_tool(self, name: str) -> Tool | None:
        """The tool of this name or alias, or None."""
        ...

    def with_pool(self, pool: PromptPool) -> Self:
        """The same loaded tools with another snapshot of prompts."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class ToolUpdate:
    """What teaching a tool came to. ``pool`` is the given one where nothing was kept. ``known`` are (owner, word) pairs that turned out to
    need no teaching; ``hopeless`` those that were taught without success."""

    pool: PromptPool
    state: UpdateState
    reason: str
    kept: tuple[str, ...] = ()
    concepts: tuple[str, ...] = ()
    instances: tuple[Instance, ...] = ()
    answer: str | None = None
    known: frozenset[tuple[str, str]] = frozenset()
    hopeless: frozenset[tuple[str, str]] = frozenset()
    metrics: Mapping[str, float] = field(default_factory=dict)


def is_learnable(tool: Tool | None) -> TypeGuard[LearnableTool]:
    """Whether a tool can be taught: its signature says so and it has the method."""
    return tool is not None and tool.signature.learnable and callable(getattr(tool, "tune", None))


@dataclass(slots=True)
class _Lesson:
    """What has come of the words so far."""

    pool: PromptPool
    kept: list[str] = field(default_factory=list)
    concepts: list[str] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    states: list[UpdateState] = field(default_factory=list)
    known: set[tuple[str, str]] = field(default_factory=set)
    hopeless: set[tuple[str, str]] = field(default_factory=set)
    metrics: dict[str, float] = field(default_factory=dict)


def update_tool(
    case: Case,
    critique: Critique,
    *,
    tools: LearningTools,
    pool: PromptPool,
    sources: TeachingSources,
    plan: TuningPlan,
    passed_over: frozenset[tuple[str, str]] = frozenset(),
    seed: int,
    cycle: int,
) -> ToolUpdate:
    """Teach the blamed tool the words of its call that it is bad at.

    The words come from the call (for SEG, from the later step that asks for them); for VQA the inferred right answer comes first, and is
    all that there is for a tool that learns questions.
    A word whose data cannot be had, or whose tuning fails, is passed over with its reason; the others are learned.

    Args:
        tools: the toolbox with ``pool``.
        plan: for all tools; the taught one may have a plan of its own in it.
        passed_over: (owner, word) pairs that are known, or were taught without success, earlier in the cycle.
    """
    tool_name, call, words_of, gap = _find_call(case, critique, tools=tools)
    tool = tools.find_tool(tool_name) if tool_name else None
    if call is None or not is_learnable(tool):
        return ToolUpdate(pool=pool, state="no_update", reason=gap or f"{critique.tool or 'the step'} learns nothing")
    asks, answer, inferred, lesson, plan = tool.learns_questions, None, [], _Lesson(pool), plan.find_plan(tool_name)
    words = list(words_of.list_concepts(call)) if words_of and not asks else []
    if tool_name == ANSWERED_LATER:
        found = sources.inference.infer(case, critique, tools=tools, seed=seed_for(seed, "infer", critique.id))
        answer = found.answer
        if answer is None:
            lesson.reasons.append(found.reason)
        else:
            inferred = make_inferred(case, call, answer, sources=sources)
            words = [*([answer] if asks or is_word(answer) else []), *words]
    for word in dict.fromkeys(words):
        examples = inferred if asks else fit_examples(inferred, word, answer=answer)
        _teach_word(
            word, lesson, tool_name=tool_name, tools=tools, examples=examples, sources=sources, plan=plan, passed_over=passed_over,
            seed=seed, cycle=cycle,
        )  # fmt: skip
    if not words:
        lesson.reasons.append("the call names no word that could be learned")
    order: tuple[UpdateState, ...] = ("kept", "refused", "no_data", "no_update")
    state: UpdateState = next((state for state in order if state in lesson.states), "no_update")
    return ToolUpdate(
        pool=lesson.pool,
        state=state,
        reason="; ".join(reason for reason in lesson.reasons if reason),
        kept=tuple(lesson.kept),
        concepts=tuple(lesson.concepts),
        instances=tuple(lesson.instances),
        answer=answer,
        known=frozenset(lesson.known),
        hopeless=frozenset(lesson.hopeless),
        metrics=lesson.metrics,
    )


def _find_call(case: Case, critique: Critique, *, tools: LearningTools) -> tuple[str, ToolCall | None, LearnableTool | None, str]:
    """(name of the tool to teach, the call that names the words, the tool that reads them, why there is none)."""
    execution, step = case.execution, critique.step
    if execution.program is None or step is None or step > len(execution.steps):
        return "", None, None, "the blamed step was not run"
    where = find_concept_step(execution.program, step, find_signature=tools.find_signature)
    if where is None or where > len(execution.steps):
        return "", None, None, f"{critique.tool or 'the step'} learns nothing"
    name, reader_name = execution.program.statements[step - 1].tool, execution.program.statements[where - 1].tool
    reader = tools.find_tool(reader_name)
    # a SEG that finds regions without naming them cannot be taught: the step that names them can
    taught = name if is_learnable(tools.find_tool(name)) else reader_name
    return taught, execution.steps[where - 1].call, reader if is_learnable(reader) else None, ""


def _teach_word(
    word: str,
    lesson: _Lesson,
    *,
    tool_name: str,
    tools: LearningTools,
    examples: Sequence[Instance],
    sources: TeachingSources,
    plan: TuningPlan,
    passed_over: frozenset[tuple[str, str]],
    seed: int,
    cycle: int,
) -> None:
    tool = tools.with_pool(lesson.pool).find_tool(tool_name)
    if not is_learnable(tool):
        return
    key = (tool.owner, word)
    asked = [example.question or "" for example in examples] if tool.learns_questions else []
    if reason := sources.safety.refuse_word(word, *asked):
        lesson.states.append("refused")
        lesson.reasons.append(reason)
        return
    if not tool.learns_questions:  # one answer fits many questions, and each is learned by itself
        if key in passed_over:
            lesson.reasons.append(f"{word!r}: known, or taught without success, earlier in the cycle")
            return
        if lesson.pool.find_prompts(tool.owner, word):
            lesson.reasons.append(f"{word!r}: has prompts already")
            return
    else:
        sources = replace(sources, providers={})  # pictures of a word without a question teach it nothing
    try:
        instances = collect_instances(word, tool=tool_name, examples=examples, sources=sources, plan=plan, seed=seed)
        shortage = find_shortage(instances, tool=tool_name, plan=plan)
        if shortage:
            lesson.states.append("no_data")
            lesson.reasons.append(f"{word!r}: {shortage}")
            return
        replay = sources.find_replay(tool_name)
        report = tool.tune(word, instances=instances, replay=replay, seed=seed_for(seed, "tune", tool.owner, word), cycle=cycle)
    except (DataError, TrainingError, ToolError, ModelError) as error:
        lesson.states.append("no_data" if isinstance(error, DataError) else "refused")
        lesson.reasons.append(f"{word!r}: {error}")
        return
    if tool.learns_questions:  # anchors name the accepted questions that they were made of
        named = {name for prompt in report.pool.prompts for name in prompt.entry.instance_ids}
        instances = [*instances, *(item for item in replay if item.id in named)]
    _take_report(word, key, report, lesson, instances=instances, plan=plan, alone=tool.learns_questions)


def _take_report(
    word: str,
    key: tuple[str, str],
    report: TuningReport,
    lesson: _Lesson,
    *,
    instances: Sequence[Instance],
    plan: TuningPlan,
    alone: bool,
) -> None:
    """``alone``: what was learned is one question, which validated itself."""
    lesson.metrics.update(
        {
            f"{word}/validation_before": report.validation_before,
            f"{word}/validation_after": report.validation_after,
            f"{word}/base_before": report.base_before,
            f"{word}/base_after": report.base_after,
            f"{word}/seconds": report.seconds,
        }
    )
    lesson.instances += instances
    has_validation = not alone and any(instance.positive and instance.split == "validation" for instance in instances)
    if has_validation and report.validation_before >= plan.known_at:
        lesson.known.add(key)
        lesson.states.append("no_update")
        lesson.reasons.append(f"{word!r}: known already ({report.validation_before:.2f} of the validation instances)")
    elif not report.kept:
        if not alone:
            lesson.hopeless.add(key)
        lesson.states.append("refused")
        lesson.reasons.append(f"{word!r}: {report.reason or 'no prompt passed'}")
    else:
        lesson.pool = report.pool
        lesson.kept += report.kept
        lesson.concepts.append(word)
        lesson.states.append("kept")
        judged = "its own question" if alone else "the validation instances"
        lesson.reasons.append(f"{word!r}: {report.validation_before:.2f} -> {report.validation_after:.2f} of {judged}")
