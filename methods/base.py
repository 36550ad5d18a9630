"""The contract between a PEFT method and the harness.

A method turns on or adds exactly the parameters that it trains; the harness owns everything else
(head, freezing, optimiser, counting, data). A method sees the training split in use, and nothing more.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

if TYPE_CHECKING:  # so that a command that trains nothing starts without waiting for torch
    import torch
    from torch import Tensor, nn


Value = TypeVar("Value")


class MethodError(ValueError):
    """A method is unknown, wrongly configured, or cannot serve a backbone. The message is for the user."""


class PluginWarning(UserWarning):
    """An installed package offers a method that cannot be used. The message names the package."""


def did_you_mean(name: str, options: Sequence[str]) -> str:
    """A sentence that names the closest options to a misspelt `name`, or lists them all."""
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    if close:
        return f"Did you mean {' or '.join(repr(c) for c in close)}?"
    return f"Known: {', '.join(sorted(options))}."


@dataclass(frozen=True, kw_only=True)
class Context:
    """What `Method.attach` may know of the run. It holds no handle on validation or test data."""

    num_classes: int
    """Number of classes of the task."""

    device: torch.device
    """Where the backbone lives."""

    generator: torch.Generator
    """CPU generator seeded from the run's seed, for every random choice a method makes."""

    total_steps: int
    """Number of optimiser steps that will follow, for methods with a schedule of their own."""

    calibration: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    """`calibration(batch_size)` yields the training split in use once, in order, without augmentation:
    images [B, 3, H, W] float32 normalised on `device`, labels [B] int64."""

    memory: dict[str, Any] = field(default_factory=dict)
    """What `remember` holds. A resumed run, and a model that is loaded, start with what it held before."""

    def remember(self, key: str, compute: Callable[[], Value]) -> Value:
        """What `compute()` gives, the first time; in a run that is resumed or loaded what it gave then, without looking
        at the data.

        Every choice made by looking at `calibration` goes through here, under a key of its own, and every random one
        that no parameter or buffer holds: tensors, numbers and texts, also in lists, tuples and dicts. All of it is
        stored with a run.
        """
        if key not in self.memory:
            self.memory[key] = compute()
        return cast(Value, self.memory[key])


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a training step gives to `Attachment.penalty`: a batch, and what the model made of it."""

    images: Tensor
    """[B, 3, H, W], normalised and augmented."""

    targets: Tensor
    """Labels [B] int64, or probabilities [B, classes] where images are mixed."""

    logits: Tensor
    """[B, classes] float32."""

    pooled: Tensor
    """[B, d], what the classifier reads."""

    features: Mapping[str, Tensor]
    """What the modules named in `Attachment.features` gave in this pass."""

    loss: Callable[[Tensor], Tensor]
    """The loss that training has without a penalty, of other logits [B, classes] for this batch: a scalar."""

    forward: Callable[[], Batch]
    """Runs the model on the images once more: the same batch with the logits and features of that pass. How often a
    step does so is declared in `Attachment.forward_passes`."""

    @property
    def labels(self) -> Tensor:
        """[B] int64; of mixed images the class with the largest share."""
        return self.targets if self.targets.ndim == 1 else self.targets.argmax(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Trained parameters with a learning rate or a weight decay of their own."""

    parameters: tuple[nn.Parameter, ...]
    """Of the method, of the backbone or of the classifier."""

    lr_factor: float = 1.0
    """What the recipe's learning rate is multiplied by, in every step."""

    weight_decay: float | None = None
    """None for what the recipe says."""


@dataclass(kw_only=True)
class Attachment:
    """What a method leaves behind on a backbone."""

    info: dict[str, Any] = field(default_factory=dict)
    """JSON-ready facts for the run's record: chosen channels, seconds of selection, ..."""

    merge: Callable[[], None] | None = None
    """Folds the trained parameters into the frozen ones, leaving logits equal; None where the maths forbids it."""

    penalty: Callable[[Batch], Tensor] | None = None
    """A scalar added to the loss of every training step, which may depend on the batch and on what the model made of
    it. With a penalty, every step computes everything."""

    features: tuple[str, ...] = ()
    """Names of modules of the model whose outputs the penalty reads, in `Batch.features`."""

    forward_passes: int = 1
    """How often a training step runs the model: once, and one more for each `Batch.forward` of the penalty."""

    groups: tuple[ParameterGroup, ...] = ()
    """Trained parameters that do not follow the recipe's learning rate or weight decay. All others do."""

    readout: str = ""
    """What the classifier reads, in a few words, where it is not what the plain backbone gives it: "mean of the
    patches", "all layers". All that is trained in front of the classifier counts as the method's; the classifier alone
    is the head."""

    head_width: int | None = None
    """Number of features that the classifier is given, where the read-out changes it: the harness then makes another
    classifier, of that width, in the place of the backbone's."""

    after_step: Callable[[int], None] | None = None
    """Called after every optimiser step with its number (from 1), while the step's gradients are still there."""

    state: Callable[[], Any] | None = None
    """What `penalty` and `after_step` carry from step to step outside parameters and buffers, as tensors and plain
    values, also in lists, tuples and dicts: a run that is stopped and resumed gives it to `load_state`."""

    load_state: Callable[[Any], None] | None = None
    """Takes back what `state` gave. Tensors lie on the device they came from."""

    recomputed: tuple[Tensor, ...] = ()
    """Frozen tensors of the model that `attach` computes from the pretrained weights, the config and what `remember`
    holds by sums, products, solving and indexing alone, so that they come out the same in another process: a run does
    not store them. What an SVD, a random draw or the data chose is kept, as a tensor of the model or through
    `remember`."""


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """Configuration of a method that has nothing to configure."""


