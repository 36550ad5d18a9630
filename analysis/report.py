"""The report: every table and figure that the records allow, as files, as one HTML page and on the terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.figures import drawings, save
from analysis.frame import ComparableSet, comparable_sets
from analysis.page import About, Picture, Section, to_html
from analysis.page_tables import make_board
from analysis.published import measured_beside
from analysis.render import to_terminal, write_table
from analysis.runs import Read, Runs
from analysis.tables import (
    ALL_TABLES,
    WEIGHTS_TABLE,
    Table,
    TableOptions,
    accuracy_tables,
    all_tables,
    check_options,
    weights_tables,
)
from analysis.tables.cells import LEFT_OUT, set_title
from analysis.tables.significance import DEFAULT_REFERENCE

PAGE = "index.html"


def write_report(
    runs: Runs,
    folder: Path,
    console: Console,
    suite: str | None = None,
    options: TableOptions = ALL_TABLES,
    *,
    about: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[Path]:
    """Write everything below `folder`, print the tables, and return the files' paths, the page first.

    `suite`: only that one; `about`: title, family and paper by method, for records that do not say. The runs are
    expected beside `folder`, which is where the page's links point. `AnalysisError` where `options` name what no set
    has.
    """
    sets = [s for s in comparable_sets(runs.rows) if suite in (None, s.key["suite"])]
    if not sets:
        console.print("No records" + (f" of suite {suite!r}" if suite else "") + " yet: `sctbench run` makes them.")
        return []
    check_options(sets, options)
    methods = {name: About(**{k: str(facts[k]) for k in About.__slots__}) for name, facts in (about or {}).items()}
    methods |= _about(runs.rows)
    base = Path(os.path.relpath(folder.parent / "runs", folder)).as_posix()
    paths: list[Path] = []
    sections = []
    for chosen, name in zip(sets, _names(sets), strict=True):
        tables = tables_of(chosen, sets, options)
        section, written = _write_set(chosen, tables, runs.read, folder / name, console, methods, base, options)
        sections.append(section)
        paths += written
    page = folder / PAGE
    set_aside = [(os.path.relpath(bad.path, folder.parent), bad.reason) for bad in runs.rejected]
    rows = runs.rows[runs.rows["suite"].isin([s.key["suite"] for s in sets])]
    page.write_text(to_html(sections, rows, set_aside=set_aside, about=methods, base=base, folder=folder))
    return [page, *paths]


def _about(rows: pd.DataFrame) -> dict[str, About]:
    """What records say of their methods, which may not be known here."""
    told = rows[rows["family"] != ""].drop_duplicates("method", keep="last")
    facts = told[["method", "title", "family", "paper"]].itertuples(index=False)
    return {method: About(title=title, family=family, paper=paper) for method, title, family, paper in facts}


def tables_of(chosen: ComparableSet, sets: list[ComparableSet], options: TableOptions) -> list[Table]:
    """Tables of a set: the one place that says which there are; the first is the page's leaderboard.

    `ValueError` if two have one name, for the files of one would overwrite those of the other.
    """
    tables = [*all_tables(chosen, options), *weights_tables(chosen, _at_random(chosen, sets))]
    twice = [name for name, count in Counter(table.name for table in tables).items() if count > 1]
    if twice:
        raise ValueError(f"several tables of {set_title(chosen)} are named {', '.join(twice)}")
    return tables


def _write_set(
    chosen: ComparableSet,
    tables: list[Table],
    read: Read,
    folder: Path,
    console: Console,
    about: Mapping[str, About],
    base: str,
    options: TableOptions,
) -> tuple[Section, list[Path]]:
    """Tables and figures of one comparable set; the accuracy tables and what pretraining is worth are printed."""
    printed = {table.name for table in accuracy_tables(chosen)}
    paths = []
    for table in tables:
        if table.name in printed or table.name.startswith(WEIGHTS_TABLE):
            to_terminal(table, console)
        paths += write_table(table, folder)
    paths.append(folder / "runs.csv")  # every seed's value, for whoever wants other statistics
    chosen.rows.to_csv(paths[-1], index=False)
    if chosen.left_out:
        paths.append(folder / LEFT_OUT)
        pd.DataFrame(chosen.left_out).to_csv(paths[-1], index=False)
    pictures, not_drawn = _write_figures(chosen, read, folder, options.reference or DEFAULT_REFERENCE)
    families = {name: facts.family for name, facts in about.items()}
    section = Section(
        name=folder.name,
        title=set_title(chosen),
        key=chosen.key,
        boards=[make_board(chosen, table, families, base) for table in tables],
        tables=tables,
        pictures=pictures,
        not_drawn=not_drawn,
        left_out=chosen.left_out,
    )
    return section, paths + [path for picture in pictures for path in picture.files]


def _write_figures(
    chosen: ComparableSet, read: Read, folder: Path, reference: str
) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Figures that were drawn, and the others with what they need."""
    pictures: list[Picture] = []
    missing: list[tuple[str, str]] = []
    for drawing in drawings(chosen, read, measured_beside(chosen), reference):
        figure = drawing.draw()
        if figure is None:
            missing.append((drawing.name, drawing.needs))
            continue
        files = save(figure, folder, drawing.name)
        pictures.append(Picture(name=drawing.name, caption=drawing.caption, png=files[0], files=files))
    return pictures, missing


def _names(sets: list[ComparableSet]) -> list[str]:
    """Folder names; sets that differ only in preprocessing, precision or the checkpoint's bytes are numbered."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for chosen in sets:
        key = chosen.key
        protocol = f"{key['protocol']}{key['trials'] or ''}"
        parts = (key["suite"], protocol, key["backbone"], key["weights"], f"{key['image_size']}px")
        name = "-".join(str(part).replace(os.sep, "_") for part in parts)
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return names


def _at_random(chosen: ComparableSet, sets: list[ComparableSet]) -> list[ComparableSet]:
    """Sets that differ from this one in nothing but random instead of pretrained weights."""

    def rest(one: ComparableSet) -> dict[str, object]:
        return {k: v for k, v in one.key.items() if k not in {"weights", "weights_digest"}}

    if chosen.key["weights"] == "random":
        return []
    return [other for other in sets if other.key["weights"] == "random" and rest(other) == rest(chosen)]
