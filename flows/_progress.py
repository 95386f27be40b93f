"""The progress of a stage: a bar on the terminal, and an artifact in Prefect's pages where it lasts."""

import logging
import re
import time
from collections.abc import Callable
from typing import TypeVar, cast
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.context import FlowRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

PROGRESS_SECONDS = 5.0
"""A stage that lasts longer has a progress artifact, and this is how often it moves."""

_Result = TypeVar("_Result")
_log = logging.getLogger(__name__)


def open_bar() -> Progress:
    """The bar of a sharded stage, on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=Console(stderr=True))


def make_key(name: str) -> str:
    """A name as Prefect's keys want it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


class StageProgress:
    """The progress artifact of one stage. Call it with the share that is done, 0-1, as often as is convenient."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self._artifact: UUID | None = None
        self._last = time.monotonic()

    def __call__(self, share: float) -> None:
        if FlowRunContext.get() is None:
            return
        now, percent = time.monotonic(), round(100 * min(max(share, 0.0), 1.0), 1)
        closing = percent == 100 and self._artifact is not None
        if now - self._last < PROGRESS_SECONDS and not closing:
            return
        self._last = now
        if self._artifact is None:
            key = f"{make_key(self.stage)}-progress"
            self._artifact = send_safely(lambda: cast(UUID, create_progress_artifact(percent, key=key, description=self.stage)))
        else:
            artifact = self._artifact
            send_safely(lambda: update_progress_artifact(artifact, progress=percent))

    def follow_epochs(self, epochs: float) -> Callable[[int, dict[str, float]], None]:
        """For a trainer's ``on_log``: its logs name the epoch that they come from, of ``epochs`` in all."""
        return lambda _step, metrics: self(metrics.get("epoch", 0.0) / epochs if epochs else 1.0)


def send_safely(send: Callable[[], _Result]) -> _Result | None:
    """``send()``; None, and a line in the log, where Prefect does not take it."""
    try:
        return send()
    except Exception as error:  # whatever the server answers: the flow's work does not depend on its pages
        _log.warning("an artifact could not be shown in Prefect: %s", error)
        return None
