"""The assistant's flows as a user starts them, at a tiny size, in a project of their own with git and DVC."""

import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import _assistant_stages
from flows._assistant_stages import examine_pools
from flows._cycle_history import list_rollbacks, start_rollback
from flows._entry import compose_config, to_plain
from flows._environment import PROJECT_ROOT
from flows._layout import Layout
from flows._records import read_json
from flows._summary import stage_rows
from flows._versioning import run_dvc
from flows.clova import clova
from flows.reflect_learn import reflect_learn
from flows.rollback import rollback
from tests.chaos.comparison import without_seconds
from tests.fixtures.installations import inherit_environment
from visloop.config import Config
from visloop.errors import ConfigError, DataError
from visloop.evaluation.report import check_report, read_report
from visloop.ids import hash_file, hash_json, hash_tree
from visloop.records.assistant import Instance
from visloop.records.manifest import read_manifest
from visloop.records.shards import read_shard

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("prefect_harness")]

TINY = (
    "assistant.tasks.kinds=[vqa,tagging]",
    "assistant.tasks.stream=2",
    *(f"assistant.tasks.{part}=1" for part in ("test", "base", "replay", "held_out")),
    "assistant.tasks.novel_share=1.0",
    "assistant.tasks.new_wording_share=0",
    *(f"assistant.tools.tuning.{part}=4" for part in ("instances", "validation", "negatives", "steps")),
    "assistant.tools.tuning.prompts=1",
    "assistant.tools.tuning.known_at=1.1",
    "assistant.tools.tuning.min_validation=0",
    "evaluation.bootstrap_samples=50",
)
CYCLES = (1, 2, 3, 4)
STAGES = ("assistant_data", "cycles", "assistant")
TASKS = 4
PLOTS = {"learning.png", "assistant_systems.png", "kinds.png"}


@dataclass(frozen=True)
class Project:
    """A project's folder, and what was seen while its cycles were played."""

    root: Path
    seen: dict[str, Any]

    @property
    def config(self) -> Config:
        return compose_config(TINY)

    @property
    def layout(self) -> Layout:
        return Layout(self.root / "data", dataset="scenes")

    def read_status(self) -> dict[str, Any]:
        """What DVC says of the assistant's stages."""
        status: dict[str, Any] = json.loads(run_dvc("status", "--json", *STAGES, root=self.root))
        return status

    def git(self, *arguments: str) -> str:
        options = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(self.root))
        return subprocess.run(["git", *options, *arguments], check=True, capture_output=True, text=True).stdout


def play(flow: Any, config: Config) -> dict[str, str]:
    """Run a flow in this process; what became of its stages."""
    flow(to_plain(config))
    return {row.stage: row.state for row in stage_rows()}


def only(config: Config, **tasks: Any) -> Config:
    """The configuration with some of its task settings changed."""
    return replace(config, assistant=replace(config.assistant, tasks=replace(config.assistant.tasks, **tasks)))


