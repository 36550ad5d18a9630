"""Whether `torch.compile` pays: a training step as it is beside the compiled one, and how long compiling takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.bench.base import BATCH, CLASSES, Measurement, Setting, seconds, side_by_side, trained
from harness.bench.module import STEPS, add_ours

MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
"""By type of device; `reduce-overhead` means CUDA graphs."""


def has_compiler(device: torch.device) -> bool:
    """Whether there is what `torch.compile` needs: on a CPU a C++ compiler."""
    return device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None


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
    """All lines of this part; none where nothing can be compiled."""
    if not has_compiler(setting.device):
        return []
    return [line for mode in MODES[setting.device.type] for line in _with(setting, mode)]


def _with(setting: Setting, mode: str) -> list[Measurement]:
    model, images = add_ours(setting.model(drop_path=0.1)), setting.images(BATCH)
    torch.compiler.reset()
    actions = {
        "plain": step_of(model, images, setting.precision),
        "compiled": step_of(model, images, setting.precision, torch.compile(model, mode=mode)),
    }
    compiling = seconds(actions["compiled"], setting.device)
    taken = side_by_side(actions, setting.device, setting.sizes.rounds, STEPS)
    line = partial(Measurement, part="compiling")
    what, step, plain = f"training step, mode {mode}; compared: as it is", 1e3 * taken["compiled"], 1e3 * taken["plain"]
    return [
        line(what=what, unit="ms", ours=step, other=plain),
        line(what=f"first step, mode {mode}", unit="s", ours=compiling),
    ]
