"""Instructions and programs as rows of symbols, and the grammar that programs are written under."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from visloop.assistant.checks import check_program
from visloop.assistant.grammar import parse_program
from visloop.assistant.lexicon import FUNCTION_WORDS, normalize_word, split_words
from visloop.assistant.program import TASK_INPUTS
from visloop.assistant.proposals import normalize_program
from visloop.assistant.symbol_grammar import MOST_LINES, SymbolGrammar
from visloop.assistant.symbols import (
    CAPITAL,
    CLOSE,
    NOTHING,
    OPEN,
    SPACE,
    SURPLUS,
    SymbolRow,
    decode_program,
    encode_instruction,
    encode_program,
)
from visloop.assistant.templates import ATTRIBUTES, PLACES
from visloop.errors import ProgramError
from visloop.scenes.workshop import BASE_WORDS
from visloop.scenes.workshop_families import TaskFamily, fill_slots
from visloop.scenes.workshop_tasks import FAMILIES, draw_case
from visloop.tools.signatures import find_signature, list_signatures

SURE = frozenset(normalize_word(word) for words in BASE_WORDS.values() for word in words)
EVERY = [family for families in FAMILIES.values() for family in families]


def list_said(family: TaskFamily) -> set[str]:
    """The words of a family's texts that no slot fills."""
    texts = [text.replace("<", " <").replace(">", "> ") for text in (*family.base, *family.new)]
    return {word.norm for text in texts for word in split_words(" ".join(part for part in text.split() if "<" not in part))}


WORDS = (FUNCTION_WORDS | PLACES | ATTRIBUTES | {word for family in EVERY for word in list_said(family)}) - SURE
SIGNS = [CAPITAL, SPACE, NOTHING, OPEN, CLOSE, *"?,'(){}+-<>", "==", ">=", "_>", "_==", "_+", "_0", "_'", "_(", "0", "1", "5"]
VOCABULARY = (
    *(f"<{sign}{index}>" for sign in "pun" for index in range(4)),
    *(f"{led}{sign}" for led in ("", SPACE) for sign in (*(f"v{index}" for index in range(20)), *(f"<n{index}>" for index in range(4)))),
    *(f"{line}:" for line in range(1, 21)),
    *(signature.name for kind in FAMILIES for signature in list_signatures(kind)),
    *(name for names in TASK_INPUTS.values() for name in names),
    *sorted(WORDS),
    *("object", "shapes", "colors", "yes", "if", "else", "no", "or", "and", "flag", "set"),
    *SIGNS,
)


def encode(text: str) -> SymbolRow:
    return encode_instruction(text, words=WORDS, is_sure=SURE.__contains__)


@pytest.mark.parametrize("family", EVERY, ids=lambda family: family.name)
def test_every_program_comes_back_and_is_within_the_grammar(family):
    for place in range(6):
        case = draw_case(family, seed=1, place=place, novel=place % 2 == 0, wanted=0.3)
        program = "\n".join(fill_slots(line, case.slots) for line in family.program)
        for wording in (*family.base, *family.new):
            row = encode(fill_slots(wording, case.slots))
            symbols = encode_program(parse_program(program), row, find_signature=find_signature)
            back = decode_program(symbols, row, kind=family.kind, find_signature=find_signature)
            assert normalize_program(back) == normalize_program(program)
            vocabulary = tuple(dict.fromkeys((*VOCABULARY, *symbols)))
            grammar = SymbolGrammar(family.kind, row, signatures=list_signatures(family.kind), vocabulary=vocabulary)
            for symbol in symbols:
                assert symbol in grammar.list_allowed()
                grammar.take(symbol)
            assert grammar.done and grammar.list_allowed() == []


@pytest.mark.parametrize(
    ("kind", "text", "program"),
    [
        ("vqa", "Are there red stars in the left half?", "B=LOC(image=IMAGE,object='LEFT')\nR=RESULT(var=B)"),
        ("tagging", "Tag at most three shapes of the moon set.", "L=LIST(query='shapes of the moon set',max=3)\nR=RESULT(var=L)"),
        ("tagging", "Tag shapes of the moon set.", "L=LIST(query='shapes of the moon set',max=12)\nR=RESULT(var=L)"),
        ("vqa", "What is on Rosa's sign?", "A=VQA(image=IMAGE,question='What is on \"Rosa\" sign?')\nR=RESULT(var=A)"),
    ],
)
def test_halves_numbers_and_quotes_come_back_within_the_grammar(kind, text, program):
    row = encode(text)
    symbols = encode_program(parse_program(program), row, find_signature=find_signature)
    back = decode_program(symbols, row, kind=kind, find_signature=find_signature)
    assert normalize_program(back).lower() == normalize_program(program).lower()
    grammar = SymbolGrammar(kind, row, signatures=list_signatures(kind), vocabulary=tuple(dict.fromkeys((*VOCABULARY, *symbols))))
    for symbol in symbols:
        assert symbol in grammar.list_allowed()
        grammar.take(symbol)


