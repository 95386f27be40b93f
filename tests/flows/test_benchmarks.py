"""The flow of public benchmarks at smoke size: two of them in the layout of their official files, the shipped base in every role."""

import json
import math
import shutil
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows._entry import compose_config, to_plain
from flows._evaluation_stages import Reasoner
from flows._layout import Layout
from flows._summary import shown_tables, stage_rows
from flows.benchmarks import benchmarks, find_examinees, find_files
from visloop.chat.weights import resolve_model
from visloop.datasets.benchmark_fields import BENCHMARKS
from visloop.errors import ConfigError, DataError
from visloop.evaluation.report import Report, check_report, read_report
from visloop.ids import hash_file
from visloop.records.manifest import Manifest, write_manifest
from visloop.records.reasoning import AgentAnswer, Prediction
from visloop.records.shards import read_shards
from visloop.scenes.export import export_dataset

SYSTEMS = {"base direct": "base_direct", "direct SFT": "direct_sft", "two agents": "two_agents"}
QUESTIONS = 24


def write_model(folder: Path) -> None:
    """The shipped base as the output of a finished training stage."""
    shutil.copytree(resolve_model("embedded/base"), folder)
    files = {path.name: hash_file(path) for path in folder.iterdir()}
    write_manifest(folder, Manifest(stage=folder.name, inputs={}, config={}, code="c", files=files, counts={}))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``official/ocrbench`` (parquet), ``official/mme`` (jsonl, pictures beside it), and models of all roles in ``data``."""
    root = tmp_path_factory.mktemp("benchmarks")
    counts = {"train": 0, "validation": 0, "test": QUESTIONS}
    drawn = export_dataset(root / "drawn", seed=1, counts=counts, families=("exist", "count", "query"), image_prefix="")["test"].samples
    rows = [
        {
            "dataset": "drawn",
            "question_type": sample.family,
            "question": sample.question,
            "answer": [sample.answer],
            "image": {"bytes": (root / "drawn" / sample.images[0]).read_bytes(), "path": None},
        }
        for sample in drawn
    ]
    (root / "official" / "ocrbench").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "official" / "ocrbench" / "test-00000-of-00001.parquet")
    (root / "official" / "mme").mkdir()
    lines = []
    for number, sample in enumerate(drawn[:8]):
        (root / "official" / "mme" / f"{number}.png").write_bytes((root / "drawn" / sample.images[0]).read_bytes())
        for color, answer in (("red", "Yes"), ("blue", "No")):
            question = f"Can you see a {color} triangle? Please answer yes or no."
            row = {"question_id": f"{number}.png", "question": question, "answer": answer, "category": "color" if number < 6 else "count"}
            lines.append(json.dumps({**row, "image": f"{number}.png"}))
    (root / "official" / "mme" / "test.jsonl").write_text("\n".join(lines) + "\n")
    for name in ("reasoner", "summarizer", "direct_sft"):
        write_model(root / "data" / "models" / name)
    return root


def list_overrides(project: Path, *names: str) -> list[str]:
    places = [f"paths.data={project / 'data'}", f"paths.mlruns={project / 'mlruns'}"]
    return ["experiment=smoke", *places, *(f"benchmarks.files.{name}={project / 'official' / name}" for name in names)]


def run_benchmarks(*overrides: str) -> dict[str, str]:
    """What became of each stage."""
    benchmarks(to_plain(compose_config(overrides)))
    return {row.stage: row.state for row in stage_rows()}


@pytest.fixture(scope="module")
def finished(project: Path, prefect_harness: None) -> tuple[Report, dict[str, str]]:
    states = run_benchmarks(*list_overrides(project, "ocrbench", "mme"))
    return read_report(project / "data" / "reports" / "benchmarks.json"), states


def read_replies(project: Path, name: str, system: str) -> list[tuple[dict, str]]:
    """Every question of a benchmark as it was written down, and the system's reply (empty: none)."""
    folder = project / "data" / "benchmarks" / name
    items = [json.loads(line) for line in (folder / "questions" / "items.jsonl").read_text().splitlines()]
    replies = {answer.sample_id: answer.answer or "" for answer in read_shards(folder / SYSTEMS[system], AgentAnswer)}
    return [(item, replies[item["sample"]["id"]]) for item in items]


