"""SQLite databases that others write to: a consistent copy, and the absolute paths inside of one that was moved."""

import sqlite3
from contextlib import closing
from pathlib import Path

from visloop.errors import DataError

_SECONDS = 120.0


def copy_database(source: Path, target: Path) -> None:
    """Copy ``source`` as it is at one moment, with SQLite's online backup: writers go on, what they have not committed is not in it.

    Raises:
        DataError: the database cannot be read, is held for two minutes, or its copy is damaged.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new)
            new.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
            (state,) = new.execute("PRAGMA integrity_check").fetchone()
    except sqlite3.Error as error:
        raise DataError(f"{source} cannot be copied: {error}; if it is locked, wait for the process that holds it") from error
    if state != "ok":
        raise DataError(f"{source} is damaged: {state}; restore an older backup, see docs/recover.md")


def count_runs(database: Path) -> dict[str, int]:
    """MLflow runs by experiment, deleted ones left out."""
    query = "SELECT e.name, count(*) FROM runs r JOIN experiments e USING (experiment_id) WHERE r.lifecycle_stage='active' GROUP BY 1"
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True, timeout=_SECONDS)) as connection:
        return {str(name): int(number) for name, number in connection.execute(query)}


def move_addresses(database: Path, *, old: Path, new: Path) -> int:
    """Replace folder ``old`` by ``new`` in every ``file://`` address that MLflow keeps in ``database``; returns how many there were.

    MLflow names artifacts by absolute address in half a dozen tables. The parameters of runs stay: they say what was, not what is.
    """
    before, after = old.as_uri(), new.as_uri()
    change = 'UPDATE "{0}" SET "{1}" = ? || substr("{1}", ?) WHERE "{1}" = ? OR substr("{1}", 1, ?) = ?'
    values = (after, len(before) + 1, before, len(before) + 1, f"{before}/")
    changed = 0
    with closing(sqlite3.connect(database, timeout=_SECONDS)) as connection, connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'")]
        for table in set(tables) - {"params"}:
            columns = [(row[1], row[2].upper()) for row in connection.execute(f'PRAGMA table_info("{table}")')]
            for column in [name for name, kind in columns if kind.startswith(("VARCHAR", "TEXT", "CHAR"))]:
                changed += connection.execute(change.format(table, column), values).rowcount
    return changed
