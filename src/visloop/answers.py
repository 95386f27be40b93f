"""Normal forms of short answers and rule-based comparison (letter, number, yes/no, phrase)."""

import re
import string
from typing import Literal

RuleVerdict = Literal["correct", "wrong", "unjudged"]

_TRUE, _FALSE = frozenset({"yes", "true"}), frozenset({"no", "false"})
_NUMBER_WORDS = {
    word: str(value)
    for value, word in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
    )
}
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_LEAD = re.compile(r"^\s*(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:)\s*", re.IGNORECASE)
_LETTER = re.compile(r"^\(?([A-Za-z])(?:[).:]|\s*$)")
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?%?")


def normalize_answer(text: str) -> str:
    """Lower-case text without articles, end punctuation, doubled spaces and a leading "the answer is"; number words as digits."""
    text = _LEAD.sub("", text.strip()).lower().strip(string.whitespace + ".,;:!?\"'`*")
    text = _ARTICLES.sub(" ", text)
    return " ".join(_NUMBER_WORDS.get(word, word) for word in text.split())


def read_boolean(text: str) -> bool | None:
    """True or False when exactly one of yes/true and no/false occurs as a word, else None."""
    words = set(re.findall(r"[a-z]+", text.lower()))
    truth, falsehood = bool(words & _TRUE), bool(words & _FALSE)
    return truth if truth != falsehood else None


def read_number(text: str) -> float | None:
    """The only number in the text (thousands separators dropped, "5%" is 5.0), else None."""
    found = _NUMBER.findall(normalize_answer(text))
    return float(found[0].replace(",", "").rstrip("%")) if len(found) == 1 else None


def read_letter(text: str) -> str | None:
    """The option letter of "B", "(b)", "B." or "B: text", upper-case, else None."""
    match = _LETTER.match(_LEAD.sub("", text.strip()))
    return match.group(1).upper() if match else None


def compare_answers(candidate: str, answer: str, *, answer_type: str) -> RuleVerdict:
    """Rule verdict on ``candidate`` against the ground truth ``answer``.

    ``correct`` and ``wrong`` only where the rule is sure: both sides are read as the answer type asks and agree or differ,
    or a phrase is equal after normalising. A phrase that differs, or a reply of another type, is ``unjudged``: a judge's case.

    Args:
        answer_type: ``boolean``, ``number``, ``letter`` or ``phrase``.
    """
    if normalize_answer(candidate) == normalize_answer(answer) != "":
        return "correct"
    readers = {"boolean": read_boolean, "number": read_number, "letter": read_letter}
    if answer_type not in readers:
        return "unjudged"
    left, right = readers[answer_type](candidate), readers[answer_type](answer)
    if left is None or right is None:
        return "unjudged"
    return "correct" if left == right else "wrong"