@pytest.mark.slow
def test_the_figures_are_those_of_a_recomputation(project: Path, finished: tuple[Report, dict[str, str]]) -> None:
    report, states = finished
    check_report(report)
    parts = ("questions", *SYSTEMS, "scores")
    assert states == {f"{name} {part}": "ran" for name in ("ocrbench", "mme") for part in parts}
    assert set(report.seconds) == set(states)
    assert set(report.hashes) == {"ocrbench", "mme", "M_0", "summarizer", "direct_sft"}
    values = set()
    for system in SYSTEMS:
        replies = read_replies(project, "ocrbench", system)
        assert len(replies) == QUESTIONS
        right = [item["answers"][0] in reply for item, reply in replies]
        row = report.find_row(system, "ocrbench")
        assert row is not None and row.n > 0 and row.value == pytest.approx(1000 * fmean(right)) and row.low <= row.value <= row.high
        for family in ("exist", "count", "query"):
            part = [ok for ok, (item, _) in zip(right, replies, strict=True) if item["sample"]["family"] == family]
            row = report.find_row(system, f"ocrbench_type/{family}")
            assert row is not None and (row.value, row.n) == (pytest.approx(fmean(part)), len(part))
        sums = {"color": [], "count": []}
        by_picture: dict[tuple[str, str], list[bool]] = {}
        for item, reply in read_replies(project, "mme", system):
            said = next((word for word in ("yes", "no") if word in reply[:4]), None)
            by_picture.setdefault((item["sample"]["family"], item["sample"]["group"]), []).append(said == item["answers"][0])
        for (family, _), verdicts in by_picture.items():
            sums[family].append(100 * fmean(verdicts) + 100 * all(verdicts))
        row = report.find_row(system, "mme")
        assert row is not None and row.value == pytest.approx(sum(map(fmean, sums.values()))) and len(by_picture) == 8
        values |= {report.find_row(system, name).value for name in ("ocrbench", "mme")}  # type: ignore[union-attr]
    assert len(values) > 3, "figures that differ, not the floor of everything"
    predictions = read_shards([project / "data/benchmarks/ocrbench/scores/base_direct.jsonl"], Prediction)
    assert 1000 * fmean(item.correct for item in predictions) == report.find_row("base direct", "ocrbench").value  # type: ignore[union-attr]


@pytest.mark.slow
def test_an_interval_is_wilsons(project: Path, finished: tuple[Report, dict[str, str]]) -> None:
    """By its formula, where each question of a type has a picture of its own."""
    report, _ = finished
    replies = [entry for entry in read_replies(project, "ocrbench", "base direct") if entry[0]["sample"]["family"] == "exist"]
    assert len({item["sample"]["group"] for item, _ in replies}) == len(replies) == 8
    n, share, z = len(replies), fmean(item["answers"][0] in reply for item, reply in replies), 1.959964
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    row = report.find_row("base direct", "ocrbench_type/exist")
    assert row is not None and (row.low, row.high) == pytest.approx(
        [(middle + sign * half) / (1 + z * z / n) for sign in (-1, 1)], abs=1e-6
    )


