"""Every YAML under conf/ composes, holds what it says it holds, and refuses what it does not know."""

from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from flows._assistant_systems import ABLATIONS
from flows._entry import CONFIG_DIR, compose_config, from_plain, to_plain
from flows._named_models import needs_hub
from visloop.config import Config, Loss, PairStrategy, Scorer
from visloop.errors import ConfigError

GROUPS = {
    "answer": "answer",
    "assess": "assess",
    "benchmarks": "benchmarks",
    "data": "data",
    "dpo": "dpo",
    "evaluation": "evaluation",
    "generate": "generate",
    "learning": "learning@assistant.learning",
    "lora": "lora@dpo.lora",
    "model": "model@base",
    "pairs": "pairs@rounds.pairs",
    "planner": "planner@assistant.planner",
    "pool": "pool",
    "providers": "providers@assistant.providers",
    "reflection": "reflection@assistant.reflection",
    "rounds": "rounds",
    "sets": "sets",
    "sft": "sft@sft_reason",
    "tasks": "tasks@assistant.tasks",
    "tools": "tools@assistant.tools",
}
OPTIONS = sorted(path for path in CONFIG_DIR.glob("*/*.yaml") if path.parent.name != "experiment")
EXPERIMENTS = sorted((CONFIG_DIR / "experiment").glob("*.yaml"))


@cache
def _default() -> Config:
    """The default config; nobody changes it."""
    return compose_config()


def test_every_yaml_is_counted() -> None:
    assert len(OPTIONS) == 54
    assert len(EXPERIMENTS) == 26
    assert {path.parent.name for path in OPTIONS} == set(GROUPS)
    assert len(list(CONFIG_DIR.rglob("*.yaml"))) == len(OPTIONS) + len(EXPERIMENTS) + 1


