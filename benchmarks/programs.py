"""Programs side by side against the same programs one by one, with the same tools, in one run.

    python -m benchmarks.programs [--programs 128] [--repeats 5]

``ours``: ``run_programs`` with all programs, one batch per tool and round.
``one_by_one``: ``run_programs`` with one program at a time, as VISPROG and CLOVA run them.
Two settings. ``model``: the tools that look at pictures pass them through a CLIP vision tower of the embedded default's size (96 x 96
pixels; random weights, the time does not depend on them) in one forward pass per batch. ``free``: those tools cost nothing, which shows
the interpreter's own cost, with reading and checking. The two take turns; a ratio is the median over the turns, by the clock and by CPU
seconds (which a busy machine changes less). Results go to ``benchmarks/results/programs.json``.
"""

import argparse
import gc
import json
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from visloop.assistant.interpreter import Job, run_programs
from visloop.records.assistant import Proposal, Task
from visloop.tools.base import ToolCall, ToolResult, ToolSignature
from visloop.tools.expressions import EvalTool
from visloop.tools.signatures import find_signature
from visloop.tools.values import Box

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

    def run(self, tool: str, calls: Sequence[ToolCall]) -> list[ToolResult]:
        if tool == "EVAL":
            return EvalTool().run(calls)
        if tool in ("LOC", "VQA"):
            features = self._look([call.arguments["image"] for call in calls])
            return [self._answer(tool, float(feature)) for feature in features]
        if tool == "COUNT":
            return [ToolResult(value=len(call.arguments["box"])) for call in calls]  # type: ignore[arg-type]
        return [ToolResult(value=call.arguments["image"]) for call in calls]

    def _look(self, images: list[Any]) -> Sequence[float]:
        if self._model is None:
            return [0.5] * len(images)
        self.pictures, self.batches = self.pictures + len(images), self.batches + 1
        pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images]).transpose(0, 3, 1, 2) / 255
        with torch.inference_mode():
            pooled = self._model(pixel_values=torch.from_numpy(pixels)).pooler_output
        values: list[float] = pooled[:, 0].tolist()
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


def run_benchmark(*, programs: int, repeats: int, threads: int) -> dict[str, Any]:
    """Measure both ways in both settings; programs per second and ratios.

    Raises:
        RuntimeError: the two ways do not give the same results.
    """
    torch.set_num_threads(threads)
    jobs = make_jobs(programs)
    rows, ratios = [], []
    calls: dict[str, float] = {}
    for setting in ("model", "free"):
        turns: list[dict[str, tuple[float, float]]] = []
        for repeat in range(repeats + 1):  # the first turn warms up and is not counted
            turn: dict[str, tuple[float, float]] = {}
            results = {}
            for name in ("ours", "one_by_one"):
                tools = BenchTools(model=setting == "model")
                groups = [jobs] if name == "ours" else [[job] for job in jobs]
                gc.collect()  # the collector's passes over what came before belong to nobody
                clock, cpu = time.perf_counter(), time.process_time()
                executions = [execution for group in groups for execution in run_programs(group, tools=tools)]
                turn[name] = (programs / (time.perf_counter() - clock), programs / (time.process_time() - cpu))
                results[name] = [(execution.status, execution.result) for execution in executions]
                if tools.batches:
                    calls[name] = tools.pictures / tools.batches
            if results["ours"] != results["one_by_one"] or {status for status, _ in results["ours"]} != {"finished"}:
                raise RuntimeError("side by side and one by one give different results: no fair comparison")
            if repeat:
                turns.append(turn)
        for place, metric in enumerate(("programs_per_second", "programs_per_cpu_second")):
            for name in ("ours", "one_by_one"):
                rows.append({"setting": setting, "name": name, "metric": metric, **summarize([turn[name][place] for turn in turns])})
            found = summarize([turn["ours"][place] / turn["one_by_one"][place] for turn in turns])
            ratios.append({"setting": setting, "a": "ours", "b": "one_by_one", "metric": metric, **found})
    return {
        "benchmark": "programs",
        "settings": {
            "programs": programs,
            "repeats": repeats,
            "torch_threads": threads,
            "machine": f"{platform.machine()}, {platform.system()}, torch {torch.__version__}",
        },
        "pictures_per_forward_pass": calls,
        "rows": rows,
        "ratios": ratios,
    }


def summarize(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"value": statistics.median(values), "low": min(values), "high": max(values), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="torch threads, the same for both")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    result = run_benchmark(programs=chosen.programs, repeats=chosen.repeats, threads=chosen.threads)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in result["rows"]:
        print(f"{row['setting']:6} {row['name']:11} {row['metric']:24} {row['value']:9.1f}  ({row['low']:.1f} to {row['high']:.1f})")
    for row in result["ratios"]:
        print(f"{row['setting']:6} ours / {row['b']} {row['metric']:24} {row['value']:6.2f}  ({row['low']:.2f} to {row['high']:.2f})")


if __name__ == "__main__":
    main()
