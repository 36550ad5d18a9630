"""Every renderer against a file; the LaTeX against a real pdflatex where there is one."""

import dataclasses
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from analysis import literature
from analysis.render import FORMATS, write_table
from analysis.render.html import to_html
from analysis.render.latex import escape, to_latex
from analysis.render.markdown import to_csv, to_markdown
from analysis.render.terminal import to_terminal
from analysis.render.text import marked_rows, scaled_text
from analysis.tables import all_tables
from analysis.tables.base import Cell, Column, Table
from analysis.tables.tasks import task_table
from tests.table_records import few_shot, only_set, records, with_holes

GOLDEN = Path(__file__).parent / "golden"


def same_as_file(text, name):
    """Compare with a golden file; `SCTBENCH_GOLDEN=write` writes it anew, to be looked at before it is committed."""
    path = GOLDEN / name
    if os.environ.get("SCTBENCH_GOLDEN") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"{name} has changed"


@pytest.fixture(scope="module")
def table():
    return task_table(only_set(with_holes()))


@pytest.mark.parametrize("ending", list(FORMATS))
def test_tables_are_as_they_were(table, ending):
    same_as_file(FORMATS[ending](table), f"tasks.{ending}")


def test_the_terminal_is_as_it_was(table):
    console = Console(width=90, force_terminal=True, record=True, color_system=None)
    to_terminal(table, console)
    same_as_file("".join(line.rstrip() + "\n" for line in console.export_text().splitlines()), "tasks.txt")


@pytest.mark.parametrize("name", ["efficiency", "settings"])
def test_other_tables_are_as_they_were(name):
    tables = {t.name: t for t in all_tables(only_set(with_holes()))}
    same_as_file(to_markdown(tables[name]), f"{name}.md")


def test_few_shot_table_is_as_it_was():
    tasks = ["food101", "stanford_cars", "oxford_flowers102", "oxford_pets", "fgvc_aircraft"]
    given = few_shot("sct", {t: 10 * i for i, t in enumerate(tasks)}) + few_shot("lora", {tasks[0]: 5, tasks[1]: 9})
    tables = {t.name: t for t in all_tables(only_set(given))}
    same_as_file(to_latex(tables["few_shot"]), "few_shot.tex")


def test_best_and_second_best_are_marked_as_printed():
    columns = [Column(name="up", best="max"), Column(name="down", best="min")]
    values = {"a": 1.04, "b": 0.96, "c": 3.0, "d": 2.98}
    rows = {name: {column.key: Cell(value=v) for column in columns} for name, v in values.items()}
    table = Table(name="t", title="T", caption="c.", columns=columns, rows=rows)
    assert marked_rows(table) == [({"c", "d"}, {"a", "b"}), ({"a", "b"}, {"c", "d"})]


def test_of_two_rows_only_the_best_is_marked():
    column = Column(name="x", best="max")
    rows = {"a": {column.key: Cell(value=1)}, "b": {column.key: Cell(value=2)}}
    table = Table(name="t", title="T", caption="", columns=[column], rows=rows)
    assert marked_rows(table) == [({"b"}, set())]
    assert "underlined" not in table.full_caption


def test_latex_escapes_everything():
    assert escape(r"a_b & 50% #1 {x} ~^\ $") == (
        r"a\_b \& 50\% \#1 \{x\} \textasciitilde{}\textasciicircum{}\textbackslash{} \$"
    )
    assert escape("naïve ± † 漢é") == r"naïve $\pm$ \textdagger{} ?é"


def test_markdown_keeps_its_columns_whatever_a_label_holds(table):
    lines = [line for line in to_markdown(table).splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


class Structure(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag != "col":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_well_formed_and_semantic(table):
    parser = Structure()
    text = to_html(table)
    parser.feed(text)
    assert parser.open == []
    assert {"table", "caption", "thead", "tbody", "th", "strong"} <= set(parser.seen)
    assert "script" not in parser.seen
    assert "{&lt;|&gt;}" in text
    widths = [int(n) for n in re.findall(r'colspan="(\d+)"', text)]
    assert sum(widths) == len(table.columns)


def test_csv_can_be_read_back(table):
    import csv
    import io

    rows = list(csv.DictReader(io.StringIO(to_csv(table))))
    linear = next(row for row in rows if row["method"] == "Linear")
    assert float(linear["natural/photo_crops"]) == pytest.approx(11.02)
    assert float(linear["natural/photo_crops sd"]) == pytest.approx(1.96 / 2**0.5)


def test_numbers_are_scaled():
    assert scaled_text(3.5e9, 1000, "kMGT") == "3.5G"
    assert scaled_text(512, 1024, "KMGT") == "512"
    assert scaled_text(2048, 1024, "KMGT") == "2.0K"


def test_files_of_all_formats(table, tmp_path):
    assert [p.name for p in write_table(table, tmp_path / "x")] == ["tasks.md", "tasks.csv", "tasks.tex", "tasks.html"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    tables = all_tables(only_set(with_holes()))
    tables += all_tables(only_set(few_shot("sct", {"food101": 5}) + few_shot("lora", {"food101": 5})))
    tables += literature.tables(literature.source("vpetl"))
    titles = {"sct": "[b] SCT", "lora": "*x* LoRA"}  # which the row end and the rule before would take for their own
    odd = [dataclasses.replace(r, method_title=title) for method, title in titles.items() for r in records(method)]
    tables.append(task_table(only_set(odd)))
    names = []
    for number, one in enumerate(tables):
        (tmp_path / f"t{number}.tex").write_text(to_latex(one))
        names.append(rf"\input{{t{number}}}\clearpage")
    packages = r"\usepackage[a4paper,margin=2cm]{geometry}\usepackage{booktabs,graphicx}"
    document = rf"\documentclass{{article}}{packages}\begin{{document}}{''.join(names)}\end{{document}}"
    (tmp_path / "all.tex").write_text(document)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-2000:]
    assert "multiply defined" not in (tmp_path / "all.log").read_text(errors="replace")


def test_labels_of_all_tables_differ():
    tables = all_tables(only_set(records(config={"channels": 24}) + records(config={"channels": 48})))
    assert len({t.label for t in tables}) == len(tables)
