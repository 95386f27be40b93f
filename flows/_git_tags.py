"""A git tag for what DVC has recorded of a stage, without touching branch, index or working tree.

The tag is on a commit of its own beside the branches: the files of HEAD, with ``dvc.lock``, ``dvc.yaml`` and ``params.yaml`` as they are
now. So ``dvc get . data/cycles/01 --rev cycle/01`` finds the bytes, and nothing else that the user has not committed gets into it.
Where there is no git, or no commit yet, nothing is done.
"""

import logging
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from flows._git import ask_git, run_git

LOCK_NAME = "dvc.lock"
_FILES = (LOCK_NAME, "dvc.yaml", "params.yaml")
_IDENTITY = {"NAME": "visloop", "EMAIL": "visloop@localhost"}
_log = logging.getLogger(__name__)


def tag_stages(names: Mapping[str, str], *, root: Path) -> list[str]:
    """Tag each stage's outputs as ``dvc.lock`` has them now.

    A tag that is on the same outputs already stays. One on other outputs moves, and its commit becomes a parent of the new one, so that git
    keeps it. A failure is no reason to lose a run: it is logged.

    Args:
        names: tag by stage.

    Returns:
        The tags that were set.
    """
    if ask_git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}") is None:
        return []
    try:
        prefix = run_git(root, "rev-parse", "--show-prefix")
        lock = _read_lock((root / LOCK_NAME).read_text(encoding="utf-8"))
        made = []
        for stage, tag in names.items():
            before = ask_git(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}")
            text = ask_git(root, "show", f"{before}:{prefix}{LOCK_NAME}") if before else None
            if stage in lock and (text is None or _read_lock(text).get(stage) != lock[stage]):
                _tag(root, prefix=prefix, stage=stage, tag=tag, before=before)
                made.append(tag)
        return made
    except (OSError, subprocess.SubprocessError, yaml.YAMLError) as error:
        words = getattr(error, "stderr", None) or error
        _log.warning("no git tags for %s: %s", ", ".join(names), str(words).strip())
        return []


def _tag(root: Path, *, prefix: str, stage: str, tag: str, before: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        run_git(root, "read-tree", "HEAD", extra=index)
        for name in _FILES:
            blob = run_git(root, "hash-object", "-w", name)
            run_git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{name}", extra=index)
        tree = run_git(root, "write-tree", extra=index)
    parents = [word for commit in ("HEAD", before) if commit for word in ("-p", commit)]
    committer = _name_committer(root)
    commit = run_git(root, "commit-tree", tree, *parents, "-m", f"{stage} as DVC recorded it", extra=committer)
    words = f"outputs of {stage}, in {LOCK_NAME}"
    run_git(root, "tag", "--force", "--annotate", "--no-sign", "-m", words, tag, commit, extra=committer)


def _read_lock(text: str) -> dict[str, Any]:
    """The outputs of every stage."""
    content = yaml.safe_load(text) or {}
    return {stage: entry.get("outs") for stage, entry in content.get("stages", {}).items()}


def _name_committer(root: Path) -> dict[str, str]:
    """An identity for git's environment where the user has none."""
    if ask_git(root, "var", "GIT_COMMITTER_IDENT") is not None:
        return {}
    words = {f"GIT_{role}_{part}": word for role in ("AUTHOR", "COMMITTER") for part, word in _IDENTITY.items()}
    return {name: os.environ.get(name, word) for name, word in words.items()}
