"""The report survives a round trip and refuses contradictions; tables show its numbers; plots repeat byte for byte."""

import json
from dataclasses import asdict, replace
from io import StringIO

import pytest
from PIL import Image
from rich.console import Console

from visloop.errors import DataError
from visloop.evaluation.metrics import Paired, Row
from visloop.evaluation.plots import plot_chain_matrix, plot_families, plot_rounds, plot_scaling, plot_scores, plot_systems
from visloop.evaluation.report import Report, check_report, read_report, write_report
from visloop.evaluation.tables import (
    build_metrics_table,
    build_paired_table,
    build_systems_table,
    build_tables,
    format_interval,
    render_markdown,
    render_rich,
)


@pytest.fixture
def report() -> Report:
    rows = [
        Row("base direct", "accuracy", 0.63, 0.6, 0.66, 1000),
        Row("two agents", "accuracy", 0.832, 0.809, 0.854, 1000),
        Row("base direct", "accuracy/count", 0.5, 0.4, 0.6, 100),
        Row("two agents", "accuracy/count", 0.7, 0.6, 0.8, 100),
        Row("M_0", "greedy_accuracy", 0.8, 0.78, 0.82, 1000),
        Row("M_1", "greedy_accuracy", 0.7, 0.68, 0.72, 1000),
        Row("M_0", "path_score", 66.0, 64.0, 68.0, 1000),
    ]
    rounds = [
        {"round": 0, "name": "M_0", "accepted": True},
        {"round": 1, "name": "M_1", "accepted": False, "violations": ["length drift 0.7"]},
    ]
    pairs = [Paired("two agents", "base direct", "accuracy", 0.202, 0.17, 0.233, 1000)]
    return Report(rows, pairs, rounds, {"sft": 12.5}, {"data": "ab"})


def test_the_file_has_exactly_the_promised_shape(report, tmp_path):
    write_report(tmp_path / "deep" / "report.json", report)
    written = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert list(written) == ["rows", "paired", "rounds", "seconds", "hashes"]
    assert list(written["rows"][0]) == ["name", "metric", "value", "low", "high", "n"]
    assert list(written["paired"][0]) == ["a", "b", "metric", "difference", "low", "high", "n"]
    assert read_report(tmp_path / "deep" / "report.json") == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.pop("paired"), "paired: Field required"),
        (lambda value: value.update(extra=1), "extra"),
        (lambda value: value["rows"][0].pop("n"), r"rows\.0\.n: Field required"),
        (lambda value: value["rows"][0].update(value="high"), r"rows\.0\.value"),
        (lambda value: value["rows"][0].update(low=0.7), "outside its interval"),
        (lambda value: value["rows"][0].update(n=0), "n is 0"),
        (lambda value: value["rows"].append(value["rows"][0]), "occurs twice"),
        (lambda value: value["paired"][0].update(a="nobody"), "no row nobody/accuracy"),
        (lambda value: value["rounds"][0].pop("accepted"), r"rounds\[0\]\.accepted"),
        (lambda value: value["seconds"].update(sft=-1), "seconds.sft"),
    ],
)
def test_a_damaged_report_is_refused_by_name(report, tmp_path, change, message):
    value = asdict(report)
    change(value)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        read_report(path)


def test_missing_and_truncated_files_are_refused(report, tmp_path):
    with pytest.raises(DataError, match="is missing"):
        read_report(tmp_path / "report.json")
    write_report(tmp_path / "report.json", report)
    text = (tmp_path / "report.json").read_text()
    (tmp_path / "report.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="not a report"):
        read_report(tmp_path / "report.json")


def test_a_refused_report_leaves_the_old_file(report, tmp_path):
    path = tmp_path / "report.json"
    write_report(path, report)
    before = path.read_bytes()
    bad = replace(report, rows=[Row("x", "accuracy", float("nan"), 0.0, 1.0, 3)])
    with pytest.raises(DataError, match="finite"):
        write_report(path, bad)
    with pytest.raises(DataError, match="JSON cannot"):
        write_report(path, replace(report, rounds=[*report.rounds, {"round": 2, "name": "M_2", "accepted": True, "x": object()}]))
    assert path.read_bytes() == before


def test_a_report_without_rounds_shows_its_models_as_systems(report, tmp_path):
    """No table of rounds, and nothing for their plot to show; what was measured of the models stands among the systems."""
    plain = replace(report, rounds=[])
    check_report(plain)
    write_report(tmp_path / "report.json", plain)
    assert read_report(tmp_path / "report.json") == plain
    tables = {table.title: table for table in build_tables(plain)}
    assert list(tables) == ["Systems", "Paired differences", "Question families"]
    assert [row[0] for row in tables["Systems"].rows] == ["base direct", "two agents", "M_0", "M_1"]
    with pytest.raises(DataError, match="no round has any of"):
        plot_rounds(plain, tmp_path / "rounds.png")
    plot_systems(plain.rows, tmp_path / "systems.png")
    assert [path.name for path in sorted(tmp_path.glob("*.png"))] == ["systems.png"]
    with Image.open(tmp_path / "systems.png") as picture:
        assert picture.width > 300


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"value": 0.832, "low": 0.809, "high": 0.854, "metric": "accuracy"}, "83.2 [80.9, 85.4]"),
        ({"value": 66.04, "low": 64.0, "high": 68.0, "metric": "path_score"}, "66.0 [64.0, 68.0]"),
        ({"value": 0.05, "low": -0.01, "high": 0.11, "metric": "accuracy", "signed": True}, "+5.0 [-1.0, +11.0]"),
        ({"value": -0.0001, "low": -0.02, "high": 0.02, "metric": "accuracy"}, "0.0 [-2.0, 2.0]"),
        ({"value": 41.0, "low": 40.0, "high": 42.5, "metric": "chain_tokens"}, "41.0 [40.0, 42.5]"),
        ({"value": 0.5, "low": 0.4, "high": 0.6, "metric": "accuracy/two_hop"}, "50.0 [40.0, 60.0]"),
    ],
)
def test_numbers_are_shown_in_their_unit(arguments, text):
    value, low, high = (arguments.pop(key) for key in ("value", "low", "high"))
    assert format_interval(value, low, high, **arguments) == text


