"""The typed schema of every value. Hydra fills it from ``conf/``; functions get the small part that they need.

Numbers here are neutral starts; the papers' numbers and the embedded default's are in ``conf/`` with their source.
Plain dataclasses on purpose: a REPL builds them with literals, and an unknown key fails at once with its name.
"""

from dataclasses import dataclass, field
from enum import Enum

from visloop.config_assistant import AssistantConfig
from visloop.config_chat import Backend as Backend
from visloop.config_chat import ChatConfig as ChatConfig
from visloop.config_ranges import check_assistant


class Scorer(Enum):
    """Who gives path scores. ``verifier`` knows the scene: a measuring instrument, for the embedded world only."""

    judge = "judge"
    verifier = "verifier"


class PairStrategy(Enum):
    """How D_t picks the chosen and the rejected chain of a question.

    ``best_worst``: best-scored correct against the lowest-scored of all others, wrong answers first.
    ``correct_flawed``: best-scored correct against the *best*-looking wrong one (the near miss).
    ``margin``: any two whose scores differ by ``min_margin`` or more, also both correct.
    ``first_error``: correct against the wrong one that shares the longest prefix of steps with it.
    ``greedy``: the greedy chain is one of the two, rejected where it is wrong and chosen where it is right; its partner is the one
    that shares the longest prefix of steps with it. Questions whose greedy chain gives no pair fall back to ``first_error``.
    """

    best_worst = "best_worst"
    correct_flawed = "correct_flawed"
    margin = "margin"
    first_error = "first_error"
    greedy = "greedy"


class Loss(Enum):
    """DPO objective: ``sigmoid``; ``sigmoid_nll`` adds NLL on the chosen chain; ``mpo`` = 0.8 sigmoid + 0.2 BCO + 1.0 NLL."""

    sigmoid = "sigmoid"
    sigmoid_nll = "sigmoid_nll"
    mpo = "mpo"


class Serve(Enum):
    """Which registered version answers people: the promoted one, or the newest one that passed its guards."""

    champion = "champion"
    newest = "newest"


class Combine(Enum):
    """How the answer is made from one or several chains."""

    summary = "summary"
    self_consistency = "self_consistency"
    best_of_n = "best_of_n"


@dataclass(frozen=True)
class Sampling:
    """How to decode. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch those filters off."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 512
    stop: tuple[str, ...] = ()


@dataclass
class PathsConfig:
    """Folders, relative to the working directory; ``rounds`` and ``cycles`` are relative to ``data``: a sweep over DPO or learning
    settings keeps its jobs apart with them and shares everything before."""

    data: str = "data"
    mlruns: str = "mlruns"
    rounds: str = "rounds"
    cycles: str = "cycles"


@dataclass
class TrackingConfig:
    """Where MLflow keeps the history. ``uri``: a database or a tracking server; empty: SQLite in ``paths.mlruns``. ``artifacts``: root of
    the artifacts, a folder or ``s3://bucket/folder``; empty: beside the database, or where the server keeps them. Never a password."""

    uri: str = ""
    artifacts: str = ""


@dataclass
class DataConfig:
    """The questions. ``name`` picks the reader, ``plugin`` is the module of one that visloop does not have; counts are questions per split;
    empty ``families`` means all."""

    name: str = "scenes"
    train: int = 4400
    validation: int = 400
    test: int = 1000
    questions_per_scene: int = 2
    families: list[str] = field(default_factory=list)
    root: str = ""
    wording: str = "all"
    plugin: str = ""


@dataclass
class PoolConfig:
    """Question pool (Insight-V: hard questions mined with the base, plus quotas per ability)."""

    size: int = 800
    hard_share: float = 0.5
    max_family_share: float = 0.3
    decontaminate: bool = True


@dataclass
class GenerateConfig:
    """Progressive long-chain generation, one JSON step per call (Insight-V 3.2). ``max_repairs``: further tries per turn.
    ``max_duplicate_ratio``: text similarity (0-1) from which a step counts as a repetition in the report."""

    model: ChatConfig = field(default_factory=ChatConfig)
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=48))
    final_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=16))
    samples_per_question: int = 4
    min_steps: int = 2
    max_steps: int = 16
    max_repairs: int = 2
    max_duplicate_ratio: float = 0.95
    shard_size: int = 128


@dataclass
class AssessConfig:
    """Multi-granularity assessment: answer filter, then path scores 1-100 (Insight-V 3.2). ``bands``: lower bounds, highest first."""

    scorer: Scorer = Scorer.judge
    judge: ChatConfig = field(default_factory=lambda: ChatConfig(model="embedded/judge"))
    text_judge: ChatConfig | None = None
    judge_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=96))
    score_wrong: bool = False
    show_answer: bool = True
    passes: int = 1
    max_reasks: int = 2
    max_paths_per_call: int = 8
    bands: dict[str, float] = field(default_factory=lambda: {"high": 80.0, "mid": 50.0, "low": 1.0})
    max_unjudged_rate: float = 0.05
    shard_size: int = 128


@dataclass
class SetsConfig:
    """Training sets. ``summary_shares`` are shares of the summary set by kind; they sum to 1."""

    reason_min_score: float = 1.0
    reason_fraction: float = 1.0
    summary_size: int = 3000
    summary_shares: dict[str, float] = field(
        default_factory=lambda: {"optimal": 0.12, "flawed": 0.08, "wrong_answer": 0.1, "agent": 0.6, "general": 0.1}
    )


