"""Assess chains at two grains, the answer and the path, and build the reasoning agent's training set (Insight-V 3.2)."""

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
from flows._records import read_pool, read_truths, write_json
from flows._run import open_flow_run
from flows._stage import Shard, run_sharded_stage, run_stage
from flows._workers import Lazy
from visloop.chat.base import ChatModel
from visloop.chat.factory import open_chat
from visloop.config import Config, Scorer
from visloop.prompts.render import PromptSet
from visloop.reasoning.assess import assess_paths, check_unjudged_rate, report_assessment
from visloop.reasoning.score_paths import ChatScorer, PathScorer, VerifierScorer
from visloop.reasoning.sets import build_reason_set
from visloop.records.reasoning import AssessedPath, ReasoningPath, Sample
from visloop.records.shards import read_shard, read_shards, write_shard


@flow(name="assessment")
def assessment(values: dict[str, Any]) -> None:
    """Assessed chains, then the reason set; each behind its gate."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("assessment", config) as run:
        run.log_stage(
            assess_folder(config, layout, name="assessed", samples=read_pool(layout), source=layout.paths, folder=layout.assessed)
        )
        run.log_json(layout.assessed / "report.json")
        run_gate("assessed", suite="assessed", records=layout.assessed, config=config, layout=layout)
        run.log_stage(make_reason_set(config, layout))
        run.log_json(layout.training_set("reason") / "report.json")
        run_gate("reason", suite="sft", records=layout.training_set("reason"), config=config, layout=layout)


class Judges:
    """The models that assess: opened with the first shard that needs them, closed with the stage."""

    def __init__(self, config: Config, layout: Layout) -> None:
        self.config, self.layout = config, layout
        self.judge: Lazy[ChatModel] = Lazy(partial(open_chat, config.assess.judge))
        self.text_judge = None if config.assess.text_judge is None else Lazy(partial(open_chat, config.assess.text_judge))

    @property
    def resources(self) -> list[Lazy[ChatModel]]:
        return [self.judge] if self.text_judge is None else [self.judge, self.text_judge]

    def open_scorer(self) -> PathScorer:
        """The path scorer that the config names."""
        if self.config.assess.scorer is Scorer.verifier:
            return VerifierScorer(read_truths(self.layout))
        return self.open_judge(show_answer=self.config.assess.show_answer)

    def open_judge(self, *, show_answer: bool) -> ChatScorer:
        """The judge model, also where the config scores by the verifier: at inference no ground truth is in reach."""
        assess = self.config.assess
        return ChatScorer(
            self.judge.get(),
            prompts=PromptSet(self.config.prompts),
            sampling=assess.judge_sampling,
            show_answer=show_answer,
            passes=assess.passes,
            max_reasks=assess.max_reasks,
            max_paths_per_call=assess.max_paths_per_call,
        )

    def assess(self, samples: Sequence[Sample], paths: Sequence[ReasoningPath]) -> list[AssessedPath]:
        """Verdicts and scores of ``paths``."""
        assessed, _ = assess_paths(
            samples,
            paths,
            scorer=self.open_scorer(),
            text_judge=None if self.text_judge is None else self.text_judge.get(),
            prompts=PromptSet(self.config.prompts),
            config=self.config.assess,
            seed=self.config.seed,
            image_root=self.layout.root,
        )
        return assessed

    def inputs(self) -> dict[str, Path]:
        """What the judges add to a stage's inputs."""
        assess = self.config.assess
        if assess.scorer is Scorer.verifier:
            return {}
        text = {} if assess.text_judge is None else chat_inputs("text_judge", assess.text_judge)
        return {**chat_inputs("judge", assess.judge), **text}


ASSESS_CODE = ("visloop.reasoning.assess", "visloop.reasoning.score_paths", "visloop.chat")


def assess_folder(config: Config, layout: Layout, *, name: str, samples: Sequence[Sample], source: Path, folder: Path) -> Any:
    """Stage: assess every shard of chains in ``source``, one shard each."""
    judges = Judges(config, layout)

    def work(shard: Shard[str], path: Path) -> dict[str, float]:
        assessed = judges.assess(samples, read_shard(source / shard.payload, ReasoningPath))
        write_shard(path, assessed)
        return {
            "paths": len(assessed),
            "correct": sum(item.verdict == "correct" for item in assessed),
            "scored": sum(item.score_status == "scored" for item in assessed),
        }

    def finish(place: Path) -> dict[str, float]:
        report = report_assessment(read_shards(place, AssessedPath))
        check_unjudged_rate(report, max_rate=config.assess.max_unjudged_rate)
        write_json(place / "report.json", report)
        return {"mean_score": report.mean_score} if report.mean_score is not None else {}

    return run_sharded_stage(
        name,
        folder=folder,
        inputs={"paths": source, "raw": layout.raw, **judges.inputs()},
        config={"assess": config.assess, "prompts": hash_prompts(config), "seed": config.seed},
        code=ASSESS_CODE,
        shards=[Shard(file.stem, file.name) for file in sorted(source.glob("*.jsonl"))],
        work=work,
        finish=finish,
        resources=judges.resources,
        retries=1,
        workers=config.workers,
    )


def make_reason_set(config: Config, layout: Layout, *, fraction: float | None = None, folder: Path | None = None) -> Any:
    """Stage: D_reason, the best chain of each question; a share of it, in a folder of its own, for the scaling curve."""
    sets = config.sets if fraction is None else replace(config.sets, reason_fraction=fraction)

    def work(place: Path) -> dict[str, float]:
        examples, report = build_reason_set(
            read_pool(layout),
            read_shards(layout.assessed, AssessedPath),
            prompts=PromptSet(config.prompts),
            config=sets,
            seed=config.seed,
        )
        write_shard(place / "examples.jsonl", examples)
        write_json(place / "report.json", report)
        return {"examples": len(examples)}

    return run_stage(
        "set reason" if fraction is None else f"set reason {fraction:.0%}",
        folder=folder or layout.training_set("reason"),
        inputs={"assessed": layout.assessed, "pool": layout.pool},
        config={
            "min_score": sets.reason_min_score,
            "fraction": sets.reason_fraction,
            "prompts": hash_prompts(config),
            "seed": config.seed,
        },
        code=["visloop.reasoning.sets"],
        work=work,
    )


if __name__ == "__main__":
    run_flow(assessment, doc=__doc__ or "")
