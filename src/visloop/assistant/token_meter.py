"""What plans and critiques cost in tokens of an LLM, summed over a cycle.

Records alone do not tell: a proposal that turns out to be the one that was there, a repair without a program, and the runs of the gate
leave none. So planner and critic are watched. The sums depend on what was asked alone, never on time.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from visloop.assistant.cases import Case, Critic, ReflectionGrain
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.proposals import FailedAttempt, Planner, judge_runs, teach
from visloop.assistant.search_judgements import JudgedRun, Judgement, JudgementPool
from visloop.records.assistant import Critique, Proposal, Task
from visloop.tools.base import ToolRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Tokens that an LLM read and wrote."""

    prompt: int = 0
    new: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(prompt=self.prompt + other.prompt, new=self.new + other.new)

    def __sub__(self, other: "Tokens") -> "Tokens":
        return Tokens(prompt=self.prompt - other.prompt, new=self.new - other.new)


@dataclass(slots=True)
class TokenMeter:
    """Counts all that a planner and a critic give. ``total`` only grows; who wants the cost of a part reads it before and after."""

    total: Tokens = field(default_factory=Tokens)

    def watch_planner(self, planner: Planner) -> Planner:
        """The same planner, counted."""
        return _WatchedPlanner(planner, self)

    def watch_critic(self, critic: Critic) -> Critic:
        """The same critic, counted."""
        return _WatchedCritic(critic, self, critic.name)

    def count(self, records: Iterable[Proposal | Critique]) -> None:
        """Add the tokens of what was written."""
        for record in records:
            self.total += Tokens(prompt=record.prompt_tokens, new=record.new_tokens)


@dataclass(frozen=True, slots=True)
class _WatchedPlanner:
    planner: Planner
    meter: TokenMeter

    @property
    def name(self) -> str:
        return self.planner.name

    def propose(
        self, tasks: Sequence[Task], *, pool: DemonstrationPool, attempts: Sequence[FailedAttempt | None] | None = None, seed: int
    ) -> list[Proposal]:
        proposals = self.planner.propose(tasks, pool=pool, attempts=attempts, seed=seed)
        self.meter.count(proposals)
        return proposals

    def judge(self, runs: Sequence[JudgedRun], *, tools: ToolRunner) -> list[Judgement]:
        return judge_runs(self.planner, runs, tools=tools)

    def with_judgements(self, pool: JudgementPool) -> "_WatchedPlanner":
        return _WatchedPlanner(teach(self.planner, pool), self.meter)


@dataclass(slots=True)
class _WatchedCritic:
    critic: Critic
    meter: TokenMeter
    name: str

    def criticize(self, cases: Sequence[Case], *, grain: ReflectionGrain, tools: ToolRunner, seed: int) -> list[Critique]:
        critiques = self.critic.criticize(cases, grain=grain, tools=tools, seed=seed)
        self.meter.count(critiques)
        return critiques
