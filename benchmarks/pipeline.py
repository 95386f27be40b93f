"""The whole pipeline against the same functions called in a plain loop: wall and CPU seconds, and how often models are loaded.

    python -m benchmarks.pipeline [--repeats 1] [override ...]

``flows``: ``python -m flows.pipeline`` as people start it, with its own Prefect server, manifests, gates, MLflow and DVC's record.
``plain``: the work of every stage, called in the same order and writing the same files, without any of these. Each side is a
process of its own and both run at the same time with half of the cores each, so that both meet the same load. ``start`` is the
time until the first stage begins (imports, server, database); the ratio compares what comes after it. That both sides wrote
the same models is checked. Results go to ``benchmarks/results/pipeline.json``.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
SIZES = (
    "data.train=1200",
    "data.validation=200",
    "data.test=300",
    "pool.size=300",
    "sets.summary_size=900",
    "rounds.rounds=2",
    "rounds.prompts_per_round=250",
)


class _PlainRun:
    """Stands in for the MLflow run: takes everything, keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **options: None

    @contextmanager
    def open_child(self, *args: Any, **options: Any) -> Any:
        yield self


def run_plain(overrides: list[str]) -> None:
    """Every stage's own work, in order."""
    import flows._checks
    import flows._evaluation_stages
    import flows._report_stages
    import flows._round_stages
    import flows.assessment
    import flows.dpo_rounds
    import flows.evaluation
    import flows.generation
    import flows.pipeline
    import flows.sft
    from flows._entry import compose_config, to_plain
    from visloop.records.manifest import Manifest, write_manifest

    def finish(folder: Path, place: Path, name: str, counts: Any, config: Any, resources: Any) -> Manifest:
        for item in resources:
            item.release()
        manifest = Manifest(
            stage=name, inputs={}, config=flows._stage.dump_plain(config), code="", files={}, counts=dict(counts), shards={}
        )
        write_manifest(place, manifest)
        return manifest

    def run_stage(name: str, *, folder: Path, config: Any, work: Any, resources: Any = (), **_: Any) -> Manifest:
        folder.mkdir(parents=True, exist_ok=True)
        return finish(folder, folder, name, work(folder), config, resources)

    def run_sharded_stage(
        name: str, *, folder: Path, config: Any, shards: Any, work: Any, suffix: str = ".jsonl", **options: Any
    ) -> Manifest:
        folder.mkdir(parents=True, exist_ok=True)
        counts = [work(shard, folder / f"{shard.name}{suffix}") for shard in shards]
        totals = flows._stage._sum_counts(counts)
        if options.get("finish") is not None:
            totals |= options["finish"](folder)
        return finish(folder, folder, name, totals, config, options.get("resources", ()))

    @contextmanager
    def open_flow_run(flow: str, config: Any) -> Any:
        yield _PlainRun()

    def nothing(*args: Any, **options: Any) -> None:
        return None

    import flows._stage

    replaced = {
        "run_stage": run_stage,
        "run_sharded_stage": run_sharded_stage,
        "run_gate": nothing,
        "open_flow_run": open_flow_run,
        "register_model": nothing,
        "hash_stage": lambda folder: folder.as_posix(),
    }
    for module in list(sys.modules.values()):
        if getattr(module, "__name__", "").startswith("flows."):
            for name, value in replaced.items():
                if hasattr(module, name):
                    setattr(module, name, value)
    values = to_plain(compose_config(overrides))
    print(f"STARTED {time.time()}", flush=True)
    for phase in flows.pipeline.PHASES:
        phase.fn(values)


def run_worker(side: str, overrides: list[str]) -> None:
    if side == "plain":
        run_plain(overrides)
        return
    raise SystemExit(f"unknown side {side!r}")


def measure(side: str, *, folder: Path, overrides: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
    """Start one side."""
    places = [f"paths.data={folder / side}", f"paths.mlruns={folder / f'{side}-mlruns'}"]
    command = (
        [sys.executable, "-m", "flows.pipeline", *overrides, *places, f"hydra.run.dir={folder / 'outputs'}"]
        if side == "flows"
        else [sys.executable, "-m", "benchmarks.pipeline", "--worker", "plain", *overrides, *places]
    )
    log = (folder / f"{side}.log").open("w")
    return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, text=True, cwd=ROOT.parent, env=environment)


def hash_models(folder: Path) -> dict[str, str]:
    """The weights that a side wrote, by path."""
    from visloop.ids import hash_file

    return {
        path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("model.safetensors") if ".stage" not in path.parts
    }


def read_first_stage(log: str) -> float | None:
    """Seconds since the epoch at which the first stage ended, minus what it took."""
    import re
    from datetime import datetime

    match = re.search(r"\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d),(\d{3})\]\[flows._stage\]\[INFO\] - stage .+? ([\d.]+) s\)", log)
    if match is None:
        return None
    return datetime.strptime(match.group(1), "%Y-%m-%d %H:%M:%S").timestamp() + int(match.group(2)) / 1000 - float(match.group(3))


def compare_once(overrides: list[str]) -> dict[str, Any]:
    """Both sides at the same time; wall seconds after the start, the start itself, CPU seconds, and whether the models are equal."""
    threads = max(1, (os.cpu_count() or 1) // 2)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.time()
        processes = {side: measure(side, folder=folder, overrides=overrides, environment=environment) for side in ("flows", "plain")}
        figures: dict[str, Any] = {}
        while processes:
            pid, status, usage = os.wait4(-1, 0)
            ended = time.time()
            side = next((name for name, process in processes.items() if process.pid == pid), None)
            if side is None:
                continue
            processes.pop(side).returncode = status
            text = (folder / f"{side}.log").read_text()
            if status:
                raise SystemExit(f"{side} failed:\n{text[-3000:]}")
            first = read_first_stage(text) if side == "flows" else float(text.split("STARTED ")[1].split()[0])
            begun = started if first is None else first
            figures[side] = {
                "start": round(begun - started, 1),
                "seconds": round(ended - begun, 1),
                "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            }
        figures["same_models"] = hash_models(folder / "flows") == hash_models(folder / "plain") != {}
        report = json.loads((folder / "flows" / "reports" / "insight_v.json").read_text())
        figures["stages"] = len(report["seconds"])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=f"default: {' '.join(SIZES)}")
    options = parser.parse_args()
    if options.worker:
        run_worker(options.worker, options.overrides)
        return
    overrides = options.overrides or list(SIZES)
    runs = [compare_once(overrides) for _ in range(options.repeats)]
    for run in runs:
        print(run, file=sys.stderr)
    result = {
        "benchmark": "pipeline",
        "baseline": "the same stages' work in a plain loop: no Prefect, manifests, gates, MLflow or DVC",
        "overrides": overrides,
        "machine": f"{platform.machine()} {platform.system()}, Python {platform.python_version()}, {os.cpu_count()} cores",
        "runs": runs,
        "ratio_seconds_after_start": round(statistics.median(run["flows"]["seconds"] / run["plain"]["seconds"] for run in runs), 3),
        "ratio_cpu_seconds": round(statistics.median(run["flows"]["cpu_seconds"] / run["plain"]["cpu_seconds"] for run in runs), 3),
        "seconds_of_start": round(statistics.median(run["flows"]["start"] for run in runs), 1),
        "same_models": all(run["same_models"] for run in runs),
        "aims": {"ratio_seconds_after_start": "<= 1.10"},
        "peak_mib_of_children": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
    }
    path = ROOT / "results" / "pipeline.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
