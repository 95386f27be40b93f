"""Instructions and programs as rows of symbols: what the embedded LM of plans reads and writes in place of words.

A phrase about objects is one symbol, numbered within its instruction (``<p0>``), whatever it says; so are a word that nobody knows
(``<u1>``) and a number (``<n0>``). All other words stand for themselves. A program is its tools and arguments in the order of the
signatures, each line with its number, variables by the line that gives them. So two instructions of one wording are the same row, and
what is left to learn is which program a row needs, and which of its symbols goes where.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from visloop.assistant.grammar import format_argument
from visloop.assistant.lexicon import WORD, normalize_word, split_words
from visloop.assistant.program import Literal, Program, Reference
from visloop.errors import ProgramError
from visloop.records.assistant import TaskKind
from visloop.tools.base import FindSignature

MOST_PHRASES: Final = 12
MOST_NUMBERS: Final = 4
SURPLUS: Final = "<more>"
"""A phrase or number beyond these: no LM has a symbol for it, so that nothing can be written about it."""
OPEN, CLOSE, NOTHING, CAPITAL, SPACE = "<text>", "</text>", "<nothing>", "<capital>", "_"
"""Begin and end of a text, an argument that is left out, a capital letter, and a space that is not plain from what stands around it."""
_PIECE = re.compile(rf"\{{\w+\}}|{WORD.pattern}|[=!<>]=|[^\w\s]")
_COMPARISONS = frozenset({"==", "!=", ">", "<", ">=", "<="})
_WITHIN = re.compile(r"[\s_-]+")
"""What stands between the words of one phrase."""
_SENTENCE_END = re.compile(r"[.?!:;]")
_NUMBER_OF_LINE = re.compile(r"\d+:")
_DETERMINERS = frozenset(["a", "the", "of", "than", "some", "any", "every", "each", "all", "both", "no", "and", "many", "more", "fewer"])
_VARIABLES = {"Boxes": "BOX", "Objects": "OBJ", "Image": "IMAGE", "List": "LIST"}


@dataclass(frozen=True, slots=True)
class SymbolRow:
    """An instruction. ``units`` are its symbols with the words that each stands for (first, behind the last); ``norms`` its words."""

    text: str
    norms: tuple[str, ...]
    units: tuple[tuple[str, int, int], ...]

    @property
    def symbols(self) -> tuple[str, ...]:
        """The row."""
        return tuple(symbol for symbol, _, _ in self.units)

    def find_words(self, symbol: str) -> str | None:
        """The words that a symbol stands for, in normal form (a name as it is written); None for one that the row does not have."""
        found = next((unit for unit in self.units if unit[0] == symbol), None)
        if found is None:
            return None
        words = split_words(self.text)[found[1] : found[2]]
        if any(self.text[before.end : word.start] == "_" for before, word in pairwise(words)):
            return self.text[words[0].start : words[-1].end].lower()  # a name
        written = words[0].norm
        for before, word in pairwise(words):
            written += ("-" if self.text[before.end : word.start] == "-" else " ") + word.norm
        return written


def encode_instruction(text: str, *, words: Collection[str], is_sure: Callable[[str], bool]) -> SymbolRow:
    """The row of an instruction.

    Args:
        words: normal forms that stand for themselves.
        is_sure: whether a word is known to name a concept. Unknown words next to one belong to its phrase.
    """
    split = split_words(text)
    kinds = ["n" if word.norm.isdigit() else "t" if word.norm in words else "s" if is_sure(word.norm) else "u" for word in split]
    glued = _list_glued(text)
    for index in glued:
        kinds[index] = kinds[index + 1] = "u"
    units: list[tuple[str, int, int]] = []
    phrases, numbers, start = 0, 0, 0
    while start < len(split):
        if kinds[start] == "n":
            units.append((f"<n{numbers}>" if numbers < MOST_NUMBERS else SURPLUS, start, start + 1))
            numbers, start = numbers + 1, start + 1
        elif kinds[start] == "t":
            units.append((split[start].norm, start, start + 1))
            start += 1
        else:
            stop = start + 1
            while stop < len(split) and kinds[stop] in "su" and _WITHIN.fullmatch(text[split[stop - 1].end : split[stop].start]):
                stop += 1
            sign, end = _cut_phrase(text, kinds, glued, start, stop)
            units.append((f"<{sign}{phrases}>" if phrases < MOST_PHRASES else SURPLUS, start, end))
            phrases, start = phrases + 1, end
    return SymbolRow(text, tuple(word.norm for word in split), tuple(units))


def _cut_phrase(text: str, kinds: Sequence[str], glued: Collection[int], start: int, stop: int) -> tuple[str, int]:
    """Kind and end of the phrase that begins at ``start`` in a run of concept words and unknown ones up to ``stop``: unknown words, sure
    ones, and one unknown noun behind the last. The first word of a sentence is a verb rather; unknown words alone are a phrase behind a
    determiner, and behind others each is a phrase. A name as ``party_popper`` is a phrase of its own."""
    words = split_words(text)
    begins = start == 0 or _SENTENCE_END.search(text[words[start - 1].end : words[start].start]) is not None
    name = start + 1
    while name - 1 in glued:
        name += 1
    sure = next((index for index in range(start, stop) if kinds[index] == "s"), None)
    if name > start + 1:
        return "u", name
    if sure is not None and not (begins and sure > start):
        end = next((index for index in range(sure, stop) if kinds[index] != "s"), stop)
        noun = end < stop and end not in glued and "s" not in kinds[end:stop]
        return "p", end + 1 if noun else end
    if sure is None and not begins and words[start - 1].norm in _DETERMINERS:
        return "u", next((index for index in range(start + 1, stop) if index in glued), stop)
    return "u", name


def _list_glued(text: str) -> frozenset[int]:
    """The words that an underscore joins to the next one."""
    words = split_words(text)
    return frozenset(index for index in range(len(words) - 1) if text[words[index].end : words[index + 1].start] == "_")


def encode_program(program: Program, row: SymbolRow, *, find_signature: FindSignature) -> tuple[str, ...]:
    """A program for the instruction of ``row``.

    Raises:
        ProgramError: a tool that there is not.
    """
    phrases = [(unit, row.norms[start:stop]) for unit, start, stop in row.units if unit[:2] in ("<p", "<u")]
    phrases.sort(key=lambda phrase: -len(phrase[1]))
    # of equal numbers the first
    numbers = {row.norms[start]: unit for unit, start, _ in reversed(row.units) if unit.startswith("<n")}
    names: dict[str, str] = {}
    symbols: list[str] = []
    for number, statement in enumerate(program.statements):
        signature = find_signature(statement.tool)
        if signature is None:
            raise ProgramError(f"line {number + 1}: there is no tool {statement.tool}")
        symbols += [f"{number + 1}:", signature.name]
        for parameter in signature.parameters:
            match statement.find_argument(parameter.name):
                case Reference(name):
                    symbols.append(names.get(name, name))
                case Literal(str() as text):
                    symbols += [OPEN, *_encode_text(text, phrases, numbers, names), CLOSE]
                case None | Literal(None):
                    symbols.append(NOTHING)
                case Literal(value):
                    symbols.append(numbers.get(str(value), str(value)))
        names[statement.variable] = f"v{number}"
    return tuple(symbols)


def _encode_text(
    text: str, phrases: Sequence[tuple[str, tuple[str, ...]]], numbers: Mapping[str, str], names: Mapping[str, str]
) -> list[str]:
    """A text with the symbols of an instruction's phrases (longest first) and numbers, and of variables, in their places."""
    found = [(match.group(), match.start() > 0 and text[match.start() - 1] in " _\t\n") for match in _PIECE.finditer(text)]
    symbols: list[str] = []
    index, after_word = 0, False
    while index < len(found):
        piece, spaced = found[index]
        if not _is_word(piece):
            before = found[index - 1][0] if index else ""
            if len(piece) > 2 and piece.startswith("{"):
                shown = names.get(piece[1:-1], piece[1:-1])
            else:
                shown = piece if _is_constant(piece, before) else numbers.get(piece, piece)
            symbols.append((SPACE if spaced else "") + shown)
            index, after_word = index + 1, False
            continue
        if spaced and symbols and not after_word:
            symbols.append(SPACE)
        run = index
        while run < len(found) and _is_word(found[run][0]) and (run == index or found[run][1]):
            run += 1
        norms = tuple(normalize_word(word) for word, _ in found[index:run])
        unit = next(((unit, words) for unit, words in phrases if norms[: len(words)] == words), None)
        if unit is not None:
            symbols.append(unit[0])
            index += len(unit[1])
        else:
            shouted = piece.isupper() and len(piece) > 1
            symbols += [CAPITAL] * (piece[0].isupper() and not shouted) + [piece if shouted else piece.lower()]
            index += 1
        after_word = True
    return symbols


