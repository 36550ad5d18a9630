"""Tables as GitHub Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re

import numpy as np

from analysis.render.text import flat_headings, row_texts
from analysis.tables.base import Cell, Table


def escape(text: str) -> str:
    """Text that Markdown shows as it stands."""
    return re.sub(r"([\\|`*<\[\]])", r"\\\1", text).replace("\n", " ")


def to_markdown(table: Table) -> str:
    """A GitHub table, the best value of each column in bold, the second best underlined, the caption below."""
    names = " | ".join(map(escape, flat_headings(table)))
    lines = [f"### {escape(table.title)}", "", f"| {table.corner} | {names} |", "|---|" + "---:|" * len(table.columns)]
    for label, cells in row_texts(table, escape, "**{}**", "<ins>{}</ins>"):
        lines.append(f"| {escape(label)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", escape(table.full_caption), ""])


def _csv_values(cell: Cell) -> list[object]:
    shown = cell.value if cell.is_number else cell.text
    return [shown, "" if np.isnan(cell.spread) else cell.spread, cell.note]


def to_csv(table: Table) -> str:
    """Full-precision values, spreads and notes, a column each."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    header = [f"{c.group}/{c.name}" if c.group else c.name for c in table.columns]
    writer.writerow([table.corner, *(name + suffix for name in header for suffix in ("", " sd", " note"))])
    for label in table.rows:
        writer.writerow([label, *(value for cell in table.cells(label) for value in _csv_values(cell))])
    return out.getvalue()
