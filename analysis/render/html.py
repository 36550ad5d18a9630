"""Tables as HTML fragments: a semantic `<table>`, no script, no style; classes for whoever adds one."""

from __future__ import annotations

from html import escape

from analysis.render.text import cell_text, group_spans, marked_rows
from analysis.tables.base import Cell, Column, Table


def _head(table: Table) -> list[str]:
    spans = group_spans(table)
    grouped = any(group for group, _ in spans)
    rows = ' rowspan="2"' if grouped else ""
    corner = f'<th scope="col"{rows}>{escape(table.corner)}</th>'
    names = "".join(f'<th scope="col">{escape(column.name)}</th>' for column in table.columns)
    if not grouped:
        return [f"<tr>{corner}{names}</tr>"]
    groups = "".join(f'<th scope="colgroup" colspan="{width}">{escape(group)}</th>' for group, width in spans)
    return [f"<tr>{corner}{groups}</tr>", f"<tr>{names}</tr>"]


def _cell(cell: Cell, column: Column, label: str, marks: tuple[set[str], set[str]]) -> str:
    text = escape(cell_text(cell, column))
    if label in marks[0]:
        return f'<td class="best"><strong>{text}</strong></td>'
    if label in marks[1]:
        return f'<td class="second"><u>{text}</u></td>'
    kind = f' class="{cell.note}"' if cell.note in ("missing", "failed") else ""
    return f"<td{kind}>{text}</td>"


def to_html(table: Table) -> str:
    """The fragment; `id` is the table's label, the caption is the `<caption>`."""
    marks = marked_rows(table)
    lines = [
        f'<table class="results" id="{table.label}">',
        f"<caption><strong>{escape(table.title)}.</strong> {escape(table.full_caption)}</caption>",
        "<colgroup><col>" + "".join(f'<col span="{width}">' for _, width in group_spans(table)) + "</colgroup>",
        "<thead>",
        *_head(table),
        "</thead>",
        "<tbody>",
    ]
    for label, cells in table.rows.items():
        row = "".join(_cell(cell, c, label, m) for cell, c, m in zip(cells, table.columns, marks, strict=True))
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{row}</tr>')
    return "\n".join([*lines, "</tbody>", "</table>", ""])