def _is_constant(piece: str, before: str) -> bool:
    """Whether a digit is what yes and no are counted with (``1 if {A} > 0 else 0``), and not the number of an instruction."""
    return (piece == "0" and before in (">", "else")) or (piece == "1" and before not in _COMPARISONS)


def _is_word(piece: str) -> bool:
    return piece[0].isalnum() and not piece.isdigit()


def decode_program(symbols: Sequence[str], row: SymbolRow, *, kind: TaskKind, find_signature: FindSignature) -> str:
    """The text of a program.

    Raises:
        ProgramError: the row ends within a line, or has a symbol that means nothing there.
    """
    rest = [symbol for symbol in symbols if not _NUMBER_OF_LINE.fullmatch(symbol)]
    rest.reverse()
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    lines: list[str] = []
    while rest:
        tool = rest.pop()
        signature = find_signature(tool)
        if signature is None:
            raise ProgramError(f"line {len(lines) + 1}: there is no tool {tool}")
        arguments = []
        for parameter in signature.parameters:
            value = _take(rest)
            if value == OPEN:
                shown = format_argument(Literal(_decode_text(rest, row, names)))
            else:
                shown = "None" if value == NOTHING else names.get(value) or row.find_words(value) or value
            arguments.append(f"{parameter.name}={shown}")
        if signature.name == "RESULT":
            variable = "FINAL_ANSWER" if kind == "multi_image" else "FINAL_RESULT"
        else:
            base = _VARIABLES.get(signature.returns, "ANSWER")
            variable, counts[base] = f"{base}{counts.get(base, 0)}", counts.get(base, 0) + 1
        names[f"v{len(lines)}"] = variable
        lines.append(f"{variable}={tool}({','.join(arguments)})")
    return "\n".join(lines)


def _decode_text(rest: list[str], row: SymbolRow, names: dict[str, str]) -> str:
    """The text whose symbols end with the next ``CLOSE``; they are taken from the end of ``rest``."""
    text, after_word, capital, space = "", False, False, False
    while (symbol := _take(rest)) != CLOSE:
        if symbol in (CAPITAL, SPACE):
            capital, space = capital or symbol == CAPITAL, space or symbol == SPACE
            continue
        led = symbol.startswith(SPACE)
        bare = symbol[1:] if led else symbol
        is_word = _is_word(bare) or bare[:2] in ("<p", "<u")
        if bare in names:
            piece, is_word = "{" + names[bare] + "}", False
        elif re.fullmatch(r"<[pun]\d+>", bare):
            words = row.find_words(bare)
            if words is None:
                raise ProgramError(f"the instruction has no {bare}")
            piece = words
        else:
            piece = bare
        piece = piece[:1].upper() + piece[1:] if capital else piece
        text += (" " if text and (led or space or (is_word and after_word)) else "") + piece
        after_word, capital, space = is_word, False, False
    return text


def _take(rest: list[str]) -> str:
    if not rest:
        raise ProgramError("the row of symbols ends within a line")
    return rest.pop()
