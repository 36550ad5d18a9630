"""From an image file to 8-bit pixels: the one decoder used by runs, `data check --deep`, `data export` and the
bench.

* 16-bit (or 12-bit) grey images are scaled by their range: white is 65535 (or 4095), and the upper eight bits are kept.
* Floats run from 0, black, to 1, white. 32-bit and signed integers have no agreed white. Such an image, and one of
  floats outside that range, is refused by name.
* What is transparent, by an alpha channel, a palette or a key colour, is put on white.
* Of several frames or pages the first is used.
* Pixels are used as stored: EXIF orientation, colour profiles and gamma are not applied. Released code does the same
  (torchvision, timm, TensorFlow Datasets), and its numbers are what results are compared with. Only TIFF's own
  orientation, a part of that format, is applied, as Pillow does.

The result may change with `VERSION` here or with the libraries that Pillow uses, so `versions_digest` is part of every
decoded array's name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import PIL
from PIL import Image, features

from harness.data.files import NO_FILE, no_file
from harness.errors import DataError

if TYPE_CHECKING:  # it imports torch, which those who only look at images need not wait for
    from harness.schema.preprocessing import Preprocessing

VERSION = 1
"""Raised when the rules above change."""

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises for a file that it cannot decode, and `as_rgb` for an image that it refuses."""

MAY_BE_REFUSED = ("I", "F", "LAB")
"""Modes in which a complete image may still have no 8-bit pixels: 32-bit integers, floats, and Lab."""

_GREY = "I;16"
"""Prefix of the modes of 16-bit grey."""

_SIXTEEN_IN_32 = ("PNG", "PPM")
"""Formats whose mode `I` holds 16-bit numbers."""

_SCALED = ("L;2", "L;4", "RGB;16B")
"""Depths that Pillow scales to 8 bits without scaling the key colour."""

_WHITE_IS_ZERO, _BITS, _PHOTOMETRIC = 0, 258, 262
"""TIFF's tags, and the value for images whose numbers run from white to black. Pillow applies it up to 8 bits."""


@cache
def versions_digest() -> str:
    """Digest of the rules' version, and of Pillow and the libraries that decode for it."""
    libraries = {name: features.version(name) for name in ("libjpeg_turbo", "jpg", "jpg_2000", "libtiff", "webp")}
    return hashlib.sha256(f"{VERSION} {PIL.__version__} {sorted(libraries.items())}".encode()).hexdigest()[:16]


def decode(path: Path, preprocessing: Preprocessing) -> np.ndarray:
    """Pixels uint8 [size, size, 3] of an image file. `DataError` names a file that cannot be decoded."""
    return np.asarray(preprocessing.square(read(path)))


def read(path: Path) -> Image.Image:
    """The image in a file, in mode RGB with 8 bits. `DataError` names a file that cannot be decoded."""
    with opened(path) as image:
        return as_rgb(image)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The image in a file, before decoding. `DataError` names a file that cannot be opened, or decoded inside."""
    try:
        if problem := no_file(path.stat()):
            raise DataError(f"{path}: {problem}")
        with Image.open(path) as image:
            yield image
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: {NO_FILE}") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be decoded ({error})") from None


def as_rgb(image: Image.Image) -> Image.Image:
    """An opened image by the rules above, in mode RGB. `ValueError` says why one is refused."""
    if "transparency" in image.info and (depth := _depth(image)) in _SCALED:
        raise ValueError(f"a key colour at depth {depth} is not read: save it with an alpha channel")
    if image.mode in ("I", "F") or image.mode.startswith(_GREY):
        return _grey(image).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _depth(image: Image.Image) -> str:
    """How the file stores its pixels, in Pillow's words; empty for an image already decoded."""
    tiles = getattr(image, "tile", [])
    return str(tiles[0][3]) if tiles else ""


def _grey(image: Image.Image) -> Image.Image:
    """A grey image of more than 8 bits in mode L."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # NaN is not either
            extent = f"from {values.min():g} to {values.max():g}"
            raise ValueError(f"floats {extent}, where 0 is black and 1 is white: save it with 8 or 16 bits")
        levels = np.round(values * 255).astype(np.uint8)
    elif image.mode == "I" and image.format not in _SIXTEEN_IN_32:
        raise ValueError("integers with a sign or of 32 bits have no agreed white: save it with 8 or 16 bits")
    else:
        levels = (values >> (int(tags.get(_BITS, (16,))[0]) - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    if "transparency" in image.info:
        levels = np.where(values == image.info["transparency"], np.uint8(255), levels)
    return Image.fromarray(levels)
