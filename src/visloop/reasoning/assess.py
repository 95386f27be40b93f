"""Multi-granularity assessment of chains (Insight-V 3.2): the answer filter, then path scores with bands."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from scipy.stats import spearmanr

from visloop.chat.base import ChatModel
from visloop.config import AssessConfig
from visloop.errors import ConfigError, GateError
from visloop.prompts.render import PromptSet
from visloop.reasoning.answer_filter import AnswerVerdict, Candidate, judge_answers
from visloop.reasoning.asking import index_samples
from visloop.reasoning.replies import HIGHEST_SCORE, LOWEST_SCORE
from visloop.reasoning.score_paths import PathScore, PathScorer, ScoringTask
from visloop.records.reasoning import AssessedPath, ReasoningPath, Sample

HISTOGRAM_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessmentReport:
    """Counts over assessed paths.

    ``unjudged_answers``: paths with an answer but no verdict. ``unjudged_scores``: paths that were put to the scorer and got
    no usable score. The rates are shares of the paths with an answer and of the paths asked; ``unjudged_rate`` is the larger.
    ``histogram``: scored paths per tenth of the range (1-10, 11-20, ... 91-100). ``rank_stability``: see
    ``measure_rank_stability``.
    """

    paths: int
    questions: int
    by_status: dict[str, int]
    by_verdict: dict[str, int]
    by_rule: dict[str, int]
    by_judge: dict[str, int]
    by_band: dict[str, int]
    scored: int
    unjudged_answers: int
    unjudged_scores: int
    unjudged_rate: float
    unjudged_ids: tuple[str, ...]
    correct_rate: float
    mixed_question_rate: float
    mean_score: float | None
    mean_spread: float | None
    histogram: tuple[int, ...]
    first_errors: dict[str, int]
    rank_stability: float | None


def name_band(score: float, *, bands: Mapping[str, float]) -> str | None:
    """The band with the highest lower bound that ``score`` reaches, or None below all of them."""
    reached = [(bound, name) for name, bound in bands.items() if score >= bound]
    return max(reached)[1] if reached else None


def assess_paths(
    samples: Sequence[Sample],
    paths: Sequence[ReasoningPath],
    *,
    scorer: PathScorer,
    text_judge: ChatModel | None,
    prompts: PromptSet,
    config: AssessConfig,
    seed: int,
    image_root: Path,
) -> tuple[list[AssessedPath], AssessmentReport]:
    """Judge the answers, score the correct chains (and the wrong ones with ``config.score_wrong``), name the bands.

    A path without an answer is never scored, and its verdict is ``unjudged``: its status says why. Scores are the mean over
    the passes that gave one; a path for which none did is ``unjudged``, with every raw reply kept.

    Args:
        samples: must hold every sample the paths belong to; others are passed over.
        image_root: the folder to which the samples' image paths are relative.

    Returns:
        The assessed paths in the order of ``paths``, and the report.

    Raises:
        ConfigError: no bands, or one outside 1-100.
        DataError: a path's sample is missing, or an id occurs twice.
        ModelError: a backend did not give one reply per request.
    """
    if not config.bands or not all(LOWEST_SCORE <= bound <= HIGHEST_SCORE for bound in config.bands.values()):
        raise ConfigError(f"assess.bands: lower bounds must lie in 1-100, got {config.bands}")
    by_id = index_samples(samples, needed=(path.sample_id for path in paths))
    candidates = [
        Candidate(id=path.id, sample=by_id[path.sample_id], answer=path.answer)
        for path in paths
        if path.status == "finished" and path.answer is not None
    ]
    verdicts = judge_answers(candidates, text_judge=text_judge, prompts=prompts, sampling=config.judge_sampling, seed=seed)
    wanted = {"correct", "wrong"} if config.score_wrong else {"correct"}
    by_sample: dict[str, list[ReasoningPath]] = defaultdict(list)
    for path in paths:
        if path.id in verdicts and verdicts[path.id].verdict in wanted:
            by_sample[path.sample_id].append(path)
    tasks = [ScoringTask(sample=by_id[sample_id], paths=tuple(group)) for sample_id, group in by_sample.items()]
    scores = scorer.score(tasks, seed=seed, image_root=image_root) if tasks else {}
    assessed = [_assess_path(path, verdict=verdicts.get(path.id), score=scores.get(path.id), bands=config.bands) for path in paths]
    return assessed, report_assessment(assessed)


def _assess_path(
    path: ReasoningPath, *, verdict: AnswerVerdict | None, score: PathScore | None, bands: Mapping[str, float]
) -> AssessedPath:
    given = [value for value in score.by_pass if value is not None] if score else []
    mean = fmean(given) if given else None
    errors = Counter(score.errors) if score else Counter()
    replies = ((verdict.judge_reply,) if verdict and verdict.judge_reply is not None else ()) + (score.replies if score else ())
    return AssessedPath(
        path=path,
        verdict=verdict.verdict if verdict else "unjudged",
        rule_verdict=verdict.rule if verdict else "unjudged",
        judge_verdict=verdict.judge if verdict else None,
        score_status="not_asked" if score is None else "scored" if given else "unjudged",
        score=mean,
        score_spread=max(given) - min(given) if given else None,
        first_error_step=min(errors, key=lambda step: (-errors[step], step)) if errors else None,
        band=name_band(mean, bands=bands) if mean is not None else None,
        judge_replies=replies,
        pass_scores=score.by_pass if score else (),
    )


def measure_rank_stability(assessed: Sequence[AssessedPath]) -> float | None:
    """Do the passes rank the chains of a question alike? Mean Spearman correlation over questions and pairs of passes.

    1: always the same order, 0: unrelated. Only questions with two or more chains that both passes scored, and not all
    alike, say anything; None where there are none (one pass, one chain per question).
    """
    by_sample: dict[str, list[tuple[float | None, ...]]] = defaultdict(list)
    for item in assessed:
        if item.pass_scores:
            by_sample[item.path.sample_id].append(item.pass_scores)
    values = []
    for rows in by_sample.values():
        table = np.array(rows, dtype=float)  # None becomes NaN
        for first, second in combinations(range(table.shape[1]), 2):
            both = table[:, [first, second]]
            both = both[~np.isnan(both).any(axis=1)]
            if len(both) >= 2 and np.all(np.ptp(both, axis=0) > 0):
                values.append(float(spearmanr(both[:, 0], both[:, 1]).statistic))
    return fmean(values) if values else None


def report_assessment(assessed: Sequence[AssessedPath]) -> AssessmentReport:
    """Count over assessed paths, also over those of several shards together."""
    answered = [item for item in assessed if item.path.status == "finished"]
    asked = [item for item in assessed if item.score_status != "not_asked"]
    scores = [item.score for item in asked if item.score is not None]
    open_answers = [item.path.id for item in answered if item.verdict == "unjudged"]
    open_scores = [item.path.id for item in asked if item.score_status == "unjudged"]
    verdicts: dict[str, set[str]] = defaultdict(set)
    for item in assessed:
        verdicts[item.path.sample_id].add(item.verdict)
    counts, _ = np.histogram(scores, bins=np.linspace(0.5, 100.5, HISTOGRAM_BINS + 1))
    return AssessmentReport(
        paths=len(assessed),
        questions=len(verdicts),
        by_status=_count(item.path.status for item in assessed),
        by_verdict=_count(item.verdict for item in answered),
        by_rule=_count(item.rule_verdict for item in answered),
        by_judge=_count(item.judge_verdict for item in answered),
        by_band=_count(item.band for item in assessed),
        scored=len(scores),
        unjudged_answers=len(open_answers),
        unjudged_scores=len(open_scores),
        unjudged_rate=max(_share(len(open_answers), len(answered)), _share(len(open_scores), len(asked))),
        unjudged_ids=tuple(dict.fromkeys(open_answers + open_scores)),
        correct_rate=_share(sum(item.verdict == "correct" for item in assessed), len(assessed)),
        mixed_question_rate=_share(sum({"correct", "wrong"} <= found for found in verdicts.values()), len(verdicts)),
        mean_score=fmean(scores) if scores else None,
        mean_spread=fmean(item.score_spread for item in asked if item.score_spread is not None) if scores else None,
        histogram=tuple(int(count) for count in counts),
        first_errors=_count(item.first_error_step for item in assessed),
        rank_stability=measure_rank_stability(assessed),
    )


def check_unjudged_rate(report: AssessmentReport, *, max_rate: float) -> None:
    """Stop when too much stayed unjudged: a stage must not go on with what a broken judge left.

    Raises:
        GateError: ``report.unjudged_rate`` is over ``max_rate``.
    """
    if report.unjudged_rate > max_rate:
        raise GateError(
            f"assessment: {report.unjudged_answers} answers and {report.unjudged_scores} scores of {report.paths} paths stayed unjudged "
            f"({report.unjudged_rate:.1%}, allowed {max_rate:.1%}), e.g. paths {', '.join(report.unjudged_ids[:3])}; "
            "read their judge_replies, then fix the judge's prompt or model, or raise assess.max_unjudged_rate"
        )


def _count(values: Iterable[object]) -> dict[str, int]:
    return dict(sorted(Counter(str(value) for value in values if value is not None).items()))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
