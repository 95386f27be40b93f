"""From a model's name in a config to what can be loaded: a shipped model's folder, a local folder, or a hub id."""

import re
from pathlib import Path

import visloop
from visloop.errors import ModelError

SHIPPED_PREFIX = "embedded/"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w-][\w.-]*")


def shipped_folder() -> Path:
    """Where the shipped models lie: one folder each."""
    return Path(visloop.__file__).parent / "embedded" / "weights"


def list_shipped() -> list[str]:
    """Names of the shipped models, in alphabetical order, as a config spells them."""
    return sorted(SHIPPED_PREFIX + path.parent.name for path in shipped_folder().glob("*/config.json"))


def resolve_model(name: str) -> str:
    """What to load for ``name``: an absolute folder for a shipped or a local model, the unchanged id for a hub model.

    ``embedded/<x>`` is the shipped model ``<x>``; another name that is a folder is that folder; else ``owner/model`` is a hub id.

    Raises:
        ModelError: no such shipped model, a folder without ``config.json``, or neither a folder nor a hub id.
    """
    if name.startswith(SHIPPED_PREFIX):
        shipped = shipped_folder() / name.removeprefix(SHIPPED_PREFIX)
        if name not in list_shipped():
            raise ModelError(f"model {name!r}: no such shipped model; shipped are: {', '.join(list_shipped()) or 'none'}")
        return str(shipped.resolve())
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        if not any((folder / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise ModelError(f"model {name!r}: the folder has neither config.json nor adapter_config.json; was its training finished?")
        return str(folder.resolve())
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(f"model {name!r}: no such folder, and not a hub id (owner/model) or a shipped name ({SHIPPED_PREFIX}...)")
    return name


def name_model(name: str) -> str:
    """What records call the model ``name``: a shipped name or hub id as it stands; of a local folder its last two parts, so that the
    same work leaves the same bytes wherever the project lies (the hash of its weights is in the stage's manifest)."""
    folder = Path(name).expanduser()
    if name.startswith(SHIPPED_PREFIX) or not folder.is_dir():
        return name
    return "/".join(folder.resolve().parts[-2:])


def stamp_weights(source: str) -> int:
    """When the weights in folder ``source`` were last written (ns); 0 for a hub id. Tells a rewritten folder from the old one."""
    files = [*Path(source).glob("*.safetensors"), *Path(source).glob("*config.json")] if Path(source).is_dir() else []
    return max((file.stat().st_mtime_ns for file in files), default=0)
