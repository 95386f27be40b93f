"""Which files models are loaded from, and whether these are still the ones that were recorded: a manifest of SHA-256 sums.

Nothing is fetched: a hub model is looked for in the hub's cache on this machine.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from visloop.chat.weights import SHIPPED_PREFIX, find_mirror, resolve_model, split_revision
from visloop.errors import DataError
from visloop.ids import hash_file
from visloop.records.shards import write_text

Origin = Literal["shipped", "folder", "mirror", "hub cache", "not here"]
WEIGHTS: Final = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf"})
_DESCRIPTIONS: Final = frozenset({".json", ".jinja", ".txt", ".model"})
"""Suffixes of configurations, tokenizers and templates: they decide as much as the weights what a model says."""
_HEAD: Final = "# Files that models are loaded from: bytes and SHA-256. Made and compared by `python -m apps.weights`.\n"


class FileSum(BaseModel):
    """Size and SHA-256 of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    bytes: int
    sha256: str


class ModelSums(BaseModel):
    """The files of one model by their names below its folder; the commit of one that is from the hub."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    revision: str | None = None
    files: dict[str, FileSum]


class WeightsManifest(BaseModel):
    """Models by the names that a configuration has for them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    models: dict[str, ModelSums]


@dataclass(frozen=True, slots=True)
class FoundModel:
    """Where a model lies; ``folder`` is None where it is not on this machine. ``revision``: the commit of a cached hub model, else the one
    that its name pins."""

    name: str
    origin: Origin
    folder: Path | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """What is other than recorded: of a file, or of the whole model (``file`` is empty)."""

    model: str
    file: str
    problem: str


def find_model(name: str) -> FoundModel:
    """Where the model of this name would be loaded from.

    Raises:
        ModelError: no name of a model, or a folder that holds none.
    """
    source = resolve_model(name)
    hub_id, revision = split_revision(source)
    if not Path(source).is_absolute():
        return _find_cached(name, hub_id, revision)
    folder, mirror = Path(source), find_mirror()
    if name.startswith(SHIPPED_PREFIX):
        return FoundModel(name, "shipped", folder)
    if mirror is not None and not Path(name).expanduser().is_dir():
        return FoundModel(name, "mirror", folder, split_revision(name)[1])
    return FoundModel(name, "folder", folder)


def _find_cached(name: str, hub_id: str, revision: str | None) -> FoundModel:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, revision=revision, local_files_only=True))
    except OSError:  # the hub's word for a model that is not in its cache
        return FoundModel(name, "not here", revision=revision)
    return FoundModel(name, "hub cache", folder, folder.name)


def sum_model(found: FoundModel) -> ModelSums:
    """Read every file that the model is loaded from.

    Raises:
        DataError: the model is not here.
    """
    if found.folder is None:
        raise DataError(f"model {found.name!r} is not on this machine; load it once, or mirror it")
    files = {path.relative_to(found.folder).as_posix(): path for path in sorted(found.folder.rglob("*")) if _is_loaded(path, found.folder)}
    return ModelSums(
        revision=found.revision, files={name: FileSum(bytes=path.stat().st_size, sha256=hash_file(path)) for name, path in files.items()}
    )


def _is_loaded(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix in WEIGHTS | _DESCRIPTIONS and path.is_file()


def compare_models(manifest: WeightsManifest, found: Mapping[str, ModelSums | None]) -> list[Difference]:
    """What of the models found (None: not here) is other than recorded, in the order of the names."""
    differences: list[Difference] = []
    for name in sorted({*manifest.models, *found}):
        recorded, now = manifest.models.get(name), found.get(name)
        if recorded is None:
            differences.append(Difference(name, "", "not in the manifest"))
        elif now is None:
            differences.append(Difference(name, "", "not on this machine"))
        else:
            if recorded.revision != now.revision:
                differences.append(Difference(name, "", f"revision {now.revision or 'none'}, recorded is {recorded.revision or 'none'}"))
            differences += _compare_files(name, recorded.files, now.files)
    return differences


def _compare_files(model: str, recorded: Mapping[str, FileSum], now: Mapping[str, FileSum]) -> Iterable[Difference]:
    for name in sorted({*recorded, *now}):
        before, after = recorded.get(name), now.get(name)
        if after is None:
            yield Difference(model, name, "missing")
        elif before is None:
            if Path(name).suffix in WEIGHTS:
                yield Difference(model, name, "weights that are not in the manifest")
        elif before.bytes != after.bytes:
            yield Difference(model, name, f"{after.bytes} bytes, recorded are {before.bytes}")
        elif before.sha256 != after.sha256:
            yield Difference(model, name, f"other bytes: SHA-256 {after.sha256[:12]}, recorded is {before.sha256[:12]}")


def write_weights_manifest(manifest: WeightsManifest, path: Path) -> None:
    """Write a manifest as YAML.

    Raises:
        DataError: it cannot be written.
    """
    try:
        write_text(path, _HEAD + yaml.safe_dump(manifest.model_dump(), sort_keys=True, width=140))
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror})") from error


def read_weights_manifest(path: Path) -> WeightsManifest:
    """Read what ``write_weights_manifest`` wrote.

    Raises:
        DataError: no such file, or one of another form.
    """
    try:
        return WeightsManifest.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no YAML: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"{path}: no manifest of weights: {'.'.join(map(str, first['loc'])) or 'file'}: {first['msg']}") from error
