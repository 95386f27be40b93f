"""The spans of one run of a program in MLflow: the task, the LLM that was asked for the program, and a tool per executed line.

Tokens and what they cost stand where MLflow looks for them, so that its pages show them per trace.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visloop.config import ChatConfig
from visloop.records.assistant import Proposal, StepTrace, Task, Trace

_APART = 1_000
"""Nanoseconds between the starts of a run, its planner and its first step: MLflow orders spans by their start, equal ones in any order."""


def count_spans(trace: Trace) -> int:
    """How many spans ``write_spans`` writes for a run."""
    return 1 + _asked_llm(trace.proposal) + len(trace.steps)


def measure_steps(steps: Sequence[StepTrace]) -> int:
    """How long steps took one after the other, in nanoseconds."""
    return sum(round(step.seconds * 1e9) for step in steps)


def write_spans(
    trace: Trace,
    *,
    task: Task | None,
    tags: Mapping[str, str],
    metadata: Mapping[str, str],
    experiment_id: str,
    llm: ChatConfig | None,
    start: int,
) -> None:
    """Write a run as a trace that begins at ``start`` (nanoseconds since 1970). MLflow keeps it later, in a thread of its own.

    Args:
        task: for its instruction and pictures; None: unknown.
        tags: and ``metadata``, of the trace.
        llm: for the price of tokens; None: unknown.
    """
    import mlflow
    from mlflow.entities import SpanType

    shown = {"instruction": task.instruction, "images": list(task.images)} if task else {"task": trace.task_id}
    proposal = trace.proposal
    root = mlflow.start_span_no_context(
        "task",
        span_type=SpanType.AGENT,
        inputs={**shown, "plan": list(proposal.plan), "program": proposal.program},
        attributes=_drop_empty(
            {
                "author": proposal.author,
                "confidence": proposal.confidence,
                "demonstrations": list(proposal.demonstrations),
                "status": trace.status,
                "error_step": trace.error_step,
                "seconds": trace.seconds,
            }
        ),
        tags=dict(tags),
        metadata=dict(metadata),
        experiment_id=experiment_id,
        start_time_ns=start,
    )
    moment = start
    if _asked_llm(proposal):
        _write_planning(proposal, root=root, inputs=shown, llm=llm, moment=start + _APART)
        moment += 2 * _APART
    for step in trace.steps:
        span = mlflow.start_span_no_context(
            step.tool,
            span_type=SpanType.TOOL,
            parent_span=root,
            inputs=dict(step.arguments),
            attributes=_drop_empty(
                {
                    "step": step.step,
                    "line": step.line,
                    "variable": step.variable,
                    "output_type": step.output_type,
                    "seconds": step.seconds,
                    "confidence": step.confidence,
                    "prompts": list(step.prompts),
                }
            ),
            start_time_ns=moment,
        )
        moment += measure_steps([step])
        _end_span(span, step.error, outputs=None if step.error is not None else step.output, moment=moment)
    boxes = [{"box": list(box.box), "label": box.label} for box in trace.result_boxes]
    result = _drop_empty({"result": trace.result, "image": trace.result_image, "boxes": boxes})
    _end_span(root, None if trace.status == "finished" else trace.error or trace.status, outputs=result or None, moment=moment)


def _asked_llm(proposal: Proposal) -> bool:
    return proposal.prompt_tokens > 0 or proposal.new_tokens > 0


def _write_planning(proposal: Proposal, *, root: Any, inputs: Mapping[str, Any], llm: ChatConfig | None, moment: int) -> None:
    """The span of the LLM that was asked for the program. How long it took is in no record: cycles that were killed and went on would
    differ from others."""
    import mlflow
    from mlflow.entities import SpanType
    from mlflow.tracing.constant import CostKey, SpanAttributeKey, TokenUsageKey

    read, written = proposal.prompt_tokens, proposal.new_tokens
    attributes: dict[str, Any] = {
        SpanAttributeKey.CHAT_USAGE: {
            TokenUsageKey.INPUT_TOKENS: read,
            TokenUsageKey.OUTPUT_TOKENS: written,
            TokenUsageKey.TOTAL_TOKENS: read + written,
        }
    }
    price = None if llm is None else llm.price_tokens(prompt=read, new=written)
    if price is not None:
        attributes[SpanAttributeKey.LLM_COST] = {
            CostKey.INPUT_COST: price[0],
            CostKey.OUTPUT_COST: price[1],
            CostKey.TOTAL_COST: sum(price),
        }
    span = mlflow.start_span_no_context(
        "planner", span_type=SpanType.LLM, parent_span=root, inputs=dict(inputs), attributes=attributes, start_time_ns=moment
    )
    _end_span(span, proposal.error if proposal.status == "failed" else None, outputs={"replies": list(proposal.replies)}, moment=moment)


def _end_span(span: Any, error: str | None, *, outputs: Any, moment: int) -> None:
    from mlflow.entities import SpanStatus, SpanStatusCode

    if error is not None:
        span.set_status(SpanStatus(SpanStatusCode.ERROR, error))
    span.end(outputs=outputs, end_time_ns=moment)


def _drop_empty(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value != [] and value != ""}
