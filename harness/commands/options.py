"""The options that say what to run, written once for all commands that take them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from harness.terminal import console, split_csv, split_shots, split_tasks

DataFolder = Annotated[Path | None, typer.Option("--root", help="Folder of the images, where you bring them.")]
ListFolder = Annotated[Path | None, typer.Option("--lists", help="Folder of the lists, if not that of the images.")]
OutFolder = Annotated[Path, typer.Option("--out", file_okay=False, help="Folder of the results.")]
Redo = Annotated[
    str | None,
    typer.Option("--redo", help="`stale`: do complete runs again whose method's source has changed since."),
]
SuiteName = Annotated[str | None, typer.Option("--suite", help="Suite, see `sctbench suites`.")]
TaskNames = Annotated[str | None, typer.Option("--tasks", help="Tasks of the suite; all if not given.")]
ShotCounts = Annotated[
    str | None, typer.Option("--shots", help="Shots of a few-shot suite, e.g. 1,4; all if not given.")
]


def read_selection(
    experiment: Annotated[Path | None, typer.Argument(help="YAML experiment file; flags beat it.")] = None,
    suite: SuiteName = None,
    methods: Annotated[
        str | None, typer.Option(help="Methods, e.g. linear,lora:rank=4,sct:channels=24:lr=4e-3, or all.")
    ] = None,
    tasks: TaskNames = None,
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Protocol: fixed, tuned, validation, published or oracle.")
    ] = None,
    trials: Annotated[
        int | None,
        typer.Option(help="With protocol tuned: settings that every method may try per task, 8 if not given."),
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="demo_vit, or any ViT or Swin of timm.")] = None,
    weights: Annotated[str | None, typer.Option(help="pretrained, random, or a checkpoint file.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe fields for all methods, e.g. epochs=5,lr=1e-3")] = None,
    shots: ShotCounts = None,
    statistics: Annotated[str | None, typer.Option(help="Input statistics: model, imagenet, half or none.")] = None,
    fit: Annotated[str | None, typer.Option(help="How images become square: squash, crop or squash-crop.")] = None,
    interpolation: Annotated[str | None, typer.Option(help="bicubic or bilinear.")] = None,
) -> Any:
    """The `plan.Selection` that the options and the experiment file ask for."""
    from harness.plans import experiment as experiments

    fields = experiments.parse_settings(split_csv(recipe) or []) if recipe is not None else None
    given: dict[str, Any] = {
        "suite": suite,
        "methods": split_csv(methods),
        "tasks": split_tasks(tasks),
        "seeds": seeds,
        "protocol": protocol,
        "trials": trials,
        "backbone": backbone,
        "weights": weights,
        "image_size": image_size,
        "shots": split_shots(shots),
        "statistics": statistics,
        "fit": fit,
        "interpolation": interpolation,
        "recipe": fields,
    }
    file = experiments.read_file(experiment) if experiment else None
    return experiments.select({k: v for k, v in given.items() if v is not None}, file)


def tell_weights(selection: Any) -> None:
    """Say what the user's own checkpoint is, where there is one, and how the inputs are made for it."""
    from harness.models.backbones import about_file

    if about := about_file(selection.backbone):
        text = f"{selection.backbone.weights} is {about}; inputs: {selection.preprocessing.id}"
        console.print(text, highlight=False, markup=False)


def takes_options(parameter: str, read: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in place of one parameter, the options of `read`, which makes the parameter's value of them."""

    def give(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(read, eval_str=True).parameters
        own = dict(inspect.signature(command, eval_str=True).parameters)
        own.pop(parameter)

        @functools.wraps(command)
        def with_options(**values: Any) -> None:
            value = read(**{name: values.pop(name) for name in shared})
            command(**{parameter: value}, **values)

        # A parameter without a default, which another `takes_options` fills in, must stand first.
        both = sorted([*shared.values(), *own.values()], key=lambda p: p.default is not inspect.Parameter.empty)
        signature = inspect.Signature(both)
        with_options.__signature__ = signature  # type: ignore[attr-defined]
        with_options.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
        del with_options.__wrapped__
        return with_options

    return give


takes_selection = takes_options("selection", read_selection)
"""Give a command, in place of its parameter `selection`, the options of `read_selection`."""
