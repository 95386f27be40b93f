"""FACEDET by OpenCV's cascade of Haar features (Viola and Jones), whose file comes with OpenCV: nothing to download.

CLOVA's DSFD finds more faces, above all turned ones, but its weights are no longer to be had.
"""

import threading
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from PIL import Image

from visloop.errors import ModelError
from visloop.tools.base import ToolCall
from visloop.tools.plain import PlainTool, take_image
from visloop.tools.signatures import SIGNATURES
from visloop.tools.values import Box, Objects, Value, VisualObject

ENLARGED: Final = 1.5
"""The box around a face, in multiples of what the detector finds: hair and chin belong to it (CLOVA's value)."""
FACE: Final = "face"
_CASCADE = "haarcascade_frontalface_default.xml"
_SCALE_STEP, _NEIGHBOURS = 1.1, 5


class FaceDetector:
    """Finds upright frontal faces from 24 pixels a side. One instance may be used by several threads.

    Raises:
        ModelError: the cascade's file is missing.
    """

    def __init__(self) -> None:
        path = Path(cv2.__file__).parent / "data" / _CASCADE
        self._cascade = cv2.CascadeClassifier(str(path))
        if self._cascade.empty():
            raise ModelError(f"FACEDET: OpenCV's cascade {path} cannot be read; opencv-python-headless 4.12 or newer, below 5, brings it")
        self._lock = threading.Lock()  # a cascade keeps buffers between calls

    def find_faces(self, image: Image.Image) -> Objects:
        """Faces as objects without mask, surest first, their boxes ``ENLARGED`` and clipped to the picture. ``score`` grows with the
        cascade's weight from 0 to 1; it is no probability."""
        grey = cv2.equalizeHist(np.asarray(image.convert("L")))
        with self._lock:
            found, _, weights = self._cascade.detectMultiScale3(
                grey, scaleFactor=_SCALE_STEP, minNeighbors=_NEIGHBOURS, outputRejectLevels=True
            )
        faces = []
        for (x, y, width, height), weight in zip(np.reshape(found, (-1, 4)).tolist(), np.reshape(weights, -1).tolist(), strict=True):
            more_x, more_y = width * (ENLARGED - 1) / 2, height * (ENLARGED - 1) / 2
            score = max(0.0, weight) / (1.0 + max(0.0, weight))
            box = Box(
                left=max(0.0, x - more_x),
                top=max(0.0, y - more_y),
                right=min(float(image.width), x + width + more_x),
                bottom=min(float(image.height), y + height + more_y),
                score=score,
                label=FACE,
            )
            faces.append(VisualObject(box=box, label=FACE, score=score))
        return tuple(sorted(faces, key=lambda face: (-face.score, face.box.corners)))


def make_face_tool() -> PlainTool:
    """FACEDET.

    Raises:
        ModelError: as ``FaceDetector``.
    """
    detector = FaceDetector()

    def find_faces(call: ToolCall) -> Value:
        return detector.find_faces(take_image(call))

    return PlainTool(SIGNATURES["FACEDET"], find_faces)
