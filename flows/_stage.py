"""The one skip-and-continue mechanism: run a stage unless its folder already holds what it would make.

A stage's key is a hash over its name, its inputs, its configuration and the code behind it. Finished under the same key and
intact: skipped. Killed half-way: finished shards stay. Another key: built anew beside the old outputs, which go last.
Inside a flow every shard is a Prefect task; outside of one (a REPL, a unit test) the same functions are called directly.
"""

import errno
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from pydantic import TypeAdapter

from flows._code import hash_code
from flows._folders import Receipt, StageFolder, hash_input
from flows._progress import StageProgress, open_bar
from flows._summary import StageRow, StageState, add_stage_row
from flows._workers import Jobs, Lazy
from visloop.errors import DataError, ModelError, VisloopError
from visloop.ids import hash_file, hash_json
from visloop.records.manifest import Manifest, stage_key

Payload = TypeVar("Payload")
Result = TypeVar("Result")
Counts = Mapping[str, float]

OPERATIONAL_KEYS = frozenset({"api_key_env", "base_url", "concurrency", "timeout_seconds", "max_retries", "price_prompt", "price_new"})
"""Config keys that say how a stage is carried out and what it costs, not what comes out: a longer time-out must not throw work away."""

_DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES})

_any = TypeAdapter(Any)
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard(Generic[Payload]):
    """One part of a stage. ``payload`` is small (a range, a list of ids, a path): Prefect tasks never carry records."""

    name: str
    payload: Payload


def make_shards(items: Sequence[Payload], *, size: int) -> list[Shard[Sequence[Payload]]]:
    """Cut ``items`` (ids, paths) into shards of ``size``, named 00000, 00001, ..."""
    if size < 1:
        raise DataError(f"shard size {size}: at least 1 item per shard is needed")
    return [Shard(f"{number:05d}", items[start : start + size]) for number, start in enumerate(range(0, len(items), size))]


def run_stage(
    name: str,
    *,
    folder: Path,
    inputs: Mapping[str, Path],
    config: Any,
    code: Sequence[str],
    work: Callable[[Path], Counts],
    resumable: bool = False,
    resources: Sequence[Lazy[Any]] = (),
    retries: int = 0,
    ignore: Collection[str] = OPERATIONAL_KEYS,
) -> Manifest:
    """Run a stage in one piece (a training run, a report) unless ``folder`` already holds its outputs.

    Args:
        name: of the stage, also of its Prefect task.
        folder: where the outputs end up, with ``manifest.json``.
        inputs: files or folders that are read, by role.
        config: the part of the configuration that decides the outputs, with the seed: a dataclass or a JSON-able mapping.
        code: modules or packages of visloop that do the work; what they import counts too.
        work: writes its outputs into the folder it is given and returns counts.
        resumable: whether ``work`` continues from what a killed run left in that folder, or in ``find_scratch`` of it (checkpoints);
            otherwise both are empty.
        resources: models that ``work`` uses; released at the end.
        retries: how often Prefect tries again after an error that may pass.
        ignore: config keys, at any depth, that do not enter the key.

    Raises:
        DataError: an input is missing, another process works on the folder, or nothing was written.
        VisloopError: what ``work`` raises, with the stage's name before it.
    """
    stage = _Stage(name, folder, inputs, config, code, resources, retries, ignore)

    def build(place: StageFolder) -> tuple[Counts, dict[str, dict[str, float]], int, int, bool]:
        continued = resumable and (any(place.build.iterdir()) or place.scratch.is_dir())
        if not resumable:
            place.discard_build()
        counts = stage.call(name, work, place.build)
        if not place.list_outputs():
            raise DataError(f"nothing was written into {place.build}")
        return counts, {}, 1, 1, continued

    return stage.run(build)


def run_sharded_stage(
    name: str,
    *,
    folder: Path,
    inputs: Mapping[str, Path],
    config: Any,
    code: Sequence[str],
    shards: Sequence[Shard[Payload]],
    work: Callable[[Shard[Payload], Path], Counts],
    finish: Callable[[Path], Counts] | None = None,
    suffix: str = ".jsonl",
    resources: Sequence[Lazy[Any]] = (),
    retries: int = 0,
    workers: int = 1,
    ignore: Collection[str] = OPERATIONAL_KEYS,
) -> Manifest:
    """Run a stage shard by shard, each shard a Prefect task that writes ``<shard name><suffix>``.

    ``work`` writes one file (whole or not at all, see ``write_shard``) and returns counts, which are summed over shards.
    ``finish`` gets the folder with all shards, may add files (a report) and returns more counts. Shards that a killed run
    finished are kept; a shard whose bytes changed is made again. ``workers`` processes share the shards. The other arguments are those
    of ``run_stage``.

    Raises:
        DataError: as ``run_stage``; also no shards, two of one name, or a shard that wrote no file.
    """
    names = [shard.name + suffix for shard in shards]
    if not names or len(set(names)) < len(names):
        raise DataError(f"stage {name}: {'two shards of one name' if names else 'no shards, its input is empty'} ({folder})")
    stage = _Stage(name, folder, inputs, config, code, resources, retries, ignore, parts=[[shard.name, shard.payload] for shard in shards])

    def make(job: tuple[Shard[Payload], Path]) -> Receipt:
        shard, path = job
        counts = work(shard, path)
        if not path.is_file():
            raise DataError(f"shard {shard.name} wrote no file {path}")
        return Receipt(hash_file(path), {key: float(value) for key, value in counts.items()})

    def build(place: StageFolder) -> tuple[Counts, dict[str, dict[str, float]], int, int, bool]:
        receipts = {file: receipt for file in names if (receipt := place.read_receipt(file)) is not None}
        kept = len(receipts)
        show = StageProgress(name)
        todo = [(shard, file) for shard, file in zip(shards, names, strict=True) if file not in receipts]
        jobs = Jobs(make, [(shard, place.build / file) for shard, file in todo], workers=workers, resources=resources)

        def take(index: int, _: Path) -> Receipt:
            return jobs.take(index)

        with jobs, open_bar() as progress:
            bar = progress.add_task(name, total=len(names), completed=kept)
            try:
                for index, (shard, file) in enumerate(todo):
                    receipts[file] = stage.call(f"{name} {shard.name}", partial(take, index), place.build / file)
                    place.write_receipt(file, receipts[file])
                    progress.advance(bar)
                    show(len(receipts) / len(names))
            except BaseException:
                for index, (_, file) in enumerate(todo):
                    if file not in receipts and (receipt := jobs.find_finished(index)) is not None:
                        place.write_receipt(file, receipt)
                raise
        for file in set(place.list_outputs()) - set(names):
            (place.build / file).unlink()
        totals = _sum_counts(receipts[file].counts for file in names)
        if finish is not None:
            totals |= finish(place.build)
        return totals, {file: receipts[file].counts for file in names}, len(names) - kept, len(names), kept > 0

    return stage.run(build)


