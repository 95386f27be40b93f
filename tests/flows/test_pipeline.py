"""The whole loop as a user starts it: finished, run again, killed, fed with damaged files, and on a full disk."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.fixtures.installations import inherit_environment
from visloop.evaluation.report import check_report, read_report
from visloop.ids import hash_file, hash_json
from visloop.records.manifest import read_manifest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ("experiment=smoke", "assess=verifier", "model@assess.judge=embedded_base", "data.test=8")
PLOTS = {"rounds.png", "systems.png", "families.png", "scores.png", "chains.png"}
STAGE_LINE = re.compile(r"stage (.+?): (ran|skipped|continued) \((\d+) of (\d+) made")


@dataclass(frozen=True)
class Place:
    """One project's folders. ``server``: the Prefect server to use; without one the flow starts its own."""

    folder: Path
    server: str = ""

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        """What the last process printed."""
        return self.folder / "log"

    def command(self, flow: str, *overrides: str) -> list[str]:
        places = (f"paths.data={self.data}", f"paths.mlruns={self.folder / 'mlruns'}", f"hydra.run.dir={self.folder / 'outputs'}")
        return [sys.executable, "-m", f"flows.{flow}", *SMOKE, *places, *overrides]

    def start(self, command: list[str]) -> "subprocess.Popen[bytes]":
        environment = inherit_environment()
        environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PREFECT_HOME": str(self.folder / "prefect")}
        environment |= {"PREFECT_API_URL": self.server} if self.server else {}
        # Not a pipe: a Prefect server that outlives a killed flow would hold it open.
        with self.log.open("w") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def run(self, flow: str, *overrides: str, code: int = 0, file_limit: int | None = None) -> str:
        """What ``python -m flows.<flow>`` printed. ``file_limit``: KiB that one file may have, as on a disk that is full."""
        command = self.command(flow, *overrides)
        limited = ["bash", "-c", f'ulimit -f {file_limit} && exec "$@"', "bash", *command]
        process = self.start(command if file_limit is None else limited)
        try:
            process.wait(timeout=600)
        finally:
            process.kill()
        text = self.log.read_text()
        assert process.returncode == code, text[-4000:]
        return text

    def copy_to(self, folder: Path) -> "Place":
        shutil.copytree(self.data, folder / "data")
        return replace(self, folder=folder)


def read_states(text: str) -> dict[str, str]:
    """What became of each stage, by the lines of the log."""
    return {name: state for name, state, _, _ in STAGE_LINE.findall(text)}


def read_manifests(data: Path) -> dict[str, str]:
    """Every stage's manifest: key, outputs by hash, counts. There is no time stamp in it."""
    return {path.relative_to(data).as_posix(): path.read_text() for path in data.rglob("manifest.json") if ".stage" not in path.parts}


def hash_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.is_file()}


