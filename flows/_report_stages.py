"""The stage that turns predictions into a report: rows with intervals, paired differences, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows._evaluation_stages import CHAIN_METRICS, Reasoner, read_systems
from flows._layout import Layout
from flows._records import read_json, read_split, read_truths, write_json
from flows._round_stages import hash_stage
from flows._stage import run_stage
from flows._summary import stage_rows
from visloop.config import Config
from visloop.evaluation.chains import build_chain_matrix
from visloop.evaluation.metrics import (
    Paired,
    Row,
    compare_outcomes,
    measure_consistency,
    measure_families,
    measure_outcomes,
    read_outcomes,
)
from visloop.evaluation.plots import plot_chain_matrix, plot_families, plot_rounds, plot_scores, plot_systems
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.systems import answer_majority
from visloop.records.reasoning import AssessedPath, Prediction, ReasoningPath
from visloop.records.shards import read_shard, read_shards, write_bytes

REPORT_NAME = "insight_v.json"


def make_report(config: Config, layout: Layout, *, reasoners: Sequence[Reasoner]) -> Any:
    """Stage: rows with intervals, paired differences, plots."""
    options = {
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }

    def work(place: Path) -> dict[str, float]:
        floor = answer_majority(read_split(layout, "test"), train=read_split(layout, "train"))
        systems = {floor[0].system: floor, **read_systems(layout)}
        chains = {reasoner.name: read_shard(layout.evaluation / reasoner.name / "predictions.jsonl", Prediction) for reasoner in reasoners}
        rows: list[Row] = []
        for items in systems.values():
            rows.append(measure_outcomes(read_outcomes(items), **options))
            rows.append(measure_consistency(items, confidence=config.evaluation.confidence))
            rows += measure_families(items, **options)
        for items in chains.values():
            known = {metric for item in items for metric in item.metrics}
            rows += [measure_outcomes(read_outcomes(items, metric=metric), **options) for metric in CHAIN_METRICS if metric in known]
        report = Report(
            rows=rows,
            paired=compare_systems(systems, chains, reasoners=reasoners, options=options),
            rounds=[
                {"round": reasoner.round, "name": reasoner.name, "accepted": reasoner.accepted, **_read_round(layout, reasoner)}
                for reasoner in reasoners
            ],
            hashes={
                "dataset": hash_stage(layout.raw),
                "summarizer": hash_stage(layout.model("summarizer")),
                **{reasoner.name: hash_stage(reasoner.folder) for reasoner in reasoners},
                "predictions": hash_stage(layout.evaluation / "systems"),
            },
        )
        write_report(place / "report.json", report)
        draw_plots(config, layout, report, place=place, reasoners=reasoners)
        return {"rows": len(report.rows), "pairs": len(report.paired)}

    return run_stage(
        "report",
        folder=layout.evaluation / "report",
        inputs={
            "raw": layout.raw,
            "systems": layout.evaluation / "systems",
            "assessed": layout.assessed,
            "summarizer": layout.model("summarizer"),
            **{reasoner.name: layout.evaluation / reasoner.name for reasoner in reasoners},
            **{f"model {reasoner.name}": reasoner.folder for reasoner in reasoners},
        },
        config={**options, "bands": config.assess.bands},
        code=["visloop.evaluation"],
        work=work,
    )


def compare_systems(
    systems: Mapping[str, Sequence[Prediction]],
    chains: Mapping[str, Sequence[Prediction]],
    *,
    reasoners: Sequence[Reasoner],
    options: Mapping[str, Any],
) -> list[Paired]:
    """Every two-agent row against the baselines, neighbours among themselves, and the last accepted M_t against M_0."""
    pairs: list[Paired] = []
    baselines = ("base direct", "direct SFT", "two agents")
    for name, items in systems.items():
        if name.startswith("two agents"):
            others = [other for other in baselines if other in systems and other != name]
            pairs += [compare_outcomes(read_outcomes(items), read_outcomes(systems[other]), **options) for other in others]
    for reasoner in reasoners[1:]:
        for metric in ("greedy_accuracy", "sampled_accuracy", "path_score"):
            if all(any(metric in item.metrics for item in chains[name]) for name in (reasoner.name, "M_0")):
                left, right = (read_outcomes(chains[name], metric=metric) for name in (reasoner.name, "M_0"))
                pairs.append(compare_outcomes(left, right, **options))
    return pairs


def draw_plots(config: Config, layout: Layout, report: Report, *, place: Path, reasoners: Sequence[Reasoner]) -> None:
    """All pictures of the report as PNG in ``place``."""
    plot_rounds(report, place / "rounds.png")
    plot_systems(report.rows, place / "systems.png")
    last = [row.name for row in report.rows if row.metric == "accuracy" and row.name.startswith("two agents") and "(" not in row.name][-1]
    plot_families(report.rows, place / "families.png", systems=["base direct", "direct SFT", last])
    scores = [item.score for item in read_shards(layout.assessed, AssessedPath) if item.score is not None]
    plot_scores(scores, place / "scores.png", bands=config.assess.bands)
    truths = read_truths(layout)
    if truths:
        samples = read_split(layout, "test")
        matrices = {}
        for reasoner in [reasoner for reasoner in reasoners if reasoner.accepted][:: max(1, len(reasoners) - 1)]:
            folder = layout.evaluation / reasoner.name
            greedy = read_shard(folder / "greedy.jsonl", ReasoningPath)
            predictions = read_shard(folder / "predictions.jsonl", Prediction)
            matrices[reasoner.name] = build_chain_matrix(greedy, predictions, samples=samples, truths=truths).counts
        plot_chain_matrix(matrices, place / "chains.png")


def publish_report(layout: Layout) -> Path:
    """Copy report and plots to ``reports/``, with the seconds that each stage took when it last ran, and the figures without
    lists in ``metrics.json``, as `dvc metrics` reads them."""
    source, target = layout.evaluation / "report", layout.reports / REPORT_NAME
    before = read_report(target).seconds if target.is_file() else {}
    seconds = {row.stage: round(row.seconds, 2) for row in stage_rows() if row.state != "skipped"}
    report = replace(read_report(source / "report.json"), seconds={**before, **seconds})
    write_report(target, report)
    figures: dict[str, dict[str, float]] = {}
    for row in report.rows:
        if "/" not in row.metric:
            figures.setdefault(row.name, {})[row.metric] = row.value
    write_json(layout.reports / "metrics.json", figures)
    for picture in sorted(source.glob("*.png")):
        write_bytes(layout.reports / picture.name, picture.read_bytes())
    return target


def _read_round(layout: Layout, reasoner: Reasoner) -> dict[str, Any]:
    if reasoner.round == 0:
        return {}
    report = read_json(layout.round(reasoner.round) / "report" / "report.json")
    return {"pairs": report["counts"].get("pairs", 0), "violations": [violation["message"] for violation in report["violations"]]}
