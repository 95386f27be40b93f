"""M_t in MLflow's model registry: a LoggedModel with its metrics, a version of a registered model, and aliases.

Weights are not kept twice. An adapter's files become the LoggedModel's artifacts; full weights stay where DVC keeps them and the
LoggedModel holds ``weights.json``, which names their folder and the SHA-256 of every file. ``mlflow.transformers.log_model`` is
not used: over a local base it silently drops adapters when the model is loaded back.
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flows._database import call_patiently, connect
from flows._provenance import clean_name
from flows._tracking import TrackedRun
from visloop.errors import DataError, ModelError
from visloop.ids import hash_file, hash_json

WEIGHTS_NAME = "weights.json"
NEWEST = "newest"
"""The alias of the last registered version (``latest`` is reserved by MLflow)."""
DIGEST_TAG, WEIGHTS_TAG, KIND_TAG = "visloop.digest", "visloop.weights", "visloop.kind"
_ADAPTER_CONFIG, _ADAPTER_BASE = "adapter_config.json", "base.json"


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A version in the registry. ``digest``: one SHA-256 over all files of the model."""

    name: str
    version: int
    model_id: str
    digest: str
    kind: Literal["adapter", "full"]


def register_model(
    run: TrackedRun,
    *,
    name: str,
    folder: Path,
    metrics: Mapping[str, float] | None = None,
    params: Mapping[str, Any] | None = None,
    tags: Mapping[str, str] | None = None,
    aliases: Sequence[str] = (),
) -> RegisteredModel:
    """Enter the model in ``folder`` as a version of ``name``; the same files from the same run are entered once.

    Args:
        run: the run that made the model (the round's child run).
        folder: a saved PEFT adapter (it has ``adapter_config.json``) or full weights; hidden files and ``checkpoint*`` are left out.
        metrics: recorded on the LoggedModel with the run's step.
        params: settings shown on the LoggedModel.
        tags: e.g. the parent M_t-1 and the hash of its data.
        aliases: e.g. ``m1``, in addition to ``newest``. An alias moves to the version that is given it last.

    Raises:
        ModelError: the folder holds no model files.
    """
    from mlflow.entities import LoggedModelStatus, Metric

    files = _hash_model(folder)
    digest = hash_json(files)
    kind: Literal["adapter", "full"] = "adapter" if _ADAPTER_CONFIG in files else "full"
    weights = hash_json({file: value for file, value in files.items() if file.endswith(".safetensors")})
    labels = {DIGEST_TAG: digest, WEIGHTS_TAG: weights, KIND_TAG: kind, "round": str(run.step), **(tags or {})}
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
    for alias in (*aliases, NEWEST):
        client.set_registered_model_alias(name, alias, version.version)
    model_id = str(version.source).removeprefix("models:/")
    return RegisteredModel(name=name, version=int(version.version), model_id=model_id, digest=digest, kind=kind)


def load_registered(name: str, *, mlruns: Path, alias: str = NEWEST, version: int | None = None) -> Path:
    """The folder of a registered model, after its files have been checked against the recorded hashes.

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
    if found.tags[KIND_TAG] == "adapter":
        _check_digest(artifacts, _hash_model(artifacts), found, hint="register it again from its folder")
        return artifacts
    try:
        weights = json.loads((artifacts / WEIGHTS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{artifacts / WEIGHTS_NAME} cannot be read: {error}; register the model again") from error
    folder = Path(os.path.normpath(mlruns.resolve().parent / weights["path"]))
    hint = f"`dvc checkout` or `dvc pull` brings {weights['path']} back"
    if not folder.is_dir():
        raise DataError(f"{name} version {found.version}: {folder} is missing; {hint}")
    _check_digest(folder, _hash_model(folder), found, hint=hint)
    return folder


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
            path = Path(os.path.relpath(folder.resolve(), run.mlruns.parent)).as_posix()
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
