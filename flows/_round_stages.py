"""The stages of one DPO round: its prompts, pairs, training, validation and verdict."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from pydantic import TypeAdapter

from flows._exams import EXAM_CODE, Examination
from flows._layout import Layout
from flows._mounts import hash_prompts
from flows._progress import StageProgress
from flows._records import read_json, read_rest, write_json
from flows._stage import dump_plain, run_stage
from visloop.config import Config
from visloop.errors import DataError
from visloop.ids import hash_json
from visloop.prompts.render import PromptSet
from visloop.reasoning.pairs import build_pairs
from visloop.reasoning.pool import split_prompts
from visloop.reasoning.rounds import (
    Lineage,
    RoundReport,
    TrainingHealth,
    ValidationMetrics,
    decide_round,
    extend_lineage,
    start_lineage,
)
from visloop.records.manifest import read_manifest
from visloop.records.reasoning import AssessedPath, Prediction, PreferencePair, Sample
from visloop.records.shards import read_shard, read_shards, write_shard


def start_round_zero(config: Config, layout: Layout) -> Any:
    """Stage: the lineage begins with the reasoner of supervised fine-tuning."""

    def work(place: Path) -> dict[str, float]:
        lineage = start_lineage(
            model_hash=hash_stage(layout.model("reasoner")),
            data_hash=hash_stage(layout.training_set("reason")),
            config_hash=hash_json(dump_plain(config.sft_reason)),
        )
        write_json(place / "lineage.json", lineage)
        write_json(place / "head.json", _describe_head(layout, number=0, model=layout.model("reasoner")))
        return {}

    return run_stage(
        "round 0",
        folder=layout.round(0) / "report",
        inputs={"model": layout.model("reasoner"), "validation": layout.round(0) / "validation"},
        config={"sft": config.sft_reason},
        code=["visloop.reasoning.rounds"],
        work=work,
    )


def choose_prompts(config: Config, layout: Layout, number: int) -> list[Sample]:
    """The questions of one round: disjoint from the pool and from every other round."""
    rounds = config.rounds
    return split_prompts(read_rest(layout), rounds=rounds.rounds, per_round=rounds.prompts_per_round, seed=config.seed)[number - 1]


def make_pairs(config: Config, layout: Layout, *, number: int, samples: Sequence[Sample]) -> Any:
    """Stage: D_t by the named strategy, with the reasons why questions gave no pair."""
    folder = layout.round(number)

    def work(place: Path) -> dict[str, float]:
        pairs, report = build_pairs(
            samples,
            read_shards(folder / "assessed", AssessedPath),
            prompts=PromptSet(config.prompts),
            config=config.rounds.pairs,
            round=number,
            seed=config.seed,
        )
        write_shard(place / "pairs.jsonl", pairs)
        write_json(place / "report.json", report)
        return {"pairs": len(pairs), "questions": report.questions}

    return run_stage(
        f"round {number} pairs",
        folder=folder / "pairs",
        inputs={"assessed": folder / "assessed"},
        config={"pairs": config.rounds.pairs, "prompts": hash_prompts(config), "seed": config.seed},
        code=["visloop.reasoning.pairs"],
        work=work,
    )


def train_round(config: Config, layout: Layout, *, number: int, model: Path) -> Any:
    """Stage: DPO from the head on D_t, the head (or M_0) as frozen reference."""
    folder = layout.round(number)
    reference = layout.model("reasoner") if config.rounds.reference == "sft" else None

    def work(place: Path) -> dict[str, float]:
        from visloop.training.dpo import train_dpo

        report = train_dpo(
            read_shard(folder / "pairs" / "pairs.jsonl", PreferencePair),
            policy=model,
            out=place,
            settings=config.dpo,
            seed=config.seed,
            image_root=layout.root,
            reference=reference,
            max_image_pixels=config.base.max_image_pixels,
            on_log=StageProgress(f"round {number} dpo").follow_epochs(config.dpo.num_train_epochs),
        )
        health = TrainingHealth(
            reward_accuracy=report.reward_accuracy,
            reward_margin=report.reward_margin,
            chosen_logp_before=report.chosen_logp_before,
            chosen_logp_after=report.chosen_logp_after,
            loss_first=report.first_loss,
            loss_last=report.history[-1]["loss"],
        )
        write_json(place / "training.json", {"history": report.history, "steps": report.steps, "health": asdict(health)})
        return {"pairs": report.examples, "steps": report.steps, "margin": report.reward_margin}

    return run_stage(
        f"round {number} dpo",
        folder=folder / "model",
        inputs={"pairs": folder / "pairs", "policy": model, **({"reference": reference} if reference else {})},
        config={"dpo": config.dpo, "max_image_pixels": config.base.max_image_pixels, "seed": config.seed},
        code=["visloop.training.dpo"],
        work=work,
        resumable=True,
    )


def validate_model(config: Config, layout: Layout, *, model: Path, folder: Path, name: str) -> Any:
    """Stage: greedy and sampled chains of a reasoner on the validation split, scored by the loop's own judge."""
    count = config.rounds.validation_samples
    examination = Examination(config, layout, name=name, model=model, split="validation", count=count)

    def work(place: Path) -> dict[str, float]:
        predictions = examination.run().predictions
        metrics = summarize_validation(predictions)
        write_shard(place / "predictions.jsonl", predictions)
        write_json(place / "metrics.json", metrics)
        return {key: value for key, value in asdict(metrics).items() if value is not None}

    return run_stage(
        f"validate {name}",
        folder=folder,
        inputs=examination.inputs(),
        config=examination.settings(),
        code=EXAM_CODE,
        work=work,
        resources=examination.resources,
    )


