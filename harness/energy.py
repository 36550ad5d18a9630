"""Energy that a device takes: the counters of NVIDIA's GPUs (NVML) and of a CPU's packages (RAPL), where they can be
read.

Both count all of the device or package, whoever it works for.
"""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

NVML, RAPL = "nvml", "rapl"

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the counters of RAPL."""

SAMPLE_SECONDS = 10.0
"""Time between two readings of a counter that wraps around."""

HIGHEST_WATTS = 1000.0
"""No package takes more: in a shorter time than this needs for a counter's span, it wrapped around once at most."""


class Unreadable(Exception):
    """A counter that could be read before cannot be read now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counter:
    """A counter of joules that only rises, until it wraps around."""

    source: str
    """`NVML` or `RAPL`."""

    read: Callable[[], float]
    """Joules since some moment. Raises `Unreadable`."""

    span: float = math.inf
    """Joules after which it starts from 0 again."""


def counters(device: torch.device, powercap: Path = POWERCAP) -> list[Counter]:
    """What counts a device's energy: its GPU's counter, or those of all packages of a CPU; none if one is not there or
    cannot be read."""
    try:
        found = _gpu(device) if device.type == "cuda" else _packages(powercap) if device.type == "cpu" else []
        for counter in found:
            counter.read()
    except Unreadable:
        return []
    return found


def _gpu(device: torch.device) -> list[Counter]:
    """The counter of the GPU that torch means; none without the package `nvidia-ml-py` or the driver, on a GPU older
    than Volta, and for a slice of a GPU, which has no counter of its own."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        # torch has numbered what CUDA_VISIBLE_DEVICES leaves, NVML numbers all
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    except pynvml.NVMLError:
        return []

    def read() -> float:
        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
        except pynvml.NVMLError as error:
            raise Unreadable(str(error)) from None

    return [Counter(source=NVML, read=read)]


def _packages(powercap: Path) -> list[Counter]:
    """The counters of a CPU's packages; what lies within them (cores, memory) is counted there already."""
    zones = sorted(powercap.glob("intel-rapl:*"))  # AMD's too
    packages = [zone for zone in zones if _text(zone / "name").startswith("package")]
    return [
        Counter(source=RAPL, read=partial(_joules, zone / "energy_uj"), span=_joules(zone / "max_energy_range_uj"))
        for zone in packages
    ]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:  # kernels since 5.10 let root alone read energy_uj
        raise Unreadable(str(error)) from None


def _joules(path: Path) -> float:
    try:
        return int(_text(path)) / 1e6
    except ValueError as error:
        raise Unreadable(f"{path}: {error}") from None


class Meter:
    """Adds up what counters count, from now on."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self._counters, self._lock = counters, threading.Lock()
        self.restart(0.0 if counters else None)
        if any(counter.span < math.inf for counter in counters):
            threading.Thread(target=_keep_reading, args=[weakref.ref(self)], name="energy", daemon=True).start()

    @property
    def source(self) -> str:
        """Of the counters; empty if there are none."""
        return self._counters[0].source if self._counters else ""

    def restart(self, joules: float | None) -> None:
        """Go on from so many joules, as if it had just begun; from None the sum stays unknown."""
        with self._lock:
            self._joules, self._time = joules, time.monotonic()
            try:
                self._last = [counter.read() for counter in self._counters]
            except Unreadable:
                self._joules = None

    def joules(self) -> float | None:
        """The sum until now; None if it is not known, as after a time in which a counter may have wrapped twice."""
        with self._lock:
            if self._joules is not None:
                self._joules = self._added(self._joules)
            return self._joules

    def _added(self, joules: float) -> float | None:
        """`joules` and what was counted since the last reading, which is this one from now on."""
        passed, self._time = time.monotonic() - self._time, time.monotonic()
        if any(passed * HIGHEST_WATTS >= counter.span for counter in self._counters):
            return None
        try:
            now = [counter.read() for counter in self._counters]
        except Unreadable:
            return None
        for counter, before, after in zip(self._counters, self._last, now, strict=True):
            joules += after - before if after >= before else after - before + counter.span
        self._last = now
        return joules


def _keep_reading(reference: weakref.ref[Meter]) -> None:
    """Read every now and then, for as long as somebody holds the meter."""
    while (meter := reference()) is not None:
        meter.joules()
        del meter
        time.sleep(SAMPLE_SECONDS)
