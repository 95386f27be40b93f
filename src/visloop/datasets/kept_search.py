"""An image search whose answers are kept: the web answers differently tomorrow, and a cycle that is played again shall see what it saw.

``<store>/pictures``  what was fetched, by content hash
``<store>/answers``   a file per search: the words, how many were asked for, and where each picture is from, with its licence
"""

from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from visloop.datasets.image_search import FoundPicture, PictureSource, SearchReport
from visloop.datasets.images import ImageLimits, import_image
from visloop.errors import DataError
from visloop.ids import hash_file, hash_json
from visloop.records.shards import write_text

PICTURES, ANSWERS = "pictures", "answers"


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    query: str
    asked: int
    found: list[FoundPicture]


class KeptSearch:
    """A search that asks another one only what it has not asked before. An answer without pictures is not kept.

    Args:
        search: stores its pictures in ``<store>/pictures``.
        store: the folder; several runs may share it.
        out: where the pictures of an answer are stored for its reader.
        asked_of: what the answers depend on besides the words: address, licences.
        limits: what a picture must be, also one that was fetched under other limits.
    """

    def __init__(
        self, search: PictureSource, *, store: Path, out: Path, asked_of: tuple[str, ...] = (), limits: ImageLimits | None = None
    ) -> None:
        self.name = search.name
        self._search, self._store, self._out, self._asked_of, self._limits = search, store, out, asked_of, limits

    def find_group(self, query: str) -> str:
        """What the search says."""
        return self._search.find_group(query)

    def list_siblings(self, query: str) -> tuple[str, ...]:
        """What the search says."""
        return self._search.list_siblings(query)

    def find_pictures(self, query: str, *, most: int, report: SearchReport) -> list[FoundPicture]:
        """The kept answer where as many pictures were asked for; else the search is asked, and its answer kept.

        Raises:
            DataError: the search cannot be reached, or a kept answer is no such file.
        """
        words = " ".join(query.lower().split())
        path = self._store / ANSWERS / f"{hash_json([words, *self._asked_of])}.json"
        kept = _read_answer(path)
        if kept is not None and (kept.asked >= most or len(kept.found) >= most):
            taken = self._take(kept.found[:most])
            if taken is not None:
                report.seen += len(taken)
                report.stored += len(taken)
                return taken
        found = self._search.find_pictures(query, most=most, report=report)
        if found:
            answer = _Answer(query=words, asked=most, found=found)
            write_text(path, answer.model_dump_json(indent=1) + "\n")
        return self._take(found) or []

    def _take(self, found: list[FoundPicture]) -> list[FoundPicture] | None:
        """Copy pictures to where they are read; None where one is gone or is another than it was: then the search is asked again."""
        taken = []
        for picture in found:
            if Path(picture.name) != Path(picture.sha256[:2], f"{picture.sha256}{Path(picture.name).suffix}"):
                return None
            path = self._store / PICTURES / picture.name
            if path.is_file() and hash_file(path) != picture.sha256:
                path.unlink()  # a file that has a name by hash is not written again
            try:
                stored = import_image(path, out=self._out, limits=self._limits)
            except DataError:
                return None
            taken.append(replace(picture, name=stored.name))
        return taken


def _read_answer(path: Path) -> _Answer | None:
    if not path.is_file():
        return None
    try:
        return _Answer.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"{path}: no kept answer of a search: {first['msg']}; delete the file, and the search is asked again") from error
