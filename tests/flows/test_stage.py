"""A stage is skipped, continued or made again; whatever interrupts it, the bytes in the end are the same."""

import ctypes
import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from flows import _folders
from flows._folders import STAGE_DIR, StageFolder
from flows._stage import Lazy, Shard, make_shards, run_sharded_stage, run_stage
from flows._summary import render_stage_table, stage_rows
from visloop.config import ChatConfig, DPOSettings
from visloop.errors import DataError
from visloop.ids import hash_tree
from visloop.records.manifest import MANIFEST_NAME, Manifest, read_manifest
from visloop.records.shards import write_text

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = list(range(10))


class Counter:
    """Squares numbers, one shard at a time, and remembers which shards it was asked for."""

    def __init__(self, before: Callable[[str], None] = lambda name: None) -> None:
        self.made: list[str] = []
        self.before = before

    def __call__(self, shard: Shard[Any], path: Path) -> Mapping[str, float]:
        self.before(shard.name)
        self.made.append(shard.name)
        write_text(path, "".join(f"{number * number}\n" for number in shard.payload))
        return {"numbers": len(shard.payload), "odd": sum(number % 2 for number in shard.payload)}


def _run(folder: Path, work: Any, **changes: Any) -> Manifest:
    arguments: dict[str, Any] = {
        "folder": folder,
        "inputs": {},
        "config": {"seed": 0},
        "code": ["visloop.ids"],
        "shards": make_shards(NUMBERS, size=3),
        "work": work,
        "finish": _write_report,
    }
    return run_sharded_stage("squares", **(arguments | changes))


def _write_report(folder: Path) -> dict[str, float]:
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.read_text().splitlines()]
    write_text(folder / "report.txt", f"largest {max(map(int, lines))}\n")
    return {"largest": max(map(float, lines))}


@pytest.fixture
def whole(tmp_path: Path) -> str:
    """The hash of a folder that nothing interrupted."""
    _run(tmp_path / "whole" / "squares", Counter())
    return hash_tree([tmp_path / "whole" / "squares"])


def test_a_finished_stage_is_skipped_and_holds_its_manifest(tmp_path: Path) -> None:
    work = Counter()
    manifest = _run(tmp_path / "squares", work)
    assert work.made == ["00000", "00001", "00002", "00003"]
    assert manifest.counts == {"numbers": 10, "odd": 5, "largest": 81}
    assert manifest.shards["00003.jsonl"] == {"numbers": 1, "odd": 1}
    assert set(manifest.files) == {"00000.jsonl", "00001.jsonl", "00002.jsonl", "00003.jsonl", "report.txt"}
    assert not (tmp_path / "squares" / STAGE_DIR).exists()
    assert _run(tmp_path / "squares", work) == manifest == read_manifest(tmp_path / "squares")
    assert len(work.made) == 4
    assert [(row.state, row.made, row.shards) for row in stage_rows()] == [("ran", 4, 4), ("skipped", 0, 4)]


@pytest.mark.parametrize("failing", range(4))
def test_an_error_keeps_the_finished_shards(tmp_path: Path, whole: str, failing: int) -> None:
    def fail(name: str) -> None:
        if name == f"{failing:05d}":
            raise DataError("picture 7 cannot be opened")

    with pytest.raises(DataError, match="picture 7"):
        _run(tmp_path / "squares", Counter(fail))
    assert read_manifest(tmp_path / "squares") is None
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == [f"{number:05d}" for number in range(failing, 4)]
    assert stage_rows()[-1].state == ("continued" if failing else "ran")
    assert hash_tree([tmp_path / "squares"]) == whole


class Crash(BaseException):
    """Power cut: no handler of errors sees it."""


def _crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Cut the power at the ``step``-th change of the file system that the stage folder makes; returns a counter of steps."""
    taken = 0

    def guard(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal taken
            taken += 1
            if taken == step:
                raise Crash
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(_folders.os, "replace", guard(os.replace))
    monkeypatch.setattr(_folders.shutil, "rmtree", guard(shutil.rmtree))
    monkeypatch.setattr(Path, "unlink", guard(Path.unlink))
    monkeypatch.setattr(Path, "mkdir", guard(Path.mkdir))
    return lambda: taken


@pytest.mark.parametrize("older", ["nothing", "other key", "damaged"])
def test_a_crash_at_any_step_does_no_harm(tmp_path: Path, whole: str, older: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every change of the file system is tried as the last one before a power cut, with each kind of folder to start from."""
    crashes = 0
    while True:
        folder = tmp_path / str(crashes) / "squares"
        if older != "nothing":
            _run(folder, Counter(), config={"seed": 1 if older == "other key" else 0})
        if older == "damaged":
            (folder / "00002.jsonl").write_text("4\n")
        with monkeypatch.context() as patch:
            taken = _crash_at(crashes + 1, patch)
            try:
                _run(folder, Counter())
            except Crash:
                crashes += 1
            else:
                assert taken() == crashes
                break
        _run(folder, Counter())
        assert hash_tree([folder]) == whole, f"crash at step {crashes}"
        assert not (folder / STAGE_DIR).exists()
    assert crashes > 20, "the crash was meant to hit every step"


SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from test_stage import Counter, _run

def before(name):
    if name == sys.argv[2]:
        if sys.argv[1:][-1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        print("waiting", flush=True)
        time.sleep(60)

_run(Path(sys.argv[1]), Counter(before))
"""


@pytest.mark.parametrize("order", ["as listed", "key first"])
def test_a_crash_while_clearing_up_leaves_nothing_for_good(tmp_path: Path, whole: str, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The removal of a folder is many removals: each is tried as the last one; file systems list the key anywhere among them."""
    crashes, seal, scan = 0, StageFolder.seal, os.scandir

    def list_key_first(path: Any) -> "_Listed":
        return _Listed(sorted(scan(path), key=lambda entry: entry.name != "key"))

    while True:
        folder = tmp_path / str(crashes) / "squares"

        def train(place: Path) -> Mapping[str, float]:
            write_text(_folders.find_scratch(place) / "states" / "1.txt", "half")
            write_text(place / "squares.txt", "1\n")
            return {}

        def run() -> Manifest:
            return run_stage("one", folder=folder, inputs={}, config={}, code=["visloop.ids"], work=train, resumable=True)  # noqa: B023

        taken = 0

        def cut(remove: Callable[..., None]) -> Callable[..., None]:
            def call(*arguments: Any, **named: Any) -> None:
                nonlocal taken
                taken += 1
                if taken > crashes:  # noqa: B023
                    raise Crash
                remove(*arguments, **named)

            return call

        def seal_and_crash(self: StageFolder, manifest: Manifest) -> None:
            with monkeypatch.context() as patch:
                if order == "key first":
                    patch.setattr(_folders.shutil.os, "scandir", list_key_first)
                patch.setattr(_folders.shutil.os, "unlink", cut(os.unlink))
                patch.setattr(_folders.shutil.os, "rmdir", cut(os.rmdir))
                seal(self, manifest)

        with monkeypatch.context() as patch:
            patch.setattr(StageFolder, "seal", seal_and_crash)
            try:
                run()
            except Crash:
                crashes += 1
            else:
                break
        run()
        assert [path.name for path in folder.iterdir() if path.name != MANIFEST_NAME] == ["squares.txt"], f"crash at removal {crashes}"
    assert crashes > 5, "the crash was meant to hit every removal"


class _Listed(list[Any]):
    """A sorted ``os.scandir``."""

    def __enter__(self) -> "_Listed":
        return self

    def __exit__(self, *error: object) -> None:
        return None


def _start(folder: Path, shard: str, mode: str) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
    command = [sys.executable, "-c", SCRIPT, str(folder), shard, str(Path(__file__).parent), mode]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["00001", "00003"])
def test_a_killed_process_is_continued(tmp_path: Path, whole: str, shard: str) -> None:
    killed = _start(tmp_path / "squares", shard, "kill")
    assert killed.wait(timeout=120) == -signal.SIGKILL
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == [f"{number:05d}" for number in range(int(shard), 4)]
    assert hash_tree([tmp_path / "squares"]) == whole


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_name_of_the_first(tmp_path: Path, whole: str) -> None:
    first = _start(tmp_path / "squares", "00002", "wait")
    assert first.stdout is not None
    assert first.stdout.readline() == "waiting\n"
    started = time.monotonic()
    with pytest.raises(DataError, match=f"process {first.pid} on ") as caught:
        _run(tmp_path / "squares", Counter())
    assert time.monotonic() - started < 5
    assert "squares" in str(caught.value)
    first.kill()
    first.wait()
    _run(tmp_path / "squares", Counter())
    assert hash_tree([tmp_path / "squares"]) == whole


@pytest.mark.parametrize("change", ["truncated", "altered", "deleted"])
def test_only_a_damaged_shard_is_made_again(tmp_path: Path, whole: str, change: str) -> None:
    _run(tmp_path / "squares", Counter())
    shard = tmp_path / "squares" / "00001.jsonl"
    if change == "deleted":
        shard.unlink()
    else:
        shard.write_text(shard.read_text()[:-2] if change == "truncated" else shard.read_text().replace("16", "17"))
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == ["00001"]
    assert stage_rows()[-1].state == "continued"
    assert hash_tree([tmp_path / "squares"]) == whole


