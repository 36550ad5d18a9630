"""The report: every table and figure that the records allow, as files, as one HTML page and on the terminal."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from analysis.figures.gallery import Drawing, drawings
from analysis.figures.style import save
from analysis.frame import ComparableSet, comparable_sets, judged
from analysis.index import ReadRecords, Runs
from analysis.literature import measured_beside
from analysis.page import MethodFacts, Section, to_html
from analysis.page_tables import Bases, make_page_table
from analysis.paired import ReadPredictions
from analysis.render import write_table
from analysis.render.terminal import to_terminal
from analysis.tables import ALL_TABLES, TableOptions, all_tables, check_options
from analysis.tables.base import Table
from analysis.tables.cells import LEFT_OUT, set_title
from analysis.tables.confusions import CONFUSIONS_TABLE, confusions_table
from analysis.tables.differences import WEIGHTS_TABLE, weights_tables
from analysis.tables.images import IMAGES_TABLE, images_table
from analysis.tables.significance import DEFAULT_REFERENCE
from analysis.tables.tasks import result_tables

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

    `suite`: only that one; `about`: title, family and paper by method, for records that do not say. Runs that are not
    from results folders are expected beside `folder`, where the page's links to them point. `HarnessError` where
    `options` name what no set has.
    """
    facts = _facts(runs.rows, about or {})
    methods = runs.rows["method"] if len(runs.rows) else ()
    rows = runs.rows.assign(family=[facts[name].family if name in facts else "" for name in methods])
    sets = judged((s for s in comparable_sets(rows) if suite in (None, s.key["suite"])), options.metric)
    if not sets:
        console.print("No records" + (f" of suite {suite!r}" if suite else "") + " yet: `sctbench run` makes them.")
        return []
    check_options(sets, options)
    base = _bases(runs, folder)
    writer = _Writer(folder=folder, base=base, read=runs.read, console=console, options=options)
    sections, paths = [], []
    for peers, name in zip(sets, _names(sets), strict=True):
        section, written = writer.write(peers, tables_of(peers, sets, options, runs.predictions), name)
        sections.append(section)
        paths += written
    page = folder / PAGE
    set_aside = [(os.path.relpath(bad.path, folder.parent), bad.reason) for bad in runs.rejected]
    shown = rows[rows["suite"].isin([s.key["suite"] for s in sets])]
    page.write_text(to_html(sections, shown, set_aside=set_aside, about=facts, base=base, folder=folder))
    return [page, *paths]


def _bases(runs: Runs, folder: Path) -> Bases:
    """Where the page's links point: to the folders of the runs, and nowhere for those of packs."""
    if "results" not in runs.rows:
        return Path(os.path.relpath(folder.parent / "runs", folder)).as_posix()
    links = {name: os.path.relpath(root / "runs", folder) for name, root in runs.folders.items()}
    return {name: Path(links[name]).as_posix() if name in links else "" for name in runs.rows["results"].unique()}


def _facts(rows: pd.DataFrame, about: Mapping[str, Mapping[str, Any]]) -> dict[str, MethodFacts]:
    """What is known of methods: from their records first, and of the others as given."""
    given = {name: MethodFacts(**{k: str(facts[k]) for k in MethodFacts.__slots__}) for name, facts in about.items()}
    if rows.empty:
        return given
    told = rows[rows["family"] != ""].drop_duplicates("method", keep="last")
    facts = told[["method", "title", "family", "paper"]].itertuples(index=False)
    return given | {method: MethodFacts(title=t, family=family, paper=paper) for method, t, family, paper in facts}


def tables_of(
    peers: ComparableSet, sets: list[ComparableSet], options: TableOptions, read: ReadPredictions
) -> list[Table]:
    """Tables of a set: the one place that says which there are; the first is the page's leaderboard.

    `ValueError` if two have one name, for the files of one would overwrite those of the other.
    """
    images = images_table(peers, options.reference, read)
    confusions = confusions_table(peers, read)
    tables = [*all_tables(peers, options), *(table for table in (images, confusions) if table)]
    tables += weights_tables(peers, _at_random(peers, sets))
    twice = [name for name, count in Counter(table.name for table in tables).items() if count > 1]
    if twice:
        raise ValueError(f"several tables of {set_title(peers)} are named {', '.join(twice)}")
    return tables


@dataclass(frozen=True, slots=True, kw_only=True)
class _Writer:
    """Writes the tables and figures of comparable sets."""

    folder: Path
    base: Bases

    read: ReadRecords
    console: Console
    options: TableOptions

    def write(self, peers: ComparableSet, tables: list[Table], name: str) -> tuple[Section, list[Path]]:
        """One set, in a folder of that name. The tables of results, which differences are real, what is confused, and
        what pretraining is worth are printed."""
        folder = self.folder / name
        printed = {IMAGES_TABLE, CONFUSIONS_TABLE, *(table.name for table in result_tables(peers))}
        paths = []
        for table in tables:
            if table.name in printed or table.name.startswith(WEIGHTS_TABLE):
                to_terminal(table, self.console)
            paths += write_table(table, folder)
        paths.append(folder / "runs.csv")  # every seed's value, for other statistics
        peers.rows.to_csv(paths[-1], index=False)
        if peers.left_out:
            paths.append(folder / LEFT_OUT)
            pd.DataFrame(peers.left_out).to_csv(paths[-1], index=False)
        figures, not_drawn = self._figures(peers, folder)
        section = Section(
            name=name,
            title=set_title(peers),
            key=peers.key,
            page_tables=[make_page_table(peers, table, self.base) for table in tables],
            figures=figures,
            not_drawn=not_drawn,
            left_out=peers.left_out,
        )
        return section, paths + [path for _, files in figures for path in files]

    def _figures(self, peers: ComparableSet, folder: Path) -> tuple[list[tuple[Drawing, list[Path]]], list[Drawing]]:
        """Figures that were drawn, with their files, and the others."""
        figures, missing = [], []
        reference = self.options.reference or DEFAULT_REFERENCE
        for drawing in drawings(peers, self.read, measured_beside(peers), reference):
            figure = drawing.draw()
            if figure is None:
                missing.append(drawing)
            else:
                figures.append((drawing, save(figure, folder, drawing.name)))
        return figures, missing


def _names(sets: list[ComparableSet]) -> list[str]:
    """Folder names; sets that differ only in preprocessing, precision, the checkpoint's bytes or the metric are
    numbered."""
    names: list[str] = []
    counts: dict[str, int] = {}
    for peers in sets:
        key = peers.key
        protocol = f"{key['protocol']}{key['trials'] or ''}"
        parts = (key["suite"], protocol, key["backbone"], key["weights"], f"{key['image_size']}px")
        name = "-".join(str(part).replace(os.sep, "_") for part in parts)
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name}-{counts[name]}")
    return names


def _at_random(peers: ComparableSet, sets: list[ComparableSet]) -> list[ComparableSet]:
    """Sets that differ from this one in nothing but random instead of pretrained weights."""
    if peers.key["weights"] == "random":
        return []
    names = ("weights", "weights_digest")
    at_random = [other for other in sets if other.key["weights"] == "random" and other.metric == peers.metric]
    return [other for other in at_random if other.rest_of_key(*names) == peers.rest_of_key(*names)]
