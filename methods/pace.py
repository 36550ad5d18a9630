"""PACE: multiplied weights whose change is noisy in training, and a penalty on how far two noisy passes lie apart."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.architectures import architecture_of
from methods.base import Attachment, Batch, Context, Method
from methods.blocks import blocks, plug_layer, unplug_layer
from methods.layers import block_linears, change_layer, restore_layer
from methods.settings import Count, Positive, Settings, at_least


def normal_like(x: Tensor, *shape: int) -> Tensor:
    """Standard normal numbers of this shape."""
    return torch.randn(shape, device=x.device, dtype=x.dtype)


class Change(nn.Module):
    """What is added to a linear layer W x + b: W * (A B) to W, and b * c + W P u to b. Zero at the start.

    A: [out, r], B: [r, in], P: [in, r], u: [r, 1], c: [out], which a layer without bias has not.
    """

    stateless = True

    c: Tensor

    def __init__(self, layer: nn.Linear, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        inputs, outputs = layer.in_features, layer.out_features
        self.a, self.b = nn.Parameter(torch.zeros(outputs, rank)), nn.Parameter(torch.empty(rank, inputs))
        self.p, self.u = nn.Parameter(torch.zeros(inputs, rank)), nn.Parameter(torch.empty(rank, 1))
        for drawn in (self.b, self.u):
            nn.init.xavier_uniform_(drawn, generator=generator)
        self.register_parameter("c", None if layer.bias is None else nn.Parameter(torch.zeros(outputs)))

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """The changes of a layer's weight [out, in] and bias [out]."""
        offset = (weight @ (self.p @ self.u)).squeeze(1)
        return weight * (self.a @ self.b), offset if bias is None else offset + bias * self.c


class NoisyChange:
    """Mixed into a linear layer: f + g with the layer's own f and what the `change` adds, g; in training
    f + g * (1 + level * n). n: a normal number for each channel and each item along the first dimension of x."""

    stateless = True

    change: Change
    level: float

    def forward(self, x: Tensor) -> Tensor:
        """x: [images, ..., in]; in windowed attention the windows of all images come first."""
        own: Any = self
        weight, bias = self.change(own.weight, own.bias)
        if not (own.training and self.level):
            return linear(x, own.weight + weight, bias if own.bias is None else own.bias + bias)
        g = linear(x, weight, bias)
        noise = normal_like(g, len(g), *(1,) * (g.ndim - 2), g.shape[-1])
        return linear(x, own.weight, own.bias) + g * (1 + self.level * noise)


class LogitNoise(nn.Module):
    """x * (1 + level * n) in training; x: [B, classes]."""

    stateless = True

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = level

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + self.level * normal_like(x, *x.shape)) if self.training else x


@torch.no_grad()
def fold_changes(layers: Iterable[Any], classifier: nn.Module) -> None:
    """Fold the changes into the layers, which have biases, and take the noise off the classifier."""
    for layer in layers:
        weight, bias = layer.change(layer.weight, layer.bias)
        layer.weight += weight
        layer.bias += bias
        restore_layer(layer)
        del layer.change, layer.level
    unplug_layer(classifier)


class PACE(Method):
    """W * (1 + A B) x + b * (1 + c) + W P u in place of W x + b, in every linear layer of the blocks and between them:
    r * (2 in + out) + out + r parameters each, r * 20 d + 9 d + 4 r per ViT block of d channels (2,203,104 on ViT-B).

    In training, what is added to a layer is multiplied by 1 + sigma_l n, n normal, one number for each image and
    channel (in windowed attention for each window), and the batch is run twice: the loss is that of the first pass plus
    lambda * mean over images of |l_1 - l_2|^2 between the logits of both.

    The noise falls with depth. On sequences of tokens sigma_l is 0 in the first of L blocks and then sigma,
    sigma (L - 1) / L ... 2 sigma / L, on maps sigma, sigma L / (L + 1) ...; what follows is for the classifier's
    logits, which are multiplied by 1 + sigma / L n (maps: sigma / (L + 1)). A layer between blocks counts with the
    block that it leads to.

    The release gives both passes the same masks of drop path, each divided by its mean over the batch; here each pass
    has masks of its own. Left out are its cheaper forms (`lazy`, `fast`) and its other changes (`LoRAadd`, `VPTadd`).
    A backbone with a linear layer without bias cannot take W P u in, and does not merge.
    """

    name = "pace"
    title = "PACE"
    paper = "Ni et al., PACE, NeurIPS 2024, arXiv 2409.17137"
    family = "reparameterisation"
    recipe = {"lr": 5e-3}
    search_space = {**Method.search_space, "sigma": (0.6, 1.2, 1.5), "consistency": (0.1, 1.0)}
    mergeable = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        rank: Count = 10
        """Rank r; the release's few-shot runs have 18."""

        sigma: Annotated[float, at_least(0)] = 1.2
        """Standard deviation of the noise where it is largest; the release chooses it per task (1.2 in its example of
        VTAB-1K)."""

        consistency: Positive = 1.0
        """Factor lambda of the penalty; the release chooses it per task (1 in its example)."""

    config: Config

    def expected_parameters(self, backbone: nn.Module) -> int:
        r, layers = self.config.rank, [layer for _, layer in numbered_linears(backbone)]
        biases = sum(layer.out_features for layer in layers if layer.bias is not None)
        return biases + sum(r * (2 * layer.in_features + layer.out_features) + r for layer in layers)

    def level(self, number: int, backbone: nn.Module) -> float:
        """Standard deviation of the noise in the block of that number, or in the classifier, which comes after all."""
        quiet = 1 if architecture_of(backbone).sequence else 0
        noisy = len(blocks(backbone)) + 1 - quiet
        return self.config.sigma * (noisy - (number - quiet)) / noisy if number >= quiet else 0.0

    def attach(self, backbone: Any, context: Context) -> Attachment:
        layers: list[tuple[int, Any]] = list(numbered_linears(backbone))
        for number, layer in layers:
            change = Change(layer, self.config.rank, context.generator)
            change_layer(layer, NoisyChange)
            layer.change = change.to(layer.weight).train(layer.training)
            layer.level = self.level(number, backbone)
        classifier = backbone.get_classifier()
        plug_layer(classifier, "output", LogitNoise(self.level(len(blocks(backbone)), backbone)))
        foldable = all(layer.bias is not None for _, layer in layers)
        merge = partial(fold_changes, [layer for _, layer in layers], classifier) if foldable else None
        return Attachment(penalty=self.penalty, forward_passes=2, merge=merge)

    def penalty(self, batch: Batch) -> Tensor:
        """How far the logits of another noisy pass lie apart."""
        apart = batch.logits - batch.forward().logits
        return self.config.consistency * apart.square().sum(dim=1).mean()


def numbered_linears(backbone: nn.Module) -> Iterator[tuple[int, nn.Linear]]:
    """The linear layers of the blocks and of what lies between them, with the number of the block that they are in or
    lead to. Raises `MethodError` where a block's layers are of another kind."""
    number, last = 0, len(blocks(backbone))
    inside = set(blocks(backbone))
    for step in architecture_of(backbone).steps(backbone):
        if step in inside:
            yield from ((number, layer) for _, layer in block_linears(step))
            number += 1
        elif number < last:
            yield from ((number, layer) for layer in step.modules() if isinstance(layer, nn.Linear))
