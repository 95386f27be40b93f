"""Records of the Insight-V loop, in the order in which they arise.

``Sample -> ReasoningPath -> AssessedPath -> SFTExample | PreferencePair -> AgentAnswer -> Prediction``.
Image paths inside records are POSIX paths relative to the data folder, so records are the same on every machine.
"""

from dataclasses import dataclass, field
from typing import Literal

AnswerType = Literal["boolean", "number", "letter", "phrase"]
Split = Literal["train", "validation", "test"]
Action = Literal["continue", "summary"]
PathStatus = Literal["finished", "step_limit", "unparsable", "truncated", "failed"]
"""``finished``: steps and an answer. ``step_limit``: still "continue" after the last allowed step. ``unparsable``: no
readable step after all repairs. ``truncated``: cut by the token budget. ``failed``: the backend gave no reply."""
Decoding = Literal["sampled", "greedy"]
Verdict = Literal["correct", "wrong", "unjudged"]
ScoreStatus = Literal["scored", "unjudged", "not_asked"]
ExampleKind = Literal["reason", "optimal", "flawed", "wrong_answer", "agent", "general", "direct", "multi_turn", "plan", "program"]
"""``plan`` and ``program`` are a planner's (``records/programs.py``), the others the two agents'."""
AnswerStatus = Literal["ok", "chain_missing", "chain_truncated", "answer_missing", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A question about one or more pictures. ``group`` is the unit of splitting and of consistency (a scene, an NLVR sentence)."""

    id: str
    images: tuple[str, ...]
    question: str
    answer: str
    answer_type: AnswerType
    family: str
    split: Split
    source: str
    group: str
    image_hashes: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningStep:
    """One step of a chain (Insight-V 3.2): a short summary, the detailed reasoning, what to do next."""

    summary: str
    reasoning: str
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """What only measuring instruments may read: the scene behind a sample and its exact reasoning."""

    sample_id: str
    scene: str
    steps: tuple[ReasoningStep, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasoningPath:
    """One chain, sampled or greedy. ``replies`` keeps every raw reply, readable or not; ``error`` says why a chain is not finished."""

    id: str
    sample_id: str
    index: int
    steps: tuple[ReasoningStep, ...]
    answer: str | None
    status: PathStatus
    replies: tuple[str, ...]
    repairs: int
    seed: int
    model: str
    prompts_hash: str
    new_tokens: int = 0
    error: str | None = None
    decoding: Decoding = "sampled"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssessedPath:
    """A path with its two grains of assessment: the verdict on its answer and its score 1-100 (Insight-V 3.2).

    ``rule_verdict`` and ``judge_verdict`` are kept beside the combined ``verdict``. ``score`` is the mean over the
    passes, ``score_spread`` their range, ``pass_scores`` what each pass gave (None: nothing usable); ``band`` is the name of
    the score band from the config. ``first_error_step`` counts from 1; one past the last step means that steps are missing.
    """

    path: ReasoningPath
    verdict: Verdict
    rule_verdict: Verdict
    judge_verdict: Verdict | None
    score_status: ScoreStatus
    score: float | None
    score_spread: float | None
    first_error_step: int | None
    band: str | None
    judge_replies: tuple[str, ...] = ()
    pass_scores: tuple[float | None, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTurn:
    """One turn of a conversation as text; the pictures of a sample always belong to the first user turn."""

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SFTExample:
    """A conversation to imitate. Loss is taken on the last assistant turn (on every one for ``multi_turn``)."""

    id: str
    sample_id: str
    kind: ExampleKind
    images: tuple[str, ...]
    turns: tuple[ChatTurn, ...]
    path_id: str | None = None
    band: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """A preferred and a rejected chain of one question, with what led to the choice."""

    id: str
    sample_id: str
    images: tuple[str, ...]
    prompt: str
    chosen: str
    rejected: str
    chosen_path_id: str
    rejected_path_id: str
    chosen_verdict: Verdict
    rejected_verdict: Verdict
    chosen_score: float | None
    rejected_score: float | None
    strategy: str
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAnswer:
    """What the two agents said to one question: the reasoner's chain(s) and the summarizer's answer."""

    sample_id: str
    answer: str | None
    status: AnswerStatus
    chains: tuple[str, ...] = ()
    chain_answers: tuple[str | None, ...] = ()
    raw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One system's answer to one evaluation sample, scored."""

    sample_id: str
    system: str
    family: str
    group: str
    answer: str | None
    correct: bool
    status: AnswerStatus
    metrics: dict[str, float] = field(default_factory=dict)
