"""`sctbench check` on two cores: importing what the checks need takes as long as running them."""

import os

from harness.data.all_cores import processes

BESIDE = ("backbones", "compile")
"""Checks that another process runs: about half of the time of all."""


def check_in_two(reference: str) -> dict[str, str]:
    """`harness.training.method_check.check_method`; where there are two cores, another process has a share of it."""
    if (os.cpu_count() or 1) < 2:
        return _check(reference)
    with processes(1) as pool:
        theirs = pool.submit(_check, reference, BESIDE)  # before this process imports anything that takes long
        from harness.training.method_check import CHECKS, NOT_RUN

        own = _check(reference, tuple(name for name in CHECKS if name not in BESIDE))
        stopped = NOT_RUN in own.values()
        found = own | (dict.fromkeys(BESIDE, NOT_RUN) if stopped else theirs.result())
    return {name: found[name] for name in CHECKS}


def _check(reference: str, names: tuple[str, ...] | None = None) -> dict[str, str]:
    from harness.training.method_check import CHECKS, check_method

    return check_method(reference, CHECKS if names is None else names)
