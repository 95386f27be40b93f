"""Rules for answers in the reply's own words: MMMU's open questions, ChartQA and MathVista."""

import re
from collections.abc import Sequence
from typing import Literal

from visloop.evaluation.benchmarks.choices import list_letters

MathVistaKind = Literal["text", "integer", "float", "list"]

_COMMA_NUMBER = re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b")
_SCIENTIFIC = re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+")
_PLAIN_NUMBER = re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])")
_KEY_WORDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = frozenset(":,.!?;'")
_NUMBER = re.compile(r"-?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_AFTER_ANSWER = re.compile(r"answer\s*(?:is|:)\s*", re.IGNORECASE)


def _read_float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def normalize_mmmu(text: str) -> list[str | float]:
    """A number rounded to two decimals, else lower-case text; one character is padded so that it matches only as a word."""
    text = text.strip()
    number = _read_float(text.replace(",", ""))
    if number is not None:
        return [round(number, 2)]
    lowered = text.lower()
    return [f" {lowered}", f"{lowered} "] if len(lowered) == 1 else [lowered]


def parse_mmmu_open(reply: str) -> set[str | float]:
    """Key parts of a free reply and the numbers in them (MMMU's own rule).

    A key part is what follows a word such as "is" or "answer" in a line, the shortest one; in the last line also what
    follows "=". Without any, the whole reply counts.
    """
    text = reply.strip().strip(".").lower()
    # the rule also splits sentences at a full stop before a capital, which the lower-case text no longer has
    lines = text.split("\n")
    keys: list[str] = []
    for index, line in enumerate(lines):
        marks = (*_KEY_WORDS, "=") if index == len(lines) - 1 else _KEY_WORDS
        tails = [line.split(mark)[-1].strip() for mark in marks if mark in line]
        shortest = ""
        for tail in tails:
            if not shortest or len(tail) < len(shortest):
                shortest = tail
        if shortest and shortest not in _TRIVIAL:
            keys.append(shortest)
    keys = keys or [text]
    numbers = [number for key in keys for rule in (_COMMA_NUMBER, _SCIENTIFIC, _PLAIN_NUMBER) for number in rule.findall(key)]
    return {value for part in [*keys, *numbers] for value in normalize_mmmu(part)}


def match_mmmu_open(reply: str, *, answers: Sequence[str]) -> bool:
    """MMMU open question: a number of the reply equals a gold number, or a gold text stands in a key part of the reply.

    The parsed reply is compared value by value; turning it into one string first, as one kit does, loses "24.5".
    """
    gold = [value for answer in answers for value in normalize_mmmu(answer)]
    texts = [value for value in gold if isinstance(value, str) and value]
    for value in parse_mmmu_open(reply):
        if isinstance(value, str):
            if any(text in value for text in texts):
                return True
        elif value in gold:
            return True
    return False


def match_chartqa(reply: str, *, answer: str, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed accuracy: numbers within 5 % of the gold ("5%" reads as 0.05), else equal text without case.

    A gold 0 has no 5 % and is compared as text.
    """
    predicted, gold = _read_chart_number(reply), _read_chart_number(answer)
    if predicted is not None and gold:
        return abs(predicted - gold) / abs(gold) <= tolerance
    return reply.strip().lower() == answer.strip().lower()


def _read_chart_number(text: str) -> float | None:
    text = text.strip()
    if text.endswith("%"):
        number = _read_float(text.rstrip("%"))
        return None if number is None else number / 100.0
    return _read_float(text)


def measure_edits(first: str, second: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of one character."""
    if len(first) < len(second):
        first, second = second, first
    row = list(range(len(second) + 1))
    for index, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for place, right in enumerate(second, start=1):
            diagonal, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, diagonal + (left != right))
    return row[-1]


def extract_mathvista(reply: str, *, kind: MathVistaKind, choices: Sequence[str]) -> str | None:
    """MathVista's answer in a reply by rule alone, for work without a judge; None where no rule is sure.

    Shortcuts of the benchmark first (the reply *is* an option, an integer, a float, or quotes its answer); then the text
    after the last "answer is": an option's letter or its only text, the last number, the last bracketed list.
    """
    text = reply.strip()
    if not text:
        return None
    if choices and text in choices:
        return text
    if kind in ("integer", "float") and _read_float(text) is not None:
        return text
    quoted = re.search(r'answer is "(.*)"\.?', text, re.IGNORECASE)
    if quoted:
        return quoted.group(1)
    tail = _AFTER_ANSWER.split(text)[-1].strip()
    if choices:
        letter = re.search(r"\(([A-Za-z])\)", tail) or re.match(r"([A-Z])(?:[.:)]|$)", tail)
        if letter and letter.group(1).upper() in list_letters(choices):
            return letter.group(1).upper()
        named = [choice for choice in choices if re.search(rf"(?<!\w){re.escape(choice.lower())}(?!\w)", tail.lower())]
        return named[0] if len(named) == 1 else None
    if kind == "list":
        lists = re.findall(r"\[[^\[\]]*\]", tail)
        return lists[-1] if lists else None
    if kind in ("integer", "float"):
        numbers = _NUMBER.findall(tail)
        return numbers[-1].replace(",", "") if numbers else None
    return tail.rstrip(".") or None


def normalize_mathvista(extraction: str, *, kind: MathVistaKind, choices: Sequence[str], precision: int | None) -> str | None:
    """The extracted text in the gold answer's form: an option's text (by letter, else the nearest by edit distance), an
    integer, a float of ``precision`` decimals; None where it is no number."""
    text = extraction.strip()
    if choices:
        letter = re.search(r"\(([a-zA-Z])\)", text)
        name = letter.group(1).upper() if letter else text
        letters = list_letters(choices)
        if name in letters:
            return choices[letters.index(name)]
        return min(choices, key=lambda choice: measure_edits(text, choice))
    if kind in ("integer", "float"):
        number = _read_float(text)
        if number is None or number != number or number in (float("inf"), float("-inf")):
            return None
        return str(int(number)) if kind == "integer" else str(round(number, precision or 0))
    return text


def match_mathvista(extraction: str, *, answer: str, kind: MathVistaKind, choices: Sequence[str], precision: int | None) -> bool:
    """MathVista: the normalised extraction equals the gold answer as text."""
    normal = normalize_mathvista(extraction, kind=kind, choices=choices, precision=precision)
    return normal is not None and normal.strip() == answer.strip()