@pytest.mark.parametrize("path", OPTIONS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_option_composes(path: Path) -> None:
    config = compose_config([f"{GROUPS[path.parent.name]}={path.stem}"])
    assert from_plain(to_plain(config)) == config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_composes_and_differs_from_the_default(path: Path) -> None:
    config = compose_config([f"experiment={path.stem}"])
    assert config != _default()
    assert from_plain(to_plain(config)) == config


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_experiment_says_how_it_is_run(path: Path) -> None:
    package, command = path.read_text().splitlines()[:2]
    assert package == "# @package _global_"
    flow, experiment, *overrides = command.removeprefix("# python -m flows.").split()
    assert (CONFIG_DIR.parent / "flows" / f"{flow}.py").is_file()
    assert experiment == f"experiment={path.stem}"
    compose_config([experiment, *overrides])


def _leaves(value: object, prefix: str = "") -> set[str]:
    if isinstance(value, dict) and value:
        return {leaf for key, item in value.items() for leaf in _leaves(item, f"{prefix}{key}.")}
    return {prefix.rstrip(".")}


def _schema_leaves(kind: object, prefix: str = "") -> set[str]:
    if not is_dataclass(kind):
        return _leaves(kind, prefix)
    return {leaf for field in fields(kind) for leaf in _schema_leaves(getattr(kind, field.name), f"{prefix}{field.name}.")}


def _written_leaves(name: str) -> set[str]:
    """The leaves that the YAML files of the default config write themselves, read without Hydra."""
    tree = yaml.safe_load((CONFIG_DIR / f"{name}.yaml").read_text()) or {}
    written: set[str] = set()
    here = Path(name).parent
    for entry in tree.pop("defaults", []):
        if isinstance(entry, dict):
            ((group, option),) = entry.items()
            folder, _, package = group.partition("@")
            if option is not None:
                child = folder.removeprefix("/") if folder.startswith("/") else (here / folder).as_posix()
                written |= {f"{package or folder}.{leaf}" for leaf in _written_leaves(f"{child}/{option}")}
        elif entry not in ("_self_", "base_config"):
            written |= _written_leaves((here / entry).as_posix())
    tree.pop("hydra", None)
    return written | _leaves(tree)


def test_default_config_leaves_no_value_to_the_code() -> None:
    """The names in a table that the schema leaves empty (``benchmarks.files``) are those of the files."""
    known = _schema_leaves(Config())
    written = {next((leaf for leaf in known if entry.startswith(f"{leaf}.")), entry) for entry in _written_leaves("config") - {""}}
    assert written == known


def test_default_values() -> None:
    config = compose_config()
    assert config.base.model == "embedded/base"
    assert config.assess.judge.model == "embedded/judge"
    assert config.assess.scorer is Scorer.judge
    assert config.assess.text_judge is None
    assert config.rounds.rounds == 3
    assert config.evaluation.confidence == 0.95
    assert config.data.test >= 1000
    assert sum(config.sets.summary_shares.values()) == pytest.approx(1)
    assert config.rounds.rounds * config.rounds.prompts_per_round <= config.data.train, "rounds need disjoint prompts"
    assert not needs_hub(config)


@pytest.mark.parametrize(
    ("name", "model", "frozen"),
    [
        ("insight_v_paper_llava_next", "llava-hf/llama3-llava-next-8b-hf", "vision_tower"),
        ("insight_v_paper_qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "visual"),
    ],
)
def test_paper_experiments_hold_the_papers_numbers(name: str, model: str, frozen: str) -> None:
    config = compose_config([f"experiment={name}"])
    assert config.prompts == "full"
    assert config.base.model == model
    assert config.generate.model.model == config.assess.judge.model == "Qwen/Qwen2-VL-72B-Instruct"
    assert config.assess.text_judge is not None and config.assess.text_judge.model == "Qwen/Qwen2-72B-Instruct"
    assert needs_hub(config)
    assert (config.pool.size, config.pool.hard_share) == (200_000, 0.5)
    assert (config.generate.sampling.temperature, config.generate.sampling.top_p) == (0.7, 0.95)
    assert (config.generate.sampling.repetition_penalty, config.generate.sampling.max_new_tokens) == (1.05, 1024)
    assert (config.generate.min_steps, config.generate.max_steps) == (2, 16)
    assert config.sets.summary_size == 1_200_000
    assert sum(config.sets.summary_shares.values()) == pytest.approx(1)
    assert (config.sft_reason.learning_rate, config.sft_reason.num_train_epochs) == (5e-6, 2)
    assert (config.sft_summary.learning_rate, config.sft_summary.num_train_epochs) == (1e-5, 1)
    reason_batch = config.sft_reason.per_device_train_batch_size * config.sft_reason.gradient_accumulation_steps
    summary_batch = config.sft_summary.per_device_train_batch_size * config.sft_summary.gradient_accumulation_steps
    assert (reason_batch * 64, summary_batch * 64) == (512, 128), "global batch on 64 GPUs"
    assert (config.dpo.learning_rate, config.dpo.num_train_epochs, config.dpo.beta) == (5e-7, 1, 0.1)
    assert (config.dpo.loss, config.dpo.nll_weight) == (Loss.sigmoid_nll, 1.0)
    assert (config.rounds.rounds, config.rounds.prompts_per_round) == (3, 15_000)
    for training in (config.sft_reason, config.sft_summary, config.dpo):
        assert training.max_length == 12_288
        assert training.bf16
        assert (training.lr_scheduler_type, training.warmup_ratio, training.weight_decay) == ("cosine", 0.05, 0)
        assert training.freeze == (frozen,)


@pytest.mark.parametrize(
    ("overrides", "asked"),
    [
        (["tools@assistant.tools=clova_paper"], True),
        (["tools@assistant.tools=clova_paper", "assistant.tools.loc=proposals"], True),
        (["assistant.tools.seg=maskformer"], True),
        (["assistant.planner.encoder=sentence"], True),
        (["planner@assistant.planner=llm", "model@llm=qwen2_5_vl_7b"], True),
        (["planner@assistant.planner=llm"], False),
        (["model@llm=qwen2_5_vl_7b"], False),
        (["model@assistant.direct=qwen2_5_vl_7b"], True),
        (["model@assistant.direct=served_vlm"], False),
        (["planner@assistant.planner=embedded", "assistant.tools.loc=owlvit"], False),
        (["planner@assistant.planner=embedded", "assistant.planner.lm=someone/planner"], True),
    ],
)
def test_the_hub_is_needed_where_the_assistant_asks_for_a_model_of_it(overrides: list[str], asked: bool) -> None:
    assert needs_hub(compose_config(overrides)) is asked


def test_named_variants_change_what_they_name() -> None:
    default = compose_config()
    assert compose_config(["experiment=dpo_sigmoid"]).dpo.loss is Loss.sigmoid
    assert compose_config(["experiment=dpo_mpo"]).dpo.loss is Loss.mpo
    nll = compose_config(["experiment=dpo_nll"]).dpo
    assert (nll.loss, nll.nll_weight) == (Loss.sigmoid_nll, 1.0) and default.dpo.nll_weight != 1.0
    one = compose_config(["experiment=dpo_one_round"]).rounds
    assert (one.rounds, one.prompts_per_round) == (1, default.rounds.rounds * default.rounds.prompts_per_round)
    for name in ("correct_flawed", "margin", "best_worst"):
        changed = compose_config([f"experiment=pairs_{name}"])
        assert changed.rounds.pairs.strategy is PairStrategy(name)
        changed.rounds.pairs.strategy = default.rounds.pairs.strategy
        assert changed == default
    lora = compose_config(["experiment=lora"])
    assert all(training.lora.enabled for training in (lora.sft_reason, lora.sft_summary, lora.dpo))


def test_each_loss_has_an_experiment() -> None:
    losses = {compose_config([f"experiment={path.stem}"]).dpo.loss for path in EXPERIMENTS if path.stem.startswith("dpo_")}
    assert losses == set(Loss)


@pytest.mark.parametrize("name", sorted(ABLATIONS))
def test_an_ablation_by_itself_is_the_row_of_the_table(name: str) -> None:
    """``experiment=clova_<name>`` has the settings with which the whole table learns the row of that name."""
    alone, (_, change) = compose_config([f"experiment=clova_{name}"]), ABLATIONS[name]
    assert alone == change(_default())


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("dpo.bta=0.2", "dpo.bta"),
        ("+dpo.bta=0.2", "bta"),
        ("generate.sampling.heat=1", "generate.sampling.heat"),
        ("+anything=1", "anything"),
        ("dpo.beta=much", "dpo.beta"),
        ("rounds.rounds=2.5", "rounds.rounds"),
        ("dpo.loss=hinge", "dpo.loss"),
        ("assess.scorer=[judge]", "assess.scorer"),
        ("sft_reason.bf16=perhaps", "sft_reason.bf16"),
        ("dpo=hinge", "dpo/hinge"),
        ("experiment=nothing_of_that_name", "experiment/nothing_of_that_name"),
        ("data.families=exist", "data.families"),
    ],
)
def test_a_wrong_key_or_type_is_named(override: str, named: str) -> None:
    with pytest.raises(ConfigError, match="configuration") as caught:
        compose_config([override])
    assert named in str(caught.value)
    assert "object_type" not in str(caught.value)


