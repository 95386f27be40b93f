"""Every command in the README and the pages: it composes, its target or sub-command exists, what it names is there; a few are run.

A block of commands is a fence without a language whose first line starts with a program we know; ``<!-- executed by a test -->`` before
it has it run, line by line, in a small project.
"""

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from flows._entry import compose_config
from flows._versioning import record_outs
from tests.fixtures.servers import S3_KEYS, serve_s3
from tests.fixtures.small_project import make_project
from visloop.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(page for page in (ROOT / "docs").glob("*.md") if page.name != "log.md")])
"""The log of experiments tells what was typed then; the others tell what to type now."""
PROGRAMS = ("make", "python", "dvc", "git", "mlflow", "prefect", "pip", "source", "du", "cd", "cp", "curl", "export", "kill", "ls")
FLAGS = {"--help", "--multirun", "-m", "--cfg", "job"}
MARK = "<!-- executed by a test"


@dataclass(frozen=True)
class Block:
    """A fence: where it begins, its language, its lines, and what stands in the line before it."""

    page: str
    line: int
    language: str
    lines: tuple[str, ...]
    mark: str

    @property
    def is_commands(self) -> bool:
        return self.language in ("", "sh", "bash") and bool(self.lines) and is_command(self.lines[0])


def read_words(line: str) -> list[str]:
    """The words of a shell line, without its comment; nothing for a line that no shell would take."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:
        return []


def is_command(line: str) -> bool:
    words = [word for word in read_words(line) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    return bool(words) and words[0] in PROGRAMS


@cache
def read_blocks() -> tuple[Block, ...]:
    blocks: list[Block] = []
    for page in PAGES:
        lines = page.read_text(encoding="utf-8").splitlines()
        start = None
        for number, line in enumerate(lines):
            if line.startswith("```") and start is None:
                start = number
            elif line.startswith("```") and start is not None:
                text = "\n".join(lines[start + 1 : number]).replace("\\\n", " ")
                body = tuple(entry for entry in text.splitlines() if entry.strip() and not entry.lstrip().startswith("#"))
                blocks.append(Block(page.name, start + 1, lines[start][3:].strip(), body, lines[start - 1].strip()))
                start = None
    return tuple(blocks)


@cache
def read_commands() -> tuple[tuple[str, tuple[str, ...]], ...]:
    """(where it stands, words) of every command: lines of command blocks, and code in the text that is one."""
    found = [(f"{block.page}:{block.line}", line) for block in read_blocks() if block.is_commands for line in block.lines]
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        spans = re.findall(r"`((?:make|python -m|dvc|prefect|mlflow) [^`]+)`", text)
        found += [(page.name, " ".join(span.split())) for span in spans]
    return tuple((where, tuple(read_words(line))) for where, line in found if read_words(line))


def select(program: str) -> list[tuple[str, tuple[str, ...]]]:
    """The commands of one program, without repetitions, without the variables before it."""
    chosen: dict[tuple[str, ...], str] = {}
    for where, words in read_commands():
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words[:1] == (program,):
            chosen.setdefault(words, where)
    return [(where, words) for words, where in chosen.items()]


def test_every_line_of_a_command_block_is_a_command() -> None:
    blocks = [block for block in read_blocks() if block.is_commands]
    assert len(blocks) >= 25 and len(PAGES) >= 10
    for block in blocks:
        wrong = [line for line in block.lines if not is_command(line)]
        assert wrong == [], f"{block.page}:{block.line}: not a command that this test can check: {wrong}"
    marked = [block for block in read_blocks() if block.mark.startswith(MARK)]
    assert len(marked) == sum(page.read_text().count(MARK) for page in PAGES) and all(block.is_commands for block in marked)


def list_jobs(overrides: list[str]) -> Iterator[list[str]]:
    """The overrides of every job of a sweep; of one job where nothing is swept."""
    single = [re.sub(r"=interval\(([^,]+),.*\)$", r"=\1", override) for override in overrides]  # only Optuna draws from intervals
    parsed = OverridesParser.create().parse_overrides(single)
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        yield from (list(job) for job in batch)


def test_every_python_command_is_a_module_and_its_overrides_compose() -> None:
    commands = select("python")
    assert len(commands) >= 30
    jobs: dict[tuple[str, ...], str] = {}
    for where, words in commands:
        assert words[1] == "-m" and importlib.util.find_spec(words[2]) is not None, f"{where}: no module {words[2]}"
        spec = importlib.util.find_spec(f"{words[2]}.__main__") if words[2].count(".") and _is_package(words[2]) else None
        source = Path((spec or importlib.util.find_spec(words[2])).origin).read_text()  # type: ignore[union-attr,arg-type]
        arguments, overrides = list(words[3:]), []
        if words[2] == "apps.models":  # its parser knows
            module = importlib.import_module(words[2])
            plain = [word.lower() if word.isupper() else word for word in arguments if "=" not in word]
            try:
                module._make_parser().parse_args(plain)
            except SystemExit:
                pytest.fail(f"{where}: {words[2]} does not take {' '.join(plain)}")
            continue
        for position, word in enumerate(arguments):
            if word in FLAGS:
                assert "run_flow(" in source, f"{where}: {word} is for flows"
            elif word.startswith("-"):
                assert f'"{word}"' in source, f"{where}: {words[2]} has no option {word}"
            elif "=" in word:
                overrides.append(word)
            else:
                known = (
                    re.match(r"\d", word)
                    or (position > 0 and arguments[position - 1].startswith("--"))
                    or f'"{word}"' in source
                    or word.isupper()
                )
                assert known, f"{where}: {words[2]} takes no {word}"
        for job in list_jobs(overrides):
            jobs.setdefault(tuple(job), f"{where}: {shlex.join(words)}")
    added = {"my_vlm": "served_vlm", "shelves": "nlvr"}  # files that pages tell to write; their tests write them
    wrong = []
    for job, where in jobs.items():
        overrides = [re.sub(r"=(my_vlm|shelves)$", lambda found: f"={added[found[1]]}", word) for word in job]
        try:
            compose_config([word for word in overrides if "{hydra" not in word.replace("\\", "")])  # those are resolved in a job only
        except ConfigError as error:
            wrong.append(f"{where}: {error}")
    assert wrong == []


def _is_package(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.submodule_search_locations is not None


def test_every_make_command_is_a_target() -> None:
    commands = select("make")
    assert len(commands) >= 8
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for where, words in commands:
        assert words[1] in targets, f"{where}: make has no target {words[1]}"
        done = subprocess.run(["make", "-n", "--no-print-directory", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, f"{where}: {shlex.join(words)}: {done.stderr}"
        variables = re.findall(r"\b([A-Z_]+)=", " ".join(words[2:]))
        unknown = [name for name in variables if f"$({name})" not in (ROOT / "Makefile").read_text() and f",$({name})" not in words]
        assert unknown == [], f"{where}: the Makefile reads no {', '.join(unknown)}"


def test_every_dvc_command_parses() -> None:
    from dvc.cli.parser import get_main_parser

    commands = select("dvc")
    assert len(commands) >= 8
    for where, words in commands:
        try:
            get_main_parser().parse_args(list(words[1:]))
        except BaseException as error:  # DVC's parser raises an exception of its own, argparse exits
            raise AssertionError(f"{where}: {shlex.join(words)}: {error}") from error


@pytest.mark.parametrize("program", ["prefect", "mlflow"])
def test_every_sub_command_of_the_servers_exists(program: str) -> None:
    """Asked of the programs themselves: their help for the longest run of sub-commands."""
    paths = {tuple(_list_subcommands(words)) for _, words in select(program)} - {()}
    for path in paths:
        command = [str(Path(sys.executable).parent / program), *path, "--help"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "No such command" not in done.stdout + done.stderr, f"{program} {' '.join(path)}: {done.stderr}"


def _list_subcommands(words: tuple[str, ...]) -> list[str]:
    path: list[str] = []
    for word in words[1:]:
        if not re.fullmatch(r"[a-z][a-z-]*", word):
            break
        path.append(word)
    return path


def test_other_programs_exist_with_what_they_are_given() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for where, words in select("pip"):
        for name in re.findall(r"\.\[([\w,]+)\]", " ".join(words)):
            assert set(name.split(",")) <= set(extras), f"{where}: no extra {name}"
    known = set(subprocess.run(["git", "--list-cmds=main"], capture_output=True, text=True, check=True).stdout.split())
    assert {words[1] for _, words in select("git")} <= known


def test_files_and_links_that_are_named_exist() -> None:
    missing = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in link and not (page.parent / link).exists():
                missing.append(f"{page.name}: link {link}")
        for path in re.findall(r"`((?:conf|src|flows|apps|tests|docs|benchmarks)/[\w./-]+)`", text):
            if path not in ("conf/model/my_vlm.yaml", "conf/data/shelves.yaml") and not (ROOT / path).exists():
                missing.append(f"{page.name}: file {path}")
    assert missing == []


@pytest.mark.slow
def test_marked_commands_do_what_the_pages_say(tmp_path: Path) -> None:
    """In a small project of the real layout, its generation recorded, an S3 server beside it."""
    root = make_project(tmp_path / "project")
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (root / name).write_bytes((ROOT / name).read_bytes())
        os.utime(root / name, (0, 0))  # older than the environment: make has nothing to install
    record_outs(["generation"], root=root)
    blocks = [block for block in read_blocks() if block.mark.startswith(MARK)]
    assert len(blocks) >= 4
    programs = Path(sys.executable).parent
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "PREFECT_", "HYDRA_"))}
    environment |= {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "VENV": str(programs.parent),
        "PYTHONPATH": f"{ROOT}:{ROOT / 'src'}",
        "PREFECT_HOME": str(root / ".prefect"),
    }
    (root / "mlruns").mkdir()
    with ExitStack() as stack:
        environment |= {**S3_KEYS, "AWS_ENDPOINT_URL": stack.enter_context(serve_s3("our-bucket")).endpoint}
        for block in sorted(blocks, key=lambda entry: (entry.page, entry.line)):
            for line in block.lines:
                done = subprocess.run(["bash", "-c", line], cwd=root, env=environment, capture_output=True, text=True, timeout=300)
                assert done.returncode == 0, f"{block.page}:{block.line}: {line}\n{done.stdout}{done.stderr}"
    assert (root / "data" / "raw" / "records.jsonl").is_file() and list((root / "backups").glob("replaced-*/data"))
