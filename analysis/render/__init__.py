"""Renderers of `analysis.tables.Table`: terminal, Markdown, LaTeX, CSV, HTML; and files of all of them."""

from pathlib import Path

from analysis.render.html import to_html
from analysis.render.latex import to_latex
from analysis.render.markdown import to_csv, to_markdown
from analysis.tables.base import Table

FORMATS = {"md": to_markdown, "csv": to_csv, "tex": to_latex, "html": to_html}
"""Renderer by file ending."""


def write_table(table: Table, folder: Path) -> list[Path]:
    """Write the table in every format into `folder`, and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{table.name}.{ending}" for ending in FORMATS]
    for path, render in zip(paths, FORMATS.values(), strict=True):
        path.write_text(render(table))
    return paths
