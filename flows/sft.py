"""Train the two agents from the base: the reasoner, then the summarizer on chains of all kinds (Insight-V 3.3)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows._checks import run_gate
from flows._entry import from_plain, run_flow
from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts, mount_model
from flows._progress import StageProgress
from flows._records import read_pool, read_rest, write_json
from flows._run import open_flow_run
from flows._stage import Shard, make_shards, run_sharded_stage, run_stage
from flows._workers import Lazy
from visloop.chat.factory import open_chat
from visloop.config import Config, Sampling, SFTSettings
from visloop.ids import seed_for
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import sample_chains
from visloop.reasoning.sets import build_direct_set, build_multi_turn_set, build_summary_set
from visloop.records.reasoning import AssessedPath, ReasoningPath, Sample, SFTExample
from visloop.records.shards import read_shard, read_shards, write_shard

CHAIN_CODE = ("visloop.reasoning.agents", "visloop.chat")


@flow(name="sft")
def sft(values: dict[str, Any]) -> None:
    """Reasoner M_0, its own chains, the summary set, the summarizer, and the one-model ablations."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("sft", config) as run:
        run.log_stage(train_agent(config, layout, name="reasoner", examples=layout.training_set("reason"), settings=config.sft_reason))
        run.log_history(layout.model("reasoner") / "training.json", prefix="reasoner")
        agent_samples = read_rest(layout)
        run.log_stage(
            sample_folder(
                config,
                layout,
                name="agent paths",
                model=layout.model("reasoner"),
                samples=agent_samples,
                per_question=1,
                sampling=config.answer.reason_sampling,  # as at inference: chains as good as those that it will read
                folder=layout.agent_paths,
                key="agent",
            )
        )
        run.log_stage(make_summary_set(config, layout, agent_samples=agent_samples))
        run.log_json(layout.training_set("summary") / "report.json")
        run_gate("summary", suite="sft", records=layout.training_set("summary"), config=config, layout=layout)
        run.log_stage(train_agent(config, layout, name="summarizer", examples=layout.training_set("summary"), settings=config.sft_summary))
        run.log_history(layout.model("summarizer") / "training.json", prefix="summarizer")
        for ablation in ("direct_sft", "multi_turn"):
            run.log_stage(make_ablation_set(config, layout, name=ablation, general=agent_samples))
            run.log_stage(train_agent(config, layout, name=ablation, settings=config.sft_reason))


def train_agent(
    config: Config, layout: Layout, *, name: str, settings: SFTSettings, examples: Path | None = None, folder: Path | None = None
) -> Any:
    """Stage: SFT of one agent from the base, on the set of its own name unless ``examples`` is another set's folder."""
    source = examples or layout.training_set(name)

    def work(place: Path) -> dict[str, float]:
        from visloop.training.sft import train_sft

        report = train_sft(
            read_shard(source / "examples.jsonl", SFTExample),
            model=config.base.model,
            out=place,
            settings=settings,
            seed=config.seed,
            image_root=layout.root,
            max_image_pixels=config.base.max_image_pixels,
            on_log=StageProgress(f"sft {name}").follow_epochs(settings.num_train_epochs),
        )
        write_json(place / "training.json", {"history": report.history, "steps": report.steps, "examples": report.examples})
        return {"examples": report.examples, "steps": report.steps, "loss": report.history[-1]["loss"]}

    return run_stage(
        f"sft {name}",
        folder=folder or layout.model(name),
        inputs={"examples": source, **chat_inputs("base", config.base)},
        config={
            "settings": settings,
            "base": config.base.model,
            "max_image_pixels": config.base.max_image_pixels,
            "seed": config.seed,
        },
        code=["visloop.training.sft"],
        work=work,
        resumable=True,
    )


