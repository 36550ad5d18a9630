"""The page as a file: self-contained, escaped, and linked to its records."""

import base64
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from analysis.page import MethodFacts
from analysis.report import write_report
from analysis.tables.tasks import task_table
from tests.page_records import records, write_everything
from tests.table_records import from_records


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_everything(tmp_path_factory.mktemp("results"))


class Tags(HTMLParser):
    """Collects tags with their attributes, and checks that they nest."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(path):
    tags = Tags()
    tags.feed(path.read_text())
    assert not tags.open
    return tags.tags


def test_the_page_comes_first_and_every_file_is_there(report):
    assert report[0].name == "index.html"
    assert {p.suffix for p in report} >= {".html", ".md", ".csv", ".png", ".pdf"}
    assert all(p.stat().st_size > 100 for p in report)


def test_nothing_is_fetched(report):
    for tag, attributes in parsed(report[0]):
        assert tag not in {"link", "iframe", "object"}
        if "src" in attributes:
            assert attributes["src"].startswith("data:")
    assert "@import" not in report[0].read_text() and "url(" not in report[0].read_text()


def test_links_lead_to_files_that_exist(report):
    addresses = [a["href"] for tag, a in parsed(report[0]) if tag == "a"]
    local = [a for a in addresses if not a.startswith(("#", "data:", "https://arxiv.org/"))]
    assert sum(a.endswith("record.json") for a in local) > 30
    assert all((report[0].parent / address).is_file() for address in local)


def test_ids_are_unique_and_references_hold(report):
    tags = parsed(report[0])
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:
        for name in ("aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert all(a.get("alt") for tag, a in tags if tag == "img")
    assert all(a.get("scope") for tag, a in tags if tag == "th")


def test_texts_are_escaped(report):
    text = report[0].read_text()
    assert "<script>document" not in text and "<img src=x" not in text and "<b>Evil" not in text
    assert "&lt;script&gt;document" in text and "&lt;b&gt;Evil" in text
    assert "torn: &lt;script&gt;" in text
    assert sum(tag == "script" for tag, _ in parsed(report[0])) == 2


def test_only_the_page_s_own_script_may_run(report):
    policy = next(a["content"] for tag, a in parsed(report[0]) if tag == "meta" and "http-equiv" in a)
    assert "default-src 'none'" in policy and "unsafe" not in policy


def test_downloads_hold_the_files(report):
    found = {a["download"]: a["href"] for tag, a in parsed(report[0]) if "download" in a}
    assert {"tasks.csv", "tasks.md"} <= set(found)
    content = base64.b64decode(found["tasks.csv"].partition(",")[2])
    assert content in {path.read_bytes() for path in report if path.name == "tasks.csv"}


def test_papers_are_those_of_methods_that_ran(report):
    text = report[0].read_text()
    assert 'href="https://arxiv.org/abs/2106.09685"' in text
    assert "Never run" not in text
    assert MethodFacts(title="x", family="y", paper="baseline").link == ""


def test_what_was_not_drawn_is_said(report):
    assert re.search(r"Not drawn: \d+ figures", report[0].read_text())
    assert "<b>few shot</b> needs a suite with several numbers of shots" in report[0].read_text()


def test_a_report_without_records_says_so(tmp_path):
    console = Console(record=True)
    assert write_report(from_records([]), tmp_path, console) == []
    assert "No records" in console.export_text()


def test_two_tables_of_one_name_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.all_tables", lambda chosen, _: [task_table(chosen)] * 2)
    with pytest.raises(ValueError, match="named tasks"):
        write_report(from_records(records()), tmp_path / "report", Console(quiet=True))
