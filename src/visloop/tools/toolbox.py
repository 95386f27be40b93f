"""The toolbox: tools by name, made on first use, shared, and run so that no failing tool stops a batch of programs.

Tools of this package come from the modules of ``_open_sources``, further ones from plugins: modules named in ``ToolsConfig.plugins``
that call ``register_tool``. A backend's module is imported when its first tool is asked for, so a toolbox costs nothing to open.
"""

import importlib
import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from visloop.chat.base import ChatModel
from visloop.config_assistant import ListBackend, RegionBackend, ReplaceBackend, ToolsConfig, VqaBackend
from visloop.errors import ConfigError, ModelError, ToolError
from visloop.prompts.render import PromptSet
from visloop.records.assistant import TaskKind
from visloop.tools.base import Tool, ToolCall, ToolResult, ToolSignature
from visloop.tools.failures import OutOfMemoryError, note_failure
from visloop.tools.plain import PlainTool
from visloop.tools.plugins import ToolFactory, load_plugins, register_tool
from visloop.tools.prompt_pool import PromptPool
from visloop.tools.signatures import ALIASES, SIGNATURES
from visloop.tools.tunings import check_tunings
from visloop.tools.values import ValueType, type_of

__all__ = ["ToolFactory", "Toolbox", "open_toolbox", "register_tool"]

_LOC_SOURCES: Final = {RegionBackend.proposals: "clip", RegionBackend.owlvit: "detector"}
_SEG_SOURCES: Final = {RegionBackend.proposals: "clip", RegionBackend.maskformer: "segmenter", RegionBackend.clipseg: "segmenter"}
_VQA_SOURCES: Final = {VqaBackend.clip: "clip", VqaBackend.blip: "answerer", VqaBackend.agents: "answerer"}
_REPLACE_SOURCES: Final = {ReplaceBackend.paste: "clip", ReplaceBackend.diffusion: "painter"}
_DRAWING: Final = ("COLORPOP", "BGBLUR", "EMOJI", "TAG")
_SIMPLE: Final = {"FACEDET": "faces", "LIST": "names", "EVAL": "expressions", "RESULT": "result"} | dict.fromkeys(_DRAWING, "drawing")


