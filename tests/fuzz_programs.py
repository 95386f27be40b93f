"""Throws random and hostile programs at parser, checks, evaluator, interpreter and traces.

    python -m tests.fuzz_programs [--count 100000] [--seed 0]

Only a syntax error or a program error, a problem, or a state may come out, within bounded time; Python must not compile, run, import or
open anything meanwhile (an audit hook watches). A failure prints its seed and program. The count of every outcome is printed, so that
one sees how deep the programs got. A small share runs in ``tests/unit/test_program_fuzz.py``.
"""

import argparse
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import get_args

from tests.fixtures.fake_tools import ScriptedTools, make_box, make_image, make_job, make_object
from visloop.assistant.checks import ProblemCode, check_program
from visloop.assistant.grammar import ProgramSyntaxError, format_program, parse_program
from visloop.assistant.interpreter import run_programs, run_substitutions
from visloop.assistant.program import TASK_INPUTS
from visloop.assistant.traces import make_trace
from visloop.errors import ProgramError
from visloop.records.assistant import TaskKind, TraceStatus
from visloop.tools.base import ToolResult
from visloop.tools.expressions import evaluate_expression
from visloop.tools.failures import note_failure
from visloop.tools.signatures import ALIASES, SIGNATURES, find_signature
from visloop.tools.values import Value

KINDS: tuple[TaskKind, ...] = get_args(TaskKind)
MAX_SECONDS = 2.0
"""CPU time of one program through everything, a hundred times what the slowest one needs."""
WATCHED = ("exec", "compile", "import", "open", "os.", "subprocess.", "socket.", "pickle.", "marshal.", "ctypes.", "shutil.")

HOSTILE = [
    "__import__('os').system('true')",
    "{IMAGE.__class__.__mro__}",
    "{0.__init__.__globals__}",
    "{A!r:>999999999}",
    "{IMAGE[0]}",
    "%s%n%999999d",
    "eval(exec(open('/etc/passwd').read()))",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 0",
    "9" * 400,
    "1e999",
    "9**9**9",
    "(" * 300,
    "[" * 300 + "]" * 300,
    "not " * 200,
    "-" * 300,
    "1 if 1 else " * 100,
    "'" * 99,
    '"' * 99,
    "\\" * 99,
    "\\x27)\\nA=T(",
    "\0",
    "\ud800",
    "\u2028",
    "\x85",
    "\ufeff",
    "\uff29\uff2d\uff21\uff27\uff25",
    "\ufb01",
    "ß",
    "\U0001d7d9",
    "e\u0301" * 50,
    "\u202e",
    "\r",
    "\x0b",
    "${jndi:ldap}",
    "../../..",
    "FINAL_RESULT=RESULT(var=IMAGE)",
    "', x='",
    "')\nB=T(x='",
    "=" * 50,
    "," * 50,
]
WORDS = ["'yes'", "'no'", "0", "1", "2.5", "-7", "True", "None", "{A0}", "{A1}", "{A2}", "{IMAGE}", "{Q}", "len(", "(", ")", "[", "]", ","]
WORDS += [" + ", " - ", " * ", " / ", " // ", " % ", " == ", " != ", " < ", " >= ", " in ", " not in ", " and ", " or ", " xor ", "not "]
WORDS += [" if ", " else ", "'a'", "'", '"', " "]


def write_expression(draw: random.Random, names: list[str], depth: int = 3) -> str:
    """A well-formed expression over the named variables."""
    if depth == 0 or draw.random() < 0.2:
        return draw.choice(
            ["1", "0", "3.5", "'yes'", "'no'", "'red'", "True", *(f"{{{name}}}" for name in names)] + ["[1, 'a']"] * (depth > 1)
        )
    left, right = write_expression(draw, names, depth - 1), write_expression(draw, names, depth - 1)
    sign = draw.choice(
        ["+", "-", "*", "/", "//", "%", "==", "!=", "<", "<=", ">", ">=", "in", "not in", "and", "or", "xor", "if", "not", "len"]
    )
    if sign == "if":
        return f"{left} if {right} else {draw.choice(['0', left])}"
    if sign in ("not", "len"):
        return f"{sign} ({left})"
    return f"({left}) {sign} {right}"


def write_text(draw: random.Random) -> str:
    pieces: list[Callable[[], str]] = [
        lambda: draw.choice(["a red bus", "Rosa's kite", "What's in the boys' cart?", "cat,dog", ""]),
        lambda: draw.choice(HOSTILE),
        lambda: "".join(chr(draw.choice([draw.randrange(128), draw.randrange(0x110000)])) for _ in range(draw.randrange(12))),
    ]
    return draw.choices(pieces, weights=[20, 2, 1])[0]()


