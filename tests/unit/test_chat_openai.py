"""The endpoint backend against a real HTTP server on the loopback: what is sent, what is read, what fails and when."""

import asyncio
import base64
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from visloop.chat.base import ChatRequest, Message, Sampling
from visloop.chat.factory import cached_chat, close_chats, open_chat
from visloop.chat.openai import OpenAIChat
from visloop.config import Backend, ChatConfig
from visloop.errors import ConfigError, ModelError

Answer = Callable[["Call"], None]
SECRET = "sk-very-secret-0123456789"


class Call:
    """One request as the server saw it, with ways to answer."""

    def __init__(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self.handler, self.body, self.authorization = handler, body, handler.headers.get("Authorization", "")

    @property
    def text(self) -> str:
        content = self.body["messages"][-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    def send(self, data: bytes, *, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(data)

    def complete(self, text: str | None, *, finish: str | None = "stop", **message: Any) -> None:
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        self.send(json.dumps(body).encode())


class Server:
    """Answers by ``answer``; keeps every call and the largest number at once."""

    def __init__(self) -> None:
        self.answer: Answer = lambda call: call.complete(f"echo {call.text}")
        self.calls: list[Call] = []
        self.models_status = 200
        self.most_at_once = self._now = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                data = b'{"object": "list", "data": []}' if server.models_status == 200 else b'{"error": {"message": "no"}}'
                Call(self, {}).send(data, status=server.models_status)

            def do_POST(self) -> None:
                call = Call(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                with lock:
                    server.calls.append(call)
                    server._now += 1
                    server.most_at_once = max(server.most_at_once, server._now)
                try:
                    server.answer(call)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True
                finally:
                    with lock:
                        server._now -= 1

            def log_message(self, *args: object) -> None:
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def config(server: Server) -> ChatConfig:
    return ChatConfig(
        backend=Backend.openai, model="m", base_url=server.url, timeout_seconds=5.0, max_retries=0, concurrency=4, max_image_pixels=10_000
    )


@pytest.fixture
def mounted() -> Iterator[Callable[[ChatConfig], OpenAIChat]]:
    opened: list[OpenAIChat] = []

    def mount(config: ChatConfig) -> OpenAIChat:
        opened.append(OpenAIChat(config))
        return opened[-1]

    yield mount
    for chat in opened:
        chat.close()


Mount = Callable[[ChatConfig], OpenAIChat]


def ask(text: str, *, images: tuple[Path, ...] = (), seed: int = 0) -> ChatRequest:
    return ChatRequest(id=f"q-{text}", messages=(Message(role="user", text=text, images=images),), seed=seed)


def test_replies_keep_the_order_of_the_requests(server: Server, config: ChatConfig, mounted: Mount) -> None:
    def answer(call: Call) -> None:
        time.sleep(0.02 * (9 - int(call.text)))
        call.complete(f"reply {call.text}")

    server.answer = answer
    replies = mounted(config).reply([ask(str(number)) for number in range(10)], sampling=Sampling())
    assert [reply.text for reply in replies] == [f"reply {number}" for number in range(10)]
    assert {(reply.finish, reply.prompt_tokens, reply.new_tokens) for reply in replies} == {("stop", 7, 3)}


def test_no_requests_no_calls(server: Server, config: ChatConfig, mounted: Mount) -> None:
    assert mounted(config).reply([], sampling=Sampling()) == []
    assert server.calls == []


def test_concurrency_is_bounded_and_used(server: Server, config: ChatConfig, mounted: Mount) -> None:
    server.answer = lambda call: (time.sleep(0.1), call.complete("x"))[0]
    started = time.monotonic()
    mounted(replace(config, concurrency=3)).reply([ask(str(number)) for number in range(9)], sampling=Sampling())
    assert server.most_at_once == 3
    assert 0.3 <= time.monotonic() - started < 0.9


def test_body_holds_messages_pictures_and_only_the_options_that_are_on(
    server: Server, config: ChatConfig, mounted: Mount, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    Image.new("RGB", (300, 300), "blue").save(tmp_path / "b.jpg")
    messages = (
        Message(role="system", text="be brief"),
        Message(role="user", text="what is it", images=(tmp_path / "a.png", tmp_path / "b.jpg")),
        Message(role="assistant", text="a box"),
        Message(role="user", text="sure"),
    )
    chat = mounted(config)
    chat.reply([ChatRequest(id="1", messages=messages, seed=2**62 + 1)], sampling=Sampling(temperature=0.7, top_p=0.9, max_new_tokens=11))
    body = server.calls[0].body
    assert {key: body[key] for key in body if key != "messages"} == {
        "model": "m", "temperature": 0.7, "top_p": 0.9, "max_tokens": 11, "seed": 2**62 + 1,
    }  # fmt: skip
    system, user, assistant, last = body["messages"]
    assert (system["content"], assistant["content"], last["content"]) == ("be brief", "a box", "sure")
    first, second, text = user["content"]
    assert base64.b64decode(first["image_url"]["url"].removeprefix("data:image/png;base64,")) == (tmp_path / "a.png").read_bytes()
    assert second["image_url"]["url"].startswith("data:image/png;base64,")  # scaled into the budget of 10,000 pixels
    assert text == {"type": "text", "text": "what is it"}

    chat.reply([ask("x")], sampling=Sampling(top_k=5, repetition_penalty=1.1, stop=("\n", "END")))
    assert {key: server.calls[1].body[key] for key in ("top_k", "repetition_penalty", "stop")} == {
        "top_k": 5, "repetition_penalty": 1.1, "stop": ["\n", "END"],
    }  # fmt: skip


def test_bad_picture_costs_its_own_request_only(server: Server, config: ChatConfig, mounted: Mount, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"nothing")
    good, bad = mounted(config).reply([ask("a"), ask("b", images=(tmp_path / "bad.png",))], sampling=Sampling())
    assert good.text == "echo a"
    assert bad.finish == "error" and bad.error is not None
    assert "q-b" in bad.error and "bad.png" in bad.error
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("finish", "expected"), [("stop", "stop"), (None, "stop"), ("length", "length"), ("content_filter", "error"), ("tool_calls", "error")]
)
def test_finish_reasons(server: Server, config: ChatConfig, mounted: Mount, finish: str | None, expected: str) -> None:
    server.answer = lambda call: call.complete("x", finish=finish)
    (reply,) = mounted(config).reply([ask("a")], sampling=Sampling())
    assert reply.finish == expected
    assert (reply.error is not None) == (expected == "error")


MALFORMED: dict[str, Answer] = {
    "html": lambda call: call.send(b"<html>busy</html>", kind="text/html"),
    "broken json": lambda call: call.send(b'{"choices": [{"mess'),
    "empty": lambda call: call.send(b""),
    "null": lambda call: call.send(b"null"),
    "list": lambda call: call.send(b"[1, 2]"),
    "no choices": lambda call: call.send(b'{"id": "1", "object": "chat.completion"}'),
    "empty choices": lambda call: call.send(b'{"id": "1", "choices": []}'),
    "choice without message": lambda call: call.send(b'{"id": "1", "choices": [{"index": 0, "finish_reason": "stop"}]}'),
    "null content": lambda call: call.complete(None),
    "number as content": lambda call: call.send(b'{"choices": [{"finish_reason": "stop", "message": {"content": 5}}]}'),
    "choices is a number": lambda call: call.send(b'{"choices": 5}'),
    "message is a string": lambda call: call.send(b'{"choices": [{"finish_reason": "stop", "message": "x"}]}'),
    "choice is null": lambda call: call.send(b'{"choices": [null]}'),
    "refusal": lambda call: call.complete(None, refusal="I will not"),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_body_is_an_error_reply(server: Server, config: ChatConfig, mounted: Mount, kind: str) -> None:
    server.answer = lambda call: MALFORMED[kind](call) if call.text == "bad" else call.complete("fine")
    bad, good = mounted(config).reply([ask("bad"), ask("good")], sampling=Sampling())
    assert good.text == "fine"
    assert (bad.text, bad.finish) == ("", "error")
    assert bad.error is not None and "q-bad" in bad.error and server.url in bad.error
    assert ("refused: I will not" if kind == "refusal" else "malformed body") in bad.error


@pytest.mark.parametrize("usage", [b"null", b"{}", b'{"prompt_tokens": null}'])
def test_missing_usage_is_no_fault(server: Server, config: ChatConfig, mounted: Mount, usage: bytes) -> None:
    server.answer = lambda call: call.send(b'{"choices": [{"message": {"content": "x"}}], "usage": ' + usage + b"}")
    (reply,) = mounted(config).reply([ask("a")], sampling=Sampling())
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.new_tokens) == ("x", "stop", 0, 0)


def test_server_fault_is_retried_then_reported(server: Server, config: ChatConfig, mounted: Mount) -> None:
    server.answer = lambda call: call.send(b'{"error": {"message": "out of workers"}}', status=503)
    (reply,) = mounted(replace(config, max_retries=2)).reply([ask("a")], sampling=Sampling())
    assert len(server.calls) == 3
    assert reply.finish == "error" and reply.error is not None
    assert "status 503" in reply.error and "out of workers" in reply.error


def test_passing_fault_is_overcome(server: Server, config: ChatConfig, mounted: Mount) -> None:
    server.answer = lambda call: call.complete("at last") if len(server.calls) > 2 else call.send(b"{}", status=500)
    (reply,) = mounted(replace(config, max_retries=2)).reply([ask("a")], sampling=Sampling())
    assert (reply.text, reply.finish, len(server.calls)) == ("at last", "stop", 3)


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_wrong_request_is_not_retried(server: Server, config: ChatConfig, mounted: Mount, status: int) -> None:
    server.answer = lambda call: call.send(b'{"error": {"message": "unknown field"}}', status=status)
    (reply,) = mounted(replace(config, max_retries=3)).reply([ask("a")], sampling=Sampling())
    assert len(server.calls) == 1
    assert reply.error is not None and f"status {status}" in reply.error


def test_retry_after_is_kept(server: Server, config: ChatConfig, mounted: Mount) -> None:
    server.answer = lambda call: call.complete("ok") if len(server.calls) > 1 else call.send(b"{}", status=429, Retry_After="1")
    started = time.monotonic()
    (reply,) = mounted(replace(config, max_retries=1)).reply([ask("a")], sampling=Sampling())
    assert reply.text == "ok"
    assert 1.0 <= time.monotonic() - started < 2.5


def test_silent_server_times_out_by_the_clock(server: Server, config: ChatConfig, mounted: Mount) -> None:
    released = threading.Event()
    server.answer = lambda call: (released.wait(10), call.complete("late"))[0]
    chat = mounted(replace(config, timeout_seconds=0.4))
    started = time.monotonic()
    (reply,) = chat.reply([ask("a")], sampling=Sampling())
    elapsed = time.monotonic() - started
    released.set()
    assert 0.4 <= elapsed < 1.5
    assert reply.finish == "error" and reply.error is not None and "no reply within 0.4 s" in reply.error


def test_dripping_server_times_out_by_the_clock(server: Server, config: ChatConfig, mounted: Mount) -> None:
    """A byte now and then keeps a read time-out from firing; the clock still counts."""

    def drip(call: Call) -> None:
        call.handler.send_response(200)
        call.handler.send_header("Content-Type", "application/json")
        call.handler.send_header("Content-Length", "60")
        call.handler.end_headers()
        for _ in range(60):
            call.handler.wfile.write(b" ")
            call.handler.wfile.flush()
            time.sleep(0.1)

    server.answer = drip
    started = time.monotonic()
    (reply,) = mounted(replace(config, timeout_seconds=0.5)).reply([ask("a")], sampling=Sampling())
    assert 0.5 <= time.monotonic() - started < 1.6
    assert reply.error is not None and "no reply within 0.5 s" in reply.error


def test_endpoint_that_dies_gives_error_replies_for_the_rest(server: Server, config: ChatConfig, mounted: Mount) -> None:
    def answer(call: Call) -> None:
        if int(call.text) >= 2:
            call.handler.connection.close()
        else:
            call.complete("ok")

    server.answer = answer
    replies = mounted(config).reply([ask(str(number)) for number in range(5)], sampling=Sampling())
    assert [reply.finish for reply in replies] == ["stop", "stop", "error", "error", "error"]
    assert all("no connection" in (reply.error or "") for reply in replies[2:])


def test_unreachable_endpoint_is_one_error_at_the_start(server: Server, config: ChatConfig) -> None:
    server.stop()
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"no chat endpoint answers at http://127\.0\.0\.1:\d+/v1 .*start the server of model 'm'"):
        open_chat(config)
    assert time.monotonic() - started < 5
    server.http = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server._thread = threading.Thread(target=server.http.serve_forever, daemon=True)
    server._thread.start()


@pytest.mark.parametrize("status", [200, 404, 500])
def test_any_answer_means_that_the_endpoint_is_there(server: Server, config: ChatConfig, status: int) -> None:
    server.models_status = status
    chat = open_chat(config)
    assert chat.reply([ask("a")], sampling=Sampling())[0].text == "echo a"
    chat.close()


def test_refused_key_names_the_variable_not_the_key(server: Server, config: ChatConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server.models_status = 401
    with pytest.raises(ModelError, match="MY_KEY") as caught:
        open_chat(replace(config, api_key_env="MY_KEY"))
    assert SECRET not in str(caught.value)


def test_key_is_sent_and_never_shown(
    server: Server, config: ChatConfig, mounted: Mount, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    caplog.set_level(logging.DEBUG)
    server.answer = lambda call: call.send(json.dumps({"error": {"message": f"bad key {SECRET}"}}).encode(), status=400)
    (reply,) = mounted(replace(config, api_key_env="MY_KEY")).reply([ask("a")], sampling=Sampling())
    assert server.calls[0].authorization == f"Bearer {SECRET}"
    assert reply.error is not None and "bad key ***" in reply.error and SECRET not in reply.error
    assert SECRET not in caplog.text


def test_reply_works_inside_a_running_loop_and_from_several_threads(server: Server, config: ChatConfig, mounted: Mount) -> None:
    chat = mounted(config)

    async def inside() -> str:
        return chat.reply([ask("loop")], sampling=Sampling())[0].text

    assert asyncio.run(inside()) == "echo loop"
    texts: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda n=n: texts.__setitem__(n, chat.reply([ask(str(n))], sampling=Sampling())[0].text)) for n in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {number: f"echo {number}" for number in range(6)}


def test_closed_chat_says_so_and_leaves_no_thread(server: Server, config: ChatConfig) -> None:
    before = threading.active_count()
    chat = OpenAIChat(config)
    chat.reply([ask("a")], sampling=Sampling())
    chat.close()
    chat.close()
    deadline = time.monotonic() + 6
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before
    with pytest.raises(ModelError, match="was closed"):
        chat.reply([ask("a")], sampling=Sampling())


@pytest.mark.parametrize(("key", "value"), [("concurrency", 0), ("max_retries", -1), ("timeout_seconds", 0.0)])
def test_values_out_of_range_are_named(config: ChatConfig, key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=key):
        OpenAIChat(replace(config, **{key: value}))


def test_cached_chat_is_shared_by_equal_configs(server: Server, config: ChatConfig) -> None:
    first = cached_chat(config)
    assert cached_chat(replace(config)) is first
    assert cached_chat(replace(config, concurrency=2)) is not first
    close_chats()
    with pytest.raises(ModelError, match="was closed"):
        first.reply([ask("a")], sampling=Sampling())
    again = cached_chat(config)
    assert again is not first
    assert again.reply([ask("a")], sampling=Sampling())[0].text == "echo a"
    close_chats()
