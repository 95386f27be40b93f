"""Measure every system on held-out questions: the ablation table, paired differences, the rounds' curve, plots."""

from typing import Any

from prefect import flow

from flows._checks import run_gate
from flows._entry import from_plain, run_flow
from flows._evaluation_stages import answer_systems, examine_reasoner, list_reasoners
from flows._layout import Layout
from flows._objective import log_rows
from flows._report_stages import make_report, publish_report
from flows._run import open_flow_run
from flows._summary import open_console, show_tables
from visloop.evaluation.report import read_report
from visloop.evaluation.tables import build_tables


@flow(name="evaluation")
def evaluation(values: dict[str, Any]) -> None:
    """Chains of every M_t, answers of every system, then table, plots and ``reports/insight_v.json``."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    with open_flow_run("evaluation", config) as run:
        reasoners = list_reasoners(config, layout)
        for reasoner in reasoners:
            run.log_stage(examine_reasoner(config, layout, reasoner=reasoner))
        run.log_stage(answer_systems(config, layout, reasoners=reasoners))
        records = layout.evaluation / "systems"
        run_gate("predictions", suite="predictions", records=records, config=config, layout=layout, folder=layout.predictions_gate)
        run.log_stage(make_report(config, layout, reasoners=reasoners))
        path = publish_report(layout)
        report = read_report(path)
        run.log_json(path)
        log_rows(run, [row for row in report.rows if "/" not in row.metric], prefix="test")
        for picture in sorted(layout.reports.glob("*.png")):
            run.log_plot(picture)
        show_tables(build_tables(report))
        open_console().print(f"report: {path}", markup=False)


if __name__ == "__main__":
    run_flow(evaluation, doc=__doc__ or "")
