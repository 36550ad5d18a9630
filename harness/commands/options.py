"""The options that several commands share, and what they ask for."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from harness.terminal import split_csv, split_shots, split_tasks

OutFolder = Annotated[Path, typer.Option(file_okay=False, help="Folder of the results.")]
Results = Annotated[
    list[Path] | None,
    typer.Option(help="A results folder, or a pack of one, to read in OUT's place; as often as there are some."),
]
DeviceName = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
MetricName = Annotated[
    str | None, typer.Option(help="What is shown, e.g. macro_f1 or loss; each task's primary metric if not given.")
]
Redo = Annotated[
    str | None, typer.Option(help="`stale`: run complete ones again whose method's source has changed since.")
]
Track = Annotated[
    str | None, typer.Option(help="Draw live curves: tensorboard, wandb, mlflow, or several, comma between them.")
]
SuiteName = Annotated[
    str | None,
    typer.Option(
        help="Suite, see `sctbench suites`; or your own data: a folder of class folders, a CSV, a YAML file. "
        "NAME+corruptions scores corrupted test images too."
    ),
]
TaskNames = Annotated[str | None, typer.Option(help="Tasks of the suite; all if not given.")]
ShotCounts = Annotated[
    str | None, typer.Option(help="Images per class, e.g. 1,4: of a few-shot suite (all if not given) or of own data.")
]
ProtocolName = Annotated[str | None, typer.Option(help="Protocol: fixed, tuned, validation, published or oracle.")]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer can read it: a parameter that is a dataclass becomes one option for each of its fields."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}

    @functools.wraps(command)
    def call(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{field.name: values.pop(field.name) for field in fields(group)})
        command(**values)

    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        group = groups.get(parameter.name)
        types = get_type_hints(group, include_extras=True) if group else hints
        own = inspect.signature(group).parameters.values() if group else [parameter]
        parameters += [one.replace(annotation=types[one.name], kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    call.__dict__["__signature__"] = inspect.Signature(parameters)
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call


def given(options: Any) -> dict[str, Any]:
    """The options of a group that were given, by name."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFolders:
    """Where the user's own images and lists are."""

    root: Annotated[Path | None, typer.Option(help="Folder of the images, where you bring them.")] = None
    lists: Annotated[Path | None, typer.Option(help="Folder of the lists, if not that of the images.")] = None

    def roots(self) -> Any:
        """The same as `harness.data.lists.Roots`."""
        from harness.data.lists import Roots

        return Roots(data=self.root, lists=self.lists)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What runs keep beside their records."""

    keep_weights: Annotated[
        str, typer.Option(help="Tuned weights to keep: auto (of final trainings, up to 32 MiB), all or none.")
    ] = "auto"
    keep_logits: Annotated[bool, typer.Option("--keep-logits", help="Keep the logits of every scored image.")] = False

    def keeping(self) -> Any:
        """The same as `harness.schema.keeping.Keeping`."""
        from harness.schema.keeping import Keeping

        return Keeping(weights=self.keep_weights, logits=self.keep_logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to run."""

    experiment: Annotated[Path | None, typer.Argument(help="YAML experiment file; flags override it.")] = None
    suite: SuiteName = None
    methods: Annotated[
        str | None, typer.Option(help="Methods, e.g. linear,lora:rank=4,sct:channels=24:lr=4e-3, or all.")
    ] = None
    tasks: TaskNames = None
    seeds: Annotated[int | None, typer.Option(help="Number of seeds.")] = None
    protocol: ProtocolName = None
    trials: Annotated[
        int | None,
        typer.Option(help="With protocol tuned: settings that every method may try per task; 8 if not given."),
    ] = None
    backbone: Annotated[str | None, typer.Option(help="demo_vit, or any ViT or Swin of timm.")] = None
    weights: Annotated[str | None, typer.Option(help="pretrained, random, or a checkpoint file.")] = None
    image_size: Annotated[int | None, typer.Option(help="Side of the input in pixels.")] = None
    recipe: Annotated[str | None, typer.Option(help="Recipe fields for all methods, e.g. epochs=5,lr=1e-3")] = None
    shots: ShotCounts = None
    statistics: Annotated[str | None, typer.Option(help="Input statistics: model, imagenet, half or none.")] = None
    fit: Annotated[str | None, typer.Option(help="How images become square: squash, crop or squash-crop.")] = None
    interpolation: Annotated[str | None, typer.Option(help="bicubic or bilinear.")] = None

    def selection(self) -> Any:
        """The `plan.Selection` that the options and the experiment file ask for."""
        from harness.plans import experiment as experiments

        values = given(self) | {
            "methods": split_csv(self.methods),
            "tasks": split_tasks(self.tasks),
            "shots": split_shots(self.shots),
            "recipe": None if self.recipe is None else experiments.parse_settings(split_csv(self.recipe) or []),
        }
        path = values.pop("experiment", None)
        file = experiments.read_file(path) if path else None
        return experiments.select({key: value for key, value in values.items() if value is not None}, file)
