"""What a question-answering step should have said (CLOVA 3.4 (1)): inferred, then checked by substitution before anything is learned.

The inferred answer is put into the trace in place of the wrong one and the remaining lines are run again; it is taken only if the final
result is then right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from visloop.answers import normalize_answer
from visloop.assistant.cases import Case, Judge, judge_by_answer
from visloop.assistant.critique_replies import read_inferred_answer, read_names
from visloop.assistant.interpreter import run_substitutions
from visloop.assistant.repairs import SOME_OTHER_ANSWER, list_candidates
from visloop.chat.base import ChatModel, ChatRequest, Message
from visloop.config import Sampling
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Critique
from visloop.tools.base import ToolRunner


@dataclass(frozen=True, slots=True, kw_only=True)
class InferredAnswer:
    """The right answer of a wrong step, or None with the reason why there is none."""

    answer: str | None
    reason: str = ""
    replies: tuple[str, ...] = ()


class AnswerInference(Protocol):
    """Anything that infers the right answer of a blamed question-answering step."""

    def infer(self, case: Case, critique: Critique, *, tools: ToolRunner, seed: int) -> InferredAnswer: ...


def check_answers(case: Case, step: int, answers: Sequence[str], *, tools: ToolRunner, judge: Judge = judge_by_answer) -> list[str]:
    """Those of the answers with which the rest of the program gives a right result, in order."""
    runs = run_substitutions([(case.execution, step, answer) for answer in answers], tools=tools)
    return [answer for answer, run in zip(answers, runs, strict=True) if run.status == "finished" and judge(run, case.feedback)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterfactualInference:
    """Without a model: the first plausible answer with which the program gives a right result. Where several do, nothing is inferred
    unless they are one answer and its stand-in: a guess would be learned."""

    judge: Judge = judge_by_answer
    candidates: int = 8

    def infer(self, case: Case, critique: Critique, *, tools: ToolRunner, seed: int) -> InferredAnswer:
        """Nothing is drawn: ``seed`` is not used."""
        if critique.step is None:
            return InferredAnswer(answer=None, reason="no step is blamed")
        options = list_candidates(case, critique.step, find_signature=tools.find_signature)
        words = [option for option in options if isinstance(option, str)][: self.candidates]
        right = check_answers(case, critique.step, words, tools=tools, judge=self.judge)
        named = list(dict.fromkeys(normalize_answer(answer) for answer in right if answer != SOME_OTHER_ANSWER))
        if len(named) == 1:
            return InferredAnswer(answer=named[0])
        what = "no other answer makes the result right" if not named else f"{len(named)} other answers make the result right"
        return InferredAnswer(answer=None, reason=f"step {critique.step}: {what}")


class ChatInference:
    """A chat model works the answer out from instruction, feedback, all steps and the critique."""

    def __init__(
        self, model: ChatModel, *, prompts: PromptSet, sampling: Sampling, max_tries: int = 2, judge: Judge = judge_by_answer
    ) -> None:
        self._model, self._prompts, self._sampling = model, prompts, sampling
        self._max_tries, self._judge = max_tries, judge

    def infer(self, case: Case, critique: Critique, *, tools: ToolRunner, seed: int) -> InferredAnswer:
        """The first reply that can be read and passes the check."""
        if critique.step is None:
            return InferredAnswer(answer=None, reason="no step is blamed")
        text = self._prompts.render(
            "infer_answer",
            instruction=case.execution.job.task.instruction,
            pictures=[{"name": name, "caption": caption} for name, caption in case.captions.items()],
            feedback=case.feedback.text or f"The right result: {case.feedback.answer}",
            steps=[{"number": step.step, "line": step.line, "result": step.error or step.output} for step in case.trace.steps],
            wrong_step=critique.step,
            reason=critique.reason,
        )
        key, replies, reason = make_id("infer", case.trace.id, critique.id), [], ""
        for attempt in range(self._max_tries):
            request = ChatRequest(id=key, messages=(Message(role="user", text=text),), seed=seed_for(seed, key, attempt))
            [reply] = self._model.reply([request], sampling=self._sampling)
            replies.append(f"error: {reply.error}" if reply.finish == "error" else reply.text)
            answer = None if reply.finish == "error" else read_inferred_answer(reply.text, cut=reply.finish == "length")
            if answer is None:
                reason = "no answer could be read"
            elif check_answers(case, critique.step, [answer], tools=tools, judge=self._judge):
                return InferredAnswer(answer=normalize_answer(answer), replies=tuple(replies))
            else:
                reason = f"with {answer!r} at step {critique.step} the result is still wrong"
        return InferredAnswer(answer=None, reason=reason, replies=tuple(replies))


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatNegatives:
    """Concepts that are easily taken for another, named by a chat model (CLOVA 3.4 (3)); none where no reply can be read."""

    model: ChatModel
    prompts: PromptSet
    sampling: Sampling
    seed: int = 0
    max_tries: int = 2

    def __call__(self, concept: str, group: str, most: int) -> tuple[str, ...]:
        """Up to ``most`` names, never the concept itself."""
        text = self.prompts.render("negatives", concept=concept, group=group, most=most)
        key = make_id("negatives", concept, group, most)
        for attempt in range(self.max_tries):
            request = ChatRequest(id=key, messages=(Message(role="user", text=text),), seed=seed_for(self.seed, key, attempt))
            [reply] = self.model.reply([request], sampling=self.sampling)
            names = () if reply.finish == "error" else read_names(reply.text, most=most + 1, cut=reply.finish == "length")
            others = tuple(name for name in names if name != concept.lower())[:most]
            if others:
                return others
        return ()
