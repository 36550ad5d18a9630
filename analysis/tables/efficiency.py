"""What methods cost: parameters by role, operations, memory, throughput, seconds, bytes, hours in all."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.frame import ComparableSet, averaged, suite_cells
from analysis.tables.base import MISSING, Cell, Column, Table, number_cell
from analysis.tables.cells import by_label, cost_cells, seed_count, set_caption, set_title

MEANS_OF_RUNS = {
    "parameters_method": Column(name="params added", group="by role", kind="count"),
    "parameters_backbone": Column(name="params of backbone", group="by role", kind="count"),
    "parameters_head": Column(name="params of head", group="by role", kind="count"),
    "parameters_total": Column(name="params in all", group="by role", kind="count"),
    "flops": Column(name="FLOPs", group="inference", kind="flops"),
    "stored_bytes": Column(name="stored", group="inference", kind="bytes"),
    "latency_1": Column(name="ms, 1 image", group="inference", kind="milliseconds"),
    "merged_latency_1": Column(name="merged 1", group="inference", kind="milliseconds"),
    "latency_64": Column(name="ms, 64 images", group="inference", kind="milliseconds"),
    "merged_latency_64": Column(name="merged 64", group="inference", kind="milliseconds"),
    "training_flops": Column(name="FLOPs in training", group="training", kind="flops"),
    "memory": Column(name="memory", group="training", kind="bytes"),
    "resident_memory": Column(name="process", group="training", kind="bytes"),
    "step_seconds": Column(name="ms a step", group="training", kind="milliseconds"),
    "images_per_second": Column(name="images/s", group="training", kind="rate"),
    "selection_seconds": Column(name="selection s", group="a run", kind="seconds"),
    "train_seconds": Column(name="train s", group="a run", kind="seconds"),
    "evaluate_seconds": Column(name="evaluate s", group="a run", kind="seconds"),
}
"""Columns of the frame that are averaged, with their headers."""

ENERGY = {
    "nvml_joules": Column(name="energy of the GPU", group="a run", kind="joules"),
    "rapl_joules": Column(name="energy of the CPU", group="a run", kind="joules"),
}
"""Further columns, each of a set in which a run has its value: what one kind of counter counted is no part of another's
mean."""

TUNING = {
    "tuning_trials": Column(name="trials", group="tuning a cell", kind="rate"),
    "tuning_seconds": Column(name="seconds", group="tuning a cell", kind="seconds"),
}
"""Further columns of a set that was tuned: a cell's trials serve all of its seeds."""

NOT_TIMED = {name for name, column in MEANS_OF_RUNS.items() if column.kind in ("count", "flops")}
NOT_TIMED |= {"stored_bytes", "tuning_trials"}
"""What does not depend on the device, unlike the other columns."""

OF_STEPS = ("images_per_second", "step_seconds")
"""Measurements of training steps, which are short where the head alone runs in them."""

HOURS = {
    "cuda": Column(name="GPU hours", group="in all", kind="hours"),
    "cpu": Column(name="CPU hours", group="in all", kind="hours"),
}

CAPTION = (
    "Means over the complete runs of a task, then over the tasks. params: trained ones by role, and all of the model; "
    "FLOPs: one image's forward pass, and with the backward pass in training, a multiply-add counts as two; stored: "
    "trained parameters and added buffers, head included; ms: a forward pass of 1 or 64 images, merged: with the "
    "method folded into the backbone, where it folds; memory: peak of the device's allocator in training, missing on "
    "CPU; process: peak of the process's resident memory, libraries and images included; hours: sum of all runs of "
    "the row."
)
OF_ENERGY = (
    "Energy: of attaching, training and evaluating, by the counter of the whole GPU (NVML) or of all packages of the "
    "CPU (RAPL), whatever else they did meanwhile."
)


def _marked(cell: Cell, runs: pd.DataFrame, column: str) -> Cell:
    """The mean of a column, marked where it rests on several kinds of device or on steps that leave something out."""
    mixed = column not in NOT_TIMED and runs["device"].nunique() > 1
    shorter = column in OF_STEPS and bool(runs["cached_features"].fillna("").ne("").any())
    note = "‡" if mixed else "§" if shorter else ""
    return Cell(value=cell.value, note=note) if cell.is_number and note else cell


def _hours(runs: pd.DataFrame, device_type: str) -> Cell:
    """Hours of all runs on this type of device; marked where a run has no cost on record (failed ones)."""
    if runs["device_type"].isna().all():
        return MISSING
    seconds = runs[runs["device_type"] == device_type]["seconds"].astype(float)
    return number_cell(float(np.nansum(seconds)) / 3600, "*" if runs["seconds"].isna().any() else "")


def efficiency_table(peers: ComparableSet) -> Table:
    """A row per method, every cost that records hold; what a record lacks is shown as missing."""
    known = {name: column for name, column in ENERGY.items() if peers.rows[name].notna().any()}
    means = MEANS_OF_RUNS | known | (TUNING if peers.rows["tuning_trials"].notna().any() else {})
    table = Table(
        name="efficiency",
        title=set_title(peers, "efficiency"),
        caption=" ".join([CAPTION, *([OF_ENERGY] if known else []), set_caption(peers)]),
        columns=[*means.values(), *HOURS.values()],
    )
    keys = list(averaged(suite_cells(peers.key["suite"], peers.rows)))
    seeds = seed_count(peers.rows)
    for label, runs in by_label(peers.rows):
        costs = cost_cells(runs, list(means), keys, seeds)
        row = {means[name].key: _marked(cell, runs, name) for name, cell in costs.items()}
        table.rows[label] = row | {column.key: _hours(runs, kind) for kind, column in HOURS.items()}
    return table
