"""The report: every table and figure that the records allow, as files and on the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.frame import ComparableSet, comparable_sets
from analysis.plots import accuracy_against_parameters, save
from analysis.render import to_terminal, write_table
from analysis.tables import ALL_TABLES, Table, TableOptions, accuracy_tables, all_tables, task_table, weights_table
from harness.record import RunRecord


def _folder_name(chosen: ComparableSet) -> str:
    key = chosen.key
    return f"{key['suite']}-{key['protocol']}-{key['backbone']}-{key['weights']}-{key['image_size']}px"


def _write_set(chosen: ComparableSet, folder: Path, console: Console, options: TableOptions) -> list[Path]:
    """All tables and the figure of one comparable set; the accuracy tables are printed."""
    printed = {table.name for table in accuracy_tables(chosen)}
    paths: list[Path] = []
    for table in all_tables(chosen, options):
        paths += _write_table(table, folder, console if table.name in printed else Console(quiet=True))
    paths.append(folder / "runs.csv")  # every seed's value, for whoever wants other statistics
    chosen.rows.to_csv(paths[-1], index=False)
    table = task_table(chosen)
    if any(cells[0].is_number for cells in table.rows.values()):
        paths.append(save(accuracy_against_parameters(chosen, table), folder / "accuracy_parameters.png"))
    return paths


def _write_table(table: Table, folder: Path, console: Console) -> list[Path]:
    to_terminal(table, console)
    return write_table(table, folder)


def write_report(
    records: Iterable[RunRecord] | pd.DataFrame,
    folder: Path,
    console: Console,
    suite: str | None = None,
    options: TableOptions = ALL_TABLES,
) -> list[Path]:
    """Write everything below `folder`, print the tables, and return the files' paths. `suite`: only that one."""
    sets = [s for s in comparable_sets(records) if suite in (None, s.key["suite"])]
    if not sets:
        console.print("No records" + (f" of suite {suite!r}" if suite else "") + " yet: `sctbench run` makes them.")
    names: dict[str, int] = {}
    paths: list[Path] = []
    for chosen in sets:
        name = _folder_name(chosen)
        names[name] = names.get(name, 0) + 1  # sets that differ only in preprocessing or in the checkpoint's bytes
        unique = name if names[name] == 1 else f"{name}-{names[name]}"
        paths += _write_set(chosen, folder / unique, console, options)
    for pretrained, random in _pairs(sets):
        paths += _write_table(weights_table(pretrained, random), folder / _folder_name(pretrained), console)
    return paths


def _pairs(sets: list[ComparableSet]) -> list[tuple[ComparableSet, ComparableSet]]:
    """Sets that differ in nothing but pretrained against random weights."""
    ignored = {"weights", "weights_digest"}

    def rest(chosen: ComparableSet) -> dict[str, object]:
        return {k: v for k, v in chosen.key.items() if k not in ignored}

    randoms = [s for s in sets if s.key["weights"] == "random"]
    return [(s, r) for s in sets for r in randoms if s.key["weights"] != "random" and rest(s) == rest(r)]
