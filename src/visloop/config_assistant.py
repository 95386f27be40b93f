"""The typed schema of the assistant's values (CLOVA): tools, planner, reflection, learning, providers, tasks. Part of ``visloop.config``.

Numbers here are neutral starts; the papers' numbers and the embedded default's are in ``conf/`` with their source.
"""

from dataclasses import dataclass, field
from enum import Enum

from visloop.config_chat import ChatConfig
from visloop.config_providers import NegativeSource, ProvidersConfig, SafetyConfig
from visloop.errors import ConfigError


class RegionBackend(Enum):
    """Who finds regions (LOC, SEG). ``proposals``: connected regions named by CLIP; the others are models of their own."""

    proposals = "proposals"
    owlvit = "owlvit"
    maskformer = "maskformer"
    clipseg = "clipseg"


class VqaBackend(Enum):
    """Who answers VQA. ``clip``: attribute questions by CLIP over regions; ``blip``: BLIP-VQA; ``agents``: the two agents."""

    clip = "clip"
    blip = "blip"
    agents = "agents"


class ReplaceBackend(Enum):
    """Who replaces. ``paste``: fills the mask and pastes a stored example of the concept; ``diffusion``: in-painting."""

    paste = "paste"
    diffusion = "diffusion"


class SegmentKind(Enum):
    """What SEG takes from a mask model: ``panoptic`` cuts the picture into objects and surfaces, ``instance`` finds objects only."""

    panoptic = "panoptic"
    instance = "instance"


class ListBackend(Enum):
    """Who knows names. ``facts``: a file of facts; ``chat``: a chat model."""

    facts = "facts"
    chat = "chat"


class PlannerChoice(Enum):
    """Who writes plan and program. ``slot_filling``: a retrieved demonstration with its slots replaced; ``llm``: a chat model from
    retrieved demonstrations; ``hybrid``: slot filling, the LLM where it is unsure; ``search``: typed program search with a scorer
    that was learned from feedback, slot filling for tasks that its space of programs is not about."""

    slot_filling = "slot_filling"
    llm = "llm"
    hybrid = "hybrid"
    search = "search"


class WriterChoice(Enum):
    """Who is the LLM of the planners ``llm`` and ``hybrid``. ``chat``: a chat model; ``embedded``: a small LM over symbols that is shipped
    (``PlannerConfig.lm``), which writes programs and no plans."""

    chat = "chat"
    embedded = "embedded"


class WordsChoice(Enum):
    """Which words the program search knows before it has learned any. ``full``: the task pack's lexicon, made by hand. ``reduced``: what
    the tools themselves give, and words of English that belong to no task. ``learned``: reduced, and what feedback teaches. ``none``:
    attribute words and numbers; places and relations may be proposed without a word."""

    full = "full"
    reduced = "reduced"
    learned = "learned"
    none = "none"


class EncoderChoice(Enum):
    """What embeds instructions for retrieval. ``words``: bags of word pieces, nothing to load; ``sentence``: sentence-transformers."""

    words = "words"
    sentence = "sentence"


class RetrievalChoice(Enum):
    """Which demonstrations a planner is shown, or tries. ``similar``: those whose instructions are most like the task's (CLOVA 3.2);
    ``random``: as many of the task's kind, drawn anew for each task (ablation)."""

    similar = "similar"
    random = "random"


class CriticChoice(Enum):
    """Who writes critiques. ``llm``: a chat model; ``blame``: counterfactual re-runs and step confidence, no model."""

    llm = "llm"
    blame = "blame"


@dataclass
class VisionConfig:
    """One vision model of a tool: a shipped name (``embedded/clip``), a local folder, or a hub id. ``threshold`` is the score, 0-1, from
    which a detection counts; ``overlap`` the intersection over union from which the weaker of two boxes is dropped."""

    model: str = "embedded/clip"
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 64
    threshold: float = 0.1
    overlap: float = 0.5


@dataclass
class PromptTuning:
    """Training-validation prompt tuning on frozen weights (CLOVA 3.4). ``tokens``: soft tokens per prompt; ``prompts``: how many are
    learned per concept, each from other instances; ``min_validation``: fraction of validation instances from which a prompt is kept;
    ``max_base_drop``: how much of the replay set's accuracy it may cost; ``max_prompts``: kept per concept; ``known_at``: accuracy on
    the validation instances from which a word counts as known, so that nothing is learned (above 1: always learn).

    ``batch_size``: pictures per step, where a step does not take all of a prompt's; ``init_std``: spread of the first values (0:
    zeros); ``decay_every``: steps after which the rate falls to a tenth (0: never);
    ``gradient_clip``: largest norm (0: none); ``min_overlap``: intersection over union from which a region counts as found;
    ``min_similarity``: prompts learned from less similar pictures and questions are not used (-1: all are)."""

    tokens: int = 4
    prompts: int = 4
    instances: int = 20
    validation: int = 12
    negatives: int = 80
    steps: int = 100
    learning_rate: float = 5e-3
    weight_decay: float = 1e-3
    min_validation: float = 0.7
    max_base_drop: float = 0.05
    max_prompts: int = 10
    ensemble: int = 10
    temperature: float = 0.1
    batch_size: int = 4
    init_std: float = 0.0
    decay_every: int = 0
    gradient_clip: float = 0.0
    label_smoothing: float = 0.0
    min_overlap: float = 0.5
    min_similarity: float = -1.0
    known_at: float = 0.7