def sample_folder(
    config: Config,
    layout: Layout,
    *,
    name: str,
    model: Path,
    samples: Sequence[Sample],
    per_question: int,
    sampling: Sampling,
    folder: Path,
    key: str,
    greedy: Sampling | None = None,
) -> Any:
    """Stage: chains that a trained reasoner writes, sharded by questions; with ``greedy`` also one decoded by that. ``key`` separates
    the draws of different uses."""
    by_id = {sample.id: sample for sample in samples}
    chat = Lazy(partial(open_chat, mount_model(config.base, model)))

    def work(shard: Shard[Sequence[str]], path: Path) -> dict[str, float]:
        draw = partial(
            sample_chains,
            [by_id[sample_id] for sample_id in shard.payload],
            model=chat.get(),
            prompts=PromptSet(config.prompts),
            image_root=layout.root,
        )
        paths = draw(samples_per_question=per_question, sampling=sampling, seed=seed_for(config.seed, key))
        if greedy is not None:
            said = draw(samples_per_question=1, sampling=greedy, seed=seed_for(config.seed, key, "greedy"))
            paths += [replace(path, index=per_question) for path in said]
        write_shard(path, paths)
        return {"paths": len(paths), "finished": sum(item.status == "finished" for item in paths)}

    return run_sharded_stage(
        name,
        folder=folder,
        inputs={"model": model, "raw": layout.raw},
        config={
            "sampling": sampling,
            "greedy": greedy,
            "per_question": per_question,
            "chat": mount_model(config.base, Path()),
            "prompts": hash_prompts(config),
            "seed": config.seed,
            "key": key,
        },
        code=CHAIN_CODE,
        shards=make_shards(list(by_id), size=config.generate.shard_size),
        work=work,
        resources=[chat],
        retries=1,
        workers=config.workers,
    )


def make_summary_set(config: Config, layout: Layout, *, agent_samples: Sequence[Sample]) -> Any:
    """Stage: D_summary. The reasoner's own chains are on questions that it was not trained on: they are as flawed as those
    that the summarizer will see later."""

    def work(place: Path) -> dict[str, float]:
        examples, report = build_summary_set(
            [*read_pool(layout), *agent_samples],
            read_shards(layout.assessed, AssessedPath),
            agent_paths=read_shards(layout.agent_paths, ReasoningPath),
            general=agent_samples,
            prompts=PromptSet(config.prompts),
            config=config.sets,
            seed=config.seed,
        )
        write_shard(place / "examples.jsonl", examples)
        write_json(place / "report.json", report)
        return {"examples": len(examples), **report.by_kind}

    return run_stage(
        "set summary",
        folder=layout.training_set("summary"),
        inputs={"assessed": layout.assessed, "pool": layout.pool, "agent_paths": layout.agent_paths},
        config={"sets": config.sets, "prompts": hash_prompts(config), "seed": config.seed},
        code=["visloop.reasoning.sets"],
        work=work,
    )


def make_ablation_set(config: Config, layout: Layout, *, name: str, general: Sequence[Sample]) -> Any:
    """Stage: the set of a one-model ablation (Insight-V 4.3). ``direct_sft``: chain and answer in one reply, with as many
    plain questions as the summary set has; ``multi_turn``: chain, then the answer in a second turn."""

    def work(place: Path) -> dict[str, float]:
        pool, prompts = read_pool(layout), PromptSet(config.prompts)
        assessed = read_shards(layout.assessed, AssessedPath)
        if name == "direct_sft":
            plain = general[: round(config.sets.summary_size * config.sets.summary_shares.get("general", 0.0))]
            examples, report = build_direct_set(pool, assessed, general=plain, prompts=prompts, config=config.sets, seed=config.seed)
        else:
            examples, report = build_multi_turn_set(pool, assessed, prompts=prompts, config=config.sets, seed=config.seed)
        write_shard(place / "examples.jsonl", examples)
        write_json(place / "report.json", report)
        return {"examples": len(examples)}

    return run_stage(
        f"set {name}",
        folder=layout.training_set(name),
        inputs={"assessed": layout.assessed, "pool": layout.pool, "raw": layout.raw},
        config={"sets": config.sets, "prompts": hash_prompts(config), "seed": config.seed},
        code=["visloop.reasoning.sets"],
        work=work,
    )


if __name__ == "__main__":
    run_flow(sft, doc=__doc__ or "")
