"""Placeholders ``{VAR}`` in the texts of a program, such as ``question='Is the {ANSWER0} thing round?'``: found, and filled in once.

Filling is plain replacement. A value that holds braces itself is never looked at again, and a brace that is no placeholder is an error.
"""

import re
from collections.abc import Mapping
from typing import Final

from visloop.errors import ProgramError
from visloop.tools.values import Value, ValueType

FILLABLE: Final[tuple[ValueType, ...]] = ("Text", "Number", "Bool", "List")
"""Types that can be told in a text."""
MAX_FILLED: Final = 10_000

_PLACEHOLDER = re.compile(r"\{[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*\}")


def find_placeholders(text: str) -> tuple[str, ...]:
    """The names in braces, in order, each once.

    Raises:
        ProgramError: a brace that does not belong to a name, as in ``{A.b}``, ``{0}`` or ``{{``.
    """
    rest = _PLACEHOLDER.sub("", text)
    for brace in "{}":
        if brace in rest:
            shown = rest[rest.index(brace) :][:20]
            raise ProgramError(f"{shown!r} is no placeholder; braces hold the name of one earlier variable, as in {{ANSWER0}}")
    return tuple(dict.fromkeys(_PLACEHOLDER.findall(text)))


def fill_placeholders(text: str, variables: Mapping[str, Value]) -> str:
    """The text with the values of its placeholders: texts as they are, numbers in digits, entries of a list with commas.

    Raises:
        ProgramError: a variable is missing or cannot be told in a text, or the result has more than ``MAX_FILLED`` characters.
    """

    def tell(found: re.Match[str]) -> str:
        name = found[1]
        if name not in variables:
            raise ProgramError(f"{{{name}}} is not defined")
        value = variables[name]
        if isinstance(value, tuple) and all(isinstance(entry, str) for entry in value):
            return ", ".join(entry for entry in value if isinstance(entry, str))
        if isinstance(value, str | int | float):
            return str(value)
        raise ProgramError(f"{{{name}}} is no text and no number; only {', '.join(FILLABLE)} can stand in a text")

    parts, at, length = [], 0, 0
    for found in _PLACEHOLDER.finditer(text):
        parts += [text[at : found.start()], tell(found)]
        at = found.end()
        length += len(parts[-2]) + len(parts[-1])
        if length > MAX_FILLED:
            break
    filled = "".join([*parts, text[at:]])
    if len(filled) > MAX_FILLED:
        raise ProgramError(f"the text has more than {MAX_FILLED} characters once its placeholders are filled in")
    return filled
