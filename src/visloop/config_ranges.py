"""Which numbers of the assistant's configuration can be used. A value outside is refused when the configuration is made, with its key:
later it would divide by zero in the middle of a cycle, or be taken for something else without a word.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final

from visloop.config_assistant import (
    AssistantConfig,
    DetectionLoss,
    LearningConfig,
    PaintConfig,
    PlannerConfig,
    PromptTuning,
    ReflectionConfig,
    TasksConfig,
    ToolsConfig,
    VisionConfig,
)
from visloop.config_chat import ChatConfig
from visloop.config_providers import NegativesConfig, SafetyConfig, SearchConfig
from visloop.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from ``least`` to ``most`` (None: no end); ``without`` are ends that do not belong to it."""

    least: float | None = None
    most: float | None = None
    without: tuple[float, ...] = ()

    def holds(self, value: float) -> bool:
        """Whether the number lies in the range; what is not finite lies in none."""
        enough = self.least is None or value >= self.least
        return math.isfinite(value) and enough and (self.most is None or value <= self.most) and value not in self.without

    def describe(self) -> str:
        """What to use, in words."""
        if self.least is None:
            return f"use {self.most:g} or less"
        if self.least not in self.without:
            return f"use {self.least:g} or more" if self.most is None else f"use {self.least:g} to {self.most:g}"
        end = "" if self.most is None else f" and {'less than' if self.most in self.without else 'at most'} {self.most:g}"
        return f"use more than {self.least:g}{end}"


_COUNT, _COUNT_OR_NONE = Range(1), Range(0)
_SHARE = Range(0, 1)
_POSITIVE = Range(0, without=(0,))
_TOP_P = Range(0, 1, without=(0,))
_REPLIES: Final = {"temperature": Range(0), "top_p": _TOP_P, "max_new_tokens": _COUNT, "max_tries": _COUNT}

RANGES: Final[Mapping[type, Mapping[str, Range]]] = {
    VisionConfig: {"batch_size": _COUNT, "threshold": _SHARE, "overlap": _SHARE},
    PromptTuning: {
        **dict.fromkeys(("tokens", "prompts", "instances", "steps", "max_prompts", "ensemble", "batch_size"), _COUNT),
        "validation": _COUNT,  # without any, nothing would decide: learning.validate=false is the switch for that
        **dict.fromkeys(("negatives", "decay_every"), _COUNT_OR_NONE),
        **dict.fromkeys(("learning_rate", "temperature"), _POSITIVE),
        **dict.fromkeys(("weight_decay", "init_std", "gradient_clip", "known_at"), Range(0)),
        **dict.fromkeys(("min_validation", "max_base_drop", "label_smoothing", "min_overlap"), _SHARE),
        "min_similarity": Range(-1, 1),
    },
    DetectionLoss: {
        "alpha": _SHARE,
        **dict.fromkeys(("gamma", "class_weight", "box_weight", "overlap_weight", "class_cost", "box_cost", "overlap_cost"), Range(0)),
        "texts": _COUNT_OR_NONE,
    },
    PaintConfig: {"size": _COUNT_OR_NONE, "steps": _COUNT, "guidance": Range(0)},
    ToolsConfig: {"max_image_side": _COUNT},
    PlannerConfig: {
        **_REPLIES,
        **dict.fromkeys(("demonstrations", "failures_from"), _COUNT_OR_NONE),
        "candidates": _COUNT,
        **dict.fromkeys(("min_confidence", "min_lm_confidence"), _SHARE),
    },
    ReflectionConfig: {**_REPLIES, "max_unreadable_rate": _SHARE, "candidates": _COUNT, "doubt": Range(0, 1, without=(0, 1))},
    LearningConfig: {"budget": _COUNT_OR_NONE, "tries": _COUNT, "min_score": Range(most=0), "max_replay_drop": _SHARE},
    SearchConfig: {
        **dict.fromkeys(("page_size", "max_bytes", "min_side"), _COUNT),
        **dict.fromkeys(("timeout_seconds", "deadline_seconds"), _POSITIVE),
        "max_redirects": _COUNT_OR_NONE,
        "max_aspect": Range(1),
    },
    SafetyConfig: {"threshold": Range(0, 1, without=(0,)), "batch_size": _COUNT},
    NegativesConfig: {**_REPLIES, "confusable": _COUNT},
    TasksConfig: {
        **dict.fromkeys(("stream", "test", "batch"), _COUNT),
        **dict.fromkeys(("base", "replay", "held_out", "cycles", "only", "back_to"), _COUNT_OR_NONE),
        **dict.fromkeys(("novel_share", "new_wording_share"), _SHARE),
    },
    ChatConfig: {
        **dict.fromkeys(("batch_size", "max_image_pixels", "concurrency"), _COUNT),
        "timeout_seconds": _POSITIVE,
        "max_retries": _COUNT_OR_NONE,
        **dict.fromkeys(("price_prompt", "price_new"), Range(0)),
    },
}
"""The range of every number, by its place in the schema; of a table of numbers (``demonstrations``) each entry's."""


def check_assistant(config: AssistantConfig) -> None:
    """Refuse numbers that cannot be used.

    Raises:
        ConfigError: every one of them with its key, its value and the range.
    """
    check_numbers(config, key="assistant")


def check_numbers(part: object, *, key: str) -> None:
    """The same for a part of the configuration; ``key`` is its place.

    Raises:
        ConfigError: as ``check_assistant``.
    """
    wrong = [f"{name} is {value}, {range_.describe()}" for name, value, range_ in _list_numbers(part, key) if not range_.holds(value)]
    if wrong:
        raise ConfigError(f"out of range: {'; '.join(wrong)}")


def _list_numbers(part: Any, key: str) -> Iterator[tuple[str, float, Range]]:
    """Key, value and range of every number of a part, in the order of the schema. None is no number."""
    for field in fields(part):
        value, name = getattr(part, field.name), f"{key}.{field.name}"
        range_ = RANGES.get(type(part), {}).get(field.name)
        entries = value if isinstance(value, Mapping) else {"": value}
        for entry, found in entries.items():
            place = f"{name}.{entry}" if entry else name
            if is_dataclass(found):
                yield from _list_numbers(found, place)
            elif range_ is not None and found is not None:
                yield place, found, range_
