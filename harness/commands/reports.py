"""The report, as the command line and `import sctbench` both write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from harness import terminal
from harness.schema import metrics
from suites import suite_name

if TYPE_CHECKING:
    from analysis.index import Runs


def write(
    out: Path,
    suite: str | None,
    reference: str | None,
    ablation: str | Sequence[str] | None,
    to: Path | None,
    metric: str | None,
    quiet: bool = False,
    results: Sequence[Path] | None = None,
) -> list[Path]:
    """Write tables and figures of the records below `out`, or of the folders and packs `results` in its place, and
    return the files, the page first.

    `HarnessError` for an unknown metric, if there is no record, or if the suite, the reference or a setting to tabulate
    is in none.
    """
    from analysis.commands import check_suite, load
    from analysis.report import write_report  # it imports matplotlib, which takes long
    from analysis.tables import TableOptions
    from harness.errors import HarnessError
    from suites.corruptions import SUFFIX

    name = suite and suite_name(suite)
    if suite and suite.removesuffix(SUFFIX).endswith((".yaml", ".yml")):
        from harness.plans.experiment import find_suite  # it imports torch, which a report does without

        name = find_suite(suite).name
    axes = terminal.split_csv(ablation) if isinstance(ablation, str) else ablation
    by = metrics.get(metric) if metric else None
    options = TableOptions(reference, None if axes is None else tuple(axes), by)
    console = Console(quiet=True) if quiet else terminal.console
    runs = load(out, terminal.errors, results)
    check_suite(name, runs)
    paths = write_report(runs, to or out / "report", console, name, options, about=_about(runs))
    if quiet and not paths:
        places = ", ".join(map(str, results or [out]))
        raise HarnessError(f"{places}: no records" + (f" of suite {name!r}" if name else ""))
    return paths


def _about(runs: Runs) -> dict[str, dict[str, str]]:
    """Title, family and paper of the registered methods, if some record does not say what its method is."""
    if not len(runs.rows) or (runs.rows["family"] != "").all():
        return {}
    from methods.registry import all_methods

    return {m.name: {"title": m.title, "family": m.family, "paper": m.paper} for m in all_methods().values()}
