"""The systems of the ablation table (Insight-V tables 1 and 3) as data, and how each of them answers held-out questions.

A system never sees ground truth: answers are made first and scored afterwards. Every system gets the same questions,
prompts and seeds, so that differences can be paired.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from visloop.answers import compare_answers
from visloop.chat.base import ChatModel
from visloop.config import AnswerConfig, Combine, GenerateConfig, Sampling
from visloop.errors import ConfigError, DataError
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import answer_directly, answer_multi_turn, sample_chains
from visloop.reasoning.combine import combine_chains, group_chains, vote_chain_answers
from visloop.reasoning.generate import generate_paths
from visloop.reasoning.score_paths import PathScorer, ScoringTask
from visloop.records.reasoning import AgentAnswer, AnswerStatus, PathStatus, Prediction, ReasoningPath, Sample

SystemKind = Literal["direct", "step_by_step", "chain", "multi_turn", "two_agents"]
"""``direct``: the plain question. ``step_by_step``: the generator's state machine, one step per call. ``chain``: one model
writes thoughts and answer in one reply. ``multi_turn``: thoughts, then the answer in a second turn. ``two_agents``:
the reasoner's thoughts, the summarizer's answer."""

_STATUS: dict[PathStatus, AnswerStatus] = {
    "finished": "ok",
    "step_limit": "chain_truncated",
    "truncated": "chain_truncated",
    "unparsable": "chain_missing",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One row of the table. ``model`` and ``summarizer`` are roles in the mapping of opened models; with ``chains`` above 1
    the chains are sampled and combined as ``combine`` says."""

    name: str
    kind: SystemKind
    model: str
    summarizer: str | None = None
    combine: Combine = Combine.summary
    chains: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Exam:
    """What all systems of one table share: the questions and the conditions."""

    samples: Sequence[Sample]
    prompts: PromptSet
    answer: AnswerConfig
    sampled: Sampling
    seed: int
    image_root: Path


def list_systems(
    *, rounds: Sequence[str] = (), vote_chains: int = 0, votes_by: Sequence[Combine] = (Combine.self_consistency,)
) -> list[System]:
    """The rows of the ablation table in its order.

    Roles: ``base``, ``direct_sft`` (one model trained on chain and answer), ``multi_turn``, ``summarizer``, ``M_0`` and the
    accepted models of ``rounds`` (e.g. ``["M_1", "M_2"]``), oldest first.

    Args:
        vote_chains: chains per question of the rows that combine several chains of the last model; below 2 leaves them out.
        votes_by: how those rows combine; ``best_of_n`` needs a scorer when it is run.
    """
    systems = [
        System(name="base direct", kind="direct", model="base"),
        System(name="base step-by-step", kind="step_by_step", model="base"),
        System(name="direct SFT", kind="chain", model="direct_sft"),
        System(name="multi-turn", kind="multi_turn", model="multi_turn"),
        System(name="summary only", kind="direct", model="summarizer"),
        System(name="two agents", kind="two_agents", model="M_0", summarizer="summarizer"),
    ]
    if rounds:
        systems.append(System(name="two agents + 1 round", kind="two_agents", model=rounds[0], summarizer="summarizer"))
    if len(rounds) > 1:
        systems.append(System(name=f"two agents + {len(rounds)} rounds", kind="two_agents", model=rounds[-1], summarizer="summarizer"))
    final = systems[-1]
    titles = {Combine.self_consistency: "self-consistency", Combine.best_of_n: "best of N", Combine.summary: "first of N"}
    votes = [replace(final, name=f"{final.name}, {titles[by]} ({vote_chains} chains)", combine=by, chains=vote_chains) for by in votes_by]
    return systems + (votes if vote_chains > 1 else [])