Build = Callable[[StageFolder], tuple[Counts, dict[str, dict[str, float]], int, int, bool]]


class _Stage:
    """What both forms of a stage share: the key, the lock, the swap, the row for the end table."""

    def __init__(
        self,
        name: str,
        folder: Path,
        inputs: Mapping[str, Path],
        config: Any,
        code: Sequence[str],
        resources: Sequence[Lazy[Any]],
        retries: int,
        ignore: Collection[str],
        parts: Sequence[Any] = (),
    ) -> None:
        self.name, self.folder, self.resources, self.retries = name, folder, resources, retries
        self.inputs = {role: hash_input(path) for role, path in inputs.items()}
        self.config = _select_config(dump_plain(config), ignore)
        if parts:
            self.config["shards"] = hash_json(dump_plain(parts))
        self.code = hash_code(code)
        self.key = stage_key(stage=name, inputs=self.inputs, config=self.config, code=self.code)

    def run(self, build: Build) -> Manifest:
        started = time.perf_counter()
        place = StageFolder(self.folder)
        manifest = place.read_finished(self.key)
        if manifest is not None and not place.has_leftovers(self.key):
            return self._report(manifest, "skipped", 0, len(manifest.shards) or 1, started)
        with place.lock():
            # Another process may have finished it since, or a crash may have come between the last output and the swap.
            manifest = place.read_finished(self.key) or place.complete_swap(self.key)
            if manifest is not None:
                place.remove_leftovers()
                return self._report(manifest, "skipped", 0, len(manifest.shards) or 1, started)
            place.prepare(self.key)
            try:
                counts, shards, made, total, continued = build(place)
            except VisloopError as error:
                raise type(error)(f"stage {self.name}: {error}") from error
            except OSError as error:
                if error.errno not in _DISK_ERRORS:
                    raise
                where = error.filename or self.folder
                hint = "free space or fix the permissions and run again; what is finished is kept"
                raise DataError(f"stage {self.name} cannot write {where}: {error.strerror}; {hint}") from error
            finally:
                for resource in self.resources:
                    resource.release()
            manifest = Manifest(
                stage=self.name,
                inputs=self.inputs,
                config=self.config,
                code=self.code,
                files=place.list_outputs(),
                counts={key: float(value) for key, value in counts.items()},
                shards=shards,
            )
            place.seal(manifest)
        return self._report(manifest, "continued" if continued else "ran", made, total, started)

    def call(self, run_name: str, function: Callable[[Path], Result], output: Path) -> Result:
        """Call ``function``: as a Prefect task inside a flow, plainly outside of one."""
        if FlowRunContext.get() is None:
            return function(output)
        # The path is the task's only parameter: what the closure holds (a model) never reaches Prefect.
        run = task(
            name=self.name,
            task_run_name=lambda: run_name,  # not a template: a name may hold braces
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=self.retries,
            retry_delay_seconds=2,
            retry_condition_fn=_may_pass,
        )(lambda path: function(Path(path)))
        return run(output.as_posix())

    def _report(self, manifest: Manifest, state: StageState, made: int, shards: int, started: float) -> Manifest:
        seconds = time.perf_counter() - started
        loads = sum(resource.loads for resource in self.resources)
        row = StageRow(self.name, state, made, shards, seconds, loads, self.key, self.folder.as_posix(), dict(manifest.counts))
        add_stage_row(row)
        _log.info("stage %s: %s (%d of %d made, %.1f s) -> %s", self.name, state, made, shards, seconds, self.folder)
        return manifest


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    """Retry what another try may cure: a model that could not be reached, never wrong data or a wrong config."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, ModelError) or not isinstance(error, VisloopError)


def dump_plain(value: Any) -> Any:
    """JSON-able form of dataclasses, enums, tuples and what holds them."""
    return _any.dump_python(value, mode="json")


def _select_config(config: Any, ignore: Collection[str]) -> Any:
    if isinstance(config, dict):
        return {key: _select_config(value, ignore) for key, value in config.items() if key not in ignore}
    return config


def _sum_counts(parts: Iterable[Counts]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for counts in parts:
        for key, value in counts.items():
            totals[key] = totals.get(key, 0.0) + value
    return totals
