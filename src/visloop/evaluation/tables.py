"""The report as tables: for the terminal (rich) and, with the same cells, as Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table as RichTable
from rich.text import Text

from visloop.evaluation.metrics import Paired, Row, is_percentage
from visloop.evaluation.report import Report, list_systems

_EMPTY = "–"  # noqa: RUF001


@dataclass(frozen=True, slots=True)
class Table:
    """Cells of one table; the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""


def format_interval(value: float, low: float, high: float, *, metric: str, signed: bool = False) -> str:
    """``83.2 [80.9, 85.4]``, in per cent for fractions, in points otherwise."""
    factor = 100.0 if is_percentage(metric) else 1.0
    sign = "+" if signed else ""
    # adding 0.0 turns a rounded -0.0 into 0.0
    center, bottom, top = (round(number * factor, 1) + 0.0 for number in (value, low, high))
    return f"{center:{sign}.1f} [{bottom:{sign}.1f}, {top:{sign}.1f}]"


def format_metric(metric: str) -> str:
    """Column title: the metric's words and its unit."""
    unit = "%" if is_percentage(metric) else "tokens" if metric == "chain_tokens" else "points"
    return f"{metric.replace('_', ' ')} ({unit})"


def _format_row(row: Row | None) -> str:
    return format_interval(row.value, row.low, row.high, metric=row.metric) if row else _EMPTY


def _format_margin(row: Row | None) -> str:
    if row is None:
        return _EMPTY
    factor = 100.0 if is_percentage(row.metric) else 1.0
    return f"{row.value * factor:.1f} ±{max(row.value - row.low, row.high - row.value) * factor:.1f}"


def build_systems_table(rows: Sequence[Row], *, metrics: Sequence[str] | None = None, title: str = "Systems") -> Table:
    """Systems down, metrics across; family metrics (``accuracy/count``) are left to ``build_families_table``."""
    wanted = list(metrics) if metrics else list(dict.fromkeys(row.metric for row in rows if "/" not in row.metric))
    cells = {(row.name, row.metric): row for row in rows}
    lines = []
    for name in list_systems([row for row in rows if row.metric in wanted]):
        counts = [cells[name, metric].n for metric in wanted if (name, metric) in cells]
        lines.append((name, *(_format_row(cells.get((name, metric))) for metric in wanted), str(max(counts))))
    columns = ("system", *(format_metric(metric) for metric in wanted), "n")
    return Table(title, columns, tuple(lines), "mean [confidence interval]")


def build_metrics_table(rows: Sequence[Row], *, title: str) -> Table:
    """Metrics down, systems across: for few systems and many metrics, such as benchmarks."""
    systems, metrics = list_systems(rows), list(dict.fromkeys(row.metric for row in rows))
    cells = {(row.name, row.metric): row for row in rows}
    counts = {metric: max(row.n for row in rows if row.metric == metric) for metric in metrics}
    lines = [
        (format_metric(metric), *(_format_row(cells.get((name, metric))) for name in systems), str(counts[metric])) for metric in metrics
    ]
    return Table(title, ("metric", *systems, "n"), tuple(lines), "mean [confidence interval]")


def build_families_table(rows: Sequence[Row], *, metric: str = "accuracy", title: str = "Question families") -> Table:
    """Systems down, families across, from rows ``<metric>/<family>``."""
    prefix = f"{metric}/"
    parts = [row for row in rows if row.metric.startswith(prefix)]
    families = list(dict.fromkeys(row.metric for row in parts))
    cells = {(row.name, row.metric): row for row in parts}
    counts = {family: max(row.n for row in parts if row.metric == family) for family in families}
    lines = [(name, *(_format_margin(cells.get((name, family))) for family in families)) for name in list_systems(parts)]
    columns = ("system", *(f"{family.removeprefix(prefix).replace('_', ' ')}\n(n = {counts[family]})" for family in families))
    return Table(title, columns, tuple(lines), f"{format_metric(metric)}, mean ± the longer side of the interval")


def build_paired_table(paired: Sequence[Paired], *, title: str = "Paired differences") -> Table:
    """One line per pair; ``*`` marks intervals that exclude 0."""
    lines = []
    for pair in paired:
        text = format_interval(pair.difference, pair.low, pair.high, metric=pair.metric, signed=True)
        mark = " *" if pair.low > 0 or pair.high < 0 else ""
        lines.append((f"{pair.a} − {pair.b}", pair.metric.replace("_", " "), text + mark, str(pair.n)))  # noqa: RUF001
    return Table(title, ("systems", "metric", "difference in points", "n"), tuple(lines), "* the interval excludes 0")


def build_rounds_table(report: Report, *, metrics: Sequence[str] = ("greedy_accuracy", "sampled_accuracy", "path_score")) -> Table:
    """One line per model M_t: its measures and whether the round was accepted (``violations`` of the entry say why not)."""
    lines = []
    for entry in report.rounds:
        cells = (_format_row(report.find_row(entry["name"], metric)) for metric in metrics)
        verdict = "accepted" if entry["accepted"] else "rejected"
        reasons = entry.get("violations") or ()
        lines.append((entry["name"], *cells, verdict + (f": {'; '.join(map(str, reasons))}" if reasons else "")))
    columns = ("model", *(format_metric(metric) for metric in metrics), "round")
    return Table("DPO rounds", columns, tuple(lines), "mean [confidence interval]")


def build_tables(report: Report) -> list[Table]:
    """Systems, pairs, rounds and families, without the empty ones. Models M_t stand in the rounds table only."""
    models = {entry["name"] for entry in report.rounds}
    rows = [row for row in report.rows if row.name not in models]
    tables = [build_systems_table(rows), build_paired_table(report.paired), build_rounds_table(report), build_families_table(rows)]
    return [table for table in tables if table.rows]


def render_rich(table: Table) -> RichTable:
    """The table for a rich console; give it to ``Console.print``. All text is shown literally, never read as markup."""
    rendered = RichTable(title=Text(table.title), caption=Text(table.caption), title_justify="left", caption_justify="left")
    for index, column in enumerate(table.columns):
        rendered.add_column(Text(column), justify="left" if index == 0 else "right", no_wrap=index == 0)
    for row in table.rows:
        rendered.add_row(*(Text(cell) for cell in row))
    return rendered


def render_markdown(table: Table) -> str:
    """The table as GitHub Markdown under a bold title; bars in cells are escaped."""
    lines = [f"**{table.title}**" + (f" ({table.caption})" if table.caption else ""), ""]
    lines.append("| " + " | ".join(map(_escape_markdown, table.columns)) + " |")
    lines.append("|" + "|".join("---" if index == 0 else "---:" for index in range(len(table.columns))) + "|")
    lines += ["| " + " | ".join(map(_escape_markdown, row)) + " |" for row in table.rows]
    return "\n".join(lines) + "\n"


def _escape_markdown(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")
