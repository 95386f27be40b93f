"""Freed memory stays with the process: what a pass has touched is not paid for again by the next one."""

import os
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import numpy as np
from visloop.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit(77)
def work():
    blocks = [np.ones(2**20, dtype=np.float64) for _ in range(8)]
for _ in range(3):
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(mode: str, **variables: str) -> int:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True, text=True, env=kept | variables, check=False)
    if done.returncode == 77:
        pytest.skip("not the C library that this is for, or its settings are the user's")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_that_is_freed_is_there_for_the_next_pass() -> None:
    assert count_faults("keep") < 100
    assert count_faults("leave") > 10_000


def test_what_the_user_has_set_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    from visloop.memory import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert keep_freed_memory() is False
