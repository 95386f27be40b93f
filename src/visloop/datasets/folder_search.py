"""Pictures on disk as an image search: one folder per word, with what is known of them in a file."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from visloop.datasets.image_search import FoundPicture, SearchReport
from visloop.datasets.images import Skip, import_image
from visloop.errors import DataError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
SOURCES_NAME = "sources.json"


class _Sources(BaseModel):
    model_config = ConfigDict(extra="ignore")
    licence: str = ""
    groups: dict[str, str] = {}


class FolderImageSearch:
    """Pictures on disk as a search: one folder per concept, ``<root>/<concept>/*.png``; ``groups`` says what kind each concept is.

    A term is looked up among the folders that are there; it never becomes a path. ``licence`` and the file are kept on every picture.
    Where they are not given, a file ``sources.json`` in ``root`` says them: ``{"licence": ..., "groups": {concept: group}}``.

    Raises:
        DataError: no such folder, or a ``sources.json`` of another form.
    """

    name = "folder"

    def __init__(self, root: Path, *, out: Path, groups: Mapping[str, str] | None = None, licence: str = "") -> None:
        if not root.is_dir():
            raise DataError(f"{root}: no folder of pictures; it needs one folder per concept")
        noted = _read_sources(root / SOURCES_NAME)
        self._out, self._licence, self._root = out, licence or noted.licence, root
        self._folders = {
            _normalize(folder.name): folder for folder in sorted(root.iterdir()) if folder.is_dir() and not folder.is_symlink()
        }
        self._groups = {_normalize(concept): group for concept, group in (noted.groups if groups is None else groups).items()}

    def find_group(self, query: str) -> str:
        """The kind of thing that a concept is, or empty."""
        return self._groups.get(_normalize(query), "")

    def list_siblings(self, query: str) -> tuple[str, ...]:
        """Other concepts of the same kind that have a folder, sorted."""
        group, name = self.find_group(query), _normalize(query)
        return tuple(other for other in sorted(self._folders) if group and other != name and self._groups.get(other) == group)

    def find_pictures(self, query: str, *, most: int, report: SearchReport) -> list[FoundPicture]:
        """Up to ``most`` different pictures of a concept, in name order; none where there is no folder for it."""
        folder = self._folders.get(_normalize(query))
        found: dict[str, FoundPicture] = {}
        for path in sorted(folder.iterdir()) if folder else []:
            if len(found) == most:
                break
            if path.suffix.lower() not in _SUFFIXES:
                continue
            report.seen += 1
            where = path.relative_to(self._root).as_posix()
            try:
                if path.is_symlink():
                    raise DataError("a link; only files below the folder are read")
                stored = import_image(path, out=self._out)
            except DataError as error:
                report.refused.append(Skip(where, str(error)))
                continue
            if stored.sha256 not in found:
                found[stored.sha256] = FoundPicture(name=stored.name, sha256=stored.sha256, origin=where, licence=self._licence)
                report.stored += 1
        return list(found.values())


def _read_sources(path: Path) -> _Sources:
    if not path.is_file():
        return _Sources()
    try:
        return _Sources.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise DataError(f"{path}: needs licence and groups (concept: group): {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _normalize(name: str) -> str:
    return " ".join(name.replace("_", " ").lower().split())
