"""Several results folders and packs as one: where each run is from, and runs that more than one of them holds.

A run counts once. Where several hold it, that of the place named first is taken, a complete one before a failed one.
Others with the same results are the same run; those with other results are named in the column `elsewhere`, in every
caption and on the terminal, for the numbers of neither are wrong by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.columns import row, typed
from analysis.comparability import different_results
from analysis.index import Runs, from_folder
from harness.errors import HarnessError
from harness.records.pack import Pack
from harness.records.predictions import Predictions, decode
from harness.records.store import PREDICTIONS_NAME, Rejected
from harness.schema.metrics import METRICS
from harness.schema.record import BadRecord, RunRecord

SAME = {"source": "source of the method", "data": "data", "split": "split", "targets": "results on targets"}
"""Columns, beside the metrics, in which two results of one run may differ, and what the note calls them."""


def from_sources(places: Sequence[Path]) -> Runs:
    """The runs of results folders and packs, with the name of their place in the column `results`.

    `HarnessError` for a place that is not there or is given twice, or a file that is no pack.
    """
    names = _names(places)
    parts = {name: _from_pack(place) if place.is_file() else from_folder(place) for name, place in names.items()}
    folders = {name: place for name, place in names.items() if not place.is_file()}
    frames = [part.rows.assign(results=name) for name, part in parts.items() if len(part.rows)]
    rows, remarks = _each_once(pd.concat(frames, ignore_index=True)) if frames else (pd.DataFrame(), [])
    return Runs(
        rows,
        lambda rows: [one for name, run in _by_run(rows) for one in parts[name].read(run)],
        [bad for part in parts.values() for bad in part.rejected],
        lambda rows: [one for name, run in _by_run(rows) for one in parts[name].predictions(run)],
        folders=folders,
        remarks=remarks,
    )


def check_places(places: Iterable[Path]) -> None:
    """`HarnessError` for a place that does not exist."""
    for place in places:
        if not place.exists():
            raise HarnessError(f"{place}: no such results folder or pack")


def _names(places: Sequence[Path]) -> dict[str, Path]:
    """The last part of each path, or all of it where others end alike."""
    if len({place.resolve() for place in places}) < len(places):
        raise HarnessError(f"the same results are given twice: {', '.join(map(str, places))}")
    short = [place.name or place.resolve().name for place in places]
    return {name if short.count(name) == 1 else str(place): place for name, place in zip(short, places, strict=True)}


def _by_run(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Each row by itself, with the name of its place."""
    return ((name, rows.iloc[place : place + 1]) for place, name in enumerate(rows["results"]))


def _from_pack(path: Path) -> Runs:
    """The runs of a pack; every digest is compared when a file is read. Those whose predictions were left out count as
    having kept none."""
    pack = Pack(path)
    rows, rejected = [], []
    for name in pack.records:
        try:
            facts = row(pack.record(name))
        except (KeyError, TypeError, ValueError) as error:  # a `BadRecord`, or whole but with values that nobody writes
            rejected.append(Rejected(path / name, str(error) or type(error).__name__))
        else:
            kept = facts["predictions"] and pack.holds(name, PREDICTIONS_NAME)
            rows.append({"path": name, **facts, "predictions": kept})

    def read(rows: pd.DataFrame) -> list[RunRecord]:
        records = []
        for name in rows["path"]:
            with suppress(BadRecord):  # damaged since
                records.append(pack.record(name))
        return records

    def read_predictions(rows: pd.DataFrame) -> list[dict[str, Predictions]]:
        try:
            return [decode(pack.stored(name, pack.record(name), PREDICTIONS_NAME)) for name in rows["path"]]
        except BadRecord as error:
            raise HarnessError(f"{path}: a record that was there is not readable any more: {error}") from None

    return Runs(typed(pd.DataFrame(rows)), read, rejected, read_predictions)


def _each_once(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Every run once, with the results that it has elsewhere if they differ, and what is to be said of that."""
    order = rows.assign(worse=rows["status"] != "complete").sort_values("worse", kind="stable").drop(columns="worse")
    again = order.duplicated("run_id")
    first, elsewhere, same = order[~again].set_index("run_id", drop=False), dict[str, list[str]](), Counter[str]()
    for _, other in order[again & (order["status"] == "complete")].iterrows():
        taken = first.loc[other["run_id"]]
        if words := _difference(taken, other):
            elsewhere.setdefault(other["run_id"], []).append(words)
        else:
            same[f"{taken['results']} and {other['results']}"] += 1
    texts = order["run_id"].map({run: "; ".join(words) for run, words in elsewhere.items()}).astype(object)
    once = order.assign(elsewhere=texts.where(texts.notna(), None))[~again].sort_index()
    remarks = [f"{count} runs are in {both} with the same results, and count once" for both, count in same.items()]
    return once.reset_index(drop=True), [*remarks, *different_results(once)]


def _difference(taken: Any, other: Any) -> str:
    """`accuracy 71.5 in A, 71.2 in B.zip`, or in what else two results of one run differ; empty if in nothing."""
    places = f"in {taken['results']} and {other['results']}"
    for metric in (name for name in METRICS if not _alike(taken[name], other[name])):
        one, another = (f"{run[metric]:.6g} in {run['results']}" for run in (taken, other))
        return f"{metric} {one}, {another}"
    last = [f"last_{name}" for name in METRICS if not _alike(taken[f"last_{name}"], other[f"last_{name}"])]
    differ = [words for column, words in SAME.items() if not _alike(taken[column], other[column])]
    return f"other {' and '.join([*differ, *last])} {places}" if differ or last else ""


def _alike(one: Any, other: Any) -> bool:
    return bool(one == other or (pd.isna(one) and pd.isna(other)))
