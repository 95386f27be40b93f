"""The question pool (Insight-V: half hard questions that the base answers wrong, half from the important abilities).

Duplicates go, whatever is also in an evaluation set goes, no family takes more than its share; everything that was dropped
is in the report.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from visloop.answers import normalize_answer
from visloop.config import PoolConfig
from visloop.errors import ConfigError, DataError
from visloop.ids import seed_for
from visloop.reasoning.asking import index_samples
from visloop.records.reasoning import Sample, Verdict

DropReason = Literal["duplicate", "held_out_image", "held_out_group", "base_unjudged", "family_quota", "not_drawn"]
Stratum = Literal["hard", "rest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolReport:
    """What became of the candidates.

    ``dropped`` maps each reason to the sample ids in input order; ``composition`` maps a family to its counts of ``hard``
    and ``rest``; ``shortages`` says how many questions a stratum is short of its quota (never filled from the other one).
    ``same_text``: kept questions whose text, on other pictures, also occurs in a held-out set: not dropped, but told.
    """

    candidates: int
    kept: int
    quotas: dict[str, int]
    shortages: dict[str, int]
    composition: dict[str, dict[str, int]]
    dropped: dict[str, tuple[str, ...]]
    same_text: int
    held_out: int

    @property
    def drop_counts(self) -> dict[str, int]:
        """How many samples each reason took."""
        return {reason: len(ids) for reason, ids in self.dropped.items()}


def normalize_question(text: str) -> str:
    """Lower-case words of a question, without punctuation and doubled spaces."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def build_pool(
    samples: Sequence[Sample], *, base_verdicts: Mapping[str, Verdict], held_out: Sequence[Sample], config: PoolConfig, seed: int
) -> tuple[list[Sample], PoolReport]:
    """Choose ``config.size`` questions, in the order of ``samples``.

    In this order: exact duplicates go (same pictures by hash, same normalised question; the first stays); with
    ``config.decontaminate`` a question goes when its pictures, as a set, are those of a held-out question (a statement about
    three boxes may share a box with others and still be about another scene), or when a held-out question of the same group
    has the same text and answer (a re-rendered picture has another hash); a question without a verdict of
    the base is in neither stratum and goes. Then ``hard_share`` of the pool is drawn from the questions the base answered
    wrong and the rest from those it answered right, at random but with at most ``max_family_share`` of the pool per family.

    Args:
        base_verdicts: the verdict on the base's direct answer, by sample id.
        held_out: every sample of every evaluation and validation set.

    Raises:
        ConfigError: sizes or shares out of range.
        DataError: a sample has no base verdict, an id occurs twice, or decontamination lacks an image hash.
    """
    if config.size < 1 or not 0 <= config.hard_share <= 1 or not 0 < config.max_family_share <= 1:
        raise ConfigError("pool: need size >= 1, 0 <= hard_share <= 1 and 0 < max_family_share <= 1")
    by_id = index_samples(samples)
    unknown = [sample.id for sample in samples if sample.id not in base_verdicts]
    if unknown:
        raise DataError(
            f"pool: {len(unknown)} of {len(samples)} samples have no verdict of the base, e.g. {unknown[0]}; answer them all first"
        )
    dropped: dict[DropReason, list[str]] = defaultdict(list)
    candidates = _drop_duplicates(samples, dropped=dropped)
    if config.decontaminate:
        candidates = _drop_held_out(candidates, held_out=held_out, dropped=dropped)
    strata: dict[Stratum, list[Sample]] = {"hard": [], "rest": []}
    for sample in candidates:
        verdict = base_verdicts[sample.id]
        if verdict == "unjudged":
            dropped["base_unjudged"].append(sample.id)
        else:
            strata["hard" if verdict == "wrong" else "rest"].append(sample)
    hard = round(config.size * config.hard_share)
    quotas: dict[Stratum, int] = {"hard": hard, "rest": config.size - hard}
    chosen = _draw(strata, quotas=quotas, family_limit=max(1, int(config.size * config.max_family_share)), seed=seed, dropped=dropped)
    composition: dict[str, dict[str, int]] = {}
    for sample_id, stratum in chosen.items():
        composition.setdefault(by_id[sample_id].family, {"hard": 0, "rest": 0})[stratum] += 1
    drawn = Counter(chosen.values())
    held_texts = {normalize_question(sample.question) for sample in held_out}
    pool = [sample for sample in samples if sample.id in chosen]
    return pool, PoolReport(
        candidates=len(samples),
        kept=len(pool),
        quotas={str(stratum): quota for stratum, quota in quotas.items()},
        shortages={str(stratum): quota - drawn[stratum] for stratum, quota in quotas.items()},
        composition=dict(sorted(composition.items())),
        dropped={str(reason): tuple(ids) for reason, ids in dropped.items()},
        same_text=sum(normalize_question(sample.question) in held_texts for sample in pool),
        held_out=len(held_out),
    )


