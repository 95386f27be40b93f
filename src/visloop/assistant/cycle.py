"""One reflect-and-learn cycle over a stream of tasks with feedback (CLOVA 3): the order of things is the algorithm.

``Cycle.step`` takes the state after one task to the state after the next; ``run_cycle`` is the whole of it. The programs of a batch run
side by side, and so do their first critiques; what is learned is applied in the order of the stream. A later task is tried again first
with what earlier ones taught. A planner that learns from right and wrong itself does so at the end of each batch.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

from visloop.assistant.attempts import choose_grain, learn_from_run
from visloop.assistant.cases import ANSWERED_LATER, Case, ReflectionGrain
from visloop.assistant.cycle_state import CycleRecords, CycleState, open_state
from visloop.assistant.gate import GateReport, gate_pools
from visloop.assistant.learning import is_learnable
from visloop.assistant.lessons import count_votes, make_successes
from visloop.assistant.material import MOST_KNOWN_QUESTIONS, list_known_questions
from visloop.assistant.pools import Pools
from visloop.assistant.reflection import count_unreadable
from visloop.assistant.runs import CycleParts, TaskRun, hear_runs, make_case, propose_programs, run_proposals, run_tasks, teach_planner
from visloop.assistant.search_judgements import Judgement
from visloop.assistant.token_meter import TokenMeter, Tokens
from visloop.errors import ConfigError, ReplyError
from visloop.ids import make_id, seed_for
from visloop.records.assistant import Critique, Instance, Task, UpdateOutcome


@dataclass(frozen=True, kw_only=True)
class CycleResult:
    """What a cycle came to. ``counts``: tasks, right at first, solved, updates by state, critiques by culprit and status, and the tokens
    that an LLM read and wrote for plans and critiques, if one did; ``known`` goes into the next cycle."""

    cycle: int
    pools: Pools
    records: CycleRecords
    gate: GateReport
    counts: dict[str, int]
    known: frozenset[tuple[str, str]]


@dataclass(frozen=True, eq=False)
class _Batch:
    """First runs of a batch with the opening pools, the first critique of each wrong one, what the planner itself can learn from each by
    task, and the parts to learn from them with. ``tokens`` is what runs and critiques cost."""

    number: int
    opening: Pools
    runs: list[TaskRun]
    critiques: dict[str, Critique]
    judgements: dict[str, Judgement]
    parts: CycleParts
    tokens: Tokens


class Cycle:
    """The transitions of a cycle's state. Beyond its arguments it holds only what can be computed again from a state.

    Raises:
        ConfigError: a task occurs twice in the stream.
    """

    def __init__(self, tasks: Sequence[Task], *, parts: CycleParts) -> None:
        ids = [task.id for task in tasks]
        if len(set(ids)) != len(ids):
            raise ConfigError("cycle: a task occurs twice in the stream; give each once")
        self._meter = TokenMeter()
        planner, critic = self._meter.watch_planner(parts.planner), self._meter.watch_critic(parts.critic)
        self.tasks, self.parts = tuple(tasks), replace(parts, planner=planner, critic=critic)
        self.batch = max(parts.batch or len(tasks), 1)
        self._held: _Batch | None = None

    def is_done(self, state: CycleState) -> bool:
        """Whether every task of the stream has been learned from."""
        return state.position >= len(self.tasks)

    def step(self, state: CycleState) -> CycleState:
        """The state after the next task of the stream. ``state`` is not changed."""
        batch = self._open_batch(state)
        before = self._meter.total
        after = self._learn(state, batch)
        # A batch that is opened again by a cycle that goes on is in the state's sum already.
        opened = batch.tokens if state.position % self.batch == 0 else Tokens()
        return replace(after, tokens=state.tokens + opened + (self._meter.total - before))

    def _learn(self, state: CycleState, batch: _Batch) -> CycleState:
        run = batch.runs[state.position % self.batch]
        heard = batch.judgements.get(run.trace.task_id)
        if heard is not None:
            state = replace(state, pools=replace(state.pools, judgements=state.pools.judgements.add([heard])))
        if run.right:
            return self._accept(state, run)
        now = self._run_again(state, run, batch.parts) if not state.pools.says_the_same(batch.opening) else run
        if now.right:
            return self._accept(state, now, before=run)
        first = batch.critiques.get(now.trace.id)
        lesson = learn_from_run(
            now,
            first=first,
            pools=state.pools,
            parts=batch.parts,
            known=state.known,
            hopeless=state.hopeless,
            cycle=state.cycle,
        )
        pools = lesson.pools
        if self.parts.learning.update_llm:
            votes = count_votes(run.trace, accepted=False, critiques=lesson.records.critiques, taught_tool=lesson.taught_tool)
            pools = self._vote(pools, votes)
        records = state.records.add(CycleRecords(traces=(run.trace,), feedback=(run.feedback,))).add(lesson.records)
        return state.advance(batch=self.batch, pools=pools, records=records, known=lesson.known, hopeless=lesson.hopeless)

    def _open_batch(self, state: CycleState) -> _Batch:
        number = state.position // self.batch
        if self._held is None or self._held.number != number or self._held.opening is not state.opening:
            tasks = self.tasks[number * self.batch : (number + 1) * self.batch]
            before = self._meter.total
            parts = teach_planner(self.parts, state.opening)
            runs = run_tasks(tasks, pools=state.opening, parts=parts, cycle=state.cycle)
            critiques = self._criticize(runs, pools=state.opening)
            cost = self._meter.total - before
            judgements = hear_runs(runs, pools=state.opening, parts=parts) if self.parts.learning.update_llm else {}
            self._held = _Batch(number, state.opening, runs, critiques, judgements, self._remember_questions(runs, parts), cost)
        return self._held

    def _remember_questions(self, runs: Sequence[TaskRun], parts: CycleParts) -> CycleParts:
        """The parts, where a VQA that learns questions has those that right runs asked as its replay set.

        Nothing is loaded or stored for it before VQA is taught.
        """
        sources = parts.sources

        @cache
        def list_known() -> tuple[Instance, ...]:
            right = [run.execution for run in runs if run.right]
            return tuple(list_known_questions(right, sources=sources, most=MOST_KNOWN_QUESTIONS))

        def find_replay(tool: str) -> Sequence[Instance]:
            vqa = parts.tools.find_tool(tool) if tool == ANSWERED_LATER else None
            return list_known() if is_learnable(vqa) and vqa.learns_questions else sources.find_replay(tool)

        return replace(parts, sources=replace(sources, find_replay=find_replay))

    def _criticize(self, runs: Sequence[TaskRun], *, pools: Pools) -> dict[str, Critique]:
        """The first critiques of the wrong runs, by trace: one batch per grain."""
        by_grain: dict[ReflectionGrain, list[Case]] = {}
        for run in runs if self.parts.learning.budget else ():
            if not run.right:
                case = make_case(run, parts=self.parts)
                grain = choose_grain(0, case, parts=self.parts)
                if grain is not None:
                    by_grain.setdefault(grain, []).append(case)
        tools, seed = self.parts.tools.with_pool(pools.prompts), seed_for(self.parts.seed, "critique", 0)
        found: dict[str, Critique] = {}
        for grain, cases in by_grain.items():
            for critique in self.parts.critic.criticize(cases, grain=grain, tools=tools, seed=seed):
                found[critique.trace_id] = critique
        return found

    def _run_again(self, state: CycleState, run: TaskRun, parts: CycleParts) -> TaskRun:
        """The run with the pools as they are now; the same one where nothing would be different."""
        task = run.execution.job.task
        [proposal] = propose_programs([task], pools=state.pools, parts=parts)
        first = run.trace.proposal
        # Other demonstrations make the prompt longer or shorter; what counts is what was written.
        alike = replace(
            proposal,
            demonstrations=first.demonstrations,
            prompt_tokens=first.prompt_tokens,
            new_tokens=first.new_tokens,
        )
        if alike == first and state.pools.prompts.hash == state.opening.prompts.hash:
            return run
        [again] = run_proposals([task], [proposal], pools=state.pools, parts=parts, cycle=state.cycle)
        return again

    def _accept(self, state: CycleState, run: TaskRun, *, before: TaskRun | None = None) -> CycleState:
        """A right run leaves its demonstrations, unless its instruction has one already, and a vote for those that it was shown."""
        task, pools = run.execution.job.task, state.pools
        added = CycleRecords(traces=(run.trace,), feedback=(run.feedback,))
        if before is not None:
            outcome = UpdateOutcome(
                id=make_id("outcome", state.cycle, before.feedback.id, "earlier"),
                feedback_id=before.feedback.id,
                critique_id="",
                kind=None,
                state="no_update",
                solved=True,
                rerun_trace_id=run.trace.id,
                reason="right with what earlier tasks of the stream taught",
            )
            added = CycleRecords(traces=(before.trace,), feedback=(before.feedback,)).add(added).add(CycleRecords(outcomes=(outcome,)))
        if self.parts.learning.update_llm:
            pools = self._vote(pools, count_votes(run.trace, accepted=True, critiques=(), taught_tool=False))
            shown = pools.demonstrations.find("program", "success", task.kind)
            if all(entry.instruction != task.instruction for entry in shown):
                learned = make_successes(task, run.trace, provenance="accepted", cycle=state.cycle)
                pools = replace(pools, demonstrations=pools.demonstrations.add(learned))
        return state.advance(batch=self.batch, pools=pools, records=state.records.add(added))

    def _vote(self, pools: Pools, votes: dict[str, int]) -> Pools:
        if not votes:
            return pools
        learning = self.parts.learning
        voted = pools.demonstrations.vote(votes, learning.min_score, keep_seeds=learning.keep_seeds)
        return replace(pools, demonstrations=voted)

    def close(self, state: CycleState, *, start: Pools, replay: Sequence[Task] = (), held_out: Sequence[Task] = ()) -> CycleResult:
        """Pass the gate and count.

        Args:
            start: the pools before the cycle.
            replay: tasks that were right before.
            held_out: tasks that are in no stream.

        Raises:
            ConfigError: the stream is not at its end, or a gate task is in the stream.
            ReplyError: more critiques than ``reflection.max_unreadable_rate`` could not be read.
        """
        if not self.is_done(state):
            raise ConfigError(f"cycle {state.cycle}: {state.position} of {len(self.tasks)} tasks are done; close it after the last")
        leaked = {task.id for task in held_out} & {task.id for task in self.tasks}
        if leaked:
            raise ConfigError(f"cycle {state.cycle}: held-out task {min(leaked)} is in the stream")
        critiques = state.records.critiques
        unreadable, limit = count_unreadable(critiques), self.parts.reflection.max_unreadable_rate
        if critiques and unreadable / len(critiques) > limit:
            raise ReplyError(
                f"cycle {state.cycle}: {unreadable} of {len(critiques)} critiques of {self.parts.critic.name} could not be read "
                f"(limit {limit:.0%}); see their replies, or choose another critic"
            )
        before = self._meter.total
        pools, gate = gate_pools(start, state.pools, replay=replay, held_out=held_out, parts=self.parts, cycle=state.cycle)
        tokens = state.tokens + (self._meter.total - before)
        return CycleResult(
            cycle=state.cycle,
            pools=pools,
            records=state.records,
            gate=gate,
            counts=_count(state.records, len(self.tasks), tokens=tokens),
            known=state.known,
        )


def run_cycle(
    tasks: Sequence[Task],
    *,
    parts: CycleParts,
    pools: Pools,
    cycle: int,
    replay: Sequence[Task] = (),
    held_out: Sequence[Task] = (),
    known: frozenset[tuple[str, str]] = frozenset(),
    state: CycleState | None = None,
    on_state: Callable[[CycleState], None] | None = None,
) -> CycleResult:
    """Run a cycle to its end.

    Args:
        pools: what the assistant has learned before.
        known: (owner, word) pairs that tools turned out to know, from earlier cycles.
        state: where to go on from; the result is that of a cycle that was never stopped.
        on_state: called with the state after each task, e.g. to save it.

    Raises:
        ConfigError, ReplyError: see ``Cycle.close``.
    """
    machine = Cycle(tasks, parts=parts)
    now = state or open_state(pools, cycle=cycle, known=known)
    while not machine.is_done(now):
        now = machine.step(now)
        if on_state is not None:
            on_state(now)
    return machine.close(now, start=pools, replay=replay, held_out=held_out)


def _count(records: CycleRecords, tasks: int, *, tokens: Tokens) -> dict[str, int]:
    firsts: dict[str, bool] = {}
    for feedback in records.feedback:
        firsts.setdefault(feedback.task_id, feedback.accepted)
    solved = {outcome.feedback_id for outcome in records.outcomes if outcome.solved}
    counts = Counter({"tasks": tasks, "right_at_first": sum(firsts.values()), "solved": len(solved)})
    counts.update(f"updates/{outcome.state}" for outcome in records.outcomes)
    counts.update(f"critiques/{critique.grain}/{critique.culprit}" for critique in records.critiques)
    counts.update(f"critiques/{critique.status}" for critique in records.critiques)
    if tokens != Tokens():
        counts.update({"tokens/prompt": tokens.prompt, "tokens/new": tokens.new})
    return dict(sorted(counts.items()))
