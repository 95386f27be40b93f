"""Standard streams that outlive their reader: a flow under a worker writes into the worker's pipe, and the worker may die."""

import os
import sys
from typing import Any, TextIO

from rich.console import Console


class SteadyStream:
    """A text stream; once nobody reads it any more, what is written goes nowhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            _forget_reader(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            _forget_reader(self._stream)


def keep_streams() -> None:
    """Let this process go on when the reader of its output has died.

    Without it the next table or progress bar ends the flow: rich leaves the process at a broken pipe, also from within the consoles
    that libraries have opened, so its hook for that is replaced.
    """
    if not isinstance(sys.stdout, SteadyStream):
        sys.stdout, sys.stderr = SteadyStream(sys.stdout), SteadyStream(sys.stderr)  # type: ignore[assignment]
        Console.on_broken_pipe = _stay  # type: ignore[method-assign]


def _stay(console: Console) -> None:
    _forget_reader(console.file)  # type: ignore[arg-type]


def _forget_reader(stream: TextIO) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
