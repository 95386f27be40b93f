"""Instances that serve a whole stage, and the processes that may share its work.

With ``workers`` above 1 the shards of a stage, or the parts of a stage in one piece, are made by that many processes. They live as long
as the flow, and each opens its own copy of a model, once per stage. What a part holds depends on its items alone, so the number of
processes never changes a byte. Manifests, gates, history and Prefect's tasks stay with the flow's own process.
"""

import os
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Generic, TypeVar

from joblib.externals.loky import cpu_count, get_reusable_executor

from visloop.config import Backend, ChatConfig
from visloop.errors import ConfigError, VisloopError

Resource = TypeVar("Resource")
Item = TypeVar("Item")
Result = TypeVar("Result")

PART_SIZE = 128
"""Items of one part of a stage, the size of the embedded chat's batch. Fixed: what is computed together must not depend on ``workers``."""

MOST_WORKERS = 4
"""Processes that are started unasked: each takes memory for a copy of the models."""

_IDLE_SECONDS = 600
"""How long a process without work stays: starting one costs more than ten seconds of imports, keeping one nothing but its memory."""

_opened: "dict[str, Lazy[Any]]" = {}
"""In a worker process: the instances of the stage at work, by token."""


class Lazy(Generic[Resource]):
    """A model that serves all shards of a stage: opened when the first shard really runs, released when the stage ends.

    A copy that travels to another process carries no instance: it is opened there once.
    """

    def __init__(self, open_resource: Callable[[], Resource], *, token: str | None = None) -> None:
        self._open = open_resource
        self._value: Resource | None = None
        self.token = token or uuid.uuid4().hex
        self.loads = 0

    def get(self) -> Resource:
        if self._value is None:
            self._value = self._open()
            self.loads += 1
        return self._value

    def refresh(self) -> None:
        """Let an open instance drop what it remembers of past requests, where it has a ``forget()``."""
        forget = getattr(self._value, "forget", None)
        if callable(forget):
            forget()

    def release(self) -> None:
        """Drop the instance, after its ``close()`` where it has one."""
        value, self._value = self._value, None
        close = getattr(value, "close", None)
        if callable(close):
            close()

    def __reduce__(self) -> Any:
        return _find_lazy, (self.token, self._open)


def _find_lazy(token: str, open_resource: Callable[[], Any]) -> "Lazy[Any]":
    return _opened.setdefault(token, Lazy(open_resource, token=token))


def cut_parts(items: Sequence[Item]) -> list[Sequence[Item]]:
    """Parts of ``PART_SIZE`` items in order; the last may be smaller."""
    return [items[start : start + PART_SIZE] for start in range(0, len(items), PART_SIZE)]


class Jobs(Generic[Item, Result]):
    """Calls of one function, one per item: here, one after the other, or in ``workers`` processes that start at once.

    A context manager: what has not begun when it is left is called off.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Sequence[Item], *, workers: int, resources: Sequence[Lazy[Any]] = ()
    ) -> None:
        self._function, self._items, self._resources = function, items, resources
        apart = workers > 1 and len(items) > 1
        options = {"timeout": _IDLE_SECONDS, "initializer": _follow, "initargs": (os.getpid(),)}
        self._executor: Any = get_reusable_executor(workers, **options) if apart else None
        self._taken: set[int] = set()
        self._futures = [] if self._executor is None else [self._submit(item) for item in items]

    def take(self, index: int) -> Result:
        """The result for one item; an error that its call raised is raised here. Taken again, the call is made again."""
        if self._executor is None:
            # What a chat keeps of other parts decides which rows are computed together, and so the last bits of the logits.
            for resource in self._resources:
                resource.refresh()
            return self._function(self._items[index])
        if index in self._taken:
            self._futures[index] = self._submit(self._items[index])
        self._taken.add(index)
        try:
            result, loads = self._futures[index].result()
        except BrokenProcessPool as error:
            hint = "out of memory? workers=1 needs the least; finished shards are kept"
            raise VisloopError(f"a worker process died ({error}); {hint}") from error
        for resource in self._resources:
            resource.loads += loads.get(resource.token, 0)
        return result

    def take_all(self) -> list[Result]:
        """Every result, in the order of the items."""
        return [self.take(index) for index in range(len(self._items))]

    def find_finished(self, index: int) -> Result | None:
        """What another process has made already, for the caller that gives up on another item; else None."""
        if self._executor is None or not (future := self._futures[index]).done() or future.cancelled() or future.exception():
            return None
        return future.result()[0]

    def _submit(self, item: Item) -> "Future[tuple[Result, dict[str, int]]]":
        future: Future[tuple[Result, dict[str, int]]] = self._executor.submit(_call, self._function, item, self._resources)
        return future

    def __enter__(self) -> "Jobs[Item, Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for future in self._futures:
            future.cancel()


def check_workers(workers: int, models: Sequence[ChatConfig]) -> None:
    """
    Raises:
        ConfigError: fewer than 1 process, or several that would share one GPU.
    """
    if workers < 1:
        raise ConfigError(f"workers={workers}: at least 1 process is needed; on the command line 0 chooses for this machine")
    if workers > 1 and _share_gpu(models):
        raise ConfigError(f"workers={workers}: processes do not share a GPU; workers=1 batches on it, or set the models' device to cpu")


def choose_workers(models: Sequence[ChatConfig]) -> int:
    """As many processes as there are cores, at most 4; 1 where they would share a GPU."""
    return 1 if _share_gpu(models) else min(cpu_count(), MOST_WORKERS)


def _share_gpu(models: Sequence[ChatConfig]) -> bool:
    """Whether processes that all open these models would meet on a GPU."""
    if all(model.backend is not Backend.transformers or model.device == "cpu" for model in models):
        return False
    from torch.cuda import is_available

    return bool(is_available())


def _call(function: Callable[[Item], Result], item: Item, resources: Sequence[Lazy[Any]]) -> tuple[Result, dict[str, int]]:
    """In a worker process: one call, and how often it opened which instance. Instances of earlier stages go first."""
    kept = {resource.token for resource in resources}
    for token in set(_opened) - kept:
        _opened.pop(token).release()
    before = {resource.token: resource.loads for resource in resources}
    for resource in resources:
        resource.refresh()
    result = function(item)
    return result, {resource.token: resource.loads - before[resource.token] for resource in resources}


def _follow(parent: int) -> None:
    """In a worker process: end with the flow's process, however that ends; nobody else would write on after a kill."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
