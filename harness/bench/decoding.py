"""Epochs of a small model: images decoded once into an array, against decoding in every epoch as the release does."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from harness.bench import released
from harness.bench.base import BATCH, Measurement, Setting, seconds, side_by_side, trained
from harness.bench.whole import decoded, write_images
from harness.data.splits import Split
from harness.schema.spec import BackboneSpec

SMALL = BackboneSpec(name="test_vit", weights="random", digest="", image_size=64)
"""A ViT of 0.4 M parameters: what remains of an epoch is mostly its data."""


def measure(setting: Setting) -> list[Measurement]:
    """Seconds of an epoch both ways, side by side, and the rate at which the array is made."""
    small, device = replace(setting, backbone=SMALL), setting.device
    model = small.model()
    optimizer = torch.optim.AdamW(trained(model), lr=1e-3)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "images"
        entries = write_images(folder, setting.sizes.images, seed=0)
        kept: list[Split] = []
        once = seconds(lambda: kept.append(decoded(small, folder, entries).to(device)), device)
        images = released.Images(folder, entries, small.preprocessing)

        def from_array() -> Iterator[tuple[Tensor, Tensor]]:
            order = torch.randperm(len(entries))[: len(entries) // BATCH * BATCH].to(device)
            for index in order.split(BATCH):
                yield small.preprocessing.normalise(kept[0].images[index]), kept[0].labels[index]

        taken = side_by_side(
            {
                "ours": lambda: released.train_epoch(model, optimizer, from_array(), device),
                "theirs": lambda: released.train_epoch(model, optimizer, released.loader(images, True), device),
            },
            device,
            setting.sizes.rounds,
        )
    line, (ours, theirs) = partial(Measurement, part="decoding"), (taken["ours"], taken["theirs"])
    return [
        line(what="epoch of a small model", unit="s", ours=ours, other=theirs, judged=theirs / ours, at_least=5.0),
        line(what="decoding once", unit="images/s", ours=len(entries) / once),
    ]
