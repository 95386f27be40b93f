"""Programs side by side against the same programs one by one, with the same tools, in one run.

    python -m benchmarks.programs [--programs 128] [--repeats 7] [--threads 1 2]

``ours``: ``run_programs`` with all programs, one batch per tool and round.
``one_by_one``: ``run_programs`` with one program at a time, as VISPROG and CLOVA run them.
Four settings. ``tower``: no programs, only the pictures of the next setting through its model, in batches and one by one: what batches give
it. ``model``: the tools that look at pictures pass them through a CLIP vision tower of the embedded default's size (96 x 96
pixels; random weights, the time does not depend on them), a batch in one forward pass. ``toolbox``: the shipped tools on drawn tasks of
all kinds with their right programs; every picture is new to them. ``free``: tools that cost nothing, which shows the interpreter's own
cost, with reading and checking. All is measured with one torch thread and with one per core, the same for both. Settings and ways take
turns, the first of which warms up; a ratio is the median over the turns, by the clock and by CPU seconds. Results go to
``benchmarks/results/programs.json``.
"""

import argparse
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from flows._entry import compose_config
from visloop.assistant.interpreter import Execution, Job, run_programs
from visloop.records.assistant import Proposal, Task, TaskKind
from visloop.scenes.tasks_tagging import FACTS
from visloop.scenes.workshop_tasks import FAMILIES, make_tasks
from visloop.tools.base import ToolCall, ToolResult, ToolRunner, ToolSignature
from visloop.tools.expression_grammar import parse_expression
from visloop.tools.expressions import EvalTool
from visloop.tools.pictures import prepare_image
from visloop.tools.region_cache import SHARED
from visloop.tools.signatures import find_signature, list_signatures
from visloop.tools.toolbox import open_toolbox
from visloop.tools.values import Box

BATCH_SIZE = 64
"""Pictures per forward pass at most, as with the shipped tools. On a CPU more do not help: their activations outgrow its cache."""
Turn = dict[str, tuple[float, float]]
"""Programs per second by the clock and per CPU second, of each way."""
Result = TypeVar("Result")
RESULTS = Path(__file__).parent / "results" / "programs.json"
PROGRAMS = (
    """BOX0=LOC(image=IMAGE,object='boat')
    IMAGE0=CROP_ABOVE(image=IMAGE,box=BOX0)
    BOX1=LOC(image=IMAGE0,object='kite')
    ANSWER0=COUNT(box=BOX1)
    ANSWER1=EVAL(expr="'yes' if {ANSWER0} > 0 else 'no'")
    FINAL_RESULT=RESULT(var=ANSWER1)""",
    """BOX0=LOC(image=IMAGE,object='bench')
    IMAGE0=CROP(image=IMAGE,box=BOX0)
    ANSWER0=VQA(image=IMAGE0,question='What color is the bench?')
    BOX1=LOC(image=IMAGE,object='fence')
    IMAGE1=CROP(image=IMAGE,box=BOX1)
    ANSWER1=VQA(image=IMAGE1,question='What color is the fence?')
    ANSWER2=EVAL(expr="'yes' if {ANSWER0} != {ANSWER1} else 'no'")
    FINAL_RESULT=RESULT(var=ANSWER2)""",
    """ANSWER0=VQA(image=IMAGE,question='Which place is it?')
    FINAL_RESULT=RESULT(var=ANSWER0)""",
)


