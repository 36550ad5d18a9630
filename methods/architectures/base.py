"""What a kind of backbone tells about itself, and the slots of its blocks."""

from __future__ import annotations

import sys
from abc import ABC
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from methods.base import MethodError

State = dict[str, Tensor]
"""Tensors of a checkpoint by name."""

LINEARS = ("qkv", "proj", "fc1", "fc2")
"""Names of a block's linear layers: of attention q, k and v and the projection, of the MLP up and down."""

SPELLINGS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "qkv": (("qkv",), ("q_proj", "k_proj", "v_proj")),
    "proj": (("proj",),),
    "fc1": (("fc1",), ("fc1_g", "fc1_x")),
    "fc2": (("fc2",),),
}
"""timm's attributes for each of `LINEARS`, in one layer or in several."""

NEEDS = ("sequence", "attention")
"""What a method may need of a kind of backbone, see `Method.needs`."""

SMALL: Mapping[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
"""Arguments of a small model with one sequence of tokens."""

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
    """Mixed into timm's class of a block: the block with slots. What is plugged in sees channels last.

    A kind's subclass names the class (`plain`), and says what its branches are, LayerScale included.
    """

    plain: ClassVar[type[nn.Module]]
    """timm's class of the block."""

    places: ClassVar[tuple[str, ...]] = SLOTS
    """The slots that the block has."""

    slots: Any

    @staticmethod
    def mixed(block: Any) -> Stream:
        """The residual stream of a block, with slots or without, once it has mixed the tokens."""
        raise NotImplementedError

    @staticmethod
    def leaving(block: Any) -> Stream:
        """The residual stream that a block, with slots or without, gives."""
        return Stream(slot="output", module=block, where="output")


class TwoBranchBlock(SlottedBlock):
    """Attention and an MLP, each a pre-norm branch with a residual sum. x: [batch, tokens or rows, columns, channels].

    A post-norm block, whose branches end with their norms, says so by `PostNormBlock`.
    """

    norm1: Any
    norm2: Any
    mlp: Any
    drop_path1: Any
    drop_path2: Any

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Attention on normed tokens. The rest is what the block was called with beside its input."""
        raise NotImplementedError

    def feed_forward(self, x: Tensor) -> Tensor:
        """The MLP on normed tokens."""
        raise NotImplementedError

    def attention_reads(self, x: Tensor) -> Tensor:
        """What attention is given of the residual stream."""
        h: Tensor = self.norm1(x)
        return h

    def mlp_reads(self, x: Tensor) -> Tensor:
        """What the MLP is given of the residual stream."""
        h: Tensor = self.norm2(x)
        return h

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """The block with what is plugged in."""
        x = chain(self, "input", x)
        h = self.attend(chain(self, "attention_input", self.attention_reads(x)), *arguments, **options)
        h = chain(self, "attention_output", h)
        return self.from_after_attention(parallel(self, "attention_parallel", x, x + self.drop_path1(h)))

    def from_after_attention(self, x: Tensor) -> Tensor:
        """The rest of the block, from the slot `after_attention` on."""
        x = chain(self, "after_attention", x)
        h = chain(self, "mlp_output", self.feed_forward(chain(self, "mlp_input", self.mlp_reads(x))))
        return chain(self, "output", parallel(self, "mlp_parallel", x, x + self.drop_path2(h)))

    def after_attention(self) -> nn.Module:
        """The module whose input is the value at the slot `after_attention`."""
        plugged: list[nn.Module] = list(self.slots["after_attention"])
        return plugged[0] if plugged else cast(nn.Module, self.norm2)

    @staticmethod
    def mixed(block: Any) -> Stream:
        return Stream(slot="after_attention", module=block.norm2, where="input")


class ScaledBlock(TwoBranchBlock):
    """The same where LayerScale is two parameters of the block, which may be missing."""

    attn: Any
    gamma_1: Any
    gamma_2: Any

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self.attn(x, *arguments, **options)
        return h if self.gamma_1 is None else self.gamma_1 * h

    def feed_forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.mlp(x)
        return h if self.gamma_2 is None else self.gamma_2 * h


class PostNormBlock(TwoBranchBlock):
    """The same where each branch ends with its norm, which belongs to `attend` and to `feed_forward`."""

    attn: Any

    def attend(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        h: Tensor = self.norm1(self.attn(x, *arguments, **options))
        return h

    def feed_forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.norm2(self.mlp(x))
        return h

    def attention_reads(self, x: Tensor) -> Tensor:
        return x

    def mlp_reads(self, x: Tensor) -> Tensor:
        return x

    def after_attention(self) -> nn.Module:
        plugged: list[nn.Module] = [*self.slots["after_attention"], *self.slots["mlp_input"]]
        return plugged[0] if plugged else cast(nn.Module, self.mlp)

    @staticmethod
    def mixed(block: Any) -> Stream:
        return Stream(slot="after_attention", module=block.mlp, where="input")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """A place of the residual stream: where it can be changed, and where it can be read."""

    slot: str
    module: nn.Module
    where: str
    """`input` or `output` of the module."""

    channels_first: bool = False
    """Whether it is [batch, channels, rows, columns] there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Some outputs of a linear layer."""

    layer: Any
    start: int
    stop: int


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
    - the other fields and methods, where a model of this kind differs from what they say here.
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

    small: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]]
    """Real models at 32 px, a few narrow blocks each, that every method is checked on: timm's name, and arguments, by a
    name of their own. The first stands for the kind, others for models of it that are built in another way."""

    variants: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    """Further such models, built in yet another way, that tests try some methods on."""

    sequence: ClassVar[bool] = True
    """Whether tokens are one sequence, [batch, tokens, channels], and not a map, [batch, rows, columns, channels]."""

    attention: ClassVar[bool] = True
    """Whether blocks have attention."""

    shallow: ClassVar[Mapping[str, Any]] = {}
    """Arguments that make the first of `small` shallower still, for checks that compile it."""

    layouts: ClassVar[tuple[Layout, ...]] = ()
    """Layouts of checkpoints beside timm's own."""

    first_layer: ClassVar[str] = "patch_embed.proj.weight"
    """timm's name of the first layer's weight."""

    def arguments(self, name: str, image_size: int) -> Mapping[str, Any]:
        """What `timm.create_model` is told beside the model's name. `image_size`: side of images in pixels."""
        return {"img_size": image_size}

    def offers(self) -> frozenset[str]:
        """Which of the `NEEDS` of methods the kind meets."""
        return frozenset(need for need in NEEDS if getattr(self, need))

    def prepare(self, model: Any) -> None:
        """Make a model that timm has built one that methods work on, in place. Names and weights stay."""
        for module in model.modules():
            if getattr(module, "q_bias", None) is not None:
                module.qkv_bias_separate = True  # else `qkv` is read, not called, and what is plugged in is left out

    def liven(self, model: Any) -> None:
        """Set to one what mutes the blocks of a model with random weights: factors of LayerScale that start near 0."""
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[2] in ("gamma", "gamma_1", "gamma_2"):
                nn.init.ones_(parameter)

    def stages(self, model: Any) -> list[list[Any]]:
        """The blocks from input to output: one list for each run of blocks of equal width and resolution."""
        return [list(model.blocks)]

    def steps(self, model: Any) -> list[Any]:
        """Modules that the forward pass runs one after the other, from the first block to what `forward_head` takes."""
        return [*(block for stage in self.stages(model) for block in stage), model.norm]

    def run(self, model: Any, steps: Iterable[Any], x: Tensor) -> Tensor:
        """Run some of the `steps`, one after the other, as the forward pass does."""
        for step in steps:
            x = step(x)
        return x

    def width(self, block: Any) -> int:
        """Number of channels of the block's residual stream."""
        return int(block.norm1.normalized_shape[0])

    def norms(self, block: Any) -> list[Any]:
        """The norms of the block's branches."""
        return [block.norm1, block.norm2]

    def linears(self, block: Any) -> dict[str, tuple[Any, ...]]:
        """The layers of each of `LINEARS` that the block has, whatever timm calls them: queries, keys and values, and
        the gate and the values of an MLP, are one layer or several."""
        parts = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}
        layers = {name: _layers(getattr(block, part, None), SPELLINGS[name]) for name, part in parts.items()}
        return {name: found for name, found in layers.items() if found}

    def projections(self, block: Any) -> tuple[Rows, ...]:
        """Where queries, keys and values come from. Empty without attention."""
        layers = self.linears(block).get("qkv", ())
        if len(layers) != 1:
            return tuple(Rows(layer=layer, start=0, stop=layer.out_features) for layer in layers)
        (fused,), d = layers, layers[0].out_features // 3
        return tuple(Rows(layer=fused, start=part * d, stop=(part + 1) * d) for part in range(3))

    def biases(self, block: Any) -> list[nn.Parameter]:
        """Biases that the block holds beside those of its layers."""
        attention = getattr(block, "attn", None)
        held = [getattr(attention, name, None) for name in ("q_bias", "v_bias")]
        return [bias for bias in held if bias is not None]

    def pads(self, block: Any) -> bool:
        """Whether attention pads its input, so that padding takes part that a module before it has not seen."""
        return False

    def prefix_tokens(self, model: Any) -> int:
        """Number of tokens (class token, registers) that precede the patches; 0 for maps."""
        return int(getattr(model, "num_prefix_tokens", 0))

    def add_prefix_tokens(self, block: Any, count: int) -> None:  # noqa: B027 (most blocks need not know)
        """Tell a block that so many tokens without a position will follow its prefix tokens."""

    def compared(self, attention: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [batch, heads, tokens, channels per head], as they come from their layers, normed and scaled
        so that softmax(q k^T) is what the attention weighs by, positions aside."""
        norms = (getattr(attention, name, None) for name in ("q_norm", "k_norm"))
        q, k = (x if norm is None else norm(x) for norm, x in zip(norms, (q, k), strict=True))
        return q * q.shape[-1] ** -0.5, k

    def open_attention(self, attention: Any) -> type[nn.Module] | None:
        """A class derived from that of `attention` that lets its attribute `prefix` put keys and values in front of
        those of the tokens; None if there is none for it."""
        return None

    def is_prepared(self, model: Any) -> bool:
        """Whether `prepare` has been called, where it does anything."""
        attentions: list[Any] = [getattr(block, "attn", None) for stage in self.stages(model) for block in stage]
        return all(a.qkv_bias_separate for a in attentions if getattr(a, "q_bias", None) is not None)

    def token_grid(self, model: Any) -> tuple[int, int]:
        """Rows and columns of the patches of a sequence; maps carry their own."""
        rows, columns = model.patch_embed.grid_size if self.sequence else (0, 0)
        return int(rows), int(columns)

    def patch_side(self, model: Any) -> int:
        """Side of a patch in pixels, of which that of an image must be a multiple."""
        return int(model.patch_embed.patch_size[0])

    def reads_class_token(self, model: Any) -> bool:
        """Whether the head seems to read the first token of a sequence, and no other."""
        return self.sequence and getattr(model, "global_pool", "") == "token"

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


def _layers(owner: Any, spellings: tuple[tuple[str, ...], ...]) -> tuple[Any, ...]:
    """The layers of the first spelling of which all are there."""
    for names in spellings:
        layers = tuple(getattr(owner, name, None) for name in names)
        if None not in layers:
            return layers
    return ()


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


def prepare(model: nn.Module) -> None:
    """Make a model that timm has built one that methods work on (`Architecture.prepare`)."""
    architecture_of(model).prepare(model)


def architecture_of(module: nn.Module) -> Architecture:
    """The kind of a model, or of one of its blocks. Raises `MethodError` if it is of none."""
    architecture = _find(module)
    if architecture is None:
        *first, last = sorted(known.model.__name__ for known in KINDS.values())
        known = f"{', '.join(first)} or {last}"
        raise MethodError(f"{type(module).__name__} is not a backbone of a known kind (timm's {known})")
    return architecture


def kind(backbone: nn.Module) -> str:
    """Name of the backbone's kind, as in `Method.serves`; the class's name if it is of none."""
    architecture = _find(backbone)
    return type(backbone).__name__ if architecture is None else architecture.name
