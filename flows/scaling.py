"""The data-scaling curve: reasoners trained on growing shares of the reason set, measured on the held-out questions.

Needs what `python -m flows.pipeline` leaves up to its assessment. Smaller shares are subsets of larger ones (Insight-V Fig. 4).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows._entry import from_plain, run_flow
from flows._evaluation_stages import CHAIN_METRICS, Reasoner, examine_reasoner
from flows._layout import Layout
from flows._records import read_json
from flows._run import open_flow_run
from flows._stage import run_stage
from flows._summary import show_tables
from flows.assessment import make_reason_set
from flows.sft import train_agent
from visloop.config import Config
from visloop.evaluation.metrics import Row, is_percentage, measure_outcomes, read_outcomes
from visloop.evaluation.plots import plot_scaling
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.tables import build_systems_table
from visloop.records.reasoning import Prediction
from visloop.records.shards import read_shard, write_bytes

METRICS = CHAIN_METRICS[:3]


@flow(name="scaling")
def scaling(values: dict[str, Any]) -> None:
    """One reasoner per share, one curve."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("scaling", config) as run:
        for fraction in config.evaluation.fractions:
            place = locate_share(layout, fraction)
            run.log_stage(make_reason_set(config, layout, fraction=fraction, folder=place / "set"))
            name = f"reasoner {fraction:.0%}"
            run.log_stage(
                train_agent(config, layout, name=name, settings=config.sft_reason, examples=place / "set", folder=place / "model")
            )
            reasoner = Reasoner(name, 0, place / "model", True)
            run.log_stage(examine_reasoner(config, layout, reasoner=reasoner, folder=place / "exam"))
        run.log_stage(draw_curve(config, layout))
        folder = layout.root / "scaling" / "curve"
        for file in ("scaling.json", "scaling.png"):
            write_bytes(layout.reports / file, (folder / file).read_bytes())
        run.log_plot(layout.reports / "scaling.png")
        run.log_json(layout.reports / "scaling.json")
        rows = read_report(layout.reports / "scaling.json").rows
        show_tables([build_systems_table(rows, metrics=METRICS, title="Data scaling")])


def locate_share(layout: Layout, fraction: float) -> Path:
    """The folder of one point of the curve: its set, its model, its exam."""
    return layout.root / "scaling" / f"{round(100 * fraction):03d}"


def draw_curve(config: Config, layout: Layout) -> Any:
    """Stage: the rows of every share with intervals, and the picture."""
    options: dict[str, Any] = {
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }
    shares = {fraction: locate_share(layout, fraction) for fraction in config.evaluation.fractions}

    def work(place: Path) -> dict[str, float]:
        points: dict[float, list[Row]] = {}
        for fraction, folder in shares.items():
            predictions = read_shard(folder / "exam" / "predictions.jsonl", Prediction)
            known = [metric for metric in METRICS if any(metric in item.metrics for item in predictions)]
            points[fraction] = [measure_outcomes(read_outcomes(predictions, metric=metric, name="reasoner"), **options) for metric in known]
        counts = {fraction: read_json(folder / "set" / "report.json")["size"] for fraction, folder in shares.items()}
        rows = [replace(row, name=f"{fraction:.0%} = {counts[fraction]} chains") for fraction in shares for row in points[fraction]]
        write_report(place / "scaling.json", Report(rows=rows, paired=[]))
        accuracies = {fraction: [row for row in rows if is_percentage(row.metric)] for fraction, rows in points.items()}
        plot_scaling(accuracies, place / "scaling.png")
        return {"points": len(points)}

    return run_stage(
        "scaling curve",
        folder=layout.root / "scaling" / "curve",
        inputs={f"{kind} {fraction}": folder / kind for fraction, folder in shares.items() for kind in ("set", "exam")},
        config={**options, "fractions": config.evaluation.fractions},
        code=["visloop.evaluation"],
        work=work,
    )


if __name__ == "__main__":
    run_flow(scaling, doc=__doc__ or "")
