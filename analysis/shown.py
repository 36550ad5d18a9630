"""Frames and tables for use in Python."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.frame import SET_KEYS, comparable_sets, judged
from analysis.render.html import to_html
from analysis.render.terminal import to_terminal
from analysis.sources import from_sources
from analysis.tables.base import Table
from analysis.tables.tasks import result_tables
from harness.errors import HarnessError


class Tables(list[Table]):
    """Tables that show themselves: as text, and as HTML in a notebook."""

    def __repr__(self) -> str:
        text = StringIO()
        for table in self:
            to_terminal(table, Console(file=text, force_jupyter=False))
        return text.getvalue().strip("\n")

    def _repr_html_(self) -> str:
        return "".join(map(to_html, self))


def frame_of_places(places: Sequence[Path]) -> pd.DataFrame:
    """All valid records of results folders and packs; a warning names each file that was set aside, and what runs
    several of them hold.

    `HarnessError` if there are none.
    """
    runs = from_sources(places)
    for warning in (*(f"set aside {bad.path}: {bad.reason}" for bad in runs.rejected), *runs.remarks):
        warnings.warn(warning, stacklevel=2)
    if runs.rows.empty:
        raise HarnessError("; ".join(f"{place}: no records below {place / 'runs'}" for place in places))
    return runs.rows


def tables_of_frame(frame: pd.DataFrame) -> Tables:
    """The result tables of each comparable set, by the tasks' primary metrics.

    `HarnessError` for a frame without rows or of another kind.
    """
    needed, there = (*SET_KEYS, "task", "method", "primary_metric"), getattr(frame, "columns", ())
    missing = [key for key in needed if key not in there]
    if missing or frame.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise HarnessError(f"a table is made of rows of a frame of records; this one {what}")
    return Tables(table for peers in judged(comparable_sets(frame), None) for table in result_tables(peers))
