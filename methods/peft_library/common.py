"""What all tuners of the `peft` package share: which layers, which random numbers, injection, merging."""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from methods.architectures import architecture_of
from methods.base import Attachment, Context, Method, MethodError, check
from methods.blocks import blocks, require_served
from methods.kept import all_tensors
from methods.layers import block_linears, change_layer
from methods.settings import Count, Positive, Settings, at_least
from methods.updates import in_order

MLP_LINEARS = ("fc1", "fc2")

ADAPTER = "default"
"""peft's name of the one adapter that is injected."""


Several = Annotated[int, at_least(2)]
NotNegative = Annotated[float, at_least(0)]


@dataclass(frozen=True, kw_only=True)
class LayersConfig(Settings):
    """Which layers a tuner works on."""

    targets: tuple[str, ...] | None = None
    """Which linear layers of each block are tuned: any of qkv, proj, fc1, fc2. None is the method's own choice, qkv if
    it names no other; in blocks without attention it is fc1 and fc2, or what the method chooses of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.targets is not None:
            object.__setattr__(self, "targets", in_order(self.targets))


@dataclass(frozen=True, kw_only=True)
class RankConfig(LayersConfig):
    """Knobs of a low-rank tuner without scale."""

    rank: Count = 8
    """Rank r of the update."""


@dataclass(frozen=True, kw_only=True)
class ScaledRankConfig(RankConfig):
    """Knobs of a low-rank tuner."""

    alpha: Positive = 8.0
    """The update is scaled by alpha / rank."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without peft's remarks on layer types and on extensions that it could not build; both are known here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"peft\.")
        yield


def check_rank(rank: int, layer: nn.Linear, field_name: str = "rank") -> None:
    """Raise `MethodError` unless the layer's weight has this many singular values."""
    narrow = min(layer.in_features, layer.out_features)
    check(rank <= narrow, field_name, rank, f"at most the smaller side of the tuned layers, {narrow}")


def check_divides(field_name: str, value: int, layer: nn.Linear) -> None:
    """Raise `MethodError` unless `value` divides both widths of the layer."""
    widths = (layer.in_features, layer.out_features)
    check(not any(side % value for side in widths), field_name, value, f"a divisor of {widths[0]} and {widths[1]}")


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """peft draws from torch's global generators: seed them for a while, then put them back as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def merge_into_base(backbone: nn.Module) -> None:
    """Fold every peft layer into the timm layer it wraps, and put that layer back in its place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())


def keep_choices(layers: Mapping[str, nn.Module], context: Context) -> None:
    """Remember the tensors that peft's layers hold as plain attributes, or put back the remembered ones: places that
    were drawn at random or found by a decomposition, which no parameter or buffer holds."""
    found = {name: {key: v for key, v in vars(layer).items() if _is_choice(key, v)} for name, layer in layers.items()}
    if any(found.values()):
        for name, values in context.remember("choices", lambda: {n: held for n, held in found.items() if held}).items():
            vars(layers[name]).update(values)


def _is_choice(name: str, value: Any) -> bool:
    """Whether an attribute of a module is a plain tensor, or a dict (by adapter, by cluster) of some."""
    if isinstance(value, dict):
        return name not in ("_parameters", "_buffers", "_modules") and any(_is_choice("", v) for v in value.values())
    return isinstance(value, Tensor)


class OneSequence:
    """Mixed into a layer that takes [batch, tokens, channels] alone: a map is a sequence of its pixels."""

    stateless = True

    def forward(self, x: Tensor) -> Tensor:
        """x: [batch, ..., channels]."""
        y: Tensor = super().forward(x.flatten(1, -2))  # type: ignore[misc]
        out: Tensor = y.unflatten(1, x.shape[1:-1])
        return out


