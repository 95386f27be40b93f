"""Learning from one negative feedback, the paper's true loop (CLOVA 3.3, 3.4): critique, learn, run again, and once more from close up.

After an interrupted run the interrupt critique comes first, otherwise the global one; if the task is still wrong after learning, the
local one. What was learned stays only if the task is right in the end: otherwise all of it is rolled back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from visloop.answers import read_boolean
from visloop.assistant.cases import Case, ReflectionGrain
from visloop.assistant.cycle_state import CycleRecords
from visloop.assistant.learning import update_tool
from visloop.assistant.lessons import make_failure, make_successes
from visloop.assistant.pools import Pools
from visloop.assistant.proposals import FailedAttempt
from visloop.assistant.runs import CycleParts, TaskRun, make_case, propose_programs, run_proposals
from visloop.ids import make_id, seed_for
from visloop.records.assistant import Critique, Demonstration, UpdateKind, UpdateOutcome, UpdateState


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What one feedback came to: the pools after it, the records that it made, whether the task is right now, and whether teaching a tool
    alone did it."""

    pools: Pools
    records: CycleRecords
    solved: bool
    taught_tool: bool
    known: frozenset[tuple[str, str]] = frozenset()
    hopeless: frozenset[tuple[str, str]] = frozenset()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One critique and what was learned from it. ``case`` is what the next critique is about; ``solved``: the run after it was right."""

    pools: Pools
    case: Case
    solved: bool
    state: UpdateState
    reason: str
    kind: UpdateKind | None = None
    records: CycleRecords = field(default_factory=CycleRecords)
    rerun: TaskRun | None = None
    demonstrations: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    known: frozenset[tuple[str, str]] = frozenset()
    hopeless: frozenset[tuple[str, str]] = frozenset()


def choose_grain(number: int, case: Case, *, parts: CycleParts) -> ReflectionGrain | None:
    """Which critique comes as the ``number``-th (from 0); None: no further one."""
    if case.trace.status != "finished":
        return "interrupt"
    if parts.reflection.use_global and number == 0:
        return "global"
    if parts.reflection.use_local:
        return "local"
    # without local reflection a run that was interrupted before still gets the critique of the whole run
    seen_global = any(critique.grain == "global" for critique in case.earlier)
    return "global" if parts.reflection.use_global and not seen_global else None


def learn_from_run(
    run: TaskRun,
    *,
    first: Critique | None,
    pools: Pools,
    parts: CycleParts,
    known: frozenset[tuple[str, str]] = frozenset(),
    hopeless: frozenset[tuple[str, str]] = frozenset(),
    cycle: int,
) -> Lesson:
    """Learn from a wrong run, at most ``learning.budget`` times.

    Args:
        first: the first critique where it was made already, in a batch.
        pools: with which the run was made.
    """
    case, now, records = make_case(run, parts=parts), pools, CycleRecords(traces=(run.trace,), feedback=(run.feedback,))
    steps: list[tuple[Critique, _Step]] = []
    for number in range(parts.learning.budget):
        grain = choose_grain(number, case, parts=parts)
        if grain is None:
            break
        critique = first if number == 0 and first is not None else _criticize(case, grain, pools=now, parts=parts, number=number)
        step = _learn(case, critique, pools=now, parts=parts, passed_over=known | hopeless, number=number, cycle=cycle)
        steps.append((critique, step))
        records = records.add(CycleRecords(critiques=(critique,))).add(step.records)
        known, hopeless, now = known | step.known, hopeless | step.hopeless, step.pools
        case = replace(step.case, earlier=(*case.earlier, critique))
        if step.solved:
            break
    solved = bool(steps) and steps[-1][1].solved
    keep = solved or not parts.learning.validate
    outcomes = tuple(_make_outcome(run, critique, step, number, keep=keep, cycle=cycle) for number, (critique, step) in enumerate(steps))
    return Lesson(
        pools=now if keep else pools,
        records=records.add(CycleRecords(outcomes=outcomes)),
        solved=solved,
        taught_tool=solved and steps[-1][1].kind == "prompt",
        known=known,
        hopeless=hopeless,
    )


def _criticize(case: Case, grain: ReflectionGrain, *, pools: Pools, parts: CycleParts, number: int) -> Critique:
    tools = parts.tools.with_pool(pools.prompts)
    [critique] = parts.critic.criticize([case], grain=grain, tools=tools, seed=seed_for(parts.seed, "critique", number))
    return critique


def _learn(
    case: Case, critique: Critique, *, pools: Pools, parts: CycleParts, passed_over: frozenset[tuple[str, str]], number: int, cycle: int
) -> _Step:
    if critique.status != "ok" or critique.culprit == "nothing":
        reason = f"the critique is {critique.status}" if critique.status != "ok" else critique.reason or "nothing is blamed"
        return _Step(pools=pools, case=case, solved=False, state="no_update", reason=reason)
    if critique.culprit == "tool":
        if not parts.learning.update_tools:
            return _Step(pools=pools, case=case, solved=False, state="no_update", reason="tools are not taught in this run")
        return _teach_tool(case, critique, pools=pools, parts=parts, passed_over=passed_over, cycle=cycle)
    if not parts.learning.update_llm:
        return _Step(pools=pools, case=case, solved=False, state="no_update", reason="no demonstrations are learned in this run")
    return _teach_planner(case, critique, pools=pools, parts=parts, number=number, cycle=cycle)


def _teach_tool(
    case: Case, critique: Critique, *, pools: Pools, parts: CycleParts, passed_over: frozenset[tuple[str, str]], cycle: int
) -> _Step:
    task = case.execution.job.task
    update = update_tool(
        case,
        critique,
        tools=parts.tools.with_pool(pools.prompts),
        pool=pools.prompts,
        sources=parts.sources,
        plan=parts.plan,
        passed_over=passed_over,
        seed=seed_for(parts.seed, "learn", cycle),
        cycle=cycle,
    )
    records = CycleRecords(instances=update.instances)
    step = _Step(
        pools=pools,
        case=case,
        solved=False,
        state=update.state,
        reason=update.reason,
        kind="prompt",
        records=records,
        prompts=update.kept,
        metrics=update.metrics,
        known=update.known,
        hopeless=update.hopeless,
    )
    if update.state != "kept":
        return step
    taught = replace(pools, prompts=update.pool)
    [rerun] = run_proposals([task], [case.trace.proposal], pools=taught, parts=parts, cycle=cycle)
    return replace(
        step,
        pools=taught,
        case=make_case(rerun, parts=parts),
        solved=rerun.right,
        rerun=rerun,
        records=records.add(_record(rerun)),
    )


def _teach_planner(case: Case, critique: Critique, *, pools: Pools, parts: CycleParts, number: int, cycle: int) -> _Step:
    """Ask for other proposals with the failed ones at hand; keep the first that is right as a demonstration if the planner that is shown
    it then solves the task without the failed ones. The case stays: a failed repair is no better place to look from."""
    task = case.execution.job.task
    kind: UpdateKind = "plan_demonstration" if critique.culprit == "plan" else "program_demonstration"
    step = _Step(pools=pools, case=case, solved=False, state="refused", reason="", kind=kind)
    attempt = FailedAttempt(proposal=case.trace.proposal, critique=critique)
    rerun: TaskRun | None = None
    for turn in range(_count_tries(case, parts=parts)):
        seed = seed_for(parts.seed, "repair", cycle, number, turn)
        [proposal] = parts.planner.propose([task], pool=pools.demonstrations, attempts=[attempt], seed=seed)
        if proposal.status != "ok":
            step = replace(step, reason=step.reason or f"no other program: {proposal.error or proposal.status}")
            break
        [rerun] = run_proposals([task], [proposal], pools=pools, parts=parts, cycle=cycle)
        reason = "" if rerun.right else f"the other program is wrong as well: {rerun.trace.error or rerun.trace.result}"
        step = replace(step, rerun=rerun, records=step.records.add(_record(rerun)), solved=rerun.right, reason=reason)
        if rerun.right or not parts.learning.validate:
            break
        attempt = replace(attempt, tried=(*attempt.tried, proposal.program))
    if rerun is None or (parts.learning.validate and not rerun.right):
        return step
    learned = make_successes(task, rerun.trace, provenance="repaired", cycle=cycle)
    failure = make_failure(task, case.trace, critique, cycle=cycle) if parts.use_failures else ()
    taught = replace(pools, demonstrations=pools.demonstrations.add((*learned, *failure)))
    if parts.learning.validate:
        proof = _prove(rerun, taught, parts=parts, cycle=cycle)
        step = replace(step, records=step.records.add(_record(proof)))
        if not proof.right:
            return replace(step, reason=f"shown the demonstration, the planner is still wrong: {proof.trace.error or proof.trace.result}")
    return replace(
        step,
        pools=taught,
        state="kept",
        reason="the run of the other program is right" if rerun.right else "kept without proof",
        demonstrations=_list_new(pools, taught),
    )


def _count_tries(case: Case, *, parts: CycleParts) -> int:
    """How many other programs are tried. Of those for a yes or no one in two is right by chance: a second guess would teach nothing."""
    answer = case.feedback.answer
    return 1 if answer is not None and read_boolean(answer) is not None else max(parts.learning.tries, 1)


def _prove(rerun: TaskRun, taught: Pools, *, parts: CycleParts, cycle: int) -> TaskRun:
    task = rerun.execution.job.task
    [proposal] = propose_programs([task], pools=taught, parts=parts)
    if proposal.status == "ok" and proposal.program == rerun.trace.proposal.program:
        return rerun
    [proof] = run_proposals([task], [proposal], pools=taught, parts=parts, cycle=cycle)
    return proof


def _list_new(before: Pools, after: Pools) -> tuple[str, ...]:
    known: set[str] = {entry.id for entry in before.demonstrations.entries}
    added: list[Demonstration] = [entry for entry in after.demonstrations.entries if entry.id not in known]
    return tuple(entry.id for entry in added)


def _record(run: TaskRun) -> CycleRecords:
    return CycleRecords(traces=(run.trace,), feedback=(run.feedback,))


def _make_outcome(run: TaskRun, critique: Critique, step: _Step, number: int, *, keep: bool, cycle: int) -> UpdateOutcome:
    undone = step.state == "kept" and not keep
    return UpdateOutcome(
        id=make_id("outcome", cycle, run.feedback.id, number, critique.id),
        feedback_id=run.feedback.id,
        critique_id=critique.id,
        kind=step.kind,
        state="rolled_back" if undone else step.state,
        solved=step.solved,
        rerun_trace_id=step.rerun.trace.id if step.rerun else None,
        demonstrations=() if undone else step.demonstrations,
        prompts=() if undone else step.prompts,
        reason=f"the task stayed wrong, so that this was undone: {step.reason}" if undone else step.reason,
        metrics=dict(step.metrics),
    )
