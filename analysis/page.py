"""One HTML page of everything in a report. It works from disk: no network, no external script, style or font."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from PIL import Image

from analysis.comparability import LeftOut
from analysis.figures.gallery import Drawing
from analysis.figures.style import small_png
from analysis.metric_text import digits
from analysis.page_tables import Bases, PageTable, base_of, places_of, record_href
from analysis.render import FORMATS
from analysis.tables.base import Table

TEMPLATES = Path(__file__).parent / "templates"

SHOWN_RUNS = 10
"""How many of the runs that failed for the same reason are linked one by one."""

ARXIV = re.compile(r"arXiv (\d{4}\.\d{4,5})")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """What is known of a method besides its results."""

    title: str
    family: str
    paper: str

    @property
    def link(self) -> str:
        """Address of the paper, where its arXiv number is given."""
        number = ARXIV.search(self.paper)
        return f"https://arxiv.org/abs/{number[1]}" if number else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One comparable set on the page."""

    name: str
    title: str
    key: Mapping[str, Any]
    page_tables: list[PageTable]
    """The leaderboard first."""

    figures: list[tuple[Drawing, list[Path]]] = field(default_factory=list)
    """Each with its files, the PNG first."""

    not_drawn: list[Drawing] = field(default_factory=list)
    """Figures that the records do not allow."""

    left_out: list[LeftOut] = field(default_factory=list)


def downloads(table: Table) -> list[tuple[str, str, str]]:
    """Of each format: its name, the file's name, and the text as a data address."""
    return [
        (name, f"{table.name}.{ending}", data_address("text/plain;charset=utf-8", FORMATS[ending](table).encode()))
        for name, ending in (("LaTeX", "tex"), ("CSV", "csv"), ("Markdown", "md"))
    ]


def data_address(kind: str, content: bytes) -> str:
    """A `data:` address that holds the content."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def figure_data(path: Path) -> tuple[str, int, int]:
    """A PNG as a data address, with width and height in CSS pixels of a figure at its size in print."""
    with Image.open(path) as image:
        width, height = image.size
    return data_address("image/png", small_png(path)), round(width * 0.6), round(height * 0.6)


def failures(rows: pd.DataFrame, base: Bases) -> list[dict[str, Any]]:
    """Failed runs, those with the same suite, method and reason in one entry."""
    entries = []
    keys = ["suite", "title", "reason"]
    for (suite, title, reason), runs in rows[rows["status"] == "failed"].groupby(keys, sort=False):
        columns = (runs[name][:SHOWN_RUNS] for name in ("task", "seed", "method", "run_id"))
        shown = [
            (f"{task}, seed {seed}", record_href(base_of(base, place), str(suite), task, method, run_id))
            for task, seed, method, run_id, place in zip(*columns, places_of(runs)[:SHOWN_RUNS], strict=True)
        ]
        entries.append({"suite": suite, "method": title, "reason": reason, "count": len(runs), "runs": shown})
    return entries


def _details(sections: Iterable[Section]) -> Markup:
    """What the script needs: per table, its columns and the runs behind each cell."""
    values = {
        f"{section.name}/{table.table.name}": {
            "bases": [base and f"{base}/{section.key['suite']}" for base in table.bases],
            "metric": table.metric.name,
            "digits": digits(table.metric) + 1,
            "columns": [heading.tasks for heading in table.headings],
            "names": [heading.name for heading in table.headings],
            "targets": [heading.target for heading in table.headings],
            "plain": [heading.plain_mean for heading in table.headings],
            "rows": [{"label": r.label, "method": r.method, "runs": r.runs} for r in table.rows],
        }
        for section in sections
        for table in section.page_tables
    }
    return htmlsafe_json_dumps(values, separators=(",", ":"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def to_html(
    sections: list[Section],
    rows: pd.DataFrame,
    *,
    set_aside: list[tuple[str, str]],
    about: Mapping[str, MethodFacts],
    base: Bases,
    folder: Path,
) -> str:
    """The page. `rows`: all runs, see `analysis.columns`; `set_aside`: files that are not valid records, with the
    reason; `base`: see `Bases`; `folder`: that of the page and the figures' files."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(downloads=downloads, figure_data=figure_data)
    style, script = ((TEMPLATES / name).read_text() for name in ("page.css", "page.js"))
    used = set(rows["method"])
    return environment.get_template("page.html.j2").render(
        sections=sections,
        complete=int((rows["status"] == "complete").sum()),
        failures=failures(rows, base),
        set_aside=set_aside,
        papers=sorted((a for name, a in about.items() if name in used), key=lambda a: a.title.lower()),
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}",
        details=_details(sections),
        relative=lambda path: path.relative_to(folder).as_posix(),
    )