def test_a_truncated_shard_of_an_interrupted_run_is_made_again(tmp_path: Path, whole: str) -> None:
    def fail(name: str) -> None:
        if name == "00002":
            raise DataError("stop")

    with pytest.raises(DataError):
        _run(tmp_path / "squares", Counter(fail))
    shard = StageFolder(tmp_path / "squares").build / "00000.jsonl"
    shard.write_text(shard.read_text()[:2])
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == ["00000", "00002", "00003"]
    assert hash_tree([tmp_path / "squares"]) == whole


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"seed": 1}},
        {"code": ["visloop.answers"]},
        {"shards": make_shards(NUMBERS, size=5)},
        {"inputs": {"more": ROOT / "pyproject.toml"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_key_makes_everything_again(tmp_path: Path, change: dict[str, Any]) -> None:
    _run(tmp_path / "squares", Counter())
    work = Counter()
    _run(tmp_path / "squares", work, **change)
    assert len(work.made) == len(change.get("shards", range(4)))
    assert stage_rows()[-1].state == "ran"
    files = {path.name for path in (tmp_path / "squares").iterdir()}
    assert files == {f"{name}.jsonl" for name in work.made} | {"report.txt", MANIFEST_NAME}, "nothing of the old outputs stays"


def test_the_payload_of_the_shards_is_part_of_the_key(tmp_path: Path) -> None:
    _run(tmp_path / "squares", Counter())
    work = Counter()
    _run(tmp_path / "squares", work, shards=make_shards([*NUMBERS[:-1], 90], size=3))
    assert len(work.made) == 4


def test_old_outputs_stay_whole_until_the_new_ones_are(tmp_path: Path, whole: str) -> None:
    def fail(name: str) -> None:
        if name == "00003":
            raise DataError("stop")

    old = _run(tmp_path / "squares", Counter())
    with pytest.raises(DataError):
        _run(tmp_path / "squares", Counter(fail), config={"seed": 1})
    assert read_manifest(tmp_path / "squares") == old
    assert hash_tree([tmp_path / "squares"]) == whole, "hidden work in progress is no output"
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == [], "the old key is still finished"


def test_a_change_of_mind_during_an_interrupted_run_starts_anew(tmp_path: Path, whole: str) -> None:
    def fail(name: str) -> None:
        if name == "00002":
            raise DataError("stop")

    with pytest.raises(DataError):
        _run(tmp_path / "squares", Counter(fail), config={"seed": 1})
    work = Counter()
    _run(tmp_path / "squares", work)
    assert len(work.made) == 4
    assert hash_tree([tmp_path / "squares"]) == whole


def test_an_input_counts_by_its_bytes_and_a_stage_by_its_manifest(tmp_path: Path) -> None:
    source = tmp_path / "source.txt"
    source.write_text("one")
    _run(tmp_path / "first", Counter(), inputs={"source": source})

    def run_second() -> list[str]:
        work = Counter()
        _run(tmp_path / "second", work, inputs={"first": tmp_path / "first"})
        return work.made

    assert len(run_second()) == 4
    assert run_second() == []
    (tmp_path / "first" / ".DS_Store").write_text("x")
    assert run_second() == [], "a file that the stage did not make is no input"
    source.write_text("two")
    _run(tmp_path / "first", Counter(), inputs={"source": source})
    assert run_second() == [], "the same outputs, though made from other inputs, are the same input"
    _run(tmp_path / "first", Counter(), shards=make_shards([1, 2], size=2))
    assert len(run_second()) == 4


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing_here is missing"):
        _run(tmp_path / "squares", Counter(), inputs={"paths": tmp_path / "nothing_here"})


def test_how_a_model_is_reached_does_not_decide_the_outputs(tmp_path: Path) -> None:
    def made(config: ChatConfig) -> int:
        work = Counter()
        _run(tmp_path / "squares", work, config={"seed": 0, "model": config})
        return len(work.made)

    assert made(ChatConfig()) == 4
    assert made(ChatConfig(timeout_seconds=999, concurrency=1, max_retries=0, base_url="http://127.0.0.1:9/v1", price_new=2.0)) == 0
    assert made(ChatConfig(model="another")) == 4


def test_one_model_serves_all_shards_and_is_released(tmp_path: Path) -> None:
    class Model:
        closed = 0

        def close(self) -> None:
            Model.closed += 1

    model = Lazy(Model)

    def work(shard: Shard[Any], path: Path) -> Mapping[str, float]:
        return Counter(lambda name: (model.get(), None)[1])(shard, path)

    _run(tmp_path / "squares", work, resources=[model])
    assert (model.loads, Model.closed, stage_rows()[-1].loads) == (1, 1, 1)
    again = Lazy(Model)
    _run(tmp_path / "squares", work, resources=[again])
    assert (again.loads, Model.closed) == (0, 1), "a skipped stage opens no model"

    def fail(shard: Shard[Any], path: Path) -> Mapping[str, float]:
        again.get()
        raise DataError("stop")

    with pytest.raises(DataError):
        _run(tmp_path / "squares", fail, resources=[again], config={"seed": 5})
    assert (again.loads, Model.closed) == (1, 2)


def test_a_model_forgets_before_every_shard(tmp_path: Path) -> None:
    """Else a shard's last bits would depend on which shards the same process made before."""

    class Model:
        seen: list[str]

        def __init__(self) -> None:
            self.seen = []

        def forget(self) -> None:
            self.seen = []

    model = Lazy(Model)

    def work(shard: Shard[Any], path: Path) -> Mapping[str, float]:
        model.get().seen.append(shard.name)
        assert model.get().seen == [shard.name]
        return Counter()(shard, path)

    _run(tmp_path / "squares", work, resources=[model])
    assert model.loads == 1


def test_shards_must_exist_once_and_be_written(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shards, its input is empty"):
        _run(tmp_path / "squares", Counter(), shards=[])
    with pytest.raises(DataError, match="two shards of one name"):
        _run(tmp_path / "squares", Counter(), shards=[Shard("a", [1]), Shard("a", [2])])
    with pytest.raises(DataError, match=r"stage squares: shard 00000 wrote no file"):
        _run(tmp_path / "squares", lambda shard, path: {})
    with pytest.raises(DataError, match="shard size 0"):
        make_shards([1], size=0)


def test_a_stage_in_one_piece_starts_clean_unless_it_can_resume(tmp_path: Path) -> None:
    seen: list[list[str]] = []

    def train(folder: Path) -> Mapping[str, float]:
        seen.append(sorted(path.name for path in folder.iterdir()))
        write_text(folder / "checkpoint-5" / "state.txt", "half")
        if len(seen) % 2:
            raise DataError("power cut")
        shutil.rmtree(folder / "checkpoint-5")
        write_text(folder / "adapter" / "weights.txt", "whole")
        return {"loss": 0.5}

    def run(name: str, *, resumable: bool) -> Manifest:
        settings = DPOSettings()
        return run_stage(name, folder=tmp_path / name, inputs={}, config=settings, code=["visloop.ids"], work=train, resumable=resumable)

    for name, left in (("fresh", []), ("resumed", ["checkpoint-5"])):
        seen.clear()
        with pytest.raises(DataError, match=f"^stage {name}: power cut$"):
            run(name, resumable=bool(left))
        manifest = run(name, resumable=bool(left))
        assert seen == [[], left]
        assert list(manifest.files) == ["adapter/weights.txt"]
        assert (tmp_path / name / "adapter" / "weights.txt").read_text() == "whole"
        assert run(name, resumable=bool(left)) == manifest
        assert len(seen) == 2
    with pytest.raises(DataError, match="stage empty: nothing was written into"):
        run_stage("empty", folder=tmp_path / "empty", inputs={}, config={}, code=["visloop.ids"], work=lambda folder: {})


def test_a_folder_may_take_the_place_of_a_file_and_back(tmp_path: Path) -> None:
    def write(name: str) -> Callable[[Path], Mapping[str, float]]:
        def work(folder: Path) -> Mapping[str, float]:
            write_text(folder / name, name)
            return {}

        return work

    for seed, name in enumerate(["model", "model/weights", "model"]):
        run_stage("s", folder=tmp_path / "s", inputs={}, config={"seed": seed}, code=["visloop.ids"], work=write(name))
        assert (tmp_path / "s" / name).read_text() == name
        assert sum(path.is_file() for path in (tmp_path / "s").rglob("*")) == 2


def test_a_full_disk_loses_nothing_that_was_finished(tmp_path: Path, whole: str) -> None:
    """A limit on file sizes stands for the full disk: the kernel refuses the write in the same place."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(shard: Shard[Any], path: Path) -> Mapping[str, float]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 if shard.name == "00002" else limits[0], limits[1]))
        try:
            return Counter()(shard, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    try:
        with pytest.raises(DataError, match=r"cannot write .*00002\.jsonl"):
            _run(tmp_path / "squares", fill)
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == ["00002", "00003"]
    assert hash_tree([tmp_path / "squares"]) == whole


def _forget_root() -> None:
    """In the child, before it starts: root is refused by permissions like everybody else (drops CAP_DAC_OVERRIDE)."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


def test_a_folder_that_may_only_be_read_is_named_and_left_alone(tmp_path: Path, whole: str) -> None:
    """What is finished is found without a write; what is not says which folder cannot be written."""
    _run(tmp_path / "data" / "squares", Counter())
    manifest = (tmp_path / "data" / "squares" / MANIFEST_NAME).stat().st_mtime_ns
    places = [tmp_path / "data", tmp_path / "data" / "squares"]
    script = READ_ONLY.format(here=str(Path(__file__).parent))
    for place in places:
        place.chmod(0o555)
    try:
        command = [sys.executable, "-c", script, str(tmp_path / "data")]
        environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=_forget_root)
    finally:
        for place in places:
            place.chmod(0o755)
    assert done.returncode == 0, done.stderr
    skipped, refused, again = done.stdout.splitlines()
    assert skipped == "made 0"
    where = f"{tmp_path}/data"
    assert refused == f"DataError: cannot write {where}/cubes/.stage: Permission denied; free space or fix the permissions"
    assert again == f"DataError: cannot write {where}/squares/.stage: Permission denied; free space or fix the permissions"
    assert (tmp_path / "data" / "squares" / MANIFEST_NAME).stat().st_mtime_ns == manifest
    assert hash_tree([tmp_path / "data" / "squares"]) == whole and not (tmp_path / "data" / "cubes").exists()


READ_ONLY = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from test_stage import Counter, _run
from visloop.errors import DataError

data, work = Path(sys.argv[1]), Counter()
_run(data / "squares", work)
print("made", len(work.made))
for name, changes in (("cubes", {{}}), ("squares", {{"config": {{"seed": 7}}}})):
    try:
        _run(data / name, Counter(), **changes)
    except DataError as error:
        print("DataError:", str(error).partition("squares: ")[2] or error)
"""


def test_a_clock_that_jumped_does_not_decide_what_is_finished(tmp_path: Path, whole: str) -> None:
    """Files from the future count by their bytes: finished is skipped, one that changed is made again, with either time."""
    _run(tmp_path / "squares", Counter())
    shard = tmp_path / "squares" / "00001.jsonl"
    for moment in (4_102_444_800, 0):  # the years 2100 and 1970
        for path in (tmp_path / "squares").iterdir():
            os.utime(path, (moment, moment))
        work = Counter()
        _run(tmp_path / "squares", work)
        assert work.made == []
        shard.write_bytes(shard.read_bytes().upper() + b"0")
        os.utime(shard, (moment, moment))
        _run(tmp_path / "squares", work)
        assert work.made == ["00001"] and hash_tree([tmp_path / "squares"]) == whole


def test_a_disk_error_of_a_library_is_told_with_the_stage(tmp_path: Path) -> None:
    def save(folder: Path) -> Mapping[str, float]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "model.safetensors"))

    with pytest.raises(DataError, match=r"stage save cannot write .*model\.safetensors: No space left"):
        run_stage("save", folder=tmp_path / "s", inputs={}, config={}, code=["visloop.ids"], work=save)


def test_a_build_that_was_complete_but_lost_bytes_is_not_swapped_in(tmp_path: Path, whole: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(StageFolder, "_swap", lambda self, manifest: (_ for _ in ()).throw(Crash))
        _run(tmp_path / "squares", Counter())
    (StageFolder(tmp_path / "squares").build / "00001.jsonl").write_text("")
    work = Counter()
    _run(tmp_path / "squares", work)
    assert work.made == ["00001"]
    assert hash_tree([tmp_path / "squares"]) == whole


def test_a_damaged_manifest_is_an_error_not_a_reason_to_start_again(tmp_path: Path) -> None:
    _run(tmp_path / "squares", Counter())
    (tmp_path / "squares" / MANIFEST_NAME).write_text("{")
    with pytest.raises(DataError, match="not a stage manifest"):
        _run(tmp_path / "squares", Counter())


def test_the_end_table_shows_every_stage(tmp_path: Path) -> None:
    from rich.console import Console

    _run(tmp_path / "squares", Counter())
    _run(tmp_path / "squares", Counter())
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(render_stage_table(stage_rows()))
    lines = [line for line in console.export_text().splitlines() if "squares" in line]
    assert len(lines) == 2
    assert "ran" in lines[0] and "4/4" in lines[0] and "numbers 10" in lines[0]
    assert "skipped" in lines[1] and "0/4" in lines[1]
