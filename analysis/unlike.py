"""Which records must not stand in one column, and what else is not the same in all of them.

Refused are records of a task whose lists or pictures differ from those that most records have, and tuned records of one
cell that other trials decided than those behind most of its seeds: these are left out, with what differs. Another
backbone, checkpoint, preprocessing, protocol or budget makes a table of its own (`frame.SET_KEYS`). The code's state
and torch's version are noted and not refused: most commits change no number, and the runs of a cluster could otherwise
not stand beside those of a laptop.
"""

from __future__ import annotations

import json
from typing import Any

import pandas as pd

CELL_KEYS = ["task", "shots"]
"""What one column of a table holds: a task, at one number of shots where a suite has several."""

LIST_KEYS = [*CELL_KEYS, "split_seed"]
"""What stands for one training list."""

NOTED = {"code": "code states", "torch": "versions of torch"}
"""Columns in which records may differ side by side, and how the note calls them."""

MOST_NOTED = 4
"""States that a note spells out; of more it gives the number."""


def set_aside_unlike(rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keep what belongs together; of the others, run id, task, and in what they differ."""
    left_out = []
    for keys, column, differ in (
        (LIST_KEYS, "data", _data_difference),
        ([*LIST_KEYS, "method", "variant"], "choice", lambda _, __: "settings chosen by other trials"),
    ):
        usual = _usual(rows, keys, column)
        other = rows[column].notna() & (rows[column] != usual[column])
        for (_, run), (_, normal) in zip(rows[other].iterrows(), usual[other].iterrows(), strict=True):
            left_out.append(f"{run['run_id']} ({run['task']}: {differ(run, normal)})")
        rows = rows[~other]
    return rows, left_out


def _usual(rows: pd.DataFrame, keys: list[str], column: str) -> pd.DataFrame:
    """For each row, `column` and `data_sizes` as most rows with the same `keys` have them."""
    known = rows.dropna(subset=column)
    most = known.groupby(keys)[column].agg(lambda values: values.mode().iloc[0]).reset_index()
    usual = known.merge(most, on=[*keys, column])[[*keys, column, "data_sizes"]].drop_duplicates(keys)
    return rows[keys].merge(usual, how="left", on=keys).set_axis(rows.index)


def _data_difference(run: Any, usual: Any) -> str:
    """`lists differ (train 160 instead of 200), pictures differ`."""
    (lists, pictures), (usual_lists, usual_pictures) = (str(row["data"]).split("/", 1) for row in (run, usual))
    sizes, usual_sizes = json.loads(run["data_sizes"]), json.loads(usual["data_sizes"])
    counts = [
        f"{split} {sizes.get(split, 0)} instead of {usual_sizes.get(split, 0)}"
        for split in dict.fromkeys([*usual_sizes, *sizes])
        if sizes.get(split) != usual_sizes.get(split)
    ]
    where = f" ({', '.join(counts)})" if counts else ""
    differ = {f"lists differ{where}": lists != usual_lists, "pictures differ": pictures != usual_pictures}
    return ", ".join(words for words, holds in differ.items() if holds)


def notes(rows: pd.DataFrame) -> list[str]:
    """`2 code states: 1a2b3c4d (12 runs), 5e6f7a8b with changes (3 runs)` for each of `NOTED` that is not the same."""
    found = []
    for column, name in NOTED.items():
        counts = rows[column].value_counts()
        if len(counts) > 1:
            states = ", ".join(f"{state} ({count} run{'s' * (count > 1)})" for state, count in counts.items())
            found.append(f"{len(counts)} {name}: {states}" if len(counts) <= MOST_NOTED else f"{len(counts)} {name}")
    return found
