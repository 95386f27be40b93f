"""Reading model replies: each unreadable variant is named, none gets a default value."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fixtures.scripted_chat import broken, cut, stop
from visloop.chat.base import ChatReply
from visloop.reasoning.replies import ReadScore, read_answer, read_judgement, read_scores


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        (stop("yes"), "yes"),
        (stop("  the\n red one "), "the red one"),
        (stop('{"answer": "B"}'), "B"),
        (stop('```json\n{"answer": 4}\n```'), "4"),  # fenced, a number
        (stop("<output>yes</output>"), "yes"),
        (cut('{"answer": "B"} and then'), "B"),  # cut after the answer was complete
        (cut("24"), None),  # cut plain text may be the beginning of 24.5
        (cut('{"answer": "2'), None),  # cut inside the object
        (stop('{"answer": true}'), None),  # JSON's own true is no text of an answer
        (stop('{"reply": "B"}'), None),  # another key
        (stop("<output>yes"), None),  # never closed
        (stop(""), None),
        (stop(" \n"), None),
        (broken(), None),
    ],
)
def test_final_answer(reply: ChatReply, answer: str | None) -> None:
    assert read_answer(reply) == answer


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("yes", True),
        ("No.", False),
        ("[1]", True),
        ("0", False),
        ('{"same": false}', False),
        ("Yes, they mean the same.", True),
        ("no - the given answer names two companies", False),
        ("correct", True),
        ("They are not the same", None),  # a sentence is not searched for words
        ("yes or no?", None),  # both
        ("1/0", None),
        ('{"same": true, "sure": false}', None),  # two values
        ('{"same": ', None),  # cut
        ("", None),
        ("10", None),  # begins with 1, but is another number
    ],
)
def test_judgement(text: str, same: bool | None) -> None:
    assert read_judgement(text) is same


FULL = '[{"id": 1, "score": 85, "error": 0}, {"id": 2, "score": 40, "error": 3}]'
BOTH = {1: ReadScore(85.0, None), 2: ReadScore(40.0, 3)}
FIRST = {1: ReadScore(85.0, None)}


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        (FULL, BOTH),
        (f"```json\n{FULL}\n```", BOTH),  # fenced
        (f"Here are the scores: {FULL} Best regards", BOTH),  # prose around
        (FULL.replace("85", '"85"').replace('"id": 2', '"id": "2"'), BOTH),  # numbers as strings
        (FULL.replace("}", ",}").replace("]", ",]"), BOTH),  # trailing commas
        ('{"scores": ' + FULL + "}", BOTH),  # wrapped in an object
        (FULL[1:-1], BOTH),  # no brackets
        (FULL.replace('"error": 0', '"error": null'), BOTH),  # no error as null
        (FULL.replace(', "error": 0', ""), BOTH),  # no error by leaving the key out
        (FULL[:-8], FIRST),  # cut: whole objects are kept
        ('{"scores": ' + FULL[:-8], FIRST),  # cut inside a wrapper
        (FULL.replace("40", "0"), FIRST),  # under the range
        (FULL.replace("40", "101"), FIRST),  # over the range
        (FULL.replace("40", '"high"'), FIRST),  # no number
        (FULL.replace("40", "NaN"), FIRST),  # not a number in disguise
        (FULL.replace("40", "true"), FIRST),  # a boolean is no score
        (FULL.replace('"id": 2', '"id": 3'), FIRST),  # an id that was not asked
        (FULL.replace('"id": 2', '"id": 1.5'), FIRST),  # no whole id
        (FULL.replace('"id": 2', '"id": 1'), {}),  # repeated: which one holds is unknown, so both are refused
        ("", {}),
        ("All attempts are excellent: 95 each.", {}),  # no objects
    ],
)
def test_scores(text: str, scores: dict[int, ReadScore]) -> None:
    assert read_scores(text, step_counts={1: 4, 2: 4}) == scores


@pytest.mark.parametrize(("error", "step"), [(1, 1), (2, 2), (3, 3), (4, None), (-1, None), (1.5, None), ("none", None), ("2", 2)])
def test_error_step_must_be_a_step_or_the_missing_one_after_the_last(error: object, step: int | None) -> None:
    text = json.dumps([{"id": 1, "score": 50, "error": error}])
    assert read_scores(text, step_counts={1: 2}) == {1: ReadScore(50.0, step)}


@given(st.dictionaries(st.integers(1, 9), st.tuples(st.integers(1, 100), st.integers(0, 5)), max_size=9), st.data())
def test_what_is_written_is_read_and_a_cut_only_loses(entries: dict[int, tuple[int, int]], data: st.DataObject) -> None:
    text = json.dumps([{"id": number, "score": score, "error": error} for number, (score, error) in entries.items()])
    counts = dict.fromkeys(range(1, 10), 5)
    whole = read_scores(text, step_counts=counts)
    assert whole == {number: ReadScore(float(score), error or None) for number, (score, error) in entries.items()}
    part = read_scores(text[: data.draw(st.integers(0, len(text)))], step_counts=counts)
    assert part.items() <= whole.items()


@given(st.text(max_size=80))
def test_no_text_breaks_the_readers(text: str) -> None:
    assert all(1 <= score.score <= 100 for score in read_scores(text, step_counts={1: 1}).values())
    assert read_judgement(text) in (True, False, None)
    answer = read_answer(stop(text))
    assert answer is None or answer.strip()
