"""Running sums of squares per class and channel, from which channels are scored."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from methods.base import MethodError

AddSquares = Callable[[Tensor, Tensor, Tensor], None]
"""(sums [classes, d], features [images, tokens, d], labels [images]): sums[k] += squares of the images of class k."""


IMAGES_AT_ONCE = 8
"""Images whose features are held in the type of the sums at a time."""


def add_squares(sums: Tensor, features: Tensor, labels: Tensor) -> None:
    """`AddSquares` in torch, exact to the type of `sums`, with a few images at a time in that type.

    A product with one-hot labels keeps the order of summation fixed.
    """
    few = features.split(IMAGES_AT_ONCE)
    squares = torch.cat([images.to(sums.dtype, copy=True).square_().sum(dim=1) for images in few])
    sums += nn.functional.one_hot(labels, len(sums)).to(sums.dtype).T @ squares


def adder(device: torch.device) -> tuple[AddSquares, torch.dtype]:
    """How sums are taken on this device, and their type: Triton kernels in float32 on CUDA, torch in float64 on CPU."""
    if device.type == "cuda":
        from methods.sct import kernels_selection  # Triton is there on machines with CUDA only

        return kernels_selection.add_squares, torch.float32
    return add_squares, torch.float64


class ClassSums:
    """Running sums of squares per class and channel, for several taps: taps * classes * d numbers in all."""

    def __init__(self, num_classes: int, widths: Sequence[int], prefix: int, device: torch.device) -> None:
        self._add, dtype = adder(device)
        self.sums = [torch.zeros(num_classes, d, dtype=dtype, device=device) for d in widths]
        self.counts = torch.zeros(num_classes, dtype=torch.int64, device=device)
        self.classes = torch.arange(num_classes, device=device)
        self.prefix, self.images = prefix, 0

    def start_batch(self, labels: Tensor) -> None:
        """The features that follow belong to images of these classes; labels: [B]."""
        self.labels = labels.contiguous()
        self.counts += (labels[:, None] == self.classes).sum(dim=0)
        self.images += len(labels)

    def add(self, tap: int, columns: slice, features: Tensor) -> None:
        """Add one tap's features of the batch.

        features: [images, tokens, d], of which the first `prefix` tokens are left out; [images, H, W, d]; or Swin's
        windows [images * windows, tokens, d], which lie image by image.
        """
        features = features[..., columns]
        tokens = features.reshape(len(self.labels), -1, features.shape[-1])[:, self.prefix :]
        self._add(self.sums[tap], tokens, self.labels)

    def _need_images(self) -> None:
        if not self.images:
            raise MethodError("channel selection needs at least one training image")

    def class_aware(self) -> list[Tensor]:
        """Importance S [d] of each tap: the mean of the class norms over the classes that occur."""
        self._need_images()
        present = (self.counts > 0).sum()  # sums of absent classes are zero
        return [s.sqrt().sum(dim=0) / present for s in self.sums]

    def l2(self) -> list[Tensor]:
        """Norm [d] of each tap over all images at once, whatever their class."""
        self._need_images()
        return [s.sum(dim=0).sqrt() for s in self.sums]
