"""Training sets of the two agents (Insight-V 3.3) and of its ablations.

The reasoner learns the best correct chain of each question. The summarizer learns to answer from good chains and from
flawed ones of every score band, from wrong ones, from the trained reasoner's own, and keeps direct answering through plain
QA; its target is always the true answer. A kind that runs short is reported and never filled from another.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from math import ceil, isclose
from typing import Literal

from visloop.config import SetsConfig
from visloop.errors import ConfigError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import read_thoughts
from visloop.reasoning.asking import index_samples
from visloop.records.chains import format_chain, format_thoughts
from visloop.records.reasoning import AssessedPath, ChatTurn, ExampleKind, ReasoningPath, Sample, SFTExample

SUMMARY_KINDS: tuple[ExampleKind, ...] = ("optimal", "flawed", "wrong_answer", "agent", "general")
SkipReason = Literal["no_path", "no_correct", "unscored", "low_score", "not_in_fraction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetReport:
    """What a set holds, and what it lacks.

    ``shortages``: examples that a kind's share asked for and the data did not give. ``skipped``: questions without an
    example, by reason (reason-like sets only).
    """

    size: int
    questions: int
    by_kind: dict[str, int]
    by_band: dict[str, int]
    by_family: dict[str, int]
    shortages: dict[str, int]
    skipped: dict[str, int]


def pick_best_paths(assessed: Iterable[AssessedPath], *, min_score: float) -> dict[str, AssessedPath]:
    """The best correct chain of each question by sample id: highest score, then fewer tokens, then the id."""
    best: dict[str, AssessedPath] = {}
    for item in assessed:
        if item.verdict == "correct" and item.path.status == "finished" and item.score is not None and item.score >= min_score:
            rival = best.get(item.path.sample_id)
            if rival is None or _rank(item) < _rank(rival):
                best[item.path.sample_id] = item
    return best


def _rank(item: AssessedPath) -> tuple[float, int, str]:
    return -(item.score or 0.0), item.path.new_tokens, item.path.id


def build_reason_set(
    samples: Sequence[Sample], assessed: Sequence[AssessedPath], *, prompts: PromptSet, config: SetsConfig, seed: int
) -> tuple[list[SFTExample], SetReport]:
    """D_reason: exactly one example per question, its best correct chain, then the true answer in the form the data gives.

    ``config.reason_fraction`` keeps a share of the questions for scaling curves; smaller fractions are subsets of larger
    ones under the same seed.

    Raises:
        ConfigError: the fraction is not in (0, 1].
        DataError: a path's sample is missing, or an id occurs twice.
    """
    return _build_chain_set(samples, assessed, kind="reason", prompts=prompts, config=config, seed=seed)


def build_multi_turn_set(
    samples: Sequence[Sample], assessed: Sequence[AssessedPath], *, prompts: PromptSet, config: SetsConfig, seed: int
) -> tuple[list[SFTExample], SetReport]:
    """The multi-turn ablation (Insight-V 4.3): the questions and chains of D_reason, thoughts and answer in two turns.

    Raises:
        ConfigError: the fraction is not in (0, 1].
        DataError: a path's sample is missing, or an id occurs twice.
    """
    return _build_chain_set(samples, assessed, kind="multi_turn", prompts=prompts, config=config, seed=seed)


def build_direct_set(
    samples: Sequence[Sample],
    assessed: Sequence[AssessedPath],
    *,
    general: Sequence[Sample],
    prompts: PromptSet,
    config: SetsConfig,
    seed: int,
) -> tuple[list[SFTExample], SetReport]:
    """The direct-SFT ablation (Insight-V 4.3): one model writes chain and answer in one reply.

    The questions and chains of D_reason (kind ``direct``, same text as the reason set), and plain direct answers to
    ``general`` (kind ``general``), so that one model sees what the two agents see together.

    Raises:
        ConfigError: the fraction is not in (0, 1].
        DataError: a path's sample is missing, or an id occurs twice.
    """
    examples, report = _build_chain_set(samples, assessed, kind="direct", prompts=prompts, config=config, seed=seed)
    plain, _ = build_answer_set(general, prompts=prompts)
    by_id = {**index_samples(samples), **index_samples(general)}
    return [*examples, *plain], report_set([*examples, *plain], samples=by_id, skipped=report.skipped)


def build_answer_set(samples: Sequence[Sample], *, prompts: PromptSet) -> tuple[list[SFTExample], SetReport]:
    """Plain direct answers without chains: the summary-only ablation, and the general QA of other sets."""
    examples = [_make_general(sample, prompts=prompts) for sample in samples]
    return examples, report_set(examples, samples=index_samples(samples))


def _build_chain_set(
    samples: Sequence[Sample],
    assessed: Sequence[AssessedPath],
    *,
    kind: ExampleKind,
    prompts: PromptSet,
    config: SetsConfig,
    seed: int,
) -> tuple[list[SFTExample], SetReport]:
    if not 0 < config.reason_fraction <= 1:
        raise ConfigError(f"sets.reason_fraction must lie in (0, 1], got {config.reason_fraction}")
    by_id = index_samples(samples, needed=(item.path.sample_id for item in assessed))
    best = pick_best_paths(assessed, min_score=config.reason_min_score)
    order = sorted(best, key=lambda sample_id: seed_for(seed, "reason_fraction", sample_id))
    kept = set(order[: ceil(config.reason_fraction * len(order))])
    skipped: Counter[str] = Counter({"not_in_fraction": len(best) - len(kept)})
    items: dict[str, list[AssessedPath]] = defaultdict(list)
    for item in assessed:
        items[item.path.sample_id].append(item)
    skipped.update(_explain_skip(items[sample.id]) for sample in samples if sample.id not in best)
    examples = [_make_chain_example(sample, best[sample.id], kind=kind, prompts=prompts) for sample in samples if sample.id in kept]
    return examples, report_set(examples, samples=by_id, skipped=+skipped)


def _explain_skip(items: Sequence[AssessedPath]) -> SkipReason:
    correct = [item for item in items if item.verdict == "correct"]
    if not items:
        return "no_path"
    if not correct:
        return "no_correct"
    return "low_score" if any(item.score is not None for item in correct) else "unscored"


def _make_chain_example(sample: Sample, item: AssessedPath, *, kind: ExampleKind, prompts: PromptSet) -> SFTExample:
    path = item.path
    ask = ChatTurn(role="user", text=prompts.render("reason", question=sample.question))
    turns: tuple[ChatTurn, ...]
    if kind == "multi_turn":
        turns = (
            ask,
            ChatTurn(role="assistant", text=format_thoughts(path.steps)),
            ChatTurn(role="user", text=prompts.render("multi_turn_answer", question=sample.question)),
            ChatTurn(role="assistant", text=sample.answer),
        )
    else:
        turns = (ask, ChatTurn(role="assistant", text=format_chain(path.steps, sample.answer)))
    return _make_example(sample, kind=kind, turns=turns, path_id=path.id, band=item.band)


def build_summary_set(
    samples: Sequence[Sample],
    assessed: Sequence[AssessedPath],
    *,
    agent_paths: Sequence[ReasoningPath],
    general: Sequence[Sample],
    prompts: PromptSet,
    config: SetsConfig,
    seed: int,
) -> tuple[list[SFTExample], SetReport]:
    """D_summary: ``config.summary_size`` examples in the shares of ``config.summary_shares``.

    ``optimal``: the best correct chain of a question. ``flawed``: its other correct chains, drawn in turn from every score
    band. ``wrong_answer``: chains that end in a wrong answer. ``agent``: what the trained reasoner itself writes, right or
    wrong, as the summarizer will see it. ``general``: plain questions under the ``direct`` prompt. Each kind takes one chain
    of every question before a second one; the same chain text of a question is used once.

    Args:
        samples: must hold every sample of ``assessed`` and ``agent_paths``.
        agent_paths: chains from ``sample_chains``; those whose thoughts are missing or cut are passed over.

    Raises:
        ConfigError: an unknown kind, or shares that do not sum to 1.
        DataError: a path's sample is missing, or an id occurs twice.
    """
    quotas = split_shares(config.summary_size, shares=config.summary_shares)
    by_id = index_samples(samples, needed=[*(item.path.sample_id for item in assessed), *(path.sample_id for path in agent_paths)])
    best = {item.path.id for item in pick_best_paths(assessed, min_score=0.0).values()}
    scored = [item for item in assessed if item.path.status == "finished" and item.verdict == "correct" and item.score is not None]
    bands: dict[str, list[AssessedPath]] = defaultdict(list)
    for item in scored:
        if item.path.id not in best:
            bands[item.band or ""].append(item)
    spread = zip_longest(*(_spread([(item.path, item.band) for item in group], seed=seed) for _, group in sorted(bands.items())))
    wrong = [(item.path, item.band) for item in assessed if item.path.status == "finished" and item.verdict == "wrong"]
    candidates: dict[ExampleKind, Iterable[tuple[ReasoningPath, str | None]]] = {
        "optimal": _spread([(item.path, item.band) for item in scored if item.path.id in best], seed=seed),
        "flawed": [pair for turn in spread for pair in turn if pair is not None],
        "wrong_answer": _spread(wrong, seed=seed),
        "agent": _spread([(path, None) for path in agent_paths], seed=seed),
    }
    examples: list[SFTExample] = []
    used: set[tuple[str, str]] = set()
    for kind, pairs in candidates.items():
        left = quotas[kind]
        for path, band in pairs:
            thoughts = read_thoughts(path)
            if left == 0:
                break
            if thoughts is not None and (path.sample_id, thoughts) not in used:
                used.add((path.sample_id, thoughts))
                left -= 1
                examples.append(_make_summary(by_id[path.sample_id], path, thoughts, kind=kind, band=band, prompts=prompts))
    plain = sorted(index_samples(general).values(), key=lambda sample: seed_for(seed, "general", sample.id))
    examples += [_make_general(sample, prompts=prompts) for sample in plain[: quotas["general"]]]
    counts = Counter(example.kind for example in examples)
    shortages = {str(kind): quota - counts[kind] for kind, quota in quotas.items() if quota > counts[kind]}
    return examples, report_set(examples, samples={**by_id, **index_samples(general)}, shortages=shortages)


def split_shares(size: int, *, shares: Mapping[str, float]) -> dict[ExampleKind, int]:
    """Whole numbers per kind that sum to ``size`` (largest remainders).

    Raises:
        ConfigError: an unknown kind, a negative share, or a sum that is not 1.
    """
    unknown = sorted(set(shares) - set(SUMMARY_KINDS))
    if unknown:
        raise ConfigError(f"sets.summary_shares: unknown kind {unknown[0]!r}; kinds are {', '.join(SUMMARY_KINDS)}")
    if any(share < 0 for share in shares.values()) or not isclose(sum(shares.values()), 1.0, abs_tol=1e-6):
        raise ConfigError(f"sets.summary_shares must be non-negative and sum to 1, got {shares}")
    exact = {kind: size * shares.get(kind, 0.0) for kind in SUMMARY_KINDS}
    counts = {kind: int(value + 1e-9) for kind, value in exact.items()}
    by_remainder = sorted(SUMMARY_KINDS, key=lambda kind: counts[kind] - exact[kind])
    for kind in by_remainder[: size - sum(counts.values())]:
        counts[kind] += 1
    return counts


def _spread(pairs: Sequence[tuple[ReasoningPath, str | None]], *, seed: int) -> list[tuple[ReasoningPath, str | None]]:
    """In random order keyed by path id, one chain of every question before any second one."""
    rounds: Counter[str] = Counter()
    ranked = []
    for pair in sorted(pairs, key=lambda pair: seed_for(seed, "summary", pair[0].id)):
        ranked.append((rounds[pair[0].sample_id], pair))
        rounds[pair[0].sample_id] += 1
    return [pair for _, pair in sorted(ranked, key=lambda entry: entry[0])]


def _make_summary(
    sample: Sample, path: ReasoningPath, thoughts: str, *, kind: ExampleKind, band: str | None, prompts: PromptSet
) -> SFTExample:
    ask = prompts.render("summarize", question=sample.question, chain=thoughts)
    turns = (ChatTurn(role="user", text=ask), ChatTurn(role="assistant", text=sample.answer))
    return _make_example(sample, kind=kind, turns=turns, path_id=path.id, band=band)


def _make_general(sample: Sample, *, prompts: PromptSet) -> SFTExample:
    turns = (ChatTurn(role="user", text=prompts.render("direct", question=sample.question)), ChatTurn(role="assistant", text=sample.answer))
    return _make_example(sample, kind="general", turns=turns, path_id=None, band=None)


def _make_example(sample: Sample, *, kind: ExampleKind, turns: tuple[ChatTurn, ...], path_id: str | None, band: str | None) -> SFTExample:
    return SFTExample(
        id=make_id(kind, sample.id, path_id or ""),
        sample_id=sample.id,
        kind=kind,
        images=sample.images,
        turns=turns,
        path_id=path_id,
        band=band,
    )


def report_set(
    examples: Sequence[SFTExample],
    *,
    samples: Mapping[str, Sample],
    shortages: Mapping[str, int] | None = None,
    skipped: Mapping[str, int] | None = None,
) -> SetReport:
    """Count a set's examples by kind, band and family."""
    return SetReport(
        size=len(examples),
        questions=len({example.sample_id for example in examples}),
        by_kind=dict(sorted(Counter(str(example.kind) for example in examples).items())),
        by_band=dict(sorted(Counter(example.band for example in examples if example.band is not None).items())),
        by_family=dict(sorted(Counter(samples[example.sample_id].family for example in examples).items())),
        shortages=dict(shortages or {}),
        skipped=dict(sorted((skipped or {}).items())),
    )