def test_systems_and_models_have_their_own_tables(report):
    tables = {table.title: table for table in build_tables(report)}
    assert [row[0] for row in tables["Systems"].rows] == ["base direct", "two agents"]
    assert [row[0] for row in tables["DPO rounds"].rows] == ["M_0", "M_1"]
    assert tables["DPO rounds"].rows[1][-1] == "rejected: length drift 0.7"
    assert tables["DPO rounds"].rows[1][-2] == "–"  # noqa: RUF001
    assert tables["Question families"].columns == ("system", "count\n(n = 100)")
    assert tables["Question families"].rows == (("base direct", "50.0 ±10.0"), ("two agents", "70.0 ±10.0"))


def test_intervals_that_exclude_zero_are_marked():
    pairs = [
        Paired("a", "b", "accuracy", 0.1, 0.01, 0.2, 9),
        Paired("a", "c", "accuracy", 0.1, -0.01, 0.2, 9),
        Paired("a", "d", "accuracy", -0.1, -0.2, -0.01, 9),
    ]
    assert [row[2].endswith("*") for row in build_paired_table(pairs).rows] == [True, False, True]


def test_rich_and_markdown_show_the_same_cells(report):
    table = build_systems_table(report.rows, metrics=["accuracy"])
    console = Console(width=120, file=StringIO(), color_system=None)
    console.print(render_rich(table))
    shown = console.file.getvalue()
    markdown = render_markdown(table)
    for text in ("two agents", "83.2 [80.9, 85.4]", "accuracy (%)", "1000"):
        assert text in shown
        assert text in markdown
    assert markdown.splitlines()[3] == "|---|---:|---:|"


def test_metrics_stand_below_each_other_with_their_own_units():
    rows = [
        Row("base", "mme", 1200.0, 1100.0, 1300.0, 20),
        Row("base", "ai2d", 0.5, 0.4, 0.6, 10),
        Row("agents", "ai2d", 0.6, 0.5, 0.7, 10),
    ]
    table = build_metrics_table(rows, title="t")
    assert table.columns == ("metric", "base", "agents", "n")
    assert table.rows[0][:2] == ("mme (points)", "1200.0 [1100.0, 1300.0]") and table.rows[0][3] == "20"
    assert table.rows[1] == ("ai2d (%)", "50.0 [40.0, 60.0]", "60.0 [50.0, 70.0]", "10")


def test_a_system_named_like_markup_is_shown_literally():
    table = build_systems_table([Row("a|b [bold]x", "accuracy", 0.5, 0.4, 0.6, 10)], title="[red]title")
    console = Console(width=120, file=StringIO(), color_system=None)
    console.print(render_rich(table))
    for text in ("[red]title", "a|b [bold]x", "mean [confidence interval]"):
        assert text in console.file.getvalue()
    assert "a\\|b [bold]x" in render_markdown(table)


def test_plots_are_pictures_and_repeat_byte_for_byte(report, tmp_path):
    drawings = {
        "rounds": lambda path: plot_rounds(report, path),
        "systems": lambda path: plot_systems(report.rows, path),
        "families": lambda path: plot_families(report.rows, path, systems=["two agents"]),
        "scores": lambda path: plot_scores([1, 49.5, 79.7, 80, 100], path, bands={"high": 80, "mid": 50, "low": 1}),
        "scaling": lambda path: plot_scaling({0.5: report.rows[:1], 1.0: report.rows[:1]}, path),
        "matrix": lambda path: plot_chain_matrix({"two agents": [[5, 1], [2, 2]]}, path),
    }
    for name, draw in drawings.items():
        first, second = tmp_path / "one" / f"{name}.png", tmp_path / "two" / f"{name}.png"
        draw(first)
        draw(second)
        assert first.read_bytes() == second.read_bytes(), name
        with Image.open(first) as picture:
            assert picture.width >= 500, name
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 20, name


def test_a_changed_number_changes_the_picture(report, tmp_path):
    plot_systems(report.rows, tmp_path / "a.png")
    plot_systems([replace(report.rows[0], value=0.64), *report.rows[1:]], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def test_nothing_to_draw_is_said_and_no_file_is_left(report, tmp_path):
    path = tmp_path / "x.png"
    with pytest.raises(DataError, match="no row has the metric 'recall'"):
        plot_systems(report.rows, path, metric="recall")
    with pytest.raises(DataError, match="no round has"):
        plot_rounds(replace(report, rounds=[]), path)
    with pytest.raises(DataError, match="from 1 to 100"):
        plot_scores([0.5], path, bands={})
    with pytest.raises(DataError, match="two or more places"):
        plot_scaling({1.0: report.rows[:1]}, path)
    with pytest.raises(DataError, match="one or more chains"):
        plot_chain_matrix({"a": [[0, 0], [0, 0]]}, path)
    assert not path.exists()