class PeftMethod(Method):
    """Common part: turn the method's config into a peft config and inject it.

    Subclasses name peft's config class and say how its arguments follow from the settings (`arguments`, `fixed`,
    `seed_argument`), and how many numbers are trained for one layer (`per_layer`). Where that is not enough they
    override `options`, `expected_parameters`, `inject` or `attachment`.
    """

    family = "reparameterisation"
    mergeable = True
    Config: ClassVar[type] = RankConfig

    peft_class: ClassVar[str]
    """Name of the config class in `peft`."""

    arguments: ClassVar[Mapping[str, str]] = {"r": "rank"}
    """Arguments of the peft config, each with the name of the setting that it takes the value of."""

    fixed: ClassVar[Mapping[str, Any]] = {}
    """Arguments of the peft config that do not depend on the settings."""

    seed_argument: ClassVar[str | None] = None
    """Argument of the peft config, if any, that takes a seed; it is drawn from the run's generator."""

    recomputed: ClassVar[tuple[str, ...]] = ()
    """Endings of the names of the frozen tensors that `inject` computes again: `Attachment.recomputed`."""

    default_targets: ClassVar[tuple[str, ...]] = ("qkv",)
    """Which layers are tuned if the settings do not say."""

    takes_maps: ClassVar[bool] = True
    """Whether peft's layer takes [batch, rows, columns, channels], as of a linear layer, too."""

    not_loadable: ClassVar[str] = ""
    """Why peft's own loader cannot give the trained model again, as the end of a sentence; empty where it can."""

    def options(self, backbone: nn.Module) -> dict[str, Any]:
        """Arguments of the peft config, seed aside. peft takes the layers to tune as a regular expression."""
        settings = {argument: getattr(self.config, setting) for argument, setting in self.arguments.items()}
        layers = "|".join(map(re.escape, self.named_layers(backbone)))
        return {"target_modules": layers, **self.fixed, **settings}

    def peft_config(self, backbone: nn.Module, seed: int) -> Any:
        """The peft config to inject."""
        import peft

        seeds = {self.seed_argument: seed} if self.seed_argument else {}
        return getattr(peft, self.peft_class)(**self.options(backbone), **seeds)

    def per_layer(self, layer: nn.Linear) -> int:
        """Number of trained parameters for one tuned layer: here those of two factors of rank r, r (in + out)."""
        return int(self.config.rank * (layer.in_features + layer.out_features))

    def resolve(self, backbone: nn.Module) -> Any:
        fields = {field.name for field in dataclasses.fields(self.config)}
        return replace(self.config, targets=self.targets(backbone)) if "targets" in fields else self.config

    def targets(self, backbone: nn.Module) -> tuple[str, ...]:
        """Which linear layers are tuned on this backbone."""
        if self.config.targets is not None:
            return tuple(self.config.targets)
        if architecture_of(backbone).attention:
            return self.default_targets
        return tuple(name for name in self.default_targets if name in MLP_LINEARS) or MLP_LINEARS

    def tuned(self, backbone: nn.Module) -> list[tuple[str, nn.Linear]]:
        """The tuned layers from input to output, with their names in `targets`."""
        return [layer for block in blocks(backbone) for layer in block_linears(block, self.targets(backbone))]

    def layers(self, backbone: nn.Module) -> list[nn.Linear]:
        """The tuned layers from input to output."""
        return [layer for _, layer in self.tuned(backbone)]

    def named_layers(self, backbone: nn.Module) -> dict[str, Any]:
        """The tuned layers by their name in the backbone."""
        tuned = set(map(id, self.layers(backbone)))
        return {name: module for name, module in backbone.named_modules() if id(module) in tuned}

    def expected_parameters(self, backbone: nn.Module) -> int:
        return sum(self.per_layer(layer) for layer in self.layers(backbone))

    def inject(self, backbone: nn.Module, config: Any, context: Context) -> Any:
        """Put the layers of a peft config into `backbone` in place; returns peft's tuner.

        The same as `peft.inject_adapter_in_model`, which refuses tuners whose layers share tensors through the tuner.
        Here the shared tensors are registered in every layer, and all that matters is that the layers are in the
        backbone. Methods that look at the training data first override this.
        """
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

        tuner = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type](backbone, config, ADAPTER)
        del backbone.peft_config  # the tuner's note to itself; the backbone stays a plain timm model
        backbone.to(next(backbone.parameters()).device)  # some tuners leave buffers on the CPU
        layers: dict[str, Any] = {n: m for n, m in backbone.named_modules() if type(m).__module__.startswith("peft.")}
        for layer in layers.values():
            layer.stateless = True  # an update of a linear layer's weight
        if not self.takes_maps:
            for layer in layers.values():
                if hasattr(layer, "base_layer"):
                    change_layer(layer, OneSequence)
        keep_choices(layers, context)
        return tuner

    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        require_served(self, backbone)
        self.expected_parameters(backbone)  # refuses settings that do not fit
        seed = int(torch.randint(2**31 - 1, (), generator=context.generator))
        context.remember("seed", lambda: seed)  # for `adapter`; what is drawn from it is kept itself
        try:
            with seeded(seed, context.device), quiet():
                tuner = self.inject(backbone, self.peft_config(backbone, seed), context)
        except MethodError:
            raise
        except ValueError as error:
            raise MethodError(f"method {self.name!r} cannot serve this backbone: {error}") from None
        backbone.train(backbone.training)  # peft's new dropout is in training mode, whatever the backbone is in
        return self.attachment(backbone, tuner, context)

    def adapter(
        self, plain: nn.Module, state: dict[str, Tensor], memory: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Tensor]]:
        """The trained update in peft's own form: the peft config, and the tensors by their names in the backbone, which
        give the trained function beside the weights of `plain`, the untouched timm model.

        `state`: the trained backbone's `state_dict()`. `memory`: what the method remembered.
        """
        return self.peft_config(plain, memory["seed"]), state

    def attachment(self, backbone: nn.Module, tuner: Any, context: Context) -> Attachment:
        """What the harness is given; methods with a penalty or a schedule override this."""
        return Attachment(
            merge=(lambda: merge_into_base(backbone)) if self.mergeable else None,
            recomputed=tuple(t for name, t in all_tensors(backbone).items() if name.endswith(self.recomputed)),
        )
