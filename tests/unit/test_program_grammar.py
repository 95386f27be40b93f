"""Reading and printing visual programs: the forms that VISPROG and CLOVA print, faults with their place, and the round trip."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.assistant.grammar import MAX_CHARACTERS, MAX_NUMBER, MAX_STATEMENTS, ProgramSyntaxError, format_program, parse_program
from visloop.assistant.program import Argument, Literal, Program, Reference, Statement
from visloop.errors import ProgramError


def read_value(line: str) -> str | int | float | bool | None:
    """The last argument of a one-line program."""
    [statement] = parse_program(line).statements
    argument = statement.arguments[-1][1]
    assert isinstance(argument, Literal)
    return argument.value


def meaning(program: Program) -> list[tuple[str, str, tuple[tuple[str, Argument], ...]]]:
    return [(item.variable, item.tool, item.arguments) for item in program.statements]


def test_lines_arguments_and_places() -> None:
    text = "BOX0=LOC(image=IMAGE,object='kite')\n\n  ANSWER0 = COUNT ( box = BOX0 )  \r\nFINAL_ANSWER=RESULT(var=ANSWER0)\n"
    first, second, third = parse_program(text).statements
    assert (first.variable, first.tool, first.arguments) == ("BOX0", "LOC", (("image", Reference("IMAGE")), ("object", Literal("kite"))))
    assert (first.line, first.columns, first.tool_column) == (1, (10, 22), 6)
    assert (second.line, second.columns, second.tool_column) == (3, (21,), 13)
    assert (third.variable, third.line, third.find_argument("var")) == ("FINAL_ANSWER", 4, Reference("ANSWER0"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("'red bus'", "red bus"),
        ('"what is behind Rosa\'s cart?"', "what is behind Rosa's cart?"),
        ("'Is it the girl's, or Ada's (the one at the boys' feet)?'", "Is it the girl's, or Ada's (the one at the boys' feet)?"),
        ("\"'yes' if {ANSWER0} > 0 else 'no'\"", "'yes' if {ANSWER0} > 0 else 'no'"),
        ("''yes' if {ANSWER0} else 'no''", "'yes' if {ANSWER0} else 'no'"),
        ("'{ANSWER0} == 1 and {ANSWER2}'", "{ANSWER0} == 1 and {ANSWER2}"),
        ("'cat,dog, ball'", "cat,dog, ball"),
        ("''", ""),
        ("None", None),
        ("True", True),
        ("20", 20),
        ("-3", -3),
        ("0.5", 0.5),
        (r"'it\'s\n\x41\u00e9\\ \q'", "it's\nA\u00e9\\ \\q"),
        ("'blühende Bäume 🌳 ,'", "blühende Bäume 🌳 ,"),
    ],
)  # fmt: skip
def test_values(value: str, expected: object) -> None:
    for line in (f"A=T(x={value})", f"A=T(first=B, x={value} )", f"A = T( x = {value})"):
        found = read_value(line)
        assert found == expected and type(found) is type(expected)


def test_a_text_ends_where_the_call_can_go_on() -> None:
    [statement] = parse_program("A=T(x='Ann's and Tom's',y='the cats'',z=None)").statements
    assert statement.arguments == (("x", Literal("Ann's and Tom's")), ("y", Literal("the cats'")), ("z", Literal(None)))


def test_keys_are_the_same_in_any_case() -> None:
    [statement] = parse_program("ANSWER1=VQA(Image=RIGHT,QUESTION='Is it open?')").statements
    assert [key for key, _ in statement.arguments] == ["image", "question"]


@pytest.mark.parametrize(
    ("text", "line", "column", "step", "what"),
    [
        ("", 1, 1, 1, "empty"),
        (" \n\r\n\t", 1, 1, 1, "empty"),
        ("A=T(x=1)\n\nhello", 3, 6, 2, "expected '='"),
        ("A=T(x=1", 1, 8, 1, "the end of the line"),
        ("A=T(x=1) and more", 1, 10, 1, "one call"),
        ("A=T(x='a)", 1, 7, 1, "not closed"),
        ("A=T(x=)", 1, 7, 1, "value of x"),
        ("A=T(x=1,)", 1, 9, 1, "name of an argument"),
        ("A=T(x=1 y=2)", 1, 9, 1, "','"),
        ("A=T('text')", 1, 5, 1, "name of an argument"),
        ("A=T(x=F(y=1))", 1, 8, 1, "','"),
        ("A=T(x=[1])", 1, 7, 1, "value of x"),
        ("A=T(x=B.c)", 1, 8, 1, "','"),
        ("A=T(x={B})", 1, 7, 1, "value of x"),
        ("None=T(x=1)", 1, 1, 1, "cannot be assigned"),
        ("A=True(x=1)", 1, 3, 1, "no tool"),
        ("1A=T(x=1)", 1, 1, 1, "a variable"),
        ("É=T(x=1)", 1, 1, 1, "a variable"),
        ("A=T(x=1e99)", 1, 7, 1, "at most"),
        ("A=T(x=" + "9" * 5000 + ")", 1, 7, 1, "at most"),
        ("A=T(x='a\0b')", 1, 9, 1, "character"),
        ("A=T(x='\ud800')", 1, 8, 1, "character"),
        (r"A=T(x='\ud83d\ude00')", 1, 7, 1, "surrogate"),
        ("A=T(x=1)\x0cB=T(x=1)", 1, 9, 1, "character"),
        ("for x in y:\n  A=T(x=1)", 1, 5, 1, "expected '='"),
        (f"{'V' * 65}=T(x=1)", 1, 1, 1, "65 characters"),
    ],
)
def test_faults_have_a_place_and_say_what_would_be_right(text: str, line: int, column: int, step: int, what: str) -> None:
    with pytest.raises(ProgramSyntaxError) as caught:
        parse_program(text)
    assert (caught.value.line, caught.value.column, caught.value.step) == (line, column, step)
    assert str(caught.value).startswith(f"line {line}, column {column}: ") and what in str(caught.value)
    assert len(str(caught.value)) < 200, "a message does not repeat the program"


def test_programs_beyond_the_limits_are_refused() -> None:
    line = "A=T(x=1)\n"
    assert len(parse_program(line * MAX_STATEMENTS).statements) == MAX_STATEMENTS
    with pytest.raises(ProgramSyntaxError, match="more than"):
        parse_program(line * (MAX_STATEMENTS + 1))
    with pytest.raises(ProgramSyntaxError, match="1000000 characters"):
        parse_program("A=T(x='" + "'" * 999_991 + "')")
    text = "A=T(x='" + "','a=" * 3990 + "')"
    assert len(text) < MAX_CHARACTERS and read_value(text) == "','a=" * 3990


@pytest.mark.parametrize(
    "statement",
    [
        Statement(variable="A b", tool="T", arguments=()),
        Statement(variable="A", tool="T(x=1)\nB=T", arguments=()),
        Statement(variable="A", tool="T", arguments=(("x=1,y", Literal(1)),)),
        Statement(variable="A", tool="T", arguments=(("x", Reference("None")),)),
        Statement(variable="A", tool="T", arguments=(("x", Literal(float("nan"))),)),
        Statement(variable="A", tool="T", arguments=(("x", Literal(MAX_NUMBER + 1)),)),
        Statement(variable="A", tool="T", arguments=(("x", Literal("\udfff")),)),
    ],
)
def test_what_the_grammar_cannot_express_is_not_printed(statement: Statement) -> None:
    with pytest.raises(ProgramError):
        format_program(Program((statement,)))


def test_programs_are_printed_as_published_ones_are() -> None:
    text = "\n".join(
        [
            "OBJ1=SELECT(image=IMAGE,object=OBJ0,query='man in a red coat',category=None)",
            "ANSWER1=EVAL(expr=\"'yes' if {ANSWER0} > 0 else 'no'\")",
            "LIST0=LIST(query='rivers of Chile',max=3)",
            "FINAL_RESULT=RESULT(var=ANSWER1)",
        ]
    )
    assert format_program(parse_program(text)) == text


names = st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
texts = st.text(st.sampled_from("'\"\\,)(=x {}\n\r\t\0\x85\u2028é🌳0n"), max_size=12) | st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers(-MAX_NUMBER, MAX_NUMBER) | st.floats(-MAX_NUMBER, MAX_NUMBER)
values = st.builds(Literal, texts | numbers | st.booleans() | st.none()) | st.builds(Reference, names)
statements = st.builds(Statement, variable=names, tool=names, arguments=st.lists(st.tuples(keys, values), max_size=4).map(tuple))


@given(st.lists(statements, min_size=1, max_size=4))
def test_round_trip(drawn: list[Statement]) -> None:
    program = Program(tuple(drawn))
    printed = format_program(program)
    assert repr(meaning(parse_program(printed))) == repr(meaning(program)), "repr tells 1 from True and 0.0 from -0.0"
    assert format_program(parse_program(printed)) == printed
    assert len(printed.split("\n")) == len(drawn)


@given(st.text(max_size=200) | st.text(st.sampled_from("AB=T(),x'\"\\ \n1"), max_size=60))
def test_any_text_is_a_program_or_a_syntax_error(text: str) -> None:
    try:
        program = parse_program(text)
    except ProgramSyntaxError as error:
        lines = text.split("\n")
        assert 1 <= error.line <= len(lines) and 1 <= error.column <= len(lines[error.line - 1]) + 1
    else:
        assert meaning(parse_program(format_program(program))) == meaning(program)


def test_no_module_of_programs_can_run_python() -> None:
    root = Path(__file__).resolve().parents[2] / "src" / "visloop"
    assistant = ("grammar", "checks", "placeholders", "binding", "interpreter", "traces")
    files = [root / "assistant" / f"{name}.py" for name in assistant]
    files += [root / "tools" / f"{name}.py" for name in ("expressions", "expression_grammar")]
    for file in files:
        source = file.read_text().replace("re.compile(", "")
        for way in ("eval(", "exec(", "compile(", "__import__", "importlib", "getattr(", "pickle", ".format(", "import ast"):
            assert way not in source, file
