"""Load: people at the page, flow runs at the scheduler, processes that log to MLflow at once; each against the same done alone.

    python -m benchmarks.load [--parts page scheduler mlflow] [--answers 24] [--runs 20] [--rows 2000]

``page``: ``python -m apps.page`` asked by 1, 2, 4, 8 people at once, each the next question as soon as the answer is there, no question
twice. Baseline: one person. ``scheduler``: ``generation/embedded`` over finished stages, so that a run is start-up and bookkeeping, handed
to the server all at once, with one and with two runs at a time. Baseline: ``python -m flows.generation``, one process after the other, by
the same server. ``delay`` is from the time at which a run was due to ``Running``; runs that wait for others wait long by design, so the
delay of the runs that found a free place (``delay_first``) is given apart. ``mlflow``: 1, 2, 4 processes that log metrics in batches of
ten into one SQLite database; every row is looked for afterwards. Results go to ``benchmarks/results/load.json``.
"""

import argparse
import itertools
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

import flows  # noqa: F401  # its environment comes before Prefect and MLflow
from tests.fixtures.installations import inherit_environment
from tests.fixtures.servers import find_port

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "load.json"
PEOPLE, LIMITS, PROCESSES = (1, 2, 4, 8), (1, 2), (1, 2, 4)
SMALL = ("experiment=smoke", "assistant.tasks.kinds=[vqa]", "assistant.tasks.stream=80", "assistant.tasks.only=0")
SHORT = (
    *("experiment=smoke", "data.train=8", "data.validation=2", "data.test=2", "pool.size=2"),
    *("generate.samples_per_question=1", "generate.min_steps=1", "generate.max_steps=1"),
)
BATCH = 10


def set_places(folder: Path) -> dict[str, str]:
    """The environment of an installation in ``folder``."""
    own = {"PREFECT_HOME": str(folder / "prefect"), "VISLOOP_WORKDIR": str(folder), "PREFECT_WORKER_QUERY_SECONDS": "2"}
    return {**inherit_environment(), **own, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")])}


def call(module: str, *arguments: str, folder: Path) -> None:
    """Run a module to its end in ``folder``."""
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, cwd=folder, env=set_places(folder), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def describe(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"p50": round(statistics.median(ordered), 3), "p95": round(ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], 3)}


