"""What a training run tells while it runs: a progress bar or log lines, the history, and a stop at numbers that are not finite."""

import logging
import math
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from visloop.errors import TrainingError

logger = logging.getLogger(__name__)
OnLog = Callable[[int, dict[str, float]], None]
"""Called with the step and its metrics each time the trainer logs."""
LINE_SECONDS = 15.0


class FiniteGuard(TrainerCallback):
    """Stops a run whose loss or gradient norm is not finite.

    Raises:
        TrainingError: with the step and what to try.
    """

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        for key in ("loss", "grad_norm"):
            value = float((logs or {}).get(key, 0.0))
            if not math.isfinite(value):
                raise TrainingError(
                    f"{key} is {value} at step {state.global_step} of {state.max_steps}: try a lower learning_rate "
                    f"(now {args.learning_rate:g}), a lower max_grad_norm, or bf16=false"
                )


class LogForwarder(TrainerCallback):
    """Hands each training log to ``on_log`` as plain floats."""

    def __init__(self, on_log: OnLog) -> None:
        self._forward = on_log

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        metrics = read_metrics(logs or {})
        if "loss" in metrics:
            self._forward(state.global_step, metrics)


class ProgressReporter(TrainerCallback):
    """A progress bar on a terminal; elsewhere a log line at most every ``LINE_SECONDS`` seconds."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        self.title = title
        self._console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._spoken = 0.0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._spoken = time.monotonic()
        if not self._console.is_terminal:
            logger.info("%s: %d steps, from step %d", self.title, state.max_steps, state.global_step)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task(self.title, total=state.max_steps, completed=state.global_step, note="")
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=state.global_step)

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        metrics = read_metrics(logs or {})
        if "loss" not in metrics:
            return
        note = f"loss {metrics['loss']:.3f}"
        if "rewards/accuracies" in metrics:
            note += f"  reward accuracy {metrics['rewards/accuracies']:.2f}"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, note=note)
        elif time.monotonic() - self._spoken >= LINE_SECONDS or state.global_step == state.max_steps:
            self._spoken = time.monotonic()
            logger.info("%s: step %d of %d, %s", self.title, state.global_step, state.max_steps, note)

    def close(self) -> None:
        """Take the bar off the terminal, also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def read_metrics(logs: dict[str, Any]) -> dict[str, float]:
    """The numbers of one trainer log (newer trainers write them as text), without what is no number."""
    metrics = {}
    for key, value in logs.items():
        try:
            metrics[key] = float(value)
        except (TypeError, ValueError):
            continue
    return metrics
