"""The page as people use it: over HTTP and in a browser, with the shipped models, from the question to the lesson."""

import html
import io
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image

from apps._pictures import MAX_UPLOAD_BYTES, find_picture
from apps._server import make_app
from flows import _assistant_stages
from flows._assistant_stages import draw_collection, draw_tasks, read_tasks, start_pools
from flows._checks import run_gate
from flows._database import connect
from flows._entry import compose_config
from flows._layout import Layout
from flows._people import freeze_questions, freeze_words, list_frozen, read_frozen, read_questions
from flows._records import read_split, write_json
from flows._registry import REASONER, register_model
from flows._round_stages import make_pairs
from flows._tracking import open_run
from flows._words import Refusal, read_words
from flows.assessment import assess_folder
from flows.generation import make_dataset
from flows.reflect_learn import teach
from flows.sft import sample_folder
from visloop.chat.weights import resolve_model
from visloop.config import Config
from visloop.errors import GateError
from visloop.records.assistant import Feedback
from visloop.records.manifest import Manifest, write_manifest
from visloop.records.reasoning import AssessedPath, PreferencePair
from visloop.records.shards import read_shard, read_shards, write_shard

SMALL = (
    "experiment=smoke",
    "assistant.tasks.kinds=[vqa]",
    *(f"assistant.tasks.{part}=1" for part in ("replay", "held_out", "test", "base")),
    "assistant.tasks.stream=3",
    "assistant.tasks.cycles=0",
    "data.train=12",
    "data.validation=2",
    "data.test=4",
)
QUESTION = "What is the number of teal shapes?"


@dataclass
class Person:
    """Somebody at the page."""

    client: TestClient
    config: Config
    layout: Layout

    def ask(self, text: str, picture: bytes | None = None, *, path: str = "", kind: str = "vqa", **typed: str) -> Any:
        files = {} if picture is None else {"files": ("photo.png", picture, "image/png")}
        return self.client.post(f"{path}/ask", data={"text": text, "kind": kind, **typed}, files=files)

    def say(self, run: str, verdict: str, *, path: str = "", **typed: str) -> Any:
        return self.client.post(f"{path}/say", data={"run": run, "verdict": verdict, **typed})

    def list_lessons(self, path: str = "/") -> list[list[str]]:
        page = self.client.get(path).text
        return [[strip(cell) for cell in re.findall(r"<td>(.*?)</td>", row, re.S)] for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)][1:]


def strip(text: str) -> str:
    return html.unescape(re.sub(r"<[^>]*>", "", text)).strip()


def read_id(answer: Any, name: str) -> str:
    """The text of the element with this id; empty where there is none."""
    found = re.search(rf'<(\w+)[^>]*\bid="{name}"[^>]*>(.*?)</\1>', answer.text, re.S)
    return strip(found.group(2)) if found else ""


def find_run(answer: Any) -> str:
    assert answer.status_code == 200, read_id(answer, "error")
    return str(answer.url.params["run"])


