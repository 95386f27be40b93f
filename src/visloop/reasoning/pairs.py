"""Preference pairs D_t from the chains of M_t (Insight-V 3.4; the pair rules are named after ``config.PairStrategy``).

The chosen chain is always whole and has the right answer. The rejected one is of the same question and is wrong,
malformed (no clear final answer, as in MMPR), or right with a clearly lower score, as the strategy allows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Literal

from visloop.config import PairConfig, PairStrategy
from visloop.errors import ConfigError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.asking import index_samples
from visloop.records.chains import format_chain
from visloop.records.reasoning import AssessedPath, PreferencePair, Sample

NoPairReason = Literal["no_path", "malformed", "unjudged", "unscored", "all_wrong", "all_correct", "no_margin", "identical", "too_long"]
"""Why a question gave no pair. ``no_path``: no chains. ``malformed``: no finished chain. ``unjudged``: no finished chain has
a verdict, or the correct ones have no partner but unjudged ones. ``unscored``: the strategy compares scores that are
missing. ``all_wrong`` / ``all_correct``: nothing to choose or to reject. ``no_margin``: scores too close. ``identical``,
``too_long``: the best candidate pair fell to that guard, and so did all others."""

_MALFORMED = ("unparsable", "truncated")


@dataclass(frozen=True, slots=True, kw_only=True)
class PairReport:
    """What the questions of a round gave. Lengths in characters; ``mean_margin`` over the pairs with both scores."""

    strategy: str
    questions: int
    pairs: int
    paired_questions: int
    no_pair: dict[str, tuple[str, ...]]
    by_family: dict[str, int]
    by_rejected: dict[str, int]
    mean_margin: float | None
    mean_chosen_length: float
    mean_rejected_length: float

    @property
    def no_pair_counts(self) -> dict[str, int]:
        """Questions without a pair, by reason."""
        return {reason: len(ids) for reason, ids in self.no_pair.items()}


@dataclass(frozen=True, slots=True)
class _Chain:
    """A chain as a training text. ``raw`` malformed chains are kept as the model wrote them."""

    item: AssessedPath
    text: str
    tie: int


@dataclass(slots=True)
class _Group:
    """The chains of one question by what they may serve for, each list in tie-break order."""

    correct: list[_Chain] = field(default_factory=list)
    wrong: list[_Chain] = field(default_factory=list)
    malformed: list[_Chain] = field(default_factory=list)
    unjudged: int = 0
    total: int = 0


def build_pairs(
    samples: Sequence[Sample], assessed: Sequence[AssessedPath], *, prompts: PromptSet, config: PairConfig, round: int, seed: int
) -> tuple[list[PreferencePair], PairReport]:
    """D_t: up to ``config.max_pairs_per_question`` pairs per question, in the order of ``samples``.

    Texts are what the reasoner is to write (``format_chain``); malformed chains, allowed only as rejected and only with
    ``config.keep_malformed_rejected``, are raw. A text is rejected once per question, and never both chosen and rejected.
    Pairs of equal scores, equal texts, or with
    lengths further apart than ``config.max_length_ratio`` are not made.

    Args:
        samples: the prompts of the round; every path's sample must be among them.
        round: t, from 0 (kept on the pairs).
        seed: breaks ties between chains that the strategy ranks equal.

    Raises:
        ConfigError: limits out of range.
        DataError: a path's sample is missing, or an id occurs twice.
    """
    if config.max_pairs_per_question < 1 or config.max_length_ratio < 1 or config.min_margin < 0:
        raise ConfigError("pairs: need max_pairs_per_question >= 1, max_length_ratio >= 1 and min_margin >= 0")
    index_samples(samples, needed=(item.path.sample_id for item in assessed))
    groups = _group_chains(assessed, config=config, seed=seed)
    pairs: list[PreferencePair] = []
    no_pair: dict[NoPairReason, list[str]] = defaultdict(list)
    by_family: Counter[str] = Counter()
    for sample in samples:
        chosen = _choose_pairs(groups.get(sample.id, _Group()), config=config)
        if isinstance(chosen, str):
            no_pair[chosen].append(sample.id)
            continue
        by_family[sample.family] += len(chosen)
        pairs += [_make_pair(sample, good, bad, prompts=prompts, config=config, round=round) for good, bad in chosen]
    margins = [
        pair.chosen_score - pair.rejected_score for pair in pairs if pair.chosen_score is not None and pair.rejected_score is not None
    ]
    malformed = {item.path.id for item in assessed if item.path.status != "finished"}
    kinds = Counter("malformed" if pair.rejected_path_id in malformed else str(pair.rejected_verdict) for pair in pairs)
    return pairs, PairReport(
        strategy=config.strategy.value,
        questions=len(samples),
        pairs=len(pairs),
        paired_questions=len({pair.sample_id for pair in pairs}),
        no_pair={str(reason): tuple(ids) for reason, ids in sorted(no_pair.items())},
        by_family=dict(sorted(by_family.items())),
        by_rejected=dict(sorted(kinds.items())),
        mean_margin=fmean(margins) if margins else None,
        mean_chosen_length=fmean(len(pair.chosen) for pair in pairs) if pairs else 0.0,
        mean_rejected_length=fmean(len(pair.rejected) for pair in pairs) if pairs else 0.0,
    )


def _group_chains(assessed: Sequence[AssessedPath], *, config: PairConfig, seed: int) -> dict[str, _Group]:
    groups: dict[str, _Group] = defaultdict(_Group)
    for item in sorted(assessed, key=lambda item: seed_for(seed, "pairs", item.path.id)):
        path, group = item.path, groups[item.path.sample_id]
        group.total += 1
        tie = group.total
        if path.status == "finished" and path.answer is not None:
            chain = _Chain(item, format_chain(path.steps, path.answer), tie)
            if item.verdict == "unjudged":
                group.unjudged += 1
            else:
                (group.correct if item.verdict == "correct" else group.wrong).append(chain)
        elif config.keep_malformed_rejected and path.status in _MALFORMED and len(path.replies) == 1 and path.replies[0].strip():
            # Several replies are the generator's turns, no text of the reasoner.
            group.malformed.append(_Chain(item, path.replies[0].strip(), tie))
    return groups


def _score(chain: _Chain, *, missing: float) -> float:
    return missing if chain.item.score is None else chain.item.score


def _best_first(chains: Sequence[_Chain]) -> list[_Chain]:
    return sorted(chains, key=lambda chain: (-_score(chain, missing=0.0), chain.tie))


def _margin(good: _Chain, bad: _Chain) -> float:
    """Score difference in points, -inf where a score is missing."""
    if good.item.score is None or bad.item.score is None:
        return float("-inf")
    return good.item.score - bad.item.score


def _has_margin(good: _Chain, bad: _Chain, *, config: PairConfig) -> bool:
    margin = _margin(good, bad)
    return margin > 0 and margin >= config.min_margin


def _rank_best_worst(group: _Group, config: PairConfig) -> Iterator[tuple[_Chain, _Chain]]:
    """Best correct against: wrong ones from the lowest score up, malformed ones, then correct ones that are clearly worse."""
    best, *others = _best_first(group.correct)
    worst_first = sorted(group.wrong, key=lambda chain: (_score(chain, missing=0.0), chain.tie))
    yield from ((best, bad) for bad in (*worst_first, *group.malformed))
    yield from ((best, bad) for bad in reversed(others) if _has_margin(best, bad, config=config))


def _rank_correct_flawed(group: _Group, config: PairConfig) -> Iterator[tuple[_Chain, _Chain]]:
    """Best correct against the wrong ones that look best (near misses); unscored wrong ones cannot be ranked."""
    best = _best_first(group.correct)[0]
    yield from ((best, bad) for bad in _best_first([chain for chain in group.wrong if chain.item.score is not None]))


def _rank_margin(group: _Group, config: PairConfig) -> Iterator[tuple[_Chain, _Chain]]:
    """Any correct chain against any scored one that is ``min_margin`` or more below it, the widest margin first."""
    pairs = [(good, bad) for good in group.correct for bad in (*group.wrong, *group.correct) if _has_margin(good, bad, config=config)]
    yield from sorted(pairs, key=lambda pair: (-_margin(*pair), pair[0].tie, pair[1].tie))


def _rank_first_error(group: _Group, config: PairConfig) -> Iterator[tuple[_Chain, _Chain]]:
    """Correct against wrong, the longest common beginning first: the pair differs from the wrong chain's first error on."""
    pairs = [(good, bad) for good in group.correct for bad in group.wrong]
    yield from sorted(pairs, key=lambda pair: (-count_common_steps(*pair), -_score(pair[0], missing=0.0), pair[0].tie, pair[1].tie))


