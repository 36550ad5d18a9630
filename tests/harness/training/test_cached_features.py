"""Features that are computed once: only where that changes nothing, and then the same training."""

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from harness.schema.spec import Recipe
from harness.training import fast_path
from methods.base import Attachment
from methods.blocks import plug
from tests.conftest import small_swin, small_vit
from tests.fast_path_models import (
    HALF,
    PIXELS,
    attached,
    no_cached_features,
    same_training,
    trained,
    trainer,
    with_module,
)


def still_swin():
    """timm gives a Swin stochastic depth if it is not told otherwise."""
    model = small_swin()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("method", "build", "start"),
    [
        ("linear", small_vit, "head"),
        ("linear", still_swin, "head"),
        ("mlp_head", small_vit, "head"),
        ("partial", small_vit, "block 2"),
        ("partial", still_swin, "block 3"),
        ("sct", small_vit, "block 0, after its attention"),
        ("sct", still_swin, "block 1, after its attention"),
        ("adapter_plus", small_vit, "block 0, after its attention"),
    ],
)
def test_training_from_cached_features_is_the_plain_training(method, build, start, precision, monkeypatch):
    """The last batch is smaller, for which torch may sum in another order: hence not bit for bit."""
    once = trained(method, build(), precision=precision)
    assert once.plan.start == start
    no_cached_features(monkeypatch)
    plain = trained(method, build(), precision=precision)
    assert plain.plan.start == ""
    same_training(once, plain, precision)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_with_whole_batches_only_the_weights_are_the_same_bits(precision, monkeypatch):
    once = trained(batch_size=13, precision=precision)
    no_cached_features(monkeypatch)
    plain = trained(batch_size=13, precision=precision)
    assert [run.plan.start for run in (once, plain)] == ["head", ""]
    assert torch.equal(once.model.head.weight, plain.model.head.weight)
    assert once.curve == plain.curve


class Noise(nn.Module):
    """What a method from outside may bring: randomness without a name that gives it away."""

    stateless = True

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Halved(nn.Module):
    """Nothing random, but another function in training."""

    stateless = True

    def forward(self, x):
        return 0.5 * x if self.training else x


class Remembers(nn.Module):
    """Takes a place among the last block's modules, and what it adds from the first block's."""

    stateless = True  # which is not true

    def __init__(self, first):
        super().__init__()
        self.seen = []
        first.register_forward_hook(lambda _, inputs, output: self.seen.append(output))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * self.seen[-1] + 0.1 * self.seen[-1]


def remembering():
    model = small_vit()
    plug(model.blocks[2], "output", Remembers(model.blocks[0]))
    return model


def tied():
    """One trained layer in the first and in the last block."""
    model, layer = small_vit(), nn.Linear(32, 32)
    plug(model.blocks[0], "output", layer)
    plug(model.blocks[2], "output", layer)
    return model


@pytest.mark.parametrize(
    ("method", "model", "recipe", "start"),
    [
        ("lora", small_vit, {}, ""),
        ("linear", small_vit, {"augmentation": "flip"}, ""),
        ("linear", lambda: small_vit(drop_path_rate=0.1), {}, "block 1"),
        ("linear", lambda: small_vit(drop_rate=0.1), {}, "head"),
        ("linear", lambda: small_vit(pos_drop_rate=0.1), {}, ""),
        ("linear", lambda: with_module(Noise()), {}, "block 1, after its attention"),
        ("linear", lambda: with_module(Halved()), {}, "block 1, after its attention"),
        ("linear", remembering, {}, ""),
        ("linear", tied, {}, "block 0, after its attention"),
        ("linear", lambda: with_module(nn.Linear(32, 32), block=2), {}, "block 2, after its attention"),
    ],
)
def test_what_is_trained_or_random_is_not_cached(method, model, recipe, start):
    assert trained(method, model(), epochs=1, **recipe).plan.start == start


def test_a_step_that_may_change_frozen_weights_is_given_the_images():
    run = trainer()
    run.attachment = Attachment(after_step=lambda step: None)
    run.fit()
    assert run.plan.start == ""


def test_a_penalty_is_given_the_images_and_not_asked_before():
    calls = []

    def penalty(batch):
        calls.append(1)
        return torch.zeros(())

    kept = Attachment(penalty=penalty)
    with fast_path.open_plan(attached()[0], kept, PIXELS, HALF, Recipe(epochs=1, warmup_epochs=0), "float32") as path:
        assert path.start == "" and calls == []


def test_too_much_is_not_kept(monkeypatch):
    monkeypatch.setattr(fast_path, "MOST_BYTES", 26 * 32 * 4)
    assert trained().plan.start == "head"
    assert trained("partial").plan.start == ""


def test_pooled_features_hold_no_tokens():
    with fast_path.open_plan(*attached(), PIXELS, HALF, Recipe(epochs=1, lr=1e-3, warmup_epochs=0), "float32") as path:
        assert path.inputs.shape == (26, 32) and path.inputs.untyped_storage().nbytes() == path.inputs.numel() * 4
