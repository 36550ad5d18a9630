"""The commands that share results: as one file, and checked by whoever gets it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from harness.terminal import console, counting, errors, human_size

sharing_app = typer.Typer()


@sharing_app.command("pack")
def pack_results(
    results: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Folder of the results.")],
    to: Annotated[Path, typer.Option(help="The zip file to write.")],
    predictions: Annotated[bool, typer.Option("--predictions", help="With what models said of every image.")] = False,
    weights: Annotated[bool, typer.Option("--weights", help="With the tuned weights that runs kept.")] = False,
) -> None:
    """Pack the records of a results folder for others: without absolute paths, host and user names."""
    from harness.records.pack import pack
    from harness.records.store import PREDICTIONS_NAME, WEIGHTS_NAME

    kept = [name for name, asked in ((PREDICTIONS_NAME, predictions), (WEIGHTS_NAME, weights)) if asked]
    with counting("packing") as advance:
        manifest, rejected = pack(results, to, kept, advance)
    for bad in rejected:
        errors.print(f"left out {bad.path}: {bad.reason}", highlight=False, markup=False)
    size = human_size(to.stat().st_size)
    console.print(f"wrote {to}: {_counted(manifest.kinds)}; {size}", highlight=False)
    console.print(f"left out: {_counted(manifest.left_out) or 'nothing'}", highlight=False)


def _counted(kinds: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.items())


@sharing_app.command("verify-pack")
def verify_pack(file: Annotated[Path, typer.Argument(help="A zip file that `sctbench pack` wrote.")]) -> None:
    """Check every digest of a pack; the exit status is 1 if something is wrong."""
    from harness.records.pack import Pack

    pack = Pack(file)
    with counting("verifying") as advance:
        records, wrong = pack.verify(advance)
    for bad in wrong:
        console.print(f"{bad.path.relative_to(file).as_posix()}: {bad.reason}", highlight=False)
    if wrong:
        console.print(f"{file}: {len(wrong)} of {len(pack.names)} files are wrong", highlight=False)
        raise typer.Exit(1)
    specs = [record.spec for record in records]
    methods, tasks = len({spec.method for spec in specs}), len({(spec.suite, spec.task) for spec in specs})
    console.print(
        f"{file}: whole: {_counted(pack.manifest.kinds)}; methods: {methods}, tasks: {tasks}, suites: "
        f"{', '.join(sorted({spec.suite for spec in specs}))}; packed {pack.manifest.packed} by sctbench "
        f"{pack.manifest.version}",
        highlight=False,
    )
