"""The picture that a program sees: RGB, upright, no side longer than the toolbox allows."""

from pathlib import Path

from PIL import Image

from visloop.chat.images import MAX_DECLARED_PIXELS, flatten_alpha, load_image
from visloop.errors import ConfigError


def prepare_image(source: Path | str | Image.Image, *, max_side: int) -> Image.Image:
    """The picture of a file, or a picture in memory, as RGB and shrunk to ``max_side`` (CLOVA: 640); a smaller one keeps its size.

    The result may be shared with other callers: copy it before drawing on it.

    Args:
        max_side: pixels of the longer side, ``ToolsConfig.max_image_side``.

    Raises:
        ConfigError: ``max_side`` below 1.
        DataError: the file is missing, damaged, or too large to decode.
    """
    if max_side < 1:
        raise ConfigError(f"tools.max_image_side must be at least 1, got {max_side}")
    image = flatten_alpha(source) if isinstance(source, Image.Image) else load_image(source, max_pixels=MAX_DECLARED_PIXELS)
    longer = max(image.size)
    if longer <= max_side:
        return image
    width, height = (max(1, round(side * max_side / longer)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