class _Source:
    """Tools that are loaded together, once, whichever thread asks first. A failed load is tried again at the next call."""

    def __init__(self, load: Callable[[], Mapping[str, Tool]]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._tools: Mapping[str, Tool] | None = None

    def take(self, name: str) -> Tool:
        with self._lock:
            if self._tools is None:
                try:
                    self._tools = self._load()
                except ImportError as error:
                    raise ModelError(f"tool {name}: its module cannot be imported: {error}") from error
        if not callable(getattr(self._tools.get(name), "run", None)):
            raise ConfigError(f"tool {name}: its factory gave {self._tools.get(name)!r}, which has no run(calls)")
        return self._tools[name]


class Toolbox:
    """All tools of a configuration with one snapshot of prompts (a ``ToolRunner``). May be used by several threads at once."""

    def __init__(
        self, *, signatures: Mapping[str, ToolSignature], sources: Mapping[str, _Source], pool: PromptPool, loaded_with: PromptPool
    ) -> None:
        self.pool = pool
        self._signatures, self._sources, self._loaded_with = signatures, sources, loaded_with
        self._tools: dict[str, Tool] = {}
        self._lock = threading.Lock()

    def find_signature(self, name: str) -> ToolSignature | None:
        """The signature of a tool, an alias or a plugin; None for an unknown name."""
        return self._signatures.get(ALIASES.get(name, name))

    def list_signatures(self, kind: TaskKind) -> tuple[ToolSignature, ...]:
        """The tools that tasks of this kind may use: the catalogue's in its order, then plugins."""
        return tuple(signature for signature in self._signatures.values() if kind in signature.kinds)

    def find_tool(self, name: str) -> Tool | None:
        """The tool of this name or alias, loaded at the first call, with this toolbox's prompts; None for an unknown name.

        Raises:
            ConfigError: the configuration cannot give it.
            ModelError: its model or module cannot be loaded.
        """
        name = ALIASES.get(name, name)
        if name not in self._sources:
            return None
        shared = self._sources[name].take(name)
        change_pool = getattr(shared, "with_pool", None)
        if change_pool is None or self.pool is self._loaded_with:
            return shared
        with self._lock:
            if name not in self._tools:
                self._tools[name] = change_pool(self.pool)
            return self._tools[name]

    def with_pool(self, pool: PromptPool) -> "Toolbox":
        """The same loaded models (also those that are loaded later) with another snapshot of prompts. This toolbox stays as it is."""
        return Toolbox(signatures=self._signatures, sources=self._sources, pool=pool, loaded_with=self._loaded_with)

    def run(self, tool: str, calls: Sequence[ToolCall]) -> list[ToolResult]:
        """Results of calls of one tool, in order.

        A tool that raises is asked again call by call, so that one bad call does not lose the others; what still raises becomes its
        call's ``error``. So do an unknown name, a broken contract and a value of another type than the signature promises.

        Raises:
            ConfigError, ModelError: the tool cannot be loaded, or a call alone does not fit into memory. No program is to blame for
                that, so it is not made a result.
        """
        if not calls:
            return []
        found = self.find_tool(tool)
        if found is None:
            known = ", ".join(self._signatures)
            return [ToolResult(value=None, error=f"no tool is called {tool!r}; there are {known}") for _ in calls]
        return _run_guarded(found, list(calls), name=ALIASES.get(tool, tool))


def _run_guarded(tool: Tool, calls: list[ToolCall], *, name: str) -> list[ToolResult]:
    results: Any = None
    shown: str | None = None
    try:
        results = tool.run(calls)
    except OutOfMemoryError:
        raise
    except Exception as error:
        note_failure(error, tool=name, calls=len(calls))
        shown = str(error) if isinstance(error, ToolError) else f"{type(error).__name__}: {error}"
    if shown is not None:
        # not while the exception is handled: it holds what the batch had in memory
        if len(calls) > 1:
            return [result for call in calls for result in _run_guarded(tool, [call], name=name)]
        return [ToolResult(value=None, error=f"{name}: {shown}")]
    if not isinstance(results, list) or len(results) != len(calls):
        count = len(results) if isinstance(results, list) else f"a {type(results).__name__} of"
        return [
            ToolResult(value=None, error=f"{name}: {count} results for {len(calls)} calls; a tool gives a list of one each") for _ in calls
        ]
    return [_check_result(result, tool.signature, name=name) for result in results]


def _check_result(result: Any, signature: ToolSignature, *, name: str) -> ToolResult:
    if not isinstance(result, ToolResult):
        return ToolResult(value=None, error=f"{name}: a {type(result).__name__} in place of a ToolResult")
    if result.error is not None:
        return result
    try:
        if result.value is None or not _fits(result.value, signature.returns):
            raise TypeError(f"a {type(result.value).__name__} in place of {signature.returns}, and no error")
    except TypeError as error:
        return ToolResult(value=None, error=f"{name}: {error}")
    return result


def _fits(value: Any, wanted: ValueType) -> bool:
    kind = type_of(value)
    if value == ():
        return wanted in ("Boxes", "Objects", "List", "Any")
    return wanted in ("Any", kind)


def open_toolbox(
    config: ToolsConfig,
    *,
    pool: PromptPool | None = None,
    chat: ChatModel | None = None,
    answer: Callable[..., list[str]] | None = None,
    open_check: Callable[[], Callable[..., list[str]]] | None = None,
    root: Path = Path(),
) -> Toolbox:
    """A toolbox for a configuration; nothing is loaded yet.

    Args:
        pool: the learned prompts to use; None for none.
        chat: what LIST asks where ``config.names`` is ``chat``.
        answer: what VQA asks where ``config.vqa`` is ``agents`` (see ``visloop.tools.answerers``).
        open_check: loads what looks at painted pictures (see ``visloop.tools.painters``); None: nobody does.
        root: the data folder that paths of instances start from, for tools that are tuned.

    Raises:
        ConfigError: a backend that a tool does not have, a backend without what it needs, a plugin that cannot be loaded, or settings of a
            single tool that no tool reads.
    """
    pool = pool if pool is not None else PromptPool()
    if config.names is ListBackend.chat and chat is None:
        raise ConfigError("tools.names is chat, but no chat model was given; give open_toolbox chat=..., or set tools.names to facts")
    if config.vqa is VqaBackend.agents and answer is None:
        raise ConfigError("tools.vqa is agents, but nothing was given that answers; give open_toolbox answer=..., or set tools.vqa to clip")
    routes = dict.fromkeys(("SELECT", "CLASSIFY", "FILTER"), "clip") | _SIMPLE
    routes["LOC"] = _choose(_LOC_SOURCES, config.loc, key="tools.loc")
    routes["SEG"] = _choose(_SEG_SOURCES, config.seg, key="tools.seg")
    routes["VQA"] = _choose(_VQA_SOURCES, config.vqa, key="tools.vqa")
    routes["REPLACE"] = _choose(_REPLACE_SOURCES, config.replace, key="tools.replace")
    sources = _open_sources(config, pool=pool, chat=chat, extras={"answer": answer, "open_check": open_check, "root": root})
    # what no other source makes is a tool about places
    by_name = {name: sources[routes.get(name, "regions")] for name in SIGNATURES}
    signatures, plugins = dict(SIGNATURES), load_plugins(config.plugins)
    check_tunings(config, plugins=plugins)
    for name, plugin in plugins.items():
        signatures[name] = plugin.signature
        by_name[name] = _Source(lambda plugin=plugin, name=name: {name: plugin.factory(config)})  # type: ignore[misc]
    return Toolbox(signatures=signatures, sources=by_name, pool=pool, loaded_with=pool)


def _choose(sources: Mapping[Any, str], backend: Any, *, key: str) -> str:
    if backend not in sources:
        known = ", ".join(choice.value for choice in sources)
        raise ConfigError(f"{key}: {getattr(backend, 'value', backend)} is not a backend of this tool; there are {known}")
    return sources[backend]


def _open_sources(config: ToolsConfig, *, pool: PromptPool, chat: ChatModel | None, extras: Mapping[str, object]) -> dict[str, _Source]:
    def make(module: str, factory: str) -> Any:
        """The result of a backend's factory, which is given those of the extras that it asks for."""
        found = getattr(importlib.import_module(f"visloop.tools.{module}"), factory)
        asked = inspect.signature(found).parameters
        return found(config, pool, **{name: value for name, value in extras.items() if name in asked})

    def call(module: str, factory: str) -> Any:
        return getattr(importlib.import_module(f"visloop.tools.{module}"), factory)

    def load_names() -> Mapping[str, Tool]:
        if config.names is ListBackend.chat:
            return {"LIST": call("knowledge", "ChatLister")(chat, PromptSet("full"))}
        return {"LIST": call("knowledge", "make_facts_tool")(Path(config.facts) if config.facts else None)}

    return {
        "clip": _Source(lambda: make("clip_tools", "make_clip_tools")),
        "detector": _Source(lambda: {"LOC": make("detectors", "make_detector")}),
        "segmenter": _Source(lambda: {"SEG": make("segmenters", "make_segmenter")}),
        "answerer": _Source(lambda: {"VQA": make("answerers", "make_answerer")}),
        "painter": _Source(lambda: {"REPLACE": make("painters", "make_painter")}),
        "regions": _Source(lambda: call("regions", "make_region_tools")()),
        "drawing": _Source(lambda: call("drawing", "make_drawing_tools")()),
        "faces": _Source(lambda: {"FACEDET": call("faces", "make_face_tool")()}),
        "expressions": _Source(lambda: {"EVAL": call("expressions", "EvalTool")()}),
        "names": _Source(load_names),
        "result": _Source(lambda: {"RESULT": PlainTool(SIGNATURES["RESULT"], _give_result)}),
    }


def _give_result(call: ToolCall) -> Any:
    value = call.arguments.get("var")
    if value is None:
        raise ToolError("argument var must name the variable that holds the program's result")
    return value