def test_an_unknown_key_in_plain_values_is_named() -> None:
    plain = to_plain(Config())
    plain["dpo"]["lora"]["rank"] = 8
    with pytest.raises(ConfigError, match=r"dpo\.lora\.rank"):
        from_plain(plain)


def test_plain_values_are_json_and_keep_every_kind() -> None:
    import json

    config = compose_config(["generate.sampling.stop=['</output>']", "model@base=served_vlm", "+model@assess.text_judge=qwen2_72b"])
    again = from_plain(json.loads(json.dumps(to_plain(config))))
    assert again == config
    assert again.generate.sampling.stop == ("</output>",)
    assert again.sft_reason.freeze == ("vision_tower",)
    assert again.sft_reason.max_length is None
    assert again.assess.text_judge is not None
    assert isinstance(again.data.families, list)


@settings(max_examples=25, deadline=None)
@given(
    beta=st.floats(1e-6, 10),
    seed=st.integers(0, 2**31),
    families=st.lists(st.text(max_size=8).filter(lambda text: "$" not in text), max_size=3),
    freeze=st.tuples(st.sampled_from(["vision_tower", "visual"])),
    length=st.none() | st.integers(1, 10**6),
)
def test_plain_values_round_trip(beta: float, seed: int, families: list[str], freeze: tuple[str, ...], length: int | None) -> None:
    config = Config(seed=seed)
    config.dpo.beta, config.dpo.freeze, config.dpo.max_length = beta, freeze, length
    config.data.families = families
    assert from_plain(to_plain(config)) == config
