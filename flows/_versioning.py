"""Which bytes: what a flow leaves is recorded with DVC, so that ``dvc repro`` has nothing to do after a run by hand.

``dvc.yaml`` has one stage per flow whose command is the flow itself, called with the overrides in ``params.yaml``. Started by DVC,
a flow leaves the recording to it; started in any other way it ends with ``record_outs``, which commits the stages' outputs as
they lie, when its settings are those with which DVC would call it.
"""

import logging
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_random_exponential
from yaml import YAMLError

from flows._entry import compose_config
from flows._git_tags import tag_stages
from flows._layout import Layout
from visloop.config import Config, TrackingConfig
from visloop.errors import ConfigError, DataError

RecordState = Literal["recorded", "by_dvc", "other_settings", "no_project"]
"""``recorded``; ``by_dvc``: DVC called the flow and records it; ``other_settings``: not what ``dvc.yaml`` would make;
``no_project``: the working directory belongs to no DVC project."""

FLOW_STAGES: dict[str, tuple[str, ...]] = {
    "generation": ("generation",),
    "assessment": ("assessment",),
    "sft": ("sft",),
    "dpo_rounds": ("rounds",),
    "evaluation": ("evaluation",),
    "pipeline": ("generation", "assessment", "sft", "rounds", "evaluation"),
    "reflect_learn": ("assistant_data", "cycles"),
    "clova": ("assistant_data", "cycles", "assistant"),
}
"""Stages of ``dvc.yaml`` by the flow that makes their outputs; a group (``rounds``) stands for all of its members."""

