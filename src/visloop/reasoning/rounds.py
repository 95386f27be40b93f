"""Iterative DPO as values (Insight-V 3.4): is a round healthy, is it accepted, is it time to stop, who descends from whom.

M_t+1 is trained on D_t, sampled from M_t, with M_t as the frozen reference. A round is judged on the validation split. A
rejected round leaves the model as it was; the next round samples new prompts from the same parent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from visloop.config import GuardConfig, RoundsConfig
from visloop.errors import ConfigError, TrainingError

Guard = Literal["reward_accuracy", "reward_margin", "chosen_logp_drop", "length_drift", "malformed_rate", "gain", "not_finite"]
StopReason = Literal["rounds_done", "rejections"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationMetrics:
    """A reasoner on the validation split. Accuracies, rates and ``path_score`` (1-100) are means over sampled chains;
    ``greedy_accuracy`` over one greedy chain per question; ``mean_length`` in tokens per chain."""

    questions: int
    sampled_accuracy: float
    greedy_accuracy: float
    path_score: float | None
    malformed_rate: float
    mean_length: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingHealth:
    """What the trainer measured. Log-probabilities are sums over a chosen chain's tokens, before and after the round;
    rewards are DPO's, at the end of the round."""

    reward_accuracy: float
    reward_margin: float
    chosen_logp_before: float
    chosen_logp_after: float
    loss_first: float
    loss_last: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardViolation:
    """A health limit that a round broke. ``value`` and ``limit`` are None for a figure that is no finite number."""

    guard: Guard
    value: float | None
    limit: float | None
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """Everything that decides about a round, and the decision. ``round`` counts from 1; hashes are content hashes."""

    round: int
    parent_hash: str
    model_hash: str
    data_hash: str
    config_hash: str
    counts: dict[str, int]
    before: ValidationMetrics
    after: ValidationMetrics
    training: TrainingHealth
    violations: tuple[GuardViolation, ...]
    accepted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageEntry:
    """An accepted model M_t. ``round`` is the round that made it (0: supervised fine-tuning)."""

    name: str
    round: int
    model_hash: str
    parent_hash: str | None
    data_hash: str
    config_hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """The accepted models M_0, M_1, ... in order; each names its parent."""

    entries: tuple[LineageEntry, ...] = field(default_factory=tuple)

    @property
    def head(self) -> LineageEntry:
        """The last accepted model: what the next round samples from and starts at.

        Raises:
            TrainingError: there is no M_0 yet.
        """
        if not self.entries:
            raise TrainingError("the lineage is empty; start it with the reasoner of supervised fine-tuning (M_0)")
        return self.entries[-1]


def check_health(
    *, before: ValidationMetrics, after: ValidationMetrics, training: TrainingHealth, guards: GuardConfig
) -> list[GuardViolation]:
    """The health limits that a round broke; an empty list means healthy.

    A figure that is not a finite number is a violation of its own: a comparison with NaN would pass every limit. Gain is the
    rise of the sampled accuracy (0-1) from ``before`` to ``after`` on the validation split.
    """
    values: list[tuple[Guard, float, float, bool, str]] = []

    def check(guard: Guard, value: float, limit: float, *, lowest: bool, what: str) -> None:
        values.append((guard, value, limit, lowest, what))

    check(
        "reward_accuracy",
        training.reward_accuracy,
        guards.min_reward_accuracy,
        lowest=True,
        what="share of pairs with a higher reward for the chosen chain",
    )
    check("reward_margin", training.reward_margin, guards.min_reward_margin, lowest=True, what="reward margin")
    drop = training.chosen_logp_before - training.chosen_logp_after
    check("chosen_logp_drop", drop, guards.max_chosen_logp_drop, lowest=False, what="fall of the chosen chains' log-probability")
    drift = abs(after.mean_length / before.mean_length - 1) if before.mean_length else float("nan")
    check("length_drift", drift, guards.max_length_drift, lowest=False, what="relative change of the chain length")
    check("malformed_rate", after.malformed_rate, guards.max_malformed_rate, lowest=False, what="share of malformed chains")
    check("gain", after.sampled_accuracy - before.sampled_accuracy, guards.min_gain, lowest=True, what="gain of the sampled accuracy")
    check("not_finite", training.loss_last, float("inf"), lowest=False, what="last loss")
    violations = []
    for guard, value, limit, lowest, what in values:
        if not isfinite(value):
            violations.append(GuardViolation(guard="not_finite", value=None, limit=None, message=f"{what} is {value}, no finite number"))
        elif value < limit if lowest else value > limit:
            relation = "under the least" if lowest else "over the most"
            violations.append(
                GuardViolation(guard=guard, value=value, limit=limit, message=f"{what} is {value:.4g}, {relation} allowed, {limit:.4g}")
            )
    return violations


