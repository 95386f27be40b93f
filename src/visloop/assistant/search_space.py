"""The task pack of the program search: which tool calls may be combined (the space), and which words speak of them (the lexicon).

Both are data. A pack is a folder beside this module (``packs/<name>``) or anywhere else, with ``space.yaml``, ``lexicon.yaml`` and
``function_words.yaml``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from visloop.errors import ConfigError
from visloop.tools.base import FindSignature

_PACKS = Path(__file__).parent / "packs"
_STRICT = ConfigDict(extra="forbid")


@checked_dataclass(frozen=True, config=_STRICT)
class Place:
    """A property that a tool tells of an object by itself: ``TOUCHING(target=...)``, ``TOP``, ``BOTTOM``, or ``ON`` another place."""

    tool: str
    target: str = ""
    other: str = ""


@checked_dataclass(frozen=True, config=_STRICT)
class Relation:
    """A property of an object by other objects. ``reverse``: the tool is asked the other way round (below = the other is above)."""

    tool: str
    reverse: bool = False


@checked_dataclass(frozen=True, config=_STRICT)
class Limits:
    """``candidates`` per instruction, ``unused`` attribute and number words that a program may ignore, ``largest`` number."""

    candidates: int = 1500
    unused: int = 2
    largest: int = 9


@checked_dataclass(frozen=True, config=_STRICT)
class Space:
    """What programs may be made of. ``attributes``: words that FILTER is asked for, by group; words of one group exclude each other.
    ``operators``: comparison words and their signs."""

    name: str
    inputs: tuple[str, ...]
    attributes: dict[str, tuple[str, ...]]
    places: dict[str, Place]
    relations: dict[str, Relation]
    operators: dict[str, str]
    limits: Limits = field(default_factory=Limits)

    @property
    def words(self) -> tuple[str, ...]:
        """All attribute words."""
        return tuple(word for group in self.attributes.values() for word in group)

    def group_of(self, word: str) -> str:
        """The group of an attribute word."""
        return next(group for group, words in self.attributes.items() if word in words)


Lexicon = Mapping[str, tuple[str, ...]]
"""Part of the space -> the words that may speak of it."""


@dataclass(frozen=True, slots=True)
class Pack:
    """A space with its lexicon, and the lexicon's words that belong to no task (``function_words``)."""

    space: Space
    lexicon: Lexicon
    function_words: Lexicon


def load_pack(pack: str | Path) -> Pack:
    """Read a task pack: a shipped name (``nlvr``) or a folder.

    Raises:
        ConfigError: no such pack, or a file of it is malformed.
    """
    folder = _PACKS / str(pack) if (_PACKS / str(pack)).is_dir() else Path(pack)
    if not folder.is_dir():
        raise ConfigError(
            f"planner: no task pack {str(pack)!r}; shipped packs: {', '.join(sorted(item.name for item in _PACKS.iterdir()))}"
        )
    space = _check(TypeAdapter(Space), folder / "space.yaml")
    lexicon = _check(TypeAdapter(dict[str, tuple[str, ...]]), folder / "lexicon.yaml")
    function_words = _check(TypeAdapter(dict[str, tuple[str, ...]]), folder / "function_words.yaml")
    for name, place in space.places.items():
        if place.other and place.other not in space.places:
            raise ConfigError(f"{folder / 'space.yaml'}: places.{name}.other is {place.other!r}, which is no place")
    return Pack(space, lexicon, function_words)


def _check(adapter: TypeAdapter[Any], path: Path) -> Any:
    try:
        return adapter.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from error


def derive_lexicon(space: Space, *, find_signature: FindSignature) -> Lexicon:
    """The words that the tools themselves give: attribute words, targets that a tool's line names, names of tools.

    A place or relation that several tools or targets share a word for (``top``) gets the word each time.

    Raises:
        ConfigError: the space uses a tool that has no signature.
    """
    lexicon: dict[str, tuple[str, ...]] = {word: (word,) for word in space.words}
    parts: list[tuple[str, Place | Relation]] = [*space.places.items(), *space.relations.items()]
    for part, item in parts:
        signature = find_signature(item.tool)
        if signature is None:
            raise ConfigError(f"space {space.name}: {part} needs the tool {item.tool}, which is unknown")
        if isinstance(item, Place) and item.target:
            lexicon[part] = (item.target,) if item.target in signature.doc else ()
        elif isinstance(item, Relation) and item.reverse:
            lexicon[part] = ()
        else:
            lexicon[part] = () if isinstance(item, Place) and item.other else (item.tool.lower(),)
    return lexicon


def join_lexicons(*lexicons: Lexicon) -> Lexicon:
    """Every part with the words of all lexicons."""
    parts = dict.fromkeys(part for lexicon in lexicons for part in lexicon)
    return {part: tuple(dict.fromkeys(word for lexicon in lexicons for word in lexicon.get(part, ()))) for part in parts}
