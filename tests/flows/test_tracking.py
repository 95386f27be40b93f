"""MLflow runs: one per piece of work however often it is started, nothing recorded twice, endings told apart."""

import json
import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import _tracking
from flows._code import list_files
from flows._database import ERROR_TAG, KEY_TAG, PROCESS_TAG, RERUNS_TAG, call_patiently, connect
from flows._environment import PROJECT_ROOT
from flows._provenance import describe_git, flatten_config
from flows._servers import ProcessName
from flows._tracking import CODE, TrackedRun, find_active_run, open_run
from visloop.config import Config, DPOSettings, PathsConfig
from visloop.errors import ConfigError, DataError
from visloop.ids import hash_json
from visloop.records.manifest import Manifest


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests of this module (making one takes seconds); tests use experiments of their own."""
    return tmp_path_factory.mktemp("project") / "mlruns"


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def make_config(mlruns: Path, **changes: Any) -> Config:
    return Config(paths=PathsConfig(mlruns=str(mlruns)), **changes)


def list_runs(mlruns: Path, experiment: str) -> list[Any]:
    client = connect(mlruns)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["attributes.start_time ASC"]))


def read_history(run: TrackedRun, name: str) -> list[tuple[int, float]]:
    return sorted((entry.step, entry.value) for entry in run.client.get_metric_history(run.run_id, name))


def test_parent_holds_settings_hashes_and_versions(mlruns: Path, experiment: str) -> None:
    config = make_config(mlruns, dpo=DPOSettings(beta=0.05), seed=3)
    with open_run(experiment, config, run_name="dpo beta", tags={"note": "x"}) as run:
        assert find_active_run() is run and run.origin == "new"
        assert run.client.get_run(run.run_id).info.status == "RUNNING"
    assert find_active_run() is None
    (stored,) = list_runs(mlruns, experiment)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "dpo beta"
    assert stored.data.params["dpo.beta"] == "0.05" and stored.data.params["dpo.loss"] == "sigmoid_nll"
    assert stored.data.params["sft_reason.freeze"] == '["vision_tower"]'
    tags = stored.data.tags
    assert len(tags["hash.config"]) == len(tags["hash.code"]) == 64 and tags["note"] == "x"
    assert tags["version.mlflow"].startswith("3.") and tags["version.python"] == sys.version.split()[0]
    assert stored.info.artifact_uri.startswith((mlruns / "artifacts" / experiment).as_uri())


def test_rounds_are_children_and_draw_a_curve_on_the_parent(mlruns: Path, experiment: str) -> None:
    with open_run(experiment, make_config(mlruns)) as run:
        for number in range(3):
            with run.open_child(f"M_{number}", step=number, tags={"accepted": "true"}) as child:
                child.log_round({"accuracy": 0.5 + number / 10, "score": None})
                child.log_history([{"step": 1, "loss": 0.69, "note": "text"}, {"step": 2, "loss": 0.5}], prefix="dpo")
        assert read_history(run, "accuracy") == [(0, 0.5), (1, 0.6), (2, 0.7)]
        assert read_history(child, "accuracy") == [(2, 0.7)] and read_history(child, "dpo/loss") == [(1, 0.69), (2, 0.5)]
    children = [entry for entry in list_runs(mlruns, experiment) if entry.data.tags.get("mlflow.parentRunId") == run.run_id]
    assert [entry.info.run_name for entry in children] == ["M_0", "M_1", "M_2"]
    assert [entry.data.tags["round"] for entry in children] == ["0", "1", "2"]


def test_failed_run_is_continued_not_repeated(mlruns: Path, experiment: str) -> None:
    """The second start of the same work takes up the same parent and child; what both recorded is there once."""

    def work(fail: bool) -> TrackedRun:
        with open_run(experiment, make_config(mlruns)) as run:
            with run.open_child("M_1", step=1) as child:
                child.log_round({"accuracy": 0.5})
            with run.open_child("M_2", step=2) as child:
                child.log_round({"accuracy": 0.6})
                if fail:
                    raise DataError("disk is full")
        return run

    with pytest.raises(DataError):
        work(fail=True)
    broken = list_runs(mlruns, experiment)
    assert [entry.info.status for entry in broken] == ["FAILED", "FINISHED", "FAILED"]
    assert broken[0].data.tags[ERROR_TAG] == "DataError: disk is full"
    run = work(fail=False)
    again = list_runs(mlruns, experiment)
    assert run.origin == "resumed" and run.run_id == broken[0].info.run_id
    assert [entry.info.run_id for entry in again] == [entry.info.run_id for entry in broken]
    assert [entry.info.status for entry in again] == ["FINISHED"] * 3
    assert not any(ERROR_TAG in entry.data.tags for entry in again)
    assert read_history(run, "accuracy") == [(1, 0.5), (2, 0.6)]


def test_finished_run_is_kept_and_counts_the_skipped_rerun(mlruns: Path, experiment: str) -> None:
    ends = []
    for attempt in range(3):
        with open_run(experiment, make_config(mlruns)) as run:
            run.log_metrics({"accuracy": 0.5}, step=1)
            assert run.origin == ("new" if attempt == 0 else "finished")
        ends.append(list_runs(mlruns, experiment)[0].info.end_time)
    (stored,) = list_runs(mlruns, experiment)
    assert stored.data.tags[RERUNS_TAG] == "2" and len(set(ends)) == 1
    assert read_history(run, "accuracy") == [(1, 0.5)]


def test_finished_run_records_again_when_a_stage_left_other_bytes(mlruns: Path, experiment: str) -> None:
    """Until then it passes everything over; the parent of a child that records again does so too."""

    def work(digest: str, accuracy: float) -> TrackedRun:
        manifest = Manifest(stage="round 1", inputs={}, config={}, code="c", files={"a": digest}, counts={"pairs": accuracy * 10})
        with open_run(experiment, make_config(mlruns)) as run, run.open_child("M_1", step=1) as child:
            child.log_metrics({"before": accuracy}, step=1)
            child.log_stage(manifest)
            child.log_round({"accuracy": accuracy})
        return run

    work("a", 0.5)
    run = work("a", 0.9)
    assert run.origin == "finished" and read_history(run, "accuracy") == [(1, 0.5)]
    run = work("b", 0.9)
    assert run.origin == "resumed" and read_history(run, "accuracy") == [(1, 0.5), (1, 0.9)]
    child = next(entry for entry in list_runs(mlruns, experiment) if entry.info.run_id != run.run_id)
    assert child.data.metrics == {"before": 0.5, "round_1/pairs": 9.0, "accuracy": 0.9}
    assert {entry.info.status for entry in list_runs(mlruns, experiment)} == {"FINISHED"}


def test_re_opened_run_says_anew_where_it_comes_from(mlruns: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit and process of a finished run stay while nothing is recorded, and are this call's once something is; child and parent."""

    def work(digest: str, commit: str) -> None:
        monkeypatch.setattr(_tracking, "describe_git", lambda root: {"mlflow.source.git.commit": commit, "git_dirty": "false"})
        manifest = Manifest(stage="round 1", inputs={}, config={}, code="c", files={"a": digest})
        with open_run(experiment, make_config(mlruns)) as run, run.open_child("M_1", step=1, tags={"made": commit}) as child:
            child.log_stage(manifest)
            opened.append({entry.info.status for entry in list_runs(mlruns, experiment)})

    def read_tags(name: str) -> list[str]:
        return [entry.data.tags[name] for entry in list_runs(mlruns, experiment) if name in entry.data.tags]

    opened: list[set[str]] = []
    work("a", "1" * 40)
    for entry in list_runs(mlruns, experiment):
        connect(mlruns).set_tag(entry.info.run_id, PROCESS_TAG, "elsewhere 7 1.00")
    work("a", "2" * 40)
    assert read_tags("mlflow.source.git.commit") == ["1" * 40] and read_tags("made") == ["1" * 40]
    assert read_tags(PROCESS_TAG) == ["elsewhere 7 1.00"] * 2
    work("b", "3" * 40)
    assert read_tags("mlflow.source.git.commit") == ["3" * 40] and read_tags("made") == ["3" * 40]
    assert read_tags(PROCESS_TAG) == [str(ProcessName.own())] * 2
    assert opened == [{"RUNNING"}, {"FINISHED"}, {"RUNNING"}], "killed now, it would be continued and not taken for finished"
    assert {entry.info.status for entry in list_runs(mlruns, experiment)} == {"FINISHED"}