def answer_system(
    system: System,
    exam: Exam,
    *,
    models: Mapping[str, ChatModel],
    generate: GenerateConfig | None = None,
    scorer: PathScorer | None = None,
    chains: Sequence[ReasoningPath] | None = None,
) -> list[AgentAnswer]:
    """The system's answers in the order of the samples.

    Args:
        models: opened models by role; only the system's own roles are needed.
        generate: limits of the state machine, for ``step_by_step``; it runs greedily, one chain per question.
        scorer: for ``best_of_n``; it must work without the true answer.
        chains: the reasoner's chains where they were sampled before; else they are sampled here.

    Raises:
        ConfigError: a role without a model, ``step_by_step`` without ``generate``, ``best_of_n`` without a scorer.
        DataError: ``chains`` lack a sample.
        ModelError: a backend broke its contract.
    """
    model = _find_model(system, system.model, models)
    common: dict[str, Any] = {"prompts": exam.prompts, "seed": exam.seed, "image_root": exam.image_root}
    if system.kind == "direct":
        return answer_directly(exam.samples, model=model, sampling=exam.answer.direct_sampling, **common)
    if system.kind == "multi_turn":
        samplings: dict[str, Any] = {"reason_sampling": exam.answer.reason_sampling, "answer_sampling": exam.answer.summary_sampling}
        return answer_multi_turn(exam.samples, model=model, **samplings, **common)
    if system.kind == "step_by_step":
        if generate is None:
            raise ConfigError(f"system {system.name!r}: the generator's limits (generate.*) are needed")
        greedy = replace(generate, samples_per_question=1, sampling=replace(generate.sampling, temperature=0.0))
        return vote_chain_answers(exam.samples, group_chains(generate_paths(exam.samples, model=model, config=greedy, **common)))
    if chains is None:
        chains = write_chains(exam, model=model, count=system.chains)
    grouped = group_chains(chains)
    if system.kind == "chain":
        return vote_chain_answers(exam.samples, grouped)
    summarizer = _find_model(system, system.summarizer or "", models)
    sampling = exam.answer.summary_sampling
    return combine_chains(exam.samples, grouped, model=summarizer, combine=system.combine, sampling=sampling, scorer=scorer, **common)


def write_chains(exam: Exam, *, model: ChatModel, count: int = 1, sampled: bool = False) -> list[ReasoningPath]:
    """``count`` chains of a reasoner per question: one by the greedy budget of ``exam.answer``, several (or ``sampled``) by
    ``exam.sampled``."""
    sampling = exam.sampled if sampled or count > 1 else exam.answer.reason_sampling
    return sample_chains(
        exam.samples,
        model=model,
        prompts=exam.prompts,
        samples_per_question=count,
        sampling=sampling,
        seed=exam.seed,
        image_root=exam.image_root,
    )


def score_answers(answers: Sequence[AgentAnswer], samples: Sequence[Sample], *, system: str) -> list[Prediction]:
    """Verdicts by rule, for data with a closed vocabulary of answers: what is not surely right is wrong. Open benchmarks are
    scored by ``evaluation.benchmarks`` instead.

    Raises:
        DataError: answers and samples do not belong together.
    """
    if [answer.sample_id for answer in answers] != [sample.id for sample in samples]:
        raise DataError(f"system {system}: {len(answers)} answers do not belong to the {len(samples)} samples, in order")
    return [
        Prediction(
            sample_id=sample.id,
            system=system,
            family=sample.family,
            group=sample.group,
            answer=answer.answer,
            correct=_is_right(answer.answer, sample),
            status=answer.status,
        )
        for answer, sample in zip(answers, samples, strict=True)
    ]


def run_system(
    system: System,
    exam: Exam,
    *,
    models: Mapping[str, ChatModel],
    generate: GenerateConfig | None = None,
    scorer: PathScorer | None = None,
    chains: Sequence[ReasoningPath] | None = None,
) -> list[Prediction]:
    """``answer_system``, then ``score_answers``."""
    answers = answer_system(system, exam, models=models, generate=generate, scorer=scorer, chains=chains)
    return score_answers(answers, exam.samples, system=system.name)


