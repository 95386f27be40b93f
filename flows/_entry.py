"""The door of every flow: values from Hydra, typed once, then one call of the Prefect flow.

``python -m flows.<name>`` ends in ``run_flow``; a deployment or a test calls ``compose_config``. Prefect gets the values as a
plain JSON-able dict (it serialises parameters), and the flow's first line turns them back with ``from_plain``.
"""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError
from rich.console import Console

from flows._environment import PROJECT_ROOT, set_hub_offline
from flows._named_models import list_chats, needs_hub
from flows._servers import prepare_database, stop_orphaned_servers
from flows._streams import keep_streams
from flows._workers import choose_workers
from visloop.config import Config
from visloop.errors import ConfigError, VisloopError

if TYPE_CHECKING:
    from prefect import Flow

CONFIG_DIR = PROJECT_ROOT / "conf"
CONFIG_NAME = "config"
FULL_ERROR = "HYDRA_FULL_ERROR"
_COMPOSER_NOISE = ("reference_type=", "object_type=", "Config search path", "provider=")

_adapter = TypeAdapter(Config)
_log = logging.getLogger(__name__)


@dataclass
class _Running:
    """What ``conf/config.yaml`` asks for by resolver: the flow being run, its help text, and an id of this process."""

    flow: str = "visloop"
    doc: str = ""
    run_id: str = ""


_running = _Running(run_id=uuid.uuid4().hex[:6])


def _writable(node: Container) -> Container:
    """Clear the read-only flags that frozen dataclasses leave: in the schema they would refuse every override."""
    OmegaConf.set_readonly(node, None)
    if isinstance(node, DictConfig) and not node._is_none():
        for key in node:
            child = node._get_node(key)
            if isinstance(child, Container) and not child._is_none():
                _writable(child)
    return node


def _schema() -> Container:
    return _writable(OmegaConf.structured(Config))


def register_schema() -> None:
    """Store the typed schema as ``base_config`` and the resolvers that ``conf/config.yaml`` uses. Safe to call twice."""
    ConfigStore.instance().store(name="base_config", node=_schema())
    for name, read in {
        "visloop.flow": lambda: _running.flow,
        "visloop.doc": lambda: _running.doc,
        "visloop.run_id": lambda: _running.run_id,
    }.items():
        OmegaConf.register_new_resolver(name, read, use_cache=False, replace=True)


register_schema()


def to_plain(config: Config) -> dict[str, Any]:
    """``config`` as JSON-able values: enums by value, tuples as lists. ``from_plain`` gives the same ``Config`` back."""
    plain: dict[str, Any] = _adapter.dump_python(config, mode="json")
    return plain


def from_plain(values: Mapping[str, Any]) -> Config:
    """The typed config of plain values; what is missing takes the schema's default.

    Raises:
        ConfigError: an unknown key or a value of a wrong type; the full key is named.
    """
    try:
        merged = OmegaConf.merge(_schema(), OmegaConf.create(dict(values)))
        return _adapter.validate_python(OmegaConf.to_container(merged, resolve=True, enum_to_str=True))
    except OmegaConfBaseException as error:
        raise ConfigError(f"configuration: {_describe(error)}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigError(f"configuration: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def compose_config(overrides: Sequence[str] = ()) -> Config:
    """Compose ``conf/`` with command-line style ``overrides``, e.g. ``["experiment=smoke", "dpo.beta=0.2"]``.

    For deployments, tests and a REPL. Hydra keeps one composer per process: call it before tasks start, never inside them.

    Raises:
        ConfigError: an unknown key, group or option, or a value of a wrong type; the key is named.
    """
    try:
        # Inside of a Hydra job the composer is there already, and a second one would be refused.
        started = GlobalHydra.instance().is_initialized()
        with nullcontext() if started else hydra.initialize_config_dir(config_dir=str(CONFIG_DIR), version_base="1.3"):
            composed = hydra.compose(CONFIG_NAME, overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"configuration ({' '.join(overrides) or 'no overrides'}): {_describe(error)}") from error
    return from_plain(_plain_container(composed))


def settle_workers(config: Config) -> Config:
    """``workers=0`` is as many as this machine has cores, at most 4, and 1 where models share a GPU."""
    return replace(config, workers=choose_workers([*list_chats(config).values()])) if config.workers == 0 else config


def run_flow(flow_function: "Flow[[dict[str, Any]], Any]", *, doc: str) -> None:
    """The command line of one flow: ``--help``, ``--cfg job``, overrides, ``--multirun``.

    ``flow_function`` takes one plain dict (see ``from_plain``). The run is named after the flow, its overrides and its number in
    a multirun. A ``VisloopError`` ends the process with code 1 and one paragraph; HYDRA_FULL_ERROR=1 shows the traceback.
    """
    _running.flow = flow_function.fn.__name__
    _running.doc = doc.strip()
    main: Callable[[], None] = hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name=CONFIG_NAME)(_Job(flow_function))
    main()


