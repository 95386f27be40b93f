"""Count how often each model is loaded, so that a benchmark or test can hold a stage to one load per model."""

from collections import Counter
from threading import Lock

_LOADS: Counter[str] = Counter()
_LOCK = Lock()


def note_load(name: str) -> None:
    """Record that the weights of ``name`` were read from disk."""
    with _LOCK:
        _LOADS[name] += 1


def count_loads() -> dict[str, int]:
    """Loads per model since the process started or since ``reset_loads``."""
    with _LOCK:
        return dict(_LOADS)


def reset_loads() -> None:
    """Start counting from zero."""
    with _LOCK:
        _LOADS.clear()