def encode(picture: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A project with what the assistant starts with, drawn questions, and the shipped base as both agents."""
    root = tmp_path_factory.mktemp("page")
    config = compose_config([*SMALL, f"paths.data={root / 'data'}", f"paths.mlruns={root / 'mlruns'}"])
    layout = Layout.from_config(config)
    for stage in (draw_tasks, draw_collection, make_dataset):
        stage(config, layout)
    start_pools(config, layout)
    return config


@pytest.fixture(scope="module")
def agents(project: Config) -> None:
    """Both agents are the shipped base, registered as M_0."""
    layout = Layout.from_config(project)
    for name in ("reasoner", "summarizer"):
        shutil.copytree(resolve_model(project.base.model), layout.model(name))
        write_manifest(layout.model(name), Manifest(stage=name, inputs={}, config={}, code=""))
    report = layout.round(0) / "report"
    write_json(report / "head.json", {"round": 0, "model": "models/reasoner", "validation": ""})
    write_manifest(report, Manifest(stage="round 0", inputs={}, config={}, code=""))
    with open_run("dpo_rounds", project) as run, run.open_child("M_0", step=0) as child:
        register_model(child, name=REASONER, folder=layout.model("reasoner"), aliases=["m0"])


@pytest.fixture(scope="module")
def person(project: Config) -> Iterator[Person]:
    with TestClient(make_app(project), base_url="http://127.0.0.1") as client:
        yield Person(client, project, Layout.from_config(project))


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run and stage hashes all of the code, which takes longer than what is tested here."""
    for module in ("flows._tracking", "flows._stage"):
        monkeypatch.setattr(f"{module}.hash_code", lambda packages: "0" * 64)


def test_project_without_models_is_told_what_to_do(tmp_path: Path) -> None:
    config = compose_config([*SMALL, f"paths.data={tmp_path / 'data'}", f"paths.mlruns={tmp_path / 'mlruns'}"])
    with TestClient(make_app(config), base_url="http://127.0.0.1") as client:
        anybody = Person(client, config, Layout.from_config(config))
        picture = encode(Image.new("RGB", (64, 64), "teal"))
        for path, command in (("", "reflect_learn"), ("/agents", "make demo")):
            assert command in read_id(client.get(path or "/"), "setup")
            answer = anybody.ask("Is it teal?", picture, path=path)
            assert answer.status_code == 400 and command in read_id(answer, "error")
            assert "Is it teal?" in answer.text
        assert client.get("/health").json() == {"assistant": None, "agents": None}


@pytest.mark.parametrize(
    ("picture", "words"),
    [
        (b"no picture", "not a picture"),
        (encode(Image.effect_noise((64, 64), 90))[:1500], "cut short|damaged|truncated"),
        (b"\x89PNG" + bytes(MAX_UPLOAD_BYTES), "10 MB"),
        (encode(Image.new("1", (12_000, 12_000))), "pixels"),
        (encode(Image.new("RGB", (2, 90))), "2x90 pixels"),
    ],
    ids=["text", "cut", "huge file", "bomb", "thin"],
)
def test_bad_picture_is_refused_and_nothing_is_lost(person: Person, picture: bytes, words: str) -> None:
    before = sorted(person.layout.page.rglob("*"))
    answer = person.ask("How many stars are there?", picture)
    error = read_id(answer, "error")
    assert answer.status_code == 400 and re.search(words, error), error
    assert "/tmp" not in error and "photo.png" in error
    assert "How many stars are there?</textarea>" in answer.text
    assert sorted(person.layout.page.rglob("*")) == before


def test_bad_input_is_refused(person: Person) -> None:
    picture = encode(Image.new("RGB", (64, 64), "teal"))
    assert "of 1 to 300 characters" in read_id(person.ask("  \n", picture), "error")
    assert "this one has 301" in read_id(person.ask("x" * 301, picture), "error")
    assert "needs 3 picture(s), got 1" in read_id(person.ask("There is a star.", picture, kind="multi_image"), "error")
    assert "needs 1 picture(s), got 0" in read_id(person.ask("Is it?"), "error")
    assert "kind" in read_id(person.ask("Is it?", picture, kind="__class__"), "error")
    shown = person.ask("<script>alert(1)</script>", b"")
    assert "<script" not in shown.text and "&lt;script" in shown.text
    assert person.say("0" * 16, "right").status_code == 404
    assert person.say("../../etc/passwd", "right").status_code == 404
    client = person.client
    assert client.post("/ask", data={"text": "x"}, headers={"origin": "http://elsewhere.example"}).status_code == 403
    assert client.get("/", headers={"host": "elsewhere.example"}).status_code == 400
    large = client.post("/ask", content=b"", headers={"content-length": str(10**9), "content-type": "multipart/form-data; boundary=x"})
    assert large.status_code == 413 and "too large" in read_id(large, "error")
    assert client.post("/ask", content=b"junk", headers={"content-type": "multipart/form-data; boundary=x"}).status_code == 400
    assert "default-src 'none'" in client.get("/").headers["content-security-policy"]


def test_only_pictures_of_the_data_folder_are_shown(person: Person, tmp_path: Path) -> None:
    data = person.layout.root
    outside = tmp_path / "secret.png"
    outside.write_bytes(encode(Image.new("RGB", (8, 8))))
    (data / "page").mkdir(exist_ok=True)
    (data / "page" / "link.png").symlink_to(outside)
    task = read_tasks(person.layout, "stream")[0]
    assert person.client.get(f"/pictures/{task.images[0]}").status_code == 200
    for path in ("../mlruns/mlflow.db", "page/link.png", "cycles/00/report.json", outside.as_posix(), "%2e%2e/%2e%2e/etc/passwd"):
        assert find_picture(data, path) is None
        assert person.client.get(f"/pictures/{path}").status_code == 404


def test_wrong_answer_is_learned_from_once(person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked, judged, learned in a cycle that is killed and started again, asked again: now it is right, and the page says why."""
    config, layout = person.config, person.layout
    picture = (layout.collection / "image_search" / "teal" / "000.png").read_bytes()
    first = person.ask(QUESTION, picture)
    run = find_run(first)
    assert read_id(first, "result") == "0" and read_id(first, "learned") == "none"
    assert "BOX0=LOC(image=IMAGE,object='teal')" in read_id(first, "program") and "Count the boxes" in read_id(first, "plan")
    assert find_run(person.ask(QUESTION, picture)) == run  # the same question, the same pools: the same run and trace
    assert "choose right, or give the answer" in read_id(person.say(run, "wrong", answer="zero"), "error")
    assert "choose wrong, or leave" in read_id(person.say(run, "right", answer="2"), "error")
    assert "choose whether" in read_id(person.say(run, ""), "error")
    assert "Noted" in read_id(person.say(run, "wrong", answer="1", comment="the hexagon is teal", person="ada"), "notice")
    assert "before" in read_id(person.say(run, "wrong", answer="1", comment="the hexagon is teal", person="ada"), "notice")
    assert person.list_lessons()[0][:4] == [QUESTION, "wrong", "1; the hexagon is teal", "waiting"]

    number = freeze_words(config, layout)
    assert number == 1
    before = (layout.feedback(1) / "manifest.json").read_bytes()

    def die(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt), open_run("reflect_learn", config) as tracked:
        patch.setattr(_assistant_stages, "run_cycle", die)
        teach(config, layout, tracked, 1)
    other = find_run(person.ask("Is there a circle?", picture))  # said while the cycle is down: for the one after it
    person.say(other, "right", person="bob")
    assert freeze_words(config, layout) == 1 and (layout.feedback(1) / "manifest.json").read_bytes() == before
    with open_run("reflect_learn", config) as tracked:
        teach(config, layout, tracked, 1)
    assert freeze_words(config, layout) == 2 and list_frozen(layout) == [1, 2]
    ids = [entry.id for batch in (1, 2) for entry in read_shard(layout.feedback(batch) / "feedback.jsonl", Feedback)]
    assert len(ids) == len(set(ids)) == 2
    frozen = read_frozen(layout.feedback(1))
    (task,) = frozen.tasks
    assert task.images[0].startswith("feedback/cycles/01/pictures/") and (layout.root / task.images[0]).is_file()

    again = person.ask(QUESTION, picture)
    assert read_id(again, "result") == "1" and read_id(again, "learned") == "teal (CLIP, cycle 1)" and find_run(again) != run
    assert "pools of cycle 1" in read_id(again, "state")
    lessons = {row[0]: row[3:] for row in person.list_lessons()}
    assert lessons[QUESTION] == ["learned", "cycle 1: right after learning, by new prompts for teal"]
    assert lessons["Is there a circle?"][0] == "waiting"


def test_what_the_evaluation_has_is_never_learned_from(person: Person) -> None:
    layout = person.layout
    held_out = read_tasks(layout, "test")[0]
    run = find_run(person.ask("How many stars are there?", (layout.root / held_out.images[0]).read_bytes()))
    person.say(run, "wrong", answer="7")
    words, refused = read_words(layout, mlruns=Path(person.config.paths.mlruns), consumed=())
    assert all(word.run.trace.id != run for word in words)
    assert [item.reason for item in refused if item.feedback.trace_id == run] == [
        "its picture belongs to the evaluation, which nothing is learned from"
    ]
    assert [row[3] for row in person.list_lessons() if row[2] == "7"] == ["refused"]


def test_word_in_mlflow_counts_as_one_on_the_page(person: Person) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource

    sample = read_tasks(person.layout, "stream")[1]
    run = find_run(person.ask(sample.instruction, sample=sample.id))
    mlruns = Path(person.config.paths.mlruns)
    client = connect(mlruns)
    experiment = client.get_experiment_by_name("page").experiment_id
    (trace,) = client.search_traces(locations=[experiment], filter_string=f"tag.`visloop.trace_id` = '{run}'")
    source = AssessmentSource(source_type="HUMAN", source_id="cleo")
    mlflow.log_feedback(trace_id=trace.info.trace_id, name="correct", value=True, rationale="seen in MLflow", source=source)
    words, _ = read_words(person.layout, mlruns=mlruns, consumed=())
    (word,) = [word for word in words if word.run.trace.id == run]
    assert word.feedback.accepted and word.feedback.text == "seen in MLflow" and word.run.task.source == "page"


@pytest.mark.usefixtures("agents")
def test_refused_answer_of_the_agents_is_a_prompt_of_the_next_round(person: Person) -> None:
    config, layout = person.config, person.layout
    sample = next(item for item in read_split(layout, "train") if len(item.images) == 1)
    answer = person.ask("How many things are there?", sample=sample.id, path="/agents")
    run, said = find_run(answer), read_id(answer, "result")
    assert read_id(answer, "chain") and "reasoner M_0" in read_id(answer, "origin")
    right = "1" if said != "1" else "2"
    person.say(run, "wrong", answer=right, person="ada", path="/agents")
    statement = read_split(layout, "test")[0]
    picture = (layout.root / statement.images[0]).read_bytes()
    held_out = find_run(person.ask("How many things are there?", picture, path="/agents"))
    person.say(held_out, "wrong", answer="9", path="/agents")
    assert [row[3] for row in person.list_lessons("/agents")] == ["waiting", "waiting"]

    folder = freeze_questions(config, layout, 1)
    assert folder is not None and freeze_questions(config, layout, 1) == folder
    (prompt,) = read_questions(folder)
    assert (prompt.question, prompt.answer, prompt.source, prompt.split) == ("How many things are there?", right, "person", "train")
    assert (layout.root / prompt.images[0]).is_file() and prompt.images[0].startswith("rounds/01/people/pictures/")
    (refused,) = read_shard(folder / "refused.jsonl", Refusal)
    assert "evaluation" in refused.reason
    assert {row[3] for row in person.list_lessons("/agents")} == {"prompt", "refused"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows._people.HeldOut.find_question", lambda self, question: None)
        assert read_questions(freeze_questions(config, layout, 2)) == []  # every word was frozen, none is taken twice

    # From here on it is a prompt like any other: chains, verdicts by the person's answer, pairs, and the gates on them.
    place = layout.round(1)
    common: dict[str, Any] = {"samples": [prompt], "folder": place / "paths", "name": "round 1 paths", "key": "round 1"}
    sample_folder(config, layout, model=layout.model("reasoner"), per_question=4, sampling=config.rounds.sampling, **common)
    assess_folder(config, layout, name="round 1 assessed", samples=[prompt], source=place / "paths", folder=place / "assessed")
    assessed = read_shards(place / "assessed", AssessedPath)
    assert {item.path.sample_id for item in assessed} == {prompt.id}
    assert all(item.verdict == ("correct" if item.path.answer == right else "wrong") for item in assessed if item.path.answer)
    make_pairs(config, layout, number=1, samples=[prompt])
    known = {item.path.id: prompt.id for item in assessed}
    gate: dict[str, Any] = {"suite": "pairs", "config": config, "layout": layout, "paths": known, "more": folder}
    chains = [item.path for item in assessed]
    pair = PreferencePair(
        id="p",
        sample_id=prompt.id,
        images=prompt.images,
        prompt="q",
        chosen="<thoughts>\na: b\n</thoughts>\n<output>1</output>",
        rejected="<thoughts>\na: c\n</thoughts>\n<output>2</output>",
        chosen_path_id=chains[0].id,
        rejected_path_id=chains[1].id,
        chosen_verdict="correct",
        rejected_verdict="wrong",
        chosen_score=None,
        rejected_score=None,
        strategy="best_worst",
        round=1,
    )
    write_shard(layout.root / "by_hand" / "pairs.jsonl", [pair])
    run_gate("pairs_ok", records=layout.root / "by_hand", folder=layout.gate("ok"), **gate)
    write_shard(layout.root / "by_hand" / "pairs.jsonl", [replace(pair, images=statement.images)])
    with pytest.raises(GateError, match="no_evaluation_picture"):
        run_gate("pairs_bad", records=layout.root / "by_hand", folder=layout.gate("bad"), **gate)


@contextmanager
def serve(config: Config) -> Iterator[str]:
    """The page on a port of its own, in a thread; its address."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(make_app(config), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        end = time.monotonic() + 60
        while not server.started and thread.is_alive() and time.monotonic() < end:
            time.sleep(0.05)
        assert server.started
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)


def find_browser() -> str | None:
    return next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.mark.usefixtures("agents")
def test_both_tabs_in_a_browser(project: Config, tmp_path: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = find_browser()
    if browser is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium); the tests above take the same way over HTTP")
    with serve(project) as address, playwright.sync_playwright() as engine:
        window = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = window.new_page(viewport={"width": 1100, "height": 900})
        faults: list[str] = []
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: faults.append(request.url))
        for name, tab, shown in (("assistant", "Assistant", "#steps li"), ("agents", "Two agents", "#chain li")):
            page.goto(address)
            page.get_by_role("link", name=tab).click()
            page.locator(".sample").first.click()
            page.get_by_role("button", name="Ask").click()
            page.wait_for_selector("#result")
            assert page.locator(shown).count() >= 2 and page.locator("#result").inner_text()
            pictures = page.locator("#answer img")
            assert pictures.count() and all(
                pictures.nth(index).evaluate("image => image.naturalWidth") for index in range(pictures.count())
            )
            page.get_by_label("right", exact=True).check()
            page.get_by_label("Your name").fill("dan")
            page.get_by_role("button", name="Say it").click()
            assert "Noted" in page.locator("#notice").inner_text()
            assert page.locator("#lessons tbody tr").first.inner_text()
            page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
            assert (tmp_path / f"{name}.png").stat().st_size > 20_000
            with_upload = tmp_path / "broken.png"
            with_upload.write_bytes(b"no picture")
            page.set_input_files("input[type=file]", with_upload)
            assert faults == []
            page.get_by_role("button", name="Ask").click()
            assert "broken.png" in page.locator("#error").inner_text()
            faults.clear()  # the browser counts an answer 400 as a fault
        window.close()
