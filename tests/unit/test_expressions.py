"""EVAL: what expressions are worth, what answers mean in them, and that nothing but a ProgramError comes out of a bad one."""

import operator
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fixtures.fake_tools import make_box, make_image, make_object
from visloop.errors import ProgramError
from visloop.tools.base import ToolCall
from visloop.tools.expression_grammar import MAX_CHARACTERS, MAX_DEPTH, MAX_NUMBER, list_placeholders, parse_expression
from visloop.tools.expressions import MAX_ENTRIES, MAX_STEPS, MAX_TEXT, EvalTool, evaluate_expression
from visloop.tools.values import Value

BOXES = (make_box(), make_box(5, 5, 9, 9))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2 * 3 - 4", 3),
        ("(1 + 2) * -3", -9),
        ("7 // 2 + 7 % 4", 6),
        ("7 / 2", 3.5),
        ("6 / 3", 2),
        ("-7 // 2", -4),
        ("- - 2", 2),
        ("1 < 2 <= 2 != 3 > 0", True),
        ("3 > 2 > 2", False),
        ("1 == 1.0", True),
        ("True + True", 2),
        ("'a' + 'b' == 'AB'", True),
        ("'ant' < 'Bee'", True),
        ("not 1 == 2 and not 0", True),
        ("not (1 == 1 or 1 == 1)", False),
        ("1 == 2 or 0 or 'none'", "none"),
        ("2 and 3", 3),
        ("1 == 1 xor 2 == 2", False),
        ("1 xor 0 and 0", True),
        ("True xor True xor True", True),
        ("1 == 1 XOR 1 == 2", True),
        ("'up' if 0 else 'down' if 0 else 'level'", "level"),
        ("1 if (1 if 0 else 0) else 2", 2),
        ("len('four') + len([1, 2]) + len(('a',))", 7),
        ("len([])", 0),
        ("'red' in ['Blue', 'RED']", True),
        ("'red' not in ('blue', 'green')", True),
        ("'Car' in 'a racing car'", True),
        ("not 'bus' in 'a racing car'", True),
        ("2 in [1, '2']", True),
        ("['a', 1, True]", ("a", "1", "True")),
        ("[]", ()),
        ("'it\\'s' == \"it's\"", True),
        ("1\n+\t1", 2),
    ],
)
def test_values_without_variables(text: str, expected: object) -> None:
    found = evaluate_expression(text, {})
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "variables", "expected"),
    [
        ("{A}", {"A": "yes"}, True),
        ("{ A }", {"A": "No"}, False),
        ("{A}", {"A": "red"}, "red"),
        ("{A} and {B}", {"A": "yes", "B": "no"}, False),
        ("{A} or {B}", {"A": "no", "B": "yes"}, True),
        ("{A} xor {B}", {"A": "yes", "B": "yes"}, False),
        ("{A} xor {B}", {"A": "yes", "B": False}, True),
        ("not {A}", {"A": " no "}, True),
        ("{A} + {B} == 1", {"A": "yes", "B": "no"}, True),
        ("{A} == 'yes'", {"A": "Yes"}, True),
        ("'yes' == {A}", {"A": "no"}, False),
        ("({A}) != 'yes'", {"A": "yes"}, False),
        ("{A} == {B}", {"A": "Red ", "B": "red"}, True),
        ("{A} != {B}", {"A": "yes", "B": "no"}, True),
        ("{A} == {B}", {"A": "yes", "B": True}, True),
        ("{A} == True", {"A": "no"}, False),
        ("{A} == 'True'", {"A": True}, True),
        ("{A} == 'no' and {B}", {"A": "no", "B": "no"}, False),
        ("{A} + {B} == 3", {"A": "1", "B": "2"}, True),
        ("{A} == '3'", {"A": "3"}, True),
        ("{A} == '3'", {"A": 3}, True),
        ("{A} >= 7", {"A": " 12 "}, True),
        ("{A} * 2", {"A": "1.5"}, 3.0),
        ("{A} == 1 and {B}", {"A": "1", "B": "yes"}, True),
        ("'yes' if {A} > 0 else 'no'", {"A": 0}, "no"),
        ("'yes' if {A} else 'no'", {"A": "no"}, "no"),
        ("'yes' if {A} == 'white' else 'no'", {"A": "White"}, "yes"),
        ("{A} in ['yes', 'maybe']", {"A": "yes"}, True),
        ("'red' in {A}", {"A": ("blue", "Red")}, True),
        ("'red' in {A}", {"A": ()}, False),
        ("len({A}) > 1 and {A}", {"A": BOXES}, BOXES),
        ("'yes' if {A} else 'no'", {"A": ()}, "no"),
        ("'yes' if not {A} or len({A}) == 1 else 'no'", {"A": BOXES}, "no"),
        ("len({A}) == len({B})", {"A": BOXES, "B": (make_object(), make_object())}, True),
        ("{A} == {B}", {"A": BOXES, "B": tuple(BOXES)}, True),
        ("{A} == ['a', '2']", {"A": ("A", "2")}, True),
        ("len({A})", {"A": "yes"}, 3),
        ("{A} == 1", {"A": "one"}, False),
        ("{A} == 1", {"A": "yes"}, False),
        ("({A} or 0) == 1", {"A": "yes"}, True),
        ("{A} == '\u0661'", {"A": 1}, False),
    ],
)
def test_what_answers_mean(text: str, variables: dict[str, Value], expected: object) -> None:
    found = evaluate_expression(text, variables)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected a value"),
        ("1 +", "expected a value"),
        ("1 2", "an operator or the end"),
        ("1 == ", "its end"),
        ("'yes' if {A} > 0 and else 'no'", "character 22"),
        ("'yes' if {A} > 0", "'else'"),
        ("A > 0", "{A}"),
        ("yes", "{yes}"),
        ("'{A}' == 'red'", "inside of quotes"),
        ("{A} = 1", "write =="),
        ("{A} && {A}", "write and"),
        ("!{A}", "write not"),
        ("{A.__class__}", "write a variable as {NAME}"),
        ("{A[0]}", "write a variable"),
        ("{}", "write a variable"),
        ("{A!r}", "write a variable"),
        ("{{A}}", "write a variable"),
        ("__import__('os').system('ls')", "unknown word"),
        ("open('x')", "unknown word"),
        ("len.__class__", "unexpected '.__class__'"),
        ("'a'.upper()", "unexpected '.upper()'"),
        ("[1][0]", "an operator or the end"),
        ("(lambda: 1)()", "unknown word"),
        ("[1 for x in [1]]", "unknown word"),
        ("9 ** 9", "expected a value"),
        ("'%s' % 'x'", "takes numbers"),
        ("'a' * 3", "takes numbers"),
        ("[1] * 3", "takes numbers"),
        ("[[1]]", "no lists"),
        ("1 / 0", "division by zero"),
        ("1 % 0.0", "division by zero"),
        ("9999999999999999", "at most"),
        (f"{MAX_NUMBER} + 1", "out of range"),
        (f"{MAX_NUMBER} * {MAX_NUMBER} * {MAX_NUMBER}", "out of range"),
        ("1" * 1999, "at most"),
        ("'a' > 1", "takes numbers"),
        ("{B} > 0", "write len(...)"),
        ("{B} == 2", "write len(...)"),
        ("{B} in 'text'", "looks for"),
        ("len(3)", "len takes"),
        ("{C} == 1", "not defined; defined are: A, B, I"),
        ("{I}", "is a picture"),
        ("'\0'\0", "unexpected"),
        ("'open", "unexpected"),
        ("é", "unexpected"),
        ("(" * 21 + "1" + ")" * 21, "nested"),
        ("not " * 21 + "1", "nested"),
        ("-" * 1000 + "1", "nested"),
        ("1 if 1 else " * 21 + "1", "nested"),
        ("[" * 1000, "nested"),
    ],
)
def test_bad_expressions_are_program_errors_that_say_what_is_wrong(text: str, what: str) -> None:
    with pytest.raises(ProgramError) as caught:
        evaluate_expression(text, {"A": 1, "B": BOXES, "I": make_image()})
    assert what in str(caught.value)
    assert len(str(caught.value)) < 200


