"""Which step of a program works on the result of which: what reflection, learning and tools without words ask of a syntax tree."""

import re
from collections.abc import Iterator, Mapping

from visloop.assistant.program import Literal, Program, Reference, Statement
from visloop.tools.base import FindSignature
from visloop.tools.values import Value, ValueType

_REGIONS: tuple[ValueType, ...] = ("Boxes", "Objects")
_PLACEHOLDER = re.compile(r"\{\s*(\w+)\s*\}")


def list_references(statement: Statement) -> tuple[str, ...]:
    """Variables that a statement reads: arguments first, then placeholders ``{VAR}`` of its texts, in order."""
    names = [value.name for _, value in statement.arguments if isinstance(value, Reference)]
    for _, value in statement.arguments:
        if isinstance(value, Literal) and isinstance(value.value, str):
            names += _PLACEHOLDER.findall(value.value)
    return tuple(dict.fromkeys(names))


def find_concept_step(program: Program, step: int, *, find_signature: FindSignature) -> int | None:
    """The step whose argument says what the tool of ``step`` has to know: the step itself, or, for a tool without words (SEG), the
    first later one that chooses among its regions (SELECT, CLASSIFY); None for a tool that learns nothing."""
    signature = find_signature(program.statements[step - 1].tool)
    if signature is None or signature.concept is None:
        return None
    return step if signature.concept else next(_find_askers(program, step, find_signature=find_signature), None)


def list_asked_words(program: Program, step: int, *, find_signature: FindSignature, values: Mapping[str, Value]) -> tuple[str, ...]:
    """What later steps ask of the result of ``step``: the texts of their concept arguments, in order, each once. An argument that is a
    variable counts where its value is there already."""
    words: list[str] = []
    for number in _find_askers(program, step, find_signature=find_signature):
        words += list_concept_texts(program.statements[number - 1], find_signature=find_signature, values=values)
    return tuple(dict.fromkeys(words))


def list_concept_texts(statement: Statement, *, find_signature: FindSignature, values: Mapping[str, Value]) -> tuple[str, ...]:
    """The texts of a statement's concept argument: a text is one, a list has as many as it holds texts; anything else has none."""
    signature = find_signature(statement.tool)
    argument = statement.find_argument(signature.concept) if signature and signature.concept else None
    value = argument.value if isinstance(argument, Literal) else values.get(argument.name) if argument is not None else None
    texts = value if isinstance(value, tuple) else (value,)
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def _find_askers(program: Program, step: int, *, find_signature: FindSignature) -> Iterator[int]:
    """Later steps that choose by a concept among the regions that ``step`` found. REPLACE names what is painted, not what is there."""
    derived = {program.statements[step - 1].variable}
    for number, later in enumerate(program.statements[step:], start=step + 1):
        if derived & set(list_references(later)):
            signature = find_signature(later.tool)
            if signature is not None and signature.returns in _REGIONS:  # a picture made of regions has others
                if signature.concept:
                    yield number
                derived.add(later.variable)
