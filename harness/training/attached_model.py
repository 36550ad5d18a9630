"""A backbone with its method attached: built from a spec, or put back as a stopped run left it."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness import device as devices
from harness.models import backbones
from harness.schema.spec import RunSpec
from harness.training.callbacks import Callback
from harness.training.cost import count_parameters, trained_state
from harness.training.trainer import derived_seed
from methods import registry
from methods.base import Attachment, Context

Calibration = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""See `methods.base.Context.calibration`."""


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
        torch.manual_seed(derived_seed(spec.seed, "model"))
        self.model: Any = backbones.build(spec.backbone, num_classes, spec.recipe.drop_path).to(device)
        head = self.model.get_classifier()
        self._head = {id(p) for p in head.parameters()}
        self._pretrained = {id(p) for p in self.model.parameters()} - self._head
        self._buffers = {name for name, _ in self.model.named_buffers()}
        untouched = _checksums(self.model)
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
        head.requires_grad_(True)
        self.parameters = count_parameters(self.model, self._pretrained, self._head)
        checksums = _checksums(self.model)
        self._own = {
            name: tensor
            for name, tensor in _tensors(self.model).items()
            if tensor.requires_grad or untouched.get(id(tensor)) != checksums[id(tensor)]
        }

    def trained_state(self) -> dict[str, Tensor]:
        """What must be stored beside the pretrained checkpoint."""
        return trained_state(self.model, self._buffers)

    def kept(self) -> dict[str, Any]:
        """All that the pretrained checkpoint and `attach` would not give again: trained parameters, what the method
        added or changed among the frozen ones, and what it computed from the data."""
        state = self.attachment.state
        return {"tensors": self._own, "memory": self.memory, "attachment": state() if state else None}

    @torch.no_grad()
    def restore(self, kept: dict[str, Any]) -> None:
        """Put back what `kept` gave; its `memory` is given to the constructor."""
        tensors = _tensors(self.model)
        for name, tensor in kept["tensors"].items():
            tensors[name].copy_(tensor)
        if self.attachment.load_state:
            self.attachment.load_state(kept["attachment"])

    def state_dict(self) -> dict[str, Any]:
        return {**self.kept(), "info": self.attachment.info, "attach_seconds": self.attach_seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.restore(state)
        self.attachment.info, self.attach_seconds = state["info"], state["attach_seconds"]


def _tensors(model: Any) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _checksums(model: Any) -> dict[int, int]:
    """Sum of the bits of every parameter and buffer, by its id: it tells which frozen ones `attach` changed without a
    copy of the backbone, with one transfer from the device."""
    tensors = list(_tensors(model).values())
    return dict(zip(map(id, tensors), torch.stack([_bits(t.detach()) for t in tensors]).tolist(), strict=True))


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    return flat.view(torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64)