def decide_round(
    *,
    round: int,
    lineage: Lineage,
    model_hash: str,
    data_hash: str,
    config_hash: str,
    counts: dict[str, int],
    before: ValidationMetrics,
    after: ValidationMetrics,
    training: TrainingHealth,
    guards: GuardConfig,
) -> RoundReport:
    """Accept the trained model, or reject it with the limits it broke. ``before`` belongs to the lineage's head.

    Raises:
        ConfigError: ``round`` below 1.
        TrainingError: the two measurements are not on equally many questions, or the lineage is empty.
    """
    if round < 1:
        raise ConfigError(f"rounds count from 1, got {round}")
    if before.questions != after.questions:
        raise TrainingError(
            f"round {round}: validated on {before.questions} questions before and {after.questions} after; use the same validation split"
        )
    violations = tuple(check_health(before=before, after=after, training=training, guards=guards))
    return RoundReport(
        round=round,
        parent_hash=lineage.head.model_hash,
        model_hash=model_hash,
        data_hash=data_hash,
        config_hash=config_hash,
        counts=dict(counts),
        before=before,
        after=after,
        training=training,
        violations=violations,
        accepted=not violations,
    )


def start_lineage(*, model_hash: str, data_hash: str, config_hash: str) -> Lineage:
    """A lineage that begins with M_0, the reasoner of supervised fine-tuning."""
    entry = LineageEntry(name="M_0", round=0, model_hash=model_hash, parent_hash=None, data_hash=data_hash, config_hash=config_hash)
    return Lineage(entries=(entry,))


def extend_lineage(lineage: Lineage, report: RoundReport) -> Lineage:
    """The lineage after a round: one model longer when the round was accepted, unchanged when it was rejected.

    Raises:
        TrainingError: the round was not trained from the lineage's head, or is not later than it.
    """
    head = lineage.head
    if report.parent_hash != head.model_hash or report.round <= head.round:
        raise TrainingError(
            f"round {report.round} with parent {report.parent_hash[:12]} does not follow {head.name} "
            f"({head.model_hash[:12]}, round {head.round}); train every round from the lineage's head"
        )
    if not report.accepted:
        return lineage
    entry = LineageEntry(
        name=f"M_{len(lineage.entries)}",
        round=report.round,
        model_hash=report.model_hash,
        parent_hash=report.parent_hash,
        data_hash=report.data_hash,
        config_hash=report.config_hash,
    )
    return Lineage(entries=(*lineage.entries, entry))


def should_stop(reports: Sequence[RoundReport], *, config: RoundsConfig) -> StopReason | None:
    """Why no further round should run: all rounds are done, or the last ``stop_after_rejections`` were all rejected.

    ``stop_after_rejections`` 0 never stops early.
    """
    if len(reports) >= config.rounds:
        return "rounds_done"
    limit = config.stop_after_rejections
    if 0 < limit <= len(reports) and not any(report.accepted for report in reports[-limit:]):
        return "rejections"
    return None
