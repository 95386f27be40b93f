"""From a model's name in a config to what can be loaded: a shipped model's folder, a local folder, a mirrored one, or a hub id.

A hub id may name its revision, ``owner/model@revision``: a commit stays what it was, a branch does not. ``VISLOOP_WEIGHTS`` names a folder
of mirrored models, ``owner/model`` or ``owner/model@revision`` below it, which is looked into before the hub.
"""

import os
import re
from pathlib import Path
from typing import Any

import visloop
from visloop.errors import ModelError

SHIPPED_PREFIX = "embedded/"
MIRROR = "VISLOOP_WEIGHTS"
"""The variable that names the folder of mirrored models: where weights lie is a machine's, as ``HF_HOME`` and ``HF_ENDPOINT`` are."""
_HUB_ID = re.compile(r"(?:[\w.-]+/[\w.-]+|[\w-][\w.-]*)(?:@\w[\w.-]*)?")
_CONFIGS = ("config.json", "adapter_config.json", "model_index.json", "modules.json")
"""What the folder of a model holds at its top: of transformers, peft, diffusers, sentence-transformers."""


def shipped_folder() -> Path:
    """Where the shipped models lie: one folder each."""
    return Path(visloop.__file__).parent / "embedded" / "weights"


def list_shipped() -> list[str]:
    """Names of the shipped models, in alphabetical order, as a config spells them."""
    return sorted(SHIPPED_PREFIX + path.parent.name for path in shipped_folder().glob("*/config.json"))


def resolve_model(name: str) -> str:
    """What to load for ``name``: an absolute folder for a shipped, a local or a mirrored model, the unchanged id for a hub model.

    ``embedded/<x>`` is the shipped model ``<x>``; another name that is a folder is that folder; else ``owner/model`` is a hub id, whose
    mirrored folder comes first. ``load_arguments`` makes of it what ``from_pretrained`` takes.

    Raises:
        ModelError: no such shipped model, a folder without ``config.json``, neither a folder nor a hub id, or no folder of mirrored models.
    """
    if name.startswith(SHIPPED_PREFIX):
        shipped = shipped_folder() / name.removeprefix(SHIPPED_PREFIX)
        if name not in list_shipped():
            raise ModelError(f"model {name!r}: no such shipped model; shipped are: {', '.join(list_shipped()) or 'none'}")
        return str(shipped.resolve())
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return _check_folder(name, folder)
    if not _HUB_ID.fullmatch(name) or name.startswith("."):
        raise ModelError(
            f"model {name!r}: no such folder, and not a hub id (owner/model, owner/model@revision) or a shipped name ({SHIPPED_PREFIX}...)"
        )
    root = find_mirror()
    return name if root is None or not (root / name).is_dir() else _check_folder(name, root / name)


def _check_folder(name: str, folder: Path) -> str:
    if not any((folder / file).is_file() for file in _CONFIGS):
        raise ModelError(
            f"model {name!r}: the folder has neither config.json nor adapter_config.json ({folder}); was it written to its end?"
        )
    return str(folder.resolve())


def find_mirror() -> Path | None:
    """The folder of mirrored models; None where ``VISLOOP_WEIGHTS`` names none.

    Raises:
        ModelError: it names something else.
    """
    value = os.environ.get(MIRROR, "")
    folder = Path(value).expanduser()
    if value and not folder.is_dir():
        raise ModelError(f"{MIRROR}={value}: no such folder; it must hold mirrored models, one folder owner/model each")
    return folder if value else None


def is_local(name: str) -> bool:
    """Whether a model needs no hub: a shipped name, or the name of a local or mirrored folder.

    Raises:
        ModelError: as ``find_mirror``.
    """
    root = find_mirror()
    return name.startswith(SHIPPED_PREFIX) or Path(name).expanduser().is_dir() or (root is not None and (root / name).is_dir())


def split_revision(source: str) -> tuple[str, str | None]:
    """(hub id, its revision or None) of what ``resolve_model`` gave; a folder has none."""
    if Path(source).is_absolute():
        return source, None
    name, _, revision = source.partition("@")
    return name, revision or None


def load_arguments(source: str) -> dict[str, Any]:
    """What every ``from_pretrained`` takes for what ``resolve_model`` gave: the folder or the hub id, with the revision if one is named."""
    name, revision = split_revision(source)
    return {"pretrained_model_name_or_path": name} | ({"revision": revision} if revision else {})


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
