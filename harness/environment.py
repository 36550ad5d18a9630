"""What a run ran on, for its record."""

import os
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
from harness.sources import source_digest

PACKAGES = ("torch", "torchvision", "timm", "peft", "numpy", "pillow", "triton")


_SLURM = {
    "job": "SLURM_JOB_ID",
    "array_job": "SLURM_ARRAY_JOB_ID",
    "array_task": "SLURM_ARRAY_TASK_ID",
    "node": "SLURMD_NODENAME",
    "partition": "SLURM_JOB_PARTITION",
    "restarts": "SLURM_RESTART_COUNT",
}

_submitted: dict[str, Any] = {}


@cache
def code_state() -> dict[str, Any]:
    """Digest of the code; in a checkout its commit too, and whether files differ from it."""
    return {"sources": source_digest(), **_git_state()}


def _git_state() -> dict[str, Any]:
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


def slurm_job() -> dict[str, Any]:
    """The SLURM job that this process belongs to: ids, node, number of restarts; empty outside one."""
    job: dict[str, Any] = {key: os.environ[name] for key, name in _SLURM.items() if name in os.environ}
    return job | {"restarts": int(job.get("restarts", 0))} if "job" in job else {}


def submitted_with(code: dict[str, Any]) -> None:
    """Remember the code's state at submission, and look at its state now: it may change while the job runs."""
    _submitted.update(code)
    code_state()


def _submission() -> dict[str, Any]:
    if not _submitted:
        return {}
    return {"code_at_submission": dict(_submitted), "code_changed": _submitted != code_state()}


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
        **({"slurm": job} if (job := slurm_job()) else {}),
        **_submission(),
    }
