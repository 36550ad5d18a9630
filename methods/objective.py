"""The loss of a training step: the recipe's own, and what a method adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.base import Attachment, Batch, MethodError

POOLED = ""
"""Under which the features that the classifier reads are recorded: no module has this name but the model itself."""

Forward = Callable[[Tensor], Tensor]
"""From what a step starts with (images, or cached features) to logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """What a step is about, all on the device."""

    total: Tensor
    """What is differentiated."""

    own: Tensor
    """The recipe's loss alone, without the method's penalty."""

    logits: Tensor
    """[B, classes], of the first pass, in float32 or in double precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """Computes the loss of a batch for a model with a method on it."""

    model: Any
    attachment: Attachment
    loss: Callable[[Tensor, Tensor], Tensor]
    """The recipe's loss, from logits and targets."""

    precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Within it the model is run."""

    def __call__(self, forward: Forward, inputs: Tensor, targets: Tensor) -> Losses:
        """The loss of one batch. Raises `MethodError` if the penalty runs the model more or less often than is
        declared."""
        if self.attachment.penalty is None:
            logits = self._logits(forward, inputs)
            own = self.loss(logits, targets)
            return Losses(total=own, own=own, logits=logits)
        passes: list[Batch] = []
        batch = self.batch(forward, inputs, targets, passes.append)
        own = self.loss(batch.logits, targets)
        total = own + self.attachment.penalty(batch)
        declared = self.attachment.forward_passes
        if len(passes) != declared:
            raise MethodError(f"a step runs the model {len(passes)} times, `Attachment.forward_passes` says {declared}")
        return Losses(total=total, own=own, logits=batch.logits)

    def batch(
        self, forward: Forward, inputs: Tensor, targets: Tensor, heard: Callable[[Batch], None] = lambda _: None
    ) -> Batch:
        """What the penalty is given, after one pass; `heard` is told of each pass."""

        def run() -> Batch:
            with recorded(self.model, self.attachment.features) as features:
                logits = self._logits(forward, inputs)
            batch = Batch(
                images=inputs,
                targets=targets,
                logits=logits,
                pooled=features.pop(POOLED),
                features=features,
                loss=lambda other: self.loss(_single(other), targets),
                forward=run,
            )
            heard(batch)
            return batch

        return run()

    def _logits(self, forward: Forward, inputs: Tensor) -> Tensor:
        with self.precision():
            return _single(forward(inputs))


def _single(logits: Tensor) -> Tensor:
    """In float32, or in double precision if they are."""
    return logits if logits.dtype == torch.float64 else logits.float()


@contextmanager
def recorded(model: Any, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within, what the modules of these names give is put into the dict, and what the classifier reads under `POOLED`.
    Raises `MethodError` for a name that the model has not."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    def keep_pooled(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[POOLED] = inputs[0]

    handles = [_module(model, name).register_forward_hook(keep(name)) for name in names]
    handles.append(model.get_classifier().register_forward_pre_hook(keep_pooled))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise MethodError(f"`Attachment.features` names {name!r}, but the model has no module of that name") from None


def require_sound(model: nn.Module, attachment: Attachment) -> None:
    """Raise `MethodError` where what an attachment says of the model does not hold: names of features, and parameter
    groups, which hold trained parameters, none of them twice. The classifier must be trainable already."""
    for name in attachment.features:
        _module(model, name)
    if attachment.penalty is None and (attachment.features or attachment.forward_passes != 1):
        raise MethodError("`Attachment.features` and `forward_passes` are the penalty's, and there is none")
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for parameter in (p for group in attachment.groups for p in group.parameters):
        if trained.pop(id(parameter), None) is None:
            shape = list(parameter.shape)
            raise MethodError(f"`Attachment.groups` holds a parameter {shape} twice, or one that is not trained")
