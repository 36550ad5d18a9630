"""The kernels of channel selection: in Triton's interpreter without a GPU, compiled where there is one."""

from contextlib import contextmanager

import pytest
import torch

from methods.blocks import blocks
from methods.sct import sums
from methods.sct.kernels_selection import add_squares
from methods.sct.selection import Tap, feature_sums, top_channels
from tests.conftest import CLASSES, batch, small_swin, small_vit

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else ["cpu"]
pytestmark = pytest.mark.parametrize("device", DEVICES)


def expected(features, labels, classes):
    """Sums of squares per class and channel in float64."""
    squares = features.double().square().sum(1)
    return torch.stack([squares[labels == k].sum(0) for k in range(classes)])


def compare(features, labels, classes, rtol=1e-5):
    found = torch.zeros(classes, features.shape[-1], device=features.device)
    add_squares(found, features, labels)
    torch.testing.assert_close(found.double(), expected(features, labels, classes), rtol=rtol, atol=0)
    return found


@contextmanager
def no_waiting(device):
    """On a GPU: an error where the host would wait for the device."""
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    yield
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def random(device, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("images", "tokens", "channels"),
    [(1, 1, 1), (1, 197, 3), (5, 1, 768), (3, 33, 130), (2, 1370, 8), (7, 49, 48), (70, 2, 5)],
)
def test_sums_equal_float64(device, images, tokens, channels, dtype):
    labels = torch.randint(0, 4, (images,), generator=torch.Generator().manual_seed(0)).to(device)
    compare(random(device, images, tokens, channels, dtype=dtype), labels, 4)


def test_many_classes_and_a_class_without_images(device):
    labels = torch.tensor([999, 3, 999, 0, 3, 3], device=device)
    found = compare(random(device, 6, 5, 20), labels, 1000)
    assert not found[[1, 2, 998]].any()


def test_values_whose_squares_overflow_fp16(device):
    features = torch.full((2, 300, 7), 65504.0, dtype=torch.float16, device=device)
    found = compare(features, torch.tensor([1, 1], device=device), 2, rtol=1e-6)
    assert found.isfinite().all()


def test_columns_and_tokens_of_a_wider_tensor(device):
    """A slice of a fused qkv without its class token; a transposed tensor; and memory beside it is left alone."""
    labels = torch.tensor([0, 1, 1], device=device)
    compare(random(device, 3, 40, 96)[:, 1:, 64:], labels, 2)
    compare(random(device, 3, 24, 40).transpose(1, 2), labels, 2)


def test_batches_add_up_and_twice_gives_the_same_bits(device):
    features, labels = random(device, 9, 50, 40), torch.arange(9, device=device) % 4
    whole = compare(features, labels, 4)
    assert torch.equal(whole, compare(features, labels, 4))
    parts = torch.zeros_like(whole)
    for x, y in zip(features.split(4), labels.split(4), strict=True):
        add_squares(parts, x, y)
    torch.testing.assert_close(parts, whole)


def test_labels_that_are_no_class_are_left_out(device):
    labels = torch.tensor([-1, 1, 2], device=device)
    compare(random(device, 3, 4, 5), labels, 2)


@pytest.mark.parametrize("build", [small_vit, small_swin])
def test_a_pass_with_kernels_chooses_the_channels_of_the_torch_pass(device, build, monkeypatch):
    model, (images, labels) = build().to(device), (x.to(device) for x in batch(4))
    taps = [Tap(b.norm2, "input", slice(0, b.norm1.normalized_shape[0])) for b in blocks(model)]
    taps += [Tap(b.attn.qkv, "output", slice(8, 20)) for b in blocks(model)]

    def scores():
        parts = zip(images.split(3), labels.split(3), strict=True)
        found = feature_sums(model, taps, parts, CLASSES)
        return found.class_aware(), found.l2()

    monkeypatch.setattr(sums, "adder", lambda device: (sums.add_squares, torch.float64))
    by_torch = scores()
    monkeypatch.setattr(sums, "adder", lambda device: (add_squares, torch.float32))
    with no_waiting(device):
        by_kernels = scores()
    for ours, reference in zip(by_kernels, by_torch, strict=True):
        for s, r in zip(ours, reference, strict=True):
            torch.testing.assert_close(s.double(), r, rtol=1e-5, atol=0)
            assert torch.equal(top_channels(s, 4), top_channels(r, 4))
