"""What the assistant's stages read: a change of it must make them run again."""

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from flows import _assistant_direct, _assistant_parts, _assistant_stages
from flows._assistant_direct import answer_pictures, measure_direct
from flows._assistant_report import list_outcomes
from flows._assistant_stages import (
    CYCLE_CODE,
    _learning_config,
    draw_tasks,
    part_inputs,
    play_cycle,
    read_predictions,
    read_task_truths,
    read_tasks,
    start_pools,
)
from flows._assistant_systems import DIRECT
from flows._code import hash_code
from flows._entry import compose_config
from flows._layout import Layout
from tests.fixtures.scripted_chat import ScriptedChat, broken
from tests.unit.test_llm_planner import PROGRAM
from tests.unit.test_nlvr import make_line, write_nlvr
from tests.unit.test_slot_filling import ask
from visloop.assistant.cycle import CycleResult
from visloop.assistant.cycle_state import CycleRecords
from visloop.assistant.gate import GateReport
from visloop.assistant.pools import Pools, read_pools
from visloop.assistant.runs import CycleParts, propose_programs
from visloop.chat.base import ChatReply, ChatRequest
from visloop.chat.timing import TimedChat
from visloop.config import Sampling
from visloop.errors import ConfigError, DataError, ModelError
from visloop.evaluation.direct import drop_failed
from visloop.evaluation.metrics import measure_outcomes
from visloop.records.assistant import Task, TaskKind, TaskTruth
from visloop.records.shards import write_shard
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.tools import plugins

PLUGIN = """
from visloop.tools.base import ToolSignature
from visloop.tools.plain import PlainTool
from visloop.tools.toolbox import register_tool

SIGNATURE = ToolSignature(name="{name}", parameters=(), returns="Text", doc="gives a text", kinds=("vqa",))
register_tool(SIGNATURE, lambda config: PlainTool(SIGNATURE, lambda call: "text"))
"""


def test_a_plugin_and_a_file_of_facts_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stage_plugin.py").write_text(PLUGIN.format(name="STAGETOOL"))
    (tmp_path / "stage_package").mkdir()
    (tmp_path / "stage_package" / "__init__.py").write_text(PLUGIN.format(name="STAGEPACK"))
    facts = tmp_path / "facts.jsonl"
    config = compose_config([f"assistant.tools.facts={facts}", "assistant.tools.plugins=[stage_plugin,stage_package]"])
    inputs = part_inputs(config, Layout(tmp_path, "scenes"))
    assert inputs["facts"] == facts
    assert inputs["plugin stage_plugin"] == tmp_path / "stage_plugin.py"
    assert inputs["plugin stage_package"] == tmp_path / "stage_package"
    assert {"stage_plugin", "stage_package"} <= sys.modules.keys()


def test_the_agents_are_inputs_where_they_answer_for_vqa(tmp_path: Path) -> None:
    layout = Layout(tmp_path, "scenes")
    alone, agents = compose_config([]), compose_config(["assistant.tools.vqa=agents"])
    assert not {"reasoner", "summarizer"} & part_inputs(alone, layout).keys()
    assert part_inputs(agents, layout)["reasoner"] == layout.model("reasoner")
    assert part_inputs(agents, layout)["summarizer"] == layout.model("summarizer")
    longer = compose_config(["assistant.tools.vqa=agents", "answer.reason_sampling.max_new_tokens=64"])
    assert _learning_config(longer) != _learning_config(agents)
    assert _learning_config(compose_config(["answer.reason_sampling.max_new_tokens=64"])) == _learning_config(alone)
    assert hash_code(CYCLE_CODE) != hash_code([name for name in CYCLE_CODE if "reasoning" not in name])


def test_a_file_of_seeds_stands_behind_the_shipped_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_plugins", {})
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "seeded_tool.py").write_text(PLUGIN.format(name="SEEDED"))
    file, layout = tmp_path / "seeds.jsonl", Layout(tmp_path / "data", "scenes")
    program = "ANSWER0=SEEDED()\nFINAL_RESULT=RESULT(var=ANSWER0)"
    write_shard(
        file, [replace(seed_demonstrations()[1], id="own", kind="program", task_kind="vqa", instruction="Say it.", program=program)]
    )
    start_pools(compose_config([]), layout)
    assert read_pools(layout.cycle(0)).demonstrations.entries == seed_demonstrations()
    overrides = [f"assistant.planner.seeds={file}", "assistant.tools.plugins=[seeded_tool]"]
    start_pools(compose_config(overrides), layout)
    assert [entry.id for entry in read_pools(layout.cycle(0)).demonstrations.entries[-1:]] == ["own"], "the file is an input of the stage"
    with pytest.raises(DataError, match=rf"{file}:1: the program of own cannot be run: .*SEEDED"):
        start_pools(compose_config(overrides[:1]), layout)


