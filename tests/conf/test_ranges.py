"""Numbers of the assistant that cannot be used are refused when the configuration is made, with key, value and range."""

import re
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import pytest

from flows._entry import compose_config, from_plain, to_plain
from visloop.assistant.material import plan_tuning
from visloop.config import ChatConfig, Config
from visloop.config_assistant import PromptTuning
from visloop.config_ranges import RANGES, Range
from visloop.errors import ConfigError

FREE = {"PaintConfig.seed"}
"""Numbers of which any can be used."""

BAD = [
    *[(f"tools.tuning.{key}", value, "1 or more") for key in ("instances", "validation") for value in (0, -3)],
    *[(f"tools.tuning.{key}", 0, "1 or more") for key in ("prompts", "tokens", "steps", "max_prompts", "ensemble", "batch_size")],
    ("tools.tuning.negatives", -5, "0 or more"),
    ("tools.tuning.temperature", 0.0, "more than 0"),
    ("tools.tuning.temperature", -0.1, "more than 0"),
    ("tools.tuning.learning_rate", 0.0, "more than 0"),
    ("tools.tuning.learning_rate", float("inf"), "more than 0"),
    ("tools.tuning.min_validation", 1.5, "0 to 1"),
    ("tools.tuning.max_base_drop", -0.1, "0 to 1"),
    ("tools.tuning.known_at", -0.1, "0 or more"),
    ("tools.tuning.min_similarity", -2.0, "-1 to 1"),
    ("tools.clip.batch_size", 0, "1 or more"),
    ("tools.detector.threshold", 1.01, "0 to 1"),
    ("tools.max_image_side", 0, "1 or more"),
    ("tools.detection.alpha", 2.0, "0 to 1"),
    ("tools.paint.steps", 0, "1 or more"),
    ("planner.demonstrations.vqa", -1, "0 or more"),
    ("planner.failures_from", -3, "0 or more"),
    ("planner.max_tries", 0, "1 or more"),
    ("planner.top_p", 0.0, "more than 0 and at most 1"),
    ("planner.candidates", 0, "1 or more"),
    ("planner.min_confidence", 1.1, "0 to 1"),
    ("reflection.max_unreadable_rate", -1.0, "0 to 1"),
    ("reflection.max_unreadable_rate", float("nan"), "0 to 1"),
    ("reflection.doubt", 1.0, "more than 0 and less than 1"),
    ("learning.budget", -1, "0 or more"),
    ("learning.tries", 0, "1 or more"),
    ("learning.min_score", 1, "0 or less"),
    ("learning.max_replay_drop", 1.5, "0 to 1"),
    ("learning.max_replay_drop", -0.02, "0 to 1"),
    ("safety.threshold", 0.0, "more than 0 and at most 1"),
    ("safety.batch_size", 0, "1 or more"),
    ("direct.batch_size", 0, "1 or more"),
    ("direct.timeout_seconds", 0.0, "more than 0"),
    ("tasks.novel_share", 1.1, "0 to 1"),
    ("tasks.new_wording_share", -0.1, "0 to 1"),
    *[(f"tasks.{key}", 0, "1 or more") for key in ("stream", "test", "batch")],
    *[(f"tasks.{key}", -1, "0 or more") for key in ("base", "replay", "held_out", "cycles", "only", "back_to")],
]


@cache
def _default() -> Config:
    return compose_config()


@pytest.mark.parametrize(("key", "value", "range_"), BAD, ids=lambda item: str(item))
def test_a_number_out_of_range_is_refused(key: str, value: float, range_: str) -> None:
    plain = to_plain(_default())
    *parents, last = ("assistant", *key.split("."))
    part: dict[str, Any] = plain
    for name in parents:
        part = part[name]
    assert last in part
    part[last] = value
    with pytest.raises(ConfigError, match=rf"^out of range: assistant\.{re.escape(key)} is {value}, use {re.escape(range_)}$"):
        from_plain(plain)


def test_overrides_of_the_command_line_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["assistant.tools.tuning.instances=0", "assistant.tools.tuning.validation=0", "assistant.learning.tries=2"])
    keys = re.findall(r"assistant\.([a-z_.]+) is 0", str(caught.value))
    assert keys == ["tools.tuning.instances", "tools.tuning.validation"]


def test_settings_of_single_tools_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"assistant\.tools\.tunings\.REPLACE\.steps is 0, use 1 or more"):
        compose_config(["tools@assistant.tools=clova_paper", "assistant.tools.tunings.REPLACE.steps=0"])


