"""One Prefect server for all flow tests, in a temporary folder: nothing is left in the checkout or the user's home."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Before anything imports prefect: it reads its settings then.
_HOME = tempfile.mkdtemp(prefix="visloop-prefect-")
os.environ["PREFECT_HOME"] = _HOME

from flows._summary import reset_stage_rows  # noqa: E402
from tests.fixtures.servers import S3Server, serve_s3  # noqa: E402


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """A temporary Prefect server with an empty database; ask for it with ``pytest.mark.usefixtures("prefect_harness")``."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """An S3 server with one bucket, in a process of its own."""
    with serve_s3() as server:
        yield server


@pytest.fixture(autouse=True)
def _no_stage_rows() -> None:
    reset_stage_rows()


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)