HIGH_RATES = {"lr": (5e-3, 1e-2, 2e-2, 5e-2), "weight_decay": (1e-4, 1e-2)}
"""Search space of methods that train few or small numbers, which need higher rates than a low-rank update does."""


class _EveryFittingKind:
    """The default of `Method.serves`: looked up when it is read, so that a kind that is added is served."""

    def __get__(self, instance: object, owner: type[Method]) -> frozenset[str]:
        from methods.architectures import KINDS

        return frozenset(name for name, kind in KINDS.items() if owner.needs <= kind.offers())


class Method(ABC):
    """Base class of all methods. Subclasses set the class attributes and implement `attach`."""

    name: ClassVar[str]
    """Registered name: lower case, words joined by `_`."""

    title: ClassVar[str]
    """Name as printed in tables."""

    paper: ClassVar[str]
    """Where the method comes from: authors' short title, venue, arXiv id."""

    family: ClassVar[str]
    """One of `full`, `head`, `prompt`, `adapter`, `reparameterisation`, `selective`."""

    Config: ClassVar[type] = NoConfig
    """Frozen keyword-only dataclass of the method's knobs; it checks its values in `__post_init__`.

    All settings are part of what a run is known by. One that is added once there are records is declared as
    `name: int = field(default=1, metadata=added_with(1))`, with the value that does what the method did before: runs
    with that value keep their ids, see `added_with`."""

    recipe: ClassVar[Mapping[str, Any]] = {}
    """Fields of the training recipe (learning rate, ...) in which this method differs from the common default. How
    the rates of the methods here were chosen: `methods/README.md`."""

    search_space: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "lr": (1e-3, 2e-3, 5e-3, 1e-2),
        "weight_decay": (1e-4, 1e-2),
    }
    """Candidate values of recipe fields and of the method's own knobs, which the `tuned` protocol chooses from."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """What a kind of backbone must have: `sequence` (tokens in one sequence, of one width), `attention`."""

    serves: ClassVar[frozenset[str]] = cast(frozenset[str], _EveryFittingKind())
    """Kinds of backbone that the method can attach to, by default all that have what it `needs`; on another, `attach`
    raises `MethodError`."""

    identity_at_start: ClassVar[bool] = True
    """Whether the attached, untrained model computes the pretrained function."""

    built_from: ClassVar[tuple[str, ...]] = ()
    """Names of the other registered methods whose code this one runs, beside those that its file imports: when one of
    them is edited, records of this one come from an older source too."""

    composition_order: ClassVar[int | None] = None
    """Place among the parts of a composition (`compose`), which are attached in ascending order: below 10 what trains
    the untouched model, from 10 what looks at its features, from 20 what changes layers, from 30 what stands beside or
    after layers, 40 what wraps layers, from 50 tokens and the head. Parts of equal number exclude each other. None
    for what cannot be a part."""

    mergeable: ClassVar[bool] = False
    """Whether the trained parameters fold into the frozen ones: `attach` then returns an attachment with `merge`."""

    def __init__(self, config: Any = None) -> None:
        self.config = self.Config() if config is None else config

    @abstractmethod
    def attach(self, backbone: nn.Module, context: Context) -> Attachment:
        """Turn on or add the parameters to train.

        `backbone` is a timm model in eval mode on `context.device`, every parameter frozen, with a fresh head
        that the harness trains. Raises `MethodError` where the method cannot serve this backbone.
        """

    @abstractmethod
    def expected_parameters(self, backbone: nn.Module) -> int:
        """Closed formula for the number of trained parameters, head excluded, on this untouched timm model.

        It is computed from the shapes of the backbone's blocks, not by attaching: the conformance check compares it
        with what `attach` really turned on.
        """

    def starts_at_identity(self) -> bool:
        """Whether the attached, untrained model computes the pretrained function with these settings: override it
        where one of them makes `identity_at_start` untrue."""
        return self.identity_at_start

    def resolve(self, backbone: nn.Module) -> Any:
        """The config in which every setting that is taken from this untouched timm model has the value that is used.

        It is what a run is known by, so that one configuration has one name. Override it where a setting may be left
        open (None) or where several values come to the same on a backbone. The result attaches to the same model.
        Raises `MethodError` where a setting does not fit.
        """
        return self.config

    def can_serve(self, kind: str) -> bool:
        """Whether the method, as configured, attaches to backbones of this kind."""
        return kind in self.serves

    @classmethod
    def configure(cls, values: Mapping[str, Any]) -> Method:
        """Build the method from plain values. Raises `MethodError` naming the field that is unknown or wrong."""
        require_fields(cls.Config, values, f"method {cls.name!r} has no setting")
        try:
            return cls(cls.Config(**typed_values(cls.Config, values)))
        except (TypeError, ValueError) as error:
            raise MethodError(f"method {cls.name!r}: {error}") from None

    @classmethod
    def of_run(cls, config: Mapping[str, Any]) -> Method:
        """Build the method of a run from the config in its spec, which leaves out added settings, see `added_with`."""
        return cls.configure({**added_values(cls.Config), **config})


def check(condition: bool, field_name: str, value: object, requirement: str) -> None:
    """Raise `MethodError` that names a config field, its value and what it must be, unless `condition` holds."""
    if not condition:
        raise MethodError(f"{field_name}={value!r} must be {requirement}")


def require_fields(kind: type, names: Iterable[str], complaint: str) -> None:
    """Raise `MethodError` that begins with `complaint` and suggests a name, unless the dataclass has all the fields."""
    known = [f.name for f in dataclasses.fields(kind)]
    for name in names:
        if name not in known:
            raise MethodError(f"{complaint} {name!r}. {did_you_mean(str(name), known)}")


_hints = cache(typing.get_type_hints)
_CHECKED = (bool, int, float, str, list, dict, Mapping)


def typed_values(kind: type, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values of fields of a dataclass, each as `typed` by the field's type hint; `prefix` stands before its name in
    messages."""
    return {name: typed(f"{prefix}{name}", value, _hints(kind)[name]) for name, value in values.items()}


