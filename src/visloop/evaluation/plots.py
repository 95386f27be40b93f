"""Pictures of a report as PNG: no display, no state outside the figure, the same bytes for the same numbers.

Colours are Okabe and Ito's palette, which stays apart under the common kinds of colour blindness; marks and hatches
repeat what colour says.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from visloop.errors import DataError
from visloop.evaluation.metrics import Row, is_percentage
from visloop.evaluation.report import Report, list_systems
from visloop.evaluation.tables import format_metric

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
_MARKS = "osD^vP*X"
_HATCHES = ("", "//", "..", "\\\\", "xx", "--", "++", "oo")
_REJECTED = "#9a9a9a"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "axes.titlesize": 13,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "hatch.linewidth": 0.6,
    "legend.frameon": False,
}


def plot_rounds(report: Report, path: Path, *, metrics: Sequence[str] = ("greedy_accuracy", "sampled_accuracy", "path_score")) -> None:
    """Each measure over the models M_0..M_T of ``report.rounds``; rejected rounds stand grey, off the line.

    Fractions share the left panel (per cent), points (path scores) have the right one.

    Raises:
        DataError: there are no rounds, or none of the metrics was measured for them.
    """
    rows = [row for row in report.rows if row.metric in metrics and any(row.name == entry["name"] for entry in report.rounds)]
    panels = [panel for panel in (True, False) if any(is_percentage(row.metric) == panel for row in rows)]
    if not panels:
        raise DataError(f"{path.name}: no round has any of {', '.join(metrics)}; measure the models of the rounds first")
    with _figure(path, width=5.4 * len(panels), height=4.4) as figure:
        for index, percent in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            shown = [metric for metric in metrics if any(row.metric == metric for row in rows) and is_percentage(metric) == percent]
            for place, metric in enumerate(shown):
                _draw_round_line(axes, report, metric, style=metrics.index(metric), shift=0.06 * (place - (len(shown) - 1) / 2))
            axes.set_xticks([entry["round"] for entry in report.rounds], [entry["name"] for entry in report.rounds])
            axes.set_xlabel("model after round t")
            axes.set_ylabel("accuracy (%)" if percent else "path score (points, 1 to 100)")
            axes.set_title("Chain accuracy over the DPO rounds" if percent else "Path score over the DPO rounds")
            axes.margins(x=0.12, y=0.15)
            axes.legend(loc="best")


def plot_systems(rows: Sequence[Row], path: Path, *, metric: str = "accuracy", title: str = "Systems on the held-out questions") -> None:
    """Horizontal bars with intervals, in the order of the table."""
    shown = [row for row in rows if row.metric == metric]
    if not shown:
        raise DataError(f"{path.name}: no row has the metric {metric!r}")
    factor = _factor(metric)
    with _figure(path, width=8.4, height=1.5 + 0.46 * len(shown)) as figure:
        axes = figure.add_subplot()
        places = np.arange(len(shown))[::-1]
        values = np.array([row.value for row in shown]) * factor
        axes.barh(places, values, height=0.66, color=PALETTE[0], alpha=0.85)
        axes.errorbar(values, places, xerr=_spans(shown, factor), fmt="none", ecolor="black", elinewidth=1.2, capsize=3)
        top = max(row.high for row in shown) * factor
        for place, row in zip(places, shown, strict=True):
            axes.text(row.high * factor + top * 0.015, place, f"{row.value * factor:.1f}", va="center", fontsize=10)
        axes.set_yticks(places, [row.name for row in shown])
        axes.set_xlim(0, top * 1.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"{format_metric(metric)}, n = {max(row.n for row in shown)}")
        axes.set_title(title)


def plot_families(rows: Sequence[Row], path: Path, *, metric: str = "accuracy", systems: Sequence[str] | None = None) -> None:
    """Grouped bars with intervals: question families across, a few systems side by side.

    Raises:
        DataError: no family rows, or more systems than can be told apart (8).
    """
    prefix = f"{metric}/"
    parts = [row for row in rows if row.metric.startswith(prefix) and (systems is None or row.name in systems)]
    names = [name for name in systems if any(row.name == name for row in parts)] if systems else list_systems(parts)
    families = list(dict.fromkeys(row.metric for row in parts))
    if not parts or len(names) > len(PALETTE):
        raise DataError(f"{path.name}: 1 to {len(PALETTE)} systems with rows {prefix}<family> can be drawn, got {len(names)}")
    factor, width = _factor(metric), 0.82 / len(names)
    with _figure(path, width=max(7.0, 1.5 + len(families) * (0.5 + 0.28 * len(names))), height=4.8) as figure:
        axes = figure.add_subplot()
        for index, name in enumerate(names):
            mine = [row for row in parts if row.name == name]
            places = [families.index(row.metric) + (index - (len(names) - 1) / 2) * width for row in mine]
            values = [row.value * factor for row in mine]
            style: dict[str, Any] = {"color": PALETTE[index], "hatch": _HATCHES[index], "edgecolor": "white", "label": name}
            axes.bar(places, values, width=width * 0.94, **style)
            axes.errorbar(places, values, yerr=_spans(mine, factor), fmt="none", ecolor="black", elinewidth=1, capsize=2)
        counts = [max(row.n for row in parts if row.metric == family) for family in families]
        labels = [f"{family.removeprefix(prefix)}\n(n = {count})" for family, count in zip(families, counts, strict=True)]
        axes.set_xticks(range(len(families)), labels)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(format_metric(metric))
        axes.set_title("Question families", pad=12 + 18 * ((len(names) + 3) // 4))
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(4, len(names)))


def plot_scores(scores: Sequence[float], path: Path, *, bands: Mapping[str, float]) -> None:
    """Histogram of path scores 1-100 with the bands of the config (name -> lower bound) as coloured zones.

    Raises:
        DataError: no score, or one outside 1..100.
    """
    values = np.asarray(scores, dtype=np.float64)
    if not len(values) or values.min() < 1 or values.max() > 100:
        raise DataError(f"{path.name}: path scores from 1 to 100 are needed, got {len(values)} values")
    with _figure(path, width=7.6, height=4.4) as figure:
        axes = figure.add_subplot()
        heights, _, _ = axes.hist(values, bins=np.arange(0.5, 101, 5).tolist(), color="#4d4d4d", rwidth=0.92)
        axes.set_ylim(0, float(np.max(heights)) * 1.22)
        upper = 101.0
        for index, (name, lower) in enumerate(sorted(bands.items(), key=lambda item: -item[1])):
            inside = (values >= lower) & (values < upper)
            start, end = max(lower - 0.5, 0.5), min(upper - 0.5, 100.5)
            axes.axvspan(start, end, color=PALETTE[index % len(PALETTE)], alpha=0.16, linewidth=0, zorder=0)
            label = f"{name}\n{inside.sum()} ({inside.mean():.0%})"
            axes.text((start + end) / 2, 0.985, label, transform=axes.get_xaxis_transform(), ha="center", va="top", fontsize=10)
            upper = lower
        axes.set_xlim(0.5, 100.5)
        axes.set_xticks([1, *range(10, 101, 10)])
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("path score (points, 1 to 100)")
        axes.set_ylabel("chains")
        axes.set_title(f"Path scores of {len(values)} chains and their bands")


def plot_scaling(points: Mapping[float, Sequence[Row]], path: Path) -> None:
    """Data-scaling curve (Insight-V Fig. 4): share of the reason set -> rows; one line per system and metric.

    Raises:
        DataError: fewer than two shares.
    """
    percent = {share * 100: rows for share, rows in points.items()}
    plot_curve(percent, path, place="share of the reason set (%)", title="More reasoning data")


def plot_curve(points: Mapping[float, Sequence[Row]], path: Path, *, place: str, title: str) -> None:
    """Measures along anything: place -> rows, one line per system and metric, with intervals. ``place`` names the axis.

    Raises:
        DataError: fewer than two places, or fractions and points together.
    """
    shares = sorted(points)
    if len(shares) < 2:
        raise DataError(f"{path.name}: a curve needs two or more places, got {shares}")
    lines = list(dict.fromkeys((row.name, row.metric) for share in shares for row in points[share]))
    if len({is_percentage(metric) for _, metric in lines}) != 1:
        raise DataError(f"{path.name}: fractions and points cannot share an axis: {sorted({metric for _, metric in lines})}")
    factor, shift = _factor(lines[0][1]), 0.006 * (shares[-1] - shares[0])
    with _figure(path, width=7.0, height=4.6) as figure:
        axes = figure.add_subplot()
        for index, (name, metric) in enumerate(lines):
            mine = [(share, row) for share in shares for row in points[share] if (row.name, row.metric) == (name, metric)]
            places = [share + shift * (index - (len(lines) - 1) / 2) for share, _ in mine]
            rows = [row for _, row in mine]
            _draw_line(axes, places, rows, factor, style=index, label=f"{name}: {metric.replace('_', ' ')}")
        axes.set_xticks(shares)
        axes.set_xlabel(place)
        axes.set_ylabel("accuracy (%)" if factor == 100.0 else format_metric(lines[0][1]))
        axes.set_title(title)
        axes.margins(y=0.15)
        axes.legend(loc="best")


def plot_chain_matrix(counts: Mapping[str, Sequence[Sequence[int]]], path: Path) -> None:
    """Chain-right x answer-right tables (Insight-V Fig. 6), one panel per system.

    ``counts[name]`` is ((chain right & answer right, chain right & answer wrong), (chain wrong & ..., ...)).

    Raises:
        DataError: no table, or one without a single chain.
    """
    if not counts or any(sum(map(sum, matrix)) == 0 for matrix in counts.values()):
        raise DataError(f"{path.name}: each 2x2 table needs one or more chains")
    with _figure(path, width=1.2 + 3.4 * len(counts), height=4.2) as figure:
        figure.suptitle("Chains against answers", fontsize=13)
        for index, (name, matrix) in enumerate(counts.items()):
            axes = figure.add_subplot(1, len(counts), index + 1)
            cells = np.asarray(matrix, dtype=np.float64)
            shares = cells / cells.sum()
            axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
            for (row, column), share in np.ndenumerate(shares):
                text = f"{int(cells[row, column])}\n{share:.1%}"
                axes.text(column, row, text, ha="center", va="center", fontsize=12, color="white" if share > 0.55 else "black")
            axes.set_xticks([0, 1], ["right", "wrong"])
            axes.set_yticks([0, 1], ["right", "wrong"], rotation=90, va="center")
            axes.set_xlabel("answer")
            axes.set_ylabel("chain")
            axes.grid(visible=False)
            axes.tick_params(length=0)
            axes.spines[:].set_visible(True)
            axes.set_title(f"{name} (n = {int(cells.sum())})", fontsize=12)


@contextmanager
def _figure(path: Path, *, width: float, height: float) -> Iterator[Figure]:
    """A figure that is written to ``path`` (PNG, 150 dpi) when the block ends without an error."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        buffer = BytesIO()
        # without the library's name and version in the file the bytes depend on the drawing only
        figure.savefig(buffer, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def _factor(metric: str) -> float:
    return 100.0 if is_percentage(metric) else 1.0


def _spans(rows: Sequence[Row], factor: float) -> np.ndarray:
    return np.array([[row.value - row.low for row in rows], [row.high - row.value for row in rows]]) * factor


def _draw_line(axes: Axes, places: Sequence[float], rows: Sequence[Row], factor: float, *, style: int, label: str) -> None:
    color, mark = PALETTE[style % len(PALETTE)], _MARKS[style % len(_MARKS)]
    values = [row.value * factor for row in rows]
    axes.errorbar(places, values, yerr=_spans(rows, factor), color=color, marker=mark, markersize=7, capsize=3, label=label)


def _draw_round_line(axes: Axes, report: Report, metric: str, *, style: int, shift: float) -> None:
    factor = _factor(metric)
    found = [(entry, row) for entry in report.rounds if (row := report.find_row(entry["name"], metric)) is not None]
    kept = [(entry["round"] + shift, row) for entry, row in found if entry["accepted"]]
    refused = [(entry["round"] + shift, row) for entry, row in found if not entry["accepted"]]
    if kept:
        places, rows = zip(*kept, strict=True)
        _draw_line(axes, places, rows, factor, style=style, label=metric.replace("_", " "))
    if refused:
        places, rows = zip(*refused, strict=True)
        values = [row.value * factor for row in rows]
        look: dict[str, Any] = {"color": _REJECTED, "marker": _MARKS[style % len(_MARKS)], "markerfacecolor": "white", "markersize": 7}
        look |= {"linestyle": "none", "capsize": 3, "label": f"{metric.replace('_', ' ')}, rejected round"}
        axes.errorbar(places, values, yerr=_spans(rows, factor), **look)