@dataclass
class LoraSettings:
    """LoRA by PEFT, with its names. ``target_modules`` is a regular expression over module names."""

    enabled: bool = False
    r: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.0
    target_modules: str = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass
class TrainSettings:
    """What SFT and DPO share; names and units as in ``transformers.TrainingArguments``. ``freeze``: module-name prefixes or
    substrings that stay fixed (both papers' recipes freeze the vision tower)."""

    learning_rate: float = 2e-4
    num_train_epochs: float = 2.0
    per_device_train_batch_size: int = 16
    gradient_accumulation_steps: int = 1
    lr_scheduler_type: str = "cosine"
    warmup_ratio: float = 0.05
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    max_length: int | None = None
    bf16: bool = False
    gradient_checkpointing: bool = False
    save_steps: float = 0.25
    freeze: tuple[str, ...] = ("vision_tower",)
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass
class SFTSettings(TrainSettings):
    """Supervised fine-tuning of one agent from the base."""


@dataclass
class DPOSettings(TrainSettings):
    """One DPO round. ``beta`` as TRL spells it; ``nll_weight`` is the weight of NLL(chosen) in ``sigmoid_nll``."""

    learning_rate: float = 1e-4
    beta: float = 0.1
    loss: Loss = Loss.sigmoid_nll
    nll_weight: float = 1.0
    label_smoothing: float = 0.0


@dataclass
class PairConfig:
    """How D_t is built from assessed chains. ``min_margin`` in score points; ``max_length_ratio`` of longer to shorter text."""

    strategy: PairStrategy = PairStrategy.greedy
    min_margin: float = 20.0
    max_pairs_per_question: int = 1
    max_length_ratio: float = 3.0
    keep_malformed_rejected: bool = True


@dataclass
class GuardConfig:
    """Health limits of a round, measured on the validation split. A violated limit rejects the round."""

    min_reward_accuracy: float = 0.5
    min_reward_margin: float = 0.0
    max_chosen_logp_drop: float = 50.0
    max_length_drift: float = 0.5
    max_malformed_rate: float = 0.1
    min_gain: float = -0.01


@dataclass
class RoundsConfig:
    """Iterative DPO (Insight-V 3.4): M_1..M_T, each on D_t sampled from the model before it."""

    rounds: int = 3
    prompts_per_round: int = 800
    samples_per_question: int = 6
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=1.0, max_new_tokens=128))
    validation_samples: int = 4
    pairs: PairConfig = field(default_factory=PairConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    stop_after_rejections: int = 2
    reference: str = "previous"
    only: int | None = None


@dataclass
class AnswerConfig:
    """How answers are decoded: the reasoner's chain, the summary agent's answer, and answers without a chain."""

    reason_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=128))
    summary_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=16))
    direct_sampling: Sampling = field(default_factory=lambda: Sampling(max_new_tokens=16))


@dataclass
class EvaluationConfig:
    """Held-out evaluation. ``vote_chains``: chains per question for best-of-N and self-consistency rows. ``fractions`` are
    the points of the data-scaling curve, ``seeds`` the runs of the table over seeds."""

    confidence: float = 0.95
    bootstrap_samples: int = 2000
    sampled_chains: int = 2
    vote_chains: int = 4
    scorer: Scorer = Scorer.judge
    fractions: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.75, 1.0])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])


@dataclass
class BenchmarksConfig:
    """Public benchmarks. ``files``: the folder of each one's official files, by the names in ``conf/benchmarks``; empty for one that is
    not asked. ``systems``: rows of the evaluation's table; ``two agents`` is the last accepted reasoner with the summarizer."""

    files: dict[str, str] = field(default_factory=dict)
    systems: list[str] = field(default_factory=lambda: ["base direct", "direct SFT", "two agents"])


@dataclass
class PromotionConfig:
    """When a version becomes the champion, and whether people are answered by it. ``metric`` of the held-out predictions must rise by more
    than ``min_gain`` (in its own unit: 0.01 is one point of an accuracy) at the confidence of the evaluation."""

    metric: str = "accuracy"
    min_gain: float = 0.0
    serve: Serve = Serve.champion


@dataclass
class Config:
    """Everything one flow run knows. ``workers``: processes that share the shards of a stage (0: the command line
    chooses); they never change what comes out.

    Raises:
        ConfigError: a number of the assistant's is out of its range.
    """

    seed: int = 0
    workers: int = 1
    prompts: str = "compact"
    base: ChatConfig = field(default_factory=ChatConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    data: DataConfig = field(default_factory=DataConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    assess: AssessConfig = field(default_factory=AssessConfig)
    sets: SetsConfig = field(default_factory=SetsConfig)
    sft_reason: SFTSettings = field(default_factory=SFTSettings)
    sft_summary: SFTSettings = field(default_factory=SFTSettings)
    dpo: DPOSettings = field(default_factory=DPOSettings)
    rounds: RoundsConfig = field(default_factory=RoundsConfig)
    answer: AnswerConfig = field(default_factory=AnswerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    promotion: PromotionConfig = field(default_factory=PromotionConfig)
    llm: ChatConfig = field(default_factory=lambda: ChatConfig(backend=Backend.openai, model="llm"))
    assistant: AssistantConfig = field(default_factory=AssistantConfig)

    def __post_init__(self) -> None:
        check_assistant(self.assistant)
