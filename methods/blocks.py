"""Where methods open a backbone's blocks.

A method never copies a block: it plugs modules into named places ("slots") of the backbone's blocks. A block with
slots is timm's own object, re-classed to a subclass whose `forward` runs the plugged modules, so parameter names,
hooks and attributes of the pretrained model stay as they are. Several methods can plug into one block. Leaf layers
(`attn.qkv`, `norm1`, ...) take modules in the same way through `plug_layer`.

A block with two branches computes, with every empty slot the identity (or nothing, for `parallel`):

    x = input(x)
    h = attention_output(attn(attention_input(norm1(x))))
    x = after_attention(x + drop_path1(h) + attention_parallel(x))
    h = mlp_output(mlp(mlp_input(norm2(x))))
    x = output(x + drop_path2(h) + mlp_parallel(x))

where LayerScale, if any, belongs to `attn` and `mlp`; in a post-norm block the norms follow `attn` and `mlp`. Blocks
without attention (ConvNeXt's) have some of the slots. What differs from one kind of backbone to another is in
`methods/architectures/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from methods.architectures import SlottedBlock, architecture_of, kind
from methods.architectures.base import Stream, TwoBranchBlock, chain, parallel, slotted_class
from methods.base import Method, MethodError

Value = TypeVar("Value")


def stages(backbone: nn.Module) -> list[list[Any]]:
    """The transformer blocks from input to output, one list for each run of blocks of equal width and resolution.

    Raises `MethodError` for models of no known kind, or with blocks that cannot have slots.
    """
    architecture = architecture_of(backbone)
    result = architecture.stages(backbone)
    for block in (block for stage in result for block in stage):
        if slotted_class(architecture, block) is None:
            known = ", ".join(cls.plain.__name__ for cls in architecture.blocks)
            raise MethodError(f"blocks of type {type(block).__name__} are not supported, only timm's {known}")
    if not architecture.is_prepared(backbone):
        raise MethodError("call methods.architectures.prepare(model) on a model from timm before anything is attached")
    return result


def blocks(backbone: nn.Module) -> list[Any]:
    """The transformer blocks from input to output. Raises `MethodError` as `stages` does."""
    return [block for stage in stages(backbone) for block in stage]


@dataclass(frozen=True, slots=True, kw_only=True)
class CutPoint:
    """A place in a model's forward pass that everything goes through, and how the pass goes on from there."""

    name: str
    entrance: nn.Module
    """The module whose input is the value at this place."""

    run: Callable[[Tensor], Tensor]
    """From the value at this place to the logits."""


def cut_points(model: Any) -> list[CutPoint]:
    """From the output to the input: the pooled features, the input of every block but the first, and of every block
    with slots and attention the place before `after_attention`."""
    architecture = architecture_of(model)
    owner, dropout = architecture.head_dropout(model)
    classify = nn.Sequential(getattr(owner, dropout), model.get_classifier())
    steps = architecture.steps(model)

    def go_on(rest: Sequence[nn.Module], x: Tensor) -> Tensor:
        logits: Tensor = model.forward_head(architecture.run(model, rest, x))
        return logits

    def finish(block: Any, rest: Sequence[nn.Module], x: Tensor) -> Tensor:
        return go_on(rest, block.from_after_attention(x))

    cuts = [CutPoint(name="head", entrance=classify[0], run=classify)]
    for number, block in reversed(list(enumerate(blocks(model)))):
        rest = steps[steps.index(block) + 1 :]
        if isinstance(block, TwoBranchBlock):
            entrance, run = block.after_attention(), partial(finish, block, rest)
            cuts.append(CutPoint(name=f"block {number}, after its attention", entrance=entrance, run=run))
        if number > 0:
            cuts.append(CutPoint(name=f"block {number}", entrance=block, run=partial(go_on, [block, *rest])))
    return cuts


def width(block: Any) -> int:
    """Number of channels of the block's residual stream."""
    return architecture_of(block).width(block)


def pads(block: Any) -> bool:
    """Whether the block's attention pads its input: zeros that a module before it has not seen then take part."""
    return architecture_of(block).pads(block)


def the_one(values: Iterable[Value]) -> Value | None:
    """The value that all of them are; None where they differ, as on a Swin what is taken from the width of a block."""
    distinct = set(values)
    return distinct.pop() if len(distinct) == 1 else None


def mixed(block: Any) -> Stream:
    """The block's residual stream once the block has mixed the tokens: after attention or, without, at its exit."""
    return _slotted(block).mixed(block)


def leaving(block: Any) -> Stream:
    """The residual stream that the block gives."""
    return _slotted(block).leaving(block)


def _slotted(block: Any) -> type[SlottedBlock]:
    """The block's class with slots. Raises `MethodError` if there is none."""
    cls = slotted_class(architecture_of(block), block)
    if cls is None:
        raise MethodError(f"blocks of type {type(block).__name__} are not supported")
    return cls


