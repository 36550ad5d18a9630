"""Methods on the same images: of two methods task by task, and of every method of a set against a reference.

It is about top-1 accuracy, whatever metric other tables show.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

import numpy as np
import pandas as pd

from analysis.comparability import CELL_KEYS, MOST_NOTED
from analysis.frame import REPLICATE_KEYS, ComparableSet, averaged, cell_name, suite_cells
from analysis.paired import (
    ByReplicate,
    Paired,
    ReadPredictions,
    compare_images,
    interval_text,
    outcomes,
    sentence,
    test_text,
)
from analysis.statistics import CONFIDENCE
from analysis.tables.base import (
    MISSING,
    Cell,
    Column,
    Key,
    Row,
    Table,
    difference_column,
    mean_cell,
    number_cell,
    value_column,
)
from analysis.tables.cells import label_order, metric_cells, set_caption, set_title
from analysis.tables.significance import choose_reference, matrix
from harness.errors import HarnessError
from harness.schema.metrics import ACCURACY

IMAGES_TABLE = "images"

NOT_KEPT = "no predictions kept, as by runs of before schema 5, or packed without"

READ_BY = [*CELL_KEYS, *REPLICATE_KEYS, "split", "predictions", "results", "path"]
"""Columns of the frame that matter here; a frame of records in memory has no `results` and `path`."""

POINTS = f"points, {CONFIDENCE:.0%} interval".replace("%", " %")
ALONE = "right by one alone"
TOGETHER = "both together, in per cent"
HOLM, READS = Column(name="Holm p", group="two-sided test", kind="p"), Column(name="reads", kind="text")

ABOUT = (
    "agreement: images to which both give the same class; oracle: images that at least one has right; average: top-1 "
    "accuracy of the mean of their probabilities"
)
NO_LOGITS = " (needs runs with --keep-logits)"
ONE_SEED = (
    " With one seed this is about two trained models: only more seeds tell whether the methods differ from training to "
    "training."
)


def _predictions(runs: pd.DataFrame, read: ReadPredictions) -> ByReplicate | str:
    """Of complete runs of one method on one task, or why they cannot be had. Runs that kept none are passed over."""
    kept = runs[runs["predictions"]]
    if kept.empty:
        return NOT_KEPT
    try:
        by_split = read(kept)
    except HarnessError as error:
        return str(error)
    replicates = zip(kept["split_seed"], kept["seed"], kept["split"], by_split, strict=True)
    return {(int(draw), int(seed)): one[split] for draw, seed, split, one in replicates}


def _by_cell(runs: pd.DataFrame) -> dict[Key, pd.DataFrame]:
    """Complete runs by task and shots."""
    complete = runs[runs["status"] == "complete"].filter(items=READ_BY)
    return {(str(t), int(str(s))): same for (t, s), same in complete.groupby(CELL_KEYS)}


def _together(first: ByReplicate | str, second: ByReplicate | str) -> Paired | str:
    if isinstance(first, str):
        return first
    return second if isinstance(second, str) else compare_images(first, second)


def _not_tested(found: Mapping[str, Paired | str]) -> str:
    """` Not tested image by image: digits (no seed in common).`; empty where all were."""
    reasons: dict[str, list[str]] = {}
    for name, why in found.items():
        if isinstance(why, str):
            reasons.setdefault(why, []).append(name)
    texts = [f"{_named(names, len(found))} ({why})" for why, names in reasons.items()]
    return f" Not tested image by image: {'; '.join(texts)}." if texts else ""


def _named(names: list[str], of: int) -> str:
    if len(names) == of:
        return "all"
    return ", ".join(names) if len(names) <= MOST_NOTED else f"{len(names)} of {of}"


Read = Callable[[Paired], float]


def _share_columns(pairs: Iterable[Paired]) -> dict[Column, Read]:
    """What two methods are worth together; the average only where some runs kept logits."""
    names = {"agreement": "agreement", "oracle": "oracle"}
    if any(not np.isnan(pair.averaged) for pair in pairs):
        names["average"] = "averaged"
    return {Column(name=k, group=TOGETHER, digits=2, plain=False): attrgetter(v) for k, v in names.items()}


def _cells(pair: Paired, columns: Mapping[Column, Read]) -> Row:
    return {column.key: number_cell(read(pair)) for column, read in columns.items()}


def _caption(pairs: Iterable[Paired], columns: Iterable[Column]) -> str:
    """What the tests and columns mean."""
    one_seed = ONE_SEED if any(pair.trainings == 1 for pair in pairs) else ""
    return f"{ABOUT}{'' if any(column.name == 'average' for column in columns) else NO_LOGITS}.{one_seed}"


def with_images(
    table: Table,
    peers: ComparableSet,
    sides: tuple[pd.DataFrame, pd.DataFrame],
    names: tuple[str, str],
    read: tuple[ReadPredictions, ReadPredictions],
) -> list[Table]:
    """The table of a comparison and that of the same runs image by image, or only the first, which then says why."""
    ours, theirs = (_by_cell(side) for side in sides)
    found = {
        cell_name(*key): _together(_predictions(ours[key], read[0]), _predictions(theirs[key], read[1]))
        for key in suite_cells(peers.key["suite"], peers.rows)
        if key in ours and key in theirs
    }
    pairs = {name: pair for name, pair in found.items() if isinstance(pair, Paired)}
    remark = _not_tested(found)
    if not pairs:
        return [dataclasses.replace(table, caption=f"{table.caption}{remark}")]
    return [table, _pair_table(pairs, names, peers, remark)]


def _pair_columns(names: tuple[str, str], pairs: Iterable[Paired]) -> dict[Column, Read]:
    """Columns of numbers before those of the test; a number of images has a fraction where it is a mean over seeds."""
    digits = int(any(pair.first_only % 1 or pair.second_only % 1 for pair in pairs))
    sides = (("first", names[0]), ("second", names[1]))
    points = {"difference": "difference", "low": "interval.low", "high": "interval.high"}
    return {
        Column(name="images", kind="integer"): attrgetter("images"),
        **{dataclasses.replace(value_column(ACCURACY, name, 1), best=""): attrgetter(side) for side, name in sides},
        **{difference_column(ACCURACY, name, 1, group=POINTS): attrgetter(of) for name, of in points.items()},
        **{Column(name=name, group=ALONE, digits=digits): attrgetter(f"{side}_only") for side, name in sides},
        Column(name="p", group=HOLM.group, kind="p"): attrgetter("p"),
    }


def _pair_table(pairs: dict[str, Paired], names: tuple[str, str], peers: ComparableSet, remark: str) -> Table:
    """A row per task, and the means."""
    numbers, shares, found = _pair_columns(names, pairs.values()), _share_columns(pairs.values()), outcomes(pairs)
    rows = {
        task: _cells(pair, numbers | shares)
        | {HOLM.key: number_cell(found[task].p), READS.key: Cell(text=found[task].reading)}
        for task, pair in pairs.items()
    }
    _, first, second, difference, *_ = numbers
    averaged = (first, second, difference, *shares)
    means = {column.key: mean_cell([row[column.key] for row in rows.values()]) for column in averaged}
    return Table(
        name=f"comparison_{IMAGES_TABLE}",
        title=set_title(peers, f"{names[0]} against {names[1]}, image by image"),
        caption=f"{sentence(*names, pairs)} Top-1 accuracy on the same images. {ALONE}: images that only this one has "
        f"right, mean over seeds; low, high: by {interval_text(pairs.values())}; {_caption(pairs.values(), shares)}"
        f"{remark}",
        columns=[*numbers, HOLM, READS, *shares],
        rows=rows | {f"mean of {len(pairs)} tasks": means},
        corner="task",
    )


def images_table(peers: ComparableSet, reference: str | None, read: ReadPredictions) -> Table | None:
    """Every method of a set against the reference of its significance table; None where no two kept predictions of the
    same images."""
    groups = averaged(suite_cells(peers.key["suite"], peers.rows))
    whole = matrix(metric_cells(peers), list(groups)).dropna()
    if whole.empty or not peers.rows["predictions"].any():
        return None
    base, unused = choose_reference(peers, whole, reference)
    found = _against(peers, base, list(groups), read)
    pairs = {
        label: {cell_name(*key): pair for key, pair in by_cell.items() if isinstance(pair, Paired)}
        for label, by_cell in found.items()
    }
    flat = [pair for by_name in pairs.values() for pair in by_name.values()]
    if not flat:
        return None
    counts = [Column(name=name, group=f"tasks against {base}", kind="integer") for name in COUNTED.values()]
    shares = _share_columns(flat)
    tasks = [
        difference_column(ACCURACY, cell_name(*key), group=group, over=(key,), plain=False)
        for key, group in groups.items()
    ]
    all_of_them = {f"{label} on {cell_name(*key)}": pair for label, by in found.items() for key, pair in by.items()}
    return Table(
        name=IMAGES_TABLE,
        title=set_title(peers, f"which differences on the same images are real, against {base}"),
        caption=f"{unused}Points of top-1 accuracy above or below {base}, with ≈ where "
        f"{test_text(flat)}, two-sided, leaves open whether they differ at 5 % (Holm's correction over the tasks of a "
        f"row). wins, undecided, losses: these tasks counted; {_caption(flat, shares)} {set_caption(peers)}"
        f"{_not_tested(all_of_them)}",
        columns=[*counts, *shares, *tasks],
        rows={label: _row(by_name, counts, shares, tasks) for label, by_name in pairs.items() if by_name},
    )


COUNTED = {"better": "wins", "undecided": "undecided", "worse": "losses"}
"""Columns that count tasks, by what the tests of these read."""


def _against(
    peers: ComparableSet, base: str, keys: list[Key], read: ReadPredictions
) -> dict[str, dict[Key, Paired | str]]:
    """By label and cell, task by task, so that the predictions of one task are in memory at a time."""
    by_label = {label: _by_cell(runs) for label, runs in peers.rows.groupby("label")}
    found: dict[str, dict[Key, Paired | str]] = {label: {} for label in label_order(peers.rows) if label != base}
    for key in (key for key in keys if key in by_label[base]):
        theirs = _predictions(by_label[base][key], read)
        for label in (label for label in found if key in by_label[label]):
            ours = theirs if isinstance(theirs, str) else _predictions(by_label[label][key], read)
            found[label][key] = _together(ours, theirs)
    return found


def _row(pairs: dict[str, Paired], counts: list[Column], shares: dict[Column, Read], tasks: list[Column]) -> Row:
    found = outcomes(pairs)
    readings = Counter(COUNTED[outcome.reading] for outcome in found.values())
    row = {column.key: Cell(value=float(readings[column.name])) for column in counts}
    for column in tasks:
        pair = pairs.get(column.name)
        open_one = pair is not None and found[column.name].reading == "undecided"
        row[column.key] = Cell(value=pair.difference, note="≈" if open_one else "") if pair else MISSING
    whole = [_cells(pair, shares) for pair in pairs.values()] + [{}] * (len(pairs) < len(tasks))
    return row | {column.key: mean_cell(cells.get(column.key, MISSING) for cells in whole) for column in shares}
