"""Chain texts: JSON steps and ``<thoughts>`` blocks."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.errors import ReplyError
from visloop.records.chains import format_chain, format_step, format_thoughts, parse_chain, parse_step
from visloop.records.reasoning import ReasoningStep

words = st.text(alphabet=st.characters(codec="utf-8", categories=("L", "N", "P", "S"), exclude_characters="<>:"), min_size=1, max_size=12)
texts = st.lists(words, min_size=1, max_size=5).map(" ".join)
chains = st.lists(st.tuples(texts, texts), min_size=1, max_size=6).map(
    lambda pairs: tuple(
        ReasoningStep(summary=summary, reasoning=reasoning, action="summary" if index == len(pairs) - 1 else "continue")
        for index, (summary, reasoning) in enumerate(pairs)
    )
)


@given(chains)
def test_steps_survive_json(steps: tuple[ReasoningStep, ...]) -> None:
    assert tuple(parse_step(format_step(step)) for step in steps) == steps


@given(chains, texts)
def test_chain_survives_text(steps: tuple[ReasoningStep, ...], answer: str) -> None:
    parsed = parse_chain(format_chain(steps, answer))
    assert (parsed.steps, parsed.answer, parsed.complete) == (steps, answer, True)


@given(chains, texts, st.data())
def test_a_cut_chain_never_looks_whole(steps: tuple[ReasoningStep, ...], answer: str, data: st.DataObject) -> None:
    whole = format_chain(steps, answer)
    text = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        parsed = parse_chain(text)
    except ReplyError:
        return
    assert parsed.answer is None
    assert parsed.complete == (format_thoughts(steps) in text)


GOOD = '{"summary": "find circle", "reasoning": "x1 y2", "action": "continue"}'


@pytest.mark.parametrize(
    "reply",
    [
        GOOD,
        f"```json\n{GOOD}\n```",  # fenced
        f"Here is the step: {GOOD} I hope it helps.",  # prose around
        GOOD + GOOD,  # a second object: one step per turn, the first counts
        GOOD.replace("x1 y2", "x1\n y2"),  # a raw newline inside a string
    ],
)
def test_readable_variants_of_a_step(reply: str) -> None:
    assert parse_step(reply) == ReasoningStep(summary="find circle", reasoning="x1 y2", action="continue")


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        ("", "no JSON object"),
        ("I think it is red.", "no JSON object"),  # prose only
        (GOOD[:-10], "invalid JSON"),  # cut inside the last string
        (GOOD.replace('"reasoning": "x1 y2", ', ""), "'reasoning'"),  # key missing
        (GOOD.replace('"x1 y2"', '"  "'), "'reasoning'"),  # blank text
        (GOOD.replace('"x1 y2"', "3"), "'reasoning'"),  # not text
        (GOOD.replace('"continue"', '"final_answer"'), "action must be one of"),  # another vocabulary
        (GOOD.replace('"', "'"), "invalid JSON"),  # single quotes
        (json.dumps([1, 2]), "no JSON object"),  # an array of numbers
    ],
)
def test_unreadable_step_is_refused_with_its_reason(reply: str, complaint: str) -> None:
    with pytest.raises(ReplyError, match=complaint):
        parse_step(reply)


@pytest.mark.parametrize(
    ("text", "answer", "complete"),
    [
        ("<thoughts>\na: b\n</thoughts>\n<output>yes</output>", "yes", True),
        ("<thoughts>\na: b\n</thoughts>\n<output>yes", None, True),  # answer cut
        ("<thoughts>\na: b\n</thoughts>\n<output> </output>", None, True),  # blank answer
        ("<thoughts>\na: b\n<output>yes</output>", None, False),  # thoughts never closed
        ("<thoughts>\nx: y\n</thoughts> again <thoughts>\na: b\n</thoughts>\n<output>no</output>", "no", True),  # the last block counts
        ("<thoughts>\na: b\nno colon here\n</thoughts>\n<output>yes</output>", "yes", True),  # a line that is no step is passed over
    ],
)
def test_chain_states(text: str, answer: str | None, complete: bool) -> None:
    parsed = parse_chain(text)
    assert (parsed.answer, parsed.complete) == (answer, complete)
    assert [(step.summary, step.reasoning, step.action) for step in parsed.steps] == [("a", "b", "summary")]


@pytest.mark.parametrize(
    "text", ["", "a: b", "<thoughts></thoughts>", "<thoughts>\nno step\n</thoughts>", "</thoughts><output>yes</output>"]
)
def test_text_without_a_chain_is_refused(text: str) -> None:
    with pytest.raises(ReplyError):
        parse_chain(text)


@pytest.mark.parametrize("text", ["look <thoughts> here", "</thoughts>", "<output>3</output>"])
def test_a_tag_inside_a_step_is_refused(text: str) -> None:
    """A tag in a step would end or reopen the chain when the agents' text is read back."""
    with pytest.raises(ReplyError, match="tag"):
        parse_step(json.dumps({"summary": "look", "reasoning": text, "action": "continue"}))


def test_a_colon_in_the_summary_survives_as_a_dash() -> None:
    step = parse_step(json.dumps({"summary": "Step 1: find: it", "reasoning": "at 3:45", "action": "summary"}))
    assert step.summary == "Step 1 - find - it"
    assert parse_chain(format_chain((step,), "yes")).steps == (step,)