def _drop_duplicates(samples: Sequence[Sample], *, dropped: dict[DropReason, list[str]]) -> list[Sample]:
    seen: set[tuple[tuple[str, ...], str]] = set()
    kept = []
    for sample in samples:
        key = (sample.image_hashes or sample.images, normalize_question(sample.question))
        if key in seen:
            dropped["duplicate"].append(sample.id)
        else:
            seen.add(key)
            kept.append(sample)
    return kept


def _drop_held_out(samples: Sequence[Sample], *, held_out: Sequence[Sample], dropped: dict[DropReason, list[str]]) -> list[Sample]:
    if held_out:
        bare = [sample.id for sample in (*samples, *held_out) if len(sample.image_hashes) != len(sample.images)]
        if bare:
            raise DataError(f"pool: {len(bare)} samples lack image hashes, e.g. {bare[0]}; they cannot be compared with the held-out sets")
    scenes = {frozenset(sample.image_hashes) for sample in held_out}
    texts = {_text_key(sample) for sample in held_out}
    kept = []
    for sample in samples:
        if frozenset(sample.image_hashes) in scenes:
            dropped["held_out_image"].append(sample.id)
        elif _text_key(sample) in texts:
            dropped["held_out_group"].append(sample.id)
        else:
            kept.append(sample)
    return kept


def _text_key(sample: Sample) -> tuple[str, str, str, str]:
    return sample.source, sample.group, normalize_question(sample.question), normalize_answer(sample.answer)


def _draw(
    strata: Mapping[Stratum, Sequence[Sample]],
    *,
    quotas: Mapping[Stratum, int],
    family_limit: int,
    seed: int,
    dropped: dict[DropReason, list[str]],
) -> dict[str, Stratum]:
    """Sample ids with their stratum; the family limit holds over both strata, hard questions first."""
    families: Counter[str] = Counter()
    chosen: dict[str, Stratum] = {}
    for stratum, candidates in strata.items():
        taken = 0
        for sample in sorted(candidates, key=lambda sample: seed_for(seed, "pool", sample.id)):
            if taken == quotas[stratum]:
                dropped["not_drawn"].append(sample.id)
            elif families[sample.family] >= family_limit:
                dropped["family_quota"].append(sample.id)
            else:
                taken += 1
                families[sample.family] += 1
                chosen[sample.id] = stratum
    return chosen


def split_prompts(samples: Sequence[Sample], *, rounds: int, per_round: int, seed: int) -> list[list[Sample]]:
    """Disjoint prompt sets for the DPO rounds, ``per_round`` questions each (Insight-V 3.4).

    The draw of a question depends on its id and the seed only; a further round leaves the earlier sets as they are.

    Raises:
        ConfigError: fewer than ``rounds * per_round`` questions.
    """
    if rounds < 0 or per_round < 1:
        raise ConfigError(f"rounds: need rounds >= 0 and prompts_per_round >= 1, got {rounds} and {per_round}")
    if rounds * per_round > len(samples):
        raise ConfigError(
            f"rounds: {rounds} rounds x {per_round} prompts_per_round need {rounds * per_round} questions, there are {len(samples)}; "
            "lower rounds.rounds or rounds.prompts_per_round, or raise data.train"
        )
    order = sorted(index_samples(samples).values(), key=lambda sample: seed_for(seed, "prompts", sample.id))
    return [order[start * per_round : (start + 1) * per_round] for start in range(rounds)]
