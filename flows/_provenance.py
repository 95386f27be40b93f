"""Where a run comes from: its settings as flat text, the git state, the versions of the libraries that decide results."""

import json
import platform
import re
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flows._git import ask_git
from visloop.ids import hash_json

MAX_VALUE, MAX_KEY, MAX_TAG = 6000, 250, 5000
"""MLflow's limits on the length of parameter values, of names, and of tags."""

_VERSIONS = ("torch", "transformers", "trl", "peft", "prefect", "mlflow", "dvc", "great_expectations")


def flatten_config(config: Mapping[str, Any]) -> dict[str, str]:
    """Nested values as dotted keys with text values, e.g. ``dpo.beta: "0.1"``; lists as JSON; cut to MLflow's limits.

    A value that had to be cut ends in the SHA-256 of the whole.
    """
    flat: dict[str, str] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, entry in value.items():
                add(f"{prefix}.{key}" if prefix else str(key), entry)
        elif prefix:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            if len(text) > MAX_VALUE:
                digest = hash_json(text)
                text = f"{text[: MAX_VALUE - len(digest) - 1]} {digest}"
            flat[clean_name(prefix)] = text

    add("", config)
    return flat


def clean_name(name: str) -> str:
    """``name`` with what MLflow forbids in names of parameters and metrics replaced by ``_``."""
    return re.sub(r"[^\w\-. :/]", "_", name)[:MAX_KEY]


def describe_git(root: Path) -> dict[str, str]:
    """Tags ``mlflow.source.git.commit`` and ``git_dirty`` of the work tree at ``root``; empty where there is no git."""
    commit = ask_git(root, "rev-parse", "HEAD")
    if commit is None:
        return {}
    changes = ask_git(root, "status", "--porcelain", "--untracked-files=no")
    return {"mlflow.source.git.commit": commit, "git_dirty": "unknown" if changes is None else str(bool(changes)).lower()}


def describe_versions() -> dict[str, str]:
    """Tags ``version.<package>`` of the libraries that decide results, and of Python."""
    found = {"version.python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[f"version.{name}"] = version(name)
        except PackageNotFoundError:
            found[f"version.{name}"] = "absent"
    return found
