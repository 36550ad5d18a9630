"""What the tests of single methods share: attach, train a little, merge, count."""

from __future__ import annotations

import copy
from functools import cache

import timm
import torch
from torch.nn.functional import cross_entropy

from methods import registry
from tests.conftest import batch, make_context, small_swin, small_vit

MODELS = {"vit": small_vit, "swin": small_swin}
IMAGES, LABELS = batch()


def attach(name, model="vit", seed=0, **config):
    """The small model with the method attached, and the attachment."""
    backbone = MODELS[model]() if isinstance(model, str) else model
    attachment = registry.get(name).configure(config).attach(backbone, make_context(seed=seed))
    return backbone, attachment


def trained(model):
    """Trained parameters by name, without the head."""
    head = {id(p) for p in model.get_classifier().parameters()}
    return {n: p for n, p in model.named_parameters() if p.requires_grad and id(p) not in head}


def count(model):
    """Number of trained parameters, without the head."""
    return sum(p.numel() for p in trained(model).values())


def train(model, steps=3, lr=0.05):
    """A few steps of Adam in train mode, head included; returns the names that never saw a non-zero gradient."""
    model.train()
    model.get_classifier().requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    dead = set(trained(model))
    for _ in range(steps):
        optimizer.zero_grad()
        cross_entropy(model(IMAGES), LABELS).backward()
        dead -= {n for n, p in trained(model).items() if p.grad is not None and bool(p.grad.any())}
        optimizer.step()
    model.eval()
    return dead


@torch.no_grad()
def logits(model):
    return model.eval()(IMAGES)


def close(a, b, tolerance=1e-4):
    """Whether logits agree relative to their size."""
    return float((a - b).abs().max() / b.abs().max()) < tolerance


def shape_of(model):
    """Kinds of modules and shapes of parameters by name."""
    modules = {n: type(m) for n, m in model.named_modules()}
    return modules, {n: tuple(p.shape) for n, p in model.named_parameters()}


@cache
def _vit_b():
    with torch.device("meta"):
        return timm.create_model("vit_base_patch16_224", num_classes=100).requires_grad_(False).eval()


def vit_b():
    """ViT-B/16 without storage."""
    return copy.deepcopy(_vit_b())


def dead_after_merging(name, model, moved):
    """Train a method, by which its logits move by more than `moved`, and merge: the logits stay, and the plain model's
    names and shapes are left. Returns the names that never saw a gradient."""
    plain = MODELS[model]()
    backbone, attachment = attach(name, copy.deepcopy(plain))
    dead = train(backbone)
    before = logits(backbone)
    assert not close(before, logits(plain), moved)
    backbone.train()  # merging must not depend on the mode
    attachment.merge()
    assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)
    return dead
