"""The salient channel tuning module (SCTM)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from methods.blocks import unplug_layer


class SalientChannels(nn.Module):
    """x[..., idx] = keep * x[..., idx] + scale * (W x[..., idx] + b), on all tokens; x: [..., d].

    idx: K channels, W: [K, K]; K*K + K parameters. The released ViT code has keep = scale = 1 whatever its settings
    say; its Swin code has either `scale` (settings `scaleonx: False`) or `keep` (`scaleonx: True`) as a factor.
    """

    stateless = True

    indices: Tensor

    def __init__(self, indices: Tensor, linear: nn.Linear, scale: float = 1.0, keep: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("indices", indices)
        self.linear, self.scale, self.keep = linear, scale, keep

    def forward(self, x: Tensor) -> Tensor:
        if x.is_cuda and x.element_size() <= 4:  # the kernels compute in float32 at most
            from methods.sct import kernels_module  # Triton is there on machines with CUDA only

            return kernels_module.apply(x, self.linear.weight, self.linear.bias, self.indices, self.scale, self.keep)
        return self.by_torch(x)

    def by_torch(self, x: Tensor) -> Tensor:
        """The same without kernels."""
        places = self.indices.expand(*x.shape[:-1], -1)
        selected = x.gather(-1, places)
        update = self.linear(selected)
        if self.scale != 1:
            update = self.scale * update
        if self.keep != 1:
            update = update + (self.keep - 1) * selected
        return x.scatter_add(-1, places, update.to(x.dtype))


@torch.no_grad()
def fold_channels(layers: Iterable[Any]) -> None:
    """Fold the `SalientChannels` plugged after linear layers into their weights and biases, and unplug them."""
    for layer in layers:
        for module in layer.slots["output"]:
            w, b, i = layer.weight, layer.bias, module.indices
            mix = module.scale * module.linear.weight + module.keep * torch.eye(len(i), device=w.device)
            w[i] = mix @ w[i]
            b[i] = mix @ b[i] + module.scale * module.linear.bias
        unplug_layer(layer)
