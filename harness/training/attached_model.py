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
from methods.kept import all_tensors, checksums, kept_tensors


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
        untouched = checksums(self.model)
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
        self._own = kept_tensors(self.model, untouched, self.attachment)

    def trained_state(self) -> dict[str, Tensor]:
        """What must be stored beside the pretrained checkpoint."""
        return trained_state(self.model, self._buffers)

    def state_dict(self) -> dict[str, Any]:
        """All that the pretrained checkpoint and `attach` would not give again, whatever the seed: trained parameters,
        what the method added or changed among the frozen ones, and what it remembers."""
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
        tensors = all_tensors(self.model)
        for name, tensor in state["tensors"].items():
            tensors[name].copy_(tensor)
        self.attachment.info, self.attach_seconds = state["info"], state["attach_seconds"]
        if self.attachment.load_state:
            self.attachment.load_state(state["attachment"])
