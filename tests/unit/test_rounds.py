"""Rounds as values: health, decision, stop rule, lineage."""

from dataclasses import replace
from math import nan

import pytest

from visloop.config import GuardConfig, RoundsConfig
from visloop.errors import ConfigError, TrainingError
from visloop.reasoning.rounds import (
    Lineage,
    RoundReport,
    TrainingHealth,
    ValidationMetrics,
    check_health,
    decide_round,
    extend_lineage,
    should_stop,
    start_lineage,
)

BEFORE = ValidationMetrics(questions=400, sampled_accuracy=0.7, greedy_accuracy=0.8, path_score=70.0, malformed_rate=0.02, mean_length=30.0)
AFTER = replace(BEFORE, sampled_accuracy=0.75, path_score=75.0, mean_length=33.0)
HEALTHY = TrainingHealth(
    reward_accuracy=0.8, reward_margin=0.4, chosen_logp_before=-20.0, chosen_logp_after=-22.0, loss_first=0.693, loss_last=0.5
)
M0 = start_lineage(model_hash="m0" * 8, data_hash="d0", config_hash="c0")


def decide(round: int = 1, *, lineage: Lineage = M0, model: str = "m1" * 8, after: ValidationMetrics = AFTER) -> RoundReport:
    return decide_round(
        round=round,
        lineage=lineage,
        model_hash=model,
        data_hash=f"d{round}",
        config_hash="c0",
        counts={"pairs": 300},
        before=BEFORE,
        after=after,
        training=HEALTHY,
        guards=GuardConfig(),
    )


def broken_guards(*, after: ValidationMetrics = AFTER, before: ValidationMetrics = BEFORE, training: TrainingHealth = HEALTHY) -> list[str]:
    return [violation.guard for violation in check_health(before=before, after=after, training=training, guards=GuardConfig())]


def test_a_healthy_round_breaks_no_limit() -> None:
    assert broken_guards() == []


@pytest.mark.parametrize(
    ("training", "after", "guard"),
    [
        ({"reward_accuracy": 0.4}, {}, "reward_accuracy"),
        ({"reward_margin": -0.1}, {}, "reward_margin"),
        ({"chosen_logp_after": -71.0}, {}, "chosen_logp_drop"),
        ({}, {"mean_length": 46.0}, "length_drift"),  # more than half longer
        ({}, {"mean_length": 14.0}, "length_drift"),  # more than half shorter
        ({}, {"malformed_rate": 0.2}, "malformed_rate"),
        ({}, {"sampled_accuracy": 0.68}, "gain"),
        ({"loss_last": nan}, {}, "not_finite"),
        ({"reward_margin": nan}, {}, "not_finite"),  # NaN passes every comparison, so it is asked for by name
        ({}, {"sampled_accuracy": nan}, "not_finite"),
    ],
)
def test_each_limit_is_found_alone(training: dict[str, float], after: dict[str, float], guard: str) -> None:
    assert broken_guards(training=replace(HEALTHY, **training), after=replace(AFTER, **after)) == [guard]


def test_limits_themselves_are_allowed() -> None:
    at_limit = replace(HEALTHY, reward_accuracy=0.5, reward_margin=0.0, chosen_logp_after=-70.0)
    assert broken_guards(training=at_limit, after=replace(AFTER, mean_length=45.0, malformed_rate=0.1, sampled_accuracy=0.7)) == []


def test_a_parent_without_length_cannot_be_compared() -> None:
    assert broken_guards(before=replace(BEFORE, mean_length=0.0)) == ["not_finite"]


def test_a_message_names_value_and_limit() -> None:
    [violation] = check_health(before=BEFORE, after=replace(AFTER, malformed_rate=0.25), training=HEALTHY, guards=GuardConfig())
    assert (violation.value, violation.limit) == (0.25, 0.1)
    assert violation.message == "share of malformed chains is 0.25, over the most allowed, 0.1"


def test_accepted_rounds_extend_the_lineage_and_rejected_ones_do_not() -> None:
    first = decide(1)
    assert first.accepted and first.violations == () and first.parent_hash == M0.head.model_hash
    lineage = extend_lineage(M0, first)
    second = decide(2, lineage=lineage, model="bad" * 6, after=replace(AFTER, sampled_accuracy=0.1))
    assert not second.accepted
    assert extend_lineage(lineage, second) == lineage
    third = decide(3, lineage=lineage, model="m3" * 8)
    lineage = extend_lineage(lineage, third)
    assert [(entry.name, entry.round, entry.parent_hash) for entry in lineage.entries] == [
        ("M_0", 0, None),
        ("M_1", 1, "m0" * 8),
        ("M_2", 3, "m1" * 8),
    ]
    assert lineage.head.data_hash == "d3"


def test_a_round_from_another_parent_or_out_of_order_is_refused() -> None:
    lineage = extend_lineage(M0, decide(1))
    with pytest.raises(TrainingError, match="does not follow M_1"):
        extend_lineage(lineage, decide(2))  # trained from M_0
    with pytest.raises(TrainingError, match="does not follow M_1"):
        extend_lineage(lineage, decide(1, lineage=lineage))  # round 1 again


def test_measurements_on_different_splits_are_refused() -> None:
    with pytest.raises(TrainingError, match="400 questions before and 100 after"):
        decide(after=replace(AFTER, questions=100))
    with pytest.raises(ConfigError):
        decide(0)
    with pytest.raises(TrainingError, match="lineage is empty"):
        decide(lineage=Lineage())


@pytest.mark.parametrize(
    ("accepted", "patience", "reason"),
    [
        ([], 1, None),
        ([True], 1, None),
        ([True, True, True], 1, "rounds_done"),
        ([True, False], 1, "rejections"),
        ([True, False], 2, None),
        ([False, False], 2, "rejections"),
        ([False, True], 2, None),  # not in a row at the end
        ([False, False], 0, None),  # never stop early
    ],
)
def test_stop_rule(accepted: list[bool], patience: int, reason: str | None) -> None:
    reports = [replace(decide(), round=number, accepted=good) for number, good in enumerate(accepted, start=1)]
    assert should_stop(reports, config=RoundsConfig(rounds=3, stop_after_rejections=patience)) == reason
