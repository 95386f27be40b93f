"""The answer filter (Insight-V 3.2): rules first, then a text judge for what the rules leave open. Both verdicts are kept."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from visloop.answers import compare_answers, normalize_answer
from visloop.chat.base import ChatModel, ChatRequest, Message
from visloop.config import Sampling
from visloop.errors import DataError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import ask_model
from visloop.reasoning.replies import read_judgement
from visloop.records.reasoning import Sample, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """An answer to judge. ``id`` names it in the result: a path's id, a sample's id."""

    id: str
    sample: Sample
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerVerdict:
    """The combined verdict beside its sources. ``judge`` and ``judge_reply`` are None where no judge was asked."""

    verdict: Verdict
    rule: Verdict
    judge: Verdict | None = None
    judge_reply: str | None = None


def judge_by_rule(candidate: str, sample: Sample) -> Verdict:
    """The verdict where there is no text judge, for data with a closed vocabulary of answers.

    What ``compare_answers`` leaves open is ``wrong`` when the ground truth does not occur in the candidate as whole words
    ("red" for "blue", "maybe" for "yes"), and stays ``unjudged`` when it occurs among others ("red or blue", "not blue").
    """
    verdict = compare_answers(candidate, sample.answer, answer_type=sample.answer_type)
    if verdict != "unjudged":
        return verdict
    truth = normalize_answer(sample.answer)
    if not truth:
        raise DataError(
            f"sample {sample.id}: the ground-truth answer {sample.answer!r} is empty after normalising; give it a readable answer"
        )
    return "unjudged" if re.search(rf"(?<!\w){re.escape(truth)}(?!\w)", normalize_answer(candidate)) else "wrong"


def judge_answers(
    candidates: Sequence[Candidate], *, text_judge: ChatModel | None, prompts: PromptSet, sampling: Sampling, seed: int
) -> dict[str, AnswerVerdict]:
    """Verdicts by candidate id.

    With a text judge, every answer that the rules leave open is put to it, once per question and distinct answer, in one
    batch; it sees no pictures. A reply of the judge that cannot be read gives ``unjudged``, with the raw reply kept.
    Without one, see ``judge_by_rule``.

    Raises:
        DataError: a candidate id occurs twice, or a ground truth is empty.
    """
    rules: dict[str, Verdict] = {}
    for candidate in candidates:
        if candidate.id in rules:
            raise DataError(f"candidate {candidate.id} occurs twice; ids must be unique")
        rules[candidate.id] = compare_answers(candidate.answer, candidate.sample.answer, answer_type=candidate.sample.answer_type)
    if text_judge is None:
        return {
            candidate.id: AnswerVerdict(verdict=judge_by_rule(candidate.answer, candidate.sample), rule=rules[candidate.id])
            for candidate in candidates
        }
    keys = {candidate.id: make_id(candidate.sample.id, "judge", normalize_answer(candidate.answer)) for candidate in candidates}
    open_cases = {keys[candidate.id]: candidate for candidate in reversed(candidates) if rules[candidate.id] == "unjudged"}
    requests = [
        ChatRequest(id=key, messages=(Message(role="user", text=_ask_same(candidate, prompts=prompts)),), seed=seed_for(seed, key))
        for key, candidate in sorted(open_cases.items())
    ]
    judged: dict[str, tuple[Verdict, str]] = {}
    for request, reply in zip(requests, ask_model(requests, model=text_judge, sampling=sampling), strict=True):
        same = None if reply.finish == "error" else read_judgement(reply.text)
        verdict: Verdict = "unjudged" if same is None else "correct" if same else "wrong"
        judged[request.id] = verdict, reply.text if reply.finish != "error" else f"error: {reply.error}"
    verdicts = {}
    for candidate in candidates:
        rule = rules[candidate.id]
        judge, raw = judged[keys[candidate.id]] if rule == "unjudged" else (None, None)
        verdicts[candidate.id] = AnswerVerdict(verdict=judge or rule, rule=rule, judge=judge, judge_reply=raw)
    return verdicts


def _ask_same(candidate: Candidate, *, prompts: PromptSet) -> str:
    return prompts.render("judge_answer", question=candidate.sample.question, answer=candidate.sample.answer, candidate=candidate.answer)
