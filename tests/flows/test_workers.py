"""Processes that share a stage: the same bytes, each model once per process, nothing lost when one dies, nobody left behind."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest

from flows._environment import PROJECT_ROOT
from flows._stage import Shard, make_shards, run_sharded_stage
from flows._workers import PART_SIZE, Jobs, Lazy, check_workers, choose_workers, cut_parts
from visloop.config import Backend, ChatConfig
from visloop.errors import ConfigError, DataError, VisloopError
from visloop.prompts.render import PromptSet
from visloop.records.shards import write_text

pytestmark = pytest.mark.timeout(300)


class Model:
    """Stands for a model: it remembers in which process it was opened."""

    def __init__(self) -> None:
        self.process = os.getpid()

    def double(self, number: int) -> int:
        assert self.process == os.getpid(), "an instance never travels"
        return 2 * number


def run_squares(folder: Path, *, workers: int, broken: int | None = None, model: Lazy[Model] | None = None):
    model = model or Lazy(Model)

    def work(shard: Shard[list[int]], path: Path) -> dict[str, float]:
        if broken in shard.payload:
            time.sleep(1.0)  # the other process finishes what comes behind
            raise DataError(f"{broken} is broken")
        write_text(path, "".join(f"{model.get().double(number)}\n" for number in shard.payload))
        return {"numbers": len(shard.payload)}

    return run_sharded_stage(
        "doubles",
        folder=folder,
        inputs={},
        config={},
        code=["visloop.ids"],
        shards=make_shards(list(range(10)), size=2),
        work=work,
        resources=[model],
        workers=workers,
    )


def test_workers_write_the_same_stage(tmp_path):
    one, model = run_squares(tmp_path / "one", workers=1), Lazy(Model)
    two = run_squares(tmp_path / "two", workers=2, model=model)
    assert two == one and two.counts == {"numbers": 10.0}
    assert (tmp_path / "two" / "00001.jsonl").read_text() == "4\n6\n"
    assert model.loads in (1, 2), "once per process that had work, and counted"
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_what_others_finished_is_kept_when_one_shard_fails(tmp_path):
    with pytest.raises(DataError, match=r"stage doubles: 0 is broken"):
        run_squares(tmp_path / "stage", workers=2, broken=0)
    kept = {path.name for path in (tmp_path / "stage" / ".stage" / "shards").iterdir()}
    assert kept, "shards behind the broken one"
    before = {name: (tmp_path / "stage" / ".stage" / "build" / name.removesuffix(".json")).stat().st_mtime_ns for name in kept}
    run_squares(tmp_path / "stage", workers=1)
    after = {name: (tmp_path / "stage" / name.removesuffix(".json")).stat().st_mtime_ns for name in kept}
    assert after == before


def test_results_keep_their_order_and_a_second_take_calls_again(tmp_path):
    def call(number: int) -> int:
        marker = tmp_path / f"called {number}"
        if number == 1 and not marker.exists():
            marker.touch()
            raise DataError("not yet")
        return number * number

    with Jobs(call, [3, 1, 2], workers=2) as jobs:
        assert jobs.take(0) == 9
        with pytest.raises(DataError, match="not yet"):
            jobs.take(1)
        assert jobs.take(1) == 1 and jobs.take(2) == 4


def test_a_process_that_dies_is_named_and_the_next_stage_has_new_ones():
    def call(number: int) -> int:
        if number == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(VisloopError, match="a worker process died"), Jobs(call, [0, 1], workers=2) as jobs:
        jobs.take_all()
    with Jobs(call, [1, 2], workers=2) as jobs:
        assert jobs.take_all() == [1, 2]


def test_templates_are_read_again_where_they_are_needed():
    def render(style: PromptSet) -> str:
        return f"{os.getpid()} {style.hash}"

    with Jobs(render, [PromptSet("compact"), PromptSet("full")], workers=2) as jobs:
        found = [text.split() for text in jobs.take_all()]
    assert [text[1] for text in found] == [PromptSet("compact").hash, PromptSet("full").hash]
    assert all(int(text[0]) != os.getpid() for text in found)


def test_workers_end_with_a_killed_flow(tmp_path):
    """Else they would write on into a folder that a second run is at work on."""
    script = textwrap.dedent(
        f"""
        import os, time
        from pathlib import Path
        from flows._workers import Jobs

        def call(number):
            Path({str(tmp_path)!r}, f"{{os.getpid()}}.pid").touch()
            time.sleep(60)

        with Jobs(call, [0, 1], workers=2) as jobs:
            jobs.take_all()
        """
    )
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT_ROOT}:{PROJECT_ROOT / 'src'}"}
    flow = subprocess.Popen([sys.executable, "-c", script], env=environment)
    deadline = time.monotonic() + 120
    while len(found := [int(path.stem) for path in tmp_path.glob("*.pid")]) < 2:
        assert time.monotonic() < deadline and flow.poll() is None
        time.sleep(0.2)
    flow.kill()
    flow.wait()
    while any(map(psutil.pid_exists, found)):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_parts_cover_every_item_in_order():
    items = list(range(2 * PART_SIZE + 1))
    assert [len(part) for part in cut_parts(items)] == [PART_SIZE, PART_SIZE, 1]
    assert [item for part in cut_parts(items) for item in part] == items and cut_parts([]) == []


def test_a_number_of_workers_that_cannot_be_is_refused(monkeypatch):
    local, served = ChatConfig(model="embedded/base"), ChatConfig(backend=Backend.openai, model="m")
    with pytest.raises(ConfigError, match="workers=0: at least 1"):
        check_workers(0, [])
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"workers=2: processes do not share a GPU; workers=1 .* cpu"):
        check_workers(2, [served, local])
    check_workers(2, [served])
    check_workers(1, [local])
    on_cpu = replace(local, device="cpu")
    assert (choose_workers([served, local]), choose_workers([served, on_cpu])) == (1, choose_workers([served]))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("flows._workers.cpu_count", lambda: 64)
    assert choose_workers([local]) == 4


def test_a_lazy_travels_without_its_instance():
    model = Lazy(partial(Model))
    model.get()
    with Jobs(lambda number: model.get().double(number), [1, 2], workers=2, resources=[model]) as jobs:
        assert jobs.take_all() == [2, 4]
    assert model.loads >= 2
