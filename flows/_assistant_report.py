"""The stage that turns the assistant's predictions into a report: rows per kind of task, paired differences, forgetting, the curve."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows._assistant_stages import pool_inputs, read_predictions, read_tasks
from flows._assistant_systems import DIRECT, FROZEN, FROZEN_PLAN, LEARNED, System
from flows._layout import Layout
from flows._records import read_json, write_json
from flows._round_stages import hash_stage
from flows._stage import run_stage
from flows._summary import stage_rows
from visloop.config import Config
from visloop.evaluation.direct import drop_failed
from visloop.evaluation.metrics import Outcomes, Paired, Row, compare_outcomes, find_consistency, measure_outcomes, read_outcomes
from visloop.evaluation.plots import plot_curve, plot_families, plot_systems
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.tables import Table, build_systems_table
from visloop.ids import hash_tree
from visloop.records.assistant import Task
from visloop.records.reasoning import Prediction
from visloop.records.shards import write_bytes

REPORT_NAME = "clova.json"
DETAILS = {
    "tagging_f1": ("tagging", "f1"),
    "tagging_precision": ("tagging", "precision"),
    "tagging_recall": ("tagging", "recall"),
    "editing_clip_check": ("editing", "check"),
}
"""Rows of the report by kind of task and name of the prediction's figure, all means over tasks. A picture without tags has precision 1.
The check is the frozen CLIP's (``visloop.evaluation.edit_check``), over tasks with new objects whose words it knows."""
Runs = Mapping[str, Sequence[Prediction]]


def make_assistant_report(config: Config, layout: Layout, *, systems: Sequence[System], direct: Path | None = None) -> Any:
    """Stage: rows with intervals, paired differences, plots. ``direct``: the folder with the answers that need no program."""
    folders = {**({} if direct is None else {DIRECT: direct}), **{system.name: system.folder for system in systems}}
    options = {
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }

    def work(place: Path) -> dict[str, float]:
        tasks = {task.id: task for part in ("test", "base") for task in read_tasks(layout, part)}
        test = {name: read_predictions(folder, "test") for name, folder in folders.items()}
        if DIRECT in test:
            test[DIRECT] = drop_failed(test[DIRECT], {task.id: task.kind for task in tasks.values()})
        base = {system.name: read_predictions(system.folder, "base") for system in systems if "base" in system.parts}
        measured = {name: list_outcomes(name, test[name], base.get(name, ()), tasks=tasks) for name in test}
        rows = [measure_outcomes(outcomes, **options) for found in measured.values() for outcomes in found]
        report = Report(
            rows=rows,
            paired=compare_all(measured, options=options),
            rounds=[
                {"round": system.played, "name": system.name, "accepted": True, **_read_cycle(layout, system.played)}
                for system in systems
                if system.played is not None
            ],
            hashes={
                "tasks": hash_stage(layout.tasks),
                **{f"pools {system.name}": hash_tree([*pool_inputs(system.pools).values()]) for system in systems},
            },
        )
        write_report(place / "report.json", report)
        draw_plots(config, layout, report, place=place, systems=systems)
        return {"rows": len(report.rows), "pairs": len(report.paired)}

    return run_stage(
        "assistant report",
        folder=layout.assistant / "report",
        inputs={"tasks": layout.tasks, **folders},
        config={**options, "systems": list(folders)},
        code=["visloop.evaluation"],
        work=work,
    )


def list_outcomes(name: str, test: Sequence[Prediction], base: Sequence[Prediction], *, tasks: Mapping[str, Task]) -> list[Outcomes]:
    """What is measured of one row: all test tasks, each kind, novel and known concepts, new wordings, and the base tasks that tell what
    was forgotten; consistency where tasks share their sentences; then the details of tags and edits. A system that does not do every kind
    is measured on those that it does, one by one: its mean over them could be compared with nothing."""
    whole = {tasks[item.sample_id].kind for item in test} == {task.kind for task in tasks.values()}
    parts: dict[str, list[Prediction]] = {"accuracy": list(test)} if whole else {}
    for item in test:
        task = tasks[item.sample_id]
        parts.setdefault(f"accuracy/{task.kind}", []).append(item)
        if not whole:
            continue
        parts.setdefault("novel_concepts" if task.novel else "base_concepts", []).append(item)
        if task.wording == "new":
            parts.setdefault("new_wordings", []).append(item)
    if base:
        parts["known_tasks"] = list(base)
    found = []
    for metric, items in parts.items():
        outcomes = read_outcomes(items, name=name)
        found.append(replace(outcomes, metric=metric))
    if len(test) >= 2 * len({item.group for item in test}):
        found.append(find_consistency(test, name=name))
    for metric, (kind, key) in DETAILS.items():
        items = [item for item in test if tasks[item.sample_id].kind == kind and key in item.metrics]
        if items:
            found.append(replace(read_outcomes(items, metric=key, name=name), metric=metric))
    return found


