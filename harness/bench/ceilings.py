"""What the device can do at most: copy bandwidth and matrix rate, measured in the same call as all else."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.bench.base import Measurement, Setting, side_by_side


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Rates of this device."""

    copy: float
    """Bytes per second of a large copy, read and written bytes both counted."""

    matrix: float
    """Operations per second of a large matrix product in the runs' precision, a multiply-add counted as two."""


def measure(setting: Setting) -> Ceilings:
    """Both rates."""
    sizes, device = setting.sizes, setting.device
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    source = torch.randn(sizes.copied // 4, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(sizes.side, sizes.side, device=device).to(dtype) for _ in range(2))
    actions = {"copy": lambda: target.copy_(source), "matrix": lambda: left @ right}
    taken = side_by_side(actions, device, sizes.rounds, repeat=3)
    return Ceilings(copy=2 * sizes.copied / taken["copy"], matrix=2 * sizes.side**3 / taken["matrix"])


def lines(ceilings: Ceilings) -> list[Measurement]:
    """As lines of the table."""
    return [
        Measurement(part="ceilings", what="copy, bytes read and written", unit="GB/s", ours=ceilings.copy / 1e9),
        Measurement(part="ceilings", what="matrix product", unit="GFLOP/s", ours=ceilings.matrix / 1e9),
    ]
