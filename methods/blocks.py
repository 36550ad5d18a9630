"""The one place where timm's transformer blocks are opened.

A method never copies a block: it plugs modules into named places ("slots") of the blocks it finds. A block with
slots is timm's own object, re-classed to a subclass whose `forward` runs the plugged modules, so parameter names,
hooks and attributes of the pretrained model stay as they are. Several methods can plug into one block. Leaf layers
(`attn.qkv`, `norm1`, ...) take modules in the same way through `plug_layer`.

A pre-norm block computes, with every empty slot the identity (or nothing, for `parallel`):

    x = input(x)
    h = attention_output(attn(attention_input(norm1(x))))
    x = after_attention(x + drop_path1(h) + attention_parallel(x))
    h = mlp_output(mlp(mlp_input(norm2(x))))
    x = output(x + drop_path2(h) + mlp_parallel(x))

where LayerScale, if any, belongs to `attn` and `mlp`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from methods.base import MethodError

Value = TypeVar("Value")

SLOTS = (
    "input",
    "attention_input",
    "attention_output",
    "attention_parallel",
    "after_attention",
    "mlp_input",
    "mlp_output",
    "mlp_parallel",
    "output",
)


def chain(block: Any, slot: str, x: Tensor) -> Tensor:
    """Run the modules plugged into `slot` one after the other."""
    for module in block.slots[slot]:
        x = module(x)
    return x


def parallel(block: Any, slot: str, x: Tensor, total: Tensor) -> Tensor:
    """Add the outputs of the modules plugged into `slot`, each applied to `x`, to `total`."""
    for module in block.slots[slot]:
        total = total + module(x)
    return total


class SlottedViTBlock(ViTBlock):
    """timm's pre-norm ViT block with slots. x: [batch, tokens, channels]."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x = chain(self, "input", x)
        h = self.attn(chain(self, "attention_input", self.norm1(x)), attn_mask=attn_mask, is_causal=is_causal)
        h = chain(self, "attention_output", self.ls1(h))
        return self.behind_attention(parallel(self, "attention_parallel", x, x + self.drop_path1(h)))

    def behind_attention(self, x: Tensor) -> Tensor:
        """From `after_attention` on."""
        x = chain(self, "after_attention", x)
        h = chain(self, "mlp_output", self.ls2(self.mlp(chain(self, "mlp_input", self.norm2(x)))))
        return chain(self, "output", parallel(self, "mlp_parallel", x, x + self.drop_path2(h)))


class SlottedSwinBlock(SwinTransformerBlock):
    """timm's Swin (v1) block with slots. x: [batch, height, width, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        x = chain(self, "input", x)
        h = chain(self, "attention_output", self._attn(chain(self, "attention_input", self.norm1(x))))
        return self.behind_attention(parallel(self, "attention_parallel", x, x + self.drop_path1(h)))

    def behind_attention(self, x: Tensor) -> Tensor:
        """From `after_attention` on."""
        x = chain(self, "after_attention", x)
        h = chain(self, "mlp_output", self.mlp(chain(self, "mlp_input", self.norm2(x))))
        return chain(self, "output", parallel(self, "mlp_parallel", x, x + self.drop_path2(h)))


_SLOTTED: dict[type, type] = {ViTBlock: SlottedViTBlock, SwinTransformerBlock: SlottedSwinBlock}


def blocks(backbone: nn.Module) -> list[Any]:
    """The transformer blocks of a timm ViT or Swin from input to output. Raises `MethodError` for other models."""
    stages: list[Any]
    if isinstance(backbone, VisionTransformer):
        stages = [backbone]
    elif isinstance(backbone, SwinTransformer):
        stages = list(backbone.layers)
    else:
        raise MethodError(f"{type(backbone).__name__} is neither a timm VisionTransformer nor a SwinTransformer")
    result = [block for stage in stages for block in stage.blocks]
    for block in result:
        if type(block) not in _SLOTTED and type(block) not in _SLOTTED.values():
            raise MethodError(f"blocks of type {type(block).__name__} are not supported, only timm's pre-norm blocks")
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPoint:
    """A place in a model's forward pass that everything goes through, and how the pass goes on from there."""

    name: str
    entrance: nn.Module
    """The module whose input is the value at this place."""

    run: Callable[[Tensor], Tensor]
    """From the value at this place to the logits."""


