"""Progressive long-chain generation (Insight-V 3.2): R_t = M(I, Q, [R_1..R_t-1], A), then R_ans from all steps.

A chain is a small state machine: *stepping* (one JSON step per call, until the model chooses ``summary``) and *closing*
(a separate call for the final answer). All live chains of a shard advance together, one batch per turn; the finals are
one batch after the last step. A reply that cannot be read is dropped from the conversation and sampled again with another
seed; where decoding is greedy, and another seed would change nothing, the same turn is asked with a reminder of the form.
A chain that stays unreadable is discarded as a typed state and is never given an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message
from visloop.config import GenerateConfig, Sampling
from visloop.errors import ConfigError, ReplyError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import ask_model, open_dialogue
from visloop.reasoning.replies import read_answer
from visloop.records.chains import parse_step
from visloop.records.reasoning import PathStatus, ReasoningPath, ReasoningStep, Sample

Progress = Callable[[int, int], None]
"""Called with (chains that are done, all chains)."""


@dataclass(slots=True)
class _Chain:
    """A chain in the making. ``turn`` counts model turns that were accepted, ``attempt`` the tries of the current one."""

    id: str
    sample: Sample
    index: int
    messages: list[Message]
    steps: list[ReasoningStep] = field(default_factory=list)
    replies: list[str] = field(default_factory=list)
    turn: int = 0
    attempt: int = 0
    repairs: int = 0
    new_tokens: int = 0
    closing: bool = False
    answer: str | None = None
    status: PathStatus | None = None
    error: str | None = None


def generate_paths(
    samples: Sequence[Sample],
    *,
    model: ChatModel,
    prompts: PromptSet,
    config: GenerateConfig,
    seed: int,
    image_root: Path,
    on_progress: Progress | None = None,
) -> list[ReasoningPath]:
    """Grow ``config.samples_per_question`` chains for every sample, in the order of the samples.

    Every random draw is keyed by chain, turn and attempt, so eight shards of one sample equal one shard of eight. There is
    no system turn: the first user turn carries the role, for chat templates that know no system role. Accepted replies stay
    in the conversation word for word, so that a backend can reuse its prefix cache.

    A ``summary`` before ``config.min_steps`` steps is turned into ``continue``; ``continue`` at ``config.max_steps`` ends
    the chain as ``step_limit`` without an answer.

    Args:
        image_root: the folder to which the samples' image paths are relative.

    Raises:
        ConfigError: step limits that contradict each other.
        ModelError: the backend did not give one reply per request.
    """
    if not 1 <= config.min_steps <= config.max_steps:
        raise ConfigError(f"generate: need 1 <= min_steps <= max_steps, got {config.min_steps} and {config.max_steps}")
    if config.samples_per_question < 1 or config.max_repairs < 0:
        raise ConfigError("generate: samples_per_question must be at least 1 and max_repairs at least 0")
    chains = [
        _open_chain(sample, index=index, prompts=prompts, config=config, seed=seed, image_root=image_root)
        for sample in samples
        for index in range(config.samples_per_question)
    ]
    reminder = prompts.render("generate_repair")
    for closing, sampling in ((False, config.sampling), (True, config.final_sampling)):
        while live := [chain for chain in chains if chain.status is None and chain.closing == closing]:
            requests = [_make_request(chain, sampling=sampling, reminder=reminder, seed=seed) for chain in live]
            for chain, reply in zip(live, ask_model(requests, model=model, sampling=sampling), strict=True):
                if reply.finish != "error":
                    chain.replies.append(reply.text)
                    chain.new_tokens += reply.new_tokens
                if closing:
                    _take_answer(chain, reply, config=config)
                else:
                    _take_step(chain, reply, prompts=prompts, config=config)
            if on_progress is not None:
                on_progress(sum(chain.status is not None for chain in chains), len(chains))
    return [_close_chain(chain, model=model, prompts=prompts, seed=seed) for chain in chains]


def _open_chain(sample: Sample, *, index: int, prompts: PromptSet, config: GenerateConfig, seed: int, image_root: Path) -> _Chain:
    text = prompts.render("generate_start", question=sample.question, min_steps=config.min_steps, max_steps=config.max_steps)
    return _Chain(
        id=make_id(sample.id, "path", index, seed, prompts.hash),
        sample=sample,
        index=index,
        messages=list(open_dialogue(sample, text, image_root=image_root)),
    )


def _make_request(chain: _Chain, *, sampling: Sampling, reminder: str, seed: int) -> ChatRequest:
    messages = tuple(chain.messages)
    if chain.attempt and sampling.temperature == 0:
        last = messages[-1]
        messages = (*messages[:-1], Message(role=last.role, text=f"{last.text}\n{reminder}", images=last.images))
    return ChatRequest(id=chain.id, messages=messages, seed=seed_for(seed, chain.id, chain.turn, chain.attempt))


def _take_step(chain: _Chain, reply: ChatReply, *, prompts: PromptSet, config: GenerateConfig) -> None:
    """One transition of the stepping state."""
    if reply.finish == "error":
        _fail(chain, "failed", reply.error or "the backend gave no reply and no reason")
        return
    try:
        step = parse_step(reply.text)
    except ReplyError as error:
        _retry(chain, reply, reason=str(error), config=config)
        return
    chain.turn, chain.attempt = chain.turn + 1, 0
    count = len(chain.steps) + 1
    if step.action == "summary" and count < config.min_steps:
        step = ReasoningStep(summary=step.summary, reasoning=step.reasoning, action="continue")
    chain.steps.append(step)
    chain.messages.append(Message(role="assistant", text=reply.text))
    if step.action == "summary":
        chain.closing = True
        chain.messages.append(Message(role="user", text=prompts.render("generate_final", question=chain.sample.question)))
    elif count == config.max_steps:
        _fail(chain, "step_limit", f"still 'continue' after {count} steps")
    else:
        chain.messages.append(Message(role="user", text=prompts.render("generate_continue")))


def _take_answer(chain: _Chain, reply: ChatReply, *, config: GenerateConfig) -> None:
    """One transition of the closing state."""
    if reply.finish == "error":
        _fail(chain, "failed", reply.error or "the backend gave no reply and no reason")
        return
    chain.answer = read_answer(reply)
    if chain.answer is None:
        _retry(chain, reply, reason=f"no final answer in the reply {reply.text[:80]!r}", config=config)
    else:
        chain.status = "finished"


def _retry(chain: _Chain, reply: ChatReply, *, reason: str, config: GenerateConfig) -> None:
    """Ask the same turn again, or end the chain when its repairs are used up. ``max_repairs`` counts per turn."""
    if chain.attempt < config.max_repairs:
        chain.attempt += 1
        chain.repairs += 1
    else:
        _fail(chain, "truncated" if reply.finish == "length" else "unparsable", reason)


def _fail(chain: _Chain, status: PathStatus, reason: str) -> None:
    chain.status, chain.error = status, reason


def _close_chain(chain: _Chain, *, model: ChatModel, prompts: PromptSet, seed: int) -> ReasoningPath:
    assert chain.status is not None, f"chain {chain.id} left the loop alive"
    return ReasoningPath(
        id=chain.id,
        sample_id=chain.sample.id,
        index=chain.index,
        steps=tuple(chain.steps),
        answer=chain.answer,
        status=chain.status,
        replies=tuple(chain.replies),
        repairs=chain.repairs,
        seed=seed,
        model=model.name,
        prompts_hash=prompts.hash,
        new_tokens=chain.new_tokens,
        error=chain.error,
    )