@contextmanager
def serve_page(folder: Path) -> Iterator[str]:
    """The page over a small project: tasks and seed pools, the shipped tools."""
    call("flows.reflect_learn", *SMALL, folder=folder)
    port = find_port()
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "apps.page", "--port", str(port), *SMALL]
    with (folder / "page.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=set_places(folder), stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            try:
                httpx.get(f"{address}/health").raise_for_status()
                break
            except httpx.HTTPError:
                if process.poll() is not None:
                    raise SystemExit((folder / "page.log").read_text()[-3000:]) from None
                time.sleep(0.2)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def measure_page(folder: Path, *, answers: int) -> dict[str, Any]:
    """Every answer's seconds from the question to the page that shows it."""
    with serve_page(folder) as address:
        samples = re.findall(r"sample=([\w-]+)", httpx.get(address).text)
        tasks = [json.loads(line) for line in (folder / "data/assistant/tasks/workshop/stream.jsonl").read_text().splitlines()]
        known = {task["id"]: task["instruction"] for task in tasks}
        pictures = [key for key in dict.fromkeys(samples) if key in known]
        # Nothing is asked twice: every instruction about every picture that the page offers.
        questions = itertools.product(known.values(), pictures)

        def ask(question: tuple[str, str]) -> tuple[float, bool]:
            text, sample = question
            started = time.perf_counter()
            with httpx.Client(follow_redirects=True, timeout=300) as client:
                reply = client.post(f"{address}/ask", data={"text": text, "kind": "vqa", "sample": sample})
            return time.perf_counter() - started, reply.status_code == 200 and "run=" in str(reply.url)

        for question in itertools.islice(questions, len(pictures)):
            ask(question)
        rows = []
        for people in PEOPLE:
            started = time.perf_counter()
            with ThreadPoolExecutor(people) as pool:
                done = list(pool.map(ask, itertools.islice(questions, answers)))
            seconds = time.perf_counter() - started
            row = {"people": people, "answers_per_second": round(answers / seconds, 2), **describe([item for item, _ in done])}
            rows.append({**row, "errors": sum(not well for _, well in done)})
            print(json.dumps(rows[-1]), flush=True)
    for row in rows:
        row["against_one"] = round(row["answers_per_second"] / rows[0]["answers_per_second"], 2)
    return {"answers": answers, "rows": rows}


def measure_scheduler(folder: Path, *, runs: int) -> dict[str, Any]:
    """Runs per minute by the worker, and by hand."""
    port = find_port()
    rows: list[dict[str, Any]] = []
    call("flows.operations", "server", "--port", str(port), "--ui-port", str(find_port()), folder=folder)
    try:
        call("flows.generation", *SHORT, folder=folder)
        started = time.perf_counter()
        for _ in range(max(3, runs // 4)):
            call("flows.generation", *SHORT, folder=folder)
        direct = 60 * max(3, runs // 4) / (time.perf_counter() - started)
        rows.append({"limit": "by hand", "runs": max(3, runs // 4), "runs_per_minute": round(direct, 2)})
        print(json.dumps(rows[-1]), flush=True)
        for limit in LIMITS:
            call("flows.operations", "deploy", "--slots", str(limit), folder=folder)
            call("flows.operations", "worker", "--limit", str(limit), folder=folder)
            rows.append({"limit": limit, **_schedule(port, runs=runs, limit=limit)})
            rows[-1]["against_by_hand"] = round(rows[-1]["runs_per_minute"] / direct, 2)
            print(json.dumps(rows[-1]), flush=True)
            _stop_worker(folder)
    finally:
        call("flows.operations", "stop", folder=folder)
    return {"rows": rows}


def _stop_worker(folder: Path) -> None:
    done = [sys.executable, "-c", "import flows; from flows.operations.processes import stop_service; stop_service('worker')"]
    subprocess.run(done, cwd=folder, env=set_places(folder), check=True)


def _schedule(port: int, *, runs: int, limit: int) -> dict[str, Any]:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    with SyncPrefectClient(f"http://127.0.0.1:{port}/api") as client:
        deployment = client.read_deployment_by_name("generation/embedded")
        started = time.time()
        made = [client.create_flow_run_from_deployment(deployment.id, parameters={"overrides": list(SHORT)}).id for _ in range(runs)]
        while True:
            found = client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=made)))
            if all(run.state is not None and run.state.is_final() for run in found):
                break
            time.sleep(0.5)
    ends = [run.end_time.timestamp() for run in found if run.end_time]
    delays = sorted(
        (run.start_time - run.expected_start_time).total_seconds() for run in found if run.start_time and run.expected_start_time
    )
    return {
        "runs": runs,
        "runs_per_minute": round(60 * runs / (max(ends) - started), 2),
        "seconds_per_run": describe([run.total_run_time.total_seconds() for run in found]),
        "delay": describe(delays),
        "delay_first": round(statistics.mean(delays[:limit]), 2),
        "errors": sum(run.state is None or not run.state.is_completed() for run in found),
    }


def log_rows(folder: Path, *, name: str, rows: int) -> None:
    """One process of ``mlflow``: metrics ``m`` at steps 0..rows-1 of a run of its own."""
    from mlflow.entities import Metric

    from flows._database import connect, get_experiment

    client = connect(folder / "mlruns")
    run = client.create_run(get_experiment(client, "load", mlruns=folder / "mlruns"), run_name=name).info.run_id
    print("ready", flush=True)
    sys.stdin.readline()
    started = time.time()
    for start in range(0, rows, BATCH):
        client.log_batch(run, metrics=[Metric("m", float(step), 0, step) for step in range(start, min(start + BATCH, rows))])
    client.set_terminated(run)
    print(json.dumps([started, time.time(), run]), flush=True)


def measure_mlflow(folder: Path, *, rows: int) -> dict[str, Any]:
    """Rows per second of all processes together; ``lost``: rows that are not in the database afterwards."""
    results = []
    for processes in PROCESSES:
        share = rows // processes
        command = [sys.executable, "-m", "benchmarks.load", "--log-rows", str(share), "--folder", str(folder)]
        environment = set_places(folder)
        family = [
            subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(processes)
        ]
        for process in family:
            assert process.stdout is not None and process.stdout.readline().strip() == "ready"
        for process in family:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [json.loads(process.communicate()[0]) for process in family]
        from flows._database import connect

        client = connect(folder / "mlruns")
        kept = sum(len(client.get_metric_history(run, "m")) for _, _, run in said)
        seconds = max(end for _, end, _ in said) - min(start for start, _, _ in said)
        results.append({"processes": processes, "rows_per_second": round(share * processes / seconds), "lost": share * processes - kept})
        print(json.dumps(results[-1]), flush=True)
    for row in results:
        row["against_one"] = round(row["rows_per_second"] / results[0]["rows_per_second"], 2)
    return {"rows": results, "rows_per_batch": BATCH}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--parts", nargs="+", choices=("page", "scheduler", "mlflow"), default=["page", "scheduler", "mlflow"])
    parser.add_argument("--answers", type=int, default=24, help="per number of people")
    parser.add_argument("--runs", type=int, default=20, help="flow runs per limit")
    parser.add_argument("--rows", type=int, default=2000, help="metrics, over all processes")
    parser.add_argument("--log-rows", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.log_rows:
        log_rows(chosen.folder, name="load", rows=chosen.log_rows)
        return
    found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    found |= {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    measures = {
        "page": lambda folder: measure_page(folder, answers=chosen.answers),
        "scheduler": lambda folder: measure_scheduler(folder, runs=chosen.runs),
        "mlflow": lambda folder: measure_mlflow(folder, rows=chosen.rows),
    }
    for part in chosen.parts:
        with tempfile.TemporaryDirectory(prefix="visloop-load-", ignore_cleanup_errors=True) as name:
            load = os.getloadavg()[0]
            found[part] = {**measures[part](Path(name)), "load_average_before": round(load, 1)}
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