PARAMS_NAME, OVERRIDES_KEY = "params.yaml", "overrides"
_LOCK_SIGNS = ("Unable to acquire lock", "is busy, it is being blocked by")
_OVERLAP_SIGN = "overlaps with an output of stage"
_LOCKED_SECONDS = 120.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What ``record_outs`` did, in words for people too."""

    state: RecordState
    stages: tuple[str, ...]
    seconds: float
    message: str


def record_flow(flow: str, config: Config) -> Recorded:
    """Record the outputs of ``flow``, which has just ended, when ``config`` is what DVC would call it with.

    Raises:
        DataError: an output is missing, or DVC cannot record it.
        ConfigError: ``params.yaml`` cannot be read, or its overrides are no valid ones.
    """
    root = find_project(Path.cwd())
    if root is None:
        return _skip("no_project", f"{Path.cwd()} belongs to no DVC project: outputs are not versioned")
    if called_by_dvc():
        return _skip("by_dvc", "DVC called this flow and records its outputs")
    expected = compose_config(read_overrides(root))
    if _forget_round(config) != _forget_round(expected):
        return _skip(
            "other_settings",
            f"outputs are not recorded with DVC: the settings are not those of `dvc repro`; "
            f"to version them, put the overrides into {PARAMS_NAME} ({OVERRIDES_KEY}) and run again",
        )
    if flow not in FLOW_STAGES:
        return _skip("other_settings", f"{flow} is no stage of dvc.yaml: its outputs are not versioned")
    stages = list(FLOW_STAGES[flow])
    if flow == "dpo_rounds" and config.rounds.only is not None:
        stages = [f"rounds@{config.rounds.only}"]
    if flow == "reflect_learn":
        stages = ["assistant_data", *(f"cycles@{number}" for number in list_cycles(config))]
    recorded = record_outs(stages, root=root)
    if flow in ("reflect_learn", "clova") and config.assistant.tasks.tag:
        tag_stages({f"cycles@{number}": f"cycle/{number:02d}" for number in list_cycles(config)}, root=root)
    return recorded


def record_outs(stages: Sequence[str], *, root: Path) -> Recorded:
    """Commit the outputs of ``stages`` to DVC as they lie in the workspace of ``root``, with the present hashes of what they depend on.

    Nothing is run. A call that finds nothing changed costs about as much as starting DVC.

    Raises:
        DataError: an output is missing, or DVC cannot record it; its own words are given.
    """
    started = time.perf_counter()
    set_scm(root)
    run_dvc("commit", "--force", *stages, root=root)
    seconds = round(time.perf_counter() - started, 2)
    message = f"recorded with DVC: {', '.join(stages)} ({seconds:.1f} s)"
    _log.info(message)
    return Recorded(state="recorded", stages=tuple(stages), seconds=seconds, message=message)


def add_folders(folders: Sequence[Path], *, data: Path) -> Recorded:
    """Version folders that no stage of ``dvc.yaml`` makes, each by a pointer ``<folder>.dvc`` beside it, which belongs into git.

    For what comes from people: it cannot be made again, so it is versioned whatever the settings are. A folder that a stage of ``dvc.yaml``
    has as its output (a short stream's cycle 4) is left to that stage. Bytes that are recorded already cost as much as starting DVC.

    Args:
        data: the data folder; where it lies in no DVC project, nothing is done.

    Raises:
        DataError: a folder is missing, or DVC cannot record it.
    """
    started = time.perf_counter()
    root = find_project(data)
    if root is None:
        return _skip("no_project", f"{data} belongs to no DVC project: {', '.join(map(str, folders))} are not versioned")
    set_scm(root)
    names = []
    for name in (folder.resolve().relative_to(root).as_posix() for folder in folders):
        try:
            run_dvc("add", name, root=root)
            names.append(name)
        except DataError as error:
            if _OVERLAP_SIGN not in str(error):
                raise
            _log.warning("%s is an output of a stage of dvc.yaml and left to `dvc commit`", name)
    seconds = round(time.perf_counter() - started, 2)
    message = f"recorded with DVC: {', '.join(f'{name}.dvc' for name in names)} ({seconds:.1f} s)"
    _log.info(message)
    return Recorded(state="recorded", stages=tuple(names), seconds=seconds, message=message)


def find_project(folder: Path) -> Path | None:
    """The root of the DVC project that ``folder`` lies in: the nearest parent with ``.dvc`` and ``dvc.yaml``."""
    for place in (folder.resolve(), *folder.resolve().parents):
        if (place / ".dvc").is_dir():
            return place if (place / "dvc.yaml").is_file() else None
    return None


def called_by_dvc() -> bool:
    """Whether this process is the command of a DVC stage."""
    return bool(os.environ.get("DVC_STAGE"))


def read_overrides(root: Path) -> list[str]:
    """The overrides with which ``dvc.yaml`` calls every flow.

    Raises:
        ConfigError: ``params.yaml`` is missing or does not hold them as one line of text.
    """
    file = root / PARAMS_NAME
    try:
        return shlex.split(OmegaConf.to_object(OmegaConf.load(file))[OVERRIDES_KEY])  # type: ignore[index, call-overload]
    except (OSError, YAMLError, OmegaConfBaseException, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(f"{file}: needs the key {OVERRIDES_KEY!r} with one line of text, e.g. {OVERRIDES_KEY}: '' ({error})") from error


def set_scm(root: Path) -> None:
    """Let DVC work with or without git: without, this copy of the project is marked in ``.dvc/config.local``.

    The mark is taken back when git is there again. The shared configuration is never touched.
    """
    has_git = any((place / ".git").exists() for place in (root, *root.parents))
    local = root / ".dvc" / "config.local"
    marked = local.is_file() and "no_scm = true" in local.read_text(encoding="utf-8").lower()
    if not has_git and not marked:
        run_dvc("config", "--local", "core.no_scm", "true", root=root)
    elif has_git and marked:
        run_dvc("config", "--local", "--unset", "core.no_scm", root=root)


def run_dvc(*arguments: str, root: Path, patience: float = _LOCKED_SECONDS) -> str:
    """Run DVC in ``root`` and return what it printed; waits up to ``patience`` seconds while another DVC process is at work.

    A process of its own: DVC keeps locks and caches per process, and a flow may run in threads.

    Raises:
        DataError: DVC failed; its last words are given.
    """
    command = [sys.executable, "-m", "dvc", *arguments]
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}

    def call() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    retrying = Retrying(
        retry=retry_if_result(lambda done: done.returncode != 0 and any(sign in done.stderr for sign in _LOCK_SIGNS)),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        stop=stop_after_delay(patience),
    )
    try:
        done = retrying(call)
    except RetryError as error:
        done = error.last_attempt.result()
    if done.returncode != 0:
        words = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or done.stdout.strip()
        raise DataError(f"`dvc {' '.join(arguments)}` failed in {root}: {words[-1000:]}")
    return done.stdout


def list_cycles(config: Config) -> list[int]:
    """The cycles that count, of those that ``config`` has."""
    last = Layout.from_config(config).find_last_cycle()
    return list(range(1, min(last, config.assistant.tasks.cycles) + 1))


def _forget_round(config: Config) -> Config:
    """``rounds.only``, ``assistant.tasks.only`` and the like say which part of the work a call does, ``tracking`` where its history is
    kept, ``workers`` how it is shared out; none of them what comes out."""
    tasks = replace(config.assistant.tasks, only=None, back_to=None, tag=True)
    return replace(
        config,
        workers=1,
        rounds=replace(config.rounds, only=None),
        assistant=replace(config.assistant, tasks=tasks),
        tracking=TrackingConfig(),
    )


def _skip(state: RecordState, message: str) -> Recorded:
    _log.info(message)
    return Recorded(state=state, stages=(), seconds=0.0, message=message)
