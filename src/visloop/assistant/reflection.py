"""Reflection by a chat model (CLOVA 3.3): after an interrupted run, over a whole run at once, and step by step.

The model sees text only: captions, coordinates, answers. Its reply is read into a closed vocabulary; tool and concept come from the
program's syntax tree. A reply that cannot be read is asked again, then counted as unreadable: it blames nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from visloop.assistant.cases import Case, ReflectionGrain, find_statement, list_learnable_steps, read_concept
from visloop.assistant.critique_replies import ReadCritique, read_critique, read_step_check
from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message
from visloop.config import Sampling
from visloop.errors import ConfigError, ModelError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.records.assistant import Critique
from visloop.tools.base import ToolCatalogue, ToolRunner

_TEMPLATES: dict[ReflectionGrain, str] = {"interrupt": "reflect_interrupt", "global": "reflect_global", "local": "reflect_local"}


@dataclass(slots=True)
class _Question:
    """One case that waits for a readable reply; ``step`` is the one that is checked (local), ``found`` what was read."""

    case: Case
    key: str
    step: int = 0
    found: ReadCritique | None = None
    failed: bool = False
    replies: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0


class ChatCritic:
    """Critiques written by a chat model.

    Args:
        prompts: needs ``reflect_interrupt``, ``reflect_global`` and ``reflect_local``.
        max_tries: how often one prompt is asked until its reply can be read.

    Raises:
        ConfigError: ``max_tries`` below 1.
    """

    def __init__(self, model: ChatModel, *, prompts: PromptSet, sampling: Sampling, max_tries: int = 2) -> None:
        if max_tries < 1:
            raise ConfigError(f"reflection.max_tries must be at least 1, got {max_tries}")
        self.name = f"llm:{model.name}"
        self._model, self._prompts, self._sampling, self._max_tries = model, prompts, sampling, max_tries

    def criticize(self, cases: Sequence[Case], *, grain: ReflectionGrain, tools: ToolRunner, seed: int) -> list[Critique]:
        """One critique per case, in order; the cases of a turn are one batch.

        ``interrupt``: the program raised; error text and the tools there are. ``global``: the whole run at once. ``local``: step i with
        steps 1..i-1 as checked, from the first to the first that is wrong.

        Raises:
            ModelError: the backend did not give one reply per request.
        """
        questions = [
            _Question(case, make_id("critique", case.trace.id, grain, self.name, self._prompts.hash, len(case.earlier))) for case in cases
        ]
        if grain == "local":
            self._walk_steps(questions, seed=seed, tools=tools)
        else:
            self._ask(questions, grain=grain, seed=seed, tools=tools)
        return [_make_critique(question, grain=grain, author=self.name, tools=tools) for question in questions]

    def _walk_steps(self, questions: Sequence[_Question], *, seed: int, tools: ToolRunner) -> None:
        waiting = list(questions)
        step = 0
        while waiting:
            step += 1
            waiting = [question for question in waiting if step <= len(question.case.trace.steps)]
            for question in waiting:
                question.step, question.found = step, None
            self._ask(waiting, grain="local", seed=seed, tools=tools)
            waiting = [question for question in waiting if question.found and question.found.culprit == "nothing"]

    def _ask(self, questions: Sequence[_Question], *, grain: ReflectionGrain, seed: int, tools: ToolRunner) -> None:
        waiting = list(questions)
        for attempt in range(self._max_tries):
            if not waiting:
                return
            requests = [
                ChatRequest(
                    id=question.key,
                    messages=(Message(role="user", text=self._prompts.render(_TEMPLATES[grain], **_show_case(question, tools))),),
                    seed=seed_for(seed, question.key, question.step, attempt),
                )
                for question in waiting
            ]
            replies = self._model.reply(requests, sampling=self._sampling)
            if len(replies) != len(requests):
                raise ModelError(
                    f"model {self._model.name}: {len(replies)} replies to {len(requests)} requests; a backend must give one each, in order"
                )
            for question, reply in zip(waiting, replies, strict=True):
                _take_reply(question, reply, grain=grain, tools=tools)
            waiting = [question for question in waiting if question.found is None]


def _take_reply(question: _Question, reply: ChatReply, *, grain: ReflectionGrain, tools: ToolRunner) -> None:
    question.failed = reply.finish == "error"
    question.prompt_tokens += reply.prompt_tokens
    question.new_tokens += reply.new_tokens
    question.replies.append(f"error: {reply.error}" if question.failed else reply.text)
    if question.failed:
        return
    cut = reply.finish == "length"
    if grain == "local":
        question.found = read_step_check(reply.text, step=question.step, cut=cut)
    else:
        found = read_critique(reply.text, steps=question.case.steps, cut=cut)
        question.found = _place_tool(found, case=question.case, tools=tools) if found else None


def _place_tool(found: ReadCritique, *, case: Case, tools: ToolRunner) -> ReadCritique | None:
    """A blamed tool needs a step. Where the reply names none, the program's only learnable step is meant; otherwise it is unreadable."""
    if found.culprit != "tool":
        return found
    if found.step is not None:
        return found if find_statement(case.execution.program, found.step) else None
    learnable = list_learnable_steps(case.execution.program, find_signature=tools.find_signature)
    return ReadCritique(culprit="tool", step=learnable[0], reason=found.reason) if len(learnable) == 1 else None


def _make_critique(question: _Question, *, grain: ReflectionGrain, author: str, tools: ToolRunner) -> Critique:
    case, found = question.case, question.found
    if found is None and not question.replies:
        found = ReadCritique(culprit="nothing", step=None, reason="no step was run, so there is none to check")
    statement = find_statement(case.execution.program, found.step) if found else None
    concept = None
    if found and statement and found.step and found.culprit == "tool":
        concept = read_concept(case.execution, found.step, find_signature=tools.find_signature)
    return Critique(
        id=question.key,
        trace_id=case.trace.id,
        grain=grain,
        culprit=found.culprit if found else "nothing",
        step=found.step if found else None,
        tool=statement.tool if statement else None,
        concept=concept,
        reason=found.reason if found else "",
        status="ok" if found else ("failed" if question.failed else "unreadable"),
        author=author,
        replies=tuple(question.replies),
        prompt_tokens=question.prompt_tokens,
        new_tokens=question.new_tokens,
    )


def _show_case(question: _Question, tools: ToolCatalogue) -> dict[str, object]:
    case = question.case
    trace, feedback = case.trace, case.feedback
    plan = trace.proposal.plan
    steps = [
        {
            "number": step.step,
            "plan": plan[step.step - 1] if step.step <= len(plan) else "",
            "line": step.line,
            "result": step.error or step.output,
        }
        for step in trace.steps
    ]
    task = case.execution.job.task
    return {
        "instruction": task.instruction,
        "pictures": [{"name": name, "caption": caption} for name, caption in case.captions.items()],
        "feedback": feedback.text or f"The correct answer should be {feedback.answer}.",
        "result": trace.result or "",
        "plan": list(plan),
        "program": trace.proposal.program,
        "steps": steps,
        "checked": question.step,
        "error": trace.error or "",
        "error_step": trace.error_step,
        "tools": [signature.describe() for signature in tools.list_signatures(task.kind)],
        "earlier": [critique.reason for critique in case.earlier if critique.reason],
    }


def count_unreadable(critiques: Sequence[Critique]) -> int:
    """Critiques that could not be read or did not come."""
    return sum(critique.status != "ok" for critique in critiques)
