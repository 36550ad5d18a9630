"""All parts one after the other, as rows and as a document."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from harness import device as devices
from harness import environment
from harness.bench import module, selection, training, whole
from harness.bench.base import Measurement, Setting

Part = Callable[[Setting], list[Measurement]]

PARTS: dict[str, Part] = {
    "selection": selection.measure,
    "module": module.measure,
    "training": training.measure,
    "compiling": training.measure_compiling,
    "decoding": whole.measure_decoding,
    "whole": whole.measure,
}


def run(setting: Setting, parts: Sequence[str], begin: Callable[[str], None]) -> list[Measurement]:
    """Measure the parts on all cores; `begin` is told each part's name."""
    measurements: list[Measurement] = []
    with warnings.catch_warnings(), devices.threads(len(os.sched_getaffinity(0))):
        # torch remarks on machines with fewer cores than the release has loader workers.
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        for part in parts:
            begin(part)
            measurements += PARTS[part](setting)
    return measurements


def document(setting: Setting, measurements: Sequence[Measurement]) -> dict[str, Any]:
    """What was measured, on what, as plain values."""
    return {
        "backbone": dataclasses.asdict(setting.backbone),
        "sizes": dataclasses.asdict(setting.sizes),
        "cores": len(os.sched_getaffinity(0)),
        "environment": environment.describe(setting.device, setting.precision),
        "measurements": [dataclasses.asdict(m) | {"ratio": m.ratio, "reached": m.reached} for m in measurements],
    }


def markdown(setting: Setting, measurements: Sequence[Measurement]) -> str:
    """The rows as a table, under what was measured on and with."""
    rows = [measurement.row() for measurement in measurements]
    about = environment.describe(setting.device, setting.precision)
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        f"{about['device']}, {len(os.sched_getaffinity(0))} cores in use, {about['precision']}; "
        f"{setting.backbone.name} ({setting.backbone.weights}) at {setting.backbone.image_size} px; {versions}.\n",
        *(f"| {' | '.join(cells)} |" for cells in (rows[0], ["---"] * len(rows[0]), *(row.values() for row in rows))),
        f"\n{verdict(measurements)}.\n",
    ]
    return "\n".join(lines)


def verdict(measurements: Sequence[Measurement]) -> str:
    """How many targets hold, and which do not."""
    judged = [m for m in measurements if m.reached is not None]
    missed = [f"{m.part}: {m.what}" for m in judged if not m.reached]
    text = f"{len(judged) - len(missed)} of {len(judged)} targets reached"
    return f"{text}; not: {'; '.join(missed)}" if missed else text
