"""Prefect's temporary servers that outlived their flow.

Without a standing server each flow process starts its own and stops it at the end; after ``kill -9``, or when the start timed
out, it would run on, hold the database and answer nobody.
"""

import os

import psutil

OWNER = "VISLOOP_SERVER_OWNER"
"""Set by ``set_environment`` to the id of the flow's process; a server inherits it."""


def stop_orphaned_servers() -> list[int]:
    """Stop temporary servers of this PREFECT_HOME whose flow process is gone; returns their process ids."""
    stopped = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if _is_ours(environment) and not psutil.pid_exists(int(environment[OWNER])):
                process.terminate()
                stopped.append(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or belongs to somebody else
    return stopped


def _is_ours(environment: dict[str, str]) -> bool:
    temporary = environment.get("PREFECT__SERVER_EPHEMERAL") == "1"
    return temporary and environment.get("PREFECT_HOME") == os.environ.get("PREFECT_HOME") and environment.get(OWNER, "").isdigit()
