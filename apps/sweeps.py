"""The table of a multirun: its jobs, best first, each with its interval and what it cost.

usage: python -m apps.sweeps [NAME] [--list] [--metric METRIC] [--minimize] [--mlruns FOLDER]

NAME is the multirun's folder below `multirun`, or the end of it; without one the newest is shown.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows._sweeps import Sweep, list_sweeps, pick_overrides, read_sweep
from visloop.errors import VisloopError


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 1 where there is no such table."""
    parser = argparse.ArgumentParser(prog="python -m apps.sweeps", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("name", nargs="?", help="the multirun's folder below multirun/, or the end of it; the newest by default")
    parser.add_argument("--list", action="store_true", help="names of all multiruns, oldest first")
    parser.add_argument("--metric", help="a metric of the jobs' runs instead of what the flow is judged by, e.g. 'test.M_3.path_score'")
    parser.add_argument("--minimize", action="store_true", help="the least is best")
    parser.add_argument("--mlruns", type=Path, default=Path("mlruns"), help="paths.mlruns of the jobs (default: mlruns)")
    chosen = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        if chosen.list:
            console.print("\n".join(list_sweeps(chosen.mlruns)) or "no multirun was recorded yet", markup=False)
            return 0
        sweep = read_sweep(chosen.mlruns, name=chosen.name, metric=chosen.metric, minimize=chosen.minimize)
    except VisloopError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
        return 1
    console.print(render_sweep(sweep))
    best = sweep.rows[0]
    console.print(f"best: job {best.job}, {best.name}, MLflow run {best.run_id}", markup=False)
    return 0


def render_sweep(sweep: Sweep) -> Table:
    """One line per job. Figures are as MLflow has them: accuracies between 0 and 1."""
    what = f"{sweep.metric}: {sweep.meaning}" if sweep.meaning else sweep.metric
    table = Table(title=f"{sweep.name}, {sweep.flow} ({what})", title_justify="left")
    for heading in ("job", "overrides", sweep.metric, f"{100 * sweep.confidence:g} % interval", "seconds", "status"):
        table.add_column(heading, overflow="fold", justify="left" if heading in ("overrides", "status") else "right")
    for row, overrides in zip(sweep.rows, pick_overrides(sweep.rows), strict=True):
        value = "-" if row.value is None else f"{row.value:.4f}"
        interval = "-" if row.low is None or row.high is None else f"[{row.low:.4f}, {row.high:.4f}]"
        status = f"{row.status}: {row.error}" if row.error else row.status
        table.add_row(str(row.job), " ".join(overrides), value, interval, f"{row.seconds:.1f}", status)
    return table


if __name__ == "__main__":
    sys.exit(main())