def test_wide_expressions_do_not_count_as_deep() -> None:
    assert evaluate_expression("+".join(["1"] * 1000), {}) == 1000
    assert evaluate_expression(" or ".join(["0"] * 300), {}) == 0
    assert evaluate_expression("(" * (MAX_DEPTH - 1) + "1" + ")" * (MAX_DEPTH - 1), {}) == 1


def test_later_operands_are_not_computed_where_they_decide_nothing() -> None:
    assert evaluate_expression("{A} == 0 or 1 / {A} > 2", {"A": 0}) is True
    assert evaluate_expression("0 > 1 > 1 / 0", {}) is False
    assert evaluate_expression("1 if True else 1 / 0", {}) == 1


def test_limits_of_size_hold() -> None:
    for variables in ({"A": "x" * (MAX_TEXT + 1)}, {"A": ("x",) * (MAX_ENTRIES + 1)}, {"A": 10**18}, {"A": float("nan")}):
        with pytest.raises(ProgramError):
            evaluate_expression("{A}", variables)  # type: ignore[arg-type]
    with pytest.raises(ProgramError, match="the most are 2000"):
        evaluate_expression("1" + " " * MAX_CHARACTERS, {})
    with pytest.raises(ProgramError, match="more than 10000 characters"):
        evaluate_expression("{A} + {A}", {"A": "x" * 6000})


