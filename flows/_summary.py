"""What the stages of this process did: one row per stage, printed as a table when a flow ends."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from rich.console import Console
from rich.table import Table as RichTable

from visloop.evaluation.tables import Table, render_rich

StageState = Literal["skipped", "continued", "ran"]


@dataclass(frozen=True)
class StageRow:
    """One line of the end table. ``made`` of ``shards`` were made in this run; ``loads``: how often models were opened."""

    stage: str
    state: StageState
    made: int
    shards: int
    seconds: float
    loads: int
    key: str
    folder: str
    counts: dict[str, float] = field(default_factory=dict)


_rows: list[StageRow] = []
_tables: list[Table] = []


def open_console() -> Console:
    """The terminal (standard error); wide enough for the tables where the output goes to a file."""
    console = Console(stderr=True)
    return console if console.is_terminal else Console(stderr=True, width=160)


def add_stage_row(row: StageRow) -> None:
    _rows.append(row)


def stage_rows() -> tuple[StageRow, ...]:
    """What the stages of this process did since ``reset_stage_rows``, in order."""
    return tuple(_rows)


def reset_stage_rows() -> None:
    """Forget rows and tables: a new flow run starts."""
    _rows.clear()
    _tables.clear()


def show_tables(tables: Iterable[Table]) -> None:
    """Print a flow's own tables to the terminal (standard error), and keep them for the summary of its run."""
    console = open_console()
    for table in tables:
        _tables.append(table)
        console.print(render_rich(table))


def shown_tables() -> tuple[Table, ...]:
    """The tables that flows of this process have shown since ``reset_stage_rows``, in order."""
    return tuple(_tables)


def render_stage_table(rows: Iterable[StageRow]) -> RichTable:
    """The end table for the terminal."""
    table = RichTable(title="Stages", title_justify="left")
    table.add_column("stage", overflow="fold")
    table.add_column("state")
    table.add_column("made", justify="right")
    table.add_column("seconds", justify="right")
    table.add_column("counts", overflow="fold")
    for row in rows:
        counts = ", ".join(f"{name} {value:g}" for name, value in row.counts.items())
        table.add_row(row.stage, row.state, f"{row.made}/{row.shards}", f"{row.seconds:.1f}", counts)
    return table


def print_stage_table() -> None:
    """Print the table to the terminal (standard error) where there is a row."""
    if _rows:
        open_console().print(render_stage_table(_rows))