@dataclass
class DetectionLoss:
    """What LOC's prompts are trained with: focal loss (``alpha``, ``gamma``), distance and overlap of boxes, after an optimal
    assignment of predictions to targets by the three costs. ``texts``: names a picture is asked for besides the concept."""

    alpha: float = 0.3
    gamma: float = 2.0
    class_weight: float = 1.0
    box_weight: float = 1.0
    overlap_weight: float = 1.0
    class_cost: float = 2.0
    box_cost: float = 5.0
    overlap_cost: float = 2.0
    texts: int = 14


@dataclass
class PaintConfig:
    """In-painting. ``size``: side of the square canvas in pixels, a multiple of 8 (0: the model's own); ``steps`` of the sampler."""

    size: int = 0
    steps: int = 50
    guidance: float = 7.5
    seed: int = 0


@dataclass
class ToolsConfig:
    """The toolbox: a backend per tool. ``plugins`` are modules that register further tools (``package.module``).

    ``tuning`` holds for every learnable tool that ``tunings`` names neither by itself nor by its owner (``visloop.tools.tunings``).
    ``categories`` are the words that a segmenter without classes of its own (clipseg) looks for."""

    loc: RegionBackend = RegionBackend.proposals
    seg: RegionBackend = RegionBackend.proposals
    segments: SegmentKind = SegmentKind.panoptic
    categories: list[str] = field(default_factory=list)
    vqa: VqaBackend = VqaBackend.clip
    replace: ReplaceBackend = ReplaceBackend.paste
    names: ListBackend = ListBackend.facts
    clip: VisionConfig = field(default_factory=VisionConfig)
    detector: VisionConfig = field(default_factory=lambda: VisionConfig(model="embedded/owlvit", threshold=0.38))
    segmenter: VisionConfig = field(default_factory=lambda: VisionConfig(model="facebook/maskformer-swin-base-coco"))
    answerer: VisionConfig = field(default_factory=lambda: VisionConfig(model="Salesforce/blip-vqa-capfilt-large"))
    painter: VisionConfig = field(default_factory=lambda: VisionConfig(model="stable-diffusion-v1-5/stable-diffusion-inpainting"))
    facts: str = ""
    max_image_side: int = 640
    tuning: PromptTuning = field(default_factory=PromptTuning)
    tunings: dict[str, PromptTuning] = field(default_factory=dict)
    detection: DetectionLoss = field(default_factory=DetectionLoss)
    paint: PaintConfig = field(default_factory=PaintConfig)
    plugins: list[str] = field(default_factory=list)

    def list_models(self) -> dict[str, VisionConfig]:
        """The vision models that the chosen backends ask for, by role."""
        used = {
            "clip": True,
            "detector": self.loc is RegionBackend.owlvit,
            "segmenter": self.seg in (RegionBackend.maskformer, RegionBackend.clipseg),
            "answerer": self.vqa is VqaBackend.blip,
            "painter": self.replace is ReplaceBackend.diffusion,
        }
        return {role: getattr(self, role) for role, mounted in used.items() if mounted}


