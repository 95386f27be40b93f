"""Standard streams that outlive their reader: a flow under a worker writes into the worker's pipe, and the worker may die."""

import os
import sys
from typing import IO, Any

from rich.console import Console


class SteadyStream:
    """A text stream; once nobody reads it any more, what is written goes nowhere."""

    def __init__(self, stream: IO[str]) -> None:
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
        sys.stdout, sys.stderr = SteadyStream(sys.stdout), SteadyStream(sys.stderr)
        Console.on_broken_pipe = _stay  # type: ignore[method-assign]


def _stay(self: Console) -> None:
    _forget_reader(self.file)


def _forget_reader(stream: IO[str]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
