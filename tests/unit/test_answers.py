"""Rule-based answer comparison."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.answers import compare_answers, normalize_answer, read_boolean, read_letter, read_number


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The answer is: Yes.", "yes"),
        ("  A red   circle! ", "red circle"),
        ("Three", "3"),
        ('"blue"', "blue"),
        ("**4**", "4"),
        ("final answer: the left box", "left box"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert normalize_answer(text) == normal


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing_for_words(text: str) -> None:
    words = " ".join(word for word in text.split() if word.isalnum() and word.lower() not in ("the", "a", "an", "answer"))
    assert normalize_answer(normalize_answer(words)) == normalize_answer(words)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Yes, it is", True),
        ("false", False),
        ("yes and no", None),  # both words
        ("yesterday", None),  # the word only as a part
        ("", None),
    ],
)
def test_boolean(text: str, value: bool | None) -> None:
    assert read_boolean(text) is value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", 1234.0),
        ("-3.5", -3.5),
        ("5%", 5.0),
        ("seven", 7.0),
        ("2 or 3", None),  # two numbers
        ("none", None),
    ],
)
def test_number(text: str, value: float | None) -> None:
    assert read_number(text) == value


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("C. the cat", "C"),
        ("answer: d", "D"),
        ("Cat", None),  # a word that begins with the letter
        ("", None),
    ],
)
def test_letter(text: str, letter: str | None) -> None:
    assert read_letter(text) == letter


@pytest.mark.parametrize(
    ("candidate", "answer", "kind", "verdict"),
    [
        ("Yes.", "yes", "boolean", "correct"),
        ("true", "yes", "boolean", "correct"),
        ("no", "yes", "boolean", "wrong"),
        ("maybe", "yes", "boolean", "unjudged"),
        ("There are four.", "4", "number", "correct"),
        ("5", "4", "number", "wrong"),
        ("4 or 5", "4", "number", "unjudged"),
        ("(B)", "b", "letter", "correct"),
        ("A", "B", "letter", "wrong"),
        ("The Red", "red", "phrase", "correct"),
        ("crimson", "red", "phrase", "unjudged"),
        ("", "", "phrase", "unjudged"),  # nothing equals nothing: no verdict
    ],
)
def test_verdict(candidate: str, answer: str, kind: str, verdict: str) -> None:
    assert compare_answers(candidate, answer, answer_type=kind) == verdict