class BenchTools:
    """The tools of these programs. With a model, LOC and VQA look at their pictures through it, a batch in one pass."""

    def __init__(self, *, model: bool) -> None:
        self.pictures, self.batches = 0, 0
        self._model: CLIPVisionModel | None = None
        if model:
            torch.manual_seed(0)
            config = CLIPVisionConfig(
                image_size=96, patch_size=16, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4
            )
            self._model = CLIPVisionModel(config).eval()

    def find_signature(self, name: str) -> ToolSignature | None:
        return find_signature(name)

    def list_signatures(self, kind: TaskKind) -> tuple[ToolSignature, ...]:
        return list_signatures(kind)

    def run(self, tool: str, calls: Sequence[ToolCall]) -> list[ToolResult]:
        if tool == "EVAL":
            return EvalTool().run(calls)
        if tool in ("LOC", "VQA"):
            features = self.look([call.arguments["image"] for call in calls])
            return [self._answer(tool, float(feature)) for feature in features]
        if tool == "COUNT":
            return [ToolResult(value=len(call.arguments["box"])) for call in calls]  # type: ignore[arg-type]
        return [ToolResult(value=call.arguments["image"]) for call in calls]

    def look(self, images: Sequence[Any]) -> list[float]:
        """A number per picture, from batches of ``BATCH_SIZE``."""
        if self._model is None:
            return [0.5] * len(images)
        values: list[float] = []
        for start in range(0, len(images), BATCH_SIZE):
            batch = images[start : start + BATCH_SIZE]
            self.pictures, self.batches = self.pictures + len(batch), self.batches + 1
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in batch])).permute(0, 3, 1, 2)
            with torch.inference_mode():
                values += self._model(pixel_values=pixels / 255).pooler_output[:, 0].tolist()
        return values

    def _answer(self, tool: str, feature: float) -> ToolResult:
        if tool == "VQA":
            return ToolResult(value="red" if feature > 0 else "blue", confidence=0.9)
        return ToolResult(value=(Box(left=0, top=0, right=48, bottom=48),), confidence=0.9)


def make_jobs(count: int) -> list[Job]:
    """Jobs that take turns with the programs, each with a picture of its own."""
    draw = np.random.default_rng(0)
    jobs = []
    for index in range(count):
        task = Task(
            id=f"t{index}",
            kind="vqa",
            instruction="",
            images=("",),
            inputs=("IMAGE",),
            family="bench",
            wording="base",
            split="test",
            group=f"g{index}",
            source="bench",
        )
        image = Image.fromarray(draw.integers(0, 256, (96, 96, 3), dtype=np.uint8))
        proposal = Proposal(task_id=task.id, plan=(), program=PROGRAMS[index % len(PROGRAMS)], author="bench")
        jobs.append(Job(task, proposal, {"IMAGE": image}))
    return jobs


def make_drawn_jobs(count: int, *, folder: Path) -> list[Job]:
    """Drawn tasks of all kinds with their right programs; pictures are written to ``folder`` and read from there."""
    jobs = []
    for kind in FAMILIES:
        tasks, truths = make_tasks(
            folder, seed=0, kind=kind, count=count // len(FAMILIES), split="validation", novel_share=0.3, new_wording_share=0.0
        )
        for task, truth in zip(tasks, truths, strict=True):
            inputs = {name: prepare_image(folder / path, max_side=640) for name, path in zip(task.inputs, task.images, strict=True)}
            jobs.append(Job(task, Proposal(task_id=task.id, plan=truth.plan, program=truth.program, author="truth"), inputs))
    return jobs


def run_tower(jobs: Sequence[Job], *, repeats: int) -> list[Turn]:
    """Turns of the model alone, as ``run_setting`` takes them: each program's picture, in batches and one by one."""
    tools = BenchTools(model=True)
    pictures = [image for job in jobs for image in job.inputs.values()]

    def look(size: int) -> tuple[float, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(pictures), size):
            tools.look(pictures[start : start + size])
        return len(pictures) / (time.perf_counter() - clock), len(pictures) / (time.process_time() - cpu)

    return [{"ours": look(BATCH_SIZE), "one_by_one": look(1)} for _ in range(repeats + 1)][1:]


def time_programs(jobs: Sequence[Job], open_tools: Callable[[], ToolRunner]) -> tuple[Turn, dict[str, float]]:
    """One turn of both ways, and the pictures per forward pass, where they are counted.

    Raises:
        RuntimeError: the two ways do not give the same states.
    """
    turn: Turn = {}
    pictures: dict[str, float] = {}
    states = {}
    for name in ("ours", "one_by_one"):
        tools = open_tools()
        groups = [jobs] if name == "ours" else [[job] for job in jobs]
        parse_expression.cache_clear()
        executions, turn[name] = _measure(partial(_run_groups, groups, tools), count=len(jobs))
        states[name] = [(execution.status, execution.result if isinstance(execution.result, str) else "") for execution in executions]
        if isinstance(tools, BenchTools) and tools.batches:
            pictures[name] = tools.pictures / tools.batches
    if states["ours"] != states["one_by_one"] or {status for status, _ in states["ours"]} != {"finished"}:
        raise RuntimeError("side by side and one by one give different results: no fair comparison")
    return turn, pictures


