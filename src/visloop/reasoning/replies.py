"""Reading what models reply: final answers, yes/no judgements, path scores. Nothing unreadable gets a default value."""

import json
import re
from dataclasses import dataclass
from typing import Any

from visloop.chat.base import ChatReply
from visloop.records.chains import OUTPUT_CLOSE, OUTPUT_OPEN

LOWEST_SCORE, HIGHEST_SCORE = 1.0, 100.0

_FENCE = re.compile(r"^```[a-zA-Z]*\s*|\s*```$")
_TRAILING_COMMA = re.compile(r",\s*}")
_FLAT_OBJECT = re.compile(r"\{[^{}]*\}")
_SAME = frozenset({"1", "yes", "true", "same", "correct"})
_DIFFERENT = frozenset({"0", "no", "false", "different", "wrong", "incorrect"})
_LEADING = re.compile(r"^(yes|no|true|false|1|0)\b(?!\s*(?:or\b|/))")
_DECODER = json.JSONDecoder(strict=False)


def _unfence(text: str) -> str:
    return _FENCE.sub("", text.strip()).strip()


def read_answer(reply: ChatReply) -> str | None:
    """The final answer in a reply: a JSON object's ``answer``, the text in ``<output>``, or the whole text on one line.

    None where there is no answer: a backend error, an empty reply, or plain text that the token budget cut ("24" may be the
    beginning of "24.5").
    """
    if reply.finish == "error":
        return None
    text = _unfence(reply.text)
    if text.startswith("{"):
        try:
            value, _ = _DECODER.raw_decode(text)
        except json.JSONDecodeError:
            return None
        answer = value.get("answer")
        if isinstance(answer, bool) or not isinstance(answer, str | int | float):
            return None
        return " ".join(str(answer).split()) or None
    if OUTPUT_OPEN in text:
        inner, closed, _ = text.rsplit(OUTPUT_OPEN, 1)[1].partition(OUTPUT_CLOSE)
        return (" ".join(inner.split()) or None) if closed else None
    return None if reply.finish == "length" else (" ".join(text.split()) or None)


def read_judgement(text: str) -> bool | None:
    """True for "the same answer", False for "another answer", None when the reply does not say exactly one of them.

    Read are a lone word or digit (``yes``, ``[1]``, ``different``), a JSON object with one boolean-like value, and a
    sentence that begins with yes/no. Words inside a sentence are not searched: "not the same" holds "same".
    """
    text = _unfence(text).lower()
    if text.startswith("{"):
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            return None
        values = list(value.values())
        text = str(values[0]).lower() if len(values) == 1 else ""
    word = text.strip(" \t\n[]().,:;!\"'`*")
    if word in _SAME:
        return True
    if word in _DIFFERENT:
        return False
    leading = _LEADING.match(word)
    return leading.group(1) in _SAME if leading else None


@dataclass(frozen=True, slots=True)
class ReadScore:
    """One entry of a scorer's reply: 1-100, and the first wrong step counted from 1 (None: no error named)."""

    score: float
    error: int | None


def _read_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _list_objects(text: str) -> list[dict[str, Any]]:
    """Every JSON object in the text, also from arrays that are cut or carry trailing commas; wrappers are opened."""
    objects: list[dict[str, Any]] = []
    position = 0
    while (start := text.find("{", position)) >= 0:
        position = start + 1
        try:
            value, position = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            flat = _FLAT_OBJECT.match(text, start)
            if flat is None:
                continue
            try:
                value = _DECODER.decode(_TRAILING_COMMA.sub("}", flat.group()))
            except json.JSONDecodeError:
                continue
            position = flat.end()
        if "id" not in value:
            for inner in value.values():
                if isinstance(inner, list):
                    objects += [entry for entry in inner if isinstance(entry, dict)]
        else:
            objects.append(value)
    return objects


def read_scores(text: str, *, step_counts: dict[int, int]) -> dict[int, ReadScore]:
    """The scores of a reply ``[{"id": 1, "score": 85, "error": 3}, ...]`` by id; ids without a usable score are left out.

    Fences, prose around the array, numbers as strings, trailing commas and a cut array are read through. Refused, so
    that the caller asks again: an id that was not asked or occurs twice, a score that is no number in 1-100. An ``error``
    that is no step (0, null, "none") or out of range names no error; one past the last step says that steps are missing.

    Args:
        step_counts: number of steps of each path asked, by its id in the prompt.
    """
    found: dict[int, list[ReadScore | None]] = {}
    for entry in _list_objects(text):
        number, score, error = (_read_number(entry.get(key)) for key in ("id", "score", "error"))
        if number is None or number not in step_counts:
            continue
        usable = score is not None and LOWEST_SCORE <= score <= HIGHEST_SCORE
        step = int(error) if error is not None and error.is_integer() and 1 <= error <= step_counts[int(number)] + 1 else None
        found.setdefault(int(number), []).append(ReadScore(score, step) if usable and score is not None else None)
    return {number: entries[0] for number, entries in found.items() if len(entries) == 1 and entries[0] is not None}