def hash_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def hash_records(folder: Path) -> dict[str, str]:
    """Every output of a stage; of its records what does not depend on the clock."""
    records = {path.name: [without_seconds(json.loads(line)) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}
    return {**hash_files(folder), **{name: hash_json(lines) for name, lines in records.items()}, "manifest.json": ""}


def read_runs(root: Path, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlruns' / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name(experiment).experiment_id], order_by=["attributes.start_time ASC"]))


@pytest.fixture(scope="module")
def small_collection() -> Iterator[None]:
    """A tenth of the pictures to learn words from: drawing them all takes longer than everything else here."""
    with pytest.MonkeyPatch.context() as patch:
        small = partial(_assistant_stages.export_collection, pictures_per_concept=5, hits_per_concept=5)
        patch.setattr(_assistant_stages, "export_collection", small)
        yield


@pytest.fixture(scope="module")
def project(prefect_harness: None, small_collection: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """Two cycles by ``reflect_learn``, then the rest and the table by ``clova``."""
    root = tmp_path_factory.mktemp("cycles")
    ignored = shutil.ignore_patterns("tmp", "cache", "config.local", "__pycache__")
    for name in (".dvc", "conf", "flows", "src/visloop"):
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=ignored)
    for name in (".dvcignore", ".gitignore", "dvc.yaml"):
        shutil.copy(PROJECT_ROOT / name, root / name)
    (root / "params.yaml").write_text(f"overrides: {json.dumps(shlex.join(TINY))}\n")
    made = Project(root, {})
    made.git("init", "-q")
    made.git("add", "-A")
    made.git("commit", "-q", "-m", "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        made.seen["first"] = play(reflect_learn, made.config)
        made.seen["second"] = play(reflect_learn, made.config)
        (root / "conf" / "mine.yaml").write_text("unrelated: work of the user\n")
        made.seen["clova"] = play(clova, made.config)
        made.seen["files"] = hash_files(root / "data")
        made.seen["status"] = made.read_status()
        yield made


def test_each_call_plays_the_next_cycle_and_clova_the_rest(project: Project) -> None:
    ran = {"cycle 1", *(f"gate cycle_01_{suite}" for suite in ("traces", "critiques", "instances", "demonstrations", "prompts"))}
    assert {stage for stage, state in project.seen["first"].items() if state == "ran"} >= ran | {"tasks", "collection", "cycle 0"}
    assert "cycle 2" not in project.seen["first"]
    second = project.seen["second"]
    assert second["tasks"] == second["collection"] == second["gate cycle_01_traces"] == "skipped" and second["cycle 2"] == "ran"
    last = project.seen["clova"]
    assert [last[f"cycle {number}"] for number in CYCLES] == ["skipped", "skipped", "ran", "ran"]
    for number in CYCLES:
        before = project.layout.cycle(number - 1)
        manifest = read_manifest(project.layout.cycle(number))
        assert manifest is not None and manifest.inputs["prompts"] == hash_tree([before / "prompts"])
        assert read_json(project.layout.cycle(number) / "report.json")["counts"]["tasks"] == TASKS // len(CYCLES)


def test_what_tools_were_taught_with_lies_in_the_cycle(project: Project) -> None:
    """Instances name pictures that are outputs of their cycle, and the cycle holds no other ones of that kind."""
    taught = 0
    for number in CYCLES:
        folder = project.layout.cycle(number)
        instances = read_shard(folder / "instances.jsonl", Instance)
        named = {name for item in instances for name in (item.image, item.mask) if name}
        assert named == {path.relative_to(project.layout.root).as_posix() for path in (folder / "material").rglob("*.png")}
        taught += len(instances)
    assert taught, "some tool was taught something"
    assert not list(project.layout.root.rglob(".stage")) and not (project.layout.assistant / "material").exists()


def test_the_report_has_a_row_per_system_and_a_point_per_cycle(project: Project) -> None:
    report = read_report(project.layout.reports / "clova.json")
    check_report(report)
    names = ["frozen tools + plan", "after cycle 1", "after cycle 2", "after cycle 3", "all"]
    assert [(entry["name"], entry["round"]) for entry in report.rounds] == list(zip(names, range(5), strict=True))
    for name in ("frozen tools, no plan", *names):
        row = report.find_row(name, "accuracy")
        assert row is not None and row.n == 2
    assert report.find_row("all", "accuracy/vqa") is not None and report.find_row("all", "known_tasks") is not None
    direct = {row.metric for row in report.rows if row.name == "direct VLM"}
    assert direct == {"accuracy/vqa", "accuracy/multi_image"} & {row.metric for row in report.rows if row.name == "all"}
    assert ("all", "frozen tools + plan") in {(pair.a, pair.b) for pair in report.paired}
    assert set(report.seconds) == {stage for stage, state in project.seen["clova"].items() if state == "ran"}
    assert {path.name for path in project.layout.reports.glob("*.png")} == PLOTS


def test_the_history_has_a_child_per_cycle(project: Project) -> None:
    first, last = read_runs(project.root, "reflect_learn"), read_runs(project.root, "clova")
    assert {run.info.status for run in first + last} == {"FINISHED"}
    for runs, numbers in ((first, (1, 2)), (last, CYCLES)):
        (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
        children = {run.info.run_name: run for run in runs if run is not parent}
        assert set(children) == {f"cycle {number}" for number in numbers} and len(runs) == len(numbers) + 1
        for number in numbers:
            child, report = children[f"cycle {number}"], read_json(project.layout.cycle(number) / "report.json")
            assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
            assert {name: child.data.tags[f"pool.{name}"] for name in report["pools"]} == report["pools"]
            assert child.data.metrics["tasks"] == report["counts"]["tasks"]


def test_a_run_is_recorded_by_dvc_and_tagged_beside_the_branch(project: Project, tmp_path: Path) -> None:
    """The status is clean, each cycle's tag finds its bytes, and nothing of the user's own work was committed or staged."""
    assert project.seen["status"] == {}
    assert project.git("tag", "--list").split() == [f"cycle/{number:02d}" for number in CYCLES]
    assert project.git("log", "--oneline", "HEAD").count("\n") == 1 and not project.git("diff", "--cached", "--name-only")
    assert set(project.git("diff", "--name-only", "HEAD", "cycle/02").split()) == {"dvc.lock"}
    run_dvc("get", str(project.root), "data/cycles/02", "--rev", "cycle/02", "--out", str(tmp_path / "02"), root=tmp_path)
    assert hash_files(tmp_path / "02") == hash_files(project.layout.cycle(2))


def test_a_second_run_skips_every_stage_and_changes_nothing(project: Project) -> None:
    again = play(clova, project.config)
    assert set(again) == set(project.seen["clova"]) and set(again.values()) == {"skipped"}
    assert hash_files(project.layout.root) == project.seen["files"]
    assert project.read_status() == {}


@pytest.fixture
def begun(project: Project, tmp_path: Path) -> Project:
    """A copy in which cycle 1 is the last."""
    for name in ("assistant/tasks", "assistant/collection", "cycles/00", "cycles/01", "gates"):
        shutil.copytree(project.layout.root / name, tmp_path / "data" / name)
    return Project(tmp_path, {})


def start(place: Path, *overrides: str) -> "subprocess.Popen[bytes]":
    """``python -m flows.reflect_learn`` as a process of its own, with the tests' Prefect server."""
    from prefect.settings import PREFECT_API_URL

    environment = inherit_environment()
    environment |= {"PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'src'}", "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    environment |= {"PREFECT_HOME": str(place / "prefect"), "OMP_NUM_THREADS": "1"}
    places = (f"paths.data={place / 'data'}", f"paths.mlruns={place / 'mlruns'}", f"hydra.run.dir={place / 'outputs'}")
    command = [sys.executable, "-m", "flows.reflect_learn", *TINY, *places, *overrides]
    number = len(list(place.glob("log*")))
    with (place / f"log{number}").open("w") as log:
        return subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)


def read_log(place: Path, number: int) -> str:
    return (place / f"log{number}").read_text()


def wait_until(happened: Callable[[], bool], *, process: "subprocess.Popen[bytes]", place: Path, seconds: float = 300) -> None:
    limit = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None and time.monotonic() < limit, read_log(place, 0)[-4000:]
        time.sleep(0.02)


def test_of_two_processes_one_is_refused_and_a_killed_one_loses_nothing(project: Project, begun: Project) -> None:
    """The first is stopped while it teaches a tool, until the second is sent away, then killed; the cycle ends with the same bytes."""
    cycle = begun.layout.cycle(2)
    first = start(begun.root)
    try:
        wait_until((cycle / ".stage" / "scratch" / "lessons").exists, process=first, place=begun.root)
        first.send_signal(signal.SIGSTOP)
        second = start(begun.root)
        assert second.wait(timeout=300) == 1
        said = read_log(begun.root, 1)
        assert f"by process {first.pid} on" in said and "wait for it" in said and "Traceback" not in said
        first.kill()
        assert first.wait(timeout=60) == -signal.SIGKILL
    finally:
        first.kill()
    assert not (cycle / "manifest.json").exists(), "it was killed before the end"
    config = replace(project.config, paths=replace(project.config.paths, data=str(begun.layout.root), mlruns=str(begun.root / "mlruns")))
    assert play(reflect_learn, config)["cycle 2"] == "continued"
    assert hash_records(cycle) == hash_records(project.layout.cycle(2)) and begun.layout.find_last_cycle() == 2
    children = [run.info.run_name for run in read_runs(begun.root, "reflect_learn") if "mlflow.parentRunId" in run.data.tags]
    assert sorted(children) == ["cycle 1", "cycle 2"], "cycle 1, that came without a history, is in it as well"


@pytest.mark.chaos
@pytest.mark.timeout(1500)  # thirty plays; the limit of this module is for what nobody kills
def test_a_cycle_killed_at_any_change_of_the_disk_ends_with_the_same_bytes(project: Project, begun: Project, tmp_path: Path) -> None:
    """Also in the midst of a state, of the final records, of the swap and of clearing up."""
    points = (0.0, 0.02, 0.2, 0.4, 0.55, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.94, 0.97, 0.99, 0.999)
    places = {point: tmp_path / f"at{point}" for point in points}
    for place in places.values():
        shutil.copytree(begun.layout.root, place)
    named = [f"{point}={place}" for point, place in places.items()]
    command = [sys.executable, "-m", "tests.fixtures.killed_writes", "2", json.dumps(TINY), *named]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "manifest there: False" in done.stdout
    wanted = hash_records(project.layout.cycle(2))
    for point, place in places.items():
        assert hash_records(place / "cycles" / "02") == wanted, f"killed at {point}: {done.stdout}"


@pytest.mark.chaos
def test_a_flow_killed_at_random_moments_ends_with_the_same_pools(project: Project, begun: Project) -> None:
    """Six kills after the start of a cycle, most of them while a tool is taught, then the flow is run to its end."""
    draw = random.Random(0)
    cycle, kills = begun.layout.cycle(2), 0
    for number in range(6):
        process = start(begun.root)
        sign = cycle / ".stage" / ("scratch/lessons" if number else "build")
        try:
            wait_until(sign.exists, process=process, place=begun.root)
            time.sleep(draw.uniform(0.0, 3.0))
        finally:
            process.kill()
        kills += process.wait(timeout=60) == -signal.SIGKILL
        if (cycle / "manifest.json").exists():
            break
    assert kills >= 2
    if not (cycle / "manifest.json").exists():
        process = start(begun.root)
        assert process.wait(timeout=300) == 0, read_log(begun.root, kills)
    config = replace(project.config, paths=replace(project.config.paths, data=str(begun.layout.root), mlruns=str(begun.root / "mlruns")))
    play(reflect_learn, config)  # cycle 3, after the history of cycle 2 is whole
    for number in (2, 3):
        assert hash_records(begun.layout.cycle(number)) == hash_records(project.layout.cycle(number))
    runs = read_runs(begun.root, "reflect_learn")
    named = [run.info.run_name for run in runs if run.info.run_name.startswith("cycle") and run.info.status == "FINISHED"]
    assert sorted(named) == ["cycle 1", "cycle 2", "cycle 3"]


def test_rollback_gives_the_pools_and_the_figures_of_a_cycle_again(project: Project) -> None:
    """Last in this module: it changes the project. What is taken back stays, what is played again has the same bytes."""
    layout, config = project.layout, project.config
    before = {number: hash_records(layout.cycle(number)) for number in CYCLES}
    measured = layout.assistant_evaluation / "cycle_01"
    predictions = hash_records(measured)
    with pytest.raises(ConfigError, match="back_to is empty"):
        rollback(to_plain(config))
    with pytest.raises(ConfigError, match="cycles 0 to 4"):
        rollback(to_plain(only(config, back_to=5)))

    rollback(to_plain(only(config, back_to=1)))
    assert layout.find_last_cycle() == 1
    (record,) = list_rollbacks(layout)
    assert (record.start, record.end, record.cycles) == (4, 1, (2, 3, 4)) and "@" in record.by
    assert record.pools[1] == read_json(layout.cycle(1) / "report.json")["pools"]
    assert {number: hash_records(layout.undone / record.id / f"{number:02d}") for number in (2, 3, 4)} == {
        number: before[number] for number in (2, 3, 4)
    }
    (child,) = (run for run in read_runs(project.root, "rollback") if "rollback.to" in run.data.tags)
    assert {name: child.data.tags[f"rollback.{name}"] for name in ("by", "from", "to")} == {"by": record.by, "from": "4", "to": "1"}
    marked = [run for name in ("reflect_learn", "clova") for run in read_runs(project.root, name) if "cycle.rolled_back" in run.data.tags]
    assert sorted(run.info.run_name for run in marked) == ["cycle 2", "cycle 2", "cycle 3", "cycle 4"]
    rollback(to_plain(only(config, back_to=1)))
    assert len(list_rollbacks(layout)) == 1, "there was nothing more to take back"

    shutil.rmtree(measured)
    pools = layout.cycle(layout.find_last_cycle())
    examine_pools(config, layout, name="after cycle 1", pools=pools, parts=("test",), folder=measured)
    assert hash_records(measured) == predictions
    states = play(reflect_learn, config)
    assert states["cycle 2"] == states["gate cycle_02_traces"] == "ran" and "cycle 3" not in states
    assert hash_records(layout.cycle(2)) == before[2] and layout.find_last_cycle() == 2
    assert set(project.read_status()) == {"cycles@3", "cycles@4", "assistant"}, "what was taken back is to be made again"
    played = [run for run in read_runs(project.root, "reflect_learn") if run.info.run_name == "cycle 2"]
    assert [("cycle.rolled_back" in run.data.tags, run.info.status) for run in played] == [(True, "FINISHED"), (False, "FINISHED")]


def test_a_rollback_that_was_killed_is_finished_before_anything_is_played(project: Project) -> None:
    layout, config = project.layout, project.config
    record = start_rollback(layout, end=1)
    assert record is not None
    with pytest.raises(DataError, match=r"not finished.*back_to=1"):
        reflect_learn(to_plain(config))
    with pytest.raises(DataError, match="back_to=1"):
        rollback(to_plain(only(config, back_to=0)))
    rollback(to_plain(only(config, back_to=1)))
    assert layout.find_last_cycle() == 1 and (layout.undone / record.id / "02" / "manifest.json").is_file()
