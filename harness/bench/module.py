"""The SCT module: forward and backward beside indexed assignment, and its share of a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.bench import released
from harness.bench.base import BATCH, CLASSES, Measurement, Setting, side_by_side, trained
from methods.blocks import blocks, new_linear, plug, width
from methods.sct.module import SalientChannels

STEPS = 3
"""Steps or passes in a row that are timed together."""


def spread_channels(model: Any) -> list[Tensor]:
    """Evenly spread channels, one in eight, for each block: what is chosen does not change the time."""
    step = width(blocks(model)[0]) // released.channels(model)
    return [torch.arange(released.channels(model)) * step for _ in blocks(model)]


def ours(indices: Tensor) -> SalientChannels:
    """A module of ours."""
    count = len(indices)
    return SalientChannels(indices, new_linear(count, count, torch.Generator().manual_seed(0)))


def add_ours(model: Any) -> Any:
    """Our module after the attention of each block."""
    for block, indices in zip(blocks(model), spread_channels(model), strict=True):
        plug(block, "after_attention", ours(indices))
    return model


def pass_of(module: nn.Module, x: Tensor, h: Tensor, precision: str) -> Callable[[], None]:
    """Forward and backward of the residual addition and the module after it."""

    def once() -> None:
        with devices.autocast(precision, x.device):
            y = module(x + h)
        y.backward(h)

    return once


class Start(nn.Module):
    """Where the gradient's path ends in a model without modules."""

    def forward(self, x: Tensor) -> Tensor:
        """x, and nothing before it gets a gradient."""
        return x.detach().requires_grad_(True)


def step_of(
    model: Any, images: Tensor, precision: str, forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], None]:
    """A training step on fixed images: forward (the model's own if none is given), backward, update."""
    forward = model if forward is None else forward
    optimizer = torch.optim.AdamW(trained(model), lr=1e-4, fused=True)
    labels = torch.arange(len(images), device=images.device) % CLASSES
    model.train()

    def once() -> None:
        with devices.autocast(precision, images.device):
            loss = cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def measure(setting: Setting) -> list[Measurement]:
    """All lines of this part."""
    device, precision, model = setting.device, setting.precision, setting.model()
    heard: list[Tensor] = []
    handle = blocks(model)[0].norm2.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    with torch.no_grad():
        model(setting.images(BATCH))
    handle.remove()
    x = heard[0].clone().requires_grad_(True)
    h = torch.randn_like(heard[0])
    indices = spread_channels(model)[0]
    actions = {
        "ours": pass_of(ours(indices).to(device), x, h, precision),
        "released": pass_of(released.ReleasedModule(indices).to(device), x, h, "float32"),
    }
    taken = side_by_side(actions, device, 4 * setting.sizes.rounds, STEPS)
    what = "forward and backward, 64 images, with the residual addition"
    ours_ms, released_ms = 1e3 * taken["ours"], 1e3 * taken["released"]
    line = Measurement(part="module", what=what, unit="ms", ours=ours_ms, other=released_ms)
    return [line, _share_of_a_step(setting)]


def _share_of_a_step(setting: Setting) -> Measurement:
    with_modules, without = add_ours(setting.model()), setting.model()
    plug(blocks(without)[0], "after_attention", Start())
    images = setting.images(BATCH)
    actions = {
        "with": step_of(with_modules, images, setting.precision),
        "without": step_of(without, images, setting.precision),
    }
    taken = side_by_side(actions, setting.device, setting.sizes.rounds, STEPS)
    on_gpu = setting.device.type == "cuda"
    share = 100 * (taken["with"] / taken["without"] - 1)
    return Measurement(
        part="module",
        what="training step; compared: the same gradient path without modules",
        unit="ms",
        ours=1e3 * taken["with"],
        other=1e3 * taken["without"],
        judged=share if on_gpu else None,
        at_most=3.0 if on_gpu else None,
    )
