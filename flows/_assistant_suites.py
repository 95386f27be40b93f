"""The rules on the assistant's records, suite by suite."""

from collections.abc import Callable

from great_expectations.expectations.expectation import Expectation

from flows._assistant_context import AssistantContext
from flows._rules import limit_rate, require_fact, require_known, require_unique
from visloop.records.assistant import (
    CritiqueStatus,
    Culprit,
    DataSource,
    DemonstrationKind,
    DemonstrationOutcome,
    Grain,
    InstanceSplit,
    Provenance,
    TaskKind,
    TraceStatus,
    Wording,
)
from visloop.records.reasoning import Split


def _task_rules(context: AssistantContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "task ids are unique over all parts of the set"),
        require_known("kind_known", "kind", TaskKind, "the kind of task is known"),
        require_known("wording_known", "wording", Wording, "the wording is base or new"),
        require_known("split_known", "split", Split, "the split is train, validation or test"),
        require_fact("instruction_given", "instruction_text", "the instruction is not empty"),
        require_fact("pictures_open", "pictures", "every picture exists, opens and has the recorded hash"),
        require_fact("inputs_match", "input_names", "there is one variable per picture, and the kind of task has it"),
        require_fact("group_in_one_split", "group_splits", "a group (scene, statement) lies in one split only"),
        require_fact("picture_in_one_split", "picture_splits", "a picture occurs in one split only", severity="warning"),
    ]


def _trace_rules(context: AssistantContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "trace ids are unique"),
        require_known("status_known", "status", TraceStatus, "the status is known"),
        require_fact("task_known", "task_known", "the run is of a known task, and so is its program"),
        require_fact("steps_numbered", "step_numbers", "steps are numbered 1, 2, ... without a gap"),
        require_fact("status_fits", "status_fits", "a finished run has a result, any other one an error, and its last step is at fault"),
        require_fact("program_parses", "program", "the program of a finished run can be read, and every line of it was run"),
        require_fact("tools_known", "tools_known", "every step calls a known tool"),
        require_fact("measures_valid", "measures", "confidences lie in 0-1; times and tokens are not below 0"),
        require_fact("result_opens", "result_picture", "a picture that is the result exists and opens"),
    ]


def _critique_rules(context: AssistantContext) -> list[Expectation]:
    limit = context.max_unreadable_rate
    return [
        require_unique("ids_unique", ["id"], "critique ids are unique"),
        require_known("grain_known", "grain", Grain, "the kind of reflection is known"),
        require_known("culprit_known", "culprit", Culprit, "the culprit is known"),
        require_known("status_known", "status", CritiqueStatus, "the status is known"),
        require_fact("trace_known", "trace_known", "the run that is criticized is known"),
        require_fact("step_in_program", "step_place", "the blamed step is a line of the run's program"),
        require_fact("tool_of_step", "step_tool", "the tool is the one that the blamed step calls"),
        require_fact("blame_fits", "blame", "a blamed tool is named with its step, and what could not be read blames nothing"),
        limit_rate(
            "unreadable_rate",
            "reply",
            refused=("unreadable", "failed"),
            known=CritiqueStatus,
            limit=limit,
            description=f"at most {limit:.1%} of the critiques could not be read or did not come",
        ),
    ]


def _instance_rules(context: AssistantContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "instance ids are unique"),
        require_known("split_known", "split", InstanceSplit, "the split is train or validation"),
        require_known("source_known", "source", DataSource, "the source is known"),
        require_fact("pictures_open", "pictures", "every picture and every mask exists and opens"),
        require_fact("box_inside", "box_place", "box and mask lie in the picture"),
        require_fact("label_fits", "label_fits", "a positive is labelled with its concept, a negative with something else"),
        require_fact("picture_in_one_split", "picture_splits", "no picture, by its bytes, both teaches a tool a concept and validates it"),
        require_fact("no_evaluation_picture", "pictures_held_out", "no picture, by its bytes, is one of a held-out task"),
        require_fact("provenance_given", "provenance", "pictures found by search have their origin and their licence"),
    ]


def _demonstration_rules(context: AssistantContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "demonstration ids are unique"),
        require_known("kind_known", "kind", DemonstrationKind, "the kind is plan or program"),
        require_known("outcome_known", "outcome", DemonstrationOutcome, "the outcome is success or failure"),
        require_known("task_kind_known", "task_kind", TaskKind, "the kind of task is known"),
        require_known("provenance_known", "provenance", Provenance, "the provenance is known"),
        require_fact("content_given", "content", "there is an instruction, with the plan or program that is demonstrated"),
        require_fact("program_checks", "program", "a successful program can be read and passes the checks of its kind of task"),
        require_fact("reason_given", "reason_given", "a failure says what was wrong"),
        require_fact(
            "no_evaluation_instruction", "instruction_held_out", "nothing was learned from an instruction that only held-out tasks have"
        ),
    ]


def _prompt_rules(context: AssistantContext) -> list[Expectation]:
    return [
        require_unique("ids_unique", ["id"], "prompt ids are unique"),
        require_fact("figures_valid", "figures", "accuracies lie in 0-1"),
        require_fact("validated", "validated", "enough validation instances came out right with the prompt"),
        require_fact("harmless", "harmless", "the prompt costs little of the replay set"),
        require_fact("tensors_finite", "tensors", "feature and prompt are stored, with finite values"),
        require_fact("cap_kept", "concept_count", "a concept of a tool has no more prompts than are allowed"),
    ]


ASSISTANT_SUITES: dict[str, Callable[[AssistantContext], list[Expectation]]] = {
    "tasks": _task_rules,
    "traces": _trace_rules,
    "critiques": _critique_rules,
    "instances": _instance_rules,
    "demonstrations": _demonstration_rules,
    "prompts": _prompt_rules,
}
