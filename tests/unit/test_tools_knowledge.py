"""LIST: facts that fit and facts that only look alike, and chat replies that are no lists."""

import json
from pathlib import Path

import pytest

from tests.fixtures.scripted_chat import ScriptedChat, broken, cut
from visloop.errors import DataError, ToolError
from visloop.prompts.render import PromptSet
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.knowledge import SHIPPED_FACTS, ChatLister, find_names, load_facts, make_facts_tool

FACTS = load_facts(SHIPPED_FACTS)


def make_call(query: object = "warm colors", most: object = 9) -> ToolCall:
    return ToolCall(tool="LIST", arguments={"query": query, "max": most})  # type: ignore[dict-item]


def ask_chat(*replies: str, calls: list[ToolCall] | None = None) -> tuple[list[ToolResult], ScriptedChat]:
    script = iter(replies)
    chat = ScriptedChat(lambda _: next(script))
    return ChatLister(chat, PromptSet("full")).run(calls or [make_call()] * len(replies)), chat


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("founders of Apple", "Steve Jobs"),
        ("the founders of the company APPLE", "Steve Jobs"),
        ("Who are the founders of Gogle?", "Larry Page"),
        ("flag of Germany colours", "black"),
        ("the colors of the German flag", "black"),
        ("Warm colour", "red"),
        ("shapes with four side", "square"),
    ],
)
def test_a_query_finds_its_fact_in_other_words(query: str, first: str) -> None:
    assert find_names(query, FACTS)[0] == first


@pytest.mark.parametrize(
    "query",
    [
        "founders of Nokia",
        "founders of the company Oracle",
        "best director of the 93rd Oscar",
        "colors of the flag of Austria",
        "director of the movie Titanic",
        "shapes with seven sides",
        "capitals of Europe",
        "colors",
        "???",
    ],
)
def test_a_fact_that_only_looks_alike_is_not_taken(query: str) -> None:
    with pytest.raises(ToolError, match="no fact fits"):
        find_names(query, FACTS)


def test_a_word_that_is_nearly_another_is_another() -> None:
    facts = {"flag of Niger": ("orange",), "flag of Austria": ("red",), "year 2012 winner": ("x",)}
    for query in ("flag of Nigeria", "flag of Australia", "year 2013 winner"):
        with pytest.raises(ToolError):
            find_names(query, facts)
    assert find_names("flag of Austira", facts | {"flag of Austira": ("typo",)}) == ("typo",), "an exact key wins"


def test_two_facts_that_fit_equally_are_an_error_that_names_both() -> None:
    facts = {"founders of Apple Records": ("a",), "founders of Apple Computers": ("b",), "warm colors": ("red",)}
    with pytest.raises(ToolError, match="'founders of Apple Computers', 'founders of Apple Records'; say which"):
        find_names("founders of Apple", facts)
    with pytest.raises(ToolError, match=r"fits \d+ facts: 'colors of the flag of Armenia', .*, \.\.\.; say which"):
        find_names("colors of the flag", FACTS)


def test_the_tool_cuts_to_max_and_a_bad_call_is_an_error() -> None:
    calls = [
        make_call(most=2),
        make_call(most=0),
        make_call(most=True),
        make_call(query=None),
        make_call(query="dwarfs"),
        make_call(most=1.5),
    ]
    results = make_facts_tool().run(calls)
    assert results[0].value == ("red", "orange")
    assert [result.value for result in results[1:]] == [None] * 5
    for result, words in zip(
        results[1:], ("whole number from 1", "argument max", "argument query", "no fact", "whole number"), strict=True
    ):
        assert words in str(result.error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "must be one object"),
        ('{"warm colors": "red"}', "'warm colors' must have a list"),
        ('{"warm colors": []}', "at least one name"),
        ('{"the of": ["x"]}', "no word to look it up by"),
    ],
)
def test_a_file_that_is_no_facts_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        make_facts_tool(path)
    assert str(path) in str(caught.value)
    with pytest.raises(DataError, match="cannot be read"):
        make_facts_tool(tmp_path / "none.json")


def test_another_file_replaces_the_shipped_facts(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps({"staff of the harbour": ["Ann", "Bo"]}))
    results = make_facts_tool(path).run([make_call("harbour staff"), make_call()])
    assert results[0].value == ("Ann", "Bo")
    assert results[1].value is None


def test_shipped_facts_do_not_stand_in_each_others_way() -> None:
    for query, names in FACTS.items():
        assert find_names(query, FACTS) == names


def test_the_chat_is_asked_once_for_all_calls() -> None:
    calls = [make_call("moons of Mars", 3), make_call("", 3), make_call("gas giants", 1)]
    results, chat = ask_chat('["Phobos", "Deimos"]', 'Here they are: ["Jupiter", " Saturn ", "jupiter"] I hope', calls=calls)
    assert [result.value for result in results] == [("Phobos", "Deimos"), None, ("Jupiter",)]
    assert "argument query" in str(results[1].error)
    assert len(chat.batches) == 1
    assert chat.samplings[0].temperature == 0.0
    assert "Query: moons of Mars (at most 3)" in chat.requests[0].messages[0].text


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("Jupiter, Saturn", "no JSON array"),
        ('["Jupiter", 3]', "no JSON array"),
        ('["Jupiter", "Sat', "no JSON array"),
        ('{"names": 1}', "no JSON array"),
        ("[]", "knows no name"),
        ('["  "]', "knows no name"),
        (json.dumps(["a planet that " * 9]), "too long for a name"),
        (broken("server gone"), "no reply: server gone"),
        (cut('["Jupiter", "Sat'), "no JSON array"),
    ],
)
def test_a_reply_that_is_no_list_is_an_error(reply: str, message: str) -> None:
    [result], _ = ask_chat(reply)
    assert result.value is None
    assert message in str(result.error)


def test_doubles_are_dropped_and_order_is_kept() -> None:
    [result], _ = ask_chat('["Ada", "Bo", "ADA", "Cy"]')
    assert result.value == ("Ada", "Bo", "Cy")
