"""Registered models: list them, promote one on evidence, take it back, see what it was made from.

usage: python -m apps.models list|promote|rollback|lineage [reasoner|pools] [VERSION] [group=option ...] [key=value ...]

VERSION is a number or an alias (3, m2, c4, head, champion); overrides as for every flow, e.g. promotion.metric=sampled_accuracy.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows._candidates import NAMES, find_candidate, list_candidates, resolve_name
from flows._champion import Decision, list_history, promote, read_decision, roll_back
from flows._entry import compose_config
from flows._lineage import Hop, trace_lineage
from flows._measured import describe_measured
from flows._registry import CHAMPION
from visloop.config import Config
from visloop.errors import VisloopError

_OUTCOMES = {"promoted": "promoted", "refused": "refused", "rolled_back": "rolled back"}


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: refused, not possible, or (lineage) a hop that does not hold."""
    chosen = _make_parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        config = compose_config(chosen.overrides)
        run: Callable[[Console, Config, argparse.Namespace], int] = chosen.run
        return run(console, config, chosen)
    except VisloopError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
        return 1


def _make_parser() -> argparse.ArgumentParser:
    summary, usage, _ = (__doc__ or "").split("\n\n", 2)
    parser = argparse.ArgumentParser(prog="python -m apps.models", description=f"{summary} {usage.partition('usage:')[0]}")
    commands = parser.add_subparsers(required=True, metavar="list|promote|rollback|lineage")

    def add(name: str, run: Callable[[Console, Config, argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help, description=help)
        command.set_defaults(run=run)
        return command

    add("list", _list, "versions with their figures on held-out data, then what was promoted, refused and rolled back")
    for name, run, help in (
        ("promote", _promote, f"make a version the {CHAMPION}, if it is better in a paired test on the same held-out samples"),
        ("lineage", _show_lineage, "what a version was made from, hop by hop, with every hash checked"),
    ):
        command = add(name, run, help)
        command.add_argument("model", choices=sorted(NAMES))
        command.add_argument("version", help="number or alias: 3, m2, c4, head, champion")
    back = add("rollback", _roll_back, f"give the alias {CHAMPION} back to the version that had it before")
    back.add_argument("model", choices=sorted(NAMES))
    back.add_argument("--to", type=int, help="an earlier champion, by its version number")
    for command in commands.choices.values():
        command.add_argument("overrides", nargs="*", help="e.g. experiment=smoke paths.data=data-small")
    return parser


def _list(console: Console, config: Config, _chosen: argparse.Namespace) -> int:
    mlruns, data = Path(config.paths.mlruns), Path(config.paths.data)
    for short, name in NAMES.items():
        table = Table(title=f"{name} ({short})", title_justify="left")
        for heading in ("version", "aliases", "guards", config.promotion.metric, "folder", "files"):
            table.add_column(heading, overflow="fold")
        found = list_candidates(name, mlruns=mlruns, data=data)
        for one in found:
            guards = "passed" if one.accepted else "rejected"
            folder = "?" if one.folder is None else _shorten(one.folder)
            table.add_row(str(one.version), ", ".join(one.aliases), guards, describe_measured(one, config=config), folder, one.digest[:12])
        console.print(table if found else f"{name}: nothing registered in {mlruns} yet", markup=False)
        for run in list_history(name, mlruns=mlruns):
            console.print(f"  {_name_decision(read_decision(run))}", markup=False)
    return 0


def _promote(console: Console, config: Config, chosen: argparse.Namespace) -> int:
    decision = promote(config, name=resolve_name(chosen.model), which=chosen.version)
    console.print(_name_decision(decision), style="bold red" if decision.outcome == "refused" else "bold green", markup=False)
    return 1 if decision.outcome == "refused" else 0


def _roll_back(console: Console, config: Config, chosen: argparse.Namespace) -> int:
    decision = roll_back(config, name=resolve_name(chosen.model), to=chosen.to)
    console.print(_name_decision(decision), markup=False)
    return 0


def _show_lineage(console: Console, config: Config, chosen: argparse.Namespace) -> int:
    mlruns, data = Path(config.paths.mlruns), Path(config.paths.data)
    hops = trace_lineage(find_candidate(resolve_name(chosen.model), chosen.version, mlruns=mlruns, data=data), mlruns=mlruns)
    for hop in hops:
        console.print(_name_hop(hop), style="bold red" if hop.is_broken else "", markup=False)
    broken = [hop for hop in hops if hop.is_broken]
    console.print(
        f"{len(hops) - len(broken)} of {len(hops)} hops hold"
        + (f"; broken: {', '.join(_name_end(hop) for hop in broken)}" if broken else ""),
        markup=False,
    )
    return 1 if broken else 0


def _name_hop(hop: Hop) -> str:
    state = {"intact": "ok", "seen": "see above"}.get(hop.state, hop.state.upper())
    place = _shorten(Path(hop.place)) if hop.place else "-"
    line = f"{'  ' * hop.depth}{hop.role}: {hop.what}  {hop.digest[:12] or '-'}  {place}  {state}"
    return f"{line} ({hop.note})" if hop.note else line


def _name_end(hop: Hop) -> str:
    return f"{hop.role} {hop.what} {hop.digest[:12]}"


def _name_decision(decision: Decision) -> str:
    before = "" if decision.before is None else f" (champion until then: version {decision.before})"
    return f"{_OUTCOMES[decision.outcome]}: {decision.name} version {decision.version}{before}: {decision.reason}"


def _shorten(path: Path) -> str:
    return Path(os.path.relpath(path)).as_posix()


if __name__ == "__main__":
    sys.exit(main())
