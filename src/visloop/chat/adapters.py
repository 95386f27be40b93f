"""LoRA adapter folders: each names the base it was trained on by ``base.json``, wherever the folder itself lies.

A local base is named as a config names it, by its shipped name or from the working directory: an adapter is often written
in one folder and moved to another, so a path that starts at the adapter would lead nowhere. The recorded hash of the base's
weights decides whether what lies there is still the same base.
"""

import json
from functools import lru_cache
from pathlib import Path

from visloop.chat.weights import SHIPPED_PREFIX, find_mirror, resolve_model, shipped_folder, stamp_weights
from visloop.errors import ModelError
from visloop.ids import hash_file, hash_json

ADAPTER_CONFIG = "adapter_config.json"
BASE_FILE = "base.json"


def is_adapter(source: str | Path) -> bool:
    """Whether ``source`` is the folder of a LoRA adapter."""
    return (Path(source) / ADAPTER_CONFIG).is_file()


def name_base(source: str | Path) -> str:
    """How an adapter records its base: shipped name, hub id (of a mirrored folder, too), ``./path`` from the working directory, or what
    lies outside of it as it is.

    ``./`` keeps a local path apart from a shipped name and from a hub id.
    """
    folder = Path(source)
    if not folder.is_dir():
        return str(source)
    folder = folder.resolve()
    if folder.parent == shipped_folder().resolve():
        return SHIPPED_PREFIX + folder.name
    mirror = find_mirror()
    if mirror is not None and folder.is_relative_to(mirror.resolve()):
        return folder.relative_to(mirror.resolve()).as_posix()
    here = Path.cwd()
    return f"./{folder.relative_to(here).as_posix()}" if folder.is_relative_to(here) else folder.as_posix()


def write_base(adapter: Path, *, base: str | Path) -> None:
    """Write ``base.json``: the base's name and, for a local folder, the hash of its weights."""
    digest = hash_weights(base) if Path(base).is_dir() else None
    (adapter / BASE_FILE).write_text(json.dumps({"base": name_base(base), "hash": digest}, indent=2) + "\n", encoding="utf-8")


def find_base(adapter: str | Path) -> str:
    """What to load below an adapter: the folder or hub id of its base.

    Raises:
        ModelError: no readable ``base.json``, the base is not there, or its weights are not those that the adapter was trained on.
    """
    file = Path(adapter) / BASE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        base, digest = str(record["base"]), record["hash"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{file}: an adapter needs this file with the keys base and hash ({error})") from error
    try:
        source = resolve_model(base)
    except ModelError as error:
        raise ModelError(f"{file}: its base is not there, seen from {Path.cwd()} ({error}); put the base back or train again") from error
    if digest is None:
        return source
    if not Path(source).is_dir() or _hash_at(source, stamp_weights(source)) != digest:
        raise ModelError(f"{file}: the weights in {source} are not those that the adapter was trained on")
    return source


def hash_weights(path: str | Path) -> str:
    """SHA-256 over the ``*.safetensors`` files of a folder, names included.

    Raises:
        ModelError: the folder holds none.
    """
    files = sorted(Path(path).glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path}: no *.safetensors file there")
    return hash_json({file.name: hash_file(file) for file in files})


@lru_cache(maxsize=8)
def _hash_at(source: str, stamp: int) -> str:
    """The hash of weights that were last written at ``stamp``: a large base is read once per process, not once per adapter."""
    return hash_weights(source)