def write_program(draw: random.Random, kind: TaskKind) -> str:
    """A program of the grammar whose names, arguments and types are mostly right."""
    names = list(TASK_INPUTS[kind])
    types = dict.fromkeys(names, "Image")
    lines = []
    for index in range(draw.randrange(1, 9)):
        have = {"Any", "Text", "Number", *types.values()}
        usable = [
            name
            for name, known in SIGNATURES.items()
            if kind in known.kinds and all(have & set(parameter.types) for parameter in known.parameters)
        ]
        tool = draw.choice(usable if draw.random() < 0.98 else [*SIGNATURES, *ALIASES, "X"])
        signature = find_signature(tool)
        arguments = []
        for parameter in signature.parameters if signature else ():
            if draw.random() < 0.005 or (not parameter.required and draw.random() < 0.5):
                continue
            fitting = [name for name in names if types[name] in (*parameter.types, "Any") or "Any" in parameter.types]
            computable = [name for name in names if types[name] != "Image"]
            sound = draw.random() < 0.98
            if tool == "EVAL":
                text = write_expression(draw, computable[-3:]) if sound else "".join(draw.choices(WORDS, k=draw.randrange(1, 12)))
                value = f'"{text}"'
            elif not sound:
                value = draw.choice([f"'{{{draw.choice(names)}}}?'", "None", "9" * 30, draw.choice(names)])
            elif "Text" in parameter.types:
                value = f"'{write_text(draw)}'"
            elif "Number" in parameter.types:
                value = draw.choice(["3", "-1", "1e3"])
            else:
                value = draw.choice(fitting or names)
            arguments.append(f"{parameter.name}={value}")
        name = f"A{index}" if draw.random() < 0.99 else draw.choice(names)
        lines.append(f"{name}={tool}({draw.choice([',', ', ']).join(arguments)})")
        if name not in types:
            names.append(name)
            types[name] = signature.returns if signature else "Any"
    lines.append(f"FINAL_RESULT=RESULT(var={names[-1]})")
    return "\n".join(lines)


def damage(draw: random.Random, text: str) -> str:
    """The text with a few random edits."""
    for _ in range(draw.randrange(1, 4)):
        start = draw.randrange(len(text) + 1)
        end = min(len(text), start + draw.randrange(12))
        edit = draw.randrange(4)
        piece = [draw.choice(HOSTILE), draw.choice(WORDS), text[start:end] * draw.randrange(4), ""][edit]
        text = text[:start] + piece + text[end if edit else start :]
    return text


def write_hostile(draw: random.Random) -> str:
    """Text that is no program, or a large one."""
    shapes: list[Callable[[], str]] = [
        lambda: "".join(draw.choices(HOSTILE + WORDS, k=draw.randrange(30))),
        lambda: f"A=VQA(image=IMAGE,question='{draw.choice(HOSTILE) * draw.randrange(1, 60)}')\nR=RESULT(var=A)",
        lambda: f'A=EVAL(expr="{draw.choice(HOSTILE + WORDS) * draw.randrange(1, 60)}")\nR=RESULT(var=A)',
        lambda: "A=T(x=1)\n" * draw.choice([50, 100, 101, 3000]),
        lambda: "A=T(" + ",".join(f"k{index}={draw.choice(['1', 'B', repr('x')])}" for index in range(draw.choice([9, 900]))) + ")",
        lambda: draw.choice(["'", "x", " ", "(", "','a=", "\0", "é"]) * draw.choice([100, 15_000, 1_000_000]),
        lambda: "A=T(x='" + draw.choice(["'", "',", "', k=", "\\'", "')"]) * draw.choice([10, 4000]) + "')",
    ]
    return draw.choices(shapes, weights=[6, 6, 6, 1, 1, 0.2, 1])[0]()


def write_value(draw: random.Random, tool: str) -> object:
    """What a tool might give: mostly what it should, sometimes nonsense."""
    right: dict[str, list[object]] = {
        "Image": [make_image(4)],
        "Boxes": [(), (make_box(),), (make_box(), make_box(0, 0, 9, 9, label="x"))],
        "Objects": [(), (make_object(label="y"),)],
        "Text": ["yes", "no", "3", "red", "", "Rosa's", "{IMAGE}", "\ud800", "\0", "9" * 30, "x" * 20_000, "{A0.__class__}"],
        "Number": [0, 1, 3, -2.5, float("nan"), float("inf"), 10**30],
        "List": [(), ("a", "yes"), ("x",) * 20_000],
    }
    wrong: list[object] = [
        None,
        {},
        [],
        object(),
        b"yes",
        (1, 2),
        (make_box(), "x"),
        ToolResult(value=None, error="no"),
        ToolResult(value=None),
    ]
    returns = SIGNATURES[tool].returns
    if draw.random() < 0.04:
        raise draw.choice([ValueError, RecursionError, ArithmeticError, ProgramError])("fuzz")
    return draw.choice(wrong) if draw.random() < 0.04 else draw.choice(right[returns] if returns in right else right["Text"])


