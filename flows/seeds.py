"""The whole loop over several seeds, each with its own questions, and one table with intervals over seeds and scenes.

The config's own seed is the run of `python -m flows.pipeline`; another one lives in `seeds/<seed>` of the data folder. Finished work
is skipped, so the table costs seconds when the runs are there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow

from flows._entry import from_plain, run_flow, to_plain
from flows._evaluation_stages import CHAIN_METRICS, list_reasoners, read_systems
from flows._layout import Layout
from flows._run import open_flow_run
from flows._stage import run_stage
from flows._summary import open_console, show_tables
from flows.pipeline import pipeline
from visloop.config import Config
from visloop.evaluation.metrics import Outcomes, Paired, combine_seeds, compare_seeds, read_outcomes
from visloop.evaluation.report import Report, read_report, write_report
from visloop.evaluation.tables import build_tables
from visloop.records.reasoning import Prediction
from visloop.records.shards import read_shard, write_bytes

REPORT_NAME = "insight_v_seeds.json"
LAST = "two agents + all accepted rounds"
FIRST_MODEL, LAST_MODEL = "M_0", "last accepted M_t"
Runs = dict[tuple[str, str], list[Outcomes]]


@flow(name="seeds")
def seeds(values: dict[str, Any]) -> None:
    """One pipeline per seed, then the table."""
    config = from_plain(values)
    configs = [place_seed(config, seed) for seed in config.evaluation.seeds]
    for one in configs:
        pipeline.with_options(flow_run_name=f"pipeline seed={one.seed}")(to_plain(one))
    layout = Layout.from_config(config)
    with open_flow_run("seeds", config) as run:
        run.log_stage(make_table(config, layout, configs=configs))
        path = layout.reports / REPORT_NAME
        write_bytes(path, (layout.root / "seeds" / "table" / "report.json").read_bytes())
        report = read_report(path)
        run.log_json(path)
        run.log_metrics({f"seeds.{row.name}.{row.metric}": row.value for row in report.rows}, step=0)
        show_tables(build_tables(report))
        open_console().print(f"report: {path}", markup=False)


def place_seed(config: Config, seed: int) -> Config:
    """The same settings under another seed, in a data folder of its own. The config's own seed is where it always is."""
    if seed == config.seed:
        return config
    return replace(config, seed=seed, paths=replace(config.paths, data=(Path(config.paths.data) / "seeds" / str(seed)).as_posix()))


def make_table(config: Config, layout: Layout, *, configs: Sequence[Config]) -> Any:
    """Stage: rows and paired differences over seeds."""
    options: dict[str, Any] = {
        "confidence": config.evaluation.confidence,
        "bootstrap_samples": config.evaluation.bootstrap_samples,
        "seed": config.seed,
    }
    layouts = [Layout.from_config(one) for one in configs]

    def work(place: Path) -> dict[str, float]:
        runs = [collect_outcomes(one, other) for one, other in zip(configs, layouts, strict=True)]
        shared = [key for key in runs[0] if all(key in run for run in runs)]
        joined: Runs = {key: [run[key] for run in runs] for key in shared}
        rows = [combine_seeds(outcomes, name=name, **options) for (name, _), outcomes in joined.items()]
        report = Report(rows=rows, paired=compare_all(joined, options=options), hashes={})
        write_report(place / "report.json", report)
        return {"rows": len(rows), "seeds": len(configs)}

    return run_stage(
        "table over seeds",
        folder=layout.root / "seeds" / "table",
        inputs={
            f"{one.seed} {part}": other.evaluation / part
            for one, other in zip(configs, layouts, strict=True)
            for part in ("systems", "report")
        },
        config={**options, "seeds": config.evaluation.seeds},
        code=["visloop.evaluation"],
        work=work,
    )


def collect_outcomes(config: Config, layout: Layout) -> dict[tuple[str, str], Outcomes]:
    """Every system's accuracy and the measures of M_0 and of the last accepted model, by (name, metric).

    The number of accepted rounds differs between seeds, so the last ones get one name.
    """
    systems = read_systems(layout)
    last = [name for name in systems if name.startswith("two agents") and "(" not in name][-1]
    named: dict[str, Sequence[Prediction]] = {}
    for name, items in systems.items():
        if name == last:
            named[LAST] = items
        elif name.startswith(f"{last}, "):
            named[f"{LAST}, {name.removeprefix(f'{last}, ')}"] = items
        if not name.startswith("two agents +") or name == "two agents + 1 round":
            named[name] = items
    found = {(name, "accuracy"): read_outcomes(items, name=name) for name, items in named.items()}
    accepted = [reasoner for reasoner in list_reasoners(config, layout) if reasoner.accepted]
    for name, reasoner in ((FIRST_MODEL, accepted[0]), (LAST_MODEL, accepted[-1])):
        items = read_shard(layout.evaluation / reasoner.name / "predictions.jsonl", Prediction)
        for metric in CHAIN_METRICS:
            if any(metric in item.metrics for item in items):
                found[name, metric] = read_outcomes(items, metric=metric, name=name)
    return found


def compare_all(runs: Mapping[tuple[str, str], list[Outcomes]], *, options: Mapping[str, Any]) -> list[Paired]:
    """The last two-agent systems against the baselines, and the last accepted model against M_0."""
    pairs = []
    finals = [name for name, _ in runs if name.startswith(LAST)]
    wanted = [(final, base, "accuracy") for final in finals for base in ("base direct", "direct SFT", "two agents")]
    wanted += [(LAST_MODEL, FIRST_MODEL, metric) for metric in CHAIN_METRICS[:3]]
    for a, b, metric in wanted:
        if (a, metric) in runs and (b, metric) in runs:
            pairs.append(compare_seeds(runs[a, metric], runs[b, metric], **options))
    return pairs


if __name__ == "__main__":
    run_flow(seeds, doc=__doc__ or "")
