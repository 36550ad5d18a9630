"""Two sources of one method never stand in one row, and what records say of a method is what a report prints."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from analysis.comparison import compare_folders
from analysis.figures.ablation import ablation_points
from analysis.figures.data import run_frame
from analysis.frame import comparable_sets
from analysis.report import write_report
from analysis.tables import all_tables
from analysis.tables.differences import bias_tables
from analysis.tables.tasks import task_table
from harness.errors import HarnessError
from tests.table_records import TASKS, from_records, only_set, records

OLD, NEW = "1" * 64, "2" * 64


def sourced(source, *arguments, **changes):
    return [dataclasses.replace(record, method_source=source) for record in records(*arguments, **changes)]


def two_sources(first=OLD):
    """Seeds 0 and 1 of one source, 2 of another, which is much better."""
    return [*sourced(first), *sourced(first, seed=1), *sourced(NEW, "sct", (90,) * 5, seed=2)]


@pytest.mark.parametrize(("first", "name"), [(OLD, "11111111"), ("", "not known")])
def test_rows_are_told_apart_and_the_caption_says_it(first, name):
    chosen = only_set(two_sources(first) + records("linear"))
    table = task_table(chosen)
    assert set(table.rows) == {"LINEAR", "SCT (source 22222222)", f"SCT (source {name})"}
    assert [cell.value for cell in table.cells("SCT (source 22222222)")[:5]] == [90] * 5
    assert [cell.value for cell in table.cells(f"SCT (source {name})")[:5]] == [10, 20, 30, 40, 50]
    said = f"sources of methods, which have a row each: SCT {name} (10 runs) and 22222222 (5 runs)"
    assert said in table.full_caption
    for table in all_tables(chosen):
        assert "SCT" not in table.rows, table.name


def test_one_source_and_failed_runs_of_another_are_one_row():
    failed = [dataclasses.replace(record, status="failed", metrics={}) for record in sourced(OLD, seed=1)]
    assert list(task_table(only_set([*sourced(NEW), *failed])).rows) == ["SCT"]


@pytest.mark.parametrize("protocol", ["tuned", "published"])
def test_sources_on_different_tasks_are_told_apart_where_settings_may_differ_from_task_to_task(protocol):
    mixed = [*sourced(OLD, protocol=protocol)[:3], *sourced(NEW, protocol=protocol)[3:]]
    table = task_table(only_set(mixed))
    assert list(table.rows) == ["SCT (source 11111111)", "SCT (source 22222222)"]
    assert all(table.cells(label)[-5].note for label in table.rows)  # no average over fewer tasks without a mark


def test_an_ablation_joins_no_two_sources():
    given = [
        *sourced(OLD, config={"channels": 24}),
        *sourced(OLD, config={"channels": 48}),
        *sourced(NEW, config={"channels": 48}, seed=1),
        *sourced(NEW, config={"channels": 96}, seed=1),
    ]
    points, _ = ablation_points(run_frame(only_set(given)), "channels", ["channels"])
    assert points.groupby("line")["setting"].apply(sorted).to_dict() == {
        "SCT, source 11111111": [24, 48],
        "SCT, source 22222222": [48, 96],
    }


def test_an_ablation_joins_no_two_methods_of_one_title():
    given = [
        dataclasses.replace(record, method_title="SCT")
        for method in ("sct", "my_sct")
        for channels in (24, 48)
        for record in records(method, config={"channels": channels})
    ]
    points, _ = ablation_points(run_frame(only_set(given)), "channels", ["channels"])
    assert points.groupby("line").size().to_dict() == {"SCT [sct]": 2, "SCT [my_sct]": 2}


def test_pairs_of_two_protocols_are_of_one_source():
    sets = comparable_sets([*sourced(OLD), *sourced(NEW, "sct", (60,) * 5, protocol="oracle")])
    with pytest.raises(HarnessError, match="another source of the method: 11111111 against 22222222"):
        bias_tables(sets)


def test_two_folders_may_be_of_two_sources_but_one_side_is_of_one():
    def both(one, other):
        return compare_folders(comparable_sets(one), comparable_sets(other), ("before", "after"))

    (table,) = both(sourced(OLD), sourced(NEW, "sct", (60,) * 5))
    assert "sources of methods" in table.full_caption
    with pytest.raises(HarnessError, match="from 2 sources of the method in after"):
        both(sourced(OLD), [*sourced(OLD, seed=3), *sourced(NEW)])


def test_family_and_paper_of_a_method_that_is_not_known_here_are_those_of_its_records(tmp_path, monkeypatch):
    monkeypatch.setattr("analysis.report.drawings", lambda *_: [])  # they show neither, and take long
    about = {"method_title": "Mine", "method_family": "prompt", "method_paper": "Me, arXiv 2401.01234"}
    given = [dataclasses.replace(record, **about) for record in records("mine")] + records("linear")
    known = {"linear": {"title": "Linear", "family": "head", "paper": "a baseline"}}
    write_report(from_records(given), tmp_path / "report", Console(file=io.StringIO()), about=known)
    page = (tmp_path / "report" / "index.html").read_text()
    assert "https://arxiv.org/abs/2401.01234" in page and "a baseline" in page
    assert page.count("prompt") and json.dumps(TASKS[0]) in page
