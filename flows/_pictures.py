"""What the gates ask about pictures: they exist, open, have the recorded bytes, and none of them is held out."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from PIL import Image

from visloop.records.assistant import Task
from visloop.records.reasoning import Sample

if TYPE_CHECKING:
    from flows._gates import Context

OK = "ok"


class PictureCheck:
    """Answers about pictures under the context's data folder; each file is read and decoded once."""

    def __init__(self, context: "Context") -> None:
        self._context = context
        self._seen: dict[str, tuple[str, str, tuple[int, int]]] = {}

    def check_sample(self, sample: Sample | Task) -> str:
        """``ok``, or the first picture that is missing, does not open, or has other bytes than recorded."""
        if not sample.images:
            return "no picture"
        if len(sample.image_hashes) != len(sample.images):
            return f"{len(sample.images)} pictures, {len(sample.image_hashes)} recorded hashes"
        for path, recorded in zip(sample.images, sample.image_hashes, strict=True):
            state, digest, _ = self._read(path)
            if state != OK:
                return state
            if digest != recorded:
                return f"{path}: bytes hash to {digest[:12]}, recorded is {recorded[:12]}"
        return OK

    def check_paths(self, images: Sequence[str]) -> str:
        """``ok``, or the first picture that is missing or does not open.

        A picture whose hash is recorded was opened by the gate on the samples; here it only has to be there.
        """
        if not images:
            return "no picture"
        for path in images:
            recorded = path in self._context.picture_hashes and self._is_inside(path)
            there = (self._context.data / path).is_file() if recorded else self._read(path)[0] == OK
            if not there:
                return f"{path}: missing" if recorded else self._read(path)[0]
        return OK

    def find_held_out(self, images: Sequence[str]) -> str:
        """``ok``, or that the pictures, as a set, are those of an evaluation question, by hash.

        A single box of a three-box scene may occur in other scenes; the whole scene may not.
        """
        digests = frozenset(self._context.picture_hashes.get(path) or self._read(path)[1] for path in images)
        return f"{', '.join(images)}: pictures of the evaluation" if digests in self._context.evaluation_pictures else OK

    def hash_picture(self, path: str) -> str:
        """SHA-256 of the bytes; the empty text for a picture that cannot be read."""
        return self._read(path)[1]

    def read_size(self, path: str) -> tuple[int, int]:
        """Width and height in pixels; (0, 0) for a picture that does not open."""
        return self._read(path)[2]

    def _is_inside(self, path: str) -> bool:
        pure = PurePosixPath(path)
        return not pure.is_absolute() and ".." not in pure.parts

    def _read(self, path: str) -> tuple[str, str, tuple[int, int]]:
        """(``ok`` or what is wrong, SHA-256 of the bytes or the empty text, width and height)."""
        if path not in self._seen:
            self._seen[path] = self._open(path)
        return self._seen[path]

    def _open(self, path: str) -> tuple[str, str, tuple[int, int]]:
        if not self._is_inside(path):
            return f"{path}: not a path inside the data folder", "", (0, 0)
        try:
            data = (self._context.data / path).read_bytes()
        except OSError as error:
            return f"{path}: {error.strerror or error}", "", (0, 0)
        digest = hashlib.sha256(data).hexdigest()
        try:
            with Image.open(io.BytesIO(data)) as picture:
                picture.load()
                size = picture.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{path}: does not open ({error})", digest, (0, 0)
        return OK, digest, size
