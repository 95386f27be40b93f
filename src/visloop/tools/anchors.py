"""Anchors: features of crops that a CLIP already names rightly, kept beside its weights. A new word is learned against them, so that
it takes nothing from the known ones (the paper keeps prompts of right runs for the same end, CLOVA 3.4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from visloop.errors import DataError

ANCHORS_NAME: Final = "anchors.safetensors"


@dataclass(frozen=True, eq=False)
class Anchors:
    """Unit features (n, d) and for every group the word that each shows."""

    features: Tensor
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def list_group(self, group: str, words: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features and the places, in ``words``, of what they show; other words are left out."""
        places = np.array([words.index(word) if word in words else -1 for word in self.words.get(group, ())], dtype=np.int64)
        labels = torch.from_numpy(places)
        return self.features[: len(labels)][labels >= 0], labels[labels >= 0]


def save_anchors(anchors: Anchors, folder: Path) -> None:
    """Write anchors in half precision; the words are the file's metadata."""
    metadata = {group: " ".join(words) for group, words in anchors.words.items()}
    save_file({"features": anchors.features.half().contiguous()}, folder / ANCHORS_NAME, metadata=metadata)


def load_anchors(folder: Path | None) -> Anchors:
    """The anchors of a model's folder; none where there is no such file.

    Raises:
        DataError: the file is corrupt, or says no word for some feature.
    """
    if folder is None or not (folder / ANCHORS_NAME).is_file():
        return Anchors(torch.zeros(0, 1))
    try:
        with safe_open(folder / ANCHORS_NAME, framework="pt") as file:
            features = file.get_tensor("features").float()
            words = {group: tuple(text.split()) for group, text in (file.metadata() or {}).items() if group != "format"}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{folder / ANCHORS_NAME}: not a file of anchors: {error}") from error
    if any(len(found) != len(features) for found in words.values()):
        raise DataError(f"{folder / ANCHORS_NAME}: {len(features)} features, but {[len(found) for found in words.values()]} words")
    return Anchors(torch.nn.functional.normalize(features, dim=-1), words)
