"""Multiruns: every job is one MLflow parent under the name of its Prefect flow run, and they are read back as a table."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from apps import sweeps
from flows import _sweeps
from flows._database import connect
from flows._entry import SweepJob, run_flow
from flows._objective import log_objective
from flows._run import open_flow_run
from flows._sweeps import list_sweeps, pick_overrides, read_sweep
from visloop.config import Config, DPOSettings, PathsConfig
from visloop.errors import DataError
from visloop.evaluation.metrics import Row

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
Play = Callable[..., None]


@pytest.fixture(scope="module")
def mlruns(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests of this module; multiruns have names of their own."""
    folder = tmp_path_factory.mktemp("project") / "mlruns"
    connect(folder).search_experiments()
    return folder


@pytest.fixture
def play(mlruns: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Play:
    """A job of a multirun that comes out with ``value``; None fails."""
    monkeypatch.chdir(tmp_path)

    def run(sweep: str, number: int, beta: float, *, value: float | None = None, flow: str = "tried") -> None:
        job = SweepJob(sweep=sweep, flow="tried", number=number, overrides=("experiment=lora", f"dpo.beta={beta}", f"paths.rounds=r{beta}"))
        monkeypatch.setattr(_sweeps, "find_sweep_job", lambda: job)
        with open_flow_run(flow, Config(paths=PathsConfig(mlruns=str(mlruns)), dpo=DPOSettings(beta=beta))) as opened:
            if value is None:
                raise DataError("the disk is full")
            opened.log_metrics({"plain": -value})
            log_objective(opened, Row("M_3 on validation", "sampled_accuracy", value, value - 0.1, value + 0.1, 50))

    return run


def test_jobs_are_listed_best_first_with_interval_and_cost(mlruns: Path, play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play("d/first", 0, 0.1, value=0.5)
    play("d/first", 1, 0.2, value=0.75)
    with pytest.raises(DataError):
        play("d/first", 2, 0.3)
    play("d/first", 1, 0.9, value=1.0, flow="another")  # a run inside of the job that is not the job's own
    sweep = read_sweep(mlruns, name="first")
    assert (sweep.flow, sweep.meaning, sweep.confidence) == ("tried", "sampled_accuracy of M_3 on validation (n = 50)", 0.95)
    assert [(row.job, row.value, row.low, row.high, row.status) for row in sweep.rows] == [
        (1, 0.75, pytest.approx(0.65), pytest.approx(0.85), "finished"),
        (0, 0.5, pytest.approx(0.4), pytest.approx(0.6), "finished"),
        (2, None, None, None, "failed"),
    ]
    assert all(0 < row.seconds < 60 for row in sweep.rows)
    assert pick_overrides(sweep.rows) == [("dpo.beta=0.2",), ("dpo.beta=0.1",), ("dpo.beta=0.3",)]
    assert [row.job for row in read_sweep(mlruns, name="first", metric="plain").rows] == [0, 1, 2]
    assert [row.job for row in read_sweep(mlruns, name="first", minimize=True).rows] == [0, 1, 2]
    assert sweeps.main(["first", "--mlruns", str(mlruns)]) == 0
    shown = capsys.readouterr().out
    assert (
        "best: job 1" in shown
        and "[0.6500, 0.8500]" in shown
        and "failed: DataError: the disk is full" in shown
        and "95 % interval" in shown
    )


def test_a_job_that_was_done_before_belongs_to_both_multiruns(mlruns: Path, play: Play) -> None:
    play("d/early", 0, 0.5, value=0.6)
    before = read_sweep(mlruns, name="d/early").rows[0]
    play("d/late", 3, 0.5, value=0.6)
    play("d/late", 4, 0.6, value=0.7)
    assert [(row.job, row.run_id == before.run_id) for row in read_sweep(mlruns).rows] == [(4, False), (3, True)], "the newest by default"
    assert [row.seconds for row in read_sweep(mlruns, name="d/early").rows] == [before.seconds], "asking for finished work costs nothing"
    play("d/early", 0, 0.5, value=0.6)
    assert list_sweeps(mlruns)[-1] == "d/early", "asked for last"


def test_what_is_not_there_is_named(mlruns: Path, play: Play, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    play("a/same", 0, 0.7, value=0.5)
    play("b/same", 0, 0.7, value=0.5)
    with pytest.raises(DataError, match="2 end like this"):
        read_sweep(mlruns, name="same")
    with pytest.raises(DataError, match=r"'nothing': 0 end like this; there are: .*b/same"):
        read_sweep(mlruns, name="nothing")
    with pytest.raises(DataError, match=r"no job has the metric 'tset'; .*with an interval there are: objective"):
        read_sweep(mlruns, name="b/same", metric="tset")
    assert sweeps.main(["--mlruns", str(mlruns), "nothing"]) == 1
    assert "DataError" in capsys.readouterr().err
    assert sweeps.main(["--mlruns", str(mlruns), "--list"]) == 0
    assert "b/same" in capsys.readouterr().out


@pytest.fixture
def command_line(tmp_path: Path, mlruns: Path, monkeypatch: pytest.MonkeyPatch, prefect_harness: None) -> Iterator[Callable[..., None]]:
    """``python -m sweep_flow --multirun ...`` in this process."""
    from prefect.settings import PREFECT_API_URL

    sys.path.insert(0, str(HERE))
    from sweep_flow import sweep_flow

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))  # for the processes of launchers
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (ROOT, ROOT / "src", HERE))))

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["sweep_flow", "--multirun", f"paths.mlruns={mlruns}", *arguments])
        run_flow(sweep_flow, doc="Sweeps.")

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)


