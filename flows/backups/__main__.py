"""``python -m flows.backups save [--to FOLDER] [overrides]`` and ``python -m flows.backups restore FOLDER [--replace] [overrides]``.

Overrides are those of the flows; only ``paths.data`` and ``paths.mlruns`` matter here.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from flows._entry import compose_config
from flows._versioning import find_project, read_overrides
from flows.backups.contents import Backup, Places
from flows.backups.restore import restore_backup
from flows.backups.save import save_backup
from visloop.errors import VisloopError


def main(arguments: Sequence[str] | None = None) -> int:
    """Save or restore; returns the exit code. An expected error is one paragraph."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        options = _read_arguments(arguments)
        root = find_project(Path.cwd()) or Path.cwd()
        overrides = options.overrides or (read_overrides(root) if (root / "params.yaml").is_file() else [])
        places = Places.from_config(compose_config(overrides), root=root)
        if options.command == "save":
            target = options.to or root / "backups" / f"{datetime.now(UTC):%Y%m%d-%H%M%S}"
            backup = save_backup(target, places)
            size = sum((target / name).stat().st_size for name in backup.files) / 2**20
            console.print(f"{target}: {_describe(backup)}, {len(backup.files)} files, {size:.1f} MiB")
            for place in backup.elsewhere:
                console.print(f"not in it, kept by a server: {place}")
            for stage in backup.torn:
                console.print(f"not whole, its flow will make it again: {stage}")
            return 0
        restored = restore_backup(options.source, places, replace=options.replace)
        backup = restored.backup
        console.print(f"restored {options.source} of {backup.created}: {_describe(backup)}")
        if restored.moved is not None:
            console.print(f"what was there before lies in {restored.moved}")
        for remark in restored.remarks:
            console.print(remark)
    except VisloopError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
        return 1
    return 0


def _describe(backup: Backup) -> str:
    return f"{len(backup.outs)} outputs of DVC, {sum(backup.runs.values())} MLflow runs"


def _read_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.backups", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    save = commands.add_parser("save", help="write a backup into a new folder")
    save.add_argument("--to", type=Path, help="the new folder; by default backups/<time>")
    restore = commands.add_parser("restore", help="put a backup into this checkout")
    restore.add_argument("source", type=Path, help="the folder of the backup")
    restore.add_argument("--replace", action="store_true", help="move what is there aside first")
    for command in (save, restore):
        command.add_argument("overrides", nargs="*", help="as for the flows: paths.data=... paths.mlruns=...")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
