"""How cost grows: with images, channels, blocks, classes, and with the size of a plan."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.bench.base import BATCH, Measurement, Setting, peak_bytes, side_by_side
from harness.bench.ceilings import Ceilings
from harness.bench.module import STEPS, ours, pass_of, step_of
from harness.bench.selection import select
from harness.bench.training import random_split
from harness.plans.plan import Selection, choose_method, expand
from methods.blocks import blocks, plug, width
from methods.sct.method import SELECTION_BATCH
from suites import SUITES


def _line(what: str, action: Callable[[], Any], setting: Setting, repeat: int = 1) -> list[Measurement]:
    """Seconds and memory of an action."""
    rounds = max(1, setting.sizes.rounds // 4)
    taken = side_by_side({"it": action}, setting.device, rounds, repeat)["it"]
    return [
        Measurement(part="growth", what=what, unit="ms", ours=1e3 * taken),
        Measurement(part="growth", what=f"{what}, memory of tensors", unit="MB", ours=peak_bytes(action) / 1e6),
    ]


def _batches(setting: Setting, count: int, classes: int) -> list[tuple[Tensor, Tensor]]:
    data = random_split(setting.with_images(count))
    labels = torch.arange(count, device=setting.device) % classes
    images = setting.preprocessing.normalise(data.images)
    return list(zip(images.split(SELECTION_BATCH), labels.split(SELECTION_BATCH), strict=True))


def with_images_and_classes(setting: Setting) -> list[Measurement]:
    """Selection on a quarter, half and all of the images, and with 10, 100 and 1000 classes."""
    model, most = setting.model(), setting.sizes.images
    found = []
    for count in (most // 4, most // 2, most):
        batches = _batches(setting, count, 10)
        found += _line(f"selection, {count} images", partial(select, model, batches), setting)
    for classes in (100, 1000):
        batches = _batches(setting, most // 4, classes)
        what = f"selection, {most // 4} images, {classes} classes"
        found += _line(what, partial(select, model, batches, classes), setting)
    return found


def with_channels(setting: Setting) -> list[Measurement]:
    """Forward and backward of the module with 8 channels to all of them."""
    model = setting.model()
    d = width(blocks(model)[0])
    tokens = model.patch_embed.num_patches + 1
    x = torch.randn(BATCH, tokens, d, device=setting.device, requires_grad=True)
    h = torch.randn(BATCH, tokens, d, device=setting.device)
    found = []
    for count in sorted({8, d // 8, d // 2, d}):
        module = ours(torch.arange(count)).to(setting.device)
        found += _line(f"module, K={count} of {d}", pass_of(module, x, h, setting.precision), setting, STEPS)
    return found


def with_blocks(setting: Setting) -> list[Measurement]:
    """A training step with modules in the last block, the second half, and all blocks: the backward pass ends at the
    first of them."""
    depth, found = len(blocks(setting.model())), []
    for tuned in (1, depth // 2, depth):
        model = setting.model()
        for block in blocks(model)[-tuned:]:
            d = width(block)
            plug(block, "after_attention", ours(torch.arange(d // 8)))
        step = step_of(model, setting.images(BATCH), setting.precision)
        found += _line(f"training step, {tuned} of {depth} blocks", step, setting)
    return found


def _run_ids(selection: Selection) -> list[str]:
    return [spec.run_id for spec in expand(selection)]


def with_plans(setting: Setting) -> list[Measurement]:
    """Seconds to expand plans of VTAB-1K: methods times 19 tasks times seeds."""
    found, three = [], ("linear", "lora", "sct")
    for names, seeds in (three[:1], 1), (three, max(1, setting.sizes.seeds // 10)), (three, setting.sizes.seeds):
        selection = Selection(
            suite=SUITES["vtab1k"],
            tasks=(),
            methods=tuple(choose_method(name, {}) for name in names),
            seeds=tuple(range(seeds)),
            protocol="fixed",
            backbone=setting.backbone,
            preprocessing=setting.preprocessing,
        )
        what = f"plan of {len(expand(selection))} runs, run ids included"
        found += _line(what, partial(_run_ids, selection), setting)[:1]
    return found


def measure(setting: Setting, ceilings: Ceilings) -> list[Measurement]:
    """All lines of this part."""
    return [
        *with_images_and_classes(setting),
        *with_channels(setting),
        *with_blocks(setting),
        *with_plans(setting),
    ]