def test_statements_on_disk_are_a_task_set(tmp_path: Path) -> None:
    dev = [make_line(f"{sentence}-{picture}") for sentence in range(12) for picture in range(2)]
    root = write_nlvr(tmp_path / "nlvr", {"dev": dev, "test": [make_line("70-0", label="false")]})
    options = ["experiment=nlvr_loop", f"data.root={root}", f"paths.data={tmp_path / 'data'}"]
    config = compose_config(options)
    layout = Layout.from_config(config)
    draw_tasks(config, layout)
    assert layout.tasks.name == "nlvr" and len(read_tasks(layout, "stream")) + len(read_tasks(layout, "held_out")) == 24
    [task] = read_tasks(layout, "test")
    assert read_task_truths(layout)[task.id].answer == "false" and (layout.root / task.images[2]).is_file()
    for wrong, message in (("assistant.tasks.root=''", "root is empty"), ("assistant.tasks.kinds=[vqa]", r"use \[multi_image\]")):
        with pytest.raises(ConfigError, match=message):
            draw_tasks(compose_config([*options, wrong]), layout)


def test_a_task_pack_on_disk_is_an_input(tmp_path: Path) -> None:
    own, shipped = (compose_config(["experiment=nlvr_loop", f"assistant.planner.pack={pack}"]) for pack in (tmp_path, "nlvr"))
    assert part_inputs(own, Layout(tmp_path, "scenes"))["pack"] == tmp_path
    assert "pack" not in part_inputs(shipped, Layout(tmp_path, "scenes")), "the shipped ones are code"


def test_a_cycle_tells_how_long_it_waited_for_the_llm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: ChatRequest) -> str:
        time.sleep(0.02)
        return PROGRAM

    def plan_once(tasks: Sequence[Task], *, parts: CycleParts, pools: Pools, cycle: int, **others: object) -> CycleResult:
        assert len(propose_programs(tasks, pools=pools, parts=parts)) == 1
        gate = GateReport(replay_before=None, replay_after=None, held_out_before=None, held_out_after=None)
        return CycleResult(cycle=cycle, pools=pools, records=CycleRecords(), gate=gate, counts={"tasks": 1}, known=frozenset())

    monkeypatch.setattr(_assistant_parts, "cached_chat", lambda config: ScriptedChat(answer))
    monkeypatch.setattr(_assistant_stages, "run_cycle", plan_once)
    layout = Layout(tmp_path / "data", "scenes")
    (layout.collection / "image_search").mkdir(parents=True)
    for part in ("stream", "replay", "held_out", "truth"):
        write_shard(layout.tasks / f"{part}.jsonl", [ask("Is there a star?")] if part == "stream" else [])
    config = compose_config(["assistant.tasks.cycles=1", "planner@assistant.planner=llm", "assistant.planner.use_plan=false"])
    start_pools(config, layout)
    waited: list[float] = []
    manifest = play_cycle(config, layout, number=1, on_chat=waited.append)
    assert len(waited) == 1 and waited[0] >= 0.02
    assert not [name for name in manifest.counts if "second" in name or "chat" in name], "no clock in what is kept"
    play_cycle(config, layout, number=1, on_chat=waited.append)
    assert len(waited) == 1, "a cycle that is there waits for nobody"


def test_what_a_clock_says_of_a_model_includes_calls_that_fail() -> None:
    def script(request: ChatRequest) -> str:
        time.sleep(0.01)
        raise ModelError("gone")

    chat = TimedChat(ScriptedChat(script, name="m"))
    for calls in (1, 2):
        with pytest.raises(ModelError, match="gone"):
            chat.reply([ChatRequest(id="r", messages=())], sampling=Sampling())
        assert chat.seconds >= 0.01 * calls
    assert chat.name == "m"