def build_system_tables(rows: Sequence[Row]) -> list[Table]:
    """Systems with what all tasks tell, and with the details of tags and edits, where there are any."""
    details = [row for row in rows if row.metric in DETAILS]
    others = [row for row in rows if row.metric not in DETAILS]
    tables = [build_systems_table(others, title="The assistant on held-out tasks")]
    return tables + ([build_systems_table(details, title="Tags, and edits as the frozen CLIP sees them")] if details else [])


def compare_all(measured: Mapping[str, Sequence[Outcomes]], *, options: Mapping[str, Any]) -> list[Paired]:
    """Learning against frozen tools and against direct answers, and every ablation against the whole; known tasks tell what was
    forgotten."""
    pairs = []
    by_key = {(name, outcomes.metric): outcomes for name, found in measured.items() for outcomes in found}
    wanted = [(LEARNED, FROZEN_PLAN), (LEARNED, FROZEN), (FROZEN_PLAN, FROZEN), (LEARNED, DIRECT)]
    wanted += [(LEARNED, name) for name in measured if name.startswith("all - ")]
    wanted += [(name, FROZEN_PLAN) for name in measured if name.startswith("+ ")]
    for a, b in wanted:
        whole = a == LEARNED and b in (FROZEN_PLAN, DIRECT)
        metrics = [metric for name, metric in by_key if name == a and (whole or metric in ("accuracy", "known_tasks"))]
        pairs += [compare_outcomes(by_key[a, metric], by_key[b, metric], **options) for metric in metrics if (b, metric) in by_key]
    return pairs


def draw_plots(config: Config, layout: Layout, report: Report, *, place: Path, systems: Sequence[System]) -> None:
    """The curve over feedbacks, the rows, and the kinds of tasks."""
    stream, cycles = len(read_tasks(layout, "stream")), config.assistant.tasks.cycles
    points: dict[float, list[Row]] = {}
    for system in systems:
        if system.played is not None:
            rows = [row for row in report.rows if row.name == system.name and row.metric.startswith("accuracy")]
            rows = rows if len(rows) > 2 else rows[:1]  # of one kind of task only, its line would hide the other
            points[round(stream * system.played / cycles)] = [replace(row, name="held-out tasks") for row in rows]
    if len(points) > 1:
        plot_curve(points, place / "learning.png", place="instructions with feedback so far", title="The assistant while it learns")
    plot_systems(report.rows, place / "assistant_systems.png", title="The assistant on held-out tasks")
    shown = [name for name in (FROZEN, FROZEN_PLAN, LEARNED) if any(row.name == name for row in report.rows)]
    plot_families(report.rows, place / "kinds.png", systems=shown)


def publish_assistant_report(layout: Layout) -> Path:
    """Copy report and plots to ``reports/``, with the seconds that each stage took when it last ran."""
    source, target = layout.assistant / "report", layout.reports / REPORT_NAME
    before = read_report(target).seconds if target.is_file() else {}
    seconds = {row.stage: round(row.seconds, 2) for row in stage_rows() if row.state != "skipped"}
    report = replace(read_report(source / "report.json"), seconds={**before, **seconds})
    write_report(target, report)
    figures: dict[str, dict[str, float]] = {}
    for row in report.rows:
        figures.setdefault(row.name, {})[row.metric.replace("/", "_")] = row.value
    write_json(layout.reports / "clova_metrics.json", figures)
    for picture in sorted(source.glob("*.png")):
        write_bytes(layout.reports / picture.name, picture.read_bytes())
    return target


def _read_cycle(layout: Layout, number: int) -> dict[str, Any]:
    report = read_json(layout.cycle(number) / "report.json")
    return {key: report[key] for key in ("counts", "gate", "concepts") if key in report}
