"""Running tasks and getting feedback on them: what a cycle does again and again, for many tasks side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from PIL import Image

from visloop.assistant.cases import Case, Critic
from visloop.assistant.interpreter import Execution, Job, run_programs
from visloop.assistant.learning import LearningTools
from visloop.assistant.material import TeachingSources, TuningPlan
from visloop.assistant.pools import Pools
from visloop.assistant.proposals import Planner, judge_runs, teach
from visloop.assistant.search_judgements import JudgedRun, Judgement
from visloop.assistant.traces import make_trace
from visloop.config_assistant import LearningConfig, ReflectionConfig
from visloop.errors import ConfigError, DataError
from visloop.ids import seed_for
from visloop.records.assistant import Critique, Feedback, Proposal, Task, Trace

GiveFeedback = Callable[[Execution, Trace], Feedback]
"""What people or ground truth say of a run. The only place of a cycle that may know what is right."""


@dataclass(frozen=True, kw_only=True)
class CycleParts:
    """Everything that a cycle works with. All draws are keyed by ``seed``, cycle and task, so that no part depends on the order.

    ``load_inputs`` gives a task's pictures by variable; ``describe_image`` and ``save_image`` are those of ``traces.make_trace``;
    ``use_failures`` stores failed demonstrations too; ``batch`` tasks are run side by side before any of them is learned from
    (None: the whole stream).
    """

    planner: Planner
    tools: LearningTools
    critic: Critic
    sources: TeachingSources
    plan: TuningPlan
    give_feedback: GiveFeedback
    load_inputs: Callable[[Task], Mapping[str, Image.Image]]
    describe_image: Callable[[Image.Image], str]
    save_image: Callable[[Image.Image], str]
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    use_failures: bool = True
    batch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.learning.budget < 0 or (self.batch is not None and self.batch < 1):
            raise ConfigError("learning.budget must be at least 0, and a batch at least 1 task")
        if self.plan.validate != self.learning.validate:
            raise ConfigError("learning.validate and the tuning plan's validate differ; make the plan with plan_tuning(validate=...)")


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskRun:
    """One run of one task with what came back."""

    execution: Execution
    trace: Trace
    feedback: Feedback

    @property
    def right(self) -> bool:
        """Whether the result was accepted."""
        return self.feedback.accepted


def teach_planner(parts: CycleParts, pools: Pools) -> CycleParts:
    """The parts with the planner that has learned from the judgements of ``pools``; the same ones where the planner does not learn from
    judgements. Everything that plans with a snapshot of pools starts here."""
    return replace(parts, planner=teach(parts.planner, pools.judgements))


def hear_runs(runs: Sequence[TaskRun], *, pools: Pools, parts: CycleParts) -> dict[str, Judgement]:
    """By task, what a planner that learns from right and wrong can learn from the feedback on runs."""
    judged = [JudgedRun(run.execution.job.task, run.trace, run.feedback, run.execution.job.inputs) for run in runs]
    return {entry.id: entry for entry in judge_runs(parts.planner, judged, tools=parts.tools.with_pool(pools.prompts))}


def propose_programs(tasks: Sequence[Task], *, pools: Pools, parts: CycleParts) -> list[Proposal]:
    """A proposal per task from the demonstrations of ``pools``. The same tasks and pools give the same proposals.

    Raises:
        DataError: the planner did not give one proposal per task, in order.
    """
    if not tasks:
        return []
    proposals = parts.planner.propose(tasks, pool=pools.demonstrations, seed=seed_for(parts.seed, "plan"))
    if [proposal.task_id for proposal in proposals] != [task.id for task in tasks]:
        raise DataError(f"planner {parts.planner.name}: its proposals are not one per task, in order")
    return proposals


def run_proposals(tasks: Sequence[Task], proposals: Sequence[Proposal], *, pools: Pools, parts: CycleParts, cycle: int) -> list[TaskRun]:
    """Run proposals side by side with the prompts of ``pools``, and ask for feedback on each run."""
    jobs = [Job(task, proposal, parts.load_inputs(task)) for task, proposal in zip(tasks, proposals, strict=True)]
    runs = []
    for execution in run_programs(jobs, tools=parts.tools.with_pool(pools.prompts)):
        trace = make_trace(execution, describe_image=parts.describe_image, save_image=parts.save_image, key=f"cycle {cycle}")
        runs.append(TaskRun(execution=execution, trace=trace, feedback=parts.give_feedback(execution, trace)))
    return runs


def run_tasks(tasks: Sequence[Task], *, pools: Pools, parts: CycleParts, cycle: int) -> list[TaskRun]:
    """Plan, run and judge tasks with ``pools``, all side by side."""
    return run_proposals(tasks, propose_programs(tasks, pools=pools, parts=parts), pools=pools, parts=parts, cycle=cycle)


def make_case(run: TaskRun, *, parts: CycleParts, earlier: tuple[Critique, ...] = ()) -> Case:
    """A failed run as critics see it, its input pictures with captions."""
    captions = {name: parts.describe_image(picture) for name, picture in run.execution.job.inputs.items()}
    return Case(execution=run.execution, trace=run.trace, feedback=run.feedback, captions=captions, earlier=earlier)
