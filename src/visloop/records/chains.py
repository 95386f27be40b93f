"""Text forms of a reasoning chain: one JSON object per step for the generator, ``<thoughts>`` text for the agents.

Insight-V 3.2 (progressive generation) and its released inference code: one line per step, "summary: reasoning",
wrapped in ``<thoughts>``. The reasoner's own answer R_ans follows in ``<output>``.
"""

import json
import re
from dataclasses import dataclass
from typing import get_args

from visloop.errors import ReplyError
from visloop.records.reasoning import Action, ReasoningStep

THOUGHTS_OPEN, THOUGHTS_CLOSE = "<thoughts>", "</thoughts>"
OUTPUT_OPEN, OUTPUT_CLOSE = "<output>", "</output>"
CHAIN_TOKENS = (THOUGHTS_OPEN, THOUGHTS_CLOSE, OUTPUT_OPEN, OUTPUT_CLOSE)

_ACTIONS = get_args(Action)
_STEP_KEYS = ("summary", "reasoning", "action")


def format_step(step: ReasoningStep) -> str:
    """The JSON object of one step, keys in the order summary, reasoning, action."""
    return json.dumps(
        {"summary": step.summary, "reasoning": step.reasoning, "action": step.action}, ensure_ascii=False, separators=(",", ":")
    )


def parse_step(reply: str) -> ReasoningStep:
    """Read one step from a reply that must hold one JSON object; text around the object (fences, prose) is passed over.

    The step must survive as a line of a chain: white space becomes single spaces, and a colon in the summary, which would be
    read back as its end, becomes a dash.

    Raises:
        ReplyError: no complete JSON object, a missing or empty key, an unknown action, or a chain's tag inside a text.
    """
    start = reply.find("{")
    if start < 0:
        raise ReplyError(f"no JSON object in the reply {reply[:80]!r}; expected keys {', '.join(_STEP_KEYS)}")
    try:
        value, _ = json.JSONDecoder(strict=False).raw_decode(reply, start)
    except json.JSONDecodeError as error:
        raise ReplyError(f"invalid JSON ({error.msg} at character {error.pos}) in the reply {reply[:80]!r}") from error
    fields = {}
    for key in _STEP_KEYS:
        text = value.get(key)
        if not isinstance(text, str) or not text.strip():
            raise ReplyError(f"key {key!r} must hold non-empty text, got {text!r}")
        tag = next((token for token in CHAIN_TOKENS if token in text), None)
        if tag is not None:
            raise ReplyError(f"key {key!r} holds the tag {tag}, which only a whole chain may have: {text[:80]!r}")
        fields[key] = re.sub(r"\s+", " ", text).strip()
    fields["summary"] = re.sub(r"\s*:\s*", " - ", fields["summary"].strip(": ")) or "-"
    if fields["action"] not in _ACTIONS:
        raise ReplyError(f"action must be one of {', '.join(_ACTIONS)}, got {fields['action']!r}")
    return ReasoningStep(summary=fields["summary"], reasoning=fields["reasoning"], action=fields["action"])  # type: ignore[arg-type]


def format_thoughts(steps: tuple[ReasoningStep, ...]) -> str:
    """The steps as text inside ``<thoughts>``: one line per step, "summary: reasoning"; actions are dropped."""
    lines = [f"{step.summary}: {step.reasoning}" for step in steps]
    return "\n".join([THOUGHTS_OPEN, *lines, THOUGHTS_CLOSE])


def format_chain(steps: tuple[ReasoningStep, ...], answer: str) -> str:
    """What the reasoning agent is trained to write: its thoughts, then its own answer."""
    return f"{format_thoughts(steps)}\n{OUTPUT_OPEN}{answer}{OUTPUT_CLOSE}"


@dataclass(frozen=True, slots=True)
class ParsedChain:
    """A chain read back. ``complete`` says that ``</thoughts>`` was there; ``answer`` is None without a closed ``<output>``."""

    steps: tuple[ReasoningStep, ...]
    answer: str | None
    complete: bool


def parse_chain(text: str) -> ParsedChain:
    """Read the last ``<thoughts>`` block and the ``<output>`` after it.

    Raises:
        ReplyError: no ``<thoughts>`` tag, or no readable step line in it.
    """
    start = text.rfind(THOUGHTS_OPEN)
    if start < 0:
        raise ReplyError(f"no {THOUGHTS_OPEN} in the reply {text[:80]!r}")
    body, closed, rest = text[start + len(THOUGHTS_OPEN) :].partition(THOUGHTS_CLOSE)
    pairs = [line.split(":", 1) for line in body.split("\n") if line.strip()]
    pairs = [[part.strip() for part in pair] for pair in pairs if len(pair) == 2]
    pairs = [pair for pair in pairs if all(pair)]
    if not pairs:
        raise ReplyError(f"no step line 'summary: reasoning' in the chain {body[:80]!r}")
    last = len(pairs) - 1
    steps = tuple(
        ReasoningStep(summary=summary, reasoning=reasoning, action="summary" if index == last else "continue")
        for index, (summary, reasoning) in enumerate(pairs)
    )
    answer = None
    if closed and OUTPUT_OPEN in rest:
        inner, output_closed, _ = rest.split(OUTPUT_OPEN, 1)[1].partition(OUTPUT_CLOSE)
        if output_closed and inner.strip():
            answer = inner.strip()
    return ParsedChain(steps, answer, bool(closed))