def read_history(place: Place) -> tuple[dict[str, dict[str, float]], dict[str, str | None]]:
    """Metrics and the parent's name of every MLflow run, by its name; a name occurs once."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place.folder / 'mlruns' / 'mlflow.db'}")
    runs = client.search_runs([entry.experiment_id for entry in client.search_experiments()])
    names = {run.info.run_id: "pipeline" if run.info.run_name.startswith("pipeline") else run.info.run_name for run in runs}
    assert len(set(names.values())) == len(runs), f"a run was recorded twice: {sorted(names.values())}"
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = {names[run.info.run_id]: names.get(run.data.tags.get("mlflow.parentRunId")) for run in runs}
    return {names[run.info.run_id]: dict(run.data.metrics) for run in runs}, parents


@dataclass(frozen=True)
class Finished:
    """An uninterrupted run: where it lies, what it printed, every file that it left."""

    place: Place
    text: str
    files: dict[str, str]


@pytest.fixture(scope="module")
def server(prefect_harness: None) -> str:
    from prefect.settings import PREFECT_API_URL

    return str(PREFECT_API_URL.value())


@pytest.fixture(scope="module")
def finished(server: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = Place(tmp_path_factory.mktemp("finished"), server)
    text = place.run("pipeline")
    return Finished(place, text, hash_files(place.data))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Place:
    return finished.place.copy_to(tmp_path)


def test_a_run_leaves_report_plots_and_history(finished: Finished) -> None:
    data = finished.place.data
    report = read_report(data / "reports" / "insight_v.json")
    check_report(report)
    assert [(entry["name"], entry["round"]) for entry in report.rounds] == [("M_0", 0), ("M_1", 1)]
    for system in ("base direct", "base step-by-step", "direct SFT", "two agents"):
        row = report.find_row(system, "accuracy")
        assert row is not None and row.n == 8, [entry.name for entry in report.rows]
    assert any(pair.b == "base direct" for pair in report.paired)
    for name, folder in {"M_0": "models/reasoner", "M_1": "rounds/01/model", "dataset": "raw/scenes"}.items():
        manifest = read_manifest(data / folder)
        assert manifest is not None and report.hashes[name] == hash_json(manifest.files)
    states = read_states(finished.text)
    assert set(states.values()) == {"ran"} and set(report.seconds) == set(states)
    assert {path.name for path in (data / "reports").glob("*.png")} == PLOTS
    for path in (data / "reports").glob("*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 200
    accuracy = report.find_row("two agents", "accuracy")
    assert accuracy is not None
    assert json.loads((data / "reports" / "metrics.json").read_text())["two agents"]["accuracy"] == accuracy.value
    assert not list(data.rglob(".stage")) and not list(data.rglob(".checkpoints")), "work in progress was left behind"


def test_the_history_has_a_child_and_a_model_version_per_round(finished: Finished) -> None:
    from mlflow import MlflowClient

    metrics, parents = read_history(finished.place)
    assert parents == {"pipeline": None, "M_0": "pipeline", "M_1": "pipeline"}
    judged = json.loads((finished.place.data / "rounds" / "01" / "report" / "report.json").read_text())
    assert metrics["M_1"]["sampled_accuracy"] == judged["after"]["sampled_accuracy"]
    assert metrics["M_1"]["accepted"] == float(judged["accepted"])
    client = MlflowClient(f"sqlite:///{finished.place.folder / 'mlruns' / 'mlflow.db'}")
    versions = [client.get_model_version_by_alias("visloop-reasoner", alias) for alias in ("m0", "m1")]
    assert [version.tags["round"] for version in versions] == ["0", "1"]
    assert versions[0].tags["visloop.weights"] != versions[1].tags["visloop.weights"]


def test_a_second_run_skips_every_stage_and_changes_nothing(finished: Finished) -> None:
    before, _ = read_history(finished.place)
    again = read_states(finished.place.run("pipeline"))
    assert again == dict.fromkeys(read_states(finished.text), "skipped")
    assert hash_files(finished.place.data) == finished.files
    assert read_history(finished.place)[0] == before


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Place]:
    """A project whose flows start their own Prefect servers; those that outlive them are stopped."""
    yield Place(tmp_path)
    for process in psutil.process_iter():
        try:
            if process.environ().get("PREFECT_HOME") == str(tmp_path / "prefect"):
                process.kill()
        except psutil.Error:
            continue  # it ended meanwhile, or belongs to somebody else


@pytest.mark.chaos
def test_a_run_killed_three_times_ends_like_one_that_was_not(finished: Finished, own_server: Place) -> None:
    """Killed after the first shard of chains, while an agent is trained, and while a DPO round is."""
    data, stopped = own_server.data, []
    for sign in ("reasoning/paths/.stage/shards/00000.jsonl.json", "models/summarizer/.stage/build", "rounds/01/model/.stage/build"):
        process = own_server.start(own_server.command("pipeline"))
        limit = time.monotonic() + 300
        while not (data / sign).exists():
            assert process.poll() is None and time.monotonic() < limit, (sign, own_server.log.read_text()[-4000:])
            time.sleep(0.01)
        process.kill()
        assert process.wait(timeout=60) == -signal.SIGKILL
        stopped.append(own_server.log.read_text())
        assert (data / sign.partition("/.stage")[0] / ".stage").is_dir(), "it was killed in the middle of the stage"
    text = own_server.run("pipeline")
    assert "the Prefect server of a flow that was killed" in "".join(stopped) + text
    states = read_states(text)
    assert states["dataset"] == states["sft reasoner"] == states["sft summarizer"] == "skipped" and states["report"] == "ran"
    assert read_states(stopped[1])["paths"] == "continued", "the first shard was not made twice"
    assert read_manifests(data) == read_manifests(finished.place.data)
    assert hash_file(data / "reports" / "metrics.json") == finished.files["reports/metrics.json"]
    assert read_history(own_server)[0] == read_history(finished.place)[0]


def test_damaged_files_are_named_and_made_again(finished: Finished, copied: Place) -> None:
    example = json.loads((copied.data / "reasoning" / "sets" / "reason" / "examples.jsonl").read_text().splitlines()[0])
    picture = copied.data / example["images"][0]
    picture.write_bytes(picture.read_bytes()[:40])
    text = copied.run("sft", "sft_reason.learning_rate=1e-4", code=1)
    assert "DataError" in text and picture.name in text and "Traceback" not in text
    assert hash_files(copied.data / "rounds") == hash_files(finished.place.data / "rounds")
    assert read_manifests(copied.data) == read_manifests(finished.place.data), "what was finished stays until the new is whole"

    shard = copied.data / "reasoning" / "paths" / "00001.jsonl"
    shard.write_bytes(shard.read_bytes()[:-30])
    states = read_states(copied.run("generation"))
    assert (states.pop("dataset"), states.pop("paths")) == ("ran", "continued")
    assert set(states.values()) == {"skipped"}
    for folder in ("raw", "reasoning"):
        assert hash_files(copied.data / folder) == hash_files(finished.place.data / folder)


def test_a_truncated_shard_is_refused_by_the_next_stage(finished: Finished, copied: Place) -> None:
    shard = copied.data / "reasoning" / "paths" / "00001.jsonl"
    lines = shard.read_bytes().splitlines(keepends=True)
    shard.write_bytes(b"".join(lines)[:-30])
    shutil.rmtree(copied.data / "reasoning" / "assessed")
    text = copied.run("assessment", code=1)
    assert "DataError" in text and f"{shard.name}:{len(lines)}" in text and "Traceback" not in text
    assert (copied.data / "reasoning" / "assessed" / ".stage" / "build" / "00000.jsonl").is_file(), "the first shard was assessed"


def test_a_judge_that_writes_no_scores_stops_the_assessment(finished: Finished, copied: Place) -> None:
    text = copied.run("assessment", "assess=judge", code=1)
    assert "unjudged" in text and "max_unjudged_rate" in text and "Traceback" not in text
    assert read_manifests(copied.data) == read_manifests(finished.place.data)
    states = read_states(copied.run("assessment"))
    assert set(states.values()) == {"skipped"}, "the finished assessment still stands"


def test_a_full_disk_is_named_and_the_run_continues(finished: Finished, copied: Place) -> None:
    """No file may grow beyond 2.5 MiB: records and MLflow's database fit, a model's weights do not."""
    for name in ("summarizer", "direct_sft", "multi_turn"):
        shutil.rmtree(copied.data / "models" / name)
    text = copied.run("sft", code=1, file_limit=2560)
    assert "DataError" in text and "free space" in text and "stage sft summarizer" in text and "Traceback" not in text
    assert not (copied.data / "models" / "summarizer" / "manifest.json").exists()
    states = read_states(copied.run("sft"))
    assert states["sft reasoner"] == states["set summary"] == "skipped"
    assert hash_files(copied.data / "models") == hash_files(finished.place.data / "models")


def test_adapters_are_trained_and_asked_in_the_loop(finished: Finished, copied: Place) -> None:
    """An agent is trained in one folder and asked in another; its adapter finds the shipped base from there."""
    text = copied.run("sft", *(f"lora@{agent}.lora=rank_16" for agent in ("sft_reason", "sft_summary")))
    assert read_states(text)["agent paths"] == "ran"
    for name in ("reasoner", "summarizer"):
        folder = copied.data / "models" / name
        assert json.loads((folder / "base.json").read_text())["base"] == "embedded/base"
        assert not (folder / "model.safetensors").exists(), "the full weights of the run before are gone"
    manifest, full = (read_manifest(data / "reasoning" / "agent_paths") for data in (copied.data, finished.place.data))
    assert manifest is not None and full is not None
    assert manifest.counts["paths"] == full.counts["paths"] == 32 and manifest.counts["finished"] > 24
    assert manifest.inputs["model"] != full.inputs["model"]
