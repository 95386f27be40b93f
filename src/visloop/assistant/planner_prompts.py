"""What an LLM that plans is shown first: the demonstrations, and the text of a plan's or a program's prompt (CLOVA 3.2).

The planner asks with it, and the export of accepted runs writes it down to learn from: one text for both.
"""

from collections.abc import Sequence

from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.proposals import FailedAttempt
from visloop.assistant.retrieval import Encoder, choose_entries
from visloop.config_assistant import PlannerConfig
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Demonstration, DemonstrationKind, Task
from visloop.tools.base import ToolCatalogue

Shown = tuple[list[Demonstration], list[Demonstration]]
"""Successes and failures, most similar last; in the order of the draw, reversed, where they are drawn at random."""


def choose_demonstrations(
    task: Task, kind: DemonstrationKind, *, pool: DemonstrationPool, encoder: Encoder, config: PlannerConfig, seed: int
) -> Shown:
    """Successes and failures to show; no failures before their pool is large enough. ``seed`` is that of the draw where
    ``planner.retrieval`` is random.

    Raises:
        ConfigError: no number of demonstrations for the task's kind.
    """
    most = config.count_shown(task.kind)
    good, bad = pool.find(kind, "success", task.kind), pool.find(kind, "failure", task.kind)
    if not config.use_failures or len(bad) <= config.failures_from:
        bad = ()
    first, second = (
        choose_entries(task, entries, choice=config.retrieval, encoder=encoder, most=most, seed=seed) for entries in (good, bad)
    )
    return first, second


def write_prompt(
    task: Task,
    kind: DemonstrationKind,
    *,
    shown: Shown,
    prompts: PromptSet,
    tools: ToolCatalogue,
    use_plan: bool,
    plan: Sequence[str] = (),
    attempt: FailedAttempt | None = None,
) -> str:
    """The first turn of a dialogue.

    Args:
        tools: those that a program's prompt lists.
        use_plan: whether a program's prompt speaks of a plan, which is ``plan``.
        attempt: the failed one that the prompt shows; None for none.
    """
    successes, failures = shown
    values: dict[str, object] = {
        "task_kind": task.kind,
        "inputs": task.inputs,
        "demonstrations": successes,
        "failures": failures,
        "attempt": attempt,
        "instruction": task.instruction,
    }
    if kind == "program":
        values |= {"tools": [signature.describe() for signature in tools.list_signatures(task.kind)], "plan": plan, "use_plan": use_plan}
    return prompts.render(kind, **values)