def _prefect_names() -> set[str]:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        return {run.name for run in client.read_flow_runs(limit=50)}


def test_a_real_multirun_has_one_parent_per_job_named_as_in_prefect(
    command_line: Callable[..., None], mlruns: Path, tmp_path: Path
) -> None:
    command_line("dpo.beta=0.05,0.2", "seed=1")
    sweep = read_sweep(mlruns)
    assert [(row.job, row.value) for row in sweep.rows] == [(0, 0.95), (1, 0.8)]
    (folder,) = (tmp_path / "multirun").glob("*/*")
    assert sweep.name == folder.relative_to(tmp_path / "multirun").as_posix() and folder.name[9:].startswith("sweep_flow-")
    assert {row.name for row in sweep.rows} <= _prefect_names()
    command_line("dpo.beta=0.1,0.05", "seed=1")  # the second job was done before, then as job 0
    again = read_sweep(mlruns)
    assert again.name != sweep.name and [(row.job, row.value) for row in again.rows] == [(1, 0.95), (0, 0.9)]
    assert again.rows[0].run_id == sweep.rows[0].run_id
    assert {row.name for row in again.rows} <= _prefect_names() and again.rows[0].name.endswith("#1")


def test_optuna_maximizes_what_the_flow_returns(command_line: Callable[..., None], mlruns: Path) -> None:
    pytest.importorskip("optuna")
    study = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", "hydra.sweeper.direction=maximize")
    command_line(*study, "hydra.sweeper.sampler.seed=0", "dpo.beta=interval(0.1,0.5)", "seed=2")
    rows = read_sweep(mlruns).rows
    assert len(rows) == 3 and len({row.value for row in rows}) == 3
    proposed = [float(one.removeprefix("dpo.beta=")) for row in rows for one in row.overrides if one.startswith("dpo.beta=")]
    assert [row.value for row in rows] == pytest.approx([1 - beta for beta in sorted(proposed)])


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers_with_processes_of_their_own(launcher: str, command_line: Callable[..., None], mlruns: Path, tmp_path: Path) -> None:
    """A job in another process belongs to the same multirun and lies in the same folder."""
    if find_spec(f"hydra_plugins.hydra_{launcher.removesuffix('_local')}_launcher") is None:
        pytest.skip(f"hydra's launcher {launcher} is not installed: pip install '.[sweeps]'")
    options = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else ["hydra.launcher.timeout_min=5"]
    command_line(f"hydra/launcher={launcher}", *options, "dpo.beta=0.3", f"seed={len(launcher)}")
    sweep = read_sweep(mlruns)
    (folder,) = (tmp_path / "multirun").glob("*/*")
    assert sweep.name == folder.relative_to(tmp_path / "multirun").as_posix()
    assert (folder / "0" / ".hydra" / "config.yaml").is_file()
    assert [(row.job, row.value) for row in sweep.rows] == [(0, 0.7)]
    assert sweep.rows[0].name in _prefect_names()
