"""Tables as HTML fragments: a semantic `<table>`, no script, no style; classes for those who add one."""

from __future__ import annotations

from html import escape

from analysis.render.text import Marks, cell_text, group_spans, marked_rows
from analysis.tables.base import Cell, Column, Table


def _head(table: Table) -> list[str]:
    spans = group_spans(table.columns)
    grouped = any(group for group, _ in spans)
    rows = ' rowspan="2"' if grouped else ""
    corner = f'<th scope="col"{rows}>{escape(table.corner)}</th>'
    names = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in table.columns)
    if not grouped:
        return [f"<tr>{corner}{names}</tr>"]
    groups = "".join(f'<th scope="colgroup" colspan="{width}">{escape(group)}</th>' for group, width in spans)
    return [f"<tr>{corner}{groups}</tr>", f"<tr>{names}</tr>"]


def _cell(cell: Cell, column: Column, label: str, marks: Marks) -> str:
    text = escape(cell_text(cell, column))
    if label in marks.best:
        return f'<td class="best"><strong>{text}</strong></td>'
    if label in marks.second:
        return f'<td class="second"><u>{text}</u></td>'
    kind = f' class="{cell.note}"' if cell.note in ("missing", "failed", "unknown") else ""
    return f"<td{kind}>{text}</td>"


def to_html(table: Table) -> str:
    """The fragment; `id` is the table's label, the caption is the `<caption>`."""
    marks = marked_rows(table)
    lines = [
        f'<table class="results" id="{table.label}">',
        f"<caption><strong>{escape(table.title)}.</strong> {escape(table.full_caption)}</caption>",
        "<colgroup><col>" + "".join(f'<col span="{width}">' for _, width in group_spans(table.columns)) + "</colgroup>",
        "<thead>",
        *_head(table),
        "</thead>",
        "<tbody>",
    ]
    for label in table.rows:
        parts = zip(table.cells(label), table.columns, marks, strict=True)
        row = "".join(_cell(cell, column, label, mark) for cell, column, mark in parts)
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{row}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", ""])
