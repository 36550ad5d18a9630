"""The loss of a training step: the recipe's own, and what a method adds to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from methods.base import Attachment, Batch, MethodError

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
    """[B, classes] float32, of the first pass."""


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
        passes = 0

        def run() -> Batch:
            nonlocal passes
            passes += 1
            with recorded(self.model, self.attachment.features) as features, self.precision():
                logits = forward(inputs).float()
            return Batch(
                images=inputs,
                targets=targets,
                logits=logits,
                features=features,
                loss=lambda other: self.loss(other.float(), targets),
                forward=run,
            )

        batch = run()
        own = self.loss(batch.logits, targets)
        penalty = self.attachment.penalty
        total = own if penalty is None else own + penalty(batch)
        declared = self.attachment.forward_passes
        if passes != declared:
            raise MethodError(f"a step runs the model {passes} times, but `Attachment.forward_passes` is {declared}")
        return Losses(total=total, own=own, logits=batch.logits)


@contextmanager
def recorded(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Within, what the modules of these names give is put into the dict. Raises `MethodError` for a name that the model
    has not."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    handles = [_module(model, name).register_forward_hook(keep(name)) for name in names]
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
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    for parameter in (p for group in attachment.groups for p in group.parameters):
        if trained.pop(id(parameter), None) is None:
            shape = list(parameter.shape)
            raise MethodError(f"`Attachment.groups` holds a parameter {shape} twice, or one that is not trained")
