"""`sctbench check`: every conformance check on one method, and in a few lines what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from harness.training.fast_path_check import check_shortcuts
from methods import conformance, registry, testbed

CHECKS = conformance.CHECKS | {"shortcuts": check_shortcuts}

OK, FAILED, NOT_RUN = "ok", "failed: ", "not run"


def check_method(reference: str, names: Iterable[str] = CHECKS) -> dict[str, str]:
    """What every check, or those of these names, say of a method: `ok`, or `failed: ` and the reason. A method that
    does not declare itself is not checked further, nor one that fails twice for one reason: the rest is `not run`.

    `reference`: the method's name, or `file.py:Class`.
    """
    conformance.three_steps.cache_clear()  # the class may have been changed since it was checked last
    cls, results = registry.get(reference), dict.fromkeys(names, NOT_RUN)
    with _one_thread():
        for name in results:
            reason = conformance.run_check(name, cls, CHECKS)
            result = f"{FAILED}{reason}" if reason else OK
            again = result in results.values()
            results[name] = result
            if reason and (again or name == "declared"):
                break
    return results


@contextmanager
def _one_thread() -> Iterator[None]:
    """Within, torch computes in one thread: on models this small, several wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def summary(reference: str, results: dict[str, str]) -> str:
    """What came out of `check_method`, and what to do: each reason once, with the checks that failed for it and what
    the first of them asks."""
    failed = {name: said.removeprefix(FAILED) for name, said in results.items() if said.startswith(FAILED)}
    if not failed:
        return _passed(reference, len(results))
    left = sum(said == NOT_RUN for said in results.values())
    rest = f", and {left} were not run, for they need what failed" if left else ""
    lines = [f"{len(failed)} of {len(results) - left} checks failed{rest}."]
    for reason in dict.fromkeys(failed.values()):
        names = [name for name, own in failed.items() if own == reason]
        asked = " ".join((CHECKS[names[0]].__doc__ or "").partition("\n\n")[0].split())
        lines += ["", f"{', '.join(names)}: {reason}", f"    What {names[0]} asks: {asked}"]
    return "\n".join([*lines, "", f"Mend the first one, then run again: sctbench check {reference}"])


def _passed(reference: str, count: int) -> str:
    cls = registry.get(reference)
    served = {name: testbed.is_served(cls, name) for name in testbed.MODELS}
    refused = [name for name, yes in served.items() if not yes]
    on = f"on {', '.join(name for name, yes in served.items() if yes)}" + (
        f" (it refuses {', '.join(refused)})" if refused else ""
    )
    try_it = f"sctbench run --suite demo --methods {reference} --seeds 3"
    return f"All {count} checks passed, {on}.\nTry it: {try_it}"
