"""The page: as a file, self-contained, escaped and linked to its records, and in a real browser."""

import base64
import dataclasses
import json
import re
import shutil
import tempfile
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from analysis.frame import comparable_sets
from analysis.page import MethodFacts, Section, to_html
from analysis.page_tables import make_page_table
from analysis.report import write_report
from analysis.tables.tasks import task_table
from suites import SUITES
from tests.examples import make_record, make_spec
from tests.page_records import EVIL, records, write_everything
from tests.table_records import from_records, recipe


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


@pytest.fixture(scope="module")
def browser():
    """Chromium without a window, at desktop width."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs the packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    profile = tempfile.mkdtemp()
    switches = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for switch in [*switches.split(), "disable-component-update", "disable-sync", f"user-data-dir={profile}"]:
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chrome
    chrome.quit()
    shutil.rmtree(profile, ignore_errors=True)


def look(browser, width=1400, dark=False):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})


@pytest.fixture
def page(browser, report):
    look(browser)
    browser.get("about:blank")
    browser.get(report[0].as_uri())
    yield browser
    assert browser.title == "SCT Bench report"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


VISIBLE = "section.set:not([hidden]) .board[data-leader] tbody tr:not([hidden])"


def methods_shown(page):
    rows = page.find_elements("css selector", f"{VISIBLE} th")
    return [page.execute_script("return arguments[0].firstChild.textContent", row) for row in rows]


def header(page, name):
    buttons = page.find_elements("css selector", "section.set:not([hidden]) .board[data-leader] .sort")
    return next(b for b in buttons if b.text == name)


def sort_state(button):
    return button.find_element("xpath", "..").get_attribute("aria-sort")


@pytest.mark.browser
def test_browser_sorts_by_click_and_by_keyboard(page):
    assert methods_shown(page) == ["FULL", "LORA", "SCT", "<b>Evil</b>"]
    button = header(page, "animals")
    button.click()
    assert sort_state(button) == "descending"
    assert methods_shown(page) == ["FULL", "LORA", "SCT", "<b>Evil</b>"]
    button.send_keys("\n")
    assert sort_state(button) == "ascending"
    assert methods_shown(page) == ["SCT", "LORA", "FULL", "<b>Evil</b>"]  # what has no value stays last
    header(page, "method").click()
    assert methods_shown(page) == ["<b>Evil</b>", "FULL", "LORA", "SCT"]


@pytest.mark.browser
def test_browser_sorts_texts_by_their_numbers_and_counts_the_board_that_is_sorted(browser, tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.drawings", lambda *_: [])  # nobody looks at figures here, and they take long
    rates = {"sct": 1e-3, "lora": 5e-4, "full": 0.01, "linear": 0.2}
    given = [r for m, rate in rates.items() for r in records((m,), 1, recipe=recipe(lr=rate))]
    page = write_report(from_records(given), tmp_path / "report", Console(quiet=True))[0]
    look(browser)
    browser.get(page.as_uri())
    board = browser.find_element("css selector", ".board[data-board$='/settings']")
    button = next(b for b in board.find_elements("css selector", ".sort") if b.text == "lr")
    for order in (sorted(rates.values()), sorted(rates.values(), reverse=True)):
        button.click()
        column = int(button.get_attribute("data-column")) + 2
        shown = [float(c.text) for c in board.find_elements("css selector", f"tbody td:nth-child({column})")]
        assert shown == order
    assert browser.find_element("id", "status").text == "4 of 4 rows, by lr, highest first"


@pytest.mark.browser
def test_browser_filters_by_text_and_by_family(page):
    page.find_element("id", "filter").send_keys("lo")
    assert methods_shown(page) == ["LORA"]
    assert page.find_element("id", "status").text == "1 of 4 methods"
    page.find_element("id", "filter").clear()
    page.find_element("id", "filter").send_keys(" ")
    page.find_element("css selector", "#family option[value=selective]").click()
    assert methods_shown(page) == ["SCT"]


@pytest.mark.browser
def test_browser_switches_between_comparable_sets(page):
    options = page.find_elements("css selector", "#set option")
    assert [o.text for o in options] == [f"demo, protocol {p}, demo_vit (pretrained)" for p in ("fixed", "validation")]
    options[1].click()
    assert methods_shown(page) == ["LORA", "SCT"]
    assert page.execute_script("return location.hash") == "#demo-validation-demo_vit-pretrained-56px"
    page.refresh()
    assert methods_shown(page) == ["LORA", "SCT"]


@pytest.mark.browser
def test_browser_shows_seeds_and_records_of_a_cell_by_keyboard(page):
    page.execute_script("arguments[0].focus()", page.find_elements("css selector", f"{VISIBLE} td a[tabindex='0']")[0])
    tip = page.find_element("id", "tip")
    assert tip.text.splitlines() == [
        "FULL, tasks",
        "seed 0: accuracy 52.00, mean of 5 tasks",
        "seed 1: accuracy 53.00, mean of 5 tasks",
    ]
    headers = page.find_elements("css selector", "section.set:not([hidden]) .board[data-leader] .sort")
    steps = [button.text for button in headers].index("photo_crops") - 1
    for key in ["\ue014"] * steps + ["\ue015"]:  # right and down
        page.switch_to.active_element.send_keys(key)
    assert tip.text.splitlines() == ["LORA, photo_crops", "seed 0: 40.00", "seed 1: 41.00"]
    page.switch_to.active_element.send_keys("\n")
    panel = page.find_element("id", "panel")
    assert panel.is_displayed() and not tip.is_displayed()
    links = panel.find_elements("css selector", "a")
    record = json.loads(Path(links[1].get_attribute("href").removeprefix("file://")).read_text())
    assert (record["spec"]["method"], record["spec"]["seed"], record["run_id"]) == ("lora", 1, links[1].text)
    page.switch_to.active_element.send_keys("\ue00c")
    assert not panel.is_displayed()
    assert page.switch_to.active_element.text == "40.5 ±0.7"


@pytest.mark.browser
def test_browser_shows_a_reason_as_text(page):
    failed = page.find_element("xpath", "//section[not(@hidden)]//td/a[text()='failed']")
    failed.click()
    assert EVIL in page.find_element("id", "panel").text
    assert page.title == "SCT Bench report"


@pytest.mark.browser
def test_browser_light_and_dark(page):
    def ground():
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    assert ground() == "rgb(255, 255, 255)"
    look(page, dark=True)
    assert ground() == "rgb(20, 23, 27)"
    page.find_element("id", "theme").click()  # from automatic to light
    assert ground() == "rgb(255, 255, 255)"
    page.find_element("id", "theme").click()
    look(page)
    assert ground() == "rgb(20, 23, 27)"
    page.find_element("id", "theme").click()


@pytest.mark.browser
def test_browser_phone_width_scrolls_the_table_and_not_the_page(page):
    look(page, width=390)
    assert page.execute_script("return document.documentElement.scrollWidth") <= 390
    box = page.find_element("css selector", "section.set:not([hidden]) .scroll")
    page.execute_script("arguments[0].scrollLeft = 300", box)
    first = page.find_element("css selector", f"{VISIBLE} th")
    assert first.rect["x"] - box.rect["x"] < 3


@pytest.mark.browser
def test_browser_opens_and_sorts_a_page_over_twenty_thousand_runs(browser, tmp_path):
    suite = SUITES["vtab1k"]
    base = make_record()
    given = [
        dataclasses.replace(
            base, spec=make_spec(suite=suite.name, task=t.name, method=f"m{m}", seed=s), method_title=f"M{m}", curve=[]
        )
        for m in range(211)
        for t in suite.tasks
        for s in range(5)
    ]
    assert len(given) > 20_000
    (chosen,) = comparable_sets(given)
    html = page_of(chosen, given, tmp_path)
    assert len(html.read_bytes()) < 8e6
    look(browser)
    browser.get(html.as_uri())
    assert len(browser.find_elements("css selector", f"{VISIBLE}")) == 211
    browser.execute_script("document.querySelectorAll('.sort')[3].click()")
    sorted_by = browser.execute_script("return document.querySelectorAll('.sort')[3].closest('th').ariaSort")
    assert sorted_by in ("ascending", "descending")
    assert len(browser.find_elements("css selector", f"{VISIBLE}")) == 211


def page_of(chosen, given, folder):
    """The page of one set without figures, for these have tests of their own."""
    table = task_table(chosen)
    page_table = make_page_table(chosen, table, "../runs")
    section = Section(name="x", title="x", key=chosen.key, page_tables=[page_table])
    path = folder / "index.html"
    path.write_text(to_html([section], chosen.rows, set_aside=[], about={}, base="../runs", folder=folder))
    return path