def cut_points(model: Any) -> list[CutPoint]:
    """From the output to the input: the pooled features, and of a ViT or Swin the input of every block but the first,
    and of every block with slots the place before `after_attention`."""
    owner, dropout = (model.head, "drop") if hasattr(model.head, "drop") else (model, "head_drop")
    classify = nn.Sequential(getattr(owner, dropout), model.get_classifier())
    found = [CutPoint(name="head", entrance=classify[0], run=classify)]
    if isinstance(model, VisionTransformer):
        steps: list[Any] = [*model.blocks, model.norm]
    elif isinstance(model, SwinTransformer):
        stages: Any = model.layers
        steps = [step for stage in stages for step in (stage.downsample, *stage.blocks)] + [model.norm]
    else:
        return found

    def go_on(rest: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
        for step in rest:
            x = step(x)
        logits: Tensor = model.forward_head(x)
        return logits

    for number, block in reversed(list(enumerate(blocks(model)))):
        rest = steps[steps.index(block) + 1 :]
        if type(block) in _SLOTTED.values():
            plugged = list(block.slots["after_attention"])
            entrance = plugged[0] if plugged else block.norm2
            run = partial(go_on, [block.behind_attention, *rest])
            found.append(CutPoint(name=f"block {number}, behind its attention", entrance=entrance, run=run))
        if number > 0:
            found.append(CutPoint(name=f"block {number}", entrance=block, run=partial(go_on, [block, *rest])))
    return found


def kind(backbone: nn.Module) -> str:
    """`vit` or `swin`, as in `Method.serves`; the class's name for another model."""
    if isinstance(backbone, VisionTransformer):
        return "vit"
    return "swin" if isinstance(backbone, SwinTransformer) else type(backbone).__name__


def width(block: Any) -> int:
    """Number of channels of the block's residual stream."""
    return int(block.norm1.normalized_shape[0])


def the_one(values: Iterable[Value]) -> Value | None:
    """The value that all of them are; None where they differ, as on a Swin what is taken from the width of a block."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def plug(block: Any, slot: str, module: nn.Module) -> None:
    """Plug `module` into `slot` of `block`, behind what is plugged there already, on the block's device."""
    if type(block) in _SLOTTED:
        block.__class__ = _SLOTTED[type(block)]
        block.slots = nn.ModuleDict({name: nn.ModuleList() for name in SLOTS})
    block.slots[slot].append(_like(module, block.norm1))


def unplug(block: Any, slot: str, module: nn.Module) -> None:
    """Remove `module` from `slot`, after it has been folded away; a block with nothing left is timm's own again."""
    block.slots[slot] = nn.ModuleList(other for other in block.slots[slot] if other is not module)
    if not any(len(plugged) for plugged in block.slots.values()):
        block.__class__ = type(block).__mro__[1]
        del block.slots


class SlottedLayer:
    """Mixed into a leaf layer (linear, norm, convolution) with modules plugged in:

    y = layer(x) + parallel_1(x) + parallel_2(x) + ...;    y = output_k(... output_1(y))
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layer's own forward, then what is plugged in."""
        y = super().forward(x)  # type: ignore[misc]
        return chain(self, "output", parallel(self, "parallel", x, y))


@cache
def _slotted_layer_class(kind: type) -> type:
    return type(f"Slotted{kind.__name__}", (SlottedLayer, kind), {})


def plug_layer(layer: Any, slot: str, module: nn.Module) -> None:
    """Plug `module` into `parallel` (added to the output, fed with the input) or `output` (fed with the output) of a
    leaf layer such as `block.attn.qkv`. The layer keeps its name, weight and bias."""
    if not isinstance(layer, SlottedLayer):
        layer.__class__ = _slotted_layer_class(layer.__class__)
        layer.slots = nn.ModuleDict({"parallel": nn.ModuleList(), "output": nn.ModuleList()})
    layer.slots[slot].append(_like(module, layer))


def unplug_layer(layer: Any) -> None:
    """Remove all that was plugged into a leaf layer, after it has been folded into the layer's weight."""
    layer.__class__ = type(layer).__mro__[2]
    del layer.slots


def _like(module: nn.Module, layer: Any) -> nn.Module:
    """`module` on the device, in the floating-point type of the weight and in the mode (training or not) of `layer`."""
    return module.to(device=layer.weight.device, dtype=layer.weight.dtype).train(layer.training)


def _without_slots(module: nn.Module) -> type[nn.Module]:
    """The module's class, slots aside."""
    kind = type(module)
    return kind.__mro__[2 if isinstance(module, SlottedLayer) else 1 if kind in _SLOTTED.values() else 0]


def keeps_nothing(model: nn.Module) -> bool:
    """Whether a pass through `model` depends on nothing but its input, its parameters and buffers, its mode and random
    numbers, and leaves nothing behind.

    True of torch's and timm's modules as they are; a method's own module, or the class that defines its `forward`,
    declares it with `stateless = True`. Of hooks, and of what does not declare it, nothing can be told from outside.
    """
    return all(map(_is_stateless, model.modules()))


def _is_stateless(module: nn.Module) -> bool:
    kind = _without_slots(module)
    replaced = any(callable(value) and hasattr(kind, name) for name, value in vars(module).items())
    if replaced or module._forward_hooks or module._forward_pre_hooks:
        return False
    forward = next(cls for cls in kind.__mro__ if "forward" in vars(cls))
    plain = forward is nn.Module or kind.__module__.partition(".")[0] in ("torch", "timm")  # nn.Module's is not called
    return plain or bool((vars(forward) | vars(module)).get("stateless"))


def require_vit(backbone: nn.Module, method: str) -> Any:
    """The backbone, if it is a ViT with one sequence of tokens; `MethodError` otherwise."""
    if not isinstance(backbone, VisionTransformer):
        raise MethodError(f"method {method!r} serves ViT only, not {type(backbone).__name__}")
    return backbone


def new_linear(
    inputs: int, outputs: int, generator: torch.Generator, std: float = 0.02, bias: bool = True, cut: float = 2.0
) -> nn.Linear:
    """A linear layer of weight trunc_normal(std) between -cut and cut, by default those of timm (zero for std 0), drawn
    from `generator`, and bias zero."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias)  # leaves the global generator alone
    with torch.no_grad():
        if std > 0:
            nn.init.trunc_normal_(layer.weight, std=std, a=-cut, b=cut, generator=generator)
        else:
            layer.weight.zero_()
        if bias:
            layer.bias.zero_()
    return layer
