"""The frame of the project: pins without addresses, a Makefile that explains itself, a CI script that runs it."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


def _normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_constraints_are_plain_pins() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    wrong = [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.!]*", line)]
    assert wrong == [], "no addresses, no files, no local labels such as +cpu"
    names = [_normalise(line.split("==")[0]) for line in lines]
    assert len(names) == len(set(names))


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines if not line.startswith(project["name"])]
    pinned = {_normalise(line.split("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    asked = [*project["dependencies"], *extras]
    assert {_normalise(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in asked} <= pinned  # type: ignore[index]


@pytest.mark.parametrize("name", ["Makefile", "constraints.txt", "pyproject.toml", ".pre-commit-config.yaml", ".ci/run", "conf", "flows"])
def test_no_address_of_a_machine_is_in_the_frame(name: str) -> None:
    path = ROOT / name
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.suffix in (".py", ".yaml")]
    assert files
    for file in files:
        addresses = re.findall(r"https?://([^/\s:'\"]+)", file.read_text())
        assert set(addresses) <= {"127.0.0.1", "localhost", "{HOST}"}, file  # HOST: flows/_servers.py, also an address of this machine
        assert not re.search(r"/(home|root|Users)/", file.read_text()), file


def test_make_alone_lists_the_targets() -> None:
    done = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = set(re.findall(r"make ([a-z-]+) ", done.stdout))
    assert listed >= {"help", "demo", "test", "test-fast", "lint", "base", "bench", "ui", "clean", "distclean"}
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert listed == targets


def test_make_names_the_python_it_needs(tmp_path: Path) -> None:
    """With no Python in reach, the message says which one is wanted, before anything is installed."""
    for tool in ("make", "bash", "grep", "awk", "touch"):
        found = subprocess.run(["which", tool], capture_output=True, text=True, check=True).stdout.strip()
        (tmp_path / tool).symlink_to(found)
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path)}
    command = ["make", "--no-print-directory", "install", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "Python 3.11 (or 3.12) is needed" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_ci_runs_make_test() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("make --no-print-directory test")
    plan = subprocess.run(["make", "-n", "test"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for tool in ("ruff check", "ruff format --check", "lint-imports", "mypy", "codespell", "pytest"):
        assert tool in plan
    assert plan.index("codespell") < plan.index("pytest"), "pytest's closing line is the last"


def test_hooks_use_the_environment_of_the_project() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    assert {hook["language"] for hook in hooks["repos"][0]["hooks"]} == {"system"}
