"""The whole embedded run, started through the real services and killed with -9 again and again, against a run that was not.

    python -m tests.chaos_run [--kills 20] [--seed 0] [--out FILE]      (`make chaos` runs it)

In a project folder of its own: `make server`, `make deploy`, `make worker`, then `pipeline/embedded` and `clova/embedded` as deployment
runs. Flow runs, worker, Prefect's server and MLflow's are killed at random moments; after each kill what died is started again by the
commands that a person would use, and a run that was lost is scheduled again. A run that ends before all kills are spent is compared, and
the rest goes into a new project folder. Exit code 1 where anything differs or is left behind.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.comparison import list_differences, list_leftovers, read_history, read_metrics, read_outputs
from tests.chaos.installation import OPEN_STATES, ROOT, ChaosError, Installation, kill
from tests.fixtures.installations import list_processes

FLOWS = ("pipeline", "clova")
SIZE = (
    "experiment=smoke",
    "assess=verifier",
    "model@assess.judge=embedded_base",
    *("data.test=8", "assistant.tasks.kinds=[vqa,tagging]", "assistant.tasks.ablations=[]"),
    *(f"assistant.tools.tuning.{part}=4" for part in ("instances", "validation", "negatives", "steps")),
)
VICTIMS = ("flow", "server", "flow", "worker", "flow", "worker+flow", "flow", "server", "flow", "mlflow")
"""Ten kills; their order is drawn. ``worker+flow`` at once: nobody is left who could report it."""
MOMENTS = (1.0, 22.0)
"""Seconds between the first stage after a restart and the kill: before it there are only imports, and any machine is differently long at
them."""
PATIENCE = 300.0


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it. ``moment``: seconds since the pass began; ``recovered_seconds``: until all was at work again."""

    number: int
    run: int
    moment: float
    victim: str
    processes: int
    stage: str
    restarted: tuple[str, ...]
    recovered_seconds: float


@dataclass
class Outcome:
    """What one pass ended with: nothing in ``problems`` where it equals the reference."""

    kills: int
    seconds: float
    stages: int = 0
    problems: list[str] = field(default_factory=list)
    mlflow: dict[str, int] = field(default_factory=dict)
    prefect: dict[str, int] = field(default_factory=dict)


