"""Readers of outside data by the name of the dataset; a user's module adds one by ``register_reader``. See docs/add_a_dataset.md."""

import importlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from visloop.datasets.images import DatasetRead
from visloop.datasets.nlvr import read_nlvr
from visloop.errors import ConfigError
from visloop.records.reasoning import Split


class Reader(Protocol):
    """Reads the files in ``root``, stores pictures in ``out``, and names them ``<image_prefix>/<name>`` in the samples.

    ``counts`` are the questions that are wanted of each split; fewer may be there.
    """

    def __call__(self, root: Path, *, out: Path, image_prefix: str, counts: Mapping[Split, int]) -> DatasetRead: ...


@dataclass(frozen=True, slots=True)
class KnownReader:
    """``source`` is the file of a user's reader: it counts as an input of the stage, so that a change of it is noticed."""

    read: Reader
    source: Path | None = None


_SHIPPED: dict[str, Reader] = {"nlvr": read_nlvr}
_lock = threading.RLock()
_added: dict[str, Reader] = {}


def register_reader(name: str, read: Reader) -> None:
    """Let ``data.name=<name>`` be read by ``read``. Registering a name again replaces the reader.

    Raises:
        ConfigError: the name is one of visloop's, or cannot be a folder's.
    """
    if name in _SHIPPED or name == "scenes":
        raise ConfigError(f"reader {name!r}: visloop has a dataset of that name; choose another")
    if not name.isidentifier():
        raise ConfigError(f"reader {name!r}: the name is also a folder's; use letters, digits and underscores")
    with _lock:
        _added[name] = read


def find_reader(name: str, *, plugin: str = "") -> KnownReader:
    """The reader of a dataset.

    Args:
        name: ``data.name``.
        plugin: module that registers it (``data.plugin``); empty for the readers of visloop.

    Raises:
        ConfigError: the module cannot be imported, or nobody reads this dataset.
    """
    source = None
    with _lock:
        if plugin:
            try:
                source = importlib.import_module(plugin).__file__
            except ConfigError:
                raise
            except Exception as error:
                raise ConfigError(f"data.plugin: {plugin} cannot be imported: {type(error).__name__}: {error}") from error
            if name not in _added:
                raise ConfigError(f"data.plugin: {plugin} registers no reader of {name!r}; it must call register_reader({name!r}, ...)")
            return KnownReader(_added[name], None if source is None else Path(source))
        if name in _SHIPPED:
            return KnownReader(_SHIPPED[name])
    raise ConfigError(
        f"data.name={name!r}: there are readers for 'scenes', {', '.join(map(repr, _SHIPPED))}; data.plugin names the module of another"
    )
