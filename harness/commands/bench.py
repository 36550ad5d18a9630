"""`sctbench bench`: measure ours beside the released way on this machine."""

from __future__ import annotations

import json
from operator import methodcaller
from pathlib import Path
from typing import Annotated

import typer

from harness.commands.options import DeviceName
from harness.errors import HarnessError
from harness.terminal import console, errors, print_rows
from methods.base import did_you_mean


def bench(
    parts: Annotated[
        list[str] | None,
        typer.Argument(help="Which parts (selection, module, training, compiling, decoding, whole); all if none."),
    ] = None,
    device: DeviceName = "auto",
    backbone: Annotated[str, typer.Option(help="demo_vit, or any ViT of timm.")] = "demo_vit",
    weights: Annotated[str, typer.Option(help="pretrained, random, or a checkpoint file.")] = "pretrained",
    size: Annotated[str, typer.Option(help="How much: small (seconds), cpu, cuda, or auto for the device's.")] = "auto",
    out: Annotated[Path, typer.Option(help="Folder of the measurements.")] = Path("results/bench"),
) -> None:
    """Measure ours beside the released way: selection, module, training, a whole task."""
    from harness import device as devices
    from harness.bench import report
    from harness.bench.base import SIZES, Setting
    from harness.models import backbones
    from harness.paths import write_atomically

    target = devices.choose(device)
    devices.use(target)
    kind = target.type if size == "auto" else size
    if kind not in SIZES:
        raise HarnessError(f"size {size!r}: {did_you_mean(size, [*SIZES, 'auto'])}")
    for part in parts or []:
        if part not in report.PARTS:
            raise HarnessError(f"the bench has no part {part!r}. {did_you_mean(part, list(report.PARTS))}")
    spec = backbones.resolve(backbone, weights)
    setting = Setting(device=target, backbone=spec, sizes=SIZES[kind])
    measurements = report.run(setting, parts or list(report.PARTS), lambda part: errors.print(f"measuring {part} ..."))
    print_rows([measurement.row() for measurement in measurements], False)
    path = out / f"{target.type}-{spec.name}-{'-'.join(parts or ['all'])}-{kind}.json"
    document = json.dumps(report.document(setting, measurements), indent=1) + "\n"
    for file, text in ((path, document), (path.with_suffix(".md"), report.markdown(setting, measurements))):
        write_atomically(file, methodcaller("write", text.encode()))
    console.print(f"{report.verdict(measurements)}; wrote {path} and the table beside it", highlight=False)
