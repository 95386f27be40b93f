"""Sentence embeddings by sentence-transformers: what retrieval uses where meaning must count for more than words.

CLOVA embeds instructions with BERT (mean of the last hidden states); any model that sentence-transformers loads will do.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from visloop.chat.weights import resolve_model, split_revision
from visloop.errors import ModelError


class SentenceEncoder:
    """A sentence-transformers model; it is loaded at once, to fail early.

    Args:
        model: a local folder or a hub id, with ``@revision`` if one is pinned.
        device: as torch spells it; None: the best there is.

    Raises:
        ModelError: the model cannot be loaded.
    """

    def __init__(self, model: str, *, device: str | None = None, batch_size: int = 64) -> None:
        from sentence_transformers import SentenceTransformer

        self.name, self._batch_size = model, batch_size
        try:
            source, revision = split_revision(resolve_model(model))
            self._model = SentenceTransformer(source, device=device, revision=revision)
        except (ModelError, OSError, ValueError, RuntimeError) as error:
            raise ModelError(f"planner.encoder_model {model}: cannot be loaded ({error}); use a local folder, or encoder=words") from error

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, d) rows of length 1; a text without words is a row of zeros."""
        width = self._model.get_embedding_dimension() or 0
        if not texts:
            return np.zeros((0, width), dtype=np.float32)
        rows = self._model.encode(
            list(texts), batch_size=self._batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        spoken = np.array([bool(text.strip()) for text in texts])
        return np.where(spoken[:, None], np.asarray(rows, dtype=np.float32), np.float32(0))
