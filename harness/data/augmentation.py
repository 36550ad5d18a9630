"""Augmentation of a training batch, on decoded images that already have the model's size.

Every random choice for a batch follows from one seed. timm's transforms draw from the global generators of python,
numpy and torch: these are seeded for the batch and restored afterwards, so nothing else is affected, and a batch, and
with it an epoch, can be repeated on its own.
"""

import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.auto_augment import RandAugment, rand_augment_transform
from timm.data.mixup import Mixup, mixup_target
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from harness.schema.preprocessing import INTERPOLATIONS, Preprocessing

RAND_AUGMENT = "rand-m9-mstd0.5-inc1"
ERASE_PROBABILITY = 0.25
MIXUP_ALPHA, CUTMIX_ALPHA = 0.8, 1.0

Augment = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(images uint8 [B, H, W, 3], labels int64 [B], seed) to (float32 [B, 3, H, W] normalised, on the images' device, and
targets: the labels, or with `fewshot` probabilities [B, C])."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global CPU generators of python, numpy and torch start from `seed`; afterwards they are as before."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def make(name: str, preprocessing: Preprocessing, num_classes: int, smoothing: float) -> Augment:
    """The augmentation of that name; `smoothing` is the label smoothing of the soft targets of `fewshot`."""
    if name == "flip":
        return lambda images, labels, seed: (preprocessing.normalise(flip(images, seed)), labels)
    if name == "train_aug":
        return TrainAug(preprocessing)
    if name == "fewshot":
        return FewShot(preprocessing, num_classes, smoothing)
    return lambda images, labels, seed: (preprocessing.normalise(images), labels)


def flip(images: Tensor, seed: int) -> Tensor:
    """Mirror each of the images [B, H, W, 3] with probability one half."""
    mirrored = torch.rand(len(images), generator=torch.Generator().manual_seed(seed)) < 0.5
    if images.is_cuda:
        mirrored = mirrored.pin_memory().to(images.device, non_blocking=True)  # else the host waits in every step
    return torch.where(mirrored[:, None, None, None], images.flip(2), images)


def rand_augment(preprocessing: Preprocessing) -> RandAugment:
    """RandAugment with the settings that `timm.data.create_transform` derives from image size and mean."""
    settings = {
        "translate_const": int(preprocessing.image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in preprocessing.mean),
        "interpolation": INTERPOLATIONS[preprocessing.interpolation],
    }
    made: RandAugment = rand_augment_transform(RAND_AUGMENT, settings)
    for operation in made.ops:
        if operation.name.startswith("Posterize"):
            operation.aug_fn = posterize
    return made


def posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """Keep so many bits of each channel. At full strength timm asks for none, which Pillow 13 refuses; older versions
    returned black."""
    if bits >= 8:
        return image
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


class TrainAug:
    """`train_aug` of SCT's release: horizontal flip, then RandAugment, on images squashed to the model's size.

    The release builds timm's training transform and replaces its random crop by a plain resize; with RandAugment on,
    timm leaves colour jitter out. RandAugment is that of the timm installed (the release has 0.6.5).
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing, self.rand_augment = preprocessing, rand_augment(preprocessing)

    def image(self, image: Image.Image) -> Image.Image:
        """One image, drawing from the global generators."""
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        augmented: Image.Image = self.rand_augment(image)
        return augmented

    def images(self, images: Tensor) -> Tensor:
        """Augmented copies, uint8 [B, H, W, 3] on the CPU."""
        arrays = [np.array(self.image(Image.fromarray(array))) for array in images.cpu().numpy()]
        return torch.from_numpy(np.stack(arrays))

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `Augment`."""
        with seeded(seed):
            augmented = self.images(images)
        return self.preprocessing.normalise(augmented.to(images.device)), labels


class FewShot(TrainAug):
    """NOAH's few-shot recipe: random resized crop, flip, RandAugment, random erasing, then mixup or cutmix.

    The crop is taken from the decoded square, not from the original file. So its shape is relative to the squashed
    image (with `fit=crop`: to its centre), and a small crop is enlarged from fewer pixels and looks softer.
    Erased areas are filled with per-pixel noise, as is usual with these settings (DeiT); NOAH's mode was not checked.
    """

    def __init__(self, preprocessing: Preprocessing, num_classes: int, smoothing: float) -> None:
        super().__init__(preprocessing)
        size, interpolation = preprocessing.image_size, preprocessing.interpolation
        self.crop = RandomResizedCropAndInterpolation(size, interpolation=interpolation)
        self.erase = RandomErasing(ERASE_PROBABILITY, mode="pixel", device="cpu")
        self.mixup = Mixup(MIXUP_ALPHA, CUTMIX_ALPHA, label_smoothing=smoothing, num_classes=num_classes)

    def image(self, image: Image.Image) -> Image.Image:
        """One image, drawing from the global generators."""
        return super().image(self.crop(image))

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """See `Augment`. The targets are probabilities [B, C]: of two classes for mixed images, and smoothed."""
        with seeded(seed):
            erased = self.erase(self.preprocessing.normalise(self.images(images)).contiguous())
            return self._mix(erased.to(images.device), labels)

    def _mix(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the batch with its mirror image; of an odd number the last stays as it is, as timm mixes pairs only."""
        even = len(images) - len(images) % 2
        single = mixup_target(labels[even:], self.mixup.num_classes, smoothing=self.mixup.label_smoothing)
        if not even:
            return images, single
        mixed, targets = self.mixup(images[:even], labels[:even])
        return torch.cat([mixed, images[even:]]), torch.cat([targets, single])


MOST_WORKERS = 8


def workers_for(device: torch.device, augment: Augment) -> int:
    """How many processes may augment for one run: none on a CPU, whose cores are all computing, and none where the
    device does the augmentation; else this process's share of the cores, minus one for itself."""
    if device.type != "cuda" or not isinstance(augment, TrainAug):
        return 0
    share = len(os.sched_getaffinity(0)) // torch.cuda.device_count()
    return min(MOST_WORKERS, share - 1)


class _Images(Dataset[tuple[Tensor, Tensor]]):
    """Augmented batches, by the indices of their images and the batch's seed."""

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment) -> None:
        self.images, self.labels, self.augment = images, labels, augment

    def __getitem__(self, batch: tuple[list[int], int]) -> tuple[Tensor, Tensor]:
        index, seed = batch
        return self.augment(self.images[index], self.labels[index], seed)


class PrefetchLoader:
    """Augments the next batches in other processes while the device trains on the current one, with identical results.

    images: uint8 [N, H, W, 3], labels: int64 [N], both copied to the CPU.
    """

    def __init__(self, images: Tensor, labels: Tensor, augment: Augment, workers: int) -> None:
        self._device, self._order = images.device, list[tuple[list[int], int]]()
        self._loader: DataLoader[Any] = DataLoader(
            _Images(images.cpu(), labels.cpu(), augment),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=True,
            multiprocessing_context="fork",  # they share the images, and never touch the device
            pin_memory=images.is_cuda,
            generator=torch.Generator(),  # the global one is the training's
        )

    def batches(self, order: list[tuple[list[int], int]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images and targets, on the device, of batches given by image numbers and seed."""
        self._order[:] = order
        with _signals_blocked():
            loaded = iter(self._loader)
        for images, targets in loaded:
            yield images.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Processes forked inside never receive the signals that tell a run to stop: they end together with it."""
    stop = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
