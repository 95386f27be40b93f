"""A backup restored elsewhere has the same bytes, runs, artifacts and feedback; also when it was taken while everything was at work."""

import json
import multiprocessing
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from flows._database import connect
from flows._folders import StageFolder
from flows._stage import run_stage
from flows._tracking import open_run
from flows._versioning import add_folders, record_outs, run_dvc
from flows.backups.__main__ import main
from flows.backups.contents import BACKUP_NAME, Places, list_files
from flows.backups.databases import count_runs, move_addresses
from flows.backups.restore import restore_backup
from flows.backups.save import save_backup
from tests.fixtures.small_project import git, make_project, write_out
from visloop.config import Config, PathsConfig
from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.manifest import check_files, read_manifest


def find_places(root: Path) -> Places:
    return Places(root=root, data=root / "data", mlruns=root / "mlruns", prefect=root / ".prefect" / "prefect.db")


def hash_files(folder: Path) -> dict[str, str]:
    """Every file that a user would miss, by its hash."""
    return {name: hash_file(folder / name) for name in list_files(folder) if not name.endswith(".gitignore")}


def list_history(mlruns: Path) -> list[tuple[Any, ...]]:
    client = connect(mlruns)
    runs = client.search_runs([entry.experiment_id for entry in client.search_experiments()], order_by=["attributes.run_name"])
    return [(run.info.run_id, run.info.run_name, run.info.status, run.data.metrics, run.data.params, run.data.tags) for run in runs]


def list_flow_runs(database: Path) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as connection:
        return list(connection.execute("SELECT * FROM flow_run ORDER BY id"))


def make_history(mlruns: Path, seed: int = 0) -> str:
    """A run with a child, an artifact and a trace that a person called wrong; returns the id of the run."""
    import mlflow
    from mlflow.entities import AssessmentSource

    with open_run("pipeline", Config(paths=PathsConfig(mlruns=str(mlruns)), seed=seed)) as run:
        run.client.log_dict(run.run_id, {"rows": [seed]}, "reports/insight_v.json")
        with run.open_child("M_1", step=1) as child:
            child.log_round({"accuracy": 0.5 + seed})
        span = mlflow.start_span_no_context("task", experiment_id=run.experiment_id)
        span.end()
        mlflow.flush_trace_async_logging()
        mlflow.log_feedback(
            trace_id=span.trace_id,
            name="correct",
            value=False,
            rationale="two",
            source=AssessmentSource(source_type="HUMAN", source_id="me"),
        )
    return run.run_id


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A project with recorded, changed, unrecorded and unversioned files and its backup; the project itself is gone afterwards."""
    folder = tmp_path_factory.mktemp("saved")
    root = make_project(folder / "project")
    places = find_places(root)
    record_outs(["generation", "assessment"], root=root)
    feedback = places.data / "feedback" / "cycles" / "05"
    feedback.mkdir(parents=True)
    (feedback / "feedback.jsonl").write_text('{"id": "f"}\n')
    add_folders([feedback], data=places.data)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "data")
    write_out(places.data / "reasoning" / "paths", "made again since")
    for name in ("page/runs/1.json", "raw/quarantine/rows.jsonl"):
        (places.data / name).parent.mkdir(parents=True)
        (places.data / name).write_text("{}\n")
    make_history(places.mlruns)
    places.prefect.parent.mkdir()
    with closing(sqlite3.connect(places.prefect)) as connection, connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE flow_run (id INTEGER PRIMARY KEY, name TEXT)")
        connection.execute("INSERT INTO flow_run (name) VALUES ('pipeline')")
    backup = save_backup(folder / "backup", places)
    assert "data/raw" in backup.outs and "data/feedback/cycles/05" in backup.outs and "data/reasoning/paths" not in backup.outs
    assert backup.runs == {"pipeline": 2} and backup.elsewhere == () and not backup.dirty
    return root, folder / "backup"


@pytest.mark.slow
def test_a_restored_clone_equals_the_project(saved: tuple[Path, Path], tmp_path: Path) -> None:
    """Every file of the data by hash, every run, the artifacts and people's words at the new place, Prefect's runs, DVC's state."""
    root, backup = saved
    clone = tmp_path / "elsewhere" / "clone"
    git(tmp_path, "clone", "-q", str(root), str(clone))
    places, old = find_places(clone), find_places(root)
    data, history, flow_runs = hash_files(old.data), list_history(old.mlruns), list_flow_runs(old.prefect)
    status = json.loads(run_dvc("status", "--json", root=root))
    away = root.rename(root.with_name("away"))
    try:
        restored = restore_backup(backup, places)
        assert hash_files(places.data) == data and len(data) > 100
        assert list_history(places.mlruns) == history and [entry[1] for entry in history] == ["M_1", "pipeline"]
        assert list_flow_runs(places.prefect) == flow_runs
        assert json.loads(run_dvc("status", "--json", root=clone)) == status
        assert git(clone, "status", "--porcelain", "--untracked-files=no") == ""
        assert restored.remarks == () and restored.moved is None
        client = connect(places.mlruns)
        run_id = history[1][0]
        artifact = Path(client.download_artifacts(run_id, "reports/insight_v.json"))
        assert json.loads(artifact.read_text()) == {"rows": [0]}
        assert client.get_run(run_id).info.artifact_uri.startswith(f"{places.mlruns.as_uri()}/artifacts/pipeline/")
        experiment = client.get_experiment_by_name("pipeline")
        (trace,) = client.search_traces(locations=[experiment.experiment_id])
        assert [(entry.name, entry.value, entry.rationale) for entry in trace.info.assessments] == [("correct", False, "two")]
        with open_run("pipeline", Config(paths=PathsConfig(mlruns=str(places.mlruns)), seed=1)) as run:  # and it goes on there
            run.client.log_dict(run.run_id, {}, "reports/insight_v.json")
        assert (places.mlruns / "artifacts" / "pipeline" / run.run_id).is_dir() and not root.exists()
    finally:
        away.rename(root)


