"""Cells, row order and captions that the tables of a comparable set share."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from analysis.comparability import CELL_KEYS, left_out_text, taken_in_part
from analysis.frame import REPLICATE_KEYS, ComparableSet
from analysis.statistics import average_ranks
from analysis.tables.base import MISSING, UNKNOWN, Cell, Key, number_cell
from harness.schema.metrics import Metric
from harness.schema.protocol import PROTOCOLS
from suites import known

LEFT_OUT = "left_out.csv"
"""File of a report that names each run that was left out of a set."""


def seed_count(rows: pd.DataFrame) -> int:
    """Number of replicates: pairs of split seed and training seed that occur."""
    return len(rows[REPLICATE_KEYS].drop_duplicates())


def metric_cells(peers: ComparableSet) -> dict[str, dict[Key, Cell]]:
    """Label to (task, shots) to the metric's mean over split seeds and seeds, with the standard deviation (ddof=1)."""
    rows, seeds = peers.rows, seed_count(peers.rows)
    complete, keys = rows["status"] == "complete", [rows["label"], *(rows[key] for key in CELL_KEYS)]
    values = rows[peers.metric.name].where(complete).groupby(keys).agg(["mean", "std", "count"])
    cells: dict[str, dict[Key, Cell]] = {label: {} for label in label_order(rows)}
    for one in values.assign(done=complete.groupby(keys).any()).reset_index().itertuples(index=False):
        label, task, shots, mean, spread, count, done = one
        note = "" if count == seeds else f"{count}/{seeds}"
        cell = Cell(value=mean, spread=spread, note=note) if count else UNKNOWN if done else Cell(note="failed")
        cells[label][task, int(shots)] = cell
    return cells


def label_order(rows: pd.DataFrame) -> list[str]:
    """Row labels by number of trained parameters, then by name."""
    first = rows.groupby("label")["parameters"].max().astype(float).fillna(np.inf)
    return sorted(first.index, key=lambda label: (first[label], label))


def by_label(rows: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Runs of each label, in the order of `label_order`."""
    groups = dict(list(rows.groupby("label")))
    return [(label, groups[label]) for label in label_order(rows)]


def incomplete(cells: dict[Key, Cell], keys: Iterable[Key]) -> str:
    """`*` where one of the cells of a row is not all there."""
    return "*" if any(cells.get(key, MISSING).note for key in keys) else ""


def rank_cells(cells: dict[str, dict[Key, Cell]], keys: list[Key], metric: Metric) -> dict[str, Cell]:
    """Average rank over `keys` among the rows that have them all; missing for the others, and for one row alone."""
    values = {label: [row.get(key, MISSING).value for key in keys] for label, row in cells.items()}
    whole = pd.DataFrame(values).T.dropna()
    ranks = average_ranks(whole, metric.higher_is_better) if len(whole) > 1 else pd.Series(dtype=float)
    return {label: number_cell(float(ranks.get(label, np.nan)), incomplete(cells[label], keys)) for label in cells}


def cost_cells(runs: pd.DataFrame, names: list[str], keys: list[Key], seeds: int) -> dict[str, Cell]:
    """Means of columns of the frame over complete runs of a cell, and then over the cells `keys`; missing if none has a
    value, marked `*` where a cell lacks runs or values."""
    complete = runs[runs["status"] == "complete"]
    grouped = complete[names].astype(float).groupby([complete[key] for key in CELL_KEYS])
    cells = pd.MultiIndex.from_tuples(keys)
    means, counts = grouped.mean().reindex(cells), grouped.count().reindex(cells)
    notes = (counts.fillna(0) < seeds).any()
    return {name: number_cell(float(means[name].mean()), "*" if notes[name] else "") for name in names}


def protocol_caption(name: str, suite: str) -> str:
    """What a protocol means, in a line, with the split that the suite's final models are trained on."""
    caption = PROTOCOLS[name].caption if name in PROTOCOLS else "unknown to this version"
    on_train = (there := known(suite)) is not None and there.final_split == "train"
    return caption.replace("train+val", "train") if on_train else caption


def spread_caption(rows: pd.DataFrame) -> str:
    """What ± means here."""
    seeds = seed_count(rows)
    if seeds < 2:
        return "one seed, so no spread is known"
    draws = rows["split_seed"].nunique()
    over = f"{seeds} seeds" if draws < 2 else f"{seeds} pairs of split seed and training seed ({draws} split seeds)"
    return f"mean ± standard deviation (ddof=1) over {over}"


def set_caption(peers: ComparableSet) -> str:
    """Protocol, backbone, preprocessing, precision, devices and what was left out: the end of every caption."""
    key = peers.key
    budget = f"; {key['trials']} trials, or all there are where a method has fewer" if key["trials"] else ""
    devices = " and ".join(sorted(peers.rows["device"].dropna().unique())) or "not recorded"
    caption = (
        f"Protocol {key['protocol']}: {protocol_caption(key['protocol'], key['suite'])}{budget}. "
        f"Backbone {key['backbone']} ({key['weights']} weights) at {key['image_size']} px, preprocessing "
        f"{key['preprocessing']}, precision {key['precision']}. Device: {devices}."
    )
    if other := taken_in_part(peers.rows):
        is_own = (suite := known(key["suite"])) is None or suite.path is not None
        what = "Data" if is_own else "Not the suite's own data, so not comparable with published numbers"
        caption += f" {what}: {other}."
    if peers.notes:
        caption += f" Not the same in all records: {'; '.join(peers.notes)}."
    if peers.left_out:
        caption += f" Left out, for they differ from the others: {left_out_text(peers.left_out)}; each in {LEFT_OUT}."
    return caption


def set_title(peers: ComparableSet, what: str = "") -> str:
    """`demo, protocol fixed, demo_vit (pretrained)`, with what tells the set apart and the kind of table after it."""
    key = peers.key
    title = f"{key['suite']}, protocol {key['protocol']}, {key['backbone']} ({key['weights']})"
    title += f", {peers.apart}" if peers.apart else ""
    return f"{title}: {what}" if what else title
