"""Whether `torch.compile` pays: a training step as it is beside the compiled one, and how long compiling takes."""

from __future__ import annotations

import os
import shutil

import torch

from harness.bench.base import BATCH, Measurement, Setting, seconds, side_by_side
from harness.bench.module import STEPS, add_ours, step_of

MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
"""By type of device; `reduce-overhead` means CUDA graphs."""


def has_compiler(device: torch.device) -> bool:
    """Whether there is what `torch.compile` needs: on a CPU a C++ compiler."""
    return device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None


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
    part = "compiling"
    return [
        Measurement(
            part=part,
            what=f"training step, mode {mode}; compared: as it is",
            unit="ms",
            ours=1e3 * taken["compiled"],
            other=1e3 * taken["plain"],
        ),
        Measurement(part=part, what=f"first step, mode {mode}", unit="s", ours=compiling),
    ]