@pytest.mark.slow
def test_what_is_there_is_never_overwritten(saved: tuple[Path, Path], tmp_path: Path) -> None:
    root, backup = saved
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", str(root), str(clone))
    git(clone, "commit", "-q", "--allow-empty", "-m", "later")
    places = find_places(clone)
    (places.data / "raw").mkdir(parents=True)
    (places.data / "raw" / "mine").write_text("mine")
    with pytest.raises(DataError, match=r"something already: .*clone/data; .*REPLACE=1"):
        restore_backup(backup, places)
    with run_beside(_hold, places.data / "raw" / "mine") as pid, pytest.raises(DataError, match=rf"process {pid} .* at work on .*mine"):
        restore_backup(backup, places, replace=True)
    restored = restore_backup(backup, places, replace=True)
    assert restored.moved is not None and (restored.moved / "data" / "raw" / "mine").read_text() == "mine"
    assert not (places.data / "raw" / "mine").exists() and read_manifest(places.data / "raw") is not None
    assert "git checkout" in restored.remarks[0]


def test_a_damaged_backup_is_refused(saved: tuple[Path, Path], tmp_path: Path) -> None:
    copied = tmp_path / "backup"
    shutil.copytree(saved[1], copied)
    places = find_places(tmp_path / "nowhere")
    database = copied / "mlruns" / "mlflow.db"
    database.write_bytes(database.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"1 files are missing or have other bytes, first mlruns/mlflow\.db"):
        restore_backup(copied, places)
    (copied / BACKUP_NAME).write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        restore_backup(copied, places)
    (copied / BACKUP_NAME).unlink()
    with pytest.raises(DataError, match="is no backup"):
        restore_backup(copied, places)
    assert not (tmp_path / "nowhere").exists()


