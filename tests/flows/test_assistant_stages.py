"""What the assistant's stages read: a change of it must make them run again."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flows._assistant_stages import CYCLE_CODE, _learning_config, draw_tasks, part_inputs, read_task_truths, read_tasks, start_pools
from flows._code import hash_code
from flows._entry import compose_config
from flows._layout import Layout
from tests.unit.test_nlvr import make_line, write_nlvr
from visloop.assistant.pools import read_pools
from visloop.errors import ConfigError, DataError
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