@pytest.mark.slow
def test_the_history_has_the_figures_and_a_second_run_skips(project: Path, finished: tuple[Report, dict[str, str]]) -> None:
    from mlflow import MlflowClient

    report, states = finished
    files = {path: hash_file(path) for path in (project / "data").rglob("*") if path.is_file()}
    assert run_benchmarks(*list_overrides(project, "ocrbench", "mme")) == dict.fromkeys(states, "skipped")
    assert {path: hash_file(path) for path in (project / "data").rglob("*") if path.is_file()} == files
    (table,) = shown_tables()
    assert table.columns == ("metric", *SYSTEMS, "n") and [row[0] for row in table.rows] == ["mme (points)", "ocrbench (points)"]
    client = MlflowClient(f"sqlite:///{project / 'mlruns' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("benchmarks").experiment_id])  # type: ignore[union-attr]
    for row in (report.find_row(system, name) for system in SYSTEMS for name in ("ocrbench", "mme")):
        assert row is not None
        key = f"benchmarks.{row.name}.{row.metric}"
        assert [run.data.metrics[f"{key}{end}"] for end in ("", ".low", ".high")] == [row.value, row.low, row.high]
    letters, sums = (report.find_row("base direct", name) for name in ("ocrbench", "mme"))
    assert letters is not None and sums is not None
    percentages = [letters.value / 10, sums.value / 28]
    assert run.data.metrics["benchmarks.base direct.average_without_mme"] == pytest.approx(percentages[0])
    assert run.data.metrics["benchmarks.base direct.average_with_mme"] == pytest.approx(fmean(percentages))


@pytest.mark.slow
def test_a_missing_or_wrong_file_is_named_and_what_is_finished_stays(project: Path, finished: tuple[Report, dict[str, str]]) -> None:
    kept = {path: hash_file(path) for path in (project / "data").rglob("*") if path.is_file()}
    nowhere = project / "official" / "chartqa"
    with pytest.raises(DataError, match=rf"benchmarks\.files\.chartqa: there is no folder {nowhere}; .*lmms-lab/ChartQA \(test\)"):
        run_benchmarks(*list_overrides(project, "ocrbench", "chartqa"))
    wrong = f"benchmarks.files.chartqa={project / 'official' / 'mme'}"
    with pytest.raises(DataError, match=r"chartqa questions: .*test\.jsonl:1: no field 'type'; found answer.*lmms-lab/ChartQA \(test\)"):
        run_benchmarks(*list_overrides(project, "ocrbench"), wrong)
    (nowhere / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no \*\.parquet and no \*\.jsonl file there; wanted are"):
        run_benchmarks(*list_overrides(project, "ocrbench", "chartqa"))
    (nowhere / "test.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(DataError, match=r"test\.parquet: not a readable parquet file"):
        run_benchmarks(*list_overrides(project, "ocrbench", "chartqa"))
    assert {path: digest for path in kept if (digest := hash_file(path))} == kept
    assert run_benchmarks(*list_overrides(project, "ocrbench", "mme")) == dict.fromkeys(finished[1], "skipped")


@pytest.mark.slow
def test_a_judge_reads_where_the_official_scoring_has_one(project: Path, prefect_harness: None) -> None:
    folder = project / "official" / "mmbench"
    folder.mkdir()
    (folder / "0.png").write_bytes((project / "official" / "mme" / "0.png").read_bytes())
    row = {"index": 1, "question": "What is the color of the thing?", "A": "red", "B": "green", "answer": "A", "category": "color"}
    (folder / "dev.jsonl").write_text(json.dumps({**row, "image": "0.png"}) + "\n")
    overrides = [*list_overrides(project, "mmbench"), "benchmarks.systems=[base direct]"]
    modes = []
    for judge in ([], ["+model@assess.text_judge=embedded_judge"]):
        states = run_benchmarks(*overrides, *judge)
        modes.append(json.loads((project / "data/benchmarks/mmbench/scores/scores.json").read_text())[0]["mode"])
    assert modes == ["rules", "judge"]
    assert states == {"mmbench questions": "skipped", "mmbench base direct": "skipped", "mmbench scores": "ran"}


def test_systems_are_those_whose_models_are_there(tmp_path: Path) -> None:
    config, layout = compose_config([f"paths.data={tmp_path}"]), Layout(tmp_path, "scenes")
    rounds = [Reasoner("M_0", 0, layout.model("reasoner"), True), Reasoner("M_1", 1, layout.round(1) / "model", True)]
    rounds += [Reasoner("M_2", 2, layout.round(2) / "model", False)]
    assert [found.system.name for found in find_examinees(config, layout, reasoners=rounds)] == ["base direct"]
    for folder in (layout.model("summarizer"), layout.round(1) / "model"):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    _, agents = find_examinees(config, layout, reasoners=rounds)
    assert (agents.system.name, agents.system.model) == ("two agents + 1 round", "M_1"), "the last accepted one"
    assert agents.folders == {"M_1": layout.round(1) / "model", "summarizer": layout.model("summarizer")}
    config.benchmarks.systems = ["direct SFT"]
    with pytest.raises(ConfigError, match="for none of them are the models"):
        find_examinees(config, layout, reasoners=rounds)
    config.benchmarks.systems = ["two models"]
    with pytest.raises(ConfigError, match="no system 'two models'; known: base direct"):
        find_examinees(config, layout, reasoners=rounds)


def test_every_benchmark_has_a_place_and_a_wrong_name_is_refused() -> None:
    assert set(compose_config().benchmarks.files) == set(BENCHMARKS)
    with pytest.raises(ConfigError, match=r"name a folder for at least one \(benchmarks\.files\.chartqa=PATH\)"):
        find_files(compose_config())
    with pytest.raises(ConfigError, match="chartq"):
        compose_config(["benchmarks.files.chartq=x"])
    with pytest.raises(ConfigError, match=r"benchmarks\.files\.gqa: no benchmark of that name; known: mmmu"):
        find_files(compose_config(["+benchmarks.files.gqa=x"]))
