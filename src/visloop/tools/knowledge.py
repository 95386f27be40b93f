"""LIST: names that fit a query, from a file of facts or from a chat model (CLOVA's knowledge tagging)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Final

from visloop.chat.base import ChatModel, ChatReply, ChatRequest, Message, Sampling
from visloop.errors import DataError, ToolError
from visloop.ids import make_id, seed_for
from visloop.prompts.render import PromptSet
from visloop.tools.base import ToolCall, ToolResult
from visloop.tools.plain import PlainTool, take_number, take_text
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Value

SHIPPED_FACTS: Final = Path(__file__).parent / "facts.json"
LEAST_OVERLAP: Final = 0.7
"""Share of the words of query and fact together that must match."""
_LEAST_LIKENESS = 0.9
"""Two words of this likeness are one word misspelt. Less would take Niger for Nigeria."""
_ARTICLES = frozenset(("a", "an", "the", "of", "in", "on", "for", "to", "and", "or", "at"))
_FILLERS = _ARTICLES | {"is", "are", "was", "were", "be", "who", "which", "what", "that", "all", "most", "name", "names", "list", "tag"}
_LONGEST_NAME = 80

Facts = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Match:
    fact: str
    overlap: float


def load_facts(path: Path) -> Facts:
    """Read a file of facts: one JSON object, query -> list of names.

    Raises:
        DataError: the file is missing, not such an object, or a query has no name.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: the facts for LIST cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f'{path}: the facts for LIST must be one object like {{"warm colors": ["red", "orange"]}}')
    for query, names in content.items():
        if not (isinstance(names, list) and names and all(isinstance(name, str) and name.strip() for name in names)):
            raise DataError(f"{path}: key {query!r} must have a list of at least one name, got {names!r}")
        if not _words_of(query):
            raise DataError(f"{path}: key {query!r} has no word to look it up by")
    return {query: tuple(names) for query, names in content.items()}


def find_names(query: str, facts: Facts) -> tuple[str, ...]:
    """The names of the fact that asks for the same as ``query``.

    Words count without fillers, in any order and with small spelling mistakes. One of the two may say more than the other; where each
    says something that the other does not, they ask for different things, however alike they look.

    Raises:
        ToolError: no fact fits, or several with different names fit equally well.
    """
    wanted = _words_of(query)
    matches = [_Match(fact, overlap) for fact in facts if (overlap := _overlap(wanted, _words_of(fact))) >= LEAST_OVERLAP]
    if not matches:
        near = get_close_matches(query, facts, n=3, cutoff=0.5)
        raise ToolError(f"no fact fits {query!r}; " + (f"the nearest are {', '.join(map(repr, near))}" if near else "none is near"))
    best = max(match.overlap for match in matches)
    found = {facts[match.fact]: match.fact for match in matches if match.overlap == best}
    if len(found) > 1:
        shown = ", ".join(map(repr, sorted(found.values())[:3])) + (", ..." if len(found) > 3 else "")
        raise ToolError(f"{query!r} fits {len(found)} facts: {shown}; say which")
    return next(iter(found))


def _words_of(text: str) -> list[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return [word for word in words if word not in _FILLERS]


def _overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of the words that have a partner, 0 where both sides have a word without one."""
    left = list(second)
    matched = 0
    for word in first:
        partner = next((other for other in left if _same_word(word, other)), None)
        if partner is not None:
            left.remove(partner)
            matched += 1
    if left and matched < len(first):
        return 0.0
    return 2 * matched / max(1, len(first) + len(second))


def _same_word(first: str, second: str) -> bool:
    first, second = first.removesuffix("s"), second.removesuffix("s")
    if first == second:
        return True
    if any(letter.isdigit() for letter in first + second):
        return False
    return SequenceMatcher(None, first, second).ratio() >= _LEAST_LIKENESS


def make_facts_tool(path: Path | None = None) -> PlainTool:
    """LIST from a file of facts; None takes the shipped one.

    Raises:
        DataError: as ``load_facts``.
    """
    facts = load_facts(path or SHIPPED_FACTS)

    def list_names(call: ToolCall) -> Value:
        query, most = _read_call(call)
        return find_names(query, facts)[:most]

    return PlainTool(SIGNATURES["LIST"], list_names)


def _read_call(call: ToolCall) -> tuple[str, int]:
    query, most = take_text(call, "query"), take_number(call, "max")
    if most < 1 or most != int(most):
        raise ToolError(f"argument max must be a whole number from 1, got {most}")
    return query, int(most)


@dataclass(slots=True)
class ChatLister:
    """LIST by a chat model: all calls in one batch, greedy. A reply that is no list of names is an error of its call."""

    chat: ChatModel
    prompts: PromptSet
    signature = SIGNATURES["LIST"]
    sampling = Sampling(temperature=0.0, max_new_tokens=256)

    def run(self, calls: Sequence[ToolCall]) -> list[ToolResult]:
        results: dict[int, ToolResult] = {}
        requests, asked = [], []
        for index, call in enumerate(calls):
            try:
                query, most = _read_call(call)
            except ToolError as error:
                results[index] = ToolResult(value=None, error=f"LIST: {error}")
                continue
            text = self.prompts.render("list", query=query, most=most)
            key = make_id("list", query, most)
            requests.append(ChatRequest(id=key, messages=(Message(role="user", text=text),), seed=seed_for(0, key)))
            asked.append((index, most))
        replies = self.chat.reply(requests, sampling=self.sampling) if requests else []
        for (index, most), reply in zip(asked, replies, strict=True):
            try:
                results[index] = ToolResult(value=read_names(reply)[:most])
            except ToolError as error:
                results[index] = ToolResult(value=None, error=f"LIST: {error}")
        return [results[index] for index in range(len(calls))]


def read_names(reply: ChatReply) -> tuple[str, ...]:
    """The names of a reply: its first JSON array, without doubles.

    Raises:
        ToolError: no reply, no array of strings, an empty one, or a name that is none by its length.
    """
    if reply.finish == "error":
        raise ToolError(f"the chat model gave no reply: {reply.error or 'no reason'}")
    start = reply.text.find("[")
    try:
        content = json.JSONDecoder().raw_decode(reply.text, start)[0] if start >= 0 else None
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ToolError(f"the reply holds no JSON array of names: {reply.text[:80]!r}")
    names: dict[str, str] = {}
    for name in (" ".join(entry.split()) for entry in content):
        if name:
            names.setdefault(name.casefold(), name)
    if not names:
        raise ToolError("the chat model knows no name that fits")
    if longest := [name for name in names.values() if len(name) > _LONGEST_NAME]:
        raise ToolError(f"{longest[0][:40]!r}... is too long for a name ({len(longest[0])} characters, at most {_LONGEST_NAME})")
    return tuple(names.values())
