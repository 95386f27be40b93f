"""M_t and the assistant's pools in MLflow's model registry: a LoggedModel with its metrics, a version of a registered model, aliases.

Weights are not kept twice. An adapter's files become the LoggedModel's artifacts; full weights and pools stay where DVC keeps them and
the LoggedModel holds ``weights.json``, which names their folder and the SHA-256 of every file. ``mlflow.transformers.log_model`` is
not used: over a local base it silently drops adapters when the model is loaded back.
"""

import json
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows._database import call_patiently, connect
from flows._layout import pool_inputs
from flows._provenance import clean_name
from flows._tracking import TrackedRun
from visloop.errors import DataError, ModelError
from visloop.ids import hash_file, hash_json
from visloop.records.manifest import read_manifest

REASONER, POOLS = "visloop-reasoner", "visloop-pools"
"""Registered models: the reasoners M_t, and what the assistant has learned after each cycle (its pools)."""
WEIGHTS_NAME = "weights.json"
NEWEST, CHAMPION = "newest", "champion"
"""Aliases: of the last registered version (``latest`` is reserved by MLflow), and of the promoted one."""
DIGEST_TAG, WEIGHTS_TAG, KIND_TAG = "visloop.digest", "visloop.weights", "visloop.kind"
FOLDER_TAG, STAGE_TAG, DATA_TAG = "visloop.folder", "visloop.stage", "visloop.data"
"""Where a version was registered from and the data folder it belongs to, both relative to the project; and the hash of the stage that made
it, by which other stages name it as their input."""
Kind = Literal["adapter", "full", "pools"]
_ADAPTER_CONFIG, _ADAPTER_BASE = "adapter_config.json", "base.json"


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A version in the registry. ``digest``: one SHA-256 over all files of the model."""

    name: str
    version: int
    model_id: str
    digest: str
    kind: Kind


def register_model(
    run: TrackedRun,
    *,
    name: str,
    folder: Path,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    aliases: Sequence[str] = (),
    data: Path | None = None,
) -> RegisteredModel:
    """Enter what lies in ``folder`` as a version of ``name``; the same files from the same run are entered once.

    Args:
        run: the run that made the model (the round's child run).
        folder: a saved PEFT adapter (it has ``adapter_config.json``), full weights (hidden files and ``checkpoint*`` are left out), or a
            cycle (of which the pools count).
        metrics: recorded on the LoggedModel with the run's step.
        params: settings shown on the LoggedModel.
        tags: e.g. the parent M_t-1 and the hash of its data.
        aliases: e.g. ``m1``, in addition to ``newest``. An alias moves to the version that is given it last.
        data: the data folder that it belongs to: its predictions and what it was made from are looked for there.

    Raises:
        ModelError: the folder holds no model files.
    """
    from mlflow.entities import LoggedModelStatus, Metric

    kind = _find_kind(folder)
    files = _hash_version(folder, kind)
    digest = hash_json(files)
    weights = hash_json({file: value for file, value in files.items() if file.endswith(".safetensors")})
    labels = {DIGEST_TAG: digest, WEIGHTS_TAG: weights, KIND_TAG: kind, "round": str(run.step), **_describe_place(run, folder, data)}
    labels |= tags or {}
    client = run.client
    version = _find_version(run, name=name, digest=digest)
    if version is None:
        logged = client.create_logged_model(
            run.experiment_id,
            name=name,
            source_run_id=run.run_id,
            tags=labels,
            params={key: str(value) for key, value in (params or {}).items()},
        )
        try:
            _store_files(run, logged, folder=folder, files=files, kind=kind)
        except BaseException:
            client.finalize_logged_model(logged.model_id, LoggedModelStatus.FAILED)
            raise
        client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)
        now = int(time.time() * 1000)
        values = [Metric(clean_name(key), float(value), now, run.step, model_id=logged.model_id) for key, value in (metrics or {}).items()]
        client.log_batch(run.run_id, metrics=values)
        _ensure_name(run, name)
        version = client.create_model_version(
            name, source=f"models:/{logged.model_id}", run_id=run.run_id, model_id=logged.model_id, tags=labels
        )
    for key, value in labels.items():
        if version.tags.get(key) != value:  # the same files, made or placed otherwise since
            client.set_model_version_tag(name, version.version, key, value)
    for alias in (*aliases, NEWEST):
        client.set_registered_model_alias(name, alias, version.version)
    model_id = str(version.source).removeprefix("models:/")
    return RegisteredModel(name=name, version=int(version.version), model_id=model_id, digest=digest, kind=kind)


def find_version(name: str, *, mlruns: Path, alias: str = NEWEST, version: int | None = None, folder: Path | None = None) -> Any | None:
    """The entry of a version in the registry, or None: by number, as the newest one that was registered from ``folder``, or by alias."""
    from mlflow.exceptions import MlflowException

    client = connect(mlruns)
    try:
        if folder is not None:
            place = _relate(folder, mlruns.resolve().parent)
            found = [item for item in client.search_model_versions(f"name = '{name}'") if item.tags.get(FOLDER_TAG) == place]
            return max(found, key=lambda item: int(item.version), default=None)
        return client.get_model_version_by_alias(name, alias) if version is None else client.get_model_version(name, str(version))
    except MlflowException:
        return None


def load_registered(name: str, *, mlruns: Path, alias: str = NEWEST, version: int | None = None) -> Path:
    """The folder of a registered version, after its files have been checked against the recorded hashes.

    Args:
        alias: e.g. ``m3``; passed over where ``version`` is given.

    Raises:
        ModelError: no such model, version or alias.
        DataError: files are missing or other than recorded (full weights: ``dvc checkout`` or ``dvc pull`` brings them back).
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = connect(mlruns)
    try:
        found = client.get_model_version_by_alias(name, alias) if version is None else client.get_model_version(name, str(version))
    except MlflowException as error:
        which = f"alias {alias!r}" if version is None else f"version {version}"
        raise ModelError(f"no registered model {name!r} with {which} in {mlruns}: {error.message}") from error
    try:
        artifacts = Path(call_patiently(lambda: mlflow.artifacts.download_artifacts(f"models:/{name}/{found.version}")))
    except (MlflowException, OSError) as error:
        raise DataError(f"the files of {name} version {found.version} are not in {mlruns}: {error}") from error
    kind = found.tags[KIND_TAG]
    if kind == "adapter":
        _check_digest(artifacts, _hash_version(artifacts, kind), found, hint="register it again from its folder")
        return artifacts
    try:
        weights = json.loads((artifacts / WEIGHTS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{artifacts / WEIGHTS_NAME} cannot be read: {error}; register the model again") from error
    folder = Path(os.path.normpath(mlruns.resolve().parent / weights["path"]))
    hint = f"`dvc checkout` or `dvc pull` brings {weights['path']} back"
    if not folder.is_dir():
        raise DataError(f"{name} version {found.version}: {folder} is missing; {hint}")
    try:
        files = _hash_version(folder, kind)
    except ModelError as error:
        raise DataError(f"{name} version {found.version}: {error}; {hint}") from error
    _check_digest(folder, files, found, hint=hint)
    return folder


def name_alias(short: str, *, line: str, default: str) -> str:
    """The alias of M_t (``m3``) or of a cycle (``c2``). In a folder of its own (``paths.rounds``, ``paths.cycles``) it has the folder's
    name before it: a sweep's jobs do not take the alias from each other, or from the default's."""
    return short if line == default else f"{re.sub(r'[^A-Za-z0-9_]+', '-', line)}-{short}"


def _find_kind(folder: Path) -> Kind:
    if all(part.is_dir() for part in pool_inputs(folder).values()):
        return "pools"
    return "adapter" if (folder / _ADAPTER_CONFIG).is_file() else "full"


def _describe_place(run: TrackedRun, folder: Path, data: Path | None) -> dict[str, str]:
    """Tags that lead from a version to its stage, and to the data folder where that is known."""
    root, manifest = run.mlruns.parent, read_manifest(folder)
    tags = {FOLDER_TAG: _relate(folder, root)}
    if manifest is not None:
        tags[STAGE_TAG] = hash_json(manifest.files)
    return tags if data is None else {**tags, DATA_TAG: _relate(data, root)}


def _relate(folder: Path, root: Path) -> str:
    return Path(os.path.relpath(folder.resolve(), root)).as_posix()


def _hash_version(folder: Path, kind: str) -> dict[str, str]:
    """SHA-256 by file name relative to ``folder``: of the pools of a cycle, else of a model."""
    if kind != "pools":
        return _hash_model(folder)
    files = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for part in pool_inputs(folder).values()
        for path in sorted(part.rglob("*"))
        if path.is_file()
    }
    if not files:
        raise ModelError(f"{folder}: no pools there (folders {' and '.join(pool_inputs(folder))}); give the folder of a finished cycle")
    return files


def _hash_model(folder: Path) -> dict[str, str]:
    """SHA-256 by file name relative to ``folder``, sorted; hidden files and training checkpoints are no part of a model.

    The file that names an adapter's base counts by the base's own hash: its path differs from place to place.
    """
    files = {
        path.relative_to(folder).as_posix(): hash_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith((".", "checkpoint")) for part in path.relative_to(folder).parts)
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise ModelError(f"{folder}: no *.safetensors there; give the folder that the model was saved to")
    base = _read_base(folder)
    return files if base is None else {**files, _ADAPTER_BASE: base["hash"]}


def _read_base(folder: Path) -> dict[str, str] | None:
    """What an adapter folder says about a base that lies in another folder: its name (no path from the adapter) and its hash."""
    file = folder / _ADAPTER_BASE
    if not (folder / _ADAPTER_CONFIG).is_file() or not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {"base": str(record["base"]), "hash": str(record["hash"])} if record["hash"] is not None else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: the base of the adapter cannot be read ({error}); save the adapter again") from error


def _store_files(run: TrackedRun, logged: Any, *, folder: Path, files: Mapping[str, str], kind: str) -> None:
    with tempfile.TemporaryDirectory(prefix="visloop-") as temporary:
        staged = Path(temporary)
        if kind == "adapter":
            for name in files:
                target = staged / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to((folder / name).resolve())
        else:
            path = _relate(folder, run.mlruns.parent)
            (staged / WEIGHTS_NAME).write_text(json.dumps({"path": path, "sha256": dict(files)}, indent=2) + "\n", encoding="utf-8")
        run.client.log_model_artifacts(logged.model_id, str(staged))


def _find_version(run: TrackedRun, *, name: str, digest: str) -> Any | None:
    found = run.client.search_model_versions(f"name = '{name}' and run_id = '{run.run_id}'")
    return next((version for version in found if version.tags.get(DIGEST_TAG) == digest), None)


def _ensure_name(run: TrackedRun, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        run.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _check_digest(folder: Path, files: Mapping[str, str], version: Any, *, hint: str) -> None:
    if hash_json(dict(files)) != version.tags[DIGEST_TAG]:
        raise DataError(f"{folder}: its files are not those of {version.name} version {version.version}; {hint}")
