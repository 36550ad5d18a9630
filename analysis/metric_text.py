"""How a metric is written: digits, unit, and the words for its values and differences."""

from __future__ import annotations

from harness.schema.metrics import Metric

PER_CENT = "%"
MARGIN = 1.0
"""Percentage points within which two methods count as practically equal."""


def digits(metric: Metric) -> int:
    """Digits after the decimal point of one value."""
    return 1 if metric.unit == PER_CENT else 3


def margin(metric: Metric) -> float:
    """The difference within which two methods count as practically equal by default: none where the unit is not %."""
    return MARGIN if metric.unit == PER_CENT else 0.0


def in_words(metric: Metric) -> str:
    """`top-1 accuracy in per cent`."""
    unit = {PER_CENT: " in per cent", "": ""}.get(metric.unit, f" in {metric.unit}")
    return metric.title + unit


def units(metric: Metric) -> str:
    """What differences are counted in: `points`, or `units` of a plain number."""
    return "points" if metric.unit == PER_CENT else metric.unit or "units"


def difference(metric: Metric) -> str:
    """`points of top-1 accuracy`, or `units of cross-entropy`."""
    return f"{units(metric)} of {metric.title}"


def with_unit(text: str, metric: Metric) -> str:
    """`text (%)`, for an axis."""
    return f"{text} ({metric.unit})" if metric.unit else text


def sentence(text: str) -> str:
    """The text with a capital letter; the others as they are."""
    return text[:1].upper() + text[1:]
