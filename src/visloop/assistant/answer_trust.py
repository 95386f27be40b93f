"""How sure a question-answering tool is of the answer that it should have given.

A tool that picks the likeliest of the words that it knows is sure of its answer also where the right word is none of them: its own
confidence does not tell. So it is asked about the answer that would have made the run right, of the same picture. What it says to that does
not count, only how sure it is of it: a tool that knows the word says yes or no and means it, one that does not know it guesses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from visloop.answers import normalize_answer, read_boolean, read_number
from visloop.assistant.cases import ANSWERED_LATER, Case
from visloop.assistant.repairs import SOME_OTHER_ANSWER, StepRepairs
from visloop.tools.base import ToolCall, ToolRunner


def ask_about_answers(cases: Sequence[Case], repairs: Sequence[Mapping[int, StepRepairs]], *, tools: ToolRunner) -> list[dict[int, float]]:
    """For each case, its steps that one other word as their answer repairs, with the confidence (0-1) of the tool when it is asked about
    that word. Steps that several words repair are left out, and so are those whose tool cannot be asked or gives no confidence."""
    asked = [
        (index, step, call)
        for index, (case, found) in enumerate(zip(cases, repairs, strict=True))
        for step, entry in found.items()
        if (call := _make_question(case, entry)) is not None
    ]
    results = tools.run(ANSWERED_LATER, [call for _, _, call in asked]) if asked else []
    sure: list[dict[int, float]] = [{} for _ in cases]
    for (index, step, _), result in zip(asked, results, strict=True):
        if result.error is None and result.confidence is not None:
            sure[index][step] = result.confidence
    return sure


def _make_question(case: Case, found: StepRepairs) -> ToolCall | None:
    """The step's call with the question whether it is the answer that repairs it; None where that is not one word of the picture."""
    executed = case.execution.steps[found.step - 1]
    words = {normalize_answer(value) for value in found.values if isinstance(value, str) and value != SOME_OTHER_ANSWER}
    if executed.call is None or executed.call.tool != ANSWERED_LATER or len(words) != 1:
        return None
    [word] = words
    if not word or read_boolean(word) is not None or read_number(word) is not None:
        return None
    return replace(executed.call, arguments={**executed.call.arguments, "question": f"Is it {word}?"})