def test_a_number_of_the_instruction_is_none_of_the_constants_that_yes_and_no_are_counted_with():
    program = "A=LOC(image=LEFT,object='star')\nB=COUNT(box=A)\nC=EVAL(expr='(1 if {B} > 0 else 0) + {B} == 1')\nR=RESULT(var=C)"
    rows = [encode(f"Exactly {number} picture has a star.") for number in ("one", "three")]
    assert rows[0].symbols == rows[1].symbols
    symbols = encode_program(parse_program(program), rows[0], find_signature=find_signature)
    assert symbols.count("_<n0>") == 1
    assert "else 0) + {ANSWER0} == 3" in decode_program(symbols, rows[1], kind="multi_image", find_signature=find_signature)


def test_phrases_end_with_punctuation_and_with_a_sentence():
    assert encode("Tag the red stars, blue circles and the wug.").symbols == ("tag", "the", "<p0>", "<p1>", "and", "the", "<u2>")
    assert encode("Tag the circle. Zap red wug.").symbols == ("tag", "the", "<p0>", "<u1>", "<p2>")
    assert encode("How many red\nstars?").find_words("<p0>") == "red star"
    many = encode("1 and 2 and 3 and 4 and 5")
    assert many.symbols[-1] == SURPLUS and many.symbols[-3] == "<n3>"


def test_two_instructions_of_one_wording_are_one_row():
    assert encode("Hide the red star with party_popper.").symbols == ("hide", "the", "<p0>", "with", "<u1>")
    assert encode("Hide the small dotted blue square with cat.").symbols == ("hide", "the", "<p0>", "with", "<u1>")
    assert encode("There are exactly three teal wugs in total.").symbols == (
        "there",
        "are",
        "exactly",
        "<n0>",
        "<u0>",
        "<u1>",
        "in",
        "total",
    )


def test_an_unknown_word_belongs_to_the_phrase_next_to_it_but_not_to_a_sentence_it_begins():
    row = encode("Zap the teal square and the red wug.")
    assert row.symbols == ("<u0>", "the", "<p1>", "and", "the", "<p2>")
    assert [row.find_words(symbol) for symbol in ("<u0>", "<p1>", "<p2>", "<p3>")] == ["zap", "teal square", "red wug", None]
    assert encode("Where is the teal wug?").symbols[-1] == "<u0>", "behind a determiner"


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        (("1:", "LOC", "IMAGE", OPEN, "<p0>"), "within a line"),
        (("1:", "LOC", "IMAGE", OPEN, "<p7>", CLOSE), "has no <p7>"),
        (("1:", "LOOK", "IMAGE"), "no tool LOOK"),
    ],
)
def test_what_is_no_program_is_refused(symbols, said):
    with pytest.raises(ProgramError, match=said):
        decode_program(symbols, encode("Count the red stars."), kind="vqa", find_signature=find_signature)


@given(kind=st.sampled_from(sorted(FAMILIES)), seed=st.integers(0, 2**32))
def test_whatever_is_written_under_the_grammar_is_well_typed(kind, seed):
    rng = random.Random(seed)
    row = encode("Put two red stars left of the wug with sad_face.")
    grammar = SymbolGrammar(kind, row, signatures=list_signatures(kind), vocabulary=VOCABULARY)
    symbols: list[str] = []
    while not grammar.done:
        allowed = grammar.list_allowed()
        symbols.append(CLOSE if CLOSE in allowed and rng.random() < 0.5 else rng.choice(allowed))
        assert allowed and len(symbols) < 2000
        grammar.take(symbols[-1])
    text = decode_program(symbols, row, kind=kind, find_signature=find_signature)
    try:
        program = parse_program(text)
    except ProgramError:
        assert any(symbol in symbols for symbol in ("'", "_'")), "only a quote within a text can break a line"
        return
    assert len(program.statements) <= MOST_LINES
    problems = check_program(program, kind=kind, find_signature=find_signature)
    codes = {problem.code for problem in problems}
    assert codes <= {"malformed_expression", "malformed_placeholder", "undefined_placeholder", "wrong_type"}
    assert all("{" in problem.message or problem.code.startswith("malformed") for problem in problems), problems
