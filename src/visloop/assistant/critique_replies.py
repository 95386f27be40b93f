"""Reading critiques from what a chat model replies: JSON as asked for, or the paper's "Error Location: ... Reason: ..." (CLOVA 3.3).

A location is a word of a closed vocabulary, never a substring of the reply. Nothing unreadable gets a default value.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from visloop.records.assistant import Culprit

_DECODER = json.JSONDecoder(strict=False)
_LOCATION = re.compile(r"error\s+location\s*:\s*(?P<where>[^\n.:;]*)", re.IGNORECASE)
_REASON = re.compile(r"reason\s*:\s*(?P<reason>\S.*)", re.IGNORECASE | re.DOTALL)
_STEP = re.compile(r"\bstep\s*(\d+)", re.IGNORECASE)
_CLEAN = re.compile(r"^(?:yes|correct|right)\b[\s.!]*$", re.IGNORECASE)
_ANSWER = re.compile(r"correct\s+answer(?:\s+of\s+the\s+wrong\s+step)?\s*:\s*(?P<answer>[^\n]+)", re.IGNORECASE)
_CULPRITS: dict[str, Culprit] = {
    **dict.fromkeys(("plan", "plans", "subquestion", "subquestions", "sub question", "sub questions", "decomposed subquestions"), "plan"),
    **dict.fromkeys(("program", "programs", "code"), "program"),
    **dict.fromkeys(
        (
            "tool",
            "tools",
            "function",
            "functions",
            "functions called by programs",
            "functions called by program",
            "functions called by the program",
            "function called by programs",
            "function called by the program",
        ),
        "tool",
    ),
    **dict.fromkeys(("nothing", "none", "no error"), "nothing"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCritique:
    """What a reply blames. ``step`` counts program lines from 1; None where the reply names none."""

    culprit: Culprit
    step: int | None
    reason: str


def read_culprit(text: str) -> Culprit | None:
    """The guilty part that a word or phrase of the closed vocabulary means, or None."""
    return _CULPRITS.get(" ".join(re.sub(r"[^a-z]+", " ", text.lower()).split()))


def read_critique(text: str, *, steps: int, cut: bool = False) -> ReadCritique | None:
    """The critique in a reply about a whole program, or None where the reply does not name exactly one.

    Read are a JSON object ``{"culprit": ..., "step": ..., "reason": ...}``, also within fences or prose, and the paper's two lines,
    whose step is the first "Step k" of the reason. A step outside 1..``steps`` makes the reply unreadable, so that it is asked again.

    Args:
        steps: number of program lines.
        cut: the token budget cut the reply; only a whole JSON object is then read.
    """
    found = _list_objects(text, key="culprit")
    if found:
        read = [_read_object(entry, steps=steps) for entry in found]
        return read[0] if len({(entry.culprit, entry.step) if entry else None for entry in read}) == 1 else None
    location, reason = list(_LOCATION.finditer(text)), _REASON.search(text)
    if cut or len(location) != 1 or reason is None:
        return None
    culprit, step = read_culprit(location[0]["where"]), _STEP.search(reason["reason"])
    number = int(step[1]) if step else None
    if culprit is None or (number is not None and not 1 <= number <= steps):
        return None
    return ReadCritique(culprit=culprit, step=number, reason=" ".join(reason["reason"].split()))


def read_step_check(text: str, *, step: int, cut: bool = False) -> ReadCritique | None:
    """What a reply says of one step: culprit ``nothing`` if it is right, else who is guilty at that step; None if it says neither.

    Read are ``{"correct": true}``, ``{"correct": false, "culprit": ..., "reason": ...}``, and the paper's "yes" or "no. Error
    Location: ... Reason: ...".
    """
    found = _list_objects(text, key="correct")
    if found:
        verdicts = {entry["correct"] if isinstance(entry["correct"], bool) else None for entry in found}
        if verdicts == {True}:
            return ReadCritique(culprit="nothing", step=None, reason="")
        if verdicts != {False} or len(found) != 1:
            return None
        read = _read_object({**found[0], "step": step}, steps=step)
        return read if read and read.culprit != "nothing" else None
    if not cut and _CLEAN.match(text.strip()):
        return ReadCritique(culprit="nothing", step=None, reason="")
    location, reason = list(_LOCATION.finditer(text)), _REASON.search(text)
    if cut or len(location) != 1 or reason is None:
        return None
    culprit = read_culprit(location[0]["where"])
    if culprit is None or culprit == "nothing":
        return None
    return ReadCritique(culprit=culprit, step=step, reason=" ".join(reason["reason"].split()))


def read_inferred_answer(text: str, *, cut: bool = False) -> str | None:
    """The right answer of a wrong step in a reply: ``{"answer": ...}``, a line "Correct answer ...: x", or one short line; else None."""
    found = _list_objects(text, key="answer")
    if found:
        values = {str(entry["answer"]).strip() for entry in found if isinstance(entry["answer"], str | int | float)}
        return values.pop() or None if len(values) == 1 else None
    if cut:
        return None
    named = _ANSWER.findall(text)
    if named:
        return str(named[-1]).strip().strip("\"'.") or None
    line = text.strip().strip("\"'.").strip()
    return line if line and "\n" not in line and len(line.split()) <= 5 else None


def read_names(text: str, *, most: int, cut: bool = False) -> tuple[str, ...]:
    """Names in a reply: a JSON array of texts, or one line with commas; at most ``most``, without doubles; empty if there are none."""
    start = text.find("[")
    names: list[str] = []
    if start >= 0:
        try:
            value, _ = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            return ()
        names = [entry for entry in value if isinstance(entry, str)] if isinstance(value, list) else []
    elif not cut:
        lines = [line for line in text.strip().splitlines() if line.strip()]
        names = lines[0].split(",") if len(lines) == 1 else []
    clean = [" ".join(name.strip().strip(".\"'").lower().split()) for name in names]
    return tuple(dict.fromkeys(name for name in clean if name and len(name.split()) <= 4))[:most]


def _read_object(entry: dict[str, Any], *, steps: int) -> ReadCritique | None:
    culprit = read_culprit(entry["culprit"]) if isinstance(entry.get("culprit"), str) else None
    if culprit is None:
        return None
    step, reason = entry.get("step"), entry.get("reason")
    if isinstance(step, str):
        digits = re.fullmatch(r"\s*(?:step\s*)?(\d+)\s*", step, re.IGNORECASE)
        if digits is None and step.strip().lower() not in ("", "none", "null"):
            return None
        step = int(digits[1]) if digits else None
    if step is not None and (isinstance(step, bool) or not isinstance(step, int) or not 1 <= step <= steps):
        return None
    return ReadCritique(culprit=culprit, step=step, reason=" ".join(reason.split()) if isinstance(reason, str) else "")


def _list_objects(text: str, *, key: str) -> list[dict[str, Any]]:
    """Every JSON object of the text that has the key, outermost first."""
    objects: list[dict[str, Any]] = []
    position = 0
    while (start := text.find("{", position)) >= 0:
        try:
            value, position = _DECODER.raw_decode(text, start)
        except json.JSONDecodeError:
            position = start + 1
            continue
        if isinstance(value, dict) and key in value:
            objects.append(value)
    return objects