def typed(field_name: str, value: Any, hint: Any) -> Any:
    """`value` as a field of the type `hint` holds it: whole numbers become floats and lists tuples where these are
    asked for, and a single item is a tuple of one. Raises `MethodError` naming the field; items of lists and
    dictionaries, and types that are no plain values, are not checked."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = {typing.get_origin(option) or option: option for option in (typing.get_args(hint) if is_union else [hint])}
    if value is None and kinds.pop(types.NoneType, None):
        return None
    kinds.pop(types.NoneType, None)
    if tuple in kinds:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(typed(field_name, item, typing.get_args(kinds[tuple])[0]) for item in items)
    if float in kinds and int not in kinds and type(value) is int:
        value = float(value)
    if all(kind in _CHECKED for kind in kinds):
        fits = isinstance(value, tuple(kinds)) and (type(value) is not bool or bool in kinds)
        check(fits, field_name, value, f"of type {' or '.join(kind.__name__ for kind in kinds)}")
        check(not isinstance(value, float) or math.isfinite(value), field_name, value, "a finite number")
    return value


_ADDED = "added with"


def added_with(value: Any) -> dict[str, Any]:
    """Metadata for a dataclass field that is added once there are records: `field(default=0.0,
    metadata=added_with(0.0))`.

    While the field holds this value it is left out of what a run is known by, so that the runs of before keep their
    ids. A record without the field stands for this value: it stays as it is, even if the default changes later.
    """
    return {_ADDED: value}


def added_values(kind: type) -> dict[str, Any]:
    """The fields of a dataclass that are marked by `added_with`, with the values given there."""
    return {f.name: f.metadata[_ADDED] for f in dataclasses.fields(kind) if _ADDED in f.metadata}


def identifying(instance: Any) -> dict[str, Any]:
    """All fields of a dataclass by name, and those of dataclasses in it, without those that hold the value that they
    were added with."""
    added, values = added_values(type(instance)), {}
    for f in dataclasses.fields(instance):
        value = getattr(instance, f.name)
        if f.name not in added or value != added[f.name]:
            values[f.name] = identifying(value) if dataclasses.is_dataclass(value) else value
    return values