def answer_majority(samples: Sequence[Sample], *, train: Sequence[Sample], system: str = "majority answer") -> list[Prediction]:
    """The floor of every table: each question gets the most frequent training answer of its family (NLVR: always "true").

    A family that the training samples lack gets the most frequent answer of all; ties go to the answer seen first.

    Raises:
        DataError: there is no training sample.
    """
    if not train:
        raise DataError(f"{system}: no training sample to count answers of")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in train:
        counts[sample.family][sample.answer] += 1
        counts[""][sample.answer] += 1
    answers = [
        AgentAnswer(sample_id=sample.id, answer=counts[sample.family if sample.family in counts else ""].most_common(1)[0][0], status="ok")
        for sample in samples
    ]
    return score_answers(answers, samples, system=system)


def measure_reasoner(
    exam: Exam, *, name: str, greedy: Sequence[ReasoningPath], sampled: Sequence[ReasoningPath], scorer: PathScorer | None = None
) -> list[Prediction]:
    """What a reasoner M_t is worth by its own chains, one prediction per sample with the metrics

    * ``greedy_accuracy``: its greedy chain ends in the right answer (also ``Prediction.correct``),
    * ``sampled_accuracy``: share of its sampled chains that do (avg@k),
    * ``path_score``: mean score 1-100 of its sampled chains, where a scorer is given; unfinished chains count as 1,
    * ``malformed``: share of its sampled chains without readable thoughts and answer,
    * ``chain_tokens``: mean new tokens of its sampled chains.

    Raises:
        DataError: a sample lacks a greedy or a sampled chain.
    """
    one, many = group_chains(greedy), group_chains(sampled)
    lost = [sample.id for sample in exam.samples if not one.get(sample.id) or not many.get(sample.id)]
    if lost:
        raise DataError(f"{name}: {len(lost)} samples have no greedy or no sampled chain, e.g. {lost[0]}")
    scores = _score_chains(exam, many, scorer=scorer) if scorer else {}
    predictions = []
    for sample in exam.samples:
        chain, drawn = one[sample.id][0], many[sample.id]
        right = is_chain_right(chain, sample)
        metrics = {
            "greedy_accuracy": float(right),
            "sampled_accuracy": float(np.mean([is_chain_right(path, sample) for path in drawn])),
            "malformed": float(np.mean([path.status != "finished" for path in drawn])),
            "chain_tokens": float(np.mean([path.new_tokens for path in drawn])),
        }
        known = [scores[path.id] for path in drawn if path.id in scores]
        if known:
            metrics["path_score"] = float(np.mean(known))
        predictions.append(
            Prediction(
                sample_id=sample.id,
                system=name,
                family=sample.family,
                group=sample.group,
                answer=chain.answer,
                correct=right,
                status=_STATUS[chain.status],
                metrics=metrics,
            )
        )
    return predictions


def is_chain_right(path: ReasoningPath, sample: Sample) -> bool:
    """Whether a finished chain's own answer is right by rule."""
    return path.status == "finished" and _is_right(path.answer, sample)


def _is_right(answer: str | None, sample: Sample) -> bool:
    return answer is not None and compare_answers(answer, sample.answer, answer_type=sample.answer_type) == "correct"


def _score_chains(exam: Exam, chains: Mapping[str, Sequence[ReasoningPath]], *, scorer: PathScorer) -> dict[str, float]:
    """Mean score by path id; a chain that the scorer could not judge is left out, an unfinished one has the lowest score."""
    finished = {sample.id: tuple(path for path in chains[sample.id] if path.status == "finished") for sample in exam.samples}
    tasks = [ScoringTask(sample=sample, paths=finished[sample.id]) for sample in exam.samples if finished[sample.id]]
    scores = {path.id: 1.0 for drawn in chains.values() for path in drawn if path.status != "finished"}
    for path_id, score in scorer.score(tasks, seed=exam.seed, image_root=exam.image_root).items():
        given = [value for value in score.by_pass if value is not None]
        if given:
            scores[path_id] = float(np.mean(given))
    return scores


def _find_model(system: System, role: str, models: Mapping[str, ChatModel]) -> ChatModel:
    if role not in models:
        raise ConfigError(f"system {system.name!r} needs a model for the role {role!r}; opened: {', '.join(sorted(models)) or 'none'}")
    return models[role]
