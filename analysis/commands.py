"""What the commands `report`, `compare`, `bias`, `verify` and `published` call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from analysis.comparison import compare_folders, compare_in_sets
from analysis.frame import ComparableSet, comparable_sets, judged
from analysis.index import Runs, from_folder
from analysis.literature import load as load_published
from analysis.literature import significance, source, tables
from analysis.render.terminal import to_terminal
from analysis.sources import check_places, from_sources
from analysis.tables.base import Table
from analysis.tables.confusions import confusions_table
from analysis.tables.differences import bias_tables
from analysis.tables.tasks import result_tables
from analysis.verify import Verification, verify
from harness.errors import HarnessError, did_you_mean
from harness.schema.metrics import get as get_metric
from suites import SUITES, known, suite_name


def load(root: Path, errors: Console, results: Sequence[Path] | None = None) -> Runs:
    """All valid records of a results folder, or of the folders and packs `results` in its place. Files that are set
    aside are printed with the reason, and what runs several places hold."""
    check_places(results or ())
    runs = from_sources(results or [root])
    for bad in runs.rejected:
        errors.print(f"set aside {bad.path}: {bad.reason}", highlight=False, markup=False)
    for remark in runs.remarks:
        errors.print(f"note: {remark}", highlight=False, markup=False)
    return runs


def show(tables: Iterable[Table], console: Console) -> None:
    """Print tables."""
    for table in tables:
        to_terminal(table, console)


def tables_of_runs(root: Path, run_ids: Iterable[str]) -> list[Table]:
    """The tables of results of these runs below `root`, and what they confuse."""
    runs = from_folder(root)
    sets = comparable_sets(runs.rows[runs.rows["run_id"].isin(set(run_ids))]) if len(runs.rows) else []
    tables = [[*result_tables(peers), confusions_table(peers, runs.predictions)] for peers in judged(sets, None)]
    return [table for of_set in tables for table in of_set if table]


def check_suite(suite: str | None, runs: Runs) -> None:
    """`HarnessError` for a suite that neither this version nor the records know."""
    names = {*SUITES, *(runs.rows["suite"] if len(runs.rows) else [])}
    if suite is not None and suite not in names and known(suite) is None:
        raise HarnessError(f"no suite {suite!r}. {did_you_mean(suite, sorted(names))}")


def _sets(root: Path, suite: str | None, protocol: str | None, errors: Console) -> list[ComparableSet]:
    return _chosen(load(root, errors), suite, protocol)


def _chosen(runs: Runs, suite: str | None, protocol: str | None) -> list[ComparableSet]:
    sets, suite = comparable_sets(runs.rows), suite and suite_name(suite)
    return [s for s in sets if suite in (None, s.key["suite"]) and protocol in (None, s.key["protocol"])]


def compare(
    first: str,
    second: str,
    root: Path,
    suite: str | None,
    protocol: str | None,
    margin: float | None,
    errors: Console,
    metric: str | None = None,
    results: Sequence[Path] | None = None,
) -> list[Table]:
    """Tables of two methods of the records below `root`, or of those of `results`; or of two results folders or packs.
    `margin`: in the unit of the metric, its own if not given; `metric`: the tasks' primary one if not given."""
    folders, by = [Path(name) for name in (first, second)], get_metric(metric) if metric else None
    if all((folder / "runs").is_dir() or folder.is_file() for folder in folders):
        if results:
            raise HarnessError(f"--results goes with two methods, and {first} and {second} are results themselves")
        here, there = (load(folder, errors) for folder in folders)
        sides = [judged(_chosen(runs, suite, protocol), by) for runs in (here, there)]
        read = here.predictions, there.predictions
        return compare_folders(sides[0], sides[1], (first, second), margin, read)
    runs = load(root, errors, results)
    return compare_in_sets(judged(_chosen(runs, suite, protocol), by), first, second, margin, runs.predictions)


def bias(root: Path, suite: str | None, errors: Console, metric: str | None = None) -> list[Table]:
    """What choosing by the test split gains, from the records below `root`; `metric` as in `compare`."""
    return bias_tables(judged(_sets(root, suite, None, errors), get_metric(metric) if metric else None))


def verified(
    name: str | None, root: Path, suite: str | None, protocol: str | None, errors: Console
) -> list[Verification]:
    """Own records against each source that has the same methods and tasks. `HarnessError` if none has."""
    sources = [source(name)] if name else list(load_published().values())
    sets = [peers for peers in _sets(root, suite, protocol, errors) if peers.key["protocol"] != "validation"]
    parts = [part for peers in sets for published in sources if (part := verify(peers, published))]
    if not parts:
        held = ", ".join(sorted({peers.key["suite"] for peers in sets})) or "no test results"
        where = f"source {name!r} has" if name else "no source has"
        raise HarnessError(f"{where} a method and task of these records ({held}); `sctbench published` lists sources")
    return parts


def published_rows() -> list[dict[str, Any]]:
    """A line per published source."""
    return [
        {"name": s.name, "methods": s.rows["method"].nunique(), "rows": len(s.rows), "source": s.title}
        for s in load_published().values()
    ]


def published_tables(name: str, reference: str | None) -> list[Table]:
    """A source's tables, and the tests against `reference` if given."""
    published = source(name)
    return [*tables(published), *([significance(published, reference)] if reference else [])]
