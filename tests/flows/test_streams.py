"""A flow goes on when the worker that reads its output is gone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TALK = """
import logging, sys
from rich.console import Console
from rich.logging import RichHandler
opened = Console(stderr=True)
logging.getLogger().addHandler(RichHandler(console=Console(file=sys.stderr)))
if sys.argv[1] == "steady":
    from flows._streams import keep_streams
    keep_streams()
sys.stdin.readline()
for _ in range(3):
    opened.print("table")
    Console().print("table")
    logging.getLogger().warning("line")
    print("x" * 10000, flush=True)
open(sys.argv[2], "w").write("done")
"""


@pytest.mark.parametrize("mode", ["steady", "plain"])
def test_output_that_nobody_reads_ends_no_flow(tmp_path: Path, mode: str) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "PREFECT_HOME": str(tmp_path)}
    command = [sys.executable, "-c", TALK, mode, str(tmp_path / "end")]
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path
    )
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stderr.close()
    process.stdin.write(b"go\n")
    process.stdin.close()
    process.wait(timeout=120)
    assert (tmp_path / "end").is_file() == (mode == "steady"), "without it the process ends, which is what is mended"
