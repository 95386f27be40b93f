"""Regions of pictures that were seen before: proposing them costs more than anything else that tools do with a small picture."""

import hashlib
from collections import OrderedDict
from threading import Lock
from typing import Final

from PIL import Image

from visloop.tools.naming import Region
from visloop.tools.proposals import propose_regions

MOST_BYTES: Final = 128 * 2**20


class RegionCache:
    """Proposed regions by the content of the picture; the longest unused ones are dropped when masks take more than ``most_bytes``."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most, self._bytes, self._lock = most_bytes, 0, Lock()
        self._regions: OrderedDict[bytes, tuple[Region, ...]] = OrderedDict()

    def propose(self, image: Image.Image) -> tuple[Region, ...]:
        """The regions of a picture."""
        key = hashlib.blake2b(image.tobytes() + repr((image.size, image.mode)).encode(), digest_size=16).digest()
        with self._lock:
            if key in self._regions:
                self._regions.move_to_end(key)
                return self._regions[key]
        found = tuple(Region(box, mask) for box, mask in propose_regions(image))
        with self._lock:
            if key not in self._regions:
                self._regions[key] = found
                self._bytes += _count_bytes(found)
            while self._bytes > self._most and len(self._regions) > 1:
                _, dropped = self._regions.popitem(last=False)
                self._bytes -= _count_bytes(dropped)
        return found

    def clear(self) -> None:
        """Forget all pictures."""
        with self._lock:
            self._regions.clear()
            self._bytes = 0


SHARED: Final = RegionCache()
"""Of the process: regions depend on the picture alone, so that all toolboxes can share them."""


def _count_bytes(regions: tuple[Region, ...]) -> int:
    return sum(region.mask.nbytes for region in regions if region.mask is not None)
