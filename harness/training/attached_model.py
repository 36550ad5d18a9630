"""A backbone with its method attached: built from a spec, or put back as a stopped run left it."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness import device as devices
from harness.errors import HarnessError
from harness.models import backbones
from harness.schema.spec import RunSpec
from harness.training.callbacks import Callback
from harness.training.cost import count_parameters, state_digest, trained_state
from harness.training.trainer import derived_seed
from methods import registry
from methods.base import Attachment, Context
from methods.blocks import replace_classifier
from methods.kept import all_tensors, checksums, kept_tensors
from methods.objective import require_sound

Calibration = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""See `methods.base.Context.calibration`."""


def untouched(spec: RunSpec, num_classes: int) -> Any:
    """A run's backbone with its fresh head, and its random weights if it has those, before the method is attached. Sets
    torch's seed."""
    torch.manual_seed(derived_seed(spec.seed, "model"))
    return backbones.build(spec.backbone, num_classes, spec.recipe.drop_path)


def _declared(attachment: Attachment) -> dict[str, Any]:
    """What an attachment says of a step and of the head, for the record's `info`, where it is not what all do."""
    read = {"readout": attachment.readout} if attachment.readout else {}
    passes = attachment.forward_passes
    return read | ({"forward_passes": passes} if passes > 1 else {})


class AttachedModel(Callback):
    """A model with its method attached, ready to train; as a callback its state is kept with the training's.

    `total_steps`, `calibration`, `memory`: see `methods.base.Context`; `memory` is what the method computed from the
    data in an earlier process.
    """

    name = "model"

    def __init__(
        self,
        spec: RunSpec,
        num_classes: int,
        *,
        device: torch.device,
        total_steps: int,
        calibration: Calibration,
        memory: dict[str, Any] | None = None,
    ) -> None:
        self.spec, self.num_classes, self.total_steps = spec, num_classes, total_steps
        self.model: Any = untouched(spec, num_classes).to(device)
        self._head = {id(p) for p in self.model.get_classifier().parameters()}
        self._pretrained = {id(p) for p in self.model.parameters()} - self._head
        self._buffers = {name for name, _ in self.model.named_buffers()}
        before = checksums(self.model)
        self.memory: dict[str, Any] = {} if memory is None else memory
        context = Context(
            num_classes=num_classes,
            device=device,
            generator=torch.Generator().manual_seed(derived_seed(spec.seed, "method")),
            total_steps=total_steps,
            calibration=calibration,
            memory=self.memory,
        )
        start = time.perf_counter()
        method = registry.get(spec.method).of_run(spec.config)
        self.attachment: Attachment = method.attach(self.model, context)
        devices.synchronize(device)
        self.attach_seconds = time.perf_counter() - start
        if (features := self.attachment.head_width) is not None:
            generator = torch.Generator().manual_seed(derived_seed(spec.seed, "head"))
            self._head = {id(p) for p in replace_classifier(self.model, features, generator).parameters()}
        self.model.get_classifier().requires_grad_(True)
        require_sound(self.model, self.attachment)
        self.attachment.info |= _declared(self.attachment)
        self.parameters = count_parameters(self.model, self._pretrained, self._head)
        self._own = kept_tensors(self.model, before, self.attachment)

    def trained_state(self) -> dict[str, Tensor]:
        """What must be stored beside the pretrained checkpoint."""
        return trained_state(self.model, self._buffers)

    def frozen_digest(self) -> str:
        """sha256 over what `kept` leaves to the backbone's checkpoint."""
        recomputed = set(map(id, self.attachment.recomputed))
        rest = {name: tensor for name, tensor in all_tensors(self.model).items() if name not in self._own}
        return state_digest({name: tensor for name, tensor in rest.items() if id(tensor) not in recomputed})

    def kept(self) -> dict[str, Any]:
        """All that the pretrained checkpoint and `attach` would not give again, whatever the seed: trained parameters,
        what the method added or changed among the frozen ones, and what it remembers."""
        state = self.attachment.state
        return {"tensors": self._own, "memory": self.memory, "attachment": state() if state else None}

    @torch.no_grad()
    def restore(self, kept: dict[str, Any]) -> None:
        """Put back what `kept` gave; its `memory` is given to the constructor. `HarnessError` if names or shapes are
        not those of this model."""
        tensors, given = all_tensors(self.model), kept["tensors"]
        wrong = [name for name in given if name not in tensors or tensors[name].shape != given[name].shape]
        if wrong := [*wrong, *(self._own.keys() - given.keys())]:
            raise HarnessError(f"kept tensors are not those of the model: {', '.join(sorted(wrong))}")
        for name, tensor in given.items():
            tensors[name].copy_(tensor)
        if self.attachment.load_state:
            self.attachment.load_state(kept["attachment"])

    def state_dict(self) -> dict[str, Any]:
        return {**self.kept(), "info": self.attachment.info, "attach_seconds": self.attach_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(state)
        self.attachment.info, self.attach_seconds = state["info"], state["attach_seconds"]
