"""Which settings of prompt tuning hold for which tool."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from flows._assistant_parts import Workbench
from visloop.config_assistant import (
    AssistantConfig,
    LearningConfig,
    PromptTuning,
    RegionBackend,
    ReplaceBackend,
    ToolsConfig,
    VqaBackend,
)
from visloop.errors import ConfigError
from visloop.tools import toolbox
from visloop.tools.signatures import LEARNABLE, SIGNATURES
from visloop.tools.toolbox import open_toolbox
from visloop.tools.tunings import check_tunings, choose_tuning, find_owners, list_tunings

A, B, C = (PromptTuning(steps=steps) for steps in (1, 2, 3))
OTHERS = {"loc": RegionBackend.owlvit, "seg": RegionBackend.maskformer, "vqa": VqaBackend.blip, "replace": ReplaceBackend.diffusion}


def test_owners_are_those_of_the_backends() -> None:
    shared, own = find_owners(ToolsConfig()), find_owners(ToolsConfig(**OTHERS))  # type: ignore[arg-type]
    assert set(shared) == set(own) == {*LEARNABLE, "FILTER"} == {name for name, signature in SIGNATURES.items() if signature.learnable}
    assert {name for name, owner in shared.items() if owner == "CLIP"} == {*LEARNABLE, "FILTER"} - {"REPLACE"}
    assert shared["REPLACE"] == "PASTE"
    assert {name for name, owner in own.items() if owner == "CLIP"} == {"SELECT", "FILTER", "CLASSIFY"}
    assert all(own[name] == name for name in ("LOC", "SEG", "VQA", "REPLACE"))


def test_a_tools_own_settings_come_before_its_owners_and_those_of_all() -> None:
    config = ToolsConfig(tuning=A, tunings={"SELECT": B, "CLIP": C})
    assert {name: choose_tuning(config, name) for name in find_owners(config)} == {
        "LOC": C, "SEG": C, "SELECT": B, "FILTER": B, "CLASSIFY": C, "VQA": C, "REPLACE": A,
    }  # fmt: skip
    assert choose_tuning(ToolsConfig(tuning=A, tunings={"FILTER": C, "SELECT": B}), "FILTER") is C
    assert choose_tuning(ToolsConfig(tuning=A, tunings={"PASTE": C}), "REPLACE") is C
    assert choose_tuning(ToolsConfig(loc=RegionBackend.owlvit, tuning=A, tunings={"CLIP": C}), "LOC") is A
    assert choose_tuning(ToolsConfig(tuning=A, tunings={"MIRROR": C}), "MIRROR") is C, "a plugin's"
    assert all(choose_tuning(ToolsConfig(tuning=A), name) is A for name in (*find_owners(ToolsConfig()), "CLIP", "MIRROR"))


def test_an_owners_settings_are_those_of_all_tools_that_share_it() -> None:
    config = ToolsConfig(**OTHERS, tuning=A, tunings={"SELECT": B, "VQA": C})  # type: ignore[arg-type]
    assert list_tunings(config, "CLIP") == [B, B, A]
    assert (list_tunings(config, "VQA"), list_tunings(config, "MIRROR")) == ([C], [A])


@pytest.mark.parametrize("name", ["select", "COUNT", "PASTE", "MIRROR"])
def test_settings_that_no_tool_reads_are_refused(name: str) -> None:
    config = ToolsConfig(replace=ReplaceBackend.diffusion, tunings={"SELECT": A, name: B})
    with pytest.raises(
        ConfigError, match=rf"tools\.tunings: no tool reads {name}; .* are LOC, SEG, SELECT, FILTER, CLASSIFY, VQA, REPLACE, CLIP$"
    ):
        open_toolbox(config)


def test_a_plugins_settings_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolbox, "load_plugins", lambda modules: {"MIRROR": SimpleNamespace(signature=None, factory=None)})
    assert open_toolbox(ToolsConfig(tunings={"MIRROR": A, "CLIP": B})).find_tool("COUNT") is not None


def test_the_settings_of_the_paper_are_all_read_and_fit_the_text_of_a_clip() -> None:
    given = yaml.safe_load(Path("conf/tools/clova_paper.yaml").read_text())["tunings"]
    tunings = {name: PromptTuning(**values) for name, values in given.items()}
    for config in (ToolsConfig(**OTHERS, tunings=tunings), ToolsConfig(tunings=tunings)):  # type: ignore[arg-type]
        check_tunings(config)
        assert {name: choose_tuning(config, name) for name in tunings} == tunings
    assert max(tunings[name].tokens for name in ("SELECT", "CLASSIFY")) <= 77 - 17, "the rest is for begin, words and end"


def test_ablations_and_plans_of_a_workbench_are_those_of_every_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("flows._assistant_parts.open_toolbox", lambda config, **_: opened.append(config))
    learning = LearningConfig(validate=False, ensemble=False)
    assistant = AssistantConfig(tools=ToolsConfig(tunings={"LOC": A}), learning=learning)
    bench = Workbench.__new__(Workbench)
    bench.config, bench.folder = SimpleNamespace(assistant=assistant), Path("data/cycles/01")  # type: ignore[assignment]
    bench.__dict__["chat"] = None
    assert bench.tools is None
    [config] = opened
    assert [(item.min_validation, item.max_base_drop, item.ensemble) for item in (config.tuning, config.tunings["LOC"])] == [(0, 1, 1)] * 2
