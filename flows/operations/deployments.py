"""The work pool with its queues, and the deployments of ``prefect.yaml``."""

import subprocess
import sys
from typing import TYPE_CHECKING

from flows._environment import PROJECT_ROOT
from flows.operations.processes import ServiceError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL, WORKER = "visloop", "embedded"
QUEUES = ("training", "default")
"""``training``: whatever trains; ``default``: the rest. A queue's limit counts its runs that are pending or running."""

_ERROR_LINES = 25


def open_client() -> "SyncPrefectClient":
    """A client of the server that this process was told to use."""
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def prepare_pool(*, slots: int | None = None) -> None:
    """Make the process pool and its queues where they are missing.

    Args:
        slots: how many runs of one queue may run at once; None keeps what is there, and is 1 for a new queue.
    """
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.exceptions import ObjectNotFound
    from prefect.workers.process import ProcessWorker

    with open_client() as client:
        try:
            client.read_work_pool(POOL)
        except ObjectNotFound:
            template = ProcessWorker.get_default_base_job_template()
            client.create_work_pool(WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template))
        for name in QUEUES:
            try:
                queue = client.read_work_queue_by_name(name, work_pool_name=POOL)
            except ObjectNotFound:
                queue = client.create_work_queue(name=name, work_pool_name=POOL)
            wanted = slots if slots is not None else queue.concurrency_limit or 1
            if queue.concurrency_limit != wanted:
                client.update_work_queue(queue.id, concurrency_limit=wanted)


def deploy_all() -> None:
    """Register every deployment of ``prefect.yaml``; what is registered already is brought up to date.

    Raises:
        ServiceError: Prefect refuses a deployment; its words are given.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(PROJECT_ROOT / "prefect.yaml")]
    done = subprocess.run(command, cwd=PROJECT_ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = "\n".join((done.stdout + done.stderr).splitlines()[-_ERROR_LINES:])
        raise ServiceError(f"`prefect deploy --all` failed:\n{words}")
