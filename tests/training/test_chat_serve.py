"""The endpoint backend against a real ``transformers serve`` process on the loopback, with a random-weight LLaVA."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.tiny_vlms import save_pictures, save_tiny_vlm
from visloop.chat.base import ChatRequest, Message, Sampling
from visloop.chat.factory import open_chat
from visloop.config import Backend, ChatConfig

pytestmark = pytest.mark.slow
START_SECONDS = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_vlm(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[str]:
    """Base URL of the running server. It is ended with its whole process group, whatever the tests do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cache = folder.parent / "cache"
    cache.mkdir()
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    with (folder.parent / "server.log").open("w") as log:
        process = subprocess.Popen([*command, "--device", "cpu"], env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _is_healthy(port):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"transformers serve did not start: {(folder.parent / 'server.log').read_text()[-2000:]}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(timeout=10)


def _is_healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=2.0).status_code == 200
    except httpx.TransportError:
        return False


def test_served_and_local_model_write_the_same(folder: Path, endpoint: str, tmp_path: Path) -> None:
    pictures = save_pictures(tmp_path, count=3)
    requests = [
        ChatRequest(id=f"q{number}", messages=(Message(role="user", text=text, images=images),))
        for number, (text, images) in enumerate(
            [
                ("is there a red box", (pictures[0],)),
                ("count", (pictures[1], pictures[2])),
                ("what color is it", ()),
                ("how many", (pictures[2],)),
            ]
        )
    ]
    requests.append(
        ChatRequest(
            id="long", messages=(*requests[0].messages, Message(role="assistant", text="yes it is"), Message(role="user", text="where"))
        )
    )
    sampling = Sampling(max_new_tokens=12)
    served = open_chat(ChatConfig(backend=Backend.openai, model=str(folder), base_url=endpoint, max_retries=0, concurrency=2))
    local = open_chat(ChatConfig(model=str(folder)))
    try:
        theirs, ours = served.reply(requests, sampling=sampling), local.reply(requests, sampling=sampling)
    finally:
        served.close()
        local.close()
    assert [reply.error for reply in theirs] == [None] * len(requests)
    assert [reply.text for reply in theirs] == [reply.text for reply in ours]
    assert [reply.prompt_tokens for reply in theirs] == [reply.prompt_tokens for reply in ours]


def test_option_that_the_server_refuses_is_an_error_reply(folder: Path, endpoint: str) -> None:
    served = open_chat(ChatConfig(backend=Backend.openai, model=str(folder), base_url=endpoint, max_retries=0))
    request = ChatRequest(id="q", messages=(Message(role="user", text="count"),))
    try:
        (reply,) = served.reply([request], sampling=Sampling(temperature=1.0, top_k=3, max_new_tokens=4))
    finally:
        served.close()
    assert reply.finish == "error" and reply.error is not None
    assert "status 422" in reply.error and "top_k" in reply.error
