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

LOCK_NAME = "dvc.lock"
_FILES = (LOCK_NAME, "dvc.yaml", "params.yaml")
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
    if _git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", check=False) is None:
        return []
    try:
        prefix = _git(root, "rev-parse", "--show-prefix") or ""
        lock = _read_lock((root / LOCK_NAME).read_text(encoding="utf-8"))
        made = []
        for stage, tag in names.items():
            before = _git(root, "rev-parse", "--verify", "--quiet", f"refs/tags/{tag}^{{commit}}", check=False)
            text = _git(root, "show", f"{before}:{prefix}{LOCK_NAME}", check=False) if before else None
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
        _git(root, "read-tree", "HEAD", extra=index)
        for name in _FILES:
            blob = _git(root, "hash-object", "-w", name)
            _git(root, "update-index", "--add", "--cacheinfo", f"100644,{blob},{prefix}{name}", extra=index)
        tree = _git(root, "write-tree", extra=index)
    parents = [word for commit in ("HEAD", before) if commit for word in ("-p", commit)]
    commit = _git(root, "commit-tree", str(tree), *parents, "-m", f"{stage} as DVC recorded it")
    _git(root, "tag", "--force", "--annotate", "--no-sign", "-m", f"outputs of {stage}, in {LOCK_NAME}", tag, str(commit))


def _read_lock(text: str) -> dict[str, Any]:
    """The outputs of every stage."""
    content = yaml.safe_load(text) or {}
    return {stage: entry.get("outs") for stage, entry in content.get("stages", {}).items()}


def _git(root: Path, *arguments: str, extra: Mapping[str, str] | None = None, check: bool = True) -> str | None:
    """What git printed; None where it failed and need not succeed."""
    identity = {}
    for role in ("AUTHOR", "COMMITTER"):  # only where the user has none
        identity |= {f"GIT_{role}_NAME": "visloop", f"GIT_{role}_EMAIL": "visloop@localhost"}
    known = _has_identity(root) if "commit-tree" in arguments or "tag" in arguments else True
    environment = {**({} if known else identity), **os.environ, **(extra or {})}
    try:
        done = subprocess.run(["git", *arguments], cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=check)
    except OSError:
        if check:
            raise
        return None  # no git on this machine
    return done.stdout.strip() if done.returncode == 0 else None


def _has_identity(root: Path) -> bool:
    done = subprocess.run(["git", "var", "GIT_COMMITTER_IDENT"], cwd=root, capture_output=True, timeout=60, check=False)
    return done.returncode == 0
