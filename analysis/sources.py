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

from analysis.comparability import different_results
from analysis.index import Runs, from_folder, load_pack
from harness.errors import HarnessError
from harness.records.pack import Pack
from harness.records.predictions import Predictions, decode
from harness.records.store import PREDICTIONS_NAME
from harness.schema.metrics import METRICS
from harness.schema.record import BadRecord, RunRecord

SAME = {"source": "source of the method", "data": "data", "split": "split", "targets": "results on targets"}
"""Columns, beside the metrics, in which two results of one run may differ, and what the note calls them."""

COMPARED = [*METRICS, *SAME, *(f"last_{name}" for name in METRICS)]


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
    """The runs of a pack; every digest is compared when a file is read."""
    pack = Pack(path)
    rows, rejected = load_pack(pack)

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

    return Runs(rows, read, rejected, read_predictions)


def _each_once(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Every run once, with the results that it has elsewhere if they differ, and what is to be said of that."""
    order = rows.assign(worse=rows["status"] != "complete").sort_values("worse", kind="stable").drop(columns="worse")
    again = order.duplicated("run_id")
    others = order[again & (order["status"] == "complete")]
    taken = order[~again].set_index("run_id", drop=False).loc[others["run_id"]]
    elsewhere, same = dict[str, list[str]](), Counter[str]()
    unlike = pd.DataFrame({name: _unlike(taken[name], others[name]) for name in COMPARED}).to_numpy()
    for place in range(len(others)):
        one, other = taken.iloc[place], others.iloc[place]
        if unlike[place].any():
            columns = [name for name, differs in zip(COMPARED, unlike[place], strict=True) if differs]
            elsewhere.setdefault(other["run_id"], []).append(_difference(one, other, columns))
        else:
            same[f"{one['results']} and {other['results']}"] += 1
    texts = order["run_id"].map({run: "; ".join(words) for run, words in elsewhere.items()}).astype(object)
    once = order.assign(elsewhere=texts.where(texts.notna(), None))[~again].sort_index()
    remarks = [f"{count} runs are in {both} with the same results, and count once" for both, count in same.items()]
    return once.reset_index(drop=True), [*remarks, *different_results(once)]


def _unlike(one: pd.Series, other: pd.Series) -> Any:
    """Where two columns of as many rows differ; nothing is like nothing."""
    return (one.to_numpy() != other.to_numpy()) & ~(one.isna().to_numpy() & other.isna().to_numpy())


def _difference(taken: Any, other: Any, columns: list[str]) -> str:
    """`accuracy 71.5 in A, 71.2 in B.zip`, or `other data in A and B.zip`. `columns`: those in which they differ."""
    if columns[0] in METRICS:
        one, another = (f"{run[columns[0]]:.6g} in {run['results']}" for run in (taken, other))
        return f"{columns[0]} {one}, {another}"
    names = " and ".join(SAME.get(name, name) for name in columns)
    return f"other {names} in {taken['results']} and {other['results']}"