def test_other_code_makes_another_run(mlruns: Path, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for digest in ("0" * 64, "1" * 64):
        monkeypatch.setattr(_tracking, "hash_code", lambda packages, digest=digest: digest)
        with open_run(experiment, make_config(mlruns)) as run:
            assert run.origin == "new"
    assert [entry.data.tags["hash.code"] for entry in list_runs(mlruns, experiment)] == ["0" * 64, "1" * 64]


def test_the_key_covers_all_code_that_a_flow_can_call() -> None:
    """The whole project but the recipes of the shipped weights, templates and facts included."""
    package = PROJECT_ROOT / "src" / "visloop"
    hashed = {path.relative_to(package).as_posix() for path in list_files(CODE)}
    modules = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert {name for name in modules if not name.startswith("embedded/")} == {name for name in hashed if name.endswith(".py")}
    assert any(name.startswith("prompts/full/") for name in hashed) and "tools/facts.json" in hashed


def test_other_settings_make_another_run(mlruns: Path, experiment: str) -> None:
    for beta in (0.05, 0.2, 0.05):
        with open_run(experiment, make_config(mlruns, dpo=DPOSettings(beta=beta))):
            pass
    assert [entry.data.params["dpo.beta"] for entry in list_runs(mlruns, experiment)] == ["0.05", "0.2"]


def test_interrupted_run_is_killed_with_its_child(mlruns: Path, experiment: str) -> None:
    config = make_config(mlruns)
    with pytest.raises(KeyboardInterrupt), open_run(experiment, config) as run, run.open_child("M_1", step=1):
        raise KeyboardInterrupt
    assert {entry.info.status for entry in list_runs(mlruns, experiment)} == {"KILLED"}


def test_run_of_a_dead_process_is_continued_or_closed(mlruns: Path, experiment: str) -> None:
    """After a kill -9 the run says RUNNING: the same work takes it up, other work marks it KILLED; a living one is left alone."""
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    with pytest.raises(KeyError), open_run(experiment, make_config(mlruns)) as run:
        raise KeyError
    tags = run.client.get_run(run.run_id).data.tags
    key, own = tags[KEY_TAG], ProcessName.own()
    assert tags[PROCESS_TAG] == str(own)

    def leave_running(process: object) -> None:
        run.client.update_run(run.run_id, status="RUNNING")
        run.client.set_tag(run.run_id, PROCESS_TAG, str(process))

    zombie = subprocess.Popen([sys.executable, "-c", "pass"])
    living = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        named = ProcessName.of(living.pid)
        while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        gone = {
            "a dead process": replace(named, pid=dead.pid),
            "one whose number a living process has now": replace(named, started=named.started - 3600),
            "one whose number this process has now": replace(own, started=own.started - 3600),
            "one that only waits to be collected": ProcessName.of(zombie.pid),
            "a dead process, in an older tag": f"{own.host}:{dead.pid}",
            "a zombie, in an older tag": f"{own.host}:{zombie.pid}",
            "an older tag with this process's number": f"{own.host}:{own.pid}",
            "no process": "nonsense",
        }
        for case, process in gone.items():
            leave_running(process)
            with open_run(experiment, make_config(mlruns, seed=1)):
                pass
            assert run.client.get_run(run.run_id).info.status == "KILLED", case
            leave_running(process)
            with open_run(experiment, make_config(mlruns)) as again:
                assert again.origin == "resumed" and again.run_id == run.run_id, case
            assert run.client.get_run(run.run_id).data.tags[PROCESS_TAG] == str(own), case

        others = set()
        for process in (named, f"{own.host}:{living.pid}", "another-machine:1", ProcessName("another-machine", own.pid, own.started)):
            leave_running(process)
            with pytest.raises(KeyError), open_run(experiment, make_config(mlruns)) as other:
                assert other.run_id != run.run_id and other.key == key, process
                raise KeyError
            others.add(other.run_id)
            with open_run(experiment, make_config(mlruns, seed=2)):
                pass
            assert run.client.get_run(run.run_id).info.status == "RUNNING", process
        assert len(others) == 1, "the second run of the same work is continued in its turn"
    finally:
        living.communicate(b"\n")
        zombie.wait()


def test_artifacts_land_under_mlruns(mlruns: Path, experiment: str, tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate/index.html").write_text("<html>")
    (tmp_path / "curve.png").write_bytes(b"png")
    report = tmp_path / "pool/report.json"
    report.parent.mkdir()
    report.write_text(json.dumps({"questions": 600, "hard_rate": 0.5, "whole": True, "by_family": {"count": 3}}))
    manifest = Manifest(
        stage="sft reasoner", inputs={}, config={}, code="c", files={"model.safetensors": "0" * 64}, counts={"examples": 4.0}
    )
    with open_run(experiment, make_config(mlruns)) as run:
        run.log_folder(tmp_path / "gate", "gates/pool")
        run.log_plot(tmp_path / "curve.png")
        run.log_json(report)
        run.log_stage(manifest)
        (tmp_path / "broken.json").write_text("{")
        for name in ("missing.json", "broken.json"):
            with pytest.raises(DataError, match=rf"{name} cannot be read as JSON"):
                run.log_json(tmp_path / name)
        with pytest.raises(DataError, match=r"missing\.png"):
            run.log_plot(tmp_path / "missing.png")
        with pytest.raises(DataError, match="no such folder"):
            run.log_folder(tmp_path / "missing", "x")
    root = mlruns / "artifacts" / experiment / run.run_id / "artifacts"
    names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    assert names == {"gates/pool/index.html", "plots/curve.png", "reports/pool/report.json", "config.json"}
    stored = run.client.get_run(run.run_id)
    assert stored.data.metrics == {"pool/questions": 600, "pool/hard_rate": 0.5, "sft_reasoner/examples": 4.0}
    assert stored.data.tags["hash.sft_reasoner"] == hash_json(manifest.files)
    assert [entry.dataset.name for entry in stored.inputs.dataset_inputs] == ["sft_reasoner"]


def test_values_that_are_no_numbers_are_named_not_recorded(mlruns: Path, experiment: str, caplog: pytest.LogCaptureFixture) -> None:
    with open_run(experiment, make_config(mlruns)) as run:
        run.log_metrics({"a": float("nan"), "b": float("inf"), "c": None, "d (%)": 1})
    assert run.client.get_run(run.run_id).data.metrics == {"d ___": 1.0}
    assert "metric a is nan" in caplog.text and "metric b is inf" in caplog.text


def test_hundreds_of_settings_and_metrics_fit_the_limits(mlruns: Path, experiment: str) -> None:
    with open_run(experiment, make_config(mlruns)) as run:
        run.log_params({"many": {str(number): number for number in range(250)}, "long": "x" * 10_000})
        run.log_params({"many": {"0": "changed"}})
        run.log_metrics({f"m{number}": number for number in range(1200)})
    stored = run.client.get_run(run.run_id).data
    assert stored.params["many.249"] == "249" and stored.params["many.0"] == "0"
    assert len(stored.params["long"]) == 6000 and stored.params["long"].endswith(hash_json("x" * 10_000))
    assert len(stored.metrics) == 1200


def test_flatten_config_keeps_every_leaf() -> None:
    flat = flatten_config({"a": {"b": {"c": 1, "d": None}}, "e": [1, "x"], "f": {}, "g:h?": True})
    assert flat == {"a.b.c": "1", "a.b.d": "null", "e": '[1, "x"]', "f": "{}", "g:h_": "true"}


def test_git_state_tells_dirty_from_clean(tmp_path: Path) -> None:
    assert describe_git(tmp_path) == {}

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t", *arguments], check=True)

    git("init", "-q")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "a")
    clean = describe_git(tmp_path)
    assert len(clean["mlflow.source.git.commit"]) == 40 and clean["git_dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert describe_git(tmp_path) == {**clean, "git_dirty": "true"}


def test_experiment_must_be_a_folder_name(mlruns: Path) -> None:
    with pytest.raises(ConfigError, match="names a folder"), open_run("../x", make_config(mlruns)):
        pass


def test_a_clock_that_was_set_back_does_not_make_work_twice(mlruns: Path, experiment: str) -> None:
    """Runs from the future are found by their key: a finished one counts the rerun, an open one goes on, an orphan is closed."""
    ids = []
    for seed in (0, 1, 2):
        with open_run(experiment, make_config(mlruns, seed=seed)) as run:
            run.log_metrics({"accuracy": 0.5}, step=1)
        ids.append(run.run_id)
    future = int((time.time() + 400 * 86_400) * 1000)
    with sqlite3.connect(mlruns / "mlflow.db", timeout=60) as database:
        database.execute(
            "UPDATE runs SET start_time = ?, end_time = ? WHERE experiment_id = ?", (future, future + 1000, int(run.experiment_id))
        )
        database.execute("UPDATE metrics SET timestamp = ? WHERE run_uuid = ?", (future, run.run_id))
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    for run_id in ids[1:]:
        run.client.update_run(run_id, status="RUNNING")
        run.client.set_tag(run_id, PROCESS_TAG, str(replace(ProcessName.own(), pid=dead.pid)))
    with open_run(experiment, make_config(mlruns, seed=2)) as again:
        assert (again.origin, again.run_id) == ("resumed", run.run_id)
        again.log_metrics({"accuracy": 0.5, "later": 1.0}, step=1)
    with open_run(experiment, make_config(mlruns, seed=0)) as again:
        assert again.origin == "finished"
    assert read_history(run, "accuracy") == [(1, 0.5)] and read_history(run, "later") == [(1, 1.0)]
    assert sorted(entry.info.status for entry in list_runs(mlruns, experiment)) == ["FINISHED", "FINISHED", "KILLED"]


def test_a_history_that_may_only_be_read_is_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").mkdir()  # what cannot be opened for writing, for root too
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"cannot write .*mlflow\.db: .*paths\.mlruns"), open_run("x", make_config(tmp_path / "mlruns")):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write .*file"), open_run("x", make_config(tmp_path / "file" / "mlruns")):
        pass
    assert time.perf_counter() - started < 20


def test_locked_database_is_waited_for(mlruns: Path, experiment: str) -> None:
    """A writer that holds the database for longer than SQLite itself waits delays the run and does not break it."""
    with open_run(experiment, make_config(mlruns)) as run:
        holder = sqlite3.connect(mlruns / "mlflow.db", check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        release = threading.Timer(8.0, holder.rollback)
        started = time.perf_counter()
        release.start()
        run.log_metrics({"accuracy": 0.5}, step=1)
        waited = time.perf_counter() - started
        release.join()
        holder.close()
    assert waited >= 7.5 and read_history(run, "accuracy") == [(1, 0.5)]


def test_only_a_locked_database_is_retried() -> None:
    calls = []

    def fail(message: str) -> Callable[[], None]:
        def call() -> None:
            calls.append(message)
            raise OSError(message)

        return call

    with pytest.raises(OSError, match="no such table"):
        call_patiently(fail("no such table"))
    assert len(calls) == 1
    with pytest.raises(OSError, match="database is locked"):
        call_patiently(fail("database is locked"), seconds=0.5)
    assert len(calls) > 2


def _log_from_process(mlruns: str, experiment: str, seed: int) -> None:
    with open_run(experiment, Config(paths=PathsConfig(mlruns=mlruns), seed=seed)) as run:
        for step in range(20):
            run.log_metrics({"a": float(step)}, step=step)


@pytest.mark.slow
def test_processes_share_a_new_database(tmp_path: Path) -> None:
    """Two processes make the database at once and write to it: both runs are whole."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_log_from_process, args=(str(tmp_path / "mlruns"), "shared", seed)) for seed in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0, 0]
    runs = list_runs(tmp_path / "mlruns", "shared")
    assert sorted(run.data.params["seed"] for run in runs) == ["0", "1"]
    assert all(run.info.status == "FINISHED" and run.data.metrics == {"a": 19.0} for run in runs)