class Watch:
    """Notes what Python itself executes while programs are handled; an audit hook cannot be taken back, so it has a switch."""

    def __init__(self) -> None:
        self.on, self.events = False, list[str]()
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event.startswith(WATCHED):
            self.events.append(f"{event} {arguments!r:.200}")


def handle(text: str, draw: random.Random, kind: TaskKind) -> list[str]:
    """One program through everything; the outcomes. Raises AssertionError, or whatever should not have come out."""
    outcomes = []
    try:
        program = parse_program(text)
    except ProgramSyntaxError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(lines[error.line - 1]) + 1 and len(str(error)) < 400
        outcomes.append("syntax error")
    else:
        again = parse_program(format_program(program))
        assert [(item.variable, item.tool, item.arguments) for item in again.statements] == [
            (item.variable, item.tool, item.arguments) for item in program.statements
        ]
        problems = check_program(program, kind=kind, find_signature=find_signature)
        for problem in problems:
            assert problem.code in get_args(ProblemCode) and problem.line >= 1 and problem.column >= 1 and len(problem.message) < 700
        outcomes.append("problems" if problems else "passes its checks")
    variables: dict[str, Value] = {"A0": "yes", "A1": "3", "A2": (make_box(),), "IMAGE": make_image()}
    expression = write_expression(draw, [*variables, "A0", "A1"])
    expression = draw.choice([expression, expression, damage(draw, expression), text])
    try:
        value = evaluate_expression(expression, variables)
    except ProgramError as error:
        assert len(str(error)) < 400
        outcomes.append("expression error")
    else:
        assert isinstance(value, str | int | float | tuple)
        outcomes.append("expression value")
    tools = ScriptedTools({name: lambda call, name=name: write_value(draw, name) for name in SIGNATURES if name != "EVAL"})
    job = make_job(text, kind=kind)
    [execution] = run_programs([job], tools=tools)
    executions = [execution]
    if execution.steps:
        executions += run_substitutions([(execution, draw.randrange(len(execution.steps)) + 1, draw.choice(["no", 2, ()]))], tools=tools)
    for run in executions:
        assert run.status in get_args(TraceStatus)
        assert (run.status == "finished") == (run.error is None) == (run.error_step is None and run.status != "no_program")
        assert (run.result is not None) == (run.status == "finished")
        record = make_trace(run, describe_image=lambda image: "picture", save_image=lambda image: "a.png")
        assert len(record.steps) == len(run.steps)
    assert tuple(job.inputs) == job.task.inputs
    outcomes.append(execution.status)
    return outcomes


@contextmanager
def silence_failures() -> Iterator[None]:
    """The tools raise on purpose here, and to log that Python opens their source."""
    log = logging.getLogger(note_failure.__module__)
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@silence_failures()
def fuzz(count: int, *, seed: int, watch: Watch) -> tuple[Counter[str], float]:
    """Handle ``count`` programs; the outcomes and the CPU seconds of the slowest.

    Raises:
        AssertionError: something else came out, Python executed something, or a program took too long; names the program.
    """
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    make_image()  # the imaging library imports its colours at first use
    for index in range(count):
        draw = random.Random(f"{seed} {index}")
        kind = draw.choice(KINDS)
        text = write_program(draw, kind)
        shape = draw.choices(["whole", "damaged", "hostile"], weights=[5, 3, 2])[0]
        if shape != "whole":
            text = damage(draw, text) if shape == "damaged" else write_hostile(draw)
        started = time.process_time()
        watch.on = True
        try:
            outcomes.update(handle(text, draw, kind))
        except BaseException as error:
            raise AssertionError(f"seed {seed}, program {index}, {kind}: {type(error).__name__}: {error}\n{text[:2000]!r}") from error
        finally:
            watch.on = False
        seconds = time.process_time() - started
        slowest = max(slowest, seconds)
        assert watch.events == [], f"seed {seed}, program {index} made Python do {watch.events[:5]}\n{text[:2000]!r}"
        assert seconds < MAX_SECONDS, f"seed {seed}, program {index} took {seconds:.1f} s\n{text[:2000]!r}"
    return outcomes, slowest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    started = time.perf_counter()
    outcomes, slowest = fuzz(chosen.count, seed=chosen.seed, watch=Watch())
    print(f"{chosen.count} programs in {time.perf_counter() - started:.0f} s, the slowest {slowest * 1000:.0f} ms of CPU time")
    for outcome, number in outcomes.most_common():
        print(f"{number:8} {outcome}")


if __name__ == "__main__":
    main()
