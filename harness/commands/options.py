"""The options that several commands share, and what they ask for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.terminal import split_csv, split_shots, split_tasks

DataFolder = Annotated[Path | None, typer.Option("--root", help="Folder of the images, where you bring them.")]
ListFolder = Annotated[Path | None, typer.Option("--lists", help="Folder of the lists, if not that of the images.")]
OutFolder = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the results.")]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Redo = Annotated[
    str | None,
    typer.Option("--redo", help="`stale`: run complete ones again whose method's source has changed since."),
]

ExperimentFile = Annotated[Path | None, typer.Argument(help="YAML experiment file; flags override it.")]
SuiteName = Annotated[str | None, typer.Option("--suite", help="Suite, see `sctbench suites`.")]
MethodNames = Annotated[
    str | None, typer.Option("--methods", help="Methods, e.g. linear,lora:rank=4,sct:channels=24:lr=4e-3, or all.")
]
TaskNames = Annotated[str | None, typer.Option("--tasks", help="Tasks of the suite; all if not given.")]
SeedCount = Annotated[int | None, typer.Option("--seeds", help="Number of seeds.")]
ProtocolName = Annotated[
    str | None, typer.Option("--protocol", help="Protocol: fixed, tuned, validation, published or oracle.")
]
TrialCount = Annotated[
    int | None,
    typer.Option("--trials", help="With protocol tuned: settings that every method may try per task; 8 if not given."),
]
BackboneName = Annotated[str | None, typer.Option("--backbone", help="demo_vit, or any ViT or Swin of timm.")]
Weights = Annotated[str | None, typer.Option("--weights", help="pretrained, random, or a checkpoint file.")]
ImageSize = Annotated[int | None, typer.Option("--image-size", help="Side of the input in pixels.")]
RecipeFields = Annotated[
    str | None, typer.Option("--recipe", help="Recipe fields for all methods, e.g. epochs=5,lr=1e-3")
]
ShotCounts = Annotated[
    str | None, typer.Option("--shots", help="Shots of a few-shot suite, e.g. 1,4; all if not given.")
]
Statistics = Annotated[
    str | None, typer.Option("--statistics", help="Input statistics: model, imagenet, half or none.")
]
Fit = Annotated[str | None, typer.Option("--fit", help="How images become square: squash, crop or squash-crop.")]
Interpolation = Annotated[str | None, typer.Option("--interpolation", help="bicubic or bilinear.")]


SELECTION = tuple(
    ["experiment", "suite", "methods", "tasks", "seeds", "protocol", "trials", "backbone", "weights", "image_size", "recipe", "shots", "statistics", "fit", "interpolation"]
)
"""The parameters that say what to run. A command lists those that it takes, with the types above."""


def read_selection(parameters: Mapping[str, Any]) -> Any:
    """The `plan.Selection` that a command's parameters, as click has them by name, and its experiment file ask for."""
    from harness.plans import experiment as experiments

    path, recipe = parameters["experiment"], parameters["recipe"]
    given = {key: parameters[key] for key in SELECTION[1:]} | {
        "methods": split_csv(parameters["methods"]),
        "tasks": split_tasks(parameters["tasks"]),
        "shots": split_shots(parameters["shots"]),
        "recipe": None if recipe is None else experiments.parse_settings(split_csv(recipe) or []),
    }
    file = experiments.read_file(path) if path else None
    return experiments.select({key: value for key, value in given.items() if value is not None}, file)
