"""Tools that users add: a module calls ``register_tool``, the configuration names the module. See docs/add_a_tool.md."""

import importlib
import re
import sys
import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from visloop.config_assistant import ToolsConfig
from visloop.errors import ConfigError
from visloop.tools.base import Tool, ToolSignature
from visloop.tools.signatures import ALIASES, SIGNATURES

ToolFactory: TypeAlias = Callable[[ToolsConfig], Tool]
"""Makes a tool at its first use, once for each toolbox."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A registered tool. ``owner`` is the module whose import registered it."""

    signature: ToolSignature
    factory: ToolFactory
    owner: str


_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_SESSION = ("", "__main__")
"""Owners of tools that were registered by hand, in a REPL or a script: every toolbox has them."""
_loading: ContextVar[str] = ContextVar("visloop_plugin_loading", default="")
_lock = threading.RLock()
_plugins: dict[str, Plugin] = {}


def register_tool(signature: ToolSignature, factory: ToolFactory) -> None:
    """Add a tool to every toolbox that is opened afterwards with the calling module among its plugins.

    Registering a name again from the same module replaces the tool.

    Raises:
        ConfigError: the name is no upper-case word, belongs to a tool of visloop or to another module's, or no task may use the tool.
    """
    name = signature.name
    owner = _loading.get() or getattr(factory, "__module__", None) or ""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"plugin {owner}: the tool name {name!r} must be upper-case letters, digits and underscores, like MIRROR")
    if name in SIGNATURES or name in ALIASES:
        raise ConfigError(f"plugin {owner}: the name {name} belongs to a tool of visloop; choose another")
    if not signature.kinds:
        raise ConfigError(f"plugin {owner}: the signature of {name} must list the kinds of tasks that may use it")
    with _lock:
        known = _plugins.get(name)
        if known is not None and known.owner != owner:
            raise ConfigError(f"plugin {owner}: the name {name} is taken by {known.owner or 'a tool registered by hand'}; choose another")
        _plugins[name] = Plugin(signature, factory, owner)


def load_plugins(modules: Sequence[str]) -> dict[str, Plugin]:
    """Import the modules; the tools they registered by name, with those that were registered by hand.

    Raises:
        ConfigError: a module cannot be imported, or registers no tool.
    """
    with _lock:
        for module in modules:
            token = _loading.set(module)
            try:
                importlib.import_module(module)
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"tools.plugins: {module} cannot be imported: {type(error).__name__}: {error}") from error
            finally:
                _loading.reset(token)
            if not any(_belongs(plugin, module) for plugin in _plugins.values()):
                raise ConfigError(f"tools.plugins: {module} registers no tool; it must call visloop.tools.toolbox.register_tool")
        return {
            name: plugin
            for name, plugin in _plugins.items()
            if plugin.owner in _SESSION or any(_belongs(plugin, module) for module in modules)
        }


def find_source(module: str) -> Path | None:
    """The file of a plugin's module, or the folder of a package: what a change of the plugin changes. None for one that is no file.

    Raises:
        ConfigError: the module cannot be imported, or registers no tool.
    """
    load_plugins([module])
    file = sys.modules[module].__file__
    if file is None:
        return None
    return Path(file).parent if Path(file).name == "__init__.py" else Path(file)


def _belongs(plugin: Plugin, module: str) -> bool:
    return plugin.owner == module or plugin.owner.startswith(f"{module}.")
