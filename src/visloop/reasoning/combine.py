"""One answer from one or several chains: a single summary, a vote, or the best-scored chain (``Combine``)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from visloop.answers import normalize_answer
from visloop.chat.base import ChatModel
from visloop.config import Combine, Sampling
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import join_replies, summarize_chains
from visloop.reasoning.score_paths import PathScorer, ScoringTask
from visloop.records.reasoning import AgentAnswer, AnswerStatus, PathStatus, ReasoningPath, Sample

_OWN_STATUS: dict[PathStatus, AnswerStatus] = {
    "finished": "ok",
    "step_limit": "chain_truncated",
    "truncated": "chain_truncated",
    "unparsable": "chain_missing",
    "failed": "failed",
}


def group_chains(paths: Sequence[ReasoningPath]) -> dict[str, list[ReasoningPath]]:
    """Chains by sample id, ordered by index."""
    grouped: dict[str, list[ReasoningPath]] = {}
    for path in sorted(paths, key=lambda path: path.index):
        grouped.setdefault(path.sample_id, []).append(path)
    return grouped


def vote(answers: Sequence[str | None]) -> int | None:
    """Index of the first answer of the most frequent kind (compared after normalising), or None without any answer.

    Missing answers do not vote; a tie goes to the kind that was said first.
    """
    kinds = [None if answer is None else normalize_answer(answer) for answer in answers]
    counts = Counter(kind for kind in kinds if kind is not None)
    if not counts:
        return None
    most = max(counts.values())
    return next(index for index, kind in enumerate(kinds) if kind is not None and counts[kind] == most)


def vote_chain_answers(samples: Sequence[Sample], chains_by_sample: Mapping[str, Sequence[ReasoningPath]]) -> list[AgentAnswer]:
    """Self-consistency of the reasoner alone: the majority of its chains' own answers. With one chain: its own answer.

    Raises:
        DataError: a sample has no chain.
    """
    answers = []
    for sample in samples:
        chains = _list_chains(sample, chains_by_sample)
        own = [path.answer if path.status == "finished" else None for path in chains]
        winner = vote(own)
        answers.append(
            AgentAnswer(
                sample_id=sample.id,
                answer=None if winner is None else own[winner],
                status=_OWN_STATUS[chains[0].status] if winner is None else "ok",
                chains=tuple(join_replies(path) for path in chains),
                chain_answers=tuple(own),
                raw="" if winner is None else "".join(chains[winner].replies[-1:]),
            )
        )
    return answers


def pick_best_chains(
    samples: Sequence[Sample],
    chains_by_sample: Mapping[str, Sequence[ReasoningPath]],
    *,
    scorer: PathScorer,
    seed: int,
    image_root: Path,
) -> dict[str, ReasoningPath]:
    """Best-of-N: the finished chain with the highest mean score of each sample; ties go to the lower index.

    The scorer must not see the true answer (a ``ChatScorer`` with ``show_answer=False``). Without a finished and scored
    chain the first finished one is taken, and without any of those the first chain.

    Raises:
        ConfigError: the scorer sees the ground truth, which must be out of reach when questions are answered.
        DataError: a sample has no chain.
    """
    if scorer.sees_answer:
        raise ConfigError(f"best_of_n: scorer {scorer.name!r} sees the true answers; use a judge with show_answer=false")
    finished = {sample.id: [path for path in _list_chains(sample, chains_by_sample) if path.status == "finished"] for sample in samples}
    tasks = [ScoringTask(sample=sample, paths=tuple(finished[sample.id])) for sample in samples if len(finished[sample.id]) > 1]
    scores = scorer.score(tasks, seed=seed, image_root=image_root) if tasks else {}

    def rank(path: ReasoningPath) -> float:
        given = [score for score in scores[path.id].by_pass if score is not None] if path.id in scores else []
        return sum(given) / len(given) if given else 0.0

    return {sample.id: max(finished[sample.id], key=rank) if finished[sample.id] else chains_by_sample[sample.id][0] for sample in samples}


def vote_summaries(
    samples: Sequence[Sample],
    chains_by_sample: Mapping[str, Sequence[ReasoningPath]],
    *,
    model: ChatModel,
    prompts: PromptSet,
    sampling: Sampling,
    seed: int,
    image_root: Path,
) -> list[AgentAnswer]:
    """Self-consistency of the two agents: the summarizer answers from every chain, the majority wins; one batch."""
    plan = [(sample, path) for sample in samples for path in _list_chains(sample, chains_by_sample)]
    # One record per (sample, chain) with an id of its own lets one batch hold them all.
    copies = [replace(sample, id=path.id) for sample, path in plan]
    single = summarize_chains(
        copies,
        {path.id: [path] for _, path in plan},
        model=model,
        prompts=prompts,
        sampling=sampling,
        seed=seed,
        image_root=image_root,
    )
    by_sample: dict[str, list[AgentAnswer]] = {}
    for (sample, _), answer in zip(plan, single, strict=True):
        by_sample.setdefault(sample.id, []).append(answer)
    answers = []
    for sample in samples:
        votes = by_sample[sample.id]
        winner = vote([answer.answer for answer in votes])
        told = votes[winner or 0]
        answers.append(
            replace(
                told,
                sample_id=sample.id,
                chains=tuple(chain for answer in votes for chain in answer.chains),
                chain_answers=tuple(own for answer in votes for own in answer.chain_answers),
            )
        )
    return answers


def combine_chains(
    samples: Sequence[Sample],
    chains_by_sample: Mapping[str, Sequence[ReasoningPath]],
    *,
    model: ChatModel,
    prompts: PromptSet,
    combine: Combine,
    sampling: Sampling,
    seed: int,
    image_root: Path,
    scorer: PathScorer | None = None,
) -> list[AgentAnswer]:
    """The two agents' answers, several chains combined as ``combine`` says.

    Args:
        model: the summarizer.
        sampling: the budget of its answers.
        scorer: for ``best_of_n``; it must work without the true answer.

    Raises:
        ConfigError: ``best_of_n`` without a scorer.
        DataError: a sample has no chain.
        ModelError: a backend did not give one reply per request.
    """
    common: dict[str, Any] = {"model": model, "prompts": prompts, "sampling": sampling, "seed": seed, "image_root": image_root}
    if combine is Combine.self_consistency:
        return vote_summaries(samples, chains_by_sample, **common)
    chosen: Mapping[str, Sequence[ReasoningPath]] = chains_by_sample
    if combine is Combine.best_of_n:
        if scorer is None:
            raise ConfigError("best_of_n needs a path scorer; mount a judge or choose summary or self_consistency")
        best = pick_best_chains(samples, chains_by_sample, scorer=scorer, seed=seed, image_root=image_root)
        chosen = {sample_id: [path] for sample_id, path in best.items()}
    return summarize_chains(samples, chosen, **common)


def _list_chains(sample: Sample, chains_by_sample: Mapping[str, Sequence[ReasoningPath]]) -> Sequence[ReasoningPath]:
    chains = chains_by_sample.get(sample.id)
    if not chains:
        raise DataError(f"sample {sample.id}: no chain of the reasoner; sample one (also a failed one) for every question")
    return chains
