"""What the conformance checks are written with: requirements, and comparisons of models."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from methods import testbed
from methods.base import Context, Method
from methods.testbed import Attached


class NotConforming(AssertionError):
    """A method breaks the contract of `methods/base.py`; the message says how."""


def require(holds: bool, message: str) -> None:
    """Raise `NotConforming` unless `holds`."""
    if not holds:
        raise NotConforming(message)


def on_main_models(check: Callable[[type[Method], str], None]) -> Callable[[type[Method]], None]:
    """Run a check of (method, name of a small model) on a sequence of tokens and on a map, as far as the method serves
    them; a failure says which. What holds on the others, `conformance.check_backbones` says."""

    @functools.wraps(check)
    def on_all(method: type[Method]) -> None:
        for name in testbed.main_models(method):
            try:
                check(method, name)
            except NotConforming as failure:
                raise NotConforming(f"on {name}: {failure}") from None

    return on_all


def without_data(memory: Mapping[str, Any], seed: int = 0) -> Context:
    """The context of a model that is built again: with a copy of what was remembered, and no look at the data."""

    def closed(size: int) -> Iterator[tuple[Tensor, Tensor]]:
        raise NotConforming(
            "a resumed run's attach looks at the calibration data again: choose inside of `context.remember`"
        )

    return dataclasses.replace(testbed.make_context(seed=seed), calibration=closed, memory=copy.deepcopy(dict(memory)))


def relative_gap(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    return float((actual.float() - expected.float()).abs().max() / expected.float().abs().max().clamp_min(1e-12))


def moved_by_merging(attached: Attached, dtype: torch.dtype) -> float:
    """Merge the model, if it can be, and return by how much that moves its logits (relative), computed in `dtype`."""
    model, images = attached.model.to(dtype).eval(), testbed.batch()[0].to(dtype)
    with torch.no_grad():
        before = model(images)
        if attached.attachment.merge is not None:
            attached.attachment.merge()
        return relative_gap(model(images), before)


def changed_names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """Names whose tensors are not bit-equal any more."""
    return [n for n, t in before.items() if n not in after or not torch.equal(t, after[n])]


def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Detached copies by name."""
    return {n: t.detach().clone() for n, t in tensors.items()}


def some(names: list[str] | set[str]) -> str:
    """At most three of the names, and how many there are."""
    listed = sorted(names)
    return f"{', '.join(listed[:3])}{f' and {len(listed) - 3} more' if len(listed) > 3 else ''}"
