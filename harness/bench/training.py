"""The trainer: its overhead over a bare loop of the same steps, and the share of the matrix rate; whether
`torch.compile` pays: a training step as it is beside the compiled one, and how long compiling takes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from harness import device as devices
from harness.bench.base import BATCH, CLASSES, Measurement, Setting, side_by_side, trained
from harness.bench.module import STEPS, add_ours
from harness.data.splits import Split
from harness.schema.spec import Recipe
from harness.training import fast_path
from harness.training.callbacks import ProgressReporter
from harness.training.cost import counted, seconds
from harness.training.fast_path import ForwardPlan
from harness.training.trainer import Trainer
from methods.base import Attachment


def random_split(setting: Setting) -> Split:
    """Decoded images of noise, on the device."""
    count, size = setting.sizes.images, setting.backbone.image_size
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
    return Split(pixels, torch.arange(count) % CLASSES).to(setting.device)


OVERHEAD_IMAGES = 512
"""Images of the one epoch that the trainer and the bare loop take turns with."""

ROUNDS_PER_ROUND = 3
"""They take this many times the usual number of turns, to see a difference of some per mille."""


def recipe(setting: Setting, **changes: Any) -> Recipe:
    """A recipe of the bench's number of epochs."""
    values = {"epochs": setting.sizes.epochs, "warmup_epochs": 0, "batch_size": BATCH, "lr": 1e-3, "drop_last": True}
    return Recipe(**(values | {"precision": setting.precision} | changes))


def bare_loop(
    setting: Setting, model: Any, data: Split, plan: ForwardPlan, batches: int | None = None
) -> Callable[[], None]:
    """The steps of an epoch as a plain PyTorch loop: no metrics, no schedule, no reports."""
    preprocessing, device = setting.preprocessing, setting.device

    def indices() -> list[Tensor]:
        order = torch.randperm(len(data)).to(device)
        return list(order[: len(data) - len(data) % BATCH].split(BATCH))[:batches]

    def fit() -> None:
        optimizer = torch.optim.AdamW(trained(model), lr=1e-3, weight_decay=1e-4)
        model.train()
        for index in indices():
            labels = data.labels[index]
            inputs = preprocessing.normalise(data.images[index]) if plan.inputs is None else plan.inputs[index]
            with devices.autocast(setting.precision, device):
                loss = cross_entropy(plan.forward(inputs).float(), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return fit


def our_trainer(setting: Setting, model: Any, data: Split, plan: ForwardPlan) -> Callable[[], None]:
    """The trainer's epoch, with a listener as the display has one."""

    def fit() -> None:
        listener = ProgressReporter(lambda progress: None)
        trainer = Trainer(model, Attachment(), data, setting.preprocessing, one_epoch(setting), 0, [listener])
        trainer.fit(plan)

    return fit


def one_epoch(setting: Setting) -> Recipe:
    """Of the trainer and the bare loop."""
    return recipe(setting, epochs=1, drop_path=0.1)


def matrix_rate(setting: Setting) -> float:
    """Operations per second of a large matrix product in the runs' precision, a multiply-add counted as two."""
    side, dtype = setting.sizes.side, torch.bfloat16 if setting.precision == "bf16" else torch.float32
    left, right = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    taken = side_by_side({"product": lambda: left @ right}, setting.device, setting.sizes.rounds, repeat=3)
    return 2 * side**3 / taken["product"]


def measure(setting: Setting) -> list[Measurement]:
    """The trainer beside bare loops."""
    data = random_split(setting.with_images(min(OVERHEAD_IMAGES, setting.sizes.images)))
    model = add_ours(setting.model(drop_path=0.1))  # the same tensors for both: where they lie in memory matters too
    plain = ForwardPlan(forward=model)
    shortest = fast_path.open_plan(
        model, Attachment(), data.images, setting.preprocessing, one_epoch(setting), setting.precision
    )
    with shortest as plan:
        actions = {"bare": bare_loop(setting, model, data, plan), "ours": our_trainer(setting, model, data, plan)}
        taken = side_by_side(actions, setting.device, ROUNDS_PER_ROUND * setting.sizes.rounds)
        step = counted(bare_loop(setting, model, data, plan, batches=1))
    whole = side_by_side({"plain": bare_loop(setting, model, data, plain)}, setting.device, setting.sizes.rounds)
    rate = step / BATCH * (len(data) - len(data) % BATCH) / taken["ours"]
    overhead = 100 * (taken["ours"] / taken["bare"] - 1)
    limit, on_gpu = matrix_rate(setting), setting.device.type == "cuda"
    line = partial(Measurement, part="training", unit="s", ours=taken["ours"])
    return [
        line(
            what="trainer; compared: a bare loop of the same steps; judged: overhead in per cent",
            other=taken["bare"],
            judged=overhead,
            at_most=3.0,
        ),
        line(what="trainer; compared: a bare loop of steps that leave nothing out", other=whole["plain"]),
        line(
            what="operations done; compared: matrix rate",
            unit="GFLOP/s",
            ours=rate / 1e9,
            other=limit / 1e9,
            judged=rate / limit if on_gpu else None,
            at_least=0.45 if on_gpu else None,
        ),
    ]


MODES = {"cpu": ("default",), "cuda": ("default", "reduce-overhead")}
"""By type of device; `reduce-overhead` means CUDA graphs."""


def has_compiler(device: torch.device) -> bool:
    """Whether there is what `torch.compile` needs: on a CPU a C++ compiler."""
    return device.type == "cuda" or shutil.which(os.environ.get("CXX", "g++")) is not None


def step_of(
    model: Any, images: Tensor, precision: str, forward: Callable[[Tensor], Tensor] | None = None
) -> Callable[[], None]:
    """A training step on fixed images: forward (the model's own if none is given), backward, update."""
    forward = model if forward is None else forward
    optimizer = torch.optim.AdamW(trained(model), lr=1e-4, fused=True)
    labels = torch.arange(len(images), device=images.device) % CLASSES
    model.train()

    def once() -> None:
        with devices.autocast(precision, images.device):
            loss = cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return once


def measure_compiling(setting: Setting) -> list[Measurement]:
    """The compiled step beside the plain one; nothing where nothing can be compiled."""
    if not has_compiler(setting.device):
        return []
    return [line for mode in MODES[setting.device.type] for line in _compiled(setting, mode)]


def _compiled(setting: Setting, mode: str) -> list[Measurement]:
    model, images = add_ours(setting.model(drop_path=0.1)), setting.images(BATCH)
    torch.compiler.reset()
    actions = {
        "plain": step_of(model, images, setting.precision),
        "compiled": step_of(model, images, setting.precision, torch.compile(model, mode=mode)),
    }
    compiling = seconds(actions["compiled"], setting.device)
    taken = side_by_side(actions, setting.device, setting.sizes.rounds, STEPS)
    line = partial(Measurement, part="compiling")
    what, step, plain = f"training step, mode {mode}; compared: as it is", 1e3 * taken["compiled"], 1e3 * taken["plain"]
    return [
        line(what=what, unit="ms", ours=step, other=plain),
        line(what=f"first step, mode {mode}", unit="s", ours=compiling),
    ]
