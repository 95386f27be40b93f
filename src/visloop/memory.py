"""How the process keeps memory that it has freed."""

import ctypes
import os
from typing import Final

_TRIM, _MAP = -1, -3
"""glibc's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD."""
KEPT_BYTES: Final = 512 * 2**20
"""Freed memory that stays with the process at most."""
MAPPED_BYTES: Final = 32 * 2**20
"""Blocks from this size on are the kernel's own and go back at once; glibc takes no more."""
_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next forward pass; False where it is another library's or the user has set it.

    By default glibc gives back what is freed at the end of the heap, and the kernel hands it out again page by page, cleared: that is a
    third of the time of a small model's batch on a CPU.
    """
    if any(name in os.environ for name in _VARIABLES):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(set_option(_TRIM, KEPT_BYTES) and set_option(_MAP, MAPPED_BYTES))
