"""The command line of a flow, as a user types it, and what reaches Prefect."""

import logging
import os
import re
import runpy
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from flows._entry import _ConsoleFilter, compose_config, run_flow, to_plain
from flows._environment import DEFAULTS, TELEMETRY_OFF, set_environment, set_hub_offline
from flows._servers import OWNER, stop_orphaned_servers
from flows._summary import reset_stage_rows, stage_rows
from tests.fixtures.installations import inherit_environment

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORKER_REPLACED = "process_executor.py:787: UserWarning: A worker stopped while some jobs were given to the executor. This can be ..."
FLOWS = sorted(path.stem for path in (ROOT / "flows").glob("[a-z]*.py"))
SMALL = ["data.train=5", "paths.data=data"]


def _command(module: str, *arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run ``python -m module`` in an empty folder, with a Prefect home of its own and no user settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "HYDRA_", "MLFLOW_", "HF_"))}
    paths = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}:{HERE}", "PREFECT_HOME": str(cwd / ".prefect"), "COLUMNS": "160"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=cwd, env=kept | paths | environment, capture_output=True, text=True, timeout=300
    )


def _check_help(text: str, name: str) -> None:
    assert f"python -m flows.{name} [group=option" in text
    assert "dpo: mpo, sigmoid, sigmoid_nll" in text
    assert "insight_v_paper_llava_next" in text
    first = text.strip().splitlines()[0]
    assert len(first) > 20 and not first.startswith("usage"), "the first line says what the flow does"