def test_the_work_is_bounded() -> None:
    """The dearest expressions that the limits of text allow: stopped by the count of steps, and by the clock well within a second."""
    started = time.process_time()
    for piece, variables in (
        ("'x' in {A}", {"A": ("y" * 100,) * MAX_ENTRIES}),
        ("{A} == {B}", {"A": "x" * MAX_TEXT, "B": "x" * 9999 + "y"}),
    ):
        with pytest.raises(ProgramError, match=f"more than {MAX_STEPS} steps"):
            evaluate_expression(" or ".join([piece] * 130), variables)  # type: ignore[arg-type]
    assert time.process_time() - started < 1.0


def test_placeholders_are_listed_in_order_once() -> None:
    assert list_placeholders(parse_expression("{A} if {B} > len([{C}, {A}]) else -{D} xor {E}")) == ("A", "B", "C", "D", "E")


def test_the_tool_gives_errors_as_results() -> None:
    calls = [
        ToolCall(tool="EVAL", arguments={"expr": "{A} + 1"}, variables={"A": "2"}),
        ToolCall(tool="EVAL", arguments={"expr": "{A} / 0"}, variables={"A": 1}),
        ToolCall(tool="EVAL", arguments={"expr": 3}),
    ]
    results = EvalTool().run(calls)
    assert [result.value for result in results] == [3, None, None]
    assert [result.error for result in results] == [None, "division by zero: 1 / 0", "EVAL needs expr='...', a text"]


Pair = tuple[str, int | bool]
ARITHMETIC: dict[str, Callable[[int, int], int]] = {"+": operator.add, "-": operator.sub, "*": operator.mul}
COMPARISON: dict[str, Callable[[int, int], bool]] = {"==": operator.eq, "!=": operator.ne, "<": operator.lt, ">=": operator.ge}


def join(pairs: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    """Larger expressions with what they are worth, computed beside the text, never from it."""

    def build(drawn: tuple[str, Pair, Pair, Pair]) -> Pair:
        sign, (first, a), (second, b), (third, c) = drawn
        if sign in ARITHMETIC:
            return f"({first}) {sign} ({second})", ARITHMETIC[sign](int(a), int(b))
        if sign in COMPARISON:
            return f"({first}) {sign} ({second})", COMPARISON[sign](a, b)
        return {
            "and": (f"({first}) and ({second})", a and b),
            "or": (f"({first}) or ({second})", a or b),
            "xor": (f"({first}) xor ({second})", a != b),
            "not": (f"not ({first})", not a),
            "if": (f"({first}) if ({third}) else ({second})", a if c else b),
        }[sign]

    signs = st.sampled_from([*ARITHMETIC, *COMPARISON, "and", "or", "xor", "not", "if"])
    return st.tuples(signs, pairs, pairs, pairs).map(build)


leaves = st.integers(0, 20).map(lambda number: (str(number), number)) | st.sampled_from(
    [("True", True), ("not {N}", True), ("not {Y}", False)]  # bare, an answer beside == would be compared as text
)


@settings(max_examples=400)
@given(st.recursive(leaves, join, max_leaves=12))
def test_nested_expressions_are_worth_what_their_parts_are(pair: Pair) -> None:
    text, expected = pair
    assert evaluate_expression(text, {"Y": "yes", "N": "no"}) == expected


@given(st.text(max_size=80) | st.text(st.sampled_from("{}AB'\"()[],+-*/%<>=! 01.not ifelsxor"), max_size=80))
def test_any_text_gives_a_value_or_a_program_error(text: str) -> None:
    try:
        value = evaluate_expression(text, {"A": "yes", "B": BOXES, "AB": ("x",)})
    except ProgramError:
        return
    assert isinstance(value, str | int | float | tuple)
