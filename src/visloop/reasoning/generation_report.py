"""What a generation run gave: states, repairs, novelty of steps, tokens. Computed from the records alone, so that shards
written by different runs are reported together."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from statistics import fmean

from visloop.errors import ReplyError
from visloop.records.chains import parse_step
from visloop.records.reasoning import ReasoningPath, ReasoningStep


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationReport:
    """Counts over paths. Rates are shares of all paths (``finished_rate``) or of all steps (``duplicate_step_rate``).

    ``early_summaries``: steps at which the model wanted to stop before ``min_steps`` and was asked to go on.
    ``tokens_per_path`` includes the tokens of replies that were dropped.
    """

    paths: int
    questions: int
    by_status: dict[str, int]
    finished_rate: float
    steps: int
    steps_per_path: float
    repairs: int
    early_summaries: int
    duplicate_steps: int
    duplicate_step_rate: float
    distinct_chain_rate: float
    new_tokens: int
    tokens_per_path: float


def count_duplicate_steps(steps: Sequence[ReasoningStep], *, max_ratio: float) -> int:
    """How many steps repeat an earlier one of the same chain: text similarity (difflib ratio, 0-1) of ``max_ratio`` or more.

    The generation prompt asks for steps that differ strongly from what was said (Insight-V 3.2); this measures it.
    """
    texts = [" ".join(f"{step.summary}: {step.reasoning}".lower().split()) for step in steps]
    return sum(
        any(_is_similar(texts[later], texts[earlier], ratio=max_ratio) for earlier in range(later)) for later in range(1, len(texts))
    )


def _is_similar(text: str, other: str, *, ratio: float) -> bool:
    matcher = SequenceMatcher(a=other, b=text, autojunk=False)
    return matcher.real_quick_ratio() >= ratio and matcher.quick_ratio() >= ratio and matcher.ratio() >= ratio


def count_early_summaries(path: ReasoningPath) -> int:
    """How many accepted replies said ``summary`` where the record says ``continue`` (too early to stop)."""
    wanted = []
    for reply in path.replies:
        try:
            wanted.append(parse_step(reply).action)
        except ReplyError:
            continue  # a dropped reply or the final answer: counted as repairs or as the answer
    return sum(said == "summary" and step.action == "continue" for said, step in zip(wanted, path.steps, strict=False))


def report_generation(paths: Iterable[ReasoningPath], *, max_duplicate_ratio: float) -> GenerationReport:
    """Count states, repairs, duplicate steps and tokens over ``paths``."""
    paths = list(paths)
    steps = sum(len(path.steps) for path in paths)
    duplicates = sum(count_duplicate_steps(path.steps, max_ratio=max_duplicate_ratio) for path in paths)
    by_status = Counter(path.status for path in paths)
    finished = [path for path in paths if path.status == "finished"]
    distinct = {(path.sample_id, path.answer, tuple((step.summary, step.reasoning) for step in path.steps)) for path in finished}
    return GenerationReport(
        paths=len(paths),
        questions=len({path.sample_id for path in paths}),
        by_status=dict(sorted(by_status.items())),
        finished_rate=len(finished) / len(paths) if paths else 0.0,
        steps=steps,
        steps_per_path=steps / len(paths) if paths else 0.0,
        repairs=sum(path.repairs for path in paths),
        early_summaries=sum(count_early_summaries(path) for path in paths),
        duplicate_steps=duplicates,
        duplicate_step_rate=duplicates / steps if steps else 0.0,
        distinct_chain_rate=len(distinct) / len(finished) if finished else 0.0,
        new_tokens=sum(path.new_tokens for path in paths),
        tokens_per_path=fmean(path.new_tokens for path in paths) if paths else 0.0,
    )
