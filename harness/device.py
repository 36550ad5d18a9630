"""Devices and arithmetic precision."""

import platform
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch

from harness.errors import HarnessError


def choose(name: str) -> torch.device:
    """`auto` (CUDA if there is one, else CPU) or a torch device string."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise HarnessError(f"unknown device {name!r}: use auto, cpu, cuda or cuda:0, cuda:1, ...") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise HarnessError(f"device {name!r}: torch sees no CUDA device here")
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether the device computes faster in bf16 than in float32.

    Among CPUs these are AMD's with AVX-512 bf16, and those with AMX; with Intel's AVX-512 bf16 alone float32 is
    faster.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    can = torch.cpu.get_capabilities()
    return bool(can.get("amx_bf16") or (can.get("avx512_bf16") and "AMD" in can.get("cpu_name", "")))


def can(precision: str, device: torch.device) -> bool:
    """Whether the device computes in `bf16` or `float32` at all, fast or not."""
    if precision == "bf16" and device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return precision == "float32" or device.type == "cpu"


def precision_in_use(precision: str, device: torch.device) -> str:
    """Resolve `auto` of a recipe for this device: `bf16` or `float32`."""
    if precision == "auto":
        return "bf16" if fast_bf16(device) else "float32"
    return precision


def autocast(precision: str, device: torch.device) -> AbstractContextManager[None]:
    """Autocast for a resolved precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes with so many CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use(device: torch.device) -> None:
    """Prepare this process to compute on `device`: Triton launches on torch's current GPU, wherever its operands are,
    and products and convolutions of float32 are computed in float32, whatever a container or the user's own method has
    set."""
    torch.set_float32_matmul_precision("highest")
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        if device.index is not None:
            torch.cuda.set_device(device)


SLACK_BYTES = 1 << 30
"""GPU memory that a process may use outside torch's allocator: context, kernels, libraries' workspaces."""


def is_shared(device: torch.device) -> bool:
    """Whether other processes hold some of the device's memory; a CPU's memory is always shared."""
    if device.type != "cuda":
        return True
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device) > SLACK_BYTES


def random_states(device: torch.device) -> list[torch.Tensor]:
    """States of torch's global generators: the CPU's, and the device's where it is another."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_random_states(states: Sequence[torch.Tensor], device: torch.device) -> None:
    """Put back what `random_states` gave."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> str:
    """The device's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
