"""Files of pictures, read by Pillow as transformers reads them: upright, in RGB."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lit_debias.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

ORIENTATION, LYING = 0x0112, range(5, 9)
"""Tag of a photograph's metadata that says how the camera was held, and its values for a quarter turn."""


def read_picture(path: str) -> Image:
    """Return a picture.

    Raises:
        UserError: there is no such file, it is no picture or a damaged one, or Pillow is not installed.
    """
    from PIL.ImageOps import exif_transpose

    with _opened(path) as image:
        return exif_transpose(image).convert("RGB")


def size_of(path: str) -> tuple[int, int]:
    """Return width and height of a picture that :func:`read_picture` returns, without reading all of it."""
    with _opened(path) as image:
        width, height = image.size
        return (height, width) if image.getexif().get(ORIENTATION) in LYING else (width, height)


@contextmanager
def _opened(path: str) -> Iterator[Image]:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError("images need Pillow; pip install 'lit-debias[images]'") from error
    if not Path(path).is_file():
        raise UserError(f"there is no picture '{path}'; write the path of a file")
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()).replace(path, "the file")
        raise UserError(f"picture '{path}' cannot be read ({reason:.100}); write another one") from error
