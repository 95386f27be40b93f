"""Where MLflow keeps the history of a project: by default in ``mlruns``, else where ``tracking.uri`` and ``tracking.artifacts`` say.

The first run that says so leaves ``mlruns/tracking.json``, so that whoever knows only the folder (registry, page, feedback) finds the
history, and so that one folder's history never falls apart into two. Passwords are refused: they would end up in logs and in MLflow.
"""

import importlib.util
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from visloop.config import Config
from visloop.errors import ConfigError, DataError
from visloop.records.shards import write_text

DATABASE_NAME = "mlflow.db"
PLACE_NAME = "tracking.json"
_DRIVERS = {"postgres": "postgresql+psycopg2", "postgresql": "postgresql+psycopg2"}
"""The driver is named, so that the meaning of an address does not depend on SQLAlchemy's version."""
_SECONDS = 10
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackingPlace:
    """``uri``: of the database or the tracking server. ``artifacts``: root of the artifacts; empty: the server decides."""

    uri: str
    artifacts: str

    @property
    def is_local(self) -> bool:
        """Whether the runs are in a SQLite file."""
        return self.uri.startswith("sqlite:")


def find_place(mlruns: Path) -> TrackingPlace:
    """Where the history of ``mlruns`` is kept, by its ``tracking.json``; without one, in the folder itself.

    Raises:
        DataError: ``tracking.json`` cannot be read.
    """
    folder = mlruns.resolve()
    file = folder / PLACE_NAME
    if not file.is_file():
        return _default_place(folder)
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return TrackingPlace(uri=str(record["uri"]), artifacts=str(record["artifacts"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({error}); delete it and run again with tracking.uri=...") from error


def bind_place(config: Config) -> TrackingPlace:
    """The place that ``config`` asks for, remembered in ``config.paths.mlruns``.

    Raises:
        ConfigError: the folder's history is elsewhere; an address with a password; a driver is missing; the server does not answer.
    """
    folder = Path(config.paths.mlruns).resolve()
    wanted = _read_config(config, folder)
    if (folder / PLACE_NAME).is_file():
        known = find_place(folder)
        if known != wanted:
            raise ConfigError(
                f"the history of {folder} is kept in {_describe(known)}, the settings say {_describe(wanted)}: set tracking.uri and "
                f"tracking.artifacts to the former (for good: in conf/config.yaml), or choose another paths.mlruns; {PLACE_NAME} in that "
                "folder holds the two values"
            )
    elif wanted != _default_place(folder):
        _check_reachable(wanted)
        if (folder / DATABASE_NAME).is_file() and not wanted.uri.endswith(f"{folder.as_posix()}/{DATABASE_NAME}"):
            _log.warning("the runs so far stay in %s; new ones go to %s", folder / DATABASE_NAME, wanted.uri)
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / PLACE_NAME, json.dumps(asdict(wanted), indent=2) + "\n")
    return wanted


def _default_place(folder: Path) -> TrackingPlace:
    return TrackingPlace(uri=f"sqlite:///{(folder / DATABASE_NAME).as_posix()}", artifacts=(folder / "artifacts").as_uri())


def _describe(place: TrackingPlace) -> str:
    return f"{place.uri} with artifacts in {place.artifacts or 'the place of the server'}"


def _read_config(config: Config, folder: Path) -> TrackingPlace:
    uri, artifacts = config.tracking.uri, config.tracking.artifacts.rstrip("/")
    default = _default_place(folder)
    for key, value in (("uri", uri), ("artifacts", artifacts)):
        _refuse_password(value, key=f"tracking.{key}")
    scheme, _, rest = uri.partition("://")
    if uri and not rest:
        raise ConfigError(f"tracking.uri={uri}: give an address, e.g. postgresql://USER@HOST/mlflow or http://127.0.0.1:5000")
    if artifacts and "://" not in artifacts:
        artifacts = Path(artifacts).resolve().as_uri()
    if not artifacts and not scheme.startswith("http"):
        artifacts = default.artifacts
    return TrackingPlace(uri=f"{_DRIVERS.get(scheme, scheme)}://{rest}" if uri else default.uri, artifacts=artifacts)


def _refuse_password(address: str, *, key: str) -> None:
    parts = urlsplit(address)
    if parts.password or any("password" in name.lower() for name in parse_qs(parts.query)):
        raise ConfigError(
            f"{key} holds a password, which would be written to logs and into MLflow: leave it out and give it in the environment "
            "(PGPASSWORD or ~/.pgpass for PostgreSQL, MLFLOW_TRACKING_PASSWORD for a server, AWS_SECRET_ACCESS_KEY for S3)"
        )


def _check_reachable(place: TrackingPlace) -> None:
    """Say at once what is missing: MLflow itself would try for 100 seconds before it gives up."""
    if place.artifacts.startswith("s3:") and importlib.util.find_spec("boto3") is None:
        raise ConfigError(f"tracking.artifacts={place.artifacts} needs boto3: install this project with the extra 's3'")
    if place.uri.startswith("http"):
        import httpx

        try:
            httpx.get(f"{place.uri.rstrip('/')}/health", timeout=_SECONDS).raise_for_status()
        except httpx.HTTPError as error:
            raise ConfigError(f"tracking.uri={place.uri}: no MLflow server answers there ({error})") from error
    elif place.uri.startswith("postgresql"):
        from sqlalchemy import create_engine
        from sqlalchemy.exc import SQLAlchemyError

        try:
            engine = create_engine(place.uri, connect_args={"connect_timeout": _SECONDS})
            engine.connect().close()
            engine.dispose()
        except ImportError as error:
            raise ConfigError(f"tracking.uri={place.uri} needs {error.name}: install this project with the extra 'postgres'") from error
        except SQLAlchemyError as error:
            words = " ".join(str(getattr(error, "orig", None) or error).split())
            raise ConfigError(f"tracking.uri={place.uri}: the database cannot be opened: {words}") from error