def time_tower(jobs: Sequence[Job]) -> Turn:
    """One turn of the model alone: each program's picture, in batches and one by one."""
    tools = BenchTools(model=True)
    pictures = [image for job in jobs for image in job.inputs.values()]
    turn: Turn = {}
    for name, size in (("ours", BATCH_SIZE), ("one_by_one", 1)):
        parts = [pictures[start : start + size] for start in range(0, len(pictures), size)]
        _, turn[name] = _measure(partial(_look_at, parts, tools), count=len(pictures))
    return turn


def _run_groups(groups: Sequence[Sequence[Job]], tools: ToolRunner) -> list[Execution]:
    return [execution for group in groups for execution in run_programs(group, tools=tools)]


def _look_at(parts: Sequence[Sequence[Image.Image]], tools: BenchTools) -> list[list[float]]:
    return [tools.look(part) for part in parts]


def _measure(work: Callable[[], Result], *, count: int) -> tuple[Result, tuple[float, float]]:
    """What ``work`` gives, and its ``count`` items per second by the clock and per CPU second."""
    gc.collect()  # the collector's passes over what came before belong to nobody
    clock, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (count / (time.perf_counter() - clock), count / (time.process_time() - cpu))


def run_benchmark(*, programs: int, repeats: int, threads: Sequence[int]) -> dict[str, Any]:
    """Measure both ways in all settings; programs (of the tower: pictures) per second, and ratios."""
    jobs = make_jobs(programs)
    tools = compose_config([]).assistant.tools
    toolbox = open_toolbox(replace(tools, facts=FACTS.as_posix()))

    def forget() -> ToolRunner:
        SHARED.clear()
        return toolbox

    rows, ratios = [], []
    seen: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        drawn = make_drawn_jobs(programs, folder=Path(folder))
    settings: dict[str, tuple[list[Job], Callable[[], ToolRunner]]] = {
        "model": (jobs, lambda: BenchTools(model=True)),
        "toolbox": (drawn, forget),
        "free": (jobs, lambda: BenchTools(model=False)),
    }
    for count in threads:
        torch.set_num_threads(count)
        measured: dict[str, list[Turn]] = {"tower": [], **{name: [] for name in settings}}
        for _ in range(repeats + 1):
            measured["tower"].append(time_tower(jobs))
            for name, (work, open_tools) in settings.items():
                turn, pictures = time_programs(work, open_tools)
                measured[name].append(turn)
                seen |= pictures
        for setting, (_, *turns) in measured.items():  # the first turn warms up
            keys = {"setting": setting, "threads": count}
            what = "pictures" if setting == "tower" else "programs"
            for place, metric in enumerate((f"{what}_per_second", f"{what}_per_cpu_second")):
                for name in ("ours", "one_by_one"):
                    rows.append({**keys, "name": name, "metric": metric, **summarize([turn[name][place] for turn in turns])})
                found = summarize([turn["ours"][place] / turn["one_by_one"][place] for turn in turns])
                ratios.append({**keys, "a": "ours", "b": "one_by_one", "metric": metric, **found})
    return {
        "benchmark": "programs",
        "settings": {
            "programs": programs,
            "repeats": repeats,
            "machine": f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, torch {torch.__version__}",
        },
        "pictures_per_forward_pass": seen,
        "rows": rows,
        "ratios": ratios,
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help="torch threads, the same for both ways")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    result = run_benchmark(programs=chosen.programs, repeats=chosen.repeats, threads=chosen.threads)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["rows"]:
        print(f"{_name(row)} {row['name']:11} {row['metric']:24} {row['value']:9.1f}  ({row['low']:.1f} to {row['high']:.1f})")
    for row in result["ratios"]:
        print(f"{_name(row)} ours / {row['b']} {row['metric']:24} {row['value']:6.2f}  ({row['low']:.2f} to {row['high']:.2f})")


def _name(row: dict[str, Any]) -> str:
    return f"{row['setting']:8} {row['threads']} thread{'s' if row['threads'] > 1 else ' '}"


if __name__ == "__main__":
    main()