def _rank_greedy(group: _Group, config: PairConfig) -> Iterator[tuple[_Chain, _Chain]]:
    """Pairs with the greedy chain first: what the model says by itself is pushed away where it is wrong, and up where it is right."""

    def is_greedy(chain: _Chain) -> bool:
        return chain.item.path.decoding == "greedy"

    yield from sorted(_rank_first_error(group, config), key=lambda pair: not any(map(is_greedy, pair)))


def count_common_steps(first: _Chain, second: _Chain) -> int:
    """How many steps two chains share from the start (summary and reasoning equal)."""
    count = 0
    for left, right in zip(first.item.path.steps, second.item.path.steps, strict=False):
        if (left.summary, left.reasoning) != (right.summary, right.reasoning):
            break
        count += 1
    return count


_RANKERS: dict[PairStrategy, Callable[[_Group, PairConfig], Iterator[tuple[_Chain, _Chain]]]] = {
    PairStrategy.best_worst: _rank_best_worst,
    PairStrategy.correct_flawed: _rank_correct_flawed,
    PairStrategy.margin: _rank_margin,
    PairStrategy.first_error: _rank_first_error,
    PairStrategy.greedy: _rank_greedy,
}


def _choose_pairs(group: _Group, *, config: PairConfig) -> list[tuple[_Chain, _Chain]] | NoPairReason:
    if not group.correct:
        return _explain_no_correct(group)
    candidates = list(_RANKERS[config.strategy](group, config))
    if not candidates:
        return _explain_no_candidate(group, config=config)
    chosen: list[tuple[_Chain, _Chain]] = []
    chosen_texts: set[str] = set()
    rejected_texts: set[str] = set()
    refusal: NoPairReason | None = None
    for good, bad in candidates:
        reason = _refuse_pair(good, bad, config=config)
        if reason is None and bad.text not in chosen_texts | rejected_texts and good.text not in rejected_texts:
            chosen_texts.add(good.text)
            rejected_texts.add(bad.text)
            chosen.append((good, bad))
            if len(chosen) == config.max_pairs_per_question:
                break
        refusal = refusal or reason
    return chosen or refusal or "identical"


