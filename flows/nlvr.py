"""The planner that learns from right/wrong feedback on human language: NLVR, dev to learn from, test to measure (CLOVA's multi-image task).

python -m flows.nlvr data.root=PATH/TO/nlvr paths.data=data-nlvr
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from flows._assistant_stages import tool_inputs
from flows._entry import from_plain, run_flow
from flows._layout import Layout
from flows._records import read_json, write_json
from flows._run import open_flow_run
from flows._stage import run_stage
from flows._summary import open_console, show_tables
from visloop.assistant.search import make_scorer
from visloop.assistant.search_scorer import save_scorer
from visloop.assistant.search_space import load_pack
from visloop.config import Config
from visloop.config_assistant import WordsChoice
from visloop.errors import ConfigError
from visloop.evaluation.metrics import Row
from visloop.evaluation.nlvr_search import (
    CurvePoint,
    measure_curve,
    measure_search,
    read_drawn_items,
    read_items,
)
from visloop.evaluation.plots import plot_curve
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.tables import build_systems_table
from visloop.records.shards import write_bytes
from visloop.tools.toolbox import open_toolbox

REPORT_NAME = "nlvr_search.json"
SCORERS = "scorers"
"""What was learned with each lexicon, for ``planner.scorer``."""
LEXICONS = (WordsChoice.full, WordsChoice.learned, WordsChoice.reduced, WordsChoice.none)
CURVE_SIZES = (10, 25, 50, 100, 249)


@flow(name="nlvr")
def nlvr(values: dict[str, Any]) -> None:
    """From pixels: what the tools see, programs that feedback chooses, figures with and without the lexicon made by hand."""
    config = from_plain(values)
    layout = Layout.from_config(config)
    if not config.data.root:
        raise ConfigError("data.root is empty; name the folder with NLVR's dev/ and test/ (data.root=PATH)")
    with open_flow_run("nlvr", config) as run:
        run.log_stage(measure_planner(config, layout))
        path = layout.reports / REPORT_NAME
        write_bytes(path, (layout.assistant / "nlvr" / "report.json").read_bytes())
        run.log_json(path)
        for picture in sorted((layout.assistant / "nlvr").glob("*.png")):
            run.log_plot(picture)
        report = read_report(path)
        run.log_metrics({f"nlvr.{row.name}.{row.metric}": row.value for row in report.rows}, step=0)
        console = open_console()
        show_tables([build_systems_table(report.rows, title="NLVR test, from pixels, by lexicon")])
        for name, errors in read_json(layout.assistant / "nlvr" / "errors.json").items():
            console.print(f"{name}: {errors}", markup=False)
        console.print("The space of programs, and the full lexicon, were written by hand after reading the dev sentences.", markup=False)
        scorers = layout.assistant / "nlvr" / SCORERS
        console.print(f"the scorers that were learned: {scorers} (planner@assistant.planner=search)", markup=False)
        console.print(f"report: {path}", markup=False)


def measure_planner(config: Config, layout: Layout) -> Any:
    """Stage: learn from dev's labels as feedback, measure on test, for every lexicon; the curve over sentences."""
    root = Path(config.data.root)

    def work(place: Path) -> dict[str, float]:
        pack, tools = load_pack("nlvr"), open_toolbox(config.assistant.tools)
        train, test = read_items(root, out=place / "pictures", space=pack.space, tools=tools)
        drawn = read_drawn_items(root, "test", space=pack.space, tools=tools)
        rows: list[Row] = []
        errors: dict[str, Any] = {}
        for words in LEXICONS:
            found = measure_search(pack, train, test, words=words, tools=tools, drawn=drawn)
            rows += found.rows
            errors[words.value] = {
                "covered": found.covered,
                "errors": found.errors,
                "learned": [asdict(word) for word in found.learned_words],
                "scorer": found.scorer.hash,
            }
            save_scorer(found.scorer, place / SCORERS / words.value)
        curve = measure_curve(make_scorer(pack, WordsChoice.full, find_tool=tools.find_signature), train, test, sizes=CURVE_SIZES)
        draw_curve(curve, place / "nlvr_curve.png")
        write_report(
            place / "report.json", Report(rows=rows, paired=[], hashes={words: found["scorer"] for words, found in errors.items()})
        )
        write_json(place / "errors.json", errors)
        write_json(place / "curve.json", [asdict(point) for point in curve])
        return {row.name: row.value for row in rows if row.metric == "accuracy"}

    return run_stage(
        "nlvr search",
        folder=layout.assistant / "nlvr",
        inputs={"nlvr": root, **tool_inputs(config.assistant)},
        config={"tools": config.assistant.tools, "lexicons": [words.value for words in LEXICONS], "sizes": list(CURVE_SIZES)},
        code=["visloop.evaluation.nlvr_search", "visloop.tools"],
        work=work,
    )


def draw_curve(curve: Sequence[CurvePoint], path: Path) -> None:
    """Accuracy over the number of sentences with feedback; the bars are the spread of the seeds."""
    points: dict[float, list[Row]] = {}
    for size in sorted({point.sentences for point in curve}):
        found = [point.accuracy for point in curve if point.sentences == size]
        mean = min(max(sum(found) / len(found), min(found)), max(found))  # a rounded mean may lie outside of equal values
        points[size] = [Row("search", "accuracy", mean, min(found), max(found), len(found))]
    plot_curve(points, path, place="dev sentences with feedback", title="NLVR: a planner that learns from right and wrong")


if __name__ == "__main__":
    run_flow(nlvr, doc=__doc__ or "")
