"""What a run ran on, for its record."""

from __future__ import annotations

import platform
import socket
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from harness import device as devices

PACKAGES = ("torch", "torchvision", "timm", "peft", "numpy", "pillow", "triton")


@cache
def code_state() -> dict[str, Any]:
    """Commit of the harness's checkout and whether files differ from it; empty outside a checkout."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True).stdout

    try:
        dirty = git("status", "--porcelain", "--untracked-files=no", "--", ":/*.py")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(dirty)}
    except (OSError, subprocess.CalledProcessError):
        return {}


@cache
def packages() -> dict[str, str]:
    """Versions of the packages that decide results."""
    installed = {d.metadata["Name"].lower(): d.version for d in metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def describe(device: torch.device, precision: str) -> dict[str, Any]:
    """JSON-ready description of this machine, its software and the present time."""
    return {
        "device": devices.describe(device),
        "device_type": device.type,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "packages": packages(),
        "code": code_state(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