@pytest.mark.parametrize(("key", "value"), [("price_prompt", -0.1), ("price_new", float("nan")), ("price_new", float("inf"))])
def test_a_price_is_a_number_of_dollars(key: str, value: float) -> None:
    plain = to_plain(_default())
    plain["llm"][key] = value
    with pytest.raises(ConfigError, match=rf"{key} of model \S+ is {value}; use USD per million tokens, 0 or more"):
        from_plain(plain)


def test_a_price_of_one_side_is_a_price_and_none_is_unknown() -> None:
    assert ChatConfig().price_tokens(prompt=10, new=10) is None
    assert ChatConfig(price_new=2.0).price_tokens(prompt=10, new=500_000) == (0.0, 1.0)
    assert ChatConfig(price_prompt=0.5, price_new=2.0).price_tokens(prompt=3_000_000, new=0) == (1.5, 0.0)
    served = compose_config(["model@llm=served_llm", "llm.price_prompt=0.5"]).llm
    assert (served.price_prompt, served.price_new) == (0.5, 0.0)


def test_the_ends_of_ranges_can_be_used() -> None:
    allowed = ["tools.tuning.known_at=1.1", "tools.tuning.min_validation=0", "tools.tuning.instances=1", "tools.tuning.validation=1"]
    allowed += ["planner.failures_from=0", "learning.max_replay_drop=1", "learning.budget=0", "tasks.cycles=0", "tasks.only=0"]
    compose_config([f"assistant.{override}" for override in allowed])


def test_a_plan_of_impossible_settings_is_refused() -> None:
    for tuning in (PromptTuning(instances=0, validation=0), PromptTuning(instances=-3, validation=4), PromptTuning(validation=0)):
        with pytest.raises(ConfigError, match=r"^out of range: tuning\.(instances|validation) is -?\d, use 1 or more"):
            plan_tuning(tuning, validate=True)
    assert 0 < plan_tuning(PromptTuning(instances=1, validation=1), validate=True).validation_share < 1


def _list_numbers(part: Any) -> set[str]:
    """The numbers of a part of the schema and of its parts: ``Class.field``."""
    found: set[str] = set()
    for field in fields(part):
        value = getattr(part, field.name)
        if is_dataclass(value):
            found |= _list_numbers(value)
        elif any(kind in str(field.type) for kind in ("int", "float")):
            found.add(f"{type(part).__name__}.{field.name}")
    return found


def test_every_number_has_a_range_and_every_range_its_number() -> None:
    ranged = {f"{kind.__name__}.{name}" for kind, names in RANGES.items() for name in names}
    assert _list_numbers(Config().assistant) == ranged | FREE


@pytest.mark.parametrize(
    ("range_", "words", "inside", "outside"),
    [
        (Range(1), "use 1 or more", (1, 9), (0, float("inf"))),
        (Range(most=0), "use 0 or less", (0, -9), (1,)),
        (Range(0, 1), "use 0 to 1", (0, 1), (-0.1, 1.1, float("nan"))),
        (Range(0, 1, without=(0, 1)), "use more than 0 and less than 1", (0.5,), (0, 1)),
    ],
)
def test_ranges_in_words(range_: Range, words: str, inside: tuple[float, ...], outside: tuple[float, ...]) -> None:
    assert range_.describe() == words
    assert all(range_.holds(value) for value in inside) and not any(range_.holds(value) for value in outside)


def test_tasks_that_nobody_draws_are_refused_with_what_exists() -> None:
    with pytest.raises(ConfigError, match=r"'kitchen', expected one of \[.*workshop.*\].*assistant\.tasks\.name"):
        compose_config(["assistant.tasks.name=kitchen"])
    assert to_plain(_default())["assistant"]["tasks"]["name"] == "workshop", "as the hash of finished task sets has it"


def test_safety_that_names_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"assistant\.safety\.unsafe_labels is empty"):
        compose_config(["assistant.safety.classifier=some/model"])
    with pytest.raises(ConfigError, match=r"assistant\.safety\.words: .*names nothing"):
        compose_config(["assistant.safety.words=[gun,'_ ']"])
    kept = compose_config(["assistant.safety.words=[Gun]", "assistant.safety.threshold=1"])
    assert from_plain(to_plain(kept)) == kept and kept.assistant.safety.words == ["Gun"]
