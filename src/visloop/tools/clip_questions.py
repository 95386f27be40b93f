"""VQA without a model of its own: questions of known forms, answered by proposed regions and the CLIP that names them.

The forms are data (``questions.json``). A question of another form is an error in words, never a guess.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from visloop.errors import DataError, ToolError
from visloop.records.assistant import Instance
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.clip_tools import ClipTool, measure_certainty
from visloop.tools.naming import Scored, View

QUESTIONS = Path(__file__).parent / "questions.json"
QuestionKind = Literal["count", "name", "attribute", "exists", "holds"]
"""``attribute``: the word of one group. ``holds``: whether an object fits a predicate. ``name``: the word of the last group."""


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a known form. ``object`` is what it is about, empty for the main thing of the picture."""

    kind: QuestionKind
    object: str = ""
    attribute: str = ""
    predicate: str = ""


@dataclass(frozen=True, slots=True)
class QuestionForms:
    """The forms in the order in which they are tried, and the groups that attribute words mean."""

    patterns: tuple[tuple[QuestionKind, re.Pattern[str]], ...]
    attributes: Mapping[str, str]

    def read(self, text: str) -> Question:
        """Read one question.

        Raises:
            ToolError: no form fits.
        """
        plain = " ".join(text.lower().replace("'s", " is").strip().rstrip("?.! ").split())
        for kind, pattern in self.patterns:
            found = pattern.fullmatch(plain)
            if found is None:
                continue
            parts = found.groupdict()
            attribute = parts.get("attribute") or ""
            if kind == "attribute" and attribute not in self.attributes:
                continue
            return Question(kind, parts.get("object") or "", self.attributes.get(attribute, ""), parts.get("predicate") or "")
        raise ToolError(
            f"question {text!r} has no form that is known here; ask what color, shape or pattern something has, whether there is "
            "something, how many there are, or whether something is of some kind"
        )


@cache
def load_questions(path: Path = QUESTIONS) -> QuestionForms:
    """Read the forms.

    Raises:
        DataError: the file does not hold forms.
    """
    try:
        value = json.loads(path.read_text())
        patterns = tuple((entry["kind"], re.compile(entry["pattern"])) for entry in value["patterns"])
        attributes = dict(value["attributes"])
    except (OSError, KeyError, TypeError, ValueError, re.error) as error:
        raise DataError(f"{path}: not a file of question forms: {error!r}") from error
    strange = sorted({kind for kind, _ in patterns} - set(get_args(QuestionKind)))
    if strange:
        raise DataError(f"{path}: kinds {strange} are not among {get_args(QuestionKind)}")
    return QuestionForms(patterns, attributes)


class VqaTool(ClipTool):
    """Answers in one word: a word of a group, ``yes`` or ``no``, a number."""

    def answer_at_once(self, call: ToolCall) -> ToolResult | None:
        try:
            load_questions().read(str(call.arguments["question"]))
        except ToolError as error:
            return ToolResult(value=None, error=f"{self.signature.name}: {error}")
        return None

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        try:
            question = load_questions().read(str(call.arguments["question"]))
        except ToolError:
            return ()
        return self.find_concepts(f"{question.object} {question.predicate}")

    def guess_group(self, instances: Sequence[Instance]) -> str:
        """The group that the instances' questions ask for."""
        for instance in instances:
            if instance.positive and instance.question:
                try:
                    question = load_questions().read(instance.question)
                except ToolError:
                    continue
                if question.attribute:
                    return question.attribute
        return ""

    def answer(self, call: ToolCall, view: View) -> ToolResult:
        question = load_questions().read(str(call.arguments["question"]))
        scored = view.score_query(self.read(question.object))
        if question.kind == "count":
            number = int((scored.scores >= self.threshold).sum())
            return self._tell(str(number), measure_certainty(scored.scores), [scored])
        if question.kind == "exists":
            best = float(scored.scores.max()) if len(view) else 0.0
            return self._tell("yes" if best >= self.threshold else "no", max(best, 1 - best), [scored])
        if not len(view):
            raise ToolError("there is nothing in the picture that the question could be about")
        place = self._choose_region(view, scored, plain=not self.read(question.object).list_senses())
        sure = float(scored.scores[place])
        if question.kind == "holds":
            asked = view.score_query(self.read(question.predicate))
            fits = float(asked.scores[place])
            return self._tell("yes" if fits >= self.threshold else "no", sure * max(fits, 1 - fits), [scored, asked])
        group = question.attribute or list(self.engine.vocabulary.groups)[-1]
        if group not in self.engine.vocabulary.groups:
            raise ToolError(f"the model has no words for {group}; it has some for {', '.join(self.engine.vocabulary.groups)}")
        words, probabilities = view.name_group(group)
        best_word = int(probabilities[place].argmax())
        word = words[best_word]
        return self._tell(word, sure * float(probabilities[place, best_word]), [scored], more=view.list_prompts([word]))

    def _choose_region(self, view: View, scored: Scored, *, plain: bool) -> int:
        """The region that fits best; where nothing is named, the one in the picture's middle, else the largest."""
        if not plain:
            return int(scored.scores.argmax())
        x, y = (side / 2 for side in view.image.size)
        central = [
            index
            for index, region in enumerate(view.regions)
            if region.box.left <= x < region.box.right and region.box.top <= y < region.box.bottom
        ]
        return max(central or range(len(view)), key=lambda index: view.regions[index].size)

    def _tell(self, answer: str, confidence: float, scored: Sequence[Scored], *, more: tuple[str, ...] = ()) -> ToolResult:
        used = tuple(dict.fromkeys([*(prompt for item in scored for prompt in item.prompts), *more]))
        return ToolResult(value=answer, confidence=float(np.clip(self.trust(confidence, scored), 0.0, 1.0)), prompts=used)
