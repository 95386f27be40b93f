"""VQA by a callable that is handed over, such as the two agents, which live in a higher layer."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from PIL import Image

from visloop.errors import ModelError, VisloopError
from visloop.records.assistant import Instance
from visloop.tools.base import ToolCall, ToolResult, TuningReport
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.signatures import SIGNATURES

Question: TypeAlias = tuple[str, Image.Image]
AnswerQuestions: TypeAlias = Callable[[Sequence[Question]], list[str]]
"""Answers questions about pictures, in order; an empty text is no answer."""


def read_calls(calls: Sequence[ToolCall]) -> tuple[dict[int, Question], dict[int, ToolResult]]:
    """The questions of calls by their index, and the results of those that ask nothing."""
    asked: dict[int, Question] = {}
    refused: dict[int, ToolResult] = {}
    for index, call in enumerate(calls):
        image, question = call.arguments.get("image"), call.arguments.get("question")
        if isinstance(image, Image.Image) and isinstance(question, str) and question.strip():
            asked[index] = (question.strip(), image.convert("RGB"))
        else:
            refused[index] = ToolResult(value=None, error=f"VQA needs a picture and a question; got {image!r} and {question!r}")
    return asked, refused


class CallableAnswerer:
    """VQA by whatever answers. It has no prompts of its own: the two agents improve by rounds."""

    signature = SIGNATURES["VQA"]
    owner = "VQA"
    learns_questions = False

    def __init__(self, answer: AnswerQuestions, *, pool: PromptPool) -> None:
        self._answer, self.pool = answer, pool

    def with_pool(self, pool: PromptPool) -> "CallableAnswerer":
        """The same answerer; a pool changes nothing here."""
        return CallableAnswerer(self._answer, pool=pool)

    def list_concepts(self, call: ToolCall) -> tuple[str, ...]:
        """None: nothing can be learned."""
        return ()

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """One answer per call; an error of the answerer is every call's."""
        asked, results = read_calls(calls)
        if asked:
            try:
                answers = self._answer(list(asked.values()))
            except VisloopError as error:
                return [results.get(index, ToolResult(value=None, error=str(error))) for index in range(len(calls))]
            if len(answers) != len(asked):
                raise ModelError(f"the answerer of VQA gave {len(answers)} answers to {len(asked)} questions")
            for index, answer in zip(asked, answers, strict=True):
                results[index] = ToolResult(value=answer) if answer else ToolResult(value=None, error="VQA: no answer could be read")
        return [results[index] for index in range(len(calls))]

    def tune(self, concept: str, *, instances: Sequence[Instance], replay: Sequence[Instance], seed: int, cycle: int) -> TuningReport:
        """Keeps nothing."""
        return TuningReport(
            pool=self.pool,
            kept=(),
            refused=0,
            reason="the backend agents has no prompts; its models are trained in rounds",
            validation_before=0.0,
            validation_after=0.0,
            base_before=1.0,
            base_after=1.0,
            seconds=0.0,
        )
