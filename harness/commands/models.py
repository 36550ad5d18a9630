"""The commands that use what a run left: its model on pictures, and as files for others."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.commands.options import DeviceName
from harness.terminal import JsonFlag, console, print_rows

models_app = typer.Typer()

RecordPath = Annotated[Path, typer.Argument(help="A run's record.json, or its folder.")]
Checkpoint = Annotated[Path | None, typer.Option(help="The backbone's checkpoint, for a run with one from a file.")]
OwnMethod = Annotated[str | None, typer.Option(help="Where the method is, if it is one of your own: file.py:Class.")]


@models_app.command()
def predict(
    record: RecordPath,
    images: Annotated[list[Path], typer.Argument(help="Pictures, or folders of pictures.")],
    top: Annotated[int, typer.Option(min=1, help="Number of classes to name for each picture.")] = 1,
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Write a CSV file instead.")] = None,
    weights: Checkpoint = None,
    method: OwnMethod = None,
    device: DeviceName = "auto",
    as_json: JsonFlag = False,
) -> None:
    """Print the classes that a run's model sees in pictures, with their probabilities."""
    from harness.records.place import Place
    from harness.training.classify import classify

    place = Place.of(record, Path())
    answers = classify(place, images, top, weights_file=weights, method=method, device=device)
    name = place.record.class_name
    rows: list[dict[str, Any]] = [
        {"image": str(one.image), **({"rank": one.rank} if top > 1 else {}), "class": name(one.label)}
        | {"probability": one.probability if csv_file or as_json else f"{one.probability:.3f}"}
        for one in answers
    ]
    if csv_file:
        _write_csv(csv_file, rows)
        console.print(f"{len(rows)} rows in {csv_file}", highlight=False)
    else:
        print_rows(rows, as_json)


def _write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@models_app.command()
def export(
    record: RecordPath,
    to: Annotated[Path, typer.Option(help="A new folder.")],
    form: Annotated[
        str,
        typer.Option(
            help="trained: what the run kept, for sctbench.load; merged: a checkpoint for timm alone; timm: a folder "
            "for timm and the Hugging Face hub; peft: an adapter for peft alone."
        ),
    ] = "trained",
    weights: Checkpoint = None,
    method: OwnMethod = None,
) -> None:
    """Write a run's model with a model card into a folder, for others to use."""
    from harness.records.place import Place
    from harness.training import export as forms

    for path in forms.export(Place.of(record, Path()), to, form, weights, method):
        console.print(str(path), highlight=False)