def test_direct_answers_are_a_row_per_kind_that_has_answers_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not of the mean over all kinds; a kind of which every request failed has none, and is named."""
    kinds: tuple[TaskKind, ...] = ("vqa", "multi_image", "editing")
    tasks = [
        Task(
            id=f"{kind} {number}",
            kind=kind,
            instruction="Is it?",
            images=("a.png",) * (3 if kind == "multi_image" else 1),
            inputs=(),
            family=kind,
            wording="base",
            split="test",
            group=f"{kind} {number}",
            source="test",
        )
        for kind in kinds
        for number in range(150)
    ]
    layout = Layout(tmp_path, "scenes")
    write_shard(layout.tasks / "test.jsonl", tasks)
    write_shard(layout.tasks / "truth.jsonl", [TaskTruth(task_id=task.id, program="", answer="yes") for task in tasks])

    def answer(request: ChatRequest) -> str | ChatReply:
        return broken("one picture only") if len(request.messages[0].images) > single else "yes"

    chat, single = ScriptedChat(answer), 3
    monkeypatch.setattr(_assistant_direct, "open_chat", lambda config: chat)
    config, folder = compose_config([]), layout.assistant_evaluation / "direct"
    assert config.assistant.direct is not None
    manifest = answer_pictures(config, layout, chat=config.assistant.direct, folder=folder)
    assert sorted(manifest.files) == ["test-00000.jsonl", "test-00001.jsonl", "test-00002.jsonl"], "continued after a kill"
    assert manifest.counts == {"tasks": 300, "correct": 300, "unread": 0, "failed": 0} and len(chat.requests) == 300

    def measure() -> dict[str, float]:
        found = drop_failed(read_predictions(folder, "test"), {task.id: task.kind for task in tasks})
        outcomes = list_outcomes(DIRECT, found, (), tasks={task.id: task for task in tasks})
        return {row.metric: row.value for row in (measure_outcomes(item, bootstrap_samples=10) for item in outcomes)}

    assert measure() == {"accuracy/vqa": 1.0, "accuracy/multi_image": 1.0}
    answer_pictures(config, layout, chat=config.assistant.direct, folder=folder)
    assert len(chat.requests) == 300, "made once"
    single = 1
    other = replace(config.assistant.direct, model="other")
    assert answer_pictures(config, layout, chat=other, folder=folder).counts["failed"] == 150
    assert measure() == {"accuracy/vqa": 1.0} and "direct VLM: 106 of 128 requests failed, first: error: one picture only" in caplog.text


def test_an_endpoint_that_goes_away_is_no_result_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [replace(ask("Is there a star?"), id=f"t{number}", split="test") for number in range(3)]
    layout, down, asked = Layout(tmp_path, "scenes"), set[int](), list[str]()
    write_shard(layout.tasks / "test.jsonl", tasks)
    write_shard(layout.tasks / "truth.jsonl", [TaskTruth(task_id=task.id, program="", answer="yes") for task in tasks])

    def answer(request: ChatRequest) -> str | ChatReply:
        asked.append(request.id)
        return broken("gone") if (len(asked) - 1) % len(tasks) in down else "yes"

    monkeypatch.setattr(_assistant_direct, "open_chat", lambda config: ScriptedChat(answer))
    config = compose_config(["model@assistant.direct=served_vlm"])
    assert config.assistant.direct is not None
    folder = layout.assistant_evaluation / "direct"
    for now, what in (({1, 2}, "only some tasks of vqa were"), ({0, 1, 2}, "no request was")):
        down |= now
        with pytest.raises(ModelError, match=rf"{what} answered.*gone.*assistant\.direct=null"):
            answer_pictures(config, layout, chat=config.assistant.direct, folder=folder)
    down.clear()
    assert answer_pictures(config, layout, chat=config.assistant.direct, folder=folder).counts["correct"] == 3


def test_a_run_without_answers_in_words_or_without_a_model_has_no_such_row(tmp_path: Path) -> None:
    for overrides in (["assistant.direct=null"], ["assistant.tasks.kinds=[editing,tagging]"]):
        assert measure_direct(compose_config(overrides), Layout(tmp_path, "scenes"), None) is None  # type: ignore[arg-type]
