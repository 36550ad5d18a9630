"""Augmentation: timm's own transforms, seeded per batch, leaving the global generators as they were."""

import multiprocessing as mp
import os
import random
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from harness.data import augmentation
from harness.schema.preprocessing import STATISTICS, Preprocessing

SIZE, CLASSES = 48, 5
MEAN, STD = STATISTICS["imagenet"]
IMAGENET = Preprocessing(image_size=SIZE, mean=MEAN, std=STD)
KINDS = ("none", "flip", "train_aug", "fewshot")


def images(count=6):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=generator), SIZE, mode="bicubic")
    return (smooth.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def labels(count=6):
    return torch.arange(count) % CLASSES


def augment(kind, seed=7, count=6, smoothing=0.1):
    return augmentation.make(kind, IMAGENET, CLASSES, smoothing)(images(count), labels(count), seed)


def global_states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_bits_whatever_the_global_generators_hold(kind):
    first = augment(kind)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = global_states()
    second = augment(kind)
    assert global_states() == before
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(augment(kind, seed=8)[0], first[0]) == (kind == "none")


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_the_input_stays_as_it_is(kind):
    given = images()
    augmented, targets = augmentation.make(kind, IMAGENET, CLASSES, 0.1)(given, labels(), 7)
    assert torch.equal(given, images())
    assert (augmented.shape, augmented.dtype) == ((6, 3, SIZE, SIZE), torch.float32)
    assert augmented.isfinite().all()
    assert targets.shape == ((6, CLASSES) if kind == "fewshot" else (6,))


def test_flip_mirrors_left_to_right_about_half_of_the_time():
    many = images(1).expand(200, -1, -1, -1)
    flipped = augmentation.flip(many, 3)
    kept = sum(torch.equal(image, many[0]) for image in flipped)
    mirrored = sum(torch.equal(image, many[0].flip(1)) for image in flipped)
    assert kept + mirrored == 200
    assert 70 < kept < 130


def test_train_aug_is_what_timm_builds_for_the_release():
    """create_transform with the release's arguments; its crop left out as there, its flip (torch's draw) done by us."""
    flip_and_crop = 2
    theirs = create_transform(
        (3, SIZE, SIZE),
        is_training=True,
        color_jitter=0.4,
        auto_augment="rand-m9-mstd0.5-inc1",
        re_prob=0.0,
        interpolation="bicubic",
        mean=MEAN,
        std=STD,
    ).transforms[flip_and_crop:]
    expected = []
    with augmentation.seeded(7):
        for array in images().numpy():
            image = Image.fromarray(array)
            if random.random() < 0.5:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for transform in theirs:
                image = transform(image)
            expected.append(image)
    assert [type(t).__name__ for t in theirs] == ["RandAugment", "MaybeToTensor", "Normalize"]
    torch.testing.assert_close(augment("train_aug")[0], torch.stack(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("strength", [0, 10])
def test_every_operation_works_from_its_weakest_to_its_full_strength(strength):
    for operation in augmentation.rand_augment(IMAGENET).ops:
        operation.prob, operation.magnitude, operation.magnitude_std = 1.0, strength, 0
        changed = operation(Image.fromarray(images(1)[0].numpy()))
        assert changed.size == (SIZE, SIZE), operation.name
        if operation.name == "PosterizeIncreasing":
            assert changed.getextrema() == ((0, 0),) * 3 or not strength


def test_train_aug_changes_most_images():
    plain, changed = augment("none", count=40)[0], augment("train_aug", count=40)[0]
    same = sum(torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert same < 12  # about one in eight has no flip and neither of the two operations


@pytest.mark.parametrize("count", [6, 5, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_fewshot_targets_are_probabilities_of_at_most_two_classes(count, smoothing):
    for seed in range(8):
        images, targets = augment("fewshot", seed, count, smoothing)
        assert len(images) == count
        torch.testing.assert_close(targets.sum(dim=1), torch.ones(count))
        assert int((targets > smoothing / CLASSES + 1e-6).sum(dim=1).max()) <= 2
        assert (targets[torch.arange(count), labels(count)] > smoothing / CLASSES - 1e-6).all()


def test_fewshot_mixes_both_ways():
    """Over seeds there is mixup (no pixel kept of a constant pair) and cutmix (pixels of either, unmixed)."""
    black_and_white = torch.stack([torch.zeros(SIZE, SIZE, 3), torch.full((SIZE, SIZE, 3), 255.0)])
    mixer = augmentation.FewShot(IMAGENET, CLASSES, 0.0)
    values = set()
    for seed in range(12):
        with augmentation.seeded(seed):
            mixed, _ = mixer._mix(black_and_white.permute(0, 3, 1, 2).clone(), labels(2))
        values.add(bool(((mixed == 0) | (mixed == 255)).all()))
    assert values == {True, False}


def test_fewshot_crops_and_erases():
    mixer = augmentation.FewShot(IMAGENET, CLASSES, 0.0)
    assert (mixer.crop.scale, mixer.crop.ratio, mixer.crop.size) == ((0.08, 1.0), (3 / 4, 4 / 3), (SIZE, SIZE))
    grey = torch.zeros(400, 3, 16, 16)
    with augmentation.seeded(0):
        erased = sum(bool(image.any()) for image in mixer.erase(grey))
    assert 60 < erased < 140


@pytest.mark.parametrize("kind", ["train_aug", "fewshot"])
def test_batches_made_ahead_are_those_made_in_the_step(kind):
    make = augmentation.make(kind, IMAGENET, CLASSES, 0.1)
    order = [([0, 3, 2], 5), ([1, 4], 6), ([5], 7)]
    torch.manual_seed(3)
    ahead, drawn, before = augmentation.PrefetchLoader(images(), labels(), make, 2), [], signal.pthread_sigmask(0, [])
    for _ in range(2):  # two epochs with the same processes
        for found, (index, seed) in zip(ahead.batches(order), order, strict=True):
            expected = make(images()[index], labels()[index], seed)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            drawn.append(torch.rand(()))
    torch.manual_seed(3)
    assert drawn == [torch.rand(()) for _ in drawn]  # the training's own draws are not shifted
    assert signal.pthread_sigmask(0, []) == before


def test_processes_that_augment_leave_a_stop_to_the_run_and_end_with_it():
    ahead = augmentation.PrefetchLoader(images(), labels(), augmentation.make("train_aug", IMAGENET, CLASSES, 0.1), 2)
    batches = ahead.batches([([i % 6], i) for i in range(40)])
    next(batches)
    processes = mp.active_children()
    for process in processes:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            os.kill(process.pid, number)
    assert len(processes) == 2 and len(list(batches)) == 39
    del ahead, batches
    assert not mp.active_children()
