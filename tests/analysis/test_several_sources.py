"""Several results folders and packs in one report: every run once, and where it is from."""

import dataclasses
import zipfile

import numpy as np
import pandas as pd
import pytest

import sctbench as sb
from analysis.frame import comparable_sets
from analysis.sources import from_sources
from analysis.tables.images import images_table
from analysis.tables.tasks import task_table
from harness.errors import HarnessError
from harness.records.pack import pack
from harness.records.store import KEPT_FILES, PREDICTIONS_NAME, Store
from harness.schema.record import RunRecord
from tests.command import sctbench
from tests.examples import make_record, make_spec
from tests.table_records import cells, failed, few_shot, only_set, predictions, records, write_with_predictions


def write(root, given):
    for record in given:
        Store(root).write(record)
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def both(tmp_path):
    """Folder A with two methods of one seed, and pack B.zip with another seed of one, and one more method."""
    write(tmp_path / "A", records() + records("lora"))
    pack(write(tmp_path / "B", records(seed=1) + records("full")), tmp_path / "B.zip")
    return tmp_path / "A", tmp_path / "B.zip"


def test_rows_say_where_they_are_from(both):
    runs = from_sources(both)
    assert runs.rows["results"].value_counts().to_dict() == {"A": 10, "B.zip": 10}
    table = task_table(only_set(runs.rows))
    where = {label: cells(table, label)["", "from"].text for label in table.rows}
    assert where == {"SCT": "A (5 runs), B.zip (5 runs)", "LORA": "A", "FULL": "B.zip"}
    assert "2 results folders or packs: A (10 runs), B.zip (10 runs)" in table.caption
    assert [record.spec.run_id for record in runs.read(runs.rows)] == list(runs.rows["run_id"])


def test_of_one_place_tables_say_nothing_of_it(both):
    table = task_table(only_set(from_sources(both[:1]).rows))
    assert ("", "from") not in {column.key for column in table.columns} and "packs" not in table.caption


def test_few_shot_tables_have_the_column_too(tmp_path):
    places = (
        write(tmp_path / "A", few_shot("sct", {"food101": 10})),
        write(tmp_path / "B", few_shot("lora", {"food101": 9})),
    )
    assert "A" in sb.table(from_sources(places).rows)[0].rows["SCT"]["", "from"].text


def test_the_same_results_count_once(tmp_path):
    places = write(tmp_path / "A", records()), write(tmp_path / "B", records() + records("lora"))
    runs = from_sources(places)
    assert len(runs.rows) == 10 and runs.rows["elsewhere"].isna().all()
    assert runs.remarks == ["5 runs are in A and B with the same results, and count once"]


def test_other_results_of_a_run_are_named_and_the_first_are_taken(tmp_path):
    other = records(accuracies=(10, 20, 30.25, 40, 50))
    places = write(tmp_path / "A", records()), write(tmp_path / "B", other)
    runs = from_sources(places)
    words = "1 run has other results elsewhere, and the first are taken: SCT on digits, seed 0 "
    words += "(accuracy 30 in A, 30.25 in B)"
    assert runs.remarks == ["4 runs are in A and B with the same results, and count once", words]
    assert words in task_table(only_set(runs.rows)).caption
    (digits,) = runs.rows[runs.rows["task"] == "digits"].itertuples()
    assert (digits.accuracy, digits.results, digits.elsewhere) == (30, "A", "accuracy 30 in A, 30.25 in B")
    assert from_sources(places[::-1]).rows["accuracy"].max() == 50
    assert "30.25 in B, 30 in A" in from_sources(places[::-1]).remarks[1]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method_source": "ab" * 32}, "other source of the method in A and B"),
        ({"data": dataclasses.replace(make_record().data, files="else")}, "other data in A and B"),
    ],
)
def test_in_what_else_two_results_may_differ(tmp_path, changes, words):
    places = write(tmp_path / "A", [make_record()]), write(tmp_path / "B", [make_record(**changes)])
    assert list(from_sources(places).rows["elsewhere"]) == [words]


def test_many_other_results_are_counted(tmp_path):
    places = write(tmp_path / "A", records()), write(tmp_path / "B", records(accuracies=(1, 2, 3, 4, 5)))
    expected = "5 runs have other results elsewhere, and the first are taken, see `elsewhere` in runs.csv"
    assert from_sources(places).remarks == [expected]


def test_a_complete_run_comes_before_a_failed_one(tmp_path):
    places = write(tmp_path / "A", [failed(task="digits")]), write(tmp_path / "B", [make_record()])
    runs = from_sources(places)
    assert runs.rows[["status", "results"]].to_numpy().tolist() == [["complete", "B"]] and not runs.remarks


def test_names_that_end_alike_are_shown_whole(tmp_path):
    places = write(tmp_path / "x" / "results", records()), write(tmp_path / "y" / "results", records("lora"))
    assert set(from_sources(places).rows["results"]) == {str(place) for place in places}