def name_run(flow_name: str) -> str:
    """``dpo_rounds dpo.beta=0.2 #1``: flow, overrides, number in a multirun. Must be called in a Hydra job."""
    settings = HydraConfig.get()
    parts = [flow_name]
    if settings.job.override_dirname:
        parts.append(settings.job.override_dirname)
    if settings.mode is RunMode.MULTIRUN:
        parts.append(f"#{settings.job.num}")
    return " ".join(parts)


def describe_overrides(flow_name: str, overrides: Sequence[str]) -> str:
    """``dpo_rounds dpo.beta=0.2,seed=1``: the name of a run outside of Hydra's command line, in the same form."""
    return " ".join([flow_name, *([",".join(sorted(overrides))] if overrides else [])])


def start_flow(flow_function: "Flow[[dict[str, Any]], Any]", overrides: Sequence[str]) -> Any:
    """Do what ``python -m flows.<name> OVERRIDES`` does, inside of the flow run that a deployment has opened.

    Raises:
        ConfigError: an unknown key, group or option, or a value of a wrong type; the key is named.
    """
    keep_streams()
    _running.flow = flow_function.fn.__name__
    for name in ("flows", "visloop"):  # whose lines the worker sends to the run's page
        logging.getLogger(name).setLevel(logging.INFO)
    _quiet_logs()
    config = settle_workers(compose_config(overrides))
    set_hub_offline(local=not needs_hub(config))
    return flow_function.fn(to_plain(config))


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """A job of a multirun: ``sweep`` names the multirun (the last two parts of its folder), ``overrides`` are the job's."""

    sweep: str
    flow: str
    number: int
    overrides: tuple[str, ...]


def find_sweep_job() -> SweepJob | None:
    """The job of a multirun that this process is at work on; None outside of one."""
    if not HydraConfig.initialized():
        return None
    settings = HydraConfig.get()
    if settings.mode is not RunMode.MULTIRUN:
        return None
    sweep = "/".join(Path(settings.sweep.dir).parts[-2:])
    return SweepJob(sweep=sweep, flow=settings.job.name, number=settings.job.num, overrides=tuple(settings.overrides.task))


class _Job:
    """What Hydra calls, once per job."""

    def __init__(self, flow_function: "Flow[[dict[str, Any]], Any]") -> None:
        self.flow_function = flow_function

    def __call__(self, composed: DictConfig) -> Any:
        _quiet_logs()
        try:
            config = settle_workers(from_plain(_plain_container(composed)))
            set_hub_offline(local=not needs_hub(config))
            for server in stop_orphaned_servers():
                _log.warning("stopped process %d, the Prefect server of a flow that was killed", server)
            prepare_database()
            name = name_run(self.flow_function.fn.__name__)
            return self.flow_function.with_options(flow_run_name=lambda: name)(to_plain(config))
        except VisloopError as error:
            if os.environ.get(FULL_ERROR) == "1":
                raise
            _report(error)
            sys.exit(1)


def _plain_container(composed: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _describe(error: Exception) -> str:
    """Hydra wraps the telling message: join the chain, each sentence once, without the composer's internals."""
    messages: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines()]
        text = " ".join(line for line in lines if line and not line.startswith(_COMPOSER_NOISE))
        if text and not any(text in earlier for earlier in messages):
            messages.append(text)
        cause = cause.__cause__
    return ": ".join(messages)


def _report(error: VisloopError) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"{type(error).__name__}: {error}", style="bold red", markup=False)
    console.print(f"Set {FULL_ERROR}=1 for the traceback.", style="dim")


_FOR_THE_FILE = ("FutureWarning:", "DeprecationWarning:", "A worker stopped while some jobs were given to the executor")
"""What libraries mean to change, and loky's word that it replaced a process whose models and caches made it grow by 300 MB."""


class _ConsoleFilter(logging.Filter):
    """Keeps Prefect's progress lines, the tracebacks of expected errors and libraries' plans off the terminal; the log file has them."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("prefect"):
            expected = record.exc_info is not None and isinstance(record.exc_info[1], VisloopError)
            return record.levelno >= logging.WARNING and not (expected and os.environ.get(FULL_ERROR) != "1")
        return record.name != "py.warnings" or not any(words in record.getMessage() for words in _FOR_THE_FILE)


def _quiet_logs() -> None:
    for name in ("httpx", "httpcore", "alembic", "urllib3", "filelock", "mlflow", "great_expectations", "py.warnings"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        if type(handler) is logging.StreamHandler and not any(isinstance(item, _ConsoleFilter) for item in handler.filters):
            handler.addFilter(_ConsoleFilter())
