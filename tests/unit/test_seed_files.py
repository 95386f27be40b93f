"""Demonstrations of a user's own: a plugin that planners come to use, and files that are refused with their line."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import ScriptedChat
from tests.unit.test_slot_filling import ask
from visloop.assistant.demonstrations import DemonstrationPool
from visloop.assistant.planner import open_planner
from visloop.assistant.seed_files import add_seed_file
from visloop.config_assistant import PlannerChoice, PlannerConfig, ToolsConfig
from visloop.errors import ConfigError, DataError
from visloop.scenes.workshop_seeds import seed_demonstrations
from visloop.tools import plugins
from visloop.tools.signatures import find_signature
from visloop.tools.toolbox import Toolbox, open_toolbox

PAGE = Path(__file__).parents[2] / "docs" / "add_a_tool.md"
SHIPPED = DemonstrationPool(seed_demonstrations())
LINE = {
    "id": "own",
    "kind": "program",
    "outcome": "success",
    "task_kind": "vqa",
    "instruction": "How many?",
    "plan": ["Look."],
    "program": "BOX0=LOC(image=IMAGE,object='star')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)",
}
DOC = "MIRROR(image: Image) -> Image: the picture with left and right exchanged"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toolbox]:
    """A toolbox with the plugin of the page about adding a tool; its seeds lie in ``mirror_seeds.jsonl``."""
    python, seeds = (re.search(rf"```{kind}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL) for kind in ("python", "json"))
    assert python is not None and seeds is not None
    (tmp_path / "seeded_mirror_tool.py").write_text(python[1])
    (tmp_path / "mirror_seeds.jsonl").write_text(seeds[1])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_plugins", {})
    yield open_toolbox(ToolsConfig(plugins=["seeded_mirror_tool"]))
    sys.modules.pop("seeded_mirror_tool", None)


def write(folder: Path, *lines: dict[str, object] | str) -> str:
    path = folder / "seeds.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path.as_posix()


def test_without_a_file_the_pool_is_the_shipped_one() -> None:
    assert PlannerConfig().seeds == ""
    assert add_seed_file(SHIPPED, "", find_signature=find_signature) is SHIPPED


@pytest.mark.parametrize("choice", [PlannerChoice.slot_filling, PlannerChoice.hybrid])
def test_slot_filling_uses_a_plugin_that_a_seed_demonstrates(mirror: Toolbox, tmp_path: Path, choice: PlannerChoice) -> None:
    seeds = (tmp_path / "mirror_seeds.jsonl").as_posix()
    pool = add_seed_file(SHIPPED, seeds, find_signature=mirror.find_signature)
    assert pool.entries[: len(SHIPPED.entries)] == SHIPPED.entries and [entry.kind for entry in pool.entries[-2:]] == ["program", "plan"]
    chat = ScriptedChat(lambda request: "no idea")
    planner = open_planner(PlannerConfig(choice=choice), chat=chat, tools=mirror)
    task = ask("Mirror the picture.", kind="editing")
    [proposal] = planner.propose([task], pool=pool, seed=0)
    assert (proposal.status, proposal.program) == ("ok", "IMAGE0=MIRROR(image=IMAGE)\nFINAL_RESULT=RESULT(var=IMAGE0)")
    assert proposal.demonstrations == ("mirror-program",) and not chat.requests
    [without] = planner.propose([task], pool=SHIPPED, seed=0)
    assert "MIRROR" not in without.program


def test_an_llm_is_shown_the_plugins_that_may_be_used(mirror: Toolbox) -> None:
    shown = {}
    for kind in ("editing", "tagging"):
        chat = ScriptedChat(lambda request: "1. Show it." if "/plan/" in request.id else "FINAL_RESULT=RESULT(var=IMAGE)")
        planner = open_planner(PlannerConfig(choice=PlannerChoice.llm), chat=chat, tools=mirror)
        planner.propose([ask("Mirror the picture.", kind=kind)], pool=SHIPPED, seed=0)  # type: ignore[arg-type]
        shown[kind] = chat.requests[-1].messages[0].text
    assert f"- {DOC}\n" in shown["editing"], "and behind the catalogue"
    assert shown["editing"].index("RESULT(") < shown["editing"].index("MIRROR(")
    assert "MIRROR(" not in shown["tagging"], "the signature says what it is for"


@pytest.mark.parametrize(
    ("lines", "line", "message"),
    [
        (["{"], 1, "not a Demonstration"),
        ([LINE, "", {**LINE, "id": "b"}], 2, "not a Demonstration"),
        ([LINE, {**LINE, "id": "b", "kind": "script"}], 2, "kind"),
        ([LINE, {**LINE, "id": "b", "program": "count the stars"}], 2, "the program of b cannot be read"),
        ([{**LINE, "program": "IMAGE0=MIRROR(image=IMAGE)\nFINAL_RESULT=RESULT(var=IMAGE0)"}], 1, "cannot be run: line 1.*MIRROR"),
        ([{**LINE, "task_kind": "editing"}], 1, "may not be used in tasks of kind editing"),
        ([{**LINE, "outcome": "failure", "reason": "r", "program": "FINAL_RESULT=RESULT(var=ANSWER0)"}], 1, "ANSWER0"),
        ([{**LINE, "program": ""}], 1, "a program demonstration without a program"),
        ([{**LINE, "kind": "plan", "plan": []}], 1, "a plan demonstration without steps"),
        ([{**LINE, "outcome": "failure"}], 1, "a failure without a reason"),
        ([{**LINE, "instruction": " "}], 1, "no instruction"),
        ([{**LINE, "id": " "}], 1, "no id"),
        ([LINE, {**LINE, "instruction": "How much?"}], 2, "the id own is that of line 1"),
        ([{**LINE, "id": SHIPPED.entries[0].id}], 1, "is that of another demonstration, which is shipped"),
    ],
)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, lines: list[dict[str, object] | str], line: int, message: str) -> None:
    seeds = write(tmp_path, *lines)
    with pytest.raises(DataError, match=rf"{re.escape(seeds)}:{line}: .*{message}"):
        add_seed_file(SHIPPED, seeds, find_signature=find_signature)


def test_a_file_that_is_not_there_or_empty_is_refused_with_the_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"assistant\.planner\.seeds: .*none\.jsonl is no file"):
        add_seed_file(SHIPPED, (tmp_path / "none.jsonl").as_posix(), find_signature=find_signature)
    with pytest.raises(ConfigError, match=r"assistant\.planner\.seeds: .*seeds\.jsonl is empty"):
        add_seed_file(SHIPPED, write(tmp_path), find_signature=find_signature)