def require_slots(block: Any, slots: Iterable[str]) -> None:
    """Raise `MethodError` unless the block has these slots."""
    for slot in slots:
        if slot not in _slotted(block).places:
            raise MethodError(f"the blocks of this backbone have no {slot.replace('_', ' ')} to change")


def plug(block: Any, slot: str, module: nn.Module) -> None:
    """Plug `module` into `slot` of `block`, after what is plugged there already, on the block's device."""
    require_slots(block, [slot])
    if not isinstance(block, SlottedBlock):
        block.__class__ = _slotted(block)
        block.slots = nn.ModuleDict({name: nn.ModuleList() for name in block.places})
    block.slots[slot].append(_like(module, next(block.parameters()), block.training))


def unplug(block: Any, slot: str, module: nn.Module) -> None:
    """Remove `module` from `slot`, after it has been folded away; a block with nothing left is timm's own again."""
    block.slots[slot] = nn.ModuleList(other for other in block.slots[slot] if other is not module)
    if not any(len(plugged) for plugged in block.slots.values()):
        block.__class__ = type(block).plain
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
def _slotted_layer_class(cls: type) -> type:
    return type(f"Slotted{cls.__name__}", (SlottedLayer, cls), {})


def plug_layer(layer: Any, slot: str, module: nn.Module) -> None:
    """Plug `module` into `parallel` (added to the output, fed with the input) or `output` (fed with the output) of a
    leaf layer such as `block.attn.qkv`. The layer keeps its name, weight and bias."""
    if not isinstance(layer, SlottedLayer):
        layer.__class__ = _slotted_layer_class(layer.__class__)
        layer.slots = nn.ModuleDict({"parallel": nn.ModuleList(), "output": nn.ModuleList()})
    layer.slots[slot].append(_like(module, layer.weight, layer.training))


def unplug_layer(layer: Any) -> None:
    """Remove all that was plugged into a leaf layer, after it has been folded into the layer's weight."""
    layer.__class__ = type(layer).__mro__[2]
    del layer.slots


def _like(module: nn.Module, weight: Tensor, training: bool) -> nn.Module:
    """`module` on the device and in the floating-point type of `weight`, in that mode."""
    return module.to(device=weight.device, dtype=weight.dtype).train(training)


def _without_slots(module: nn.Module) -> type[nn.Module]:
    """The module's class, slots aside."""
    if isinstance(module, SlottedBlock):
        return module.plain
    return type(module).__mro__[2 if isinstance(module, SlottedLayer) else 0]


def keeps_nothing(model: nn.Module) -> bool:
    """Whether a pass through `model` depends on nothing but its input, its parameters and buffers, its mode and random
    numbers, and leaves nothing behind.

    True of torch's and timm's modules as they are; a method's own module, or the class that defines its `forward`,
    declares it with `stateless = True`. Of hooks, and of what does not declare it, nothing can be told from outside.
    """
    return all(map(_is_stateless, model.modules()))


def _is_stateless(module: nn.Module) -> bool:
    cls = _without_slots(module)
    replaced = any(callable(value) and hasattr(cls, name) for name, value in vars(module).items())
    if replaced or module._forward_hooks or module._forward_pre_hooks:
        return False
    forward = next(base for base in cls.__mro__ if "forward" in vars(base))
    plain = forward is nn.Module or cls.__module__.partition(".")[0] in ("torch", "timm")  # nn.Module's is not called
    return plain or bool((vars(forward) | vars(module)).get("stateless"))


NEEDED = {"sequence": "one sequence of tokens of one width", "attention": "attention in its blocks"}
"""What methods need of a kind of backbone, as messages say it."""


def why_not_served(method: Method, backbone: nn.Module) -> str:
    """Why the method does not serve the backbone, after its name."""
    lacking = method.needs - architecture_of(backbone).offers()
    if lacking:
        return f"needs {' and '.join(NEEDED[need] for need in sorted(lacking))}, which {kind(backbone)} has not"
    return f"serves {', '.join(sorted(method.serves))}, not {kind(backbone)}"


def require_served(method: Method, backbone: nn.Module) -> Any:
    """The backbone, if the method serves its kind; `MethodError` otherwise."""
    if not method.can_serve(kind(backbone)):
        raise MethodError(f"method {method.name!r} {why_not_served(method, backbone)}")
    return backbone


def replace_classifier(backbone: Any, inputs: int, generator: torch.Generator) -> nn.Linear:
    """Put a new classifier for so many features in the place of the backbone's: weight trunc_normal(0.02), drawn from
    `generator`, bias zero, frozen."""
    plain: nn.Linear = backbone.get_classifier()
    new = new_linear(inputs, plain.out_features, generator).requires_grad_(False)
    owner, _, name = next(n for n, module in backbone.named_modules() if module is plain).rpartition(".")
    setattr(backbone.get_submodule(owner), name, _like(new, plain.weight, plain.training))
    return new


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
