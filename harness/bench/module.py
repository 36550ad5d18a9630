"""The SCT module: forward and backward beside indexed assignment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from harness import device as devices
from harness.bench import released
from harness.bench.base import BATCH, Measurement, Setting, side_by_side
from methods.blocks import blocks, new_linear, plug, width
from methods.sct.module import SalientChannels

STEPS = 3
"""Steps or passes in a row that are timed together."""


def spread_channels(model: Any) -> list[Tensor]:
    """Evenly spread channels, one in eight, for each block: which ones does not change the time."""
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
    return [Measurement(part="module", what=what, unit="ms", ours=ours_ms, other=released_ms)]
