"""Features computed once, for trainings in which nothing but the head changes.

Whether that is exact is asked of the model, not of the method's name: every trained parameter must lie behind the
pooled features, pictures must not be augmented, and a forward pass in training mode must draw no random number, give
the features of evaluation mode bit for bit, and end as these features do when they are passed on by hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from harness import device as devices


def tail(model: Any) -> nn.Sequential:
    """What pooled features [B, d] pass on their way to the logits: the head's dropout, into which methods may have put
    layers of their own, and the classifier. It shares the model's modules."""
    owner, name = (model.head, "drop") if hasattr(model.head, "drop") else (model, "head_drop")
    return nn.Sequential(getattr(owner, name), model.get_classifier())


@contextmanager
def _listening(module: nn.Module) -> Iterator[list[Tensor]]:
    """The inputs that a module is called with."""
    heard: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    try:
        yield heard
    finally:
        handle.remove()


def _generators(device: torch.device) -> list[Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@torch.no_grad()
def are_fixed(model: Any, images: Tensor, precision: str) -> bool:
    """Whether the pooled features of these images [B, 3, H, W] are the same in every step of a training to come.

    Leaves the random generators and the model's mode as they were.
    """
    last = tail(model)
    behind = {id(p) for p in last.parameters()}
    if any(p.requires_grad and id(p) not in behind for p in model.parameters()):
        return False
    was_training, gpus = model.training, [images.device] if images.is_cuda else []
    with torch.random.fork_rng(gpus), devices.autocast(precision, images.device), _listening(last[0]) as heard:
        before = _generators(images.device)
        logits = model.train()(images)
        unmoved = all(map(torch.equal, before, _generators(images.device)))
        model.eval()(images)
        same = len(heard) == 2 and torch.equal(*heard) and torch.equal(last(heard[0]), logits)
    model.train(was_training)
    return unmoved and same


@torch.no_grad()
def pooled(model: Any, batches: Iterator[Tensor], precision: str) -> Tensor:
    """Pooled features [N, d] of all images, given in batches [B, 3, H, W] in order."""
    was_training, found = model.training, []
    model.eval()
    with _listening(tail(model)[0]) as heard:
        for images in batches:
            with devices.autocast(precision, images.device):
                model(images)
            found.append(heard.pop().clone())  # a view would keep all tokens in memory
    model.train(was_training)
    return torch.cat(found)
