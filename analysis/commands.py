"""What the commands `report`, `compare` and `published` call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.comparison import compare_folders, compare_in_sets
from analysis.errors import AnalysisError
from analysis.frame import ComparableSet, comparable_sets
from analysis.literature import load as load_published
from analysis.literature import significance, source, tables
from analysis.render import to_terminal
from analysis.runs import Runs, from_folder
from analysis.tables import Table, TableOptions, bias_tables
from analysis.verify import Verification, verify
from harness.errors import did_you_mean
from suites import SUITES


def load(root: Path, errors: Console) -> Runs:
    """All valid records of a results folder; files that are set aside are printed with the reason."""
    runs = from_folder(root)
    for bad in runs.rejected:
        errors.print(f"set aside {bad.path}: {bad.reason}", highlight=False, markup=False)
    return runs


def show(make: Callable[[], list[Table]], console: Console, errors: Console) -> None:
    """Print tables; an `AnalysisError` ends the program with its message."""
    try:
        made = make()
    except AnalysisError as error:
        errors.print(f"error: {error}", highlight=False, markup=False)
        raise SystemExit(2) from None
    for table in made:
        to_terminal(table, console)


def report(
    root: Path,
    folder: Path,
    suite: str | None,
    options: TableOptions,
    about: Mapping[str, Mapping[str, Any]],
    console: Console,
    errors: Console,
) -> list[Path]:
    """Write the report of the records below `root` into `folder`. `AnalysisError` for options that fit no record."""
    from analysis.report import write_report  # it imports matplotlib, which takes long

    runs = load(root, errors)
    _check_suite(suite, runs)
    return write_report(runs, folder, console, suite, options, about=about)


def _check_suite(suite: str | None, runs: Runs) -> None:
    known = {*SUITES, *(runs.rows["suite"] if len(runs.rows) else [])}
    if suite is not None and suite not in known:
        raise AnalysisError(f"no suite {suite!r}. {did_you_mean(suite, sorted(known))}")


def _sets(root: Path, suite: str | None, protocol: str | None, errors: Console) -> list[ComparableSet]:
    sets = comparable_sets(load(root, errors).rows)
    return [s for s in sets if suite in (None, s.key["suite"]) and protocol in (None, s.key["protocol"])]


def compare(
    first: str, second: str, root: Path, suite: str | None, protocol: str | None, margin: float, errors: Console
) -> list[Table]:
    """Tables of two methods of the records below `root`, or of two results folders."""
    folders = [Path(name) for name in (first, second)]
    if all((folder / "runs").is_dir() for folder in folders):
        sides = [_sets(folder, suite, protocol, errors) for folder in folders]
        return compare_folders(sides[0], sides[1], (first, second), margin)
    return compare_in_sets(_sets(root, suite, protocol, errors), first, second, margin)


def bias(root: Path, suite: str | None, errors: Console) -> list[Table]:
    """What choosing by the test split gains, from the records below `root`."""
    return bias_tables(_sets(root, suite, None, errors))


def verified(
    name: str | None, root: Path, suite: str | None, protocol: str | None, errors: Console
) -> list[Verification]:
    """Own records against each source that has the same methods and tasks. `AnalysisError` if none has."""
    sources = [source(name)] if name else list(load_published().values())
    sets = [peers for peers in _sets(root, suite, protocol, errors) if peers.key["protocol"] != "validation"]
    parts = [part for peers in sets for published in sources if (part := verify(peers, published))]
    if not parts:
        held = ", ".join(sorted({peers.key["suite"] for peers in sets})) or "no test results"
        where = f"source {name!r} has" if name else "no source has"
        raise AnalysisError(f"{where} a method and task of these records ({held}); `sctbench published` lists sources")
    return parts


def published_rows() -> list[dict[str, Any]]:
    """A line per published source."""
    return [
        {"name": s.name, "methods": len(s.methods), "rows": len(s.rows), "source": s.title}
        for s in load_published().values()
    ]


def published_tables(name: str, reference: str | None) -> list[Table]:
    """A source's tables, and the tests against `reference` if given."""
    peers = source(name)
    return [*tables(peers), *([significance(peers, reference)] if reference else [])]