def _refuse_pair(good: _Chain, bad: _Chain, *, config: PairConfig) -> NoPairReason | None:
    if good.text == bad.text:
        return "identical"
    short, long = sorted((len(good.text), len(bad.text)))
    return "too_long" if long > config.max_length_ratio * short else None


def _explain_no_correct(group: _Group) -> NoPairReason:
    if not group.total:
        return "no_path"
    if group.wrong:
        return "all_wrong"
    return "unjudged" if group.unjudged else "malformed"


def _explain_no_candidate(group: _Group, *, config: PairConfig) -> NoPairReason:
    if config.strategy in (PairStrategy.best_worst, PairStrategy.margin):
        judged = [*group.correct, *group.wrong]
        if len(judged) > 1:
            return "unscored" if sum(chain.item.score is not None for chain in judged) < 2 else "no_margin"
    elif group.wrong:
        return "unscored"
    return "unjudged" if group.unjudged else "all_correct"


def _make_pair(sample: Sample, good: _Chain, bad: _Chain, *, prompts: PromptSet, config: PairConfig, round: int) -> PreferencePair:
    return PreferencePair(
        id=make_id("pair", round, good.item.path.id, bad.item.path.id),
        sample_id=sample.id,
        images=sample.images,
        prompt=prompts.render("reason", question=sample.question),
        chosen=good.text,
        rejected=bad.text,
        chosen_path_id=good.item.path.id,
        rejected_path_id=bad.item.path.id,
        chosen_verdict=good.item.verdict,
        rejected_verdict=bad.item.verdict,
        chosen_score=good.item.score,
        rejected_score=bad.item.score,
        strategy=config.strategy.value,
        round=round,
    )
