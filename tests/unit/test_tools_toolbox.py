"""The toolbox: lazy shared tools, snapshots of prompts, tools that fail, plugins, and the page that explains them."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from tests.fixtures.scripted_chat import ScriptedChat
from visloop.config_assistant import ListBackend, RegionBackend, ReplaceBackend, ToolsConfig, VqaBackend
from visloop.errors import ConfigError, DataError, ModelError, ToolError
from visloop.records.assistant import PromptEntry
from visloop.tools import plugins
from visloop.tools.base import ToolCall, ToolResult, ToolSignature
from visloop.tools.pictures import prepare_image
from visloop.tools.plain import PlainTool
from visloop.tools.prompt_pool import LearnedPrompt, PromptPool
from visloop.tools.signatures import ALIASES, SIGNATURES, find_signature, list_signatures
from visloop.tools.toolbox import Toolbox, open_toolbox, register_tool
from visloop.tools.values import Box

PAGE = Path(__file__).parents[2] / "docs" / "add_a_tool.md"
IMAGE = Image.new("RGB", (8, 6))
CLIP_TOOLS = ("LOC", "SEG", "SELECT", "CLASSIFY", "FILTER", "VQA", "REPLACE")


class FakeModel:
    """A learnable tool that says with which model and pool it ran."""

    def __init__(self, name: str, *, model: object, pool: PromptPool) -> None:
        self.signature, self.model, self.pool, self.owner = SIGNATURES[name], model, pool, "CLIP"

    def with_pool(self, pool: PromptPool) -> "FakeModel":
        return FakeModel(self.signature.name, model=self.model, pool=pool)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        return [ToolResult(value="answer", prompts=tuple(self.pool.list_concepts("CLIP"))) for _ in calls]


def make_pool(concept: str) -> PromptPool:
    entry = PromptEntry(
        id=concept,
        tool="CLIP",
        concept=concept,
        backend="b",
        placement="p",
        instance_ids=(),
        train_accuracy=1.0,
        validation_accuracy=1.0,
        base_accuracy=1.0,
        base_accuracy_before=1.0,
    )
    return PromptPool((LearnedPrompt(entry=entry, feature=np.zeros(2, np.float32), prompt=np.zeros((1, 2), np.float32)),))


def install_backend(monkeypatch: pytest.MonkeyPatch, module: str, name: str, factory: Callable[..., object]) -> None:
    fake = ModuleType(f"visloop.tools.{module}")
    setattr(fake, name, factory)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)


@pytest.fixture
def clip_loads(monkeypatch: pytest.MonkeyPatch) -> list[PromptPool]:
    """A fake CLIP backend; the pools that it was loaded with, one per load."""
    loads: list[PromptPool] = []

    def make_clip_tools(config: ToolsConfig, pool: PromptPool) -> Mapping[str, FakeModel]:
        time.sleep(0.05)
        loads.append(pool)
        model = object()
        return {name: FakeModel(name, model=model, pool=pool) for name in CLIP_TOOLS}

    install_backend(monkeypatch, "clip_tools", "make_clip_tools", make_clip_tools)
    return loads


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_plugins", {})


def make_call(tool: str, **arguments: object) -> ToolCall:
    return ToolCall(tool=tool, arguments=arguments)  # type: ignore[arg-type]


def ask(toolbox: Toolbox, tool: str, **arguments: object) -> ToolResult:
    [result] = toolbox.run(tool, [make_call(tool, **arguments)])
    return result


def test_the_catalogue_and_its_aliases_are_found_and_nothing_else() -> None:
    toolbox = open_toolbox(ToolsConfig())
    for name in (*SIGNATURES, *ALIASES):
        assert toolbox.find_signature(name) == find_signature(name)
    assert toolbox.find_signature("UNICORN") is None
    assert toolbox.find_tool("UNICORN") is None
    for kind in ("vqa", "multi_image", "editing", "tagging"):
        assert toolbox.list_signatures(kind) == list_signatures(kind)


def test_plain_tools_answer_and_an_alias_is_its_tool() -> None:
    toolbox = open_toolbox(ToolsConfig())
    box = (Box(left=1, top=1, right=3, bottom=5),)
    assert ask(toolbox, "COUNT", box=box).value == 1
    assert ask(toolbox, "CROP", image=IMAGE, box=box).value.size == (2, 4)
    assert ask(toolbox, "CROP_INFRONTOF", image=IMAGE, box=box).value.size == (2, 4)
    assert ask(toolbox, "CROP_BEHIND", image=IMAGE, box=box).value.size == (8, 3)
    assert toolbox.find_tool("CROP_BEHIND") is toolbox.find_tool("CROP_ABOVE")
    assert ask(toolbox, "LIST", query="warm colors", max=1).value == ("red",)
    assert ask(toolbox, "TAG", image=IMAGE, object=box).error is None
    assert ask(toolbox, "FACEDET", image=IMAGE).value == ()
    assert toolbox.run("COUNT", []) == []


@pytest.mark.parametrize("value", [True, 0, "", (), ("a",), IMAGE])
def test_result_gives_back_its_variable_also_where_it_is_empty(value: object) -> None:
    assert ask(open_toolbox(ToolsConfig()), "RESULT", var=value).value == value


def test_result_without_a_value_is_an_error() -> None:
    assert "argument var" in str(ask(open_toolbox(ToolsConfig()), "RESULT").error)


def test_an_unknown_tool_is_an_error_of_every_call() -> None:
    results = open_toolbox(ToolsConfig()).run("UNICORN", [make_call("UNICORN")] * 2)
    assert [result.value for result in results] == [None, None]
    assert "'UNICORN'; there are LOC, SEG" in str(results[1].error)


def test_a_backend_is_loaded_at_its_first_call_and_once(clip_loads: list[PromptPool]) -> None:
    toolbox = open_toolbox(ToolsConfig())
    assert clip_loads == []
    assert ask(toolbox, "COUNT", box=()).value == 0
    assert clip_loads == []
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(toolbox.find_tool, CLIP_TOOLS * 4))
    assert len(clip_loads) == 1
    assert len({id(tool) for tool in found}) == len(CLIP_TOOLS)
    assert len({id(tool.model) for tool in found}) == 1  # type: ignore[union-attr]


def test_a_slow_load_does_not_hold_up_other_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def make_clip_tools(config: ToolsConfig, pool: PromptPool) -> Mapping[str, FakeModel]:
        assert release.wait(20)
        return {"VQA": FakeModel("VQA", model=0, pool=pool)}

    install_backend(monkeypatch, "clip_tools", "make_clip_tools", make_clip_tools)
    toolbox = open_toolbox(ToolsConfig())
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, toolbox, "VQA", image=IMAGE, question="what?")
        assert ask(toolbox, "COUNT", box=()).value == 0
        assert not waiting.done()
        release.set()
        assert waiting.result(20).value == "answer"


def test_another_pool_shares_the_model_and_leaves_the_first_toolbox_alone(clip_loads: list[PromptPool]) -> None:
    plain = open_toolbox(ToolsConfig())
    early = plain.with_pool(make_pool("star"))
    before = plain.find_tool("VQA")
    late = plain.with_pool(make_pool("teal")).with_pool(make_pool("pink"))
    assert [ask(toolbox, "VQA", image=IMAGE, question="q").prompts for toolbox in (plain, early, late)] == [(), ("star",), ("pink",)]
    assert len(clip_loads) == 1
    assert plain.find_tool("VQA") is before
    assert early.find_tool("VQA") is early.find_tool("VQA")
    assert early.find_tool("VQA").model is before.model  # type: ignore[union-attr]
    assert (plain.pool.hash, early.pool.hash) == (PromptPool().hash, make_pool("star").hash)
    assert early.find_tool("COUNT") is plain.find_tool("COUNT")


def test_a_load_through_a_derived_toolbox_is_the_first_ones_too(clip_loads: list[PromptPool]) -> None:
    plain = open_toolbox(ToolsConfig(), pool=make_pool("star"))
    assert ask(plain.with_pool(make_pool("teal")), "SEG", image=IMAGE).error is not None, "FakeModel says a Text, SEG promises Objects"
    assert ask(plain, "VQA", image=IMAGE, question="q").prompts == ("star",)
    assert [pool.hash for pool in clip_loads] == [make_pool("star").hash]


def test_every_backend_is_asked_for_the_tool_it_has(monkeypatch: pytest.MonkeyPatch, clip_loads: list[PromptPool]) -> None:
    seen: dict[str, Mapping[str, object]] = {}

    def make(tool: str) -> Callable[..., FakeModel]:
        def factory(config: ToolsConfig, pool: PromptPool, *, root: Path = Path(), answer: object = None) -> FakeModel:
            seen[tool] = {"root": root, "answer": answer}
            return FakeModel(tool, model=tool, pool=pool)

        return factory

    for tool, module, name in (
        ("LOC", "detectors", "make_detector"),
        ("SEG", "segmenters", "make_segmenter"),
        ("VQA", "answerers", "make_answerer"),
        ("REPLACE", "painters", "make_painter"),
    ):
        install_backend(monkeypatch, module, name, make(tool))

    def answer(questions: Sequence[object]) -> list[str]:
        return []

    config = ToolsConfig(
        loc=RegionBackend.owlvit, seg=RegionBackend.clipseg, vqa=VqaBackend.agents, replace=ReplaceBackend.diffusion, names=ListBackend.chat
    )
    chat = ScriptedChat(lambda _: '["Ann"]')
    toolbox = open_toolbox(config, chat=chat, answer=answer, root=Path("data"))
    assert [toolbox.find_tool(tool).model for tool in ("LOC", "SEG", "VQA", "REPLACE")] == ["LOC", "SEG", "VQA", "REPLACE"]  # type: ignore[union-attr]
    assert seen["VQA"] == {"root": Path("data"), "answer": answer}
    assert clip_loads == []
    assert ask(toolbox, "LIST", query="staff", max=2).value == ("Ann",)
    assert toolbox.find_tool("FILTER").model not in seen  # type: ignore[union-attr]
    assert len(clip_loads) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loc": RegionBackend.maskformer}, "tools.loc: maskformer is not a backend of this tool; there are proposals, owlvit"),
        ({"seg": RegionBackend.owlvit}, "tools.seg: owlvit is not a backend"),
        ({"names": ListBackend.chat}, "tools.names is chat, but no chat model"),
        ({"vqa": VqaBackend.agents}, "tools.vqa is agents, but nothing was given"),
        ({"plugins": ["no_such_module_anywhere"]}, "tools.plugins: no_such_module_anywhere cannot be imported"),
        ({"plugins": ["json"]}, "tools.plugins: json registers no tool"),
    ],
)
def test_a_wrong_configuration_is_refused_before_anything_is_loaded(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        open_toolbox(ToolsConfig(**changes))  # type: ignore[arg-type]


def test_a_tool_that_cannot_be_loaded_raises_and_is_tried_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    attempts = []

    def make_clip_tools(config: ToolsConfig, pool: PromptPool) -> Mapping[str, object]:
        attempts.append(0)
        if len(attempts) == 1:
            raise ImportError("No module named 'clipper'")
        return {"VQA": FakeModel("VQA", model=0, pool=pool), "SEG": "no tool"}

    install_backend(monkeypatch, "clip_tools", "make_clip_tools", make_clip_tools)
    toolbox = open_toolbox(ToolsConfig(facts=str(tmp_path / "none.json")))
    with pytest.raises(ModelError, match="tool VQA: its module cannot be imported: No module named 'clipper'"):
        ask(toolbox, "VQA", image=IMAGE, question="q")
    assert ask(toolbox, "VQA", image=IMAGE, question="q").value == "answer"
    with pytest.raises(ConfigError, match="tool SEG: its factory gave 'no tool'"):
        ask(toolbox, "SEG", image=IMAGE)
    with pytest.raises(DataError, match=r"none\.json"):
        ask(toolbox, "LIST", query="q", max=1)


ODD = ToolSignature(name="ODD", parameters=(), returns="Number", doc="odd", kinds=("vqa",))


class OddTool:
    signature = ODD

    def __init__(self, run: Callable[[Sequence[ToolCall]], object]) -> None:
        self._run = run

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        return self._run(calls)  # type: ignore[return-value]


def run_odd(run: Callable[[Sequence[ToolCall]], object], calls: Sequence[ToolCall] | None = None) -> list[ToolResult]:
    register_tool(ODD, lambda config: OddTool(run))
    toolbox = open_toolbox(ToolsConfig(plugins=[__name__]))
    return toolbox.run("ODD", calls or [make_call("ODD", n=index) for index in range(3)])


def test_a_call_that_raises_does_not_lose_its_batch() -> None:
    batches: list[int] = []

    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        batches.append(len(calls))
        if any(call.arguments["n"] == 1 for call in calls):
            raise ValueError("one is not a number")
        return [ToolResult(value=call.arguments["n"]) for call in calls]

    results = run_odd(run)
    assert [result.value for result in results] == [0, None, 2]
    assert results[1].error == "ODD: ValueError: one is not a number"
    assert batches == [3, 1, 1, 1]


def test_a_tool_error_is_told_in_its_own_words() -> None:
    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        raise ToolError("the lens is dirty")

    assert {result.error for result in run_odd(run)} == {"ODD: the lens is dirty"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda calls: [ToolResult(value=1)], "ODD: 1 results for 3 calls"),
        (lambda calls: None, "a NoneType of results for 3 calls"),
        (lambda calls: [1, 2, 3], "ODD: a int in place of a ToolResult"),
        (lambda calls: [ToolResult(value="one")] * 3, "ODD: a str in place of Number"),
        (lambda calls: [ToolResult(value=True)] * 3, "ODD: a bool in place of Number"),
        (lambda calls: [ToolResult(value=())] * 3, "ODD: a tuple in place of Number"),
        (lambda calls: [ToolResult(value=None)] * 3, "and no error"),
        (lambda calls: [ToolResult(value={"a": 1})] * 3, "dict is not a value of programs"),  # type: ignore[arg-type]
    ],
)
def test_a_broken_contract_is_an_error_of_every_call(given: Callable[[Sequence[ToolCall]], object], message: str) -> None:
    results = run_odd(given)
    assert len(results) == 3
    assert all(result.value is None and message in str(result.error) for result in results)


def test_an_interrupt_is_not_swallowed() -> None:
    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_odd(run)


def make_odd(config: ToolsConfig) -> PlainTool:
    return PlainTool(ODD, lambda call: 1)


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (ToolSignature(name="odd", parameters=(), returns="Any", doc="", kinds=("vqa",)), "'odd' must be upper-case"),
        (ToolSignature(name="LOC", parameters=(), returns="Any", doc="", kinds=("vqa",)), "LOC belongs to a tool of visloop"),
        (ToolSignature(name="CROP_AHEAD", parameters=(), returns="Any", doc="", kinds=("vqa",)), "CROP_AHEAD belongs to a tool"),
        (ToolSignature(name="ODD", parameters=(), returns="Any", doc="", kinds=()), "must list the kinds"),
    ],
)
def test_a_plugin_that_cannot_be_called_is_refused(signature: ToolSignature, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        register_tool(signature, make_odd)


@pytest.fixture
def module_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose modules can be imported; they are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


TEMPLATE = """
from visloop.tools.base import ToolSignature
from visloop.tools.plain import PlainTool
from visloop.tools.toolbox import register_tool
SIGNATURE = ToolSignature(name="{name}", parameters=(), returns="Number", doc="d", kinds=("vqa",))
register_tool(SIGNATURE, lambda config: PlainTool(SIGNATURE, lambda call: {value}))
"""


def test_a_toolbox_has_the_plugins_of_its_own_configuration(module_folder: Path) -> None:
    (module_folder / "one_plugin.py").write_text(TEMPLATE.format(name="ONE", value=1))
    (module_folder / "two_plugin.py").write_text(TEMPLATE.format(name="TWO", value=2))
    one, two = (open_toolbox(ToolsConfig(plugins=[name])) for name in ("one_plugin", "two_plugin"))
    assert (ask(one, "ONE").value, ask(two, "TWO").value) == (1, 2)
    assert one.find_signature("TWO") is None
    assert [signature.name for signature in two.list_signatures("vqa")][-1] == "TWO"
    assert ask(open_toolbox(ToolsConfig(plugins=["two_plugin", "one_plugin"])), "ONE").value == 1


def test_two_plugins_with_one_name_are_refused_and_a_broken_one_is_named(module_folder: Path) -> None:
    (module_folder / "one_plugin.py").write_text(TEMPLATE.format(name="SAME", value=1))
    (module_folder / "two_plugin.py").write_text(TEMPLATE.format(name="SAME", value=2))
    (module_folder / "bad_plugin.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="plugin two_plugin: the name SAME is taken by one_plugin"):
        open_toolbox(ToolsConfig(plugins=["one_plugin", "two_plugin"]))
    with pytest.raises(ConfigError, match="bad_plugin cannot be imported: ZeroDivisionError"):
        open_toolbox(ToolsConfig(plugins=["bad_plugin"]))


def test_the_page_about_adding_a_tool_works_as_it_stands(module_folder: Path) -> None:
    text = PAGE.read_text()
    [source] = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (module_folder / "mirror_tool.py").write_text(source)
    [module] = set(re.findall(r"plugins(?:=|: )\[(\w+)\]", text))
    toolbox = open_toolbox(ToolsConfig(plugins=[module]))
    signature = toolbox.find_signature("MIRROR")
    assert signature is not None
    assert signature.describe() in text
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(1, 2, 3))
    [line] = re.findall(r"^IMAGE0=(\w+)\(image=IMAGE\)$", text, flags=re.MULTILINE)
    mirrored = ask(toolbox, line, image=image)
    assert np.asarray(mirrored.value).tolist() == [[[3, 4, 5], [0, 1, 2]]]
    assert ask(toolbox, "RESULT", var=mirrored.value).value is mirrored.value
    assert ask(toolbox, "MIRROR", image="no picture").error == "MIRROR: argument image must be an Image, got str 'no picture'"


def test_a_picture_is_prepared_from_a_file_or_from_memory(tmp_path: Path) -> None:
    wide = Image.new("RGBA", (1280, 320), (255, 0, 0, 0))
    wide.save(tmp_path / "wide.png")
    for source in (wide, tmp_path / "wide.png", str(tmp_path / "wide.png")):
        prepared = prepare_image(source, max_side=640)
        assert (prepared.size, prepared.mode, prepared.getpixel((0, 0))) == ((640, 160), "RGB", (255, 255, 255))
    assert prepare_image(Image.new("L", (5000, 1)), max_side=100).size == (100, 1)
    assert prepare_image(IMAGE, max_side=8).size == (8, 6)
    with pytest.raises(ConfigError, match="max_image_side"):
        prepare_image(IMAGE, max_side=0)
    with pytest.raises(DataError, match=r"none\.png"):
        prepare_image(tmp_path / "none.png", max_side=640)


def test_opening_and_using_plain_tools_imports_no_heavy_library() -> None:
    code = (
        "import sys; from visloop.config_assistant import ToolsConfig; from visloop.tools.base import ToolCall;"
        "from visloop.tools.toolbox import open_toolbox; box = open_toolbox(ToolsConfig());"
        "[box.find_tool(name) for name in ('CROP', 'TAG', 'FACEDET', 'LIST', 'RESULT')];"
        "import visloop.tools.proposals, visloop.tools.pictures;"
        "print(sorted({'torch', 'transformers', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.stdout.strip() == "[]"
