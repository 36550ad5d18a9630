"""What a run costs: parameters by role, floating-point operations, time, bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from harness.preprocessing import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Numbers of parameters by role."""

    method: int
    """Trained parameters that the method added."""

    backbone_trained: int
    """Pretrained parameters that the method trains."""

    head: int
    """Trained parameters of the head, which the harness owns."""

    total: int
    """All parameters of the model that ran."""

    @property
    def trained_without_head(self) -> int:
        """What papers print."""
        return self.method + self.backbone_trained

    @property
    def trained_with_head(self) -> int:
        """All that the optimiser moves."""
        return self.method + self.backbone_trained + self.head


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Measured cost of a run."""

    forward_flops: int
    """Operations of one image's forward pass in inference, by torch's counter: a multiply-add counts as two."""

    attach_seconds: float
    """Time of the method's `attach`, channel selection included."""

    train_seconds: float
    train_images_per_second: float
    evaluate_seconds: float
    trained_bytes: int
    """Size of what must be stored for the task: trained parameters and the method's buffers, head included."""

    peak_memory_bytes: int | None
    """Peak of the device's allocator during training; None on CPU, where the process is shared."""


def count_parameters(model: nn.Module, pretrained: set[int], head: set[int]) -> Parameters:
    """Count by role. `pretrained`, `head`: ids of the parameters that were there before `attach`."""
    method = backbone = in_head = total = 0
    for parameter in model.parameters():
        size, key = parameter.numel(), id(parameter)
        total += size
        if not parameter.requires_grad:
            continue
        if key in head:
            in_head += size
        elif key in pretrained:
            backbone += size
        else:
            method += size
    return Parameters(method=method, backbone_trained=backbone, head=in_head, total=total)


def trained_state(model: nn.Module, frozen_buffers: set[str]) -> dict[str, Tensor]:
    """What a task needs beside the pretrained checkpoint: trained parameters, and buffers that the method added."""
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return state | {name: b for name, b in model.named_buffers() if name not in frozen_buffers}


def state_bytes(state: dict[str, Tensor]) -> int:
    """Bytes of the tensors."""
    return sum(t.numel() * t.element_size() for t in state.values())


def forward_flops(model: nn.Module, preprocessing: Preprocessing) -> int:
    """Operations of a forward pass over one image. torch's counter needs gradients to be enabled."""
    size, device = preprocessing.image_size, next(model.parameters()).device
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device=device))
    return int(counter.get_total_flops())
