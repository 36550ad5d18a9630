"""What a kind of backbone tells about itself, and the slots of its blocks."""

from __future__ import annotations

import sys
from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from methods.base import MethodError

State = dict[str, Tensor]
"""Tensors of a checkpoint by name."""

LINEARS = ("qkv", "proj", "fc1", "fc2")
"""Names of a block's linear layers: of attention q, k and v in one and the projection, of the MLP up and down."""

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


def chain(module: Any, slot: str, x: Tensor) -> Tensor:
    """Run what is plugged into `slot` in order, each on the output of the one before."""
    for plugged in module.slots[slot]:
        x = plugged(x)
    return x


def parallel(module: Any, slot: str, x: Tensor, total: Tensor) -> Tensor:
    """Add the outputs of what is plugged into `slot`, each applied to `x`, to `total`."""
    for plugged in module.slots[slot]:
        total = total + plugged(x)
    return total


class SlottedBlock:
    """Mixed into timm's pre-norm block class: the block with slots. x: [batch, tokens or rows, columns, channels].

    A kind's subclass names the class (`plain`), and says what its attention and its MLP are, LayerScale included.
    """

    plain: ClassVar[type[nn.Module]]
    """timm's class of the block."""

    slots: Any
    norm1: Any
    norm2: Any
    drop_path1: Any
    drop_path2: Any

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Attention on normed tokens. The rest is what the block was called with beside its input."""
        raise NotImplementedError

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP on normed tokens."""
        raise NotImplementedError

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The block with what is plugged in."""
        x = chain(self, "input", x)
        h = self.attend(chain(self, "attention_input", self.norm1(x)), *arguments, **options)
        h = chain(self, "attention_output", h)
        return self.from_after_attention(parallel(self, "attention_parallel", x, x + self.drop_path1(h)))

    def from_after_attention(self, x: Tensor) -> Tensor:
        """The rest of the block, from the slot `after_attention` on."""
        x = chain(self, "after_attention", x)
        h = chain(self, "mlp_output", self.feed_forward(chain(self, "mlp_input", self.norm2(x))))
        return chain(self, "output", parallel(self, "mlp_parallel", x, x + self.drop_path2(h)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Names and shapes under which another library stores the weights of a kind of backbone."""

    marker: str
    """A tensor that every such file has. A prefix of the whole backbone may precede the name."""

    to_timm: Callable[[State], State]
    """The tensors as timm names and shapes them; names that the layout does not have stay."""


