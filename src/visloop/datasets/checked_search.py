"""A search whose pictures are looked at before they are stored: what the check refuses is never where pictures are learned from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from visloop.chat.images import load_image
from visloop.datasets.image_search import FoundPicture, PictureSource, SearchReport
from visloop.datasets.images import ImageLimits, Skip, import_image

LOOK_PIXELS = 512 * 512
"""Pixels of a picture that the check is shown at most: classifiers look at less."""


class CheckedSearch:
    """Another search, without the pictures that a check refuses. Fewer pictures than asked for are no error.

    Args:
        open_search: opens the search with the folder that it stores in: one aside, which goes with this object.
        out: where pictures that passed are stored.
        check: for each picture why it is refused; empty: it passed.
        limits: what a picture must be.
    """

    def __init__(
        self,
        open_search: Callable[[Path], PictureSource],
        *,
        out: Path,
        check: Callable[[Sequence[Image.Image]], list[str]],
        limits: ImageLimits | None = None,
    ) -> None:
        self._folder = TemporaryDirectory(prefix="visloop-unchecked-")
        self._aside, self._out, self._check, self._limits = Path(self._folder.name), out, check, limits
        self._search = open_search(self._aside)
        self.name = self._search.name

    def find_group(self, query: str) -> str:
        """What the search says."""
        return self._search.find_group(query)

    def list_siblings(self, query: str) -> tuple[str, ...]:
        """What the search says."""
        return self._search.list_siblings(query)

    def find_pictures(self, query: str, *, most: int, report: SearchReport) -> list[FoundPicture]:
        """What the search finds and the check does not refuse; a refused one is reported with its reason.

        Raises:
            DataError: the search cannot be reached.
        """
        found = self._search.find_pictures(query, most=most, report=report)
        reasons = self._check([load_image(self._aside / picture.name, max_pixels=LOOK_PIXELS) for picture in found])
        passed = []
        for picture, reason in zip(found, reasons, strict=True):
            path = self._aside / picture.name
            if reason:
                report.stored -= 1
                report.refused.append(Skip(picture.origin, reason))
            else:
                import_image(path, out=self._out, limits=self._limits)
                passed.append(picture)
            path.unlink()
        return passed
