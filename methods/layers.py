"""Shared by the reparameterisation and selective methods: finding leaf layers, changing them, folding them back."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from timm.layers import Attention, LayerNorm2d, RmsNorm, RmsNorm2d
from torch import Tensor, nn
from torch.nn.functional import pad

from methods.architectures import architecture_of
from methods.architectures.base import LINEARS, Rows
from methods.base import Attachment, Context, Method, MethodError
from methods.blocks import SlottedLayer, blocks, new_linear, unplug_layer

NORMS = (nn.LayerNorm, RmsNorm, RmsNorm2d)
"""Norms over channels; of these, RmsNorms have no bias."""

MAP_NORMS = (LayerNorm2d, RmsNorm2d)
"""Those that take [batch, channels, rows, columns]."""


def body_layers(backbone: Any, kinds: type | tuple[type, ...]) -> list[Any]:
    """Layers of these kinds with a weight, from input to output, without the classifier that the harness owns."""
    blocks(backbone)  # refuses what is of no known kind
    head = {id(m) for m in backbone.get_classifier().modules()}
    layers: list[Any] = [m for m in backbone.modules() if isinstance(m, kinds) and id(m) not in head]
    return [layer for layer in layers if layer.weight is not None]


def body_parameters(backbone: Any) -> list[nn.Parameter]:
    """All parameters without those of the classifier that the harness owns."""
    head = {id(p) for p in backbone.get_classifier().parameters()}
    return [p for p in backbone.parameters() if id(p) not in head]


class PretrainedMethod(Method):
    """Trains parameters that the backbone has, whole."""

    family = "selective"

    @abstractmethod
    def parameters(self, backbone: nn.Module) -> list[nn.Parameter]:
        """The parameters that are trained. Raises `MethodError` where a setting does not fit."""

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(p.numel() for p in self.parameters(backbone))

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        for parameter in self.parameters(backbone):
            parameter.requires_grad_(True)
        return Attachment()


def class_token(backbone: nn.Module) -> list[nn.Parameter]:
    """The class token; an empty list where there is none."""
    return [p for name, p in backbone.named_parameters() if name.rpartition(".")[2] == "cls_token"]


def body_biases(backbone: Any) -> list[nn.Parameter]:
    """All biases of linear layers, norms and convolutions outside of the classifier, and of queries and values where
    attention holds them itself."""
    layers = body_layers(backbone, (nn.Linear, *NORMS, nn.Conv2d))
    of_layers = [layer.bias for layer in layers if getattr(layer, "bias", None) is not None]
    return of_layers + [bias for block in blocks(backbone) for bias in architecture_of(block).biases(block)]


def block_linears(block: Any, names: Sequence[str] = LINEARS) -> list[tuple[str, nn.Linear]]:
    """The block's linear layers of these names, with their names: those of attention are left out where there is none,
    and several have one name where q, k and v are apart. Raises `MethodError` if it is built of other layers, or if
    none is left."""
    architecture = architecture_of(block)
    layers = architecture.linears(block)
    wanted = [name for name in names if architecture.attention or name not in ("qkv", "proj")]
    for name in wanted or names:
        if name not in layers:
            raise MethodError(f"the blocks of this backbone have no linear layer {name}")
        for layer in layers[name]:
            if not isinstance(layer, nn.Linear):
                raise MethodError(f"{name} of this backbone's blocks is a {type(layer).__name__}, no linear layer")
    return [(name, layer) for name in wanted for layer in layers[name]]


def linears(backbone: nn.Module, *names: str) -> list[nn.Linear]:
    """The linear layers of these names of all blocks, from input to output."""
    return [layer for block in blocks(backbone) for _, layer in block_linears(block, names)]


def projections(block: Any) -> tuple[Rows, Rows, Rows]:
    """Where the block's queries, keys and values come from. Raises `MethodError` if not from linear layers."""
    block_linears(block, ["qkv"])
    q, k, v = architecture_of(block).projections(block)
    return q, k, v


def matrices(block: Any) -> dict[nn.Linear, list[Rows]]:
    """The block's linear layers with the rows of each that are a matrix of their own: queries, keys and values apart,
    whether they come from one layer or from three; of every other layer all rows. Raises `MethodError` as
    `block_linears` does."""
    found = {layer: [Rows(layer=layer, start=0, stop=layer.out_features)] for _, layer in block_linears(block)}
    apart = projections(block) if architecture_of(block).attention else ()
    return found | {rows.layer: [other for other in apart if other.layer is rows.layer] for rows in apart}


