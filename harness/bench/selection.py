"""Channel selection: time and memory beyond a plain forward pass, against keeping every activation on the host."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.bench import released
from harness.bench.base import CLASSES, Measurement, Setting, peak_bytes, side_by_side
from methods.registry import get
from methods.sct.method import SCT, SELECTION_BATCH
from methods.sct.selection import feature_sums, top_channels

Batches = list[tuple[Tensor, Tensor]]


def _batches(setting: Setting) -> Batches:
    images, labels = setting.images(setting.sizes.images), torch.arange(setting.sizes.images) % CLASSES
    return list(zip(images.split(SELECTION_BATCH), labels.to(setting.device).split(SELECTION_BATCH), strict=True))


def select(model: Any, batches: Batches, classes: int = CLASSES) -> list[Tensor]:
    """Our channels."""
    method = get("sct").configure({})
    assert isinstance(method, SCT)
    taps = [site.tap for site in method.sites(model)]
    scores = feature_sums(model, taps, batches, classes).class_aware()
    return [top_channels(score, released.channels(model)) for score in scores]


@torch.no_grad()
def plain(model: Any, batches: Batches) -> None:
    """The forward pass over the same images, and nothing else."""
    for images, _ in batches:
        model.forward_features(images)


def measure(setting: Setting) -> list[Measurement]:
    """All lines of this part."""
    model, batches = setting.model(), _batches(setting)
    actions = {
        "ours": lambda: select(model, batches),
        "released": lambda: released.select(model, batches, released.channels(model)),
        "plain": lambda: plain(model, batches),
    }
    taken = side_by_side(actions, setting.device, max(1, setting.sizes.rounds // 2))
    base = peak_bytes(actions["plain"])
    memory = {name: peak_bytes(actions[name]) - base for name in ("ours", "released")}
    line = partial(Measurement, part="selection", ours=taken["ours"])
    over = taken["ours"] / taken["plain"]
    fewer = memory["released"] / max(memory["ours"], 1)
    return [
        line(what="seconds", unit="s", other=taken["released"]),
        line(what="against a plain forward pass", unit="s", other=taken["plain"], judged=over, at_most=1.1),
        line(
            what="memory beyond the forward pass",
            unit="MB",
            ours=memory["ours"] / 1e6,
            other=memory["released"] / 1e6,
            judged=fewer,
            at_least=100,
        ),
    ]
