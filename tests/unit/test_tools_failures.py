"""Tools that raise: what is logged, how often, and what stops a run instead of becoming an error of its program."""

import logging
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest

from visloop.assistant.binding import read_results
from visloop.config_assistant import ToolsConfig
from visloop.errors import DataError, ModelError, ToolError
from visloop.tools import failures, plugins
from visloop.tools.base import ToolCall, ToolResult, ToolSignature
from visloop.tools.failures import OutOfMemoryError
from visloop.tools.plain import PlainTool
from visloop.tools.toolbox import open_toolbox, register_tool

ODD = ToolSignature(name="ODD", parameters=(), returns="Number", doc="odd", kinds=("vqa",))
CALLS = [ToolCall(tool="ODD", arguments={"n": index}) for index in range(3)]
Run = Callable[[Sequence[ToolCall]], list[ToolResult]]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "_plugins", {})
    monkeypatch.setattr(failures, "_told", set())


class OddTool:
    signature = ODD

    def __init__(self, run: Run) -> None:
        self.run = run


def run_toolbox(run: Run) -> list[ToolResult]:
    register_tool(ODD, lambda config: OddTool(run))
    return open_toolbox(ToolsConfig(plugins=[__name__])).run("ODD", CALLS)


def run_plain(run: Run) -> list[ToolResult]:
    return PlainTool(ODD, lambda call: run([call])[0].value).run(CALLS)


def run_batch(run: Run) -> list[ToolResult]:
    return read_results(run, CALLS)


GUARDS = [run_toolbox, run_plain, run_batch]


def fail(error: Exception) -> Run:
    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        raise error

    return run


@pytest.mark.parametrize("guard", GUARDS)
def test_a_programming_error_is_an_error_of_every_call_and_logged_once(guard: Callable, caplog: pytest.LogCaptureFixture) -> None:
    results = guard(fail(KeyError("colour")))
    assert ["KeyError: 'colour'" in str(result.error) for result in results] == [True] * 3
    [record] = caplog.records
    assert (record.levelno, record.exc_info[1].args) == (logging.ERROR, ("colour",))  # type: ignore[index, union-attr]
    assert "tool ODD raised KeyError" in caplog.text
    assert "Traceback (most recent call last)" in caplog.text and "raise error" in caplog.text, "where it was raised"
    guard(fail(KeyError("shape")))
    assert len(caplog.records) == 1, "again the same type"
    guard(fail(ZeroDivisionError()))
    assert len(caplog.records) == 2, "another one"


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("error", [ToolError("the lens is dirty"), ToolError(""), DataError("no such file"), ModelError("not reached")])
def test_what_is_raised_on_purpose_is_not_logged(guard: Callable, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    if guard is run_batch and isinstance(error, ModelError):  # the toolbox raises it for a tool that cannot be loaded
        with pytest.raises(ModelError, match="not reached"):
            guard(fail(error))
        return
    results = guard(fail(error))
    assert all(result.value is None and str(error) in str(result.error) for result in results)
    assert caplog.records == []


class AcceleratorError(RuntimeError):
    """Stands for torch's."""


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("error", [MemoryError(), AcceleratorError("6 GiB"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_call_that_does_not_fit_into_memory_stops_the_run(guard: Callable, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(OutOfMemoryError=AcceleratorError))  # type: ignore[arg-type]
    with pytest.raises(OutOfMemoryError, match="tool ODD: one call needs more memory than there is") as caught:
        guard(fail(error))
    assert isinstance(caught.value, ModelError) and caught.value.__cause__ is error


@pytest.mark.parametrize("guard", [run_toolbox, run_batch])
def test_a_batch_that_does_not_fit_into_memory_is_run_call_by_call(guard: Callable, caplog: pytest.LogCaptureFixture) -> None:
    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        if len(calls) > 1:
            raise MemoryError
        return [ToolResult(value=call.arguments["n"]) for call in calls]

    assert [result.value for result in guard(run)] == [0, 1, 2]
    assert "tool ODD raised MemoryError on 3 calls at once" in caplog.text


def test_memory_that_runs_out_in_a_tool_stops_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(calls: Sequence[ToolCall]) -> list[ToolResult]:
        raise MemoryError

    register_tool(ODD, lambda config: OddTool(run))
    toolbox = open_toolbox(ToolsConfig(plugins=[__name__]))
    with pytest.raises(OutOfMemoryError):
        read_results(lambda calls: toolbox.run("ODD", calls), CALLS)
