"""The convolutional side network of HST: stages of several resolutions, fed with tokens of a backbone's blocks."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional

from methods.blocks import new_linear
from methods.tape import Tape


class SideBlock(nn.Module):
    """y = y + O softmax(Q(LN y) K(kv)^T) V(kv), kv = [LN_m m; mean of f];  y = y + f;  y = y + MLP(LN y)

    y and f: [batch, positions, D]; m: [batch, 1, D].
    """

    stateless = True

    def __init__(self, size: int, heads: int, drop_path: float, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(size, eps=1e-6), nn.LayerNorm(size, eps=1e-6)
        self.meta_norm = nn.LayerNorm(size)
        self.q, self.k, self.v, self.proj = (new_linear(size, size, generator) for _ in range(4))
        self.fc1, self.fc2 = new_linear(size, 4 * size, generator), new_linear(4 * size, size, generator)
        self.drop_path = DropPath(drop_path)

    def attend(self, y: Tensor, kv: Tensor) -> Tensor:
        """y: [batch, positions, D]; kv: [batch, 2, D]."""
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, x in ((self.q, y), (self.k, kv), (self.v, kv))
        )
        read = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        out: Tensor = self.proj(read)
        return out

    def forward(self, y: Tensor, meta: Tensor, features: Tensor) -> Tensor:
        kv = torch.cat([self.meta_norm(meta), features.mean(dim=1, keepdim=True)], dim=1)
        y = y + self.drop_path(self.attend(self.norm1(y), kv)) + features
        out: Tensor = y + self.drop_path(self.fc2(functional.gelu(self.fc1(self.norm2(y)))))
        return out


class Stage(nn.Module):
    """Halves the map, or makes it from the images at a quarter of their size, and runs its side blocks on it."""

    stateless = True

    def __init__(
        self, embed: nn.Module, bridge: nn.Linear, side_blocks: Sequence[SideBlock], grid: tuple[int, int]
    ) -> None:
        super().__init__()
        self.embed, self.bridge, self.blocks = embed, bridge, nn.ModuleList(side_blocks)
        self.embed_norm = nn.LayerNorm(bridge.out_features)
        self.norm = nn.LayerNorm(bridge.out_features, eps=1e-6)
        self.grid = grid

    def forward(self, y: Tensor, tokens: Sequence[Tensor]) -> Tensor:
        """y: images or a map [batch, channels, rows, columns]; tokens: for each block [batch, 1 + patches, d]. Returns
        a map [batch, D, rows, columns]."""
        y = self.embed(y)
        size = y.shape[2:]
        rows, columns = (resizing(*sides, y.device).to(y.dtype) for sides in zip(self.grid, size, strict=True))
        y = self.embed_norm(y.flatten(2).transpose(1, 2))
        for block, x in zip(self.blocks, tokens, strict=True):
            z = self.bridge(x)  # before resizing, whose weights have the sum one, so that the bias stays
            patches = z[:, 1:].unflatten(1, self.grid).to(rows.dtype)
            features = torch.einsum("ir,brcd,jc->bijd", rows, patches, columns).flatten(1, 2)
            y = block(y, z[:, :1], features)
        out: Tensor = self.norm(y).transpose(1, 2).unflatten(2, size)
        return out


def resizing(before: int, after: int, device: torch.device) -> Tensor:
    """The matrix [after, before] of linear interpolation between centres of pixels. A product with it has the same
    bits on every run, which the gradient of torch's interpolation on a GPU has not."""
    return functional.interpolate(
        torch.eye(before, device=device)[None], size=after, mode="linear", align_corners=False
    )[0].T


class LastNorm(nn.BatchNorm1d):
    """Batch norm without affine, of which a batch of one image in training uses the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, D]."""
        if len(x) > 1:
            return super().forward(x)
        return functional.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)


class SideNetwork(nn.Module):
    """The stages one after the other, the mean over the last map's positions, and a batch norm: [batch, D]."""

    def __init__(self, tape: Tape, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.tape, self.stages = tape, nn.ModuleList(stages)
        self.norm = LastNorm(stages[-1].bridge.out_features, eps=1e-6, affine=False)

    def forward(self, _: Tensor) -> Tensor:
        y, *taken = self.tape.take()
        stages: list[Any] = list(self.stages)
        for stage in stages:
            count = len(stage.blocks)
            y, taken = stage(y, taken[:count]), taken[count:]
        out: Tensor = self.norm(y.mean(dim=(2, 3)))
        return out


def convolution(inputs: int, outputs: int, kernel: int, generator: torch.Generator, bias: bool = True) -> nn.Conv2d:
    """A convolution that halves rows and columns: weights normal with std sqrt(2 / (k^2 outputs)), bias zero."""
    sizes = {"kernel_size": kernel, "stride": 2, "padding": kernel % 2}
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, inputs, outputs, bias=bias, **sizes)
    with torch.no_grad():
        nn.init.normal_(layer.weight, std=math.sqrt(2 / (kernel**2 * outputs)), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
