"""A backbone with its method attached: built from a spec, or put back as a stopped run left it."""

import time
from typing import Any

import torch
from torch import Tensor

from harness import device as devices
from harness.data.splits import Split
from harness.models import backbones
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import RunSpec
from harness.training.callbacks import Callback
from harness.training.cost import count_parameters, trained_state
from harness.training.trainer import derived_seed, total_steps
from methods import registry
from methods.base import Attachment, Context


class AttachedModel(Callback):
    """A model with its method attached, ready to train; as a callback its state is kept with the training's.

    `memory`: what the method computed from the data in an earlier process, see `methods.base.Context.memory`.
    """

    name = "model"

    def __init__(
        self,
        spec: RunSpec,
        data: Split,
        num_classes: int,
        preprocessing: Preprocessing,
        memory: dict[str, Any] | None = None,
    ) -> None:
        device = data.labels.device
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
            total_steps=total_steps(len(data), spec.recipe),
            calibration=lambda size: ((preprocessing.normalise(x), y) for x, y in data.batches(size, device)),
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

    def state_dict(self) -> dict[str, Any]:
        """All that the pretrained checkpoint and `attach` would not give again: trained parameters, what the method
        added or changed among the frozen ones, and what it computed from the data."""
        own = self.attachment
        return {
            "tensors": self._own,
            "memory": self.memory,
            "info": own.info,
            "attach_seconds": self.attach_seconds,
            "attachment": own.state() if own.state else None,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; its `memory` is given to the constructor."""
        tensors = _tensors(self.model)
        for name, tensor in state["tensors"].items():
            tensors[name].copy_(tensor)
        self.attachment.info, self.attach_seconds = state["info"], state["attach_seconds"]
        if self.attachment.load_state:
            self.attachment.load_state(state["attachment"])


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
