"""A project of its own in a temporary folder, with servers and a worker, and what its processes and its Prefect server say."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from flows._environment import DEFAULTS
from tests.fixtures.installations import inherit_environment, list_processes
from tests.fixtures.servers import find_port

ROOT = Path(__file__).resolve().parents[2]
RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
OPEN_STATES = ("SCHEDULED", "PENDING", "RUNNING", "CANCELLING", "PAUSED")


class ChaosError(Exception):
    """A command of the installation failed, or the run did not go on."""


@dataclass(frozen=True)
class Installation:
    """One project folder with ports of its own. ``overrides`` are those of every flow run."""

    folder: Path
    port: int
    ui_port: int
    overrides: tuple[str, ...]

    @classmethod
    def make(cls, folder: Path, overrides: Sequence[str]) -> "Installation":
        """Copy the tree (what git tracks and what it would) into ``folder``, as a repository of its own."""
        listed = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
            if name and (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        # The schedules would start other work on the same data in the midst of it.
        prefect = folder / "prefect.yaml"
        prefect.write_text(re.sub(r"(timezone: UTC)}", r"\1, active: false}", prefect.read_text()))
        git = ("git", "-C", str(folder), "-c", "user.name=chaos", "-c", "user.email=chaos@example.org")
        for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "project")):
            subprocess.run([*git, *command], check=True)
        return cls(folder, find_port(), find_port(), tuple(overrides))

    @property
    def home(self) -> Path:
        return self.folder / ".prefect"

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in inherit_environment().items() if name not in DEFAULTS}
        path = f"{self.folder}{os.pathsep}{self.folder / 'src'}"
        return {**kept, "PYTHONPATH": path, "PREFECT_HOME": str(self.home), "PREFECT_WORKER_QUERY_SECONDS": "1", "COLUMNS": "140"}

    def operate(self, *arguments: str) -> str:
        """What `make server`, `make worker`, ... call; what it prints."""
        return self._run([sys.executable, "-m", "flows.operations", *arguments])

    def start_servers(self) -> None:
        self.operate("server", "--port", str(self.port), "--ui-port", str(self.ui_port))

    def schedule(self, flow: str) -> None:
        """As a person types it: `prefect deployment run FLOW/embedded -p overrides=[...]`."""
        words = ", ".join(f'"{override}"' for override in self.overrides)
        self._run([sys.executable, "-m", "prefect", "deployment", "run", f"{flow}/embedded", "-p", f"overrides=[{words}]"])

    def _run(self, command: Sequence[str]) -> str:
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode != 0:
            raise ChaosError(f"{' '.join(command)} in {self.folder}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout

    def read_runs(self, flow: str = "") -> list[dict[str, Any]]:
        """Flow runs by Prefect's server, newest first; without ``flow`` those of all flows.

        Raises:
            httpx.HTTPError: the server does not answer.
        """
        wanted = {"limit": 200, "sort": "EXPECTED_START_TIME_DESC"} | ({"flows": {"name": {"any_": [flow]}}} if flow else {})
        # Two more tries: a server that was just started is busy with what waited for it.
        transport = httpx.HTTPTransport(retries=2)
        with httpx.Client(transport=transport, timeout=60) as client:
            reply = client.post(f"http://127.0.0.1:{self.port}/api/flow_runs/filter", json=wanted)
        reply.raise_for_status()
        return list(reply.json())

    def find_state(self, flow: str) -> str:
        """``done``, ``open`` (scheduled or at work) or ``lost`` by the deployment's own runs (a schedule's coming ones apart)."""
        runs = [run for run in self.read_runs(flow) if run["deployment_id"] and not run["auto_scheduled"]]
        if any(run["state_type"] == "COMPLETED" for run in runs):
            return "done"
        return "open" if any(run["state_type"] in OPEN_STATES for run in runs) else "lost"

    def find_victims(self, kind: str) -> list[psutil.Process]:
        """The living processes of a service (``server``, ``mlflow``, ``worker``) or of flow runs (``flow``), children included."""
        flows, rest = [], []
        for process in list_processes(self.home):
            try:
                (flows if RUN_VARIABLE in process.environ() else rest).append(process)
            except psutil.Error:
                continue
        if kind == "flow":
            return flows
        try:
            leader = int(json.loads((self.home / "services" / f"{kind}.json").read_text())["process"]["pid"])
        except FileNotFoundError:
            return []
        return [process for process in rest if _session(process.pid) == leader]

    def find_stage(self) -> str:
        """The stage at work: the newest folder of work in progress below ``data``; empty where there is none."""
        touched = self._list_touched(".stage/owner")
        return max(touched)[1].parents[1].relative_to(self.folder / "data").as_posix() if touched else ""

    def find_last_touch(self) -> float:
        """When a stage was last taken up or finished (Unix time); 0 before the first."""
        return max([*self._list_touched(".stage/owner"), *self._list_touched("manifest.json")], default=(0.0, self.folder))[0]

    def _list_touched(self, pattern: str) -> list[tuple[float, Path]]:
        """Files below ``data`` with the time of their last change; a flow moves folders while they are listed, so it is tried again."""
        while True:
            try:
                return [(path.stat().st_mtime, path) for path in (self.folder / "data").rglob(pattern)]
            except FileNotFoundError:
                continue


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to all of them, and wait until they are gone."""
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=10)


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1
