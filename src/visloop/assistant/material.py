"""What a tool is taught from: how much, which providers are asked in which order, the inferred example of a question (CLOVA 3.4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from PIL import Image

from visloop.answers import read_boolean, read_number
from visloop.assistant.cases import ANSWERED_LATER, Case
from visloop.assistant.inference import AnswerInference
from visloop.assistant.interpreter import Execution
from visloop.assistant.providers import DataProvider, check_no_leak, split_instances
from visloop.assistant.safety import Safety
from visloop.config_assistant import LearningConfig, PromptTuning, ToolsConfig
from visloop.config_ranges import check_numbers
from visloop.datasets.images import store_picture
from visloop.errors import DataError
from visloop.ids import make_id, seed_for
from visloop.records.assistant import DataSource, Instance
from visloop.tools.base import ToolCall
from visloop.tools.tunings import choose_tuning, find_owners

MOST_KNOWN_QUESTIONS: Final = 80
"""Questions of a batch's accepted runs that a lesson of VQA must not cost: half of them become anchors, half are measured."""


@dataclass(frozen=True, kw_only=True)
class TeachingSources:
    """Where teaching material comes from.

    ``providers`` by tool name, asked in order until there are enough positives; ``find_replay`` gives a tool's replay instances;
    ``out`` and ``prefix`` (its path relative to the data folder) say where pictures of inferred instances are stored; ``safety`` says
    what is not taught at all.
    """

    providers: Mapping[str, Sequence[DataProvider]]
    find_replay: Callable[[str], Sequence[Instance]]
    inference: AnswerInference
    out: Path
    prefix: str = ""
    safety: Safety = field(default_factory=Safety)


@dataclass(frozen=True, kw_only=True)
class TuningPlan:
    """How much is collected, when a tool counts as knowing a word already, and whether validation decides (CLOVA 3.4).

    ``positives`` and ``negatives`` are instances per concept, ``known_at`` is the accuracy on validation instances from which a word
    counts as known. ``own`` are the plans of tools with settings of their own, by name.
    """

    positives: int
    negatives: int
    known_at: float
    validation_share: float = 0.35
    validate: bool = True
    own: Mapping[str, "TuningPlan"] = field(default_factory=dict)

    def find_plan(self, tool: str) -> "TuningPlan":
        """The plan for one tool: its own, or this one."""
        return self.own.get(tool, self)


def plan_tuning(tuning: PromptTuning, *, validate: bool) -> TuningPlan:
    """The plan that goes with a tuning configuration.

    Raises:
        ConfigError: a number of it is out of its range.
    """
    check_numbers(tuning, key="tuning")
    return TuningPlan(
        positives=tuning.instances + tuning.validation,
        negatives=tuning.negatives,
        known_at=tuning.known_at,
        validation_share=tuning.validation / (tuning.instances + tuning.validation),
        validate=validate,
    )


def plan_tools(tools: ToolsConfig, *, validate: bool) -> TuningPlan:
    """The plan that goes with a toolbox: what the configuration says of all tools, and of single ones."""
    chosen = {name: choose_tuning(tools, name) for name in dict.fromkeys([*find_owners(tools), *tools.tunings])}
    own = {name: plan_tuning(tuning, validate=validate) for name, tuning in chosen.items() if tuning is not tools.tuning}
    return replace(plan_tuning(tools.tuning, validate=validate), own=own)


def adapt_tools(tools: ToolsConfig, *, learning: LearningConfig) -> ToolsConfig:
    """The tools as a cycle opens them: the prompts of every one are tuned as the ablations of learning want it."""

    def adapt(tuning: PromptTuning) -> PromptTuning:
        return adapt_tuning(tuning, validate=learning.validate, ensemble=learning.ensemble)

    return replace(tools, tuning=adapt(tools.tuning), tunings={name: adapt(tuning) for name, tuning in tools.tunings.items()})


def adapt_tuning(tuning: PromptTuning, *, validate: bool, ensemble: bool) -> PromptTuning:
    """The tuning configuration to open the toolbox with, as the ablations want it: without validation every learned prompt is kept,
    without the ensemble only the most similar prompt is used."""
    if not validate:
        tuning = replace(tuning, min_validation=0.0, max_base_drop=1.0)
    return tuning if ensemble else replace(tuning, ensemble=1)


