"""From an image to the model's input: an explicit, named step of the protocol."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from PIL import Image
from timm.data.constants import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_INCEPTION_MEAN,
    IMAGENET_INCEPTION_STD,
)
from torch import Tensor

from harness.errors import HarnessError
from methods.base import did_you_mean

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per colour channel, for pixels in [0, 1]."""

STATISTICS: dict[str, Statistics] = {
    "imagenet": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "half": (IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""The usual ones: ImageNet's; 0.5 and 0.5, which gives inputs in [-1, 1]; inputs left in [0, 1]."""

INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
FITS = {
    "squash": "resized to a square, whatever the image's shape",
    "crop": "shorter side resized to 256/224 of the size, centre cropped",
    "squash-crop": "resized to a square of 256/224 of the size, centre cropped",
}
"""How an image becomes a square. `squash` is what most VTAB-1K code does, `squash-crop` NOAH's few-shot code."""


@cache
@torch.inference_mode(False)
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """255 times the values, on the device once: a transfer in every step would make the host wait."""
    return torch.tensor(values, device=device) * 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How an image becomes the model's input."""

    image_size: int
    """Side of the square in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    fit: str = "squash"
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        for key, known in (("fit", FITS), ("interpolation", INTERPOLATIONS)):
            value = getattr(self, key)
            if value not in known:
                raise HarnessError(f"preprocessing {key}={value!r}: {did_you_mean(value, list(known))}")

    @property
    def pixels_id(self) -> str:
        """What decides the decoded pixels, statistics left out."""
        return f"{self.image_size}px-{self.fit}-{self.interpolation}"

    @property
    def id(self) -> str:
        """Name of the preprocessing in specs and records, and part of a run's identity: a new field appears in it only
        where it does not hold the value that does what was done before."""
        names = {statistics: name for name, statistics in STATISTICS.items()}
        numbers = ",".join(f"{value:g}" for value in (*self.mean, *self.std))
        return f"{self.pixels_id}-{names.get((self.mean, self.std), numbers)}"

    @classmethod
    def from_id(cls, text: str) -> Preprocessing:
        """Inverse of `id`. `HarnessError` if the text is no such name."""
        try:
            size, rest = text.split("px-", 1)
            fit, interpolation, statistics = next(
                (f, *rest.removeprefix(f"{f}-").split("-", 1))
                for f in sorted(FITS, key=len, reverse=True)
                if rest.startswith(f"{f}-")
            )
            if statistics in STATISTICS:
                mean, std = STATISTICS[statistics]
            else:
                numbers = tuple(float(number) for number in statistics.split(","))
                mean, std = numbers[:3], numbers[3:6]
            return cls(image_size=int(size), mean=mean, std=std, fit=fit, interpolation=interpolation)
        except (ValueError, StopIteration):
            raise HarnessError(f"{text!r} does not name a preprocessing") from None

    @property
    def resized(self) -> int:
        """Side in pixels that an image is resized to before it is cropped."""
        return self.image_size if self.fit == "squash" else round(self.image_size * 256 / 224)

    def square(self, image: Image.Image) -> Image.Image:
        """The image resized and cropped to the model's input."""
        filter_, size = INTERPOLATIONS[self.interpolation], self.image_size
        if self.fit == "squash":
            return image.resize((size, size), filter_)
        larger = self.resized
        width, height = (side * larger // min(image.size) for side in image.size)
        image = image.resize((larger, larger) if self.fit == "squash-crop" else (width, height), filter_)
        left, top = round((image.width - size) / 2), round((image.height - size) / 2)
        return image.crop((left, top, left + size, top + size))

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [B, H, W, 3] to float32 [B, 3, H, W] on the same device: (x / 255 - mean) / std."""
        mean, std = (_constant(values, images.device) for values in (self.mean, self.std))
        return ((images.float() - mean) / std).permute(0, 3, 1, 2)
