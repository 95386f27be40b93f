"""The models that a configuration names: where each comes from, its revision, the size and SHA-256 of its weights.

usage: python -m apps.weights [--write FILE | --check FILE] [--shipped] [group=option ...] [key=value ...]

Nothing is fetched: a model of the hub is looked for in the mirror (VISLOOP_WEIGHTS) and in the hub's cache.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flows._entry import compose_config
from flows._named_models import NamedModel, list_named_models
from visloop.chat.inventory import (
    WEIGHTS,
    FoundModel,
    ModelSums,
    WeightsManifest,
    compare_models,
    find_model,
    read_weights_manifest,
    sum_model,
    write_weights_manifest,
)
from visloop.chat.weights import list_shipped
from visloop.errors import DataError, VisloopError


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: something is other than the manifest says, or not possible."""
    parser = argparse.ArgumentParser(prog="python -m apps.weights", description=(__doc__ or "").split("\n\n")[0])
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--write", type=Path, metavar="FILE", help="write the sums of all files of these models as a manifest (YAML)")
    chosen.add_argument("--check", type=Path, metavar="FILE", help="compare with a manifest; exit code 1 if anything differs")
    parser.add_argument("--shipped", action="store_true", help="the shipped models instead of those that the configuration names")
    parser.add_argument("overrides", nargs="*", help="e.g. tools@assistant.tools=clova_paper")
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 160)
    try:
        named = [NamedModel("shipped", name) for name in list_shipped()]
        if not options.shipped:
            named = list_named_models(compose_config(options.overrides))
        if options.check is not None:
            return _check(console, options.check, named)
        models = {model.name: find_model(model.name) for model in named if not model.served}
        sums = {name: sum_model(found) for name, found in models.items() if found.folder is not None}
        console.print(_render(named, models, sums))
        if options.write is not None:
            _write(console, options.write, models, sums)
        return 0
    except VisloopError as error:
        Console(stderr=True, soft_wrap=True).print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
        return 1


def _write(console: Console, path: Path, models: dict[str, FoundModel], sums: dict[str, ModelSums]) -> None:
    absent = [name for name in models if name not in sums]
    if absent:
        raise DataError(f"{path}: not written, as {', '.join(absent)} cannot be recorded: not on this machine")
    write_weights_manifest(WeightsManifest(models=sums), path)
    console.print(f"{path}: {sum(len(model.files) for model in sums.values())} files of {len(sums)} models", markup=False)


def _check(console: Console, path: Path, named: Sequence[NamedModel]) -> int:
    manifest = read_weights_manifest(path)
    names = dict.fromkeys([*manifest.models, *(model.name for model in named if not model.served)])
    found: dict[str, ModelSums | None] = {}
    for name in names:
        try:
            model = find_model(name)
            found[name] = sum_model(model) if model.folder is not None else None
        except VisloopError:
            if name not in manifest.models:
                raise
            found[name] = None  # a folder that is gone
    differences = compare_models(manifest, found)
    if not differences:
        console.print(f"{path}: all {sum(len(model.files) for model in manifest.models.values())} files are as recorded", markup=False)
        return 0
    table = Table(title=f"other than {path} says", title_justify="left")
    for heading in ("model", "file", "problem"):
        table.add_column(heading, overflow="fold")
    for item in differences:
        table.add_row(item.model, item.file or "-", item.problem)
    console.print(table)
    return 1


def _render(named: Sequence[NamedModel], models: dict[str, FoundModel], sums: dict[str, ModelSums]) -> Table:
    """A line per weight file; the others of a model in one line."""
    table = Table(title="models by role", title_justify="left")
    for heading in ("model", "role", "from", "revision", "file", "bytes", "SHA-256 starts"):
        table.add_column(heading, overflow="fold", justify="right" if heading == "bytes" else "left")
    for name in dict.fromkeys(model.name for model in named):
        roles = ", ".join(model.role for model in named if model.name == name)
        served = next((model.served for model in named if model.name == name and model.served), "")
        origin = f"served by {served}" if served else models[name].origin
        head = (name, roles, origin, ("" if served else models[name].revision) or "-")
        files = sums[name].files if name in sums else {}
        weights = {file: found for file, found in files.items() if Path(file).suffix in WEIGHTS}
        others = [found.bytes for file, found in files.items() if file not in weights]
        rows = [(file, f"{found.bytes:,}", found.sha256[:16]) for file, found in weights.items()]
        rows += [(f"{len(others)} more", f"{sum(others):,}", "")] if others else []
        for index, row in enumerate(rows or [("-", "-", "-")]):
            table.add_row(*(head if index == 0 else ("", "", "", "")), *row)
    return table


if __name__ == "__main__":
    sys.exit(main())
