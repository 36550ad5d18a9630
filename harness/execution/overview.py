"""The size of a selection: runs, images and disk, from what the suite states; the data need not be there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from harness.data.arrays import array_bytes
from harness.data.lists import known_size
from harness.models.backbones import skeleton
from harness.plans.plan import Selection
from harness.plans.stages import stage
from harness.plans.tuning import representative_spec
from harness.schema import protocol as protocols
from harness.schema.record import ReadRecord
from harness.schema.spec import RunSpec
from harness.schema.tasks import chosen_shots, chosen_tasks
from harness.terminal import cell_texts, human_size
from harness.training.cost import forward_flops
from suites.base import Suite, Task

ASSUMED_RATE = 1e14
"""Operations a second that GPU hours assume: about what a recent data-centre GPU sustains in bf16. Not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One task at one number of shots."""

    task: str
    shots: int | None
    methods: int
    seeds: int
    split_seeds: int
    """Training lists that differ in the draw; 1 where there is one list."""

    runs: int
    """Trials included."""

    trials: int
    """Those of the runs that choose settings."""

    complete: int
    """Runs that have a valid record already, or need none any more."""

    train_images: int | None
    """Images of one training; None where the suite does not state it."""

    test_images: int | None
    """Images that a trained model is scored on, all further test sets included."""

    operations: float | None
    """Floating-point operations of all runs: an image of training counts as three forward passes (forward, gradients of
    activations and of weights), which is what full fine-tuning needs and more than the others do."""

    array_bytes: int | None
    """Disk of the decoded images. Test sets that several numbers of shots share are counted with the first."""


def _sum(counts: list[Any]) -> Any:
    """The sum, or None if one of the numbers is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def train_images(suite: Suite, task: Task, shots: int | None, protocol: str) -> int | None:
    """Images that one run trains on."""
    return known_size(task, suite.final_split if protocols.get(protocol).final else "train", shots)


def scored_images(task: Task, protocol: str, stored: bool = False) -> int | None:
    """Images that one run is scored on; with `stored` those of them that are decoded to disk: corruptions are not."""
    split = protocols.get(protocol).report_split
    further = [target for target in task.targets if not (stored and target.corruption)] if split == "test" else []
    targets = [target.size for target in further]
    total: int | None = _sum([known_size(task, split), *targets])
    return total


def run_operations(selection: Selection) -> Callable[[RunSpec], int | None]:
    """Counts the operations of single runs as `Line.operations` does; None where the suite does not state a size."""
    suite, model = selection.suite, skeleton(selection.backbone.name, image_size=selection.backbone.image_size)
    flops = forward_flops(model, selection.preprocessing)

    def operations(spec: RunSpec) -> int | None:
        task = suite.task(spec.task)
        train, scored = train_images(suite, task, spec.shots, spec.protocol), scored_images(task, spec.protocol)
        if train is None or scored is None:
            return None
        times = spec.recipe.epochs if protocols.get(spec.protocol).every_epoch else 1
        return flops * (3 * train * spec.recipe.epochs + times * scored)

    return operations


def overview(selection: Selection, read: ReadRecord) -> Overview:
    """A line for each task and number of shots."""
    suite, stages, lines = selection.suite, stage(selection, read), []
    runs = [*map(representative_spec, [*stages.ready, *stages.blocked]), *stages.settled]
    protocol_names = ["validation", "tuned"] if protocols.get(selection.protocol).tunes else [selection.protocol]
    operations = run_operations(selection)
    for name in chosen_tasks(suite, selection.tasks):
        task, all_shots = suite.task(name), chosen_shots(suite, selection.shots) or (None,)
        for shots in all_shots:
            own = [spec for spec in runs if spec.task == name and spec.shots == shots]
            draws = len(suite.split_seeds) or 1
            arrays = [train_images(suite, task, shots, protocol) for protocol in protocol_names] * draws
            scored = [scored_images(task, protocol, stored=True) for protocol in protocol_names]
            arrays += scored * (shots == all_shots[0])
            images, total = _sum(arrays), _sum([operations(spec) for spec in own])
            line = Line(
                task=name,
                shots=shots,
                methods=len(selection.methods),
                seeds=len(selection.seeds),
                split_seeds=draws,
                runs=len(own),
                trials=sum(spec.protocol != selection.protocol for spec in own),
                complete=sum(spec.task == name and spec.shots == shots for spec in stages.settled),
                train_images=train_images(suite, task, shots, selection.protocol),
                test_images=scored_images(task, selection.protocol),
                operations=None if total is None else float(total),
                array_bytes=None if images is None else array_bytes(images, selection.preprocessing),
            )
            lines.append(line)
    return Overview(lines)


_SHOWN_WITH = {"shots": "shots", "draws": "shots", "trials": "trials"}
"""Columns that are shown only where there is something of this kind."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The lines of a selection, as they are shown."""

    lines: list[Line]

    @property
    def totals(self) -> dict[str, Any]:
        """Runs, complete runs, operations and bytes over all lines."""
        return {
            "runs": sum(line.runs for line in self.lines),
            "complete": sum(line.complete for line in self.lines),
            "operations": _sum([line.operations for line in self.lines]),
            "array_bytes": _sum([line.array_bytes for line in self.lines]),
        }

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The columns of the table; shots, draws and trials where there are any."""
        return [_row(line) for line in self.lines]

    @property
    def summary(self) -> list[str]:
        """The totals in sentences."""
        total = self.totals
        disk, hours = human_size(total["array_bytes"]), _hours(total["operations"])
        return [
            f"{total['runs']} runs, {total['complete']} complete already. Decoded images on disk: {disk}",
            f"GPU hours: {hours} of arithmetic in all, assuming {ASSUMED_RATE / 1e12:.0f} TFLOP/s sustained",
        ]

    def __str__(self) -> str:
        rows = cell_texts([{key: key for key in self.rows[0]}, *self.rows])
        widths = {key: max(len(row[key]) for row in rows) for key in rows[0]}
        table = ["  ".join(row[key].ljust(widths[key]) for key in row).rstrip() for row in rows]
        return "\n".join([*table, *self.summary])

    def _repr_html_(self) -> str:
        rows = cell_texts(self.rows)
        head = "".join(f"<th>{escape(key)}</th>" for key in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row.values()) + "</tr>" for row in rows)
        return f"<table><tr>{head}</tr>{body}</table><p>{'<br>'.join(map(escape, self.summary))}</p>"


def _hours(operations: float | None) -> str:
    return "?" if operations is None else f"{operations / ASSUMED_RATE / 3600:.2g}"


def _row(line: Line) -> dict[str, Any]:
    row = {
        "task": line.task,
        "shots": line.shots,
        "draws": line.split_seeds,
        "methods": line.methods,
        "seeds": line.seeds,
        "runs": line.runs,
        "trials": line.trials,
        "complete": line.complete,
        "train": line.train_images,
        "scored": line.test_images,
        "GPU hours": _hours(line.operations),
        "disk": human_size(line.array_bytes),
    }
    return {key: value for key, value in row.items() if getattr(line, _SHOWN_WITH.get(key, "runs"))}
