"""Reading profiles: from flags, a YAML file, or both. What is wrong in a file is named with its line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.errors import HarnessError
from slurm import schedulers
from slurm.profile import Profile
from suites.yaml_lines import YamlFile

KEYS = tuple(f.name for f in dataclasses.fields(Profile))

TEXTS = ("scheduler", "time", "partition", "account", "qos", "constraint", "report_partition")
"""Keys whose values are read as they stand: 4:00:00 is no number in base 60, and an account may be called 0042."""

_TYPES: dict[str, Any] = {
    **dict.fromkeys((*TEXTS, "mem"), (str,)),
    **dict.fromkeys(("gpus", "cpus", "parallel", "runs_per_job", "signal_delay", "requeues"), (int,)),
    "time": (int, str),
    "setup": (list, tuple),
    "tflops": (int, float),
    "sbatch": (dict,),
}


def read_file(path: Path) -> YamlFile:
    """A profile file. `SuiteError` names file and line of what is wrong."""
    return YamlFile(path, KEYS, "a profile", texts=TEXTS)


def make_profile(flags: Mapping[str, Any], file: YamlFile | None = None) -> Profile:
    """The profile; a flag beats the file. `HarnessError` names file and line where the value came from the file."""
    values = (file.values if file else {}) | dict(flags)
    try:
        profile = Profile(**{key: _checked(key, value) for key, value in values.items()})
        schedulers.get(profile.scheduler)
    except HarnessError as error:
        key = str(error).partition("=")[0]
        place = f"{file.where(key)}: " if file and key in file.values and key not in flags else ""
        raise HarnessError(f"{place}{error}") from None
    return profile


def _checked(key: str, value: Any) -> Any:
    """The value in the type that the profile holds. `HarnessError` begins with the key."""
    if key not in KEYS:
        raise HarnessError(f"{key}={value!r}: a profile has no such key, only {', '.join(KEYS)}")
    if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
        raise HarnessError(f"{key}={value!r} must be {' or '.join(t.__name__ for t in _TYPES[key])}")
    if key == "setup" and not all(isinstance(line, str) for line in value):
        raise HarnessError(f"{key}={value!r} must be a list of shell lines")
    return minutes(str(value)) if key == "time" else tuple(value) if key == "setup" else value


def minutes(text: str) -> int:
    """A time limit as SLURM writes it, in minutes, rounded up: `90`, `30:00`, `4:00:00`, `1-12`, `1-12:30:00`."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise HarnessError(f"time={text!r} must be minutes, hours:minutes:seconds or days-hours")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None:  # days-hours[:minutes[:seconds]]
        units = [3600, 60, 1]
    else:  # minutes, minutes:seconds or hours:minutes:seconds
        units = [60] if len(numbers) == 1 else [60, 1] if len(numbers) == 2 else [3600, 60, 1]
    seconds = int(days or 0) * 86400 + sum(n * unit for n, unit in zip(numbers, units, strict=False))
    return -(-seconds // 60)
