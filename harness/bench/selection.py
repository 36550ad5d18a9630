"""Channel selection: time and memory beyond a plain forward pass, against keeping every activation on the host."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.bench import released
from harness.bench.base import CLASSES, Measurement, Setting, device_peak_bytes, peak_bytes, side_by_side
from harness.bench.ceilings import Ceilings
from methods.registry import get
from methods.sct.method import SCT, SELECTION_BATCH
from methods.sct.selection import Tap, feature_sums, top_channels
from methods.sct.sums import adder

Batches = list[tuple[Tensor, Tensor]]

KERNEL_IMAGES = 1024
"""Images per batch when the sums alone are timed, so that a GPU takes longer for them than the host for a launch."""


def _batches(setting: Setting, classes: int = CLASSES) -> Batches:
    images, labels = setting.images(setting.sizes.images), torch.arange(setting.sizes.images) % classes
    return list(zip(images.split(SELECTION_BATCH), labels.to(setting.device).split(SELECTION_BATCH), strict=True))


def _taps(model: Any) -> list[Tap]:
    method = get("sct").configure({})
    assert isinstance(method, SCT)
    return [site.tap for site in method.sites(model)]


def select(model: Any, batches: Batches, classes: int = CLASSES) -> list[Tensor]:
    """Our channels."""
    scores = feature_sums(model, _taps(model), batches, classes).class_aware()
    return [top_channels(score, released.channels(model)) for score in scores]


@torch.no_grad()
def plain(model: Any, batches: Batches) -> None:
    """The forward pass over the same images, and nothing else."""
    for images, _ in batches:
        model.forward_features(images)


def measure(setting: Setting, ceilings: Ceilings) -> list[Measurement]:
    """All lines of this part."""
    model, batches, device = setting.model(), _batches(setting), setting.device
    actions = {
        "ours": lambda: select(model, batches),
        "released": lambda: released.select(model, batches, released.channels(model)),
        "plain": lambda: plain(model, batches),
    }
    taken = side_by_side(actions, device, max(1, setting.sizes.rounds // 2))
    part, few = "selection", batches[: max(1, len(batches) // 4)]
    base = peak_bytes(actions["plain"])
    memory = {name: peak_bytes(actions[name]) - base for name in ("ours", "released")}
    extra = device_peak_bytes(actions["ours"], device) - device_peak_bytes(actions["plain"], device)
    quarter = peak_bytes(lambda: select(model, few)) - peak_bytes(lambda: plain(model, few))
    kept = memory["released"] / max(memory["ours"], 1)
    over = taken["ours"] / taken["plain"]
    return [
        Measurement(part=part, what="seconds", unit="s", ours=taken["ours"], other=taken["released"]),
        Measurement(
            part=part,
            what="against a plain forward pass",
            unit="s",
            ours=taken["ours"],
            other=taken["plain"],
            judged=over,
            at_most=1.1,
        ),
        Measurement(
            part=part,
            what="memory beyond the forward pass",
            unit="MB",
            ours=memory["ours"] / 1e6,
            other=memory["released"] / 1e6,
            judged=kept,
            at_least=100,
        ),
        Measurement(
            part=part, what="of that on the device", unit="MB", ours=extra / 1e6, judged=extra / 2**20, at_most=64
        ),
        Measurement(
            part=part,
            what="memory, whole set; compared: a quarter of it",
            unit="MB",
            ours=memory["ours"] / 1e6,
            other=quarter / 1e6,
        ),
        _bandwidth(setting, ceilings, model),
    ]


def _bandwidth(setting: Setting, ceilings: Ceilings, model: Any) -> Measurement:
    """Rate at which the sums alone read activations, against a copy's."""
    tap, count = _taps(model)[0], min(KERNEL_IMAGES, setting.sizes.images)
    add, dtype = adder(setting.device)
    heard: list[Tensor] = []
    handle = tap.listen(heard.append)
    plain(model, [(setting.images(count), torch.empty(0))])
    handle.remove()
    features = heard[0].flatten(1, -2)
    if setting.device.type == "cuda":
        features = features.bfloat16()
    sums = torch.zeros(CLASSES, features.shape[-1], dtype=dtype, device=setting.device)
    labels = torch.arange(count, device=setting.device) % CLASSES
    copies = [features + 0 for _ in range(3)]  # rotated, so that a cache does not hold them

    def all_sums() -> None:
        for each in copies:
            add(sums, each, labels)

    taken = side_by_side({"sums": all_sums}, setting.device, setting.sizes.rounds)["sums"] / len(copies)
    rate = features.numel() * features.element_size() / taken
    on_gpu = setting.device.type == "cuda"
    return Measurement(
        part="selection",
        what="sums alone, bytes read; compared: copy",
        unit="GB/s",
        ours=rate / 1e9,
        other=ceilings.copy / 1e9,
        judged=rate / ceilings.copy if on_gpu else None,
        at_least=0.85 if on_gpu else None,
    )
