"""Shared by the selective methods: gradients on the training split, and training of single weights.

Chosen weights are a vector of trained changes beside the frozen tensor, with their places as a buffer. So the number
of trained parameters, what is stored for a task and the optimiser's state are those of the chosen weights alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

from methods.base import MethodError
from methods.blocks import SlottedLayer
from methods.layers import change_layer, fold_linears, restore_layer


@torch.enable_grad()
def gradient_sums(
    parameters: Sequence[nn.Parameter],
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Callable[[Tensor, Tensor], Tensor],
    reduce: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Sum over batches of `reduce` of each parameter's gradient of `loss(images, labels)`.

    The parameters, frozen before, are frozen after, and no `.grad` is touched.
    """
    sums = [torch.zeros_like(p, requires_grad=False) for p in parameters]
    for p in parameters:
        p.requires_grad_(True)
    try:
        for images, labels in batches:
            gradients = torch.autograd.grad(loss(images, labels), parameters)
            for total, gradient in zip(sums, gradients, strict=True):
                total += reduce(gradient)
    finally:
        for p in parameters:
            p.requires_grad_(False)
    return sums


class SparseUpdate(nn.Module):
    """A tensor with trained `values` [n] added at the flat `indices` [n] (each at most once); zero at the start."""

    stateless = True

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        # int32 halves what is stored for a task beside the values; no layer has 2^31 weights.
        self.register_buffer("indices", indices.to(torch.int32))
        self.values = nn.Parameter(torch.zeros(len(indices)))

    def forward(self, frozen: Tensor) -> Tensor:
        return frozen.flatten().index_add(0, self.indices, self.values).view_as(frozen)


def _norm_map(layer: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """x: [batch, channels, rows, columns]."""
    y = functional.layer_norm(x.permute(0, 2, 3, 1), layer.normalized_shape, weight, bias, layer.eps)
    return y.permute(0, 3, 1, 2)


_FORWARDS: dict[type, Callable[..., Tensor]] = {
    nn.Linear: lambda layer, x, weight, bias: functional.linear(x, weight, bias),
    LayerNorm2d: _norm_map,  # before nn.LayerNorm, which it is derived from
    nn.LayerNorm: lambda layer, x, weight, bias: functional.layer_norm(
        x, layer.normalized_shape, weight, bias, layer.eps
    ),
    nn.Conv2d: lambda layer, x, weight, bias: layer._conv_forward(x, weight, bias),
}
"""Kind of layer to its forward with other weights than its own."""


class SparseLayer:
    """Mixed into a leaf layer of one of these kinds: weight and bias are used with the updates in `sparse` (by
    parameter's name)."""

    stateless = True

    sparse: nn.ModuleDict

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's own."""
        forward = next(forward for kind, forward in _FORWARDS.items() if isinstance(self, kind))
        return forward(self, x, self.updated("weight"), self.updated("bias"))

    def updated(self, name: str) -> Tensor | None:
        """The layer's parameter with its update, if it has one."""
        frozen: Tensor | None = getattr(self, name)
        if frozen is None or name not in self.sparse:
            return frozen
        updated: Tensor = self.sparse[name](frozen)
        return updated


def train_weights(layer: Any, name: str, indices: Tensor) -> None:
    """Train the weights at the flat `indices` of the layer's parameter `name` (`weight` or `bias`).

    Comes before anything is plugged into the layer with `plug_layer`. Raises `MethodError` where another method has
    changed the layer, whose forward would be lost.
    """
    if not isinstance(layer, SparseLayer):
        if isinstance(layer, SlottedLayer) or hasattr(layer, "plain"):
            raise MethodError(f"{type(layer).__name__} is changed by another method: its weights cannot be trained")
        change_layer(layer, SparseLayer)
        layer.sparse = nn.ModuleDict()
    layer.sparse[name] = SparseUpdate(indices).to(layer.weight)


@torch.no_grad()
def fold_sparse(layers: Iterable[Any]) -> None:
    """Write the changes, and low-rank updates plugged into the same layers, into the frozen tensors."""
    for layer in layers:
        if isinstance(layer, SparseLayer):
            updates: Any = layer.sparse
            for name, update in updates.items():
                getattr(layer, name).copy_(layer.updated(name))
                update.values.zero_()
        if isinstance(layer, SlottedLayer):
            fold_linears([layer])
        if isinstance(layer, SparseLayer):
            restore_layer(layer)
            del layer.sparse
