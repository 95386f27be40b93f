"""Tools that raise. What they raise becomes the error of its call, where a faulty tool reads like a wrong program: so it is logged too, and
where memory is out the run stops.
"""

import logging
import sys
import threading

from visloop.errors import ModelError, VisloopError

_log = logging.getLogger(__name__)
_lock = threading.Lock()
_told: set[tuple[str, type[Exception]]] = set()
_CPU_MEMORY = ("can't allocate memory", "not enough memory")
"""How torch says it on a CPU, where it has no type for it."""


class OutOfMemoryError(ModelError):
    """A single call needs more memory than there is. No program is to blame, and every further call would end like it."""


def note_failure(error: Exception, *, tool: str, calls: int = 1) -> None:
    """Log what nobody raises on purpose, with its traceback: once for each tool and type of exception in a process.

    Args:
        calls: how many were asked at once. Several that do not fit into memory together may do so one by one.

    Raises:
        OutOfMemoryError: there is not enough memory for one call alone.
    """
    if not isinstance(error, VisloopError):
        key = (tool, type(error))
        with _lock:
            new = key not in _told
            _told.add(key)
        if new:
            what = "one call" if calls == 1 else f"{calls} calls at once"
            _log.error("tool %s raised %s on %s; further ones are not logged", tool, type(error).__name__, what, exc_info=error)
    if calls == 1 and is_out_of_memory(error):
        shown = f"{type(error).__name__}: {error}"
        raise OutOfMemoryError(f"tool {tool}: one call needs more memory than there is ({shown}); give it smaller pictures") from error


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, of the machine or of an accelerator. Torch is not loaded for it: without torch none of its errors is."""
    theirs = getattr(sys.modules.get("torch"), "OutOfMemoryError", None)
    if isinstance(error, MemoryError) or (isinstance(theirs, type) and isinstance(error, theirs)):
        return True
    return isinstance(error, RuntimeError) and any(part in str(error) for part in _CPU_MEMORY)
