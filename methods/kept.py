"""Which tensors of a model a run keeps: those that the pretrained checkpoint and `attach` would not give again."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from methods.base import Attachment


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def checksums(model: nn.Module) -> dict[int, int]:
    """Sum of the bits of every parameter and buffer, by its id: it tells which frozen ones `attach` changed without a
    copy of the backbone, with one transfer from the device."""
    tensors = list(all_tensors(model).values())
    return dict(zip(map(id, tensors), torch.stack([_bits(t.detach()) for t in tensors]).tolist(), strict=True))


def kept_tensors(model: nn.Module, untouched: Mapping[int, int], attachment: Attachment) -> dict[str, Tensor]:
    """What is stored beside the pretrained checkpoint and `Context.memory`, by name: trained tensors, and frozen ones
    that `attach` added or changed, unless it computes them again (`Attachment.recomputed`).

    `untouched`: the model's checksums before `attach`.
    """
    now, recomputed = checksums(model), set(map(id, attachment.recomputed))
    return {
        name: tensor
        for name, tensor in all_tensors(model).items()
        if tensor.requires_grad or (id(tensor) not in recomputed and untouched.get(id(tensor)) != now[id(tensor)])
    }


def _bits(tensor: Tensor) -> Tensor:
    flat = tensor.contiguous().view(-1)
    return flat.view(torch.int32 if tensor.element_size() % 4 == 0 else torch.uint8).sum(dtype=torch.int64)
