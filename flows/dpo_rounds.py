"""Improve the reasoner by rounds of DPO, M_1..M_T, each on pairs sampled from the model before it (Insight-V 3.4)."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from flows._checks import run_gate
from flows._entry import from_plain, run_flow
from flows._layout import DEFAULT_ROUNDS, Layout
from flows._objective import log_objective, measure_head
from flows._people import freeze_questions, read_questions
from flows._registry import REASONER, name_alias, register_model
from flows._round_stages import (
    choose_prompts,
    judge_round,
    make_pairs,
    note_stop,
    read_head,
    read_reports,
    read_validation,
    start_round_zero,
    train_round,
    validate_model,
)
from flows._run import open_flow_run
from flows._summary import show_tables
from flows._tracking import TrackedRun
from flows.assessment import assess_folder
from flows.sft import sample_folder
from visloop.config import Config, PairStrategy
from visloop.evaluation.tables import Table
from visloop.reasoning.rounds import should_stop
from visloop.records.reasoning import AssessedPath
from visloop.records.shards import read_shards


@flow(name="dpo_rounds")
def dpo_rounds(values: dict[str, Any]) -> float:
    """M_0 measured on the validation split, then the rounds until they are done or the stop rule ends them. Returns what a sweep compares:
    the sampled accuracy of the last accepted model on validation."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("dpo_rounds", config) as run:
        wanted = range(config.rounds.rounds + 1) if config.rounds.only is None else (config.rounds.only,)
        for number in wanted:
            if number == 0:
                start_rounds(config, layout, run)
            else:
                play_round(config, layout, run, number)
        log_decisions(config, layout)
        return log_objective(run, measure_head(config, layout, head=read_head(layout, before=wanted[-1] + 1)))


def start_rounds(config: Config, layout: Layout, run: TrackedRun) -> None:
    """Round 0: the reasoner of supervised fine-tuning, measured; the start of the lineage."""
    with run.open_child("M_0", step=0) as child:
        child.log_stage(validate_model(config, layout, model=layout.model("reasoner"), folder=layout.round(0) / "validation", name="M_0"))
        child.log_stage(start_round_zero(config, layout))
        metrics = asdict(read_validation(layout.round(0) / "validation"))
        child.log_round(metrics)
        register_model(
            child,
            name=REASONER,
            folder=layout.model("reasoner"),
            metrics=numbers(metrics),
            aliases=[name_alias("m0", line=layout.rounds, default=DEFAULT_ROUNDS)],
            tags={"accepted": "true"},
            data=layout.root,
        )


def play_round(config: Config, layout: Layout, run: TrackedRun, number: int) -> None:
    """One round: sample D_t from the head, train, validate, accept or reject. A round after the stop, or one whose questions gave
    no pair, leaves a note only."""
    folder = layout.round(number)
    reports = read_reports(layout, before=number)
    stop = should_stop(reports, config=config.rounds)
    if stop is not None:
        run.log_stage(note_stop(config, layout, number=number, reason=stop))
        return
    head = read_head(layout, before=number)
    model = layout.root / head["model"]
    with run.open_child(f"M_{number}", step=number) as child:
        people = freeze_questions(config, layout, number)
        asked = read_questions(people)
        prompts = [*choose_prompts(config, layout, number), *asked]
        child.log_stage(
            sample_folder(
                config,
                layout,
                name=f"round {number} paths",
                model=model,
                samples=prompts,
                per_question=config.rounds.samples_per_question,
                sampling=config.rounds.sampling,
                folder=folder / "paths",
                key=f"round {number}",
                greedy=config.answer.reason_sampling if config.rounds.pairs.strategy is PairStrategy.greedy else None,
            )
        )
        child.log_stage(
            assess_folder(
                config, layout, name=f"round {number} assessed", samples=prompts, source=folder / "paths", folder=folder / "assessed"
            )
        )
        more = people if asked else None
        _gate(config, layout, number=number, suite="paths", more=more)
        _gate(config, layout, number=number, suite="assessed", more=more)
        pairs = make_pairs(config, layout, number=number, samples=prompts)
        child.log_stage(pairs)
        child.log_json(folder / "pairs" / "report.json")
        if not pairs.counts["pairs"]:
            child.log_stage(note_stop(config, layout, number=number, reason="no_pairs"))
            return
        sample_ids = {item.path.id: item.path.sample_id for item in read_shards(folder / "assessed", AssessedPath)}
        _gate(config, layout, number=number, suite="pairs", paths=sample_ids, more=more)
        child.log_stage(train_round(config, layout, number=number, model=model))
        child.log_history(folder / "model" / "training.json", prefix="dpo")
        child.log_stage(validate_model(config, layout, model=folder / "model", folder=folder / "validation", name=f"M_{number}"))
        child.log_stage(judge_round(config, layout, number=number, head=head))
        report = read_reports(layout, before=number + 1)[-1]
        metrics = {**asdict(report.after), **asdict(report.training), "accepted": float(report.accepted)}
        child.log_round(metrics)
        child.log_json(folder / "report" / "report.json")
        register_model(
            child,
            name=REASONER,
            folder=folder / "model",
            metrics=numbers(metrics),
            aliases=[
                name_alias(short, line=layout.rounds, default=DEFAULT_ROUNDS)
                for short in (f"m{number}", *(["head"] if report.accepted else []))
            ],
            tags={"accepted": str(report.accepted).lower(), "parent": report.parent_hash, "data": report.data_hash},
            data=layout.root,
        )


def _gate(
    config: Config, layout: Layout, *, number: int, suite: str, paths: dict[str, str] | None = None, more: Path | None = None
) -> None:
    folder = layout.round(number)
    run_gate(
        f"{suite}_{number:02d}",
        suite=suite,
        records=folder / suite,
        config=config,
        layout=layout,
        paths=paths,
        folder=folder / "gates" / suite,
        more=more,
    )


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are numbers."""
    return {key: float(value) for key, value in values.items() if isinstance(value, int | float)}


def log_decisions(config: Config, layout: Layout) -> None:
    """Show what became of each round."""
    rows = []
    for report in read_reports(layout, before=config.rounds.rounds + 1):
        after = report.after
        decision = "accepted" if report.accepted else "; ".join(violation.message for violation in report.violations)
        score = "" if after.path_score is None else f"{after.path_score:.1f}"
        pairs = str(report.counts.get("pairs", ""))
        rows.append((f"M_{report.round}", pairs, f"{after.sampled_accuracy:.3f}", f"{after.greedy_accuracy:.3f}", score, decision))
    columns = ("round", "pairs", "sampled", "greedy", "path score", "decision")
    show_tables([Table("DPO rounds on the validation split", columns, tuple(rows))])


if __name__ == "__main__":
    run_flow(dpo_rounds, doc=__doc__ or "")
