"""The gate at the end of a cycle: tasks that were right before, and held-out tasks, are run with the old and the new pools.

What a cycle learned may cost at most ``max_replay_drop`` of either accuracy. Where it costs more, the cycle's prompts are refused one
concept at a time, the newest first, as far as that helps; then what its planner learned itself; then its demonstrations; then the whole
cycle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from visloop.assistant.pools import Pools
from visloop.assistant.runs import CycleParts, run_tasks, teach_planner
from visloop.records.assistant import Task
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool

_HEARD = "what the planner learned from right and wrong"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """Accuracies 0-1 before and after (None: no such tasks), what was lost and won, and what was refused.

    ``forgotten`` and ``gained`` are ids of replay and held-out tasks that went from right to wrong and the other way with the final
    pools; ``refused`` are ids of prompts, judgements and demonstrations.
    """

    replay_before: float | None
    replay_after: float | None
    held_out_before: float | None
    held_out_after: float | None
    forgotten: tuple[str, ...] = ()
    gained: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Marks:
    """Which tasks were right."""

    right: frozenset[str]
    replay: tuple[str, ...]
    held_out: tuple[str, ...]

    @property
    def replay_accuracy(self) -> float | None:
        return _share(self.replay, self.right)

    @property
    def held_out_accuracy(self) -> float | None:
        return _share(self.held_out, self.right)

    def lack(self, before: "_Marks", *, drop: float) -> float:
        """How far the accuracies are below what they may be, as a sum of fractions; 0 passes."""
        total = 0.0
        for own, other in ((self.replay_accuracy, before.replay_accuracy), (self.held_out_accuracy, before.held_out_accuracy)):
            if own is not None and other is not None:
                total += max(0.0, other - drop - own - 1e-9)
        return total


def gate_pools(
    opening: Pools, pools: Pools, *, replay: Sequence[Task], held_out: Sequence[Task], parts: CycleParts, cycle: int
) -> tuple[Pools, GateReport]:
    """The pools that pass, and the forgetting report. Without ``learning.validate`` nothing is refused, only reported."""
    drop = parts.learning.max_replay_drop
    before, after = _mark(opening, replay, held_out, parts, cycle), _mark(pools, replay, held_out, parts, cycle)
    now, marks, refused, reasons = pools, after, list[str](), list[str]()
    known = set(_list_ids(opening.prompts.prompts))
    if parts.learning.validate and after.lack(before, drop=drop) > 0:
        for tool, concept in reversed(_list_new_prompts(opening.prompts, pools.prompts)):
            gone = [name for name in _list_ids(now.prompts.find_prompts(tool, concept)) if name not in known]
            without = replace(now, prompts=now.prompts.drop_prompts(gone))
            found = _mark(without, replay, held_out, parts, cycle)
            if found.lack(before, drop=drop) < marks.lack(before, drop=drop):
                now, marks, refused = without, found, refused + gone
                reasons.append(f"the prompts of {tool} for {concept!r}")
            if marks.lack(before, drop=drop) == 0:
                break
        if marks.lack(before, drop=drop) > 0:
            now, marks, dropped, reason = _refuse_rest(now, opening, before, replay, held_out, parts, cycle)
            refused += dropped
            reasons.append(reason)
    lost, won = before.right - marks.right, marks.right - before.right
    return now, GateReport(
        replay_before=before.replay_accuracy,
        replay_after=marks.replay_accuracy,
        held_out_before=before.held_out_accuracy,
        held_out_after=marks.held_out_accuracy,
        forgotten=tuple(sorted(lost)),
        gained=tuple(sorted(won)),
        refused=tuple(refused),
        reason=f"cost too much of what was right before: {', '.join(reasons)}" if reasons else "",
    )


def _refuse_rest(
    now: Pools,
    opening: Pools,
    before: _Marks,
    replay: Sequence[Task],
    held_out: Sequence[Task],
    parts: CycleParts,
    cycle: int,
) -> tuple[Pools, _Marks, list[str], str]:
    """Without what the planner learned itself, or without the cycle's demonstrations, or without both, whichever passes first; else the
    pools as they were. With the ids of what was refused, and what that is in words."""
    heard = now.judgements.list_new(opening.judgements)
    shown = {entry.id for entry in opening.demonstrations.entries}
    learned = [entry.id for entry in now.demonstrations.entries if entry.id not in shown]
    known = set(_list_ids(opening.prompts.prompts))
    prompts = [name for name in _list_ids(now.prompts.prompts) if name not in known]
    unheard = replace(now, judgements=opening.judgements)
    trials: list[tuple[Pools, list[str], str]] = []
    if heard and (prompts or learned):
        trials.append((unheard, heard, _HEARD))
    if learned and (prompts or heard):
        trials.append((replace(now, demonstrations=opening.demonstrations), learned, "the demonstrations"))
    if heard and learned and prompts:
        trials.append((replace(unheard, demonstrations=opening.demonstrations), [*heard, *learned], "all that the planner was taught"))
    for without, dropped, reason in trials:
        found = _mark(without, replay, held_out, parts, cycle)
        if found.lack(before, drop=parts.learning.max_replay_drop) == 0:
            return without, found, dropped, reason
    rest = "everything that was left of the cycle" if prompts or learned else _HEARD
    return opening, before, [*prompts, *heard, *learned], rest


def _mark(pools: Pools, replay: Sequence[Task], held_out: Sequence[Task], parts: CycleParts, cycle: int) -> _Marks:
    tasks = list({task.id: task for task in (*replay, *held_out)}.values())
    runs = run_tasks(tasks, pools=pools, parts=teach_planner(parts, pools), cycle=cycle)
    right = frozenset(task.id for task, run in zip(tasks, runs, strict=True) if run.right)
    return _Marks(right, tuple(task.id for task in replay), tuple(task.id for task in held_out))


def _list_ids(prompts: Sequence[LearnedPrompt]) -> list[str]:
    return [prompt.entry.id for prompt in prompts]


def _share(ids: Sequence[str], right: frozenset[str]) -> float | None:
    return sum(name in right for name in ids) / len(ids) if ids else None


def _list_new_prompts(opening: PromptPool, pool: PromptPool) -> list[tuple[str, str]]:
    """(owner, concept) of prompts that are new, in the order in which they came."""
    known = {prompt.entry.id for prompt in opening.prompts}
    return list(dict.fromkeys((prompt.entry.tool, prompt.entry.concept) for prompt in pool.prompts if prompt.entry.id not in known))
