"""Runs of two sets, one by one: the same method, settings, task, seeds and data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.columns import parsed
from analysis.comparability import CELL_KEYS, MOST_NOTED
from analysis.frame import REPLICATE_KEYS, ComparableSet, differing_keys
from analysis.tables.base import Cell, Key
from analysis.tables.cells import seed_count
from harness.schema.metrics import Metric

RUN_KEYS = ["method", "variant", "source", *CELL_KEYS, *REPLICATE_KEYS]


@dataclass(frozen=True, slots=True)
class Pairs:
    """What two sets have in common."""

    runs: pd.DataFrame
    """A row per pair: `label` as in the second set, task, shots, the metric's values `first` and `second`, and `last`,
    that of the first's last epoch where it was not the one that counts."""

    seeds: int
    """Replicates that occur in either set."""

    alone: str
    """A sentence about the runs without a partner; empty if there are none."""

    def cells(self, first: str = "first", second: str = "second") -> dict[str, dict[Key, Cell]]:
        """Mean difference by label and cell, over the pairs that there are; the note says how many of the seeds."""
        gained = self.runs[first] - self.runs[second]
        cells: dict[str, dict[Key, Cell]] = {}
        for values in gained.groupby([self.runs[k] for k in ("label", *CELL_KEYS)]).agg(["mean", "count"]).itertuples():
            (label, task, shots), mean, count = values
            note = "" if count == self.seeds else f"{count}/{self.seeds}"
            if count:
                cells.setdefault(label, {})[task, int(shots)] = Cell(value=mean, note=note)
        return cells


def pair_runs(first: ComparableSet, second: ComparableSet, names: tuple[str, str]) -> Pairs:
    """Complete runs of both, joined on `RUN_KEYS` and the data; values are of the first set's metric."""
    ours, theirs = (_scored(side.rows, first.metric) for side in (first, second))
    runs = _joined(ours, theirs).rename(columns={"value_first": "first", "value": "second"})
    left = [*_alone(ours, theirs, names), *_alone(theirs, ours, names[::-1])]
    seeds = seed_count(pd.concat([ours, theirs]))
    return Pairs(runs, seeds, f"Without a partner: {'; '.join(left)}." if left else "")


def _scored(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """Complete runs with their `value`, and `last`, that of the last epoch."""
    rows = rows.assign(value=rows[metric.name], last=rows[f"last_{metric.name}"])
    return rows[(rows["status"] == "complete") & rows["value"].notna()]


def _joined(own: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """A row per pair, with `label`, `value` and `pixels` of both; pixels must agree where both know them."""
    keys = [*RUN_KEYS, "data"]
    both = own.merge(other[[*keys, "label", "value", "pixels"]], on=keys, suffixes=("_first", ""))
    return both[both["pixels"].isna() | both["pixels_first"].isna() | (both["pixels"] == both["pixels_first"])]


def _alone(own: pd.DataFrame, other: pd.DataFrame, names: tuple[str, str]) -> Iterator[str]:
    """`fixed: SCT, LoRA (3 runs, no run of the method under oracle)`, a text per reason."""
    lonely = own[~own["run_id"].isin(_joined(own, other)["run_id"])]
    parts = [runs.assign(why=_reasons(runs, other, names[1])) for _, runs in lonely.groupby(["label", "variant"])]
    for why, runs in pd.concat(parts).groupby("why", sort=False) if parts else []:
        labels = list(dict.fromkeys(runs["label"]))
        named = ", ".join(labels) if len(labels) <= MOST_NOTED else f"{len(labels)} methods"
        yield f"{names[0]}: {named} ({len(runs)} run{'s' * (len(runs) > 1)}, {why})"


def _reasons(runs: pd.DataFrame, other: pd.DataFrame, name: str) -> np.ndarray | str:
    """Why the other set has no partner for each of these runs of one method and variant."""
    theirs = other[other["method"] == runs["method"].iloc[0]]
    if theirs.empty:
        return f"no complete run of the method under {name}"
    variants = list(theirs["variant"].unique())
    if runs["variant"].iloc[0] not in variants:
        return f"settings differ: {settings_difference(runs['variant'].iloc[0], variants)}"
    if runs["source"].iloc[0] not in set(theirs["source"]):
        return (
            f"another source of the method: {runs['source'].iloc[0]} against {' and '.join(theirs['source'].unique())}"
        )
    known = runs[RUN_KEYS].merge(theirs[RUN_KEYS].drop_duplicates(), how="left", indicator=True)["_merge"] == "both"
    return np.where(known, "on other data", f"no complete run of the task and seed under {name}")


def settings_difference(own: str, others: list[str]) -> str:
    """`epochs 20 against 2`, of two variants (JSON texts), or of one and several."""
    differ = {
        key: (parsed(own).get(key), list(dict.fromkeys(str(parsed(text).get(key)) for text in others)))
        for key in differing_keys([own, *others])
    }
    return ", ".join(f"{k.removeprefix('recipe.')} {a} against {' and '.join(b)}" for k, (a, b) in differ.items())