def draw_uniform(generator: torch.Generator, bound: float | Tensor, *shape: int) -> Tensor:
    """Numbers drawn from U(-bound, bound); a tensor of bounds is broadcast to the shape."""
    return (2 * torch.rand(*shape, generator=generator) - 1) * bound


def uniform(generator: torch.Generator, bound: float | Tensor, *shape: int) -> nn.Parameter:
    """The same as a parameter."""
    return nn.Parameter(draw_uniform(generator, bound, *shape))


def torch_linear(inputs: int, outputs: int, generator: torch.Generator) -> nn.Linear:
    """A linear layer without bias, its weight as torch draws it, uniform up to inputs^-1/2, but from `generator`."""
    layer = new_linear(inputs, outputs, generator, std=0, bias=False)
    nn.init.kaiming_uniform_(layer.weight, a=math.sqrt(5), generator=generator)
    return layer


def require_plain_attention(name: str, vit_blocks: Sequence[Any]) -> None:
    """Raise `MethodError` that names a method unless these blocks of a ViT are pre-norm with timm's plain attention."""
    if any(type(b.attn) is not Attention or b.attn.gate is not None or not hasattr(b, "ls1") for b in vit_blocks):
        raise MethodError(f"method {name!r} serves pre-norm blocks with timm's plain attention only")


class LowRank(nn.Module):
    """scale * B(dropout(A x)) on the outputs [start, start + out) of a layer with `total` outputs, zero elsewhere.

    A: [r, in], B: [out, r]; r * (in + out) parameters, and r + out more with biases.
    """

    stateless = True

    def __init__(self, down: nn.Linear, up: nn.Linear, scale: float, start: int, total: int, dropout: float) -> None:
        super().__init__()
        self.down, self.up, self.scale = down, up, scale
        self.dropout = nn.Dropout(dropout)
        self.padding = (start, total - start - up.out_features)

    def forward(self, x: Tensor) -> Tensor:
        update = self.scale * self.up(self.dropout(self.down(x)))
        return pad(update, self.padding) if any(self.padding) else update


def low_rank(
    layer: nn.Linear,
    rank: int,
    generator: torch.Generator,
    scale: float = 1.0,
    rows: tuple[int, int] | None = None,
    dropout: float = 0.0,
) -> LowRank:
    """A LoRA branch for the outputs `rows` (all if None) of a linear layer: A random, B zero.

    A has the standard deviation (3 in)^-1/2 of torch's default linear layer, which LoRA's own code uses.
    """
    start, stop = rows or (0, layer.out_features)
    down = new_linear(layer.in_features, rank, generator, std=(3 * layer.in_features) ** -0.5, bias=False)
    up = new_linear(rank, stop - start, generator, std=0, bias=False)
    return LowRank(down, up, scale, start, layer.out_features, dropout)


@cache
def _changed_class(mixin: type, kind: type) -> type:
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {"plain": kind})


def change_layer(layer: Any, mixin: type) -> None:
    """Give a leaf layer the forward of `mixin`, which may call the layer's own. The layer keeps its parameters."""
    layer.__class__ = _changed_class(mixin, layer.__class__)


def restore_layer(layer: Any) -> None:
    """Undo `change_layer`."""
    layer.__class__ = type(layer).plain


@torch.no_grad()
def absorb(layer: Any) -> None:
    """Set weight (and bias) of a linear layer to the affine map that its present forward computes.

    The map is read off its values at zero and at the unit vectors. What changes the forward must then be removed.
    Raises `MethodError` if it has an offset and the layer no bias that could take it.
    """
    layer.eval()  # no dropout
    weight = layer.weight
    offset = layer(weight.new_zeros(1, layer.in_features))
    product = layer(torch.eye(layer.in_features, device=weight.device, dtype=weight.dtype)) - offset
    if layer.bias is not None:
        layer.bias.copy_(offset[0])
    elif bool(offset.any()):
        raise MethodError("an offset cannot be folded into a layer without bias")
    weight.copy_(product.T)


def fold_linears(layers: Iterable[Any]) -> None:
    """Fold all that was plugged into linear layers, which must be affine, into their weights and biases."""
    for layer in layers:
        if isinstance(layer, SlottedLayer):
            absorb(layer)
            unplug_layer(layer)
