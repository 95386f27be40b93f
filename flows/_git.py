"""Calls of git. Nothing of the project depends on it: where there is none, or no repository, what would come from it is left out."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

_SECONDS = 60


def run_git(root: Path, *arguments: str, extra: Mapping[str, str] | None = None) -> str:
    """What ``git`` printed in ``root``, without the last line's end.

    Args:
        extra: further variables of its environment.

    Raises:
        subprocess.SubprocessError: it failed, or took more than a minute.
        OSError: there is no git on this machine.
    """
    environment = {**os.environ, **(extra or {})}
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=_SECONDS, check=True)
    return done.stdout.strip()


def ask_git(root: Path, *arguments: str) -> str | None:
    """As ``run_git``; None where it failed, which is an answer too (no such tag, no repository, no git)."""
    try:
        return run_git(root, *arguments)
    except (OSError, subprocess.SubprocessError):
        return None
