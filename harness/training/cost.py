"""What a run costs: parameters by role, floating-point operations, time, bytes."""

import hashlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from harness import device as devices
from harness import energy
from harness.schema.preprocessing import Preprocessing
from harness.schema.record import Parameters
from harness.training.callbacks import Callback
from harness.training.fast_path import preserved_state
from methods.base import Attachment
from methods.objective import Objective

LATENCY_BATCHES = (1, 64)
LATENCY_SECONDS, LATENCY_PASSES = 0.1, 20
"""Time and number of passes that a latency is measured over at most."""


def count_parameters(model: nn.Module, pretrained: set[int], head: set[int]) -> Parameters:
    """Count by role. `pretrained`, `head`: ids of the parameters that existed before `attach`."""
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


def state_digest(state: dict[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bits of the tensors."""
    sha = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _one_image(model: nn.Module, preprocessing: Preprocessing) -> Tensor:
    size, device = preprocessing.image_size, next(model.parameters()).device
    logits: Tensor = model(torch.zeros(1, 3, size, size, device=device))
    return logits


def counted(action: Callable[[], Any]) -> int:
    """Operations of an action: a multiply-add counts as two.

    torch's counter, which sees our kernels by the formulas registered beside them. It needs gradients to be enabled.
    """
    with FlopCounterMode(display=False) as counter:
        action()
    return int(counter.get_total_flops())


def forward_flops(model: nn.Module, preprocessing: Preprocessing) -> int:
    """Operations of a forward pass over one image."""
    return counted(partial(_one_image, model, preprocessing))


def operations(model: nn.Module, attachment: Attachment, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """Operations of one image: of a forward pass in evaluation mode, a mean over these normalised images, which may
    differ where a method leaves tokens out; and of a training step with the first of them, down to the first trained
    parameter, with all forward passes and the penalty. Leaves buffers and random generators as they were."""
    model.eval()
    forward = [counted(partial(model, image)) for image in images.split(1)]
    objective = Objective(model=model, attachment=attachment, loss=cross_entropy)
    with preserved_state(model, images.device):
        model.train()
        for module in model.modules():
            if isinstance(module, _BatchNorm):  # it takes no batch of one feature vector
                module.eval()
        training = counted(lambda: objective(model, images[:1], labels[:1]).total.backward())
    model.eval().zero_grad(set_to_none=True)
    return round(fmean(forward)), training


class PeakMemory:
    """High-water marks of memory, from now on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        try:
            Path("/proc/self/clear_refs").write_text("5")  # Linux: resets VmHWM
            self.resets = True
        except OSError:
            self.resets = False

    def allocated(self) -> int | None:
        """Bytes of the device's allocator; None on CPU."""
        return torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else None

    def resident(self) -> int | None:
        """Bytes of this process in memory; None where the mark could not be reset."""
        return resident_peak() if self.resets else None


def resident_peak() -> int | None:
    """Most bytes that this process had in memory since it began or the mark was reset; None where the system does not
    say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), None)


class EnergyMeter(Callback):
    """Joules of a run from now on; as a callback it goes on from the sum that was saved with the training's state, if
    the same kind of counter gave it."""

    name = "energy"

    def __init__(self, device: torch.device) -> None:
        self._meter = energy.Meter(energy.counters(device))

    def fields(self) -> dict[str, Any]:
        """Fields of `Cost`: the sum until now."""
        joules = self._meter.joules()
        return {"energy_joules": joules, "energy_source": "" if joules is None else self._meter.source}

    def state_dict(self) -> dict[str, Any]:
        return self.fields()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        same = state["energy_source"] == self._meter.source
        self._meter.restart(state["energy_joules"] if same else None)


def seconds(action: Callable[[], Any], device: torch.device, repeat: int = 1) -> float:
    """Time of one action, the device's part included; of several in a row, the mean."""
    devices.synchronize(device)
    start = time.perf_counter()
    for _ in range(repeat):
        action()
    devices.synchronize(device)
    return (time.perf_counter() - start) / repeat


def typical_seconds(action: Callable[[], Any], device: torch.device) -> float:
    """Median time of an action after a warm-up, over `LATENCY_SECONDS` or `LATENCY_PASSES`.

    On a CPU an action that takes longer is timed once: it would gain little from a warm-up.
    """
    first = seconds(action, device)
    if first > LATENCY_SECONDS and device.type == "cpu":
        return first
    taken = [seconds(action, device)]
    while sum(taken) < LATENCY_SECONDS and len(taken) < LATENCY_PASSES:
        taken.append(seconds(action, device))
    return median(taken)


@torch.inference_mode()
def latencies(model: nn.Module, images: Tensor, precision: str) -> dict[str, float]:
    """Seconds of a forward pass of as many of these normalised images, again and again, by number of images."""
    device = images.device
    model.eval()
    seconds = {}
    for count in LATENCY_BATCHES:
        batch = images[torch.arange(count, device=device) % len(images)]
        with devices.autocast(precision, device):
            seconds[str(count)] = typical_seconds(partial(model, batch), device)
    return seconds


def of_inference(
    model: nn.Module, attachment: Attachment, images: Tensor, labels: Tensor, precision: str
) -> dict[str, Any]:
    """Fields of `Cost` that are measured last, on these normalised images: operations and latencies. The model is
    merged."""
    forward, training = operations(model, attachment, images, labels)
    plain = latencies(model, images, precision)
    merged = {}
    if attachment.merge is not None:
        attachment.merge()
        merged = latencies(model, images, precision)
    return {
        "forward_flops": forward,
        "training_flops": training,
        "latency_seconds": plain,
        "merged_latency_seconds": merged,
    }
