"""The two agents at work (Insight-V 3.3): the reasoner writes a chain, the summarizer judges it and answers.

Both see the pictures. A missing or cut chain is a typed state: it is never passed to the summarizer, which then answers
the plain question instead (``direct`` prompt), and the state stays on the answer.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message
from visloop.config import Sampling
from visloop.errors import ConfigError, DataError, ReplyError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import ask_model, ask_once, open_dialogue
from visloop.reasoning.replies import read_answer
from visloop.records.chains import format_thoughts, parse_chain
from visloop.records.reasoning import AgentAnswer, AnswerStatus, Decoding, PathStatus, ReasoningPath, ReasoningStep, Sample


def sample_chains(
    samples: Sequence[Sample],
    *,
    model: ChatModel,
    prompts: PromptSet,
    samples_per_question: int,
    sampling: Sampling,
    seed: int,
    image_root: Path,
) -> list[ReasoningPath]:
    """Chains of the reasoning agent, each written in one reply: ``samples_per_question`` per sample, one batch. At temperature 0
    they are marked as greedy.

    ``finished`` has closed thoughts and the agent's own answer in ``<output>``. ``truncated``: the token budget cut the
    reply before that. ``unparsable``: the agent stopped, but tags, step lines or the answer are missing. ``failed``: no
    reply. Steps that could be read are kept in every state; ``error`` says what is missing.

    Raises:
        ConfigError: ``samples_per_question`` below 1.
        ModelError: the backend did not give one reply per request.
    """
    if samples_per_question < 1:
        raise ConfigError(f"samples_per_question must be at least 1, got {samples_per_question}")
    plan = [
        (sample, index, make_id(sample.id, "chain", index, seed, prompts.hash))
        for sample in samples
        for index in range(samples_per_question)
    ]
    decoding: Decoding = "greedy" if sampling.temperature == 0 else "sampled"
    replies = ask_once(
        [sample for sample, _, _ in plan],
        texts=[prompts.render("reason", question=sample.question) for sample, _, _ in plan],
        keys=[key for _, _, key in plan],
        model=model,
        sampling=sampling,
        seed=seed,
        image_root=image_root,
    )
    paths = []
    for (sample, index, key), reply in zip(plan, replies, strict=True):
        steps, answer, status, error = _read_chain(reply)
        paths.append(
            ReasoningPath(
                id=key,
                sample_id=sample.id,
                index=index,
                steps=steps,
                answer=answer,
                status=status,
                replies=() if reply.finish == "error" else (reply.text,),
                repairs=0,
                seed=seed,
                model=model.name,
                prompts_hash=prompts.hash,
                new_tokens=reply.new_tokens,
                error=error,
                decoding=decoding,
            )
        )
    return paths


def _read_chain(reply: ChatReply) -> tuple[tuple[ReasoningStep, ...], str | None, PathStatus, str | None]:
    if reply.finish == "error":
        return (), None, "failed", reply.error or "the backend gave no reply and no reason"
    broken: PathStatus = "truncated" if reply.finish == "length" else "unparsable"
    try:
        chain = parse_chain(reply.text)
    except ReplyError as error:
        return (), None, broken, str(error)
    if not chain.complete:
        return chain.steps, None, broken, "the thoughts are not closed"
    if chain.answer is None:
        return chain.steps, None, broken, "no closed <output> after the thoughts"
    return chain.steps, chain.answer, "finished", None


def read_thoughts(path: ReasoningPath) -> str | None:
    """The ``<thoughts>`` text for the summarizer, or None where the chain is missing or cut.

    A chain whose thoughts are closed is whole, also when the agent's own answer after it is missing.
    """
    if path.status == "finished":
        return format_thoughts(path.steps)
    if len(path.replies) != 1:
        return None
    try:
        chain = parse_chain(path.replies[0])
    except ReplyError:
        return None
    return format_thoughts(chain.steps) if chain.complete else None


def join_replies(path: ReasoningPath) -> str:
    """A chain as its model wrote it, for the record: its only reply, or its turns one under the other; empty without any."""
    return "\n".join(path.replies)


def summarize_chains(
    samples: Sequence[Sample],
    chains_by_sample: Mapping[str, Sequence[ReasoningPath]],
    *,
    model: ChatModel,
    prompts: PromptSet,
    sampling: Sampling,
    seed: int,
    image_root: Path,
) -> list[AgentAnswer]:
    """The summarizer's answer to each sample from the *first* of its chains, one batch, pictures included.

    Where that chain is missing or cut, the summarizer gets the ``direct`` prompt and the status says ``chain_missing`` or
    ``chain_truncated`` beside the answer; ``answer_missing`` and ``failed`` speak of the summarizer's own reply.

    Raises:
        DataError: a sample has no entry in ``chains_by_sample`` or an empty one.
        ModelError: the backend did not give one reply per request.
    """
    firsts = [_first_chain(sample, chains_by_sample) for sample in samples]
    thoughts = [read_thoughts(path) for path in firsts]
    replies = ask_once(
        samples,
        texts=[
            prompts.render("direct", question=sample.question)
            if chain is None
            else prompts.render("summarize", question=sample.question, chain=chain)
            for sample, chain in zip(samples, thoughts, strict=True)
        ],
        keys=[make_id(sample.id, "summarize", path.id) for sample, path in zip(samples, firsts, strict=True)],
        model=model,
        sampling=sampling,
        seed=seed,
        image_root=image_root,
    )
    return [
        _make_answer(sample, reply, path=path, status=_chain_status(path, chain))
        for sample, reply, path, chain in zip(samples, replies, firsts, thoughts, strict=True)
    ]


def _first_chain(sample: Sample, chains_by_sample: Mapping[str, Sequence[ReasoningPath]]) -> ReasoningPath:
    chains = chains_by_sample.get(sample.id)
    if not chains:
        raise DataError(f"sample {sample.id}: no chain of the reasoner; sample one (also a failed one) for every question")
    return chains[0]


def _chain_status(path: ReasoningPath, chain: str | None) -> AnswerStatus:
    if chain is not None:
        return "ok"
    return "chain_truncated" if path.status in ("truncated", "step_limit") else "chain_missing"


def _make_answer(sample: Sample, reply: ChatReply, *, path: ReasoningPath | None = None, status: AnswerStatus = "ok") -> AgentAnswer:
    answer = read_answer(reply)
    if answer is None:
        status = "failed" if reply.finish == "error" else "answer_missing"
    return AgentAnswer(
        sample_id=sample.id,
        answer=answer,
        status=status,
        chains=(join_replies(path),) if path else (),
        chain_answers=(path.answer,) if path else (),
        raw=f"error: {reply.error}" if reply.finish == "error" else reply.text,
    )


def answer_directly(
    samples: Sequence[Sample], *, model: ChatModel, prompts: PromptSet, sampling: Sampling, seed: int, image_root: Path
) -> list[AgentAnswer]:
    """One model's answers to the plain questions, without any chain, one batch.

    Raises:
        ModelError: the backend did not give one reply per request.
    """
    replies = ask_once(
        samples,
        texts=[prompts.render("direct", question=sample.question) for sample in samples],
        keys=[make_id(sample.id, "direct") for sample in samples],
        model=model,
        sampling=sampling,
        seed=seed,
        image_root=image_root,
    )
    return [_make_answer(sample, reply) for sample, reply in zip(samples, replies, strict=True)]


def answer_multi_turn(
    samples: Sequence[Sample],
    *,
    model: ChatModel,
    prompts: PromptSet,
    reason_sampling: Sampling,
    answer_sampling: Sampling,
    seed: int,
    image_root: Path,
) -> list[AgentAnswer]:
    """The multi-turn ablation (Insight-V 4.3): one model writes its thoughts, then answers in a second turn; two batches.

    The first turn stays in the conversation word for word. Where its thoughts are missing or cut, the second turn is
    replaced by the ``direct`` prompt in a conversation of its own, and the status says so.

    Raises:
        ModelError: the backend did not give one reply per request.
    """
    keys = [make_id(sample.id, "multi_turn") for sample in samples]
    prompts_text = [prompts.render("reason", question=sample.question) for sample in samples]
    firsts = ask_once(samples, texts=prompts_text, keys=keys, model=model, sampling=reason_sampling, seed=seed, image_root=image_root)
    requests, states = [], []
    for sample, key, text, first in zip(samples, keys, prompts_text, firsts, strict=True):
        status = _turn_status(first)
        if status == "ok":
            ask = prompts.render("multi_turn_answer", question=sample.question)
            opening = open_dialogue(sample, text, image_root=image_root)
            messages = (*opening, Message(role="assistant", text=first.text), Message(role="user", text=ask))
        else:
            messages = open_dialogue(sample, prompts.render("direct", question=sample.question), image_root=image_root)
        requests.append(ChatRequest(id=key, messages=messages, seed=seed_for(seed, key, "answer")))
        states.append(status)
    answers = []
    for sample, first, status, reply in zip(
        samples, firsts, states, ask_model(requests, model=model, sampling=answer_sampling), strict=True
    ):
        answer = _make_answer(sample, reply, status=status)
        chains = () if first.finish == "error" else (first.text,)
        answers.append(
            AgentAnswer(
                sample_id=sample.id,
                answer=answer.answer,
                status=answer.status,
                chains=chains,
                chain_answers=(None,) * len(chains),
                raw=answer.raw,
            )
        )
    return answers


def _turn_status(reply: ChatReply) -> AnswerStatus:
    if reply.finish == "error":
        return "chain_missing"
    try:
        complete = parse_chain(reply.text).complete
    except ReplyError:
        complete = False
    if complete:
        return "ok"
    return "chain_truncated" if reply.finish == "length" else "chain_missing"