@dataclass
class PlannerConfig:
    """Inference (CLOVA 3.2): which demonstrations a prompt shows (``retrieval``) and how many, and the switches of the ablations.
    ``failures_from``: failed demonstrations are shown once a pool holds more than so many. ``candidates``: demonstrations that slot filling
    tries per task; ``min_confidence``: from which confidence (0-1) on the hybrid takes slot filling's program; ``min_lm_confidence``: from
    which probability on that of an LM that gives one, where slot filling is unsure. ``temperature``, ``top_p`` and ``max_new_tokens`` are
    the LLM's. ``search``: its task pack (a shipped name, or a folder), the ``words`` that it starts with, and in their place ``scorer``,
    the folder of a learned scorer (empty: it has learned nothing yet). ``lm``: what the writer ``embedded`` is: a shipped name, or a
    folder. ``seeds``: a file of demonstrations that the pools start with beside the shipped ones (JSON lines; empty: none)."""

    choice: PlannerChoice = PlannerChoice.slot_filling
    writer: WriterChoice = WriterChoice.chat
    lm: str = "embedded/planner"
    retrieval: RetrievalChoice = RetrievalChoice.similar
    encoder: EncoderChoice = EncoderChoice.words
    encoder_model: str = "sentence-transformers/all-MiniLM-L6-v2"
    demonstrations: dict[str, int] = field(default_factory=lambda: {"vqa": 4, "multi_image": 3, "editing": 4, "tagging": 8})
    failures_from: int = 25
    use_plan: bool = True
    use_failures: bool = True
    max_tries: int = 2
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    candidates: int = 16
    min_confidence: float = 0.7
    min_lm_confidence: float = 0.9
    pack: str = "nlvr"
    words: WordsChoice = WordsChoice.full
    scorer: str = ""
    seeds: str = ""

    def count_shown(self, kind: str) -> int:
        """How many successes an LLM is shown for tasks of a kind.

        Raises:
            ConfigError: no number for it.
        """
        if kind not in self.demonstrations:
            raise ConfigError(f"planner.demonstrations: no number for {kind} tasks; known: {', '.join(self.demonstrations)}")
        return self.demonstrations[kind]

    def asks(self, writer: WriterChoice) -> bool:
        """Whether programs are written by this LLM."""
        return self.choice in (PlannerChoice.llm, PlannerChoice.hybrid) and self.writer is writer


@dataclass
class ReflectionConfig:
    """Reflection (CLOVA 3.3). ``critic`` writes the critiques; the switches are those of the ablations. ``max_tries``: how often a prompt
    is asked until its reply can be read; ``temperature``, ``top_p`` and ``max_new_tokens`` are the LLM's. ``candidates``: other results
    that blame tries per step; ``doubt``: confidence, 0-1, below which a step is wrong by itself."""

    critic: CriticChoice = CriticChoice.blame
    use_global: bool = True
    use_local: bool = True
    max_unreadable_rate: float = 0.2
    max_tries: int = 2
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 256
    candidates: int = 8
    doubt: float = 0.6


@dataclass
class LearningConfig:
    """Learning (CLOVA 3.4). ``budget``: updates tried per feedback. ``tries``: other programs tried per update of a planner.
    ``min_score``: a demonstration below it is evicted; with ``keep_seeds`` never a shipped one. ``max_replay_drop``: fraction of the
    replay set's accuracy that a cycle may cost before it is refused."""

    update_llm: bool = True
    update_tools: bool = True
    validate: bool = True
    ensemble: bool = True
    budget: int = 2
    tries: int = 6
    min_score: int = -2
    keep_seeds: bool = False
    max_replay_drop: float = 0.02


class TaskSource(Enum):
    """Where a run's tasks come from. ``workshop``: the drawn world, with facts of its own for LIST; ``nlvr``: human statements about three
    pictures, on disk."""

    workshop = "workshop"
    nlvr = "nlvr"


@dataclass
class TasksConfig:
    """The tasks of a run: where they come from (``name``, also their folder's; ``root``: what is on disk), which kinds, and how
    many of each in the stream of instructions with feedback, in the test set, among the base tasks that measure forgetting, and in the
    replay and held-out sets that a cycle's gate reads.

    ``only`` plays one cycle; None: the next one. ``back_to`` is the last cycle that a rollback keeps. ``tag``: name each cycle's
    version by a git tag where DVC records it. ``batch`` tasks are run side by side before any is learned from (None: a whole cycle).
    ``ablations`` are the rows of the table that are learned anew, by name.
    """

    kinds: list[str] = field(default_factory=lambda: ["vqa", "multi_image", "editing", "tagging"])
    stream: int = 100
    test: int = 200
    base: int = 60
    replay: int = 20
    held_out: int = 20
    cycles: int = 4
    only: int | None = None
    back_to: int | None = None
    tag: bool = True
    batch: int | None = None
    ablations: list[str] = field(default_factory=list)
    novel_share: float = 0.5
    new_wording_share: float = 0.3
    name: TaskSource = TaskSource.workshop
    root: str = ""


@dataclass
class AssistantConfig:
    """Everything that the second system needs. ``direct``: the vision-language model whose answers without any program are a row of the
    table; None: no such row."""

    tools: ToolsConfig = field(default_factory=ToolsConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    reflection: ReflectionConfig = field(default_factory=ReflectionConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    providers: ProvidersConfig = field(default_factory=ProvidersConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    direct: ChatConfig | None = field(default_factory=ChatConfig)

    def asks_llm(self) -> bool:
        """Whether planner, critic, LIST or the search for negatives asks an LLM that is mounted as a chat model."""
        return (
            self.planner.asks(WriterChoice.chat)
            or self.reflection.critic is CriticChoice.llm
            or self.tools.names is ListBackend.chat
            or self.providers.negatives.source is NegativeSource.chat
        )