@pytest.mark.slow
def test_help_and_a_typo_as_a_user_sees_them(tmp_path: Path) -> None:
    done = _command("sample_flow", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _check_help(done.stdout, "sample_flow")
    done = _command("sample_flow", "dpo.bta=0.3", cwd=tmp_path)
    assert done.returncode == 1
    assert "dpo.bta" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {".prefect"}, "no output folder is left behind"


def _run_module(patch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    """``python -m module`` inside this process: the heavy imports are paid once for all flows."""
    patch.setattr(sys, "argv", [module, *arguments])
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=False)
    except SystemExit as ended:
        if ended.code:
            raise


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_has_help_and_prints_its_values(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _run_module(monkeypatch, f"flows.{name}", "--help")
    _check_help(capfd.readouterr().out, name)
    _run_module(monkeypatch, f"flows.{name}", "--cfg", "job", "experiment=smoke", "dpo.beta=0.3")
    assert yaml.safe_load(capfd.readouterr().out) == to_plain(compose_config(["experiment=smoke", "dpo.beta=0.3"]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("override", "named"), [("dpo.bta=0.3", "dpo.bta"), ("dpo.beta=much", "dpo.beta"), ("dpo=hinge", "dpo/hinge")])
def test_a_typo_ends_the_command_with_the_key(
    override: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as caught:
        _run_module(monkeypatch, "sample_flow", override)
    assert caught.value.code == 1
    text = capfd.readouterr().err
    assert named in text and "Traceback" not in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_multirun_without_a_server(tmp_path: Path) -> None:
    """Two jobs in one process with Prefect's own temporary server: the way of `make demo`."""
    done = _command("sample_flow", "--multirun", "dpo.beta=0.05,0.2", "paths.data=data/${dpo.beta}", "data.train=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data/0.05/beta/beta.txt").read_text() == "0.05\n"
    assert (tmp_path / "data/0.2/beta/beta.txt").read_text() == "0.2\n"
    assert (tmp_path / "data/0.2/squares/00002.jsonl").read_text() == "16\n"
    jobs = sorted(path.parent.name for path in (tmp_path / "multirun").rglob("sample_flow.log"))
    assert jobs == ["0", "1"]
    assert done.stdout.count("stage squares: ran (3 of 3 made") == 2, done.stdout
    assert not (tmp_path / "outputs").exists()
    assert {path.name for path in tmp_path.iterdir()} == {".prefect", "data", "multirun"}


@pytest.fixture
def command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_harness: None) -> Iterator[pytest.MonkeyPatch]:
    import logging

    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    yield monkeypatch
    root.handlers[:] = handlers
    root.setLevel(level)


def _call(patch: pytest.MonkeyPatch, *arguments: str) -> None:
    from sample_flow import attempts, sample_flow

    attempts.clear()
    reset_stage_rows()
    patch.setattr(sys, "argv", ["sample_flow", *SMALL, *arguments])
    run_flow(sample_flow, doc="Squares.")


def _flow_runs() -> dict[str, tuple[str, dict[str, object]]]:
    """State and parameters of the newest flow run of each name."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(limit=50)
    return {run.name: (run.state_name or "", run.parameters) for run in sorted(runs, key=lambda run: str(run.created))}


def _task_runs(flow_run_name: str) -> dict[str, tuple[str, int, dict[str, object]]]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName

    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[flow_run_name])))
    return {run.name: (run.state_name or "", run.run_count, run.task_inputs) for run in runs}


def test_the_run_is_named_and_gets_plain_values(command_line: pytest.MonkeyPatch) -> None:
    _call(command_line, "dpo.beta=0.3", "experiment=lora")
    name = "sample_flow data.train=5,dpo.beta=0.3,experiment=lora,paths.data=data"
    state, parameters = _flow_runs()[name]
    assert state == "Completed"
    assert parameters == {"config": to_plain(compose_config([*SMALL, "dpo.beta=0.3", "experiment=lora"]))}
    tasks = _task_runs(name)
    assert set(tasks) == {"squares 00000", "squares 00001", "squares 00002", "beta"}
    assert {state for state, _, _ in tasks.values()} == {"Completed"}
    assert all(set(inputs) == {"path"} for _, _, inputs in tasks.values()), "a task is given a path, never records or a model"
    assert [row.state for row in stage_rows()] == ["ran", "ran"]
    (output,) = Path("outputs").glob("*/*")
    assert re.fullmatch(r"\d\d-\d\d-\d\d-sample_flow-[0-9a-f]{6}", output.name)
    assert yaml.safe_load((output / ".hydra/overrides.yaml").read_text())[-1] == "experiment=lora"


def test_the_second_run_skips(command_line: pytest.MonkeyPatch) -> None:
    _call(command_line)
    _call(command_line)
    assert [(row.stage, row.state) for row in stage_rows()] == [("squares", "skipped"), ("beta", "skipped")]
    _call(command_line, "dpo.beta=0.7")
    assert [(row.stage, row.state) for row in stage_rows()] == [("squares", "skipped"), ("beta", "ran")]


def test_a_name_with_braces_is_no_template(command_line: pytest.MonkeyPatch) -> None:
    _call(command_line, "paths.mlruns=runs/${dpo.beta}")
    assert any("runs/" in name and state == "Completed" for name, (state, _) in _flow_runs().items())


def test_an_expected_error_is_one_paragraph(command_line: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _call(command_line, "data.wording='wrong data'")
    assert caught.value.code == 1
    text = "".join(capfd.readouterr())
    assert "DataError: picture 7 of shard 00000 cannot be opened; export the pictures again" in text
    assert "Traceback" not in text
    from sample_flow import attempts

    assert attempts == {"00000": 1}, "wrong data does not get better by trying again"


def test_a_second_pipeline_on_the_same_data_is_refused(command_line: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Who is at work is named, nothing of it is touched; when it has gone, by kill -9 too, the same command goes through."""
    _call(command_line)
    script = """if True:
        import sys
        from pathlib import Path
        from flows._folders import StageFolder
        with StageFolder(Path("data/squares")).lock():
            print("at work", flush=True)
            sys.stdin.readline()"""
    before = {path: path.read_bytes() for path in Path("data").rglob("*") if path.is_file()}
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    first = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert first.stdout is not None and first.stdout.readline() == "at work\n"
        capfd.readouterr()
        with pytest.raises(SystemExit) as caught:
            _call(command_line, "seed=1")
        text = " ".join("".join(capfd.readouterr()).split())
        assert caught.value.code == 1
        assert f"squares is being written by process {first.pid} on " in text and "wait for it, or stop it and run again" in text
        assert {path: path.read_bytes() for path in before} == before
    finally:
        first.kill()
        first.wait()
    _call(command_line, "seed=1")
    assert [row.state for row in stage_rows()] == ["ran", "skipped"]


def test_the_switch_shows_the_traceback(command_line: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    command_line.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(BaseException, match=r"picture 7|^1$"):
        _call(command_line, "data.wording='wrong data'")
    text = "".join(capfd.readouterr())
    assert "Traceback" in text and "sample_flow.py" in text


def test_a_defect_keeps_its_traceback(command_line: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        _call(command_line, "data.wording=defect")
    assert caught.value.code == 1
    assert "ZeroDivisionError: a defect of the program" in "".join(capfd.readouterr())


@pytest.mark.slow
def test_a_model_that_does_not_answer_is_tried_again(command_line: pytest.MonkeyPatch) -> None:
    _call(command_line, "data.wording='unreachable once'", "data.train=1")
    from sample_flow import attempts

    assert attempts == {"00000": 2}
    assert stage_rows()[0].state == "ran"


@pytest.mark.slow
def test_only_the_server_of_a_dead_flow_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three processes with a server's environment: of a flow that is gone, of one that runs, and of another Prefect home."""
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    owners = [(gone.stdout.strip(), str(tmp_path)), (str(os.getpid()), str(tmp_path)), (gone.stdout.strip(), str(tmp_path / "other"))]
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"],
            env=os.environ | {"PREFECT__SERVER_EPHEMERAL": "1", OWNER: owner, "PREFECT_HOME": home},
            stdout=subprocess.PIPE,
        )
        for owner, home in owners
    ]
    try:
        for server in servers:
            assert server.stdout is not None and server.stdout.readline() == b"up\n"
        assert stop_orphaned_servers() == [servers[0].pid]
        assert servers[0].wait(timeout=10) != 0
        assert [server.poll() for server in servers[1:]] == [None, None]
    finally:
        for server in servers:
            server.kill()
            server.wait()


def test_telemetry_is_off_and_the_user_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TELEMETRY_OFF, *DEFAULTS, "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_SERVER_API_HOST", "192.0.2.1")
    set_environment()
    assert {name: os.environ[name] for name in TELEMETRY_OFF} == TELEMETRY_OFF
    assert os.environ["PREFECT_SERVER_API_HOST"] == "192.0.2.1"
    assert os.environ["PREFECT_HOME"] == str(ROOT / ".prefect")
    set_hub_offline(local=False)
    assert "HF_HUB_OFFLINE" not in os.environ
    set_hub_offline(local=True)
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.slow
def test_flows_that_start_at_once_share_a_new_prefect_database(tmp_path: Path) -> None:
    """Their servers would both fill the empty database and break each other; what a kill left half made is no hindrance."""
    (tmp_path / "prefect.db.new").write_text("half made")
    code = "from flows._servers import prepare_database; prepare_database()"
    run = f"{code}\nfrom prefect import flow\nflow(lambda: None, name='nothing')()"
    environment = {**inherit_environment(), "PREFECT_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    pair = [subprocess.Popen([sys.executable, "-c", run], env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in pair:
        said = process.communicate(timeout=240)[1]
        assert process.returncode == 0 and "Traceback" not in said, said
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with closing(sqlite3.connect(tmp_path / "prefect.db")) as database:
        assert database.execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
        assert database.execute("SELECT count(*) FROM flow_run").fetchone() == (2,), "what is there stays"
    assert not (tmp_path / "prefect.db.new").exists()
    elsewhere = environment | {"PREFECT_HOME": str(tmp_path / "other"), "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    subprocess.run([sys.executable, "-c", code], env=elsewhere, check=True)
    assert not (tmp_path / "other").exists(), "a standing server has a database of its own"


def test_what_only_libraries_need_to_know_is_for_the_log_file() -> None:
    shown = _ConsoleFilter()
    for text, wanted in (
        ("x.py:1: FutureWarning: will change", False),
        ("y.py:2: UserWarning: disk is slow", True),
        (WORKER_REPLACED, False),
    ):
        assert shown.filter(logging.LogRecord("py.warnings", logging.WARNING, "x.py", 1, text, None, None)) is wanted
    assert shown.filter(logging.LogRecord("flows._stage", logging.INFO, "x.py", 1, WORKER_REPLACED, None, None))
