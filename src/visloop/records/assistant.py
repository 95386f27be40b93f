"""Records of the assistant (CLOVA), in the order in which they arise.

``Task -> Proposal -> Trace -> Feedback -> Critique -> (Demonstration | Instance -> PromptEntry) -> UpdateOutcome``.
Image paths inside records are POSIX paths relative to the data folder. Plans, programs and values are kept as text: what is
only in memory (pictures, masks, tensors) is described, or named by its hash.
"""

from dataclasses import dataclass, field
from typing import Literal

from visloop.records.reasoning import Split

TaskKind = Literal["vqa", "multi_image", "editing", "tagging"]
Wording = Literal["base", "new"]
"""Whether an instruction is worded as the demonstrations that the assistant starts with, or in a way it has not seen."""
ProposalStatus = Literal["ok", "unreadable", "failed"]
"""``unreadable``: the author replied, but no program could be read from it. ``failed``: no reply."""
TraceStatus = Literal["finished", "program_error", "tool_error", "no_program"]
"""``program_error``: the program is malformed or breaks a rule before or while it runs. ``tool_error``: a tool failed."""
FeedbackSource = Literal["ground_truth", "person"]
Grain = Literal["interrupt", "global", "local", "counterfactual", "confidence"]
"""Who blames: the three reflections of CLOVA, and two measures beside the LLM."""
Culprit = Literal["plan", "program", "tool", "nothing"]
CritiqueStatus = Literal["ok", "unreadable", "failed"]
DemonstrationKind = Literal["plan", "program"]
DemonstrationOutcome = Literal["success", "failure"]
Provenance = Literal["seed", "accepted", "repaired", "failed"]
"""``seed``: shipped. ``accepted``: the first run was right. ``repaired``: right after an update. ``failed``: what was wrong."""
InstanceSplit = Literal["train", "validation"]
DataSource = Literal["inference", "accepted", "open_vocabulary", "image_search"]
"""The paper's three ways to collect data for a tool (CLOVA 3.4), and ``accepted``: what an accepted run asked, to be kept."""
UpdateKind = Literal["plan_demonstration", "program_demonstration", "prompt"]
UpdateState = Literal["kept", "refused", "rolled_back", "no_data", "no_update"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One instruction about one or more pictures. ``group`` (a scene, an NLVR sentence) is the unit of splits and consistency.

    ``concepts`` are the concept words of the instruction that may be unknown to a tool; they are shown in reports and never
    given to planner or tools. ``inputs`` names the program variables that hold the pictures, in the order of ``images``.
    """

    id: str
    kind: TaskKind
    instruction: str
    images: tuple[str, ...]
    inputs: tuple[str, ...]
    family: str
    wording: Wording
    split: Split
    group: str
    source: str
    concepts: tuple[str, ...] = ()
    novel: bool = False
    image_hashes: tuple[str, ...] = ()
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledBox:
    """A box in pixels (left, top, right, bottom; right and bottom exclusive) with its label."""

    box: tuple[float, float, float, float]
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskTruth:
    """What only measuring instruments and feedback may read: the right result of a task, and the program that gives it.

    ``answer`` for ``vqa`` and ``multi_image``, ``boxes`` for ``tagging``, ``target`` (the right picture) and ``region`` (the boxes
    that had to change) for ``editing``.
    """

    task_id: str
    program: str
    plan: tuple[str, ...] = ()
    answer: str | None = None
    boxes: tuple[LabelledBox, ...] = ()
    target: str | None = None
    region: tuple[LabelledBox, ...] = ()
    scene: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A plan and a program for a task, and who wrote them. ``author`` is e.g. ``slot_filling``, ``search``, ``llm:<model>`` or
    ``lm:<model>`` (the embedded LM); ``confidence`` 0-1 where the author gives one. ``prompt_tokens`` and ``new_tokens``: what a chat
    model read and wrote for it, over all prompts and tries; 0 where none did, or where its server does not say."""

    task_id: str
    plan: tuple[str, ...]
    program: str
    author: str
    status: ProposalStatus = "ok"
    demonstrations: tuple[str, ...] = ()
    confidence: float | None = None
    replies: tuple[str, ...] = ()
    error: str | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTrace:
    """One executed program line. ``step`` counts from 1; ``arguments`` and ``output`` are texts for people and critics
    (converted per type, CLOVA 3.3); ``confidence`` is the tool's own, 0-1; ``prompts`` are the ids of the learned prompts used."""

    step: int
    line: str
    variable: str
    tool: str
    arguments: dict[str, str]
    output: str
    output_type: str
    seconds: float
    confidence: float | None = None
    prompts: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """One run of one program. ``result`` is the text form of the last value, ``result_image`` its picture's path if it is one,
    ``result_boxes`` its labelled boxes if it is tagged or boxed. A program's own fault is a state, never an exception."""

    id: str
    task_id: str
    proposal: Proposal
    steps: tuple[StepTrace, ...]
    status: TraceStatus
    result: str | None = None
    result_image: str | None = None
    result_boxes: tuple[LabelledBox, ...] = ()
    error: str | None = None
    error_step: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """What came back about one trace. ``answer`` is the right answer where it is known; for editing and tagging ``text`` says
    what was wrong."""

    id: str
    task_id: str
    trace_id: str
    accepted: bool
    answer: str | None = None
    text: str = ""
    source: FeedbackSource = "ground_truth"


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """Who is guilty, according to one critic. ``step`` counts program lines from 1; ``tool`` and ``concept`` are read from the
    program's syntax tree, never from the reply's wording. An unreadable reply blames nothing and is counted. The tokens are as those
    of a ``Proposal``, over all steps and tries."""

    id: str
    trace_id: str
    grain: Grain
    culprit: Culprit
    step: int | None = None
    tool: str | None = None
    concept: str | None = None
    reason: str = ""
    status: CritiqueStatus = "ok"
    author: str = ""
    confidence: float | None = None
    replies: tuple[str, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One entry of the four pools (plan | program, success | failure). ``reason`` says what was wrong, for failures. ``score``
    rises and falls by one with each right or wrong run that used it."""

    id: str
    kind: DemonstrationKind
    outcome: DemonstrationOutcome
    task_kind: TaskKind
    instruction: str
    plan: tuple[str, ...]
    program: str = ""
    reason: str = ""
    score: int = 0
    provenance: Provenance = "seed"
    trace_id: str | None = None
    cycle: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """One picture (or region of it) that a learnable tool is taught or validated with.

    ``concept`` is what is being learned, ``label`` what this picture shows (the concept for positives, something else for
    negatives) and ``group`` the kind of word that the source files the concept under (its supercategory: shape, colour, dog).
    ``target`` is the text that the tool should say to ``question``, where it answers in words. ``origin`` names the file or
    address, with its ``licence``.
    """

    id: str
    tool: str
    concept: str
    image: str
    positive: bool
    split: InstanceSplit
    source: DataSource
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    label: str = ""
    group: str = ""
    question: str = ""
    target: str = ""
    origin: str = ""
    licence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEntry:
    """One learned prompt of one tool and concept. Its tensors (``<id>.feature`` (d,) and ``<id>.prompt`` (tokens, width)) lie in the
    pool's safetensors file; ``base_accuracy`` is the tool's accuracy on the replay set with this prompt in the pool; ``group`` is the
    kind of word that the concept competes with (shape, colour)."""

    id: str
    tool: str
    concept: str
    backend: str
    placement: str
    instance_ids: tuple[str, ...]
    train_accuracy: float
    validation_accuracy: float
    base_accuracy: float
    base_accuracy_before: float
    cycle: int = 0
    group: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOutcome:
    """What one attempt to learn from one critique came to. ``rerun_trace_id`` is the run after the update, ``solved`` whether it was
    right; ``reason`` says why an update was refused or rolled back."""

    id: str
    feedback_id: str
    critique_id: str
    kind: UpdateKind | None
    state: UpdateState
    solved: bool
    rerun_trace_id: str | None = None
    demonstrations: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    reason: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