def test_the_command_says_what_it_did_and_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that is no DVC project everything is copied as it is."""
    (tmp_path / "data" / "page").mkdir(parents=True)
    (tmp_path / "data" / "page" / "1.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    assert main(["save", "--to", "saved"]) == 0
    assert "saved: 0 outputs of DVC, 0 MLflow runs, 1 files" in capsys.readouterr().out
    assert main(["save", "--to", "saved"]) == 1 and main(["save", "--to", "data/x"]) == 1
    said = capsys.readouterr().err
    assert "is there already" in said and "outside of" in said
    (tmp_path / "data").rename(tmp_path / "old")
    assert main(["restore", "saved"]) == 0
    assert hash_files(tmp_path / "data") == hash_files(tmp_path / "old")


def test_only_whole_addresses_are_moved(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    values = ["file:///p/mlruns/artifacts/x", "file:///p/mlruns", "file:///p/mlruns2/x", "see file:///p/mlruns/x", "/p/mlruns/x", None]
    with closing(sqlite3.connect(database)) as connection, connection:
        for table in ("tags", "params"):
            connection.execute(f"CREATE TABLE {table} (value VARCHAR(200), number INTEGER)")
            connection.executemany(f"INSERT INTO {table} VALUES (?, 1)", [(value,) for value in values])
    assert move_addresses(database, old=Path("/p/mlruns"), new=Path("/q")) == 2
    with closing(sqlite3.connect(database)) as connection:
        found = {table: [value for (value,) in connection.execute(f"SELECT value FROM {table}")] for table in ("tags", "params")}
    assert found == {"tags": ["file:///q/artifacts/x", "file:///q", *values[2:]], "params": values}


def _hold(path: Path, started: Any) -> None:
    with path.open():
        started.set()
        time.sleep(600)


def _work(root: Path, started: Any) -> None:
    """A flow that never rests: stages made again with other bytes, runs with metrics and artifacts."""
    number = 0
    started.set()
    while True:
        number += 1
        for name in ("squares", "cubes"):

            def write(place: Path, text: str = f"{name} {number}") -> dict[str, float]:
                for part in range(20):
                    (place / f"{part}.txt").write_text(text)
                return {"parts": 20}

            run_stage(name, folder=root / "data" / name, inputs={}, config={"number": number}, code=["visloop.ids"], work=write)
        with open_run("busy", Config(paths=PathsConfig(mlruns=str(root / "mlruns")), seed=number)) as run:
            run.log_metrics({f"m{key}": float(number) for key in range(50)})
            run.client.log_dict(run.run_id, {"number": number}, "reports/busy.json")


@contextmanager
def run_beside(function: Callable[[Path, Any], None], argument: Path) -> Iterator[int]:
    """A process of its own that calls ``function`` and is killed at the end; gives its id once it has started its work."""
    spawn = multiprocessing.get_context("spawn")
    started = spawn.Event()
    process = spawn.Process(target=function, args=(argument, started))
    process.start()
    try:
        assert started.wait(120) and process.pid is not None
        yield process.pid
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
def test_a_backup_that_is_taken_during_a_run_is_whole(tmp_path: Path) -> None:
    """Each stage is one of the versions that the writer made, never a mixture; every run of the history has its artifact."""
    root = tmp_path / "project"
    make_history(root / "mlruns")
    with run_beside(_work, root):
        while count_runs(root / "mlruns" / "mlflow.db").get("busy", 0) < 2:
            time.sleep(0.1)
        for number in range(3):
            save_backup(tmp_path / f"backup-{number}", find_places(root))
    for number in range(3):
        places = find_places(tmp_path / f"restored-{number}")
        restored = restore_backup(tmp_path / f"backup-{number}", places)
        for name in ("squares", "cubes"):
            manifest = read_manifest(places.data / name)
            assert manifest is not None and check_files(places.data / name, manifest) == [] and len(manifest.files) == 20
            assert not StageFolder(places.data / name).stage_dir.exists()
        client = connect(places.mlruns)
        busy = client.search_runs([client.get_experiment_by_name("busy").experiment_id])
        assert len(busy) == restored.backup.runs["busy"] and restored.backup.runs["pipeline"] == 2
        finished = [run for run in busy if run.info.status == "FINISHED"]
        for run in finished:
            assert len(run.data.metrics) == 50
            assert (places.mlruns / "artifacts" / "busy" / run.info.run_id / "artifacts" / "reports" / "busy.json").is_file()