def collect_instances(
    word: str, *, tool: str, examples: Sequence[Instance], sources: TeachingSources, plan: TuningPlan, seed: int
) -> list[Instance]:
    """Instances of a word: the inferred examples, then from the tool's providers until there are enough positives; splits by picture.

    Raises:
        DataError: every provider failed, or a picture is in both splits.
    """
    shown = [instance for instance in examples if instance.label == word]
    collected: dict[str, Instance] = {instance.id: instance for instance in shown}
    errors: list[str] = []
    for provider in sources.providers.get(tool, ()):
        missing = plan.positives - sum(instance.positive for instance in collected.values())
        if missing <= 0:
            break
        try:
            found = provider.collect(
                word, tool=tool, positives=missing, negatives=plan.negatives, seed=seed_for(seed, "collect", tool, word)
            )
        except DataError as error:
            errors.append(str(error))
            continue
        collected.update((instance.id, instance) for instance in found)
    if not collected:
        # an answer that is no look of the word (yes, a number) teaches only where nothing else does
        collected.update((instance.id, instance) for instance in examples)
    if not collected and errors:
        raise DataError("; ".join(errors))
    instances = split_instances(list(collected.values()), validation_share=plan.validation_share, seed=seed)
    check_no_leak(instances)
    return instances


def find_shortage(instances: Sequence[Instance], *, tool: str, plan: TuningPlan) -> str:
    """What is missing for learning, or an empty text. A question's one inferred example is validated by the re-run instead."""
    positives = [instance.split for instance in instances if instance.positive]
    if not positives:
        return "no instances found"
    if "train" not in positives:
        return "no instances to learn from"
    if plan.validate and "validation" not in positives and tool != ANSWERED_LATER:
        return f"{len(positives)} instances, none left to validate with"
    return ""


def make_inferred(case: Case, call: ToolCall, answer: str, *, sources: TeachingSources) -> list[Instance]:
    """The question of a wrong run with the answer that it should have got; empty where the call holds no picture and question."""
    task = case.execution.job.task
    return _make_question(call, answer, sources=sources, source="inference", origin=f"trace {case.trace.id}", licence=task.licence)


def list_known_questions(executions: Sequence[Execution], *, sources: TeachingSources, most: int) -> list[Instance]:
    """Questions of accepted runs with the answers that they got, each once, at most ``most``: what a tool that learns questions must not
    forget (CLOVA 3.4: correct runs keep known inputs as they are)."""
    known: dict[str, Instance] = {}
    for execution in executions:
        task = execution.job.task
        for step in execution.steps:
            if step.statement.tool == ANSWERED_LATER and step.call is not None and isinstance(step.value, str) and len(known) < most:
                origin = f"task {task.id}"
                made = _make_question(step.call, step.value, sources=sources, source="accepted", origin=origin, licence=task.licence)
                known.update((item.id, item) for item in made)
    return list(known.values())


def _make_question(
    call: ToolCall, answer: str, *, sources: TeachingSources, source: DataSource, origin: str, licence: str
) -> list[Instance]:
    picture, question = call.arguments.get("image"), call.arguments.get("question")
    if not isinstance(picture, Image.Image) or not isinstance(question, str):
        return []
    stored = store_picture(picture, out=sources.out)
    prefix = f"{sources.prefix.rstrip('/')}/" if sources.prefix else ""
    return [
        Instance(
            id=make_id("instance", source, ANSWERED_LATER, question, answer, stored.sha256),
            tool=ANSWERED_LATER,
            concept=answer,
            image=f"{prefix}{stored.name}",
            positive=True,
            split="train",
            source=source,
            label=answer,
            question=question,
            target=answer,
            origin=origin,
            licence=licence,
        )
    ]


def fit_examples(inferred: Sequence[Instance], word: str, *, answer: str | None) -> list[Instance]:
    """The inferred instance as one of this word. Its label is the answer; the picture shows the word if the answer is the word itself
    or does not deny it."""
    positive = answer is None or read_boolean(answer) is not False
    return [replace(instance, id=make_id(instance.id, word), concept=word, positive=positive) for instance in inferred]


def is_word(answer: str) -> bool:
    """Whether an answer is a thing with a look: not a number, not yes or no."""
    return read_number(answer) is None and read_boolean(answer) is None