def test_a_place_twice_or_nowhere(both, tmp_path):
    with pytest.raises(HarnessError, match="the same results are given twice"):
        from_sources([both[0], both[0] / ".." / "A"])
    (tmp_path / "c.zip").write_text("x")
    for name, words in (("nowhere", "nowhere: no such results folder or pack"), ("c.zip", "c.zip: no pack")):
        assert words in sctbench("report", "--results", "A", "--results", name, cwd=tmp_path, ok=False)


def test_a_pack_is_read_once_until_its_bytes_change(both, monkeypatch):
    whole = from_sources(both)
    read = []
    original = RunRecord.from_document
    monkeypatch.setattr(RunRecord, "from_document", lambda document: [read.append(1), original(document)][1])
    pd.testing.assert_frame_equal(from_sources(both).rows, whole.rows)
    assert read == []
    with both[1].open("ab") as file:
        file.truncate(file.tell() - 2)  # the length of the zip's comment, which is now `x`
        file.write(b"\1\0x")
    pd.testing.assert_frame_equal(from_sources(both).rows, whole.rows)
    assert len(read) == 10


def test_damaged_records_of_a_pack_are_set_aside(both, tmp_path):
    with zipfile.ZipFile(both[1]) as old, zipfile.ZipFile(tmp_path / "C.zip", "w") as new:
        first = old.namelist()[0]
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b'"task":', b'"Task":') if name == first else old.read(name))
    runs = from_sources([both[0], tmp_path / "C.zip"])
    (bad,) = runs.rejected
    assert bad.path == tmp_path / "C.zip" / first and bad.reason.startswith("altered") and len(runs.rows) == 19


def write_predictions(root, method, seed=0):
    for task in ("digits", "animals"):
        record = make_record(spec=make_spec(task=task, method=method, seed=seed))
        write_with_predictions(root, record, predictions(np.arange(60) < 20 + len(method) + seed, of=task))
    return root


@pytest.mark.parametrize("kept", [KEPT_FILES, ()])
def test_predictions_in_a_pack_are_tested_too(tmp_path, kept):
    here, there = write_predictions(tmp_path / "A", "linear"), write_predictions(tmp_path / "B", "full")
    pack(there, tmp_path / "B.zip", kept)
    runs = from_sources([here, tmp_path / "B.zip"])
    table = images_table(only_set(runs.rows), None, runs.predictions)
    assert (table is not None) == bool(kept)
    assert runs.rows["predictions"].tolist() == [True, True, bool(kept), bool(kept)]
    if kept:
        assert set(table.rows) == {"FULL"}


def test_altered_predictions_in_a_pack_are_not_used(tmp_path):
    here, there = write_predictions(tmp_path / "A", "linear"), write_predictions(tmp_path / "B", "full")
    pack(there, tmp_path / "B.zip", KEPT_FILES)
    with zipfile.ZipFile(tmp_path / "B.zip") as old, zipfile.ZipFile(tmp_path / "C.zip", "w") as new:
        for name in old.namelist():
            spoilt = name.endswith(PREDICTIONS_NAME) and "digits" in name
            new.writestr(name, old.read(name)[:-1] + b"\7" if spoilt else old.read(name))
    runs = from_sources([here, tmp_path / "C.zip"])
    caption = images_table(only_set(runs.rows), None, runs.predictions).caption
    assert "FULL on digits" in caption and "altered: its digest is not that in the record" in caption


def test_the_report_of_both_and_its_links(both, tmp_path):
    told = sctbench("report", "--results", "A", "--results", "B.zip", "--out", "there", cwd=tmp_path)
    assert "A (5 runs), B.zip (5 runs)" in told and "wrote there/report/index.html" in told
    page = (tmp_path / "there" / "report" / "index.html").read_text()
    link = f"../../A/runs/demo/digits/sct-{make_spec().run_id}/record.json"
    assert f'href="{link}"' in page and (tmp_path / "there" / "report" / link).resolve().is_file()
    assert '"bases":["../../A/runs/demo",""]' in page and "B.zip/runs" not in page
    (found,) = (tmp_path / "there" / "report").rglob("runs.csv")
    assert set(pd.read_csv(found)["results"]) == {"A", "B.zip"}


def test_compare_over_several_and_of_packs(both, tmp_path):
    told = sctbench("compare", "sct", "full", "--results", "A", "--results", "B.zip", cwd=tmp_path)
    assert "SCT against FULL" in told
    told = sctbench("compare", "A", "B.zip", cwd=tmp_path)
    assert "SCT in A against SCT in B.zip" in told
    refused = sctbench("compare", "A", "B.zip", "--results", "A", cwd=tmp_path, ok=False)
    assert "--results goes with two methods" in refused


def test_from_python(both, tmp_path):
    frame = sb.frame(results=both)
    assert set(frame["results"]) == {"A", "B.zip"} and len(comparable_sets(frame)) == 1
    assert set(sb.frame(both[0])["results"]) == {"A"}
    for call in (sb.frame, sb.report):
        with pytest.raises(sb.Error, match="nowhere: no such results folder or pack"):
            call(results=[str(both[0]), tmp_path / "nowhere"])
