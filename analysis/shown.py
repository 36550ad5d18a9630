"""Frames and tables for whoever works with them in Python."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pandas as pd
from rich.console import Console

from analysis.errors import AnalysisError
from analysis.frame import SET_KEYS, comparable_sets
from analysis.render import to_html, to_terminal
from analysis.runs import from_folder
from analysis.tables import Table, result_tables


class Tables:
    """Tables that show themselves: as text, and as HTML in a notebook."""

    def __init__(self, tables: list[Table]) -> None:
        self._tables = tables

    def __iter__(self) -> Iterator[Table]:
        return iter(self._tables)

    def __len__(self) -> int:
        return len(self._tables)

    def __repr__(self) -> str:
        text = StringIO()
        for table in self._tables:
            to_terminal(table, Console(file=text, force_jupyter=False))
        return text.getvalue().strip("\n")

    def _repr_html_(self) -> str:
        return "".join(map(to_html, self._tables))


def frame_of_folder(root: Path) -> pd.DataFrame:
    """All valid records of a results folder; a warning names each file that was set aside.

    `AnalysisError` if there are none.
    """
    runs = from_folder(root)
    for bad in runs.rejected:
        warnings.warn(f"set aside {bad.path}: {bad.reason}", stacklevel=2)
    if runs.rows.empty:
        raise AnalysisError(f"{root}: no records below {root / 'runs'}")
    return runs.rows


def tables_of_frame(frame: pd.DataFrame) -> Tables:
    """The result tables of each comparable set. `AnalysisError` for a frame without rows or of another kind."""
    missing = [key for key in (*SET_KEYS, "task", "method", "accuracy") if key not in getattr(frame, "columns", ())]
    if missing or frame.empty:
        what = f"lacks the columns {', '.join(missing)}" if missing else "has no rows"
        raise AnalysisError(f"a table is made of rows of a frame of records; this one {what}")
    return Tables([table for peers in comparable_sets(frame) for table in result_tables(peers)])
