"""The salient channel tuning module (SCTM)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SalientChannels(nn.Module):
    """x[..., idx] += W x[..., idx] + b, on all tokens; x: [..., d], idx: K channels, W: [K, K].

    K*K + K parameters. The released code draws W with std 0.02, so the module is not the identity at the start.
    """

    indices: Tensor

    def __init__(self, indices: Tensor, linear: nn.Linear) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        update = self.linear(x.index_select(-1, self.indices))
        return torch.index_add(x, x.dim() - 1, self.indices, update.to(x.dtype))
