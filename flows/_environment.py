"""Process-wide settings that must stand before the orchestration libraries are imported.

``flows/__init__.py`` calls ``set_environment`` first of all, so every flow has them, however it was started. A variable that
the user has set wins.
"""

import os
from pathlib import Path

from flows._servers import OWNER, choose_server
from visloop.memory import keep_freed_memory

PROJECT_ROOT = Path(__file__).resolve().parent.parent

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
}

DEFAULTS = {
    # Nothing is written to the user's home folder.
    "PREFECT_HOME": str(PROJECT_ROOT / ".prefect"),
    # Without a standing server each process starts its own; that takes 15-35 s on two busy cores, and the default limit is 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    # No flow uses Prefect's blocks; two temporary servers that write them down at once would break each other's start.
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    # The run's own log lines and the table of stages are for the terminal; Prefect's go to its database and to the log file.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    # Several forks of tokenizers in one process tree dead-lock; shards are batched, so its threads bring nothing.
    "TOKENIZERS_PARALLELISM": "false",
    # The embedded models are so small that a second thread costs more than it brings, and on a busy machine many times more.
    "OMP_NUM_THREADS": "1",
    # A model of a few megabytes needs no bar of its own; the stages have theirs.
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def set_environment() -> None:
    """Switch telemetry off, set the defaults of this project where the user has said nothing, use the standing server if there is one."""
    keep_freed_memory()
    for name, value in {**TELEMETRY_OFF, **DEFAULTS}.items():
        os.environ.setdefault(name, value)
    os.environ[OWNER] = str(os.getpid())
    choose_server()


def set_hub_offline(*, local: bool) -> None:
    """Forbid the model hub's network where every model is a shipped name, a folder or a served endpoint."""
    if local:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
