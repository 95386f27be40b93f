"""Learning for a blamed planner (CLOVA 3.4): which demonstrations a run leaves behind, and how those that it was shown are voted on."""

from collections.abc import Sequence

from visloop.assistant.demonstrations import make_demonstration
from visloop.records.assistant import Critique, Demonstration, DemonstrationKind, Provenance, Task, Trace


def make_successes(task: Task, trace: Trace, *, provenance: Provenance, cycle: int) -> tuple[Demonstration, ...]:
    """The plan (where there is one) and the program of a right run, for the two pools of successes."""
    kinds: list[DemonstrationKind] = [*(["plan"] if trace.proposal.plan else []), "program"]  # type: ignore[list-item]
    return tuple(
        make_demonstration(
            kind=kind,
            outcome="success",
            task_kind=task.kind,
            instruction=task.instruction,
            plan=trace.proposal.plan,
            program="" if kind == "plan" else trace.proposal.program,
            provenance=provenance,
            trace_id=trace.id,
            cycle=cycle,
        )
        for kind in kinds
    )


def make_failure(task: Task, trace: Trace, critique: Critique, *, cycle: int) -> tuple[Demonstration, ...]:
    """The wrong plan or the wrong program with its reason, by what the critique blames; nothing where it has none to show."""
    kind: DemonstrationKind = "plan" if critique.culprit == "plan" and trace.proposal.plan else "program"
    if not critique.reason.strip() or (kind == "program" and not trace.proposal.program.strip()):
        return ()
    return (
        make_demonstration(
            kind=kind,
            outcome="failure",
            task_kind=task.kind,
            instruction=task.instruction,
            plan=trace.proposal.plan,
            program="" if kind == "plan" else trace.proposal.program,
            reason=critique.reason,
            provenance="failed",
            trace_id=trace.id,
            cycle=cycle,
        ),
    )


def count_votes(trace: Trace, *, accepted: bool, critiques: Sequence[Critique], taught_tool: bool) -> dict[str, int]:
    """Votes on the demonstrations that a task's first run was shown: +1 if it was right; -1 if it was wrong and its plan or program was
    blamed. CLOVA's code also votes against them when a tool was wrong; that would evict good demonstrations of tools yet untaught.

    Args:
        taught_tool: the task was solved by teaching a tool alone.
    """
    if accepted:
        return dict.fromkeys(trace.proposal.demonstrations, 1)
    blamed = any(critique.culprit in ("plan", "program") for critique in critiques)
    return dict.fromkeys(trace.proposal.demonstrations, -1) if blamed and not taught_tool else {}
