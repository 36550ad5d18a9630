"""Convolutions over the tokens of a timm backbone: patches form a grid, prefix tokens stand alone."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn


def on_grid(convolve: Callable[[Tensor], Tensor], x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Apply a shape-preserving map on images [batch, channels, rows, columns] to tokens.

    x: [batch, prefix + rows*columns, channels], of which each prefix token (class token, registers, prompts) is an
    image of its own of one pixel, or a Swin map [batch, rows, columns, channels]. Returns the shape of x.
    """
    if x.dim() == 4:
        return convolve(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    prefix = x.shape[1] - grid[0] * grid[1]
    image = x[:, prefix:].unflatten(1, grid).permute(0, 3, 1, 2)
    patches = convolve(image).flatten(2).transpose(1, 2)
    if prefix == 0:
        return patches
    pixels = x[:, :prefix].flatten(0, 1)[:, :, None, None]
    alone = convolve(pixels).flatten(1).unflatten(0, (-1, prefix))
    return torch.cat([alone, patches], dim=1)


def new_convolution(
    channels: int, kernel: int, groups: int, generator: torch.Generator, bias: bool = True
) -> nn.Conv2d:
    """A convolution that keeps channels and size, weights as torch draws them but from `generator`, bias 0."""
    sizes = {"kernel_size": kernel, "padding": kernel // 2, "groups": groups}
    layer: nn.Conv2d = nn.utils.skip_init(nn.Conv2d, channels, channels, bias=bias, **sizes)
    with torch.no_grad():
        nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()
    return layer
