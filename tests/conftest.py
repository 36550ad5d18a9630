"""Fixtures shared by all rooms: small real timm models, and a method's context over random images."""

from __future__ import annotations

import os

# One thread per test process: the models are tiny, and pytest-xdist fills the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import timm
import torch

from methods.base import Context

CLASSES = 4


def small_vit(**arguments):
    """A real timm ViT, three blocks of 32 channels at 32 px, frozen, with a head of its own."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **(sizes | arguments))
    return model.requires_grad_(False).eval()


def small_swin():
    """A real timm Swin with two stages, frozen."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=CLASSES, **sizes)
    return model.requires_grad_(False).eval()


def batch(size=8, seed=1):
    """Images [size, 3, 32, 32] and labels."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % CLASSES


def make_context(images=None, labels=None, seed=0, steps=10):
    """A context whose calibration data are the given images (random ones if not given)."""
    if images is None:
        images, labels = batch()
    return Context(
        num_classes=CLASSES,
        device=torch.device("cpu"),
        generator=torch.Generator().manual_seed(seed),
        total_steps=steps,
        calibration=lambda size: zip(images.split(size), labels.split(size), strict=True),
    )


@pytest.fixture
def vit():
    return small_vit()


@pytest.fixture
def swin():
    return small_swin()


@pytest.fixture
def context():
    return make_context()