class Architecture(ABC):
    """A kind of backbone. Subclasses, marked with `@register`, fill in

    - `name`, `title`, `model`, `blocks`, `timm_modules` and `small`, always;
    - `layouts`, where checkpoints come in other names than timm's;
    - the methods, where a model of this kind differs from what they say here.

    The backbone is a timm model; its blocks are pre-norm blocks with two residual sums, `norm1` and `norm2`.
    """

    name: ClassVar[str]
    """The kind's name, as in `Method.serves`."""

    title: ClassVar[str]
    """As messages say it: "ViT"."""

    model: ClassVar[type[nn.Module]]
    """timm's class."""

    blocks: ClassVar[tuple[type[SlottedBlock], ...]]
    """The blocks that can have slots. A model with other blocks is refused."""

    timm_modules: ClassVar[tuple[str, ...]]
    """Modules of `timm.models` whose models are of this kind."""

    small: ClassVar[tuple[str, Mapping[str, Any]]]
    """timm's name, and arguments, of a real model at 32 px for checks and tests: a few narrow blocks."""

    sequence: ClassVar[bool] = True
    """Whether tokens are one sequence, [batch, tokens, channels], and not a map, [batch, rows, columns, channels]."""

    shallow: ClassVar[Mapping[str, Any]] = {}
    """Arguments that make `small` shallower still, for checks that compile it."""

    layouts: ClassVar[tuple[Layout, ...]] = ()
    """Layouts of checkpoints beside timm's own."""

    first_layer: ClassVar[str] = "patch_embed.proj.weight"
    """timm's name of the first layer's weight."""

    def stages(self, model: Any) -> list[list[Any]]:
        """The blocks from input to output: one list for each run of blocks of equal width and resolution."""
        return [list(model.blocks)]

    def steps(self, model: Any) -> list[Any]:
        """Modules that the forward pass runs one after the other, from the first block to what `forward_head` takes;
        empty if a block is handed more than its input."""
        return [*(block for stage in self.stages(model) for block in stage), model.norm]

    def width(self, block: Any) -> int:
        """Number of channels of the block's residual stream."""
        return int(block.norm1.normalized_shape[0])

    def linears(self, block: Any) -> dict[str, Any]:
        """The layers of `LINEARS` that the block has, whatever timm calls them there."""
        parts = {"qkv": block.attn, "proj": block.attn, "fc1": block.mlp, "fc2": block.mlp}
        layers = {name: getattr(part, name, None) for name, part in parts.items()}
        return {name: layer for name, layer in layers.items() if layer is not None}

    def pads(self, block: Any) -> bool:
        """Whether attention pads its input, so that padding takes part that a module before it has not seen."""
        return False

    def prefix_tokens(self, model: Any) -> int:
        """Number of tokens (class token, registers) that precede the patches; 0 for maps."""
        return int(getattr(model, "num_prefix_tokens", 0))

    def token_grid(self, model: Any) -> tuple[int, int]:
        """Rows and columns of the patches at the first block."""
        rows, columns = model.patch_embed.grid_size
        return int(rows), int(columns)

    def patch_side(self, model: Any) -> int:
        """Side of a patch in pixels, of which that of an image must be a multiple."""
        return int(model.patch_embed.patch_size[0])

    def reads_class_token(self, model: Any) -> bool:
        """Whether the head reads the first token of a sequence, and no other, of blocks that can have slots."""
        return False

    def final_norms(self, model: Any) -> list[nn.Module]:
        """The norms between the last block and the head, which may be identities."""
        return [model.norm, getattr(model, "fc_norm", nn.Identity())]

    def head_dropout(self, model: Any) -> tuple[nn.Module, str]:
        """Owner and name of the dropout before the classifier, the last module that pooled features pass."""
        return (model.head, "drop") if hasattr(model.head, "drop") else (model, "head_drop")

    def fit(self, state: State, model: Any) -> State:
        """A checkpoint's tensors, under names that timm knows, in the names and sizes of `model`."""
        fitted: State = sys.modules[self.model.__module__].checkpoint_filter_fn(dict(state), model)
        return fitted


KINDS: dict[str, Architecture] = {}
"""All kinds by name."""


def register(cls: type[Architecture]) -> type[Architecture]:
    """Make a kind known."""
    KINDS[cls.name] = cls()
    return cls


def _find(module: nn.Module) -> Architecture | None:
    models = [known for known in KINDS.values() if isinstance(module, known.model)]
    if models:  # of a class and its subclass, the subclass
        return max(models, key=lambda known: len(known.model.__mro__))
    return next((known for known in KINDS.values() if slotted_class(known, module)), None)


def slotted_class(architecture: Architecture, block: nn.Module) -> type[SlottedBlock] | None:
    """The class that the block has with slots; None if it cannot have any."""
    return next((cls for cls in architecture.blocks if type(block) in (cls, cls.plain)), None)


def architecture_of(module: nn.Module) -> Architecture:
    """The kind of a model, or of one of its blocks. Raises `MethodError` if it is of none."""
    architecture = _find(module)
    if architecture is None:
        known = " or ".join(sorted(known.model.__name__ for known in KINDS.values()))
        raise MethodError(f"{type(module).__name__} is not a backbone of a known kind (timm's {known})")
    return architecture


def kind(backbone: nn.Module) -> str:
    """Name of the backbone's kind, as in `Method.serves`; the class's name if it is of none."""
    architecture = _find(backbone)
    return type(backbone).__name__ if architecture is None else architecture.name
