"""Common corruptions of test images: what makes `demo+corruptions` out of `demo`, and of any other suite.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019, arXiv 1903.12261), in idea: five kinds at five strengths. It is not ImageNet-C, and numbers do not compare:

* five kinds instead of fifteen, one of noise, blur and contrast each and two of the digital ones;
* at the model's input size, on the 8-bit pixels that it would be given, instead of before resizing and cropping, and
  without saving the result as a JPEG;
* strengths that are stated for a side of 224 pixels and follow the side of the input, so that an image is about as
  hard to recognise at 56 as at 224 pixels; pixelating, whose strength is a share of the pixels, is harder there.

All is done in whole numbers, by tables or by Pillow's own integer arithmetic, and noise is drawn from the raw bits of a
generator that is seeded by the image's number in its list: the same pixels on every machine. JPEG alone depends on the
library that Pillow was built with; `digest` tells.
"""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from suites.base import Suite, Target, Task

VERSION = 1
"""Raised when what a corruption does changes."""

SUFFIX = "+corruptions"
"""After a suite's name: the suite whose test images are also scored corrupted."""

SIDE = 224
"""Side in pixels that strengths are stated for."""

Pixels = NDArray[np.uint8]
"""[side, side, 3]."""


def noise(pixels: Pixels, strength: int, number: int) -> Pixels:
    """Gaussian noise, independent per pixel and channel. Strength: standard deviation as a share of white at a side of
    `SIDE`; it goes with the root of the side, as the mean over the pixels of an object does."""
    bits = np.random.PCG64([number, strength]).random_raw(-(-pixels.size // 4))
    draws = bits.astype("<u8").view("<u2")[: pixels.size].reshape(pixels.shape)
    levels = _normal(255 * NOISE[strength - 1] * _scale(pixels))
    noisy: NDArray[np.int16] = pixels + levels[draws]
    return noisy.clip(0, 255).astype(np.uint8)


@cache
def _normal(deviation: float) -> NDArray[np.int16]:
    """Noise int16 [65536]: quantiles of the normal distribution, up to 4.3 standard deviations."""
    normal = NormalDist(0, deviation)
    return np.array([round(normal.inv_cdf((i + 0.5) / 2**16)) for i in range(2**16)], np.int16)


def blur(pixels: Pixels, strength: int, number: int) -> Pixels:
    """Gaussian blur. Strength: standard deviation in pixels at a side of `SIDE`; it goes with the side."""
    radius = BLUR[strength - 1] * len(pixels) / SIDE
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def contrast(pixels: Pixels, strength: int, number: int) -> Pixels:
    """Distances from the image's mean colour are reduced. Strength: the share of them that is left."""
    mean = pixels.sum(axis=(0, 1), dtype=np.int64) / (pixels.size // 3)
    table = np.rint((np.arange(256) - mean[:, None]) * CONTRAST[strength - 1] + mean[:, None])
    return np.asarray(Image.fromarray(pixels).point(table.astype(int).ravel().tolist()))


def jpeg(pixels: Pixels, strength: int, number: int) -> Pixels:
    """Saved as a JPEG with Pillow's default subsampling of colour. Strength: Pillow's quality at a side of `SIDE`; it
    goes with the inverse root of the side, for a block of 8x8 pixels holds more of a smaller image."""
    file, quality = io.BytesIO(), min(95, round(JPEG[strength - 1] / _scale(pixels)))
    Image.fromarray(pixels).save(file, "JPEG", quality=max(1, quality))
    with Image.open(file) as image:
        return np.asarray(image)


def pixelate(pixels: Pixels, strength: int, number: int) -> Pixels:
    """Averaged over boxes, then enlarged without smoothing. Strength: the side in between, as a share of the side."""
    side = len(pixels)
    small = max(1, round(side * PIXELATE[strength - 1]))
    image = Image.fromarray(pixels).resize((small, small), Image.Resampling.BOX)
    return np.asarray(image.resize((side, side), Image.Resampling.NEAREST))


def _scale(pixels: Pixels) -> float:
    return math.sqrt(len(pixels) / SIDE)


NOISE = (0.08, 0.12, 0.18, 0.26, 0.38)
BLUR = (1.0, 2.0, 3.0, 4.0, 6.0)
CONTRAST = (0.4, 0.3, 0.2, 0.1, 0.05)
JPEG = (25, 18, 15, 10, 7)
PIXELATE = (0.6, 0.5, 0.4, 0.3, 0.25)

KINDS: Mapping[str, Callable[[Pixels, int, int], Pixels]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "jpeg": jpeg,
    "pixelate": pixelate,
}
"""By name: of an image, at a strength from 1 to 5, given the image's number in its list."""

STRENGTHS = range(1, 6)


def corrupted(suite: Suite) -> Suite:
    """`<name>+corruptions`: the suite with every kind and strength as a further test set, in place of its own. What is
    trained on, and the clean test split, are the suite's."""
    return replace(
        suite,
        name=f"{suite.name}{SUFFIX}",
        title=f"{suite.title}, corrupted",
        about=f"{suite.about} Test images also with {len(KINDS)} corruptions at {len(STRENGTHS)} strengths.",
        tasks=tuple(replace(task, targets=_targets(task)) for task in suite.tasks),
        data_of=suite.data_name,
    )


def target_name(kind: str, strength: int) -> str:
    """Name of the further test set."""
    return f"{kind}-{strength}"


def _targets(task: Task) -> tuple[Target, ...]:
    size = task.sizes.get("test")
    return tuple(
        Target(name=target_name(kind, strength), corruption=(kind, strength), size=size)
        for kind in KINDS
        for strength in STRENGTHS
    )


def corrupt(pixels: Pixels, corruption: tuple[str, int], number: int) -> Pixels:
    """An image uint8 [side, side, 3] at the model's input size, corrupted. `number`: of the image in its list."""
    kind, strength = corruption
    return KINDS[kind](pixels, strength, number)


@cache
def digest(side: int) -> str:
    """sha256 over all corruptions of one made-up image of that size: another Pillow, or another library that it was
    built with, may make other pixels."""
    ramp = np.arange(side * side * 3, dtype=np.uint32).reshape(side, side, 3)
    image = (ramp * 2654435761 >> 24).astype(np.uint8) // 2 + (ramp * 127 // ramp.size).astype(np.uint8)
    sha = hashlib.sha256()
    for kind in KINDS:
        for strength in STRENGTHS:
            sha.update(corrupt(image, (kind, strength), 0).tobytes())
    return sha.hexdigest()
