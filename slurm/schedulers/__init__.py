"""Where runs can be submitted to. Each module here with a `SCHEDULER` adds one: nothing else names it."""

from importlib import import_module
from pkgutil import iter_modules

from slurm.schedulers.base import ClusterError, Scheduler

SCHEDULERS: dict[str, Scheduler] = {}
"""Every scheduler by name."""

for _module in iter_modules(__path__):
    if _scheduler := getattr(import_module(f"{__name__}.{_module.name}"), "SCHEDULER", None):
        SCHEDULERS[_scheduler.name] = _scheduler


def get(name: str) -> Scheduler:
    """The scheduler of that name. `ClusterError` if there is none."""
    if name not in SCHEDULERS:
        raise ClusterError(f"scheduler={name!r} must be {' or '.join(SCHEDULERS)}")
    return SCHEDULERS[name]
