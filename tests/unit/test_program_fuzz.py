"""A small share of ``make fuzz``: hostile programs give states, never anything else; and the fuzz would notice if they did not."""

import time

import pytest

from tests import fuzz_programs
from tests.fuzz_programs import Watch, fuzz
from visloop.errors import ProgramError


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def test_hostile_programs_give_states_only(watch: Watch) -> None:
    outcomes, slowest = fuzz(1500, seed=20, watch=watch)
    few = {
        outcome: outcomes[outcome]
        for outcome in ("syntax error", "problems", "finished", "program_error", "expression value")
        if outcomes[outcome] < 100
    }
    assert few == {} and outcomes["tool_error"] > 20, "the programs reach every part"
    assert slowest > 0


@pytest.mark.parametrize(
    ("name", "fault", "what"),
    [
        ("evaluate_expression", lambda text, variables: eval("1 + 1"), "made Python do"),
        ("evaluate_expression", lambda text, variables: {}[text], "KeyError"),
        ("evaluate_expression", lambda text, variables: time.sleep(0) or [], "AssertionError"),
        ("check_program", lambda *arguments, **named: open("/dev/null").close() or (), "made Python do"),
        ("parse_program", lambda text: (_ for _ in ()).throw(ProgramError("no place")), "ProgramError"),
    ],
)
def test_the_fuzz_notices(monkeypatch: pytest.MonkeyPatch, watch: Watch, name: str, fault: object, what: str) -> None:
    monkeypatch.setattr(fuzz_programs, name, fault)
    with pytest.raises(AssertionError, match=what):
        fuzz(50, seed=1, watch=watch)
    watch.events.clear()


def test_the_fuzz_notices_slow_programs(monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    monkeypatch.setattr(fuzz_programs, "MAX_SECONDS", 0.0)
    with pytest.raises(AssertionError, match="took"):
        fuzz(1, seed=1, watch=watch)
