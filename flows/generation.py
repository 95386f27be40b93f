"""Grow reasoning data: questions, the pool of hard ones, and several long chains for each (Insight-V 3.2)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow

from flows._checks import run_gate
from flows._entry import from_plain, run_flow
from flows._layout import Layout
from flows._mounts import chat_inputs, hash_prompts
from flows._records import SPLITS, read_pool, read_split, write_json
from flows._run import open_flow_run
from flows._stage import Shard, make_shards, run_sharded_stage, run_stage
from flows._workers import PART_SIZE, Jobs, Lazy, cut_parts
from visloop.chat.factory import open_chat
from visloop.config import Config
from visloop.datasets.readers import find_reader
from visloop.prompts.render import PromptSet
from visloop.reasoning.agents import answer_directly
from visloop.reasoning.answer_filter import judge_by_rule
from visloop.reasoning.generate import generate_paths
from visloop.reasoning.generation_report import report_generation
from visloop.reasoning.pool import build_pool
from visloop.records.reasoning import AgentAnswer, GroundTruth, ReasoningPath, Sample
from visloop.records.shards import read_shards, write_shard
from visloop.scenes.export import export_dataset
from visloop.scenes.programs import FAMILIES

_UNFIT = ("duplicate", "held_out_image", "held_out_group")
"""Reasons of the pool for which a question may not be trained on at all; the others only keep it out of the pool."""


@flow(name="generation")
def generation(values: dict[str, Any]) -> None:
    """Questions, pool, chains; each behind its gate."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("generation", config) as run:
        run.log_stage(make_dataset(config, layout))
        run_gate("samples", suite="samples", records=layout.raw, config=config, layout=layout, files=[f"{split}.jsonl" for split in SPLITS])
        run.log_stage(make_pool(config, layout))
        run.log_json(layout.pool / "report.json")
        run.log_stage(make_paths(config, layout))
        run.log_json(layout.paths / "report.json")
        run_gate("paths", suite="paths", records=layout.paths, config=config, layout=layout)


def make_dataset(config: Config, layout: Layout) -> Any:
    """Stage: samples of all splits, their pictures, and the ground truth where there is one."""
    data = config.data
    inputs = {"source": Path(data.root)} if data.root else {}
    code = ["visloop.scenes.export"]
    if data.name != "scenes":
        source = find_reader(data.name, plugin=data.plugin).source
        inputs |= {} if source is None else {"reader": source}
        code = ["visloop.datasets.readers"]
    return run_stage(
        "dataset",
        folder=layout.raw,
        inputs=inputs,
        config={"data": replace(data, root=""), "seed": config.seed},
        code=code,
        work=partial(_write_dataset, config=config, prefix=f"raw/{data.name}/images"),
    )


def _write_dataset(place: Path, *, config: Config, prefix: str) -> dict[str, float]:
    data = config.data
    counts = {split: getattr(data, split) for split in SPLITS}
    truths: list[GroundTruth] = []
    by_split: dict[str, list[Sample]] = {}
    if data.name == "scenes":
        exported = export_dataset(
            place / "images",
            seed=config.seed,
            counts=counts,
            families=tuple(data.families) or FAMILIES,  # type: ignore[arg-type]
            questions_per_scene=data.questions_per_scene,
            image_prefix=prefix,
            wording=data.wording,  # type: ignore[arg-type]
        )
        for split in SPLITS:
            by_split[split] = exported[split].samples
            truths += exported[split].ground_truth
    else:
        reader = find_reader(data.name, plugin=data.plugin)
        read = reader.read(Path(data.root), out=place / "images", image_prefix=prefix, counts=counts)
        by_split = {split: read.select_split(split) for split in SPLITS}
        write_json(place / "report.json", read.report)
    for split, samples in by_split.items():
        write_shard(place / f"{split}.jsonl", samples)
    write_shard(place / "truth.jsonl", truths)
    return {split: len(samples) for split, samples in by_split.items()}


def make_pool(config: Config, layout: Layout) -> Any:
    """Stage: the base answers every training question directly; the pool mixes those it gets wrong with others."""
    base = Lazy(partial(open_chat, config.base))
    prompts = PromptSet(config.prompts)

    def answer(samples: Sequence[Sample]) -> list[AgentAnswer]:
        return answer_directly(
            samples, model=base.get(), prompts=prompts, sampling=config.answer.direct_sampling, seed=config.seed, image_root=layout.root
        )

    def work(place: Path) -> dict[str, float]:
        samples = read_split(layout, "train")
        with Jobs(answer, cut_parts(samples), workers=config.workers, resources=[base]) as jobs:
            answers = [answer for part in jobs.take_all() for answer in part]
        verdicts = {
            sample.id: "wrong" if answer.answer is None else judge_by_rule(answer.answer, sample)
            for sample, answer in zip(samples, answers, strict=True)
        }
        held_out = [*read_split(layout, "validation"), *read_split(layout, "test")]
        pool, report = build_pool(samples, base_verdicts=verdicts, held_out=held_out, config=config.pool, seed=config.seed)
        write_shard(place / "base_answers.jsonl", answers)
        unfit = {sample_id for reason in _UNFIT for sample_id in report.dropped.get(reason, ())} | {sample.id for sample in pool}
        write_shard(place / "pool.jsonl", pool)
        write_shard(place / "rest.jsonl", [sample for sample in samples if sample.id not in unfit])
        write_json(place / "report.json", report)
        wrong = sum(verdict == "wrong" for verdict in verdicts.values())
        return {"questions": len(pool), "base_wrong": wrong, **{f"dropped_{key}": value for key, value in report.drop_counts.items()}}

    return run_stage(
        "pool",
        folder=layout.pool,
        inputs={"raw": layout.raw, **chat_inputs("base", config.base)},
        config={
            "pool": config.pool,
            "base": config.base,
            "sampling": config.answer.direct_sampling,
            "part_size": PART_SIZE,
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=["visloop.reasoning.pool", "visloop.reasoning.agents", "visloop.chat"],
        work=work,
        resources=[base],
        retries=1,
    )


def make_paths(config: Config, layout: Layout) -> Any:
    """Stage: N chains per pool question, one JSON step per call, sharded by questions."""
    model = Lazy(partial(open_chat, config.generate.model))
    prompts = PromptSet(config.prompts)
    pool = {sample.id: sample for sample in read_pool(layout)}

    def work(shard: Shard[Sequence[str]], path: Path) -> dict[str, float]:
        paths = generate_paths(
            [pool[sample_id] for sample_id in shard.payload],
            model=model.get(),
            prompts=prompts,
            config=config.generate,
            seed=config.seed,
            image_root=layout.root,
        )
        write_shard(path, paths)
        return {"paths": len(paths), "finished": sum(item.status == "finished" for item in paths)}

    def finish(place: Path) -> dict[str, float]:
        report = report_generation(read_shards(place, ReasoningPath), max_duplicate_ratio=config.generate.max_duplicate_ratio)
        write_json(place / "report.json", report)
        return {}

    return run_sharded_stage(
        "paths",
        folder=layout.paths,
        inputs={"pool": layout.pool, "raw": layout.raw, **chat_inputs("generator", config.generate.model)},
        config={"generate": config.generate, "prompts": hash_prompts(config), "seed": config.seed},
        code=["visloop.reasoning.generate", "visloop.chat"],
        shards=make_shards(list(pool), size=config.generate.shard_size),
        work=work,
        finish=finish,
        resources=[model],
        retries=1,
        workers=config.workers,
    )


if __name__ == "__main__":
    run_flow(generation, doc=__doc__ or "")
