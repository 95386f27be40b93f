"""Any CLIP does for the tools that share one: a tiny random one without a vocabulary of its own, by configuration alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.fixtures.tiny_vision import make_instances, save_clip
from visloop.chat.loads import count_loads, reset_loads
from visloop.config_assistant import PromptTuning, ToolsConfig, VisionConfig
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.prompt_pool import load_pool, save_pool
from visloop.tools.toolbox import Toolbox, open_toolbox
from visloop.tools.values import VisualObject

TUNING = PromptTuning(tokens=2, prompts=1, instances=4, validation=3, negatives=2, steps=8, learning_rate=0.05, min_validation=0.0,
                      max_base_drop=1.0, known_at=2.0)  # fmt: skip
SHARED = ("LOC", "SEG", "SELECT", "FILTER", "CLASSIFY", "VQA")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def toolbox(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Toolbox:
    folder = save_clip(tmp_path_factory.mktemp("models") / "clip")
    assert not (folder / "vocabulary.json").exists(), "the open vocabulary has to do"
    return open_toolbox(ToolsConfig(clip=VisionConfig(model=str(folder), device="cpu", batch_size=2), tuning=TUNING), root=data)


def draw_image() -> Image.Image:
    pixels = np.full((48, 64, 3), 200, dtype=np.uint8)
    pixels[6:20, 8:24], pixels[24:42, 36:56] = (220, 40, 40), (40, 60, 220)
    return Image.fromarray(pixels)


def ask(tools: Toolbox, tool: str, *, word: str = "star") -> list[ToolResult]:
    image = draw_image()
    [found] = tools.run("SEG", [ToolCall(tool="SEG", arguments={"image": image})])
    arguments = {
        "LOC": {"object": word},
        "SEG": {},
        "SELECT": {"object": found.value, "query": word, "category": None},
        "FILTER": {"object": found.value, "query": word},
        "CLASSIFY": {"object": found.value, "categories": f"red,{word}"},
        "VQA": {"question": f"How many {word}s are there?"},
    }[tool]
    return tools.run(tool, [ToolCall(tool=tool, arguments={"image": image, **arguments}, concepts=(word,))])  # type: ignore[dict-item]


def show(results: Sequence[ToolResult]) -> list[object]:
    """What the results say, to the last bit."""
    shown: list[object] = []
    for result in results:
        value = result.value
        if isinstance(value, tuple):
            value = tuple((entry.box, entry.label) if isinstance(entry, VisualObject) else entry for entry in value)
        shown.append((value, result.confidence, result.error))
    return shown


@pytest.mark.parametrize("tool", SHARED)
def test_every_tool_answers_with_one_load_and_a_bad_call_is_its_own_error(toolbox: Toolbox, tool: str) -> None:
    ask(toolbox, tool)
    reset_loads()
    [result] = ask(toolbox, tool, word="french horn")
    assert result.error is None and result.value is not None, "a word that no vocabulary has is a word like others"
    bad, good = ToolCall(tool=tool, arguments={"image": "no picture"}), ToolCall(tool="SEG", arguments={"image": draw_image()})
    failed = toolbox.run(tool, [bad, good] if tool == "SEG" else [bad])
    assert failed[0].error is not None and failed[0].value is None
    assert tool != "SEG" or failed[1].error is None
    assert count_loads() == {}, "the six share one model"


def test_a_prompt_is_learned_on_frozen_weights_and_acts_for_its_word_only(toolbox: Toolbox, data: Path, tmp_path: Path) -> None:
    select = toolbox.find_tool("SELECT")
    instances, replay = make_instances(data, "SELECT")
    model = select.engine.encoder.model  # type: ignore[union-attr]
    before = [parameter.clone() for parameter in model.parameters()]
    report = select.tune("star", instances=instances, replay=replay, seed=0, cycle=1)  # type: ignore[union-attr]
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert report.pool.prompts, report.reason
    taught = toolbox.with_pool(report.pool)
    for tool in SHARED:
        assert show(ask(taught, tool, word="triangle")) == show(ask(toolbox, tool, word="triangle")) or tool in ("SEG", "VQA")
    assert [bool(result.prompts) for tools in (toolbox, taught) for result in ask(tools, "SELECT")] == [False, True]
    save_pool(report.pool, tmp_path / "pool")
    again = toolbox.with_pool(load_pool(tmp_path / "pool"))
    assert show(ask(again, "SELECT")) == show(ask(taught, "SELECT"))
