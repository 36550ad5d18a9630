"""Progress on the screen: bars with loss, accuracy, images/s and time left; plain lines where there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from harness.execution.worker import Busy
from harness.schema.record import RunRecord
from harness.schema.spec import RunSpec
from harness.training.callbacks import Decoding, Progress


def describe(spec: RunSpec) -> str:
    """`task method seed`, padded so that lines stand in columns."""
    return f"{spec.task:<14} {spec.method:<12} seed {spec.seed}"


def result_line(record: RunRecord) -> str:
    """One line on a finished run, with markup."""
    if record.status != "complete":
        kind = record.failure.kind if record.failure else ""
        return f"[red]{escape(describe(record.spec))}  FAILED  {kind}: {escape(record.reason)}[/red]"
    (split, metrics), cost = next(iter(record.metrics.items())), record.cost
    seconds = f"{cost.seconds:6.1f} s" if cost else ""
    return f"{escape(describe(record.spec))}  {split} {metrics.accuracy:5.1f} %  {seconds}"


class Display:
    """Listens to an execution. Use it as a context manager."""

    def __init__(self, total: int, console: Console) -> None:
        self.console, self.total = console, total
        self.records: list[RunRecord] = []
        self.bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._overall = self.bars.add_task("[bold]runs[/bold]", total=total, detail="")
        self._lines: dict[str, TaskID] = {}
        self._others: set[str] = set()

    def __enter__(self) -> Display:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, spec: RunSpec, message: Progress | Decoding | RunRecord | Busy) -> None:
        if isinstance(message, RunRecord):
            self._finished(message)
        elif isinstance(message, Busy):
            self._busy(message)
        else:
            self._moved(spec, message)

    def _moved(self, spec: RunSpec, at: Progress | Decoding) -> None:
        if spec.run_id not in self._lines:
            self._lines[spec.run_id] = self.bars.add_task(describe(spec), detail="")
        if isinstance(at, Decoding):
            where, done, total = "decoding images", at.done, at.total
        else:
            where = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.3f}  acc {at.accuracy:4.1f} %"
            done, total = at.step, at.steps
        detail = f"{where}  {at.images_per_second:.0f} img/s"
        self.bars.update(self._lines[spec.run_id], completed=done, total=total, detail=detail)

    def _busy(self, busy: Busy) -> None:
        """Said once for each run, which is tried again until it is done."""
        if busy.spec.run_id not in self._others:
            self._others.add(busy.spec.run_id)
            self.console.print(f"{describe(busy.spec)}  waits for {busy.holder}, which has it", highlight=False)

    def _finished(self, record: RunRecord) -> None:
        self.records.append(record)
        if record.spec.run_id in self._lines:
            self.bars.remove_task(self._lines.pop(record.spec.run_id))
        done = len(self.records)
        self.bars.update(self._overall, completed=done)
        line = f"[{done:>{len(str(self.total))}}/{self.total}] {result_line(record)}"
        self.console.print(line, highlight=False, markup=True)
