"""What a program of the search means: typed values that both a fast executor (``search_scenes``) and the real program
(``search_programs``) are made from."""

from dataclasses import dataclass
from typing import Literal

AtomForm = Literal["count", "every", "kinds", "exact", "most"]
MeaningForm = Literal["total", "boxes", "same_box", "alike", "and"]


@dataclass(frozen=True, slots=True)
class Filter:
    """Some objects of a picture. ``words``: alternatives per attribute group, all groups hold; ``without``: attribute words that do
    not hold; ``places``: (name, holds); ``relation``: (tool, the others): the objects that the tool keeps of them."""

    words: tuple[tuple[str, ...], ...] = ()
    without: tuple[str, ...] = ()
    places: tuple[tuple[str, bool], ...] = ()
    relation: "tuple[str, Filter] | None" = None


@dataclass(frozen=True, slots=True)
class Atom:
    """A statement about one picture, with ``number`` objects or kinds compared by ``sign``.

    ``count``: how many fit ``what``. ``every``: there are some of ``what`` and all fit ``more`` too. ``kinds``: how many words of
    ``group`` occur among ``what``. ``exact``: just the words ``named`` of ``group`` occur. ``most``: how many of ``what`` share a word
    of ``group`` at most.
    """

    form: AtomForm
    what: Filter = Filter()
    more: Filter = Filter()
    sign: str = ">="
    number: int = 1
    group: str = ""
    named: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Meaning:
    """A statement about all pictures of a task.

    ``boxes``: in how many pictures all ``atoms`` hold. ``total``: the (one) atom over all pictures together. ``same_box``: all objects
    of the atom's filter are in one picture. ``alike``: two pictures in which all atoms hold have the
    same ``group`` word (or, without group, the same number) of the first atom's objects; ``holds`` False: no two. ``and``: all parts hold.
    """

    form: MeaningForm
    atoms: tuple[Atom, ...] = ()
    sign: str = ">="
    number: int = 1
    holds: bool = True
    parts: "tuple[Meaning, ...]" = ()