def summarize_validation(predictions: Sequence[Prediction]) -> ValidationMetrics:
    """Means over the validation questions."""

    def mean(key: str) -> float:
        return fmean(item.metrics[key] for item in predictions)

    scores = [item.metrics["path_score"] for item in predictions if "path_score" in item.metrics]

    return ValidationMetrics(
        questions=len(predictions),
        sampled_accuracy=mean("sampled_accuracy"),
        greedy_accuracy=mean("greedy_accuracy"),
        path_score=fmean(scores) if scores else None,
        malformed_rate=mean("malformed"),
        mean_length=mean("chain_tokens"),
    )


def judge_round(config: Config, layout: Layout, *, number: int, head: dict[str, Any]) -> Any:
    """Stage: accept or reject the round on the validation split, and write the lineage after it."""
    folder, previous = layout.round(number), layout.round(number - 1)
    inputs = {
        "model": folder / "model",
        "pairs": folder / "pairs",
        "before": layout.root / head["validation"],
        "after": folder / "validation",
        "previous": previous / "report",
    }

    def work(place: Path) -> dict[str, float]:
        lineage = TypeAdapter(Lineage).validate_python(read_json(previous / "report" / "lineage.json"))
        training = read_json(folder / "model" / "training.json")["health"]
        pairs = read_manifest(folder / "pairs")
        report = decide_round(
            round=number,
            lineage=lineage,
            model_hash=hash_stage(folder / "model"),
            data_hash=hash_stage(folder / "pairs"),
            config_hash=hash_json({"dpo": dump_plain(config.dpo), "rounds": dump_plain(config.rounds)}),
            counts={key: int(value) for key, value in (pairs.counts if pairs else {}).items()},
            before=read_validation(layout.root / head["validation"]),
            after=read_validation(folder / "validation"),
            training=TrainingHealth(**training),
            guards=config.rounds.guards,
        )
        write_json(place / "report.json", report)
        write_json(place / "lineage.json", extend_lineage(lineage, report))
        here = _describe_head(layout, number=number, model=folder / "model")
        write_json(place / "head.json", here if report.accepted else head)
        return {"accepted": float(report.accepted), "gain": report.after.sampled_accuracy - report.before.sampled_accuracy}

    return run_stage(
        f"round {number}",
        folder=folder / "report",
        inputs=inputs,
        config={"guards": config.rounds.guards, "dpo": config.dpo, "rounds": config.rounds.rounds},
        code=["visloop.reasoning.rounds"],
        work=work,
    )


def note_stop(config: Config, layout: Layout, *, number: int, reason: str) -> Any:
    """Stage: a round that the stop rule left out, or that got no pair; the head stays."""
    previous = layout.round(number - 1) / "report"

    def work(place: Path) -> dict[str, float]:
        write_json(place / "stopped.json", {"round": number, "reason": reason})
        for name in ("lineage.json", "head.json"):
            write_json(place / name, read_json(previous / name))
        return {}

    return run_stage(
        f"round {number}",
        folder=layout.round(number) / "report",
        inputs={"previous": previous},
        config={"stop_after_rejections": config.rounds.stop_after_rejections, "reason": reason},
        code=["visloop.reasoning.rounds"],
        work=work,
    )


def read_head(layout: Layout, *, before: int) -> dict[str, Any]:
    """Where the last accepted model before a round lies: ``round``, ``model``, ``validation`` (relative to the data folder)."""
    head: dict[str, Any] = read_json(layout.round(before - 1) / "report" / "head.json")
    return head


def read_reports(layout: Layout, *, before: int) -> list[RoundReport]:
    """Reports of the rounds that were played, in order."""
    files = [layout.round(number) / "report" / "report.json" for number in range(1, before)]
    return [TypeAdapter(RoundReport).validate_python(read_json(file)) for file in files if file.is_file()]


def read_validation(folder: Path) -> ValidationMetrics:
    """The metrics that ``validate_model`` left."""
    metrics: ValidationMetrics = TypeAdapter(ValidationMetrics).validate_python(read_json(folder / "metrics.json"))
    return metrics


def _describe_head(layout: Layout, *, number: int, model: Path) -> dict[str, Any]:
    """The last accepted model; paths are relative to the data folder."""
    validation = layout.round(number) / "validation"
    paths = {"model": model, "validation": validation}
    return {"round": number, **{key: path.relative_to(layout.root).as_posix() for key, path in paths.items()}}


def hash_stage(folder: Path) -> str:
    """The hash of a finished stage: of its manifest's files."""
    manifest = read_manifest(folder)
    if manifest is None:
        raise DataError(f"{folder} holds no finished stage; run the flow that makes it first")
    return hash_json(manifest.files)