class Run:
    """One pass through the whole run in one installation."""

    def __init__(self, place: Installation, console: Console) -> None:
        self.place, self.console = place, console
        self.started = time.monotonic()
        self.lost = time.time()
        """When the flow at work was last lost."""

    def open(self) -> None:
        """Servers, deployments, worker, and both flows as deployment runs: the second waits for the first."""
        self.place.start_servers()
        self.place.operate("deploy")
        self.place.operate("worker")
        self.resume()

    def resume(self) -> list[str]:
        """Schedule the first flow that is neither done nor open, after its runs that a crash left open are closed; what was done."""
        done = []
        for flow in FLOWS:
            state = self.place.find_state(flow)
            if state == "lost":
                self.place.schedule(flow)
                return [*done, f"prefect deployment run {flow}/embedded"]
            if state == "open":
                return done
        return done

    @property
    def is_done(self) -> bool:
        return all(self.place.find_state(flow) == "done" for flow in FLOWS)

    def is_at_work(self) -> bool:
        """Whether all services live and a flow run is marked as running by a process that lives."""
        if not all(self.place.find_victims(kind) for kind in ("server", "mlflow", "worker", "flow")):
            return False
        return any(run["state_type"] == "RUNNING" and run["deployment_id"] for run in self.place.read_runs())

    def wait_for_stage(self) -> None:
        """Until the flow at work has touched a stage, or has ended; at most a minute, because what is skipped is not touched."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not self.is_done and self.place.find_last_touch() < self.lost:
            time.sleep(0.2)

    def wait(self, *, tend: bool = True) -> list[str]:
        """Until a run is at work or everything is done; runs that were lost are scheduled again meanwhile. What was done."""
        deadline, done, idle = time.monotonic() + PATIENCE, [], 0
        while not self.is_at_work():
            if self.is_done:
                break
            if time.monotonic() > deadline:
                states = [(run["name"], run["state_name"]) for run in self.place.read_runs() if run["state_type"] in OPEN_STATES]
                raise ChaosError(f"nothing is at work after {PATIENCE:.0f} s; open runs: {states}")
            if tend:
                done += self.resume()
                idle = 0 if self.place.find_victims("flow") else idle + 1
                if idle == 15:  # marked as running by nobody
                    self.place.operate("status")
                    done.append("make status")
            time.sleep(1.0)
        return done

    def finish(self) -> None:
        """Wait for the end without another kill."""
        deadline = time.monotonic() + 2 * PATIENCE
        while not self.is_done:
            if time.monotonic() > deadline:
                raise ChaosError(f"the run did not end within {2 * PATIENCE:.0f} s; at work: {self.place.find_stage() or 'nothing'}")
            self.wait()
            time.sleep(1.0)

    def strike(self, victim: str, *, number: int, run: int) -> Kill:
        """Kill, start again what died, wait until a run is at work."""
        processes = [process for kind in victim.split("+") for process in self.place.find_victims(kind)]
        moment, stage = time.monotonic() - self.started, self.place.find_stage()
        kill(processes)
        began = time.monotonic()
        if victim not in ("worker", "mlflow"):
            self.lost = time.time()
        restarted = []
        if victim in ("server", "mlflow"):
            self.place.start_servers()
            restarted.append("make server")
        if "worker" in victim:
            self.place.operate("worker")
            restarted.append("make worker")
        restarted += self.wait()
        return Kill(number, run, round(moment, 1), victim, len(processes), stage, tuple(restarted), round(time.monotonic() - began, 1))

    def close(self, *, kills: int) -> Outcome:
        """Stop everything as a person does, and say what the run left."""
        outcome = Outcome(kills, round(time.monotonic() - self.started, 1))
        self.place.operate("status")
        left = [run for run in self.place.read_runs() if run["state_type"] in ("RUNNING", "PENDING", "CANCELLING")]
        outcome.problems += [f"Prefect run {run['name']} is left {run['state_name']}" for run in left]
        for entry in self.place.read_runs():
            if not entry["auto_scheduled"]:
                outcome.prefect[entry["state_name"]] = outcome.prefect.get(entry["state_name"], 0) + 1
        self.place.operate("stop")
        outcome.problems += [f"process {item.pid} is left: {' '.join(item.cmdline()[:6])}" for item in list_processes(self.place.home)]
        data = self.place.folder / "data"
        outcome.problems += [f"left on disk: data/{name}" for name in list_leftovers(data)]
        history = read_history(self.place.folder / "mlruns")
        outcome.mlflow = {status: len(names) for status, names in history.items()}
        outcome.problems += [f"MLflow run {name} is left RUNNING" for name in history.get("RUNNING", [])]
        outcome.stages = len(read_outputs(data))
        return outcome


def main() -> int:
    """Run it; 1 where anything differs from the uninterrupted run or is left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_run", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of moments and victims")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "chaos.json")
    parser.add_argument("--keep", action="store_true", help="keep the project folders")
    chosen = parser.parse_args()
    console = Console(highlight=False)
    home = Path(tempfile.mkdtemp(prefix="visloop-chaos-"))
    places: list[Installation] = []
    try:
        report = run_all(home, places, kills=chosen.kills, seed=chosen.seed, console=console)
    finally:
        for place in places:
            kill(list_processes(place.home))
        if chosen.keep:
            console.print(f"kept: {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    chosen.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report, console)
    console.print(f"report: {chosen.out}", markup=False)
    return 1 if any(entry["problems"] for entry in [report["reference"], *report["runs"]]) else 0


def run_all(home: Path, places: list[Installation], *, kills: int, seed: int, console: Console) -> dict[str, Any]:
    """The reference, then passes until all kills are spent; the report as JSON."""

    def make(name: str) -> Run:
        places.append(Installation.make(home / name, SIZE))
        return Run(places[-1], console)

    reference = make("reference")
    reference.open()
    reference.finish()
    wanted_end = reference.close(kills=0)
    data = reference.place.folder / "data"
    outputs, metrics = read_outputs(data), read_metrics(data)
    console.print(f"uninterrupted: {wanted_end.seconds:.0f} s, {len(outputs)} stages", markup=False)
    draw = random.Random(seed)
    victims: list[str] = []
    while len(victims) < kills:
        victims += draw.sample(VICTIMS, len(VICTIMS))
    done: list[Kill] = []
    outcomes: list[Outcome] = []
    while len(done) < kills:
        number = len(outcomes) + 1
        run = make(f"run{number}")
        run.open()
        before = len(done)
        while len(done) < kills:
            run.wait()
            run.wait_for_stage()
            moment = time.monotonic() + draw.uniform(*MOMENTS)
            while time.monotonic() < moment and not run.is_done:
                time.sleep(0.2)
            if run.is_done:
                break
            if not run.is_at_work():
                continue  # a flow has ended meanwhile, or died late of an earlier kill
            done.append(run.strike(victims[len(done)], number=len(done) + 1, run=number))
            console.print(json.dumps(asdict(done[-1])), markup=False, soft_wrap=True)
        run.finish()
        outcome = run.close(kills=len(done) - before)
        data = run.place.folder / "data"
        outcome.problems += list_differences(outputs, read_outputs(data), where="outputs")
        outcome.problems += list_differences(metrics, read_metrics(data), where="metrics")
        outcomes.append(outcome)
        console.print(json.dumps(asdict(outcome)), markup=False, soft_wrap=True)
    return {
        "seed": seed,
        "settings": list(SIZE),
        "kills": [asdict(entry) for entry in done],
        "reference": asdict(wanted_end),
        "runs": [asdict(entry) for entry in outcomes],
    }


def show(report: dict[str, Any], console: Console) -> None:
    """The kills as a table, and a line per run."""
    table = Table("kill", "run", "at (s)", "victim", "stage at work", "started again by", "went on after (s)", title="Kills")
    for entry in report["kills"]:
        stage, commands = entry["stage"] or "none on disk", ", ".join(entry["restarted"]) or "nothing: it lived on"
        table.add_row(*(str(entry[key]) for key in ("number", "run", "moment", "victim")), stage, commands, str(entry["recovered_seconds"]))
    console.print(table)
    for number, outcome in enumerate([report["reference"], *report["runs"]]):
        name = f"run {number}" if number else "uninterrupted"
        verdict = "equal and clean" if not outcome["problems"] else f"{len(outcome['problems'])} problems: {outcome['problems'][:5]}"
        console.print(f"{name}: {outcome['kills']} kills, {outcome['seconds']:.0f} s, {outcome['stages']} stages: {verdict}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
