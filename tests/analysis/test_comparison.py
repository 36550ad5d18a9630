"""Two methods, or two folders, paired over tasks; and the commands around it."""

import dataclasses

import pytest
from rich.console import Console
from typer.testing import CliRunner

from analysis.commands import compare
from analysis.comparison import CompareError, compare_folders, compare_in_sets, compare_methods
from analysis.frame import comparable_sets
from analysis.statistics import seeds_interval
from analysis.tables.significance import significance_table
from harness.commands.main import app
from harness.errors import HarnessError
from harness.records.store import Store
from suites import SUITES
from tests.examples import make_record, make_spec
from tests.table_records import cells, only_set, recipe, records

QUIET = Console(quiet=True)


def two():
    return (
        records("sct", (11, 22, 33, 44, 55))
        + records("sct", (13, 22, 33, 44, 55), seed=1)
        + records("lora", (10, 20, 30, 45, 55))
        + records("lora", (10, 20, 30, 45, 55), seed=1)
    )


def write(root, given):
    for record in given:
        Store(root).write(record)
    return root


def test_differences_per_task_and_over_all_of_them():
    (table,) = compare_in_sets([only_set(two())], "sct", "LORA")
    row = cells(table, "photo_crops")
    assert row["difference in points", "mean"].value == 2
    interval = seeds_interval([[1, 3]])
    assert row["difference in points", "low"].value == pytest.approx(interval.low)
    assert row["", "seeds shared"].value == 2
    assert cells(table, "mean of 5 tasks")["difference in points", "mean"].value == pytest.approx(6 / 5)
    assert "SCT beats LORA on 3 of 5 tasks, ties on 1, loses on 1" in table.caption
    assert "Wilcoxon p = " in table.caption


def test_folders_of_another_precision_are_not_compared_and_it_is_named():
    here, there = (
        records(),
        [dataclasses.replace(r, environment=r.environment | {"precision": "bf16"}) for r in records()],
    )
    with pytest.raises(CompareError, match=r"only in a \(precision float32 against bf16\)"):
        compare_folders(comparable_sets(here), comparable_sets(there), ("a", "b"))


def test_one_seed_has_no_interval_per_task():
    (table,) = compare_in_sets([only_set(records() + records("lora"))], "sct", "lora")
    assert cells(table, "animals")["difference in points", "low"].note == "missing"


def test_means_are_over_shared_seeds_as_their_interval_is():
    given = [*two(), *records("sct", (90, 90, 90, 90, 90), seed=2)]
    (table,) = compare_in_sets([only_set(given)], "sct", "lora")
    row = cells(table, "photo_crops")
    assert (row["", "SCT"].value, row["", "SCT"].note, row["difference in points", "mean"].value) == (12, "2/3", 2)
    assert row["difference in points", "low"].value < 2 < row["difference in points", "high"].value
    assert cells(table, "mean of 5 tasks")["", "SCT"].note == "*"
    assert "SCT beats LORA on 3 of 5 tasks" in table.caption


def test_without_a_shared_seed_the_means_of_all_are_marked():
    (table,) = compare_in_sets([only_set(records() + records("lora", (9, 9, 9, 9, 9), seed=1))], "sct", "lora")
    difference = cells(table, "photo_crops")["difference in points", "mean"]
    assert (difference.value, difference.note) == (1, "≠")
    assert "no seed in common" in table.full_caption


def test_practically_equal_is_said_with_its_margin():
    given = records("sct", (10, 20, 30, 40, 50)) + records("lora", (10.1, 19.9, 30.2, 40, 50))
    (table,) = compare_in_sets([only_set(given)], "sct", "lora", margin=0.5)
    assert "practically equal within ±0.5 points" in table.caption


def test_only_shared_tasks_are_compared_and_the_others_are_named():
    given = records("sct") + records("lora")[:3]
    (table,) = compare_in_sets([only_set(given)], "sct", "lora")
    assert "mean of 3 tasks" in table.rows
    assert "only one of the two has them: dsprites_loc, dsprites_ori" in table.caption


def test_errors_say_what_there_is():
    chosen = only_set(records("sct")[:2] + records("lora")[3:])
    with pytest.raises(CompareError, match="share no task: animals, photo_crops against dsprites_loc, dsprites_ori"):
        compare_in_sets([chosen], "sct", "lora")
    with pytest.raises(CompareError, match="There are: LORA; SCT"):
        compare_in_sets([chosen], "sct", "ssf")
    with pytest.raises(CompareError, match="are both SCT"):
        compare_methods(chosen, "sct", "SCT")
    with pytest.raises(CompareError, match="no records"):
        compare_in_sets([], "sct", "lora")


def test_a_name_that_two_variants_share_is_refused():
    chosen = only_set(records(config={"channels": 8}) + records(config={"channels": 9}))
    with pytest.raises(CompareError, match="no single method 'sct'"):
        compare_methods(chosen, "sct", "SCT (channels=8)")
    assert compare_methods(chosen, "SCT (channels=8)", "sct (channels=9)").differences == [0] * 5


def test_protocols_are_never_paired(tmp_path):
    write(tmp_path, records("sct") + records("lora", protocol="validation"))
    with pytest.raises(CompareError):
        compare("sct", "lora", tmp_path, None, None, 1.0, QUIET)


def test_two_folders(tmp_path):
    a = write(tmp_path / "a", records("sct", (1, 2, 3, 4, 5)))
    b = write(tmp_path / "b", records("sct", (1, 2, 3, 4, 4)) + records("lora"))
    (table,) = compare(str(a), str(b), tmp_path, None, None, 1.0, QUIET)
    assert cells(table, "mean of 5 tasks")["difference in points", "mean"].value == pytest.approx(0.2)
    assert "SCT in" in table.caption


def test_folders_pair_settings_and_name_what_is_not_compared():
    ours = records("sct", config={"channels": 48}) + records("sct", config={"channels": 24}) + records("full")
    theirs = (
        records("sct", (11,) * 5, config={"channels": 48}) + records("lora") + records("full", recipe=recipe(lr=9.0))
    )
    stranger = dataclasses.replace(records("bitfit")[0], data=make_record(data="x").data)
    (table,) = compare_folders(comparable_sets([*ours, stranger]), comparable_sets(theirs), ("a", "b"))
    assert "SCT (channels=48) in a beats SCT (channels=48) in b" in table.caption
    assert "SCT (channels=24): settings differ, channels 24 against 48" in table.caption
    assert "FULL: settings differ, lr 0.001 against 9.0" in table.caption
    assert "LORA: only in b" in table.caption
    assert "1 run of BITFIT in a on photo_crops (images differ)" in table.caption


def test_folders_with_other_data_or_conditions_are_refused():
    ours = comparable_sets(records())
    other = comparable_sets([dataclasses.replace(r, data=make_record(data="x").data) for r in records()])
    with pytest.raises(CompareError, match="fingerprints differ"):
        compare_folders(ours, other, ("a", "b"))
    with pytest.raises(CompareError, match="same conditions"):
        compare_folders(ours, comparable_sets(records(preprocessing="p")), ("a", "b"))


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_the_command_compare(tmp_path):
    write(tmp_path, two())
    done = run("compare", "sct", "lora", "--out", tmp_path, "--suite", "demo", "--protocol", "fixed")
    assert done.exit_code == 0
    assert "SCT beats LORA on 3 of 5 tasks" in done.output
    wrong = run("compare", "sct", "lora", "--out", tmp_path, "--suite", "vtab1k")
    assert isinstance(wrong.exception, HarnessError)
    assert "no records" in str(wrong.exception)


def test_the_command_published():
    listed = run("published", "--json")
    assert '"name": "vpetl"' in listed.output
    shown = run("published", "--source", "vpetl", "--reference", "SCT")
    assert "73.59" in shown.output
    assert "76.00" in shown.output
    assert "against SCT" in shown.output
    assert isinstance(run("published", "--source", "nope").exception, HarnessError)


def test_the_command_report_takes_a_reference_and_axes(tmp_path):
    given = [r for c in (8, 16) for r in records(config={"channels": c})] + records("lora")
    write(tmp_path, given)
    done = run("report", "--out", tmp_path, "--reference", "lora", "--ablation", "channels")
    assert done.exit_code == 0, done.output
    (folder,) = (path for path in (tmp_path / "report").iterdir() if path.is_dir())
    assert "against LORA" in (folder / "significance.tex").read_text()
    assert (folder / "ablation_channels.tex").exists()
    assert make_spec().suite in folder.name


@pytest.mark.parametrize(
    ("option", "value", "answer"),
    [
        ("--reference", "lora2", "Did you mean 'lora'"),
        ("--ablation", "chanels", "Did you mean 'channels'"),
        ("--suite", "dmeo", "Did you mean 'demo'"),
        ("--suite", "nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_a_report_of_what_is_not_there_is_an_error(tmp_path, option, value, answer):
    write(tmp_path, [r for c in (8, 16) for r in records(config={"channels": c})] + records("lora"))
    done = run("report", "--out", tmp_path, option, value)
    assert done.exit_code != 0
    assert answer in done.output + str(done.exception)


def test_a_reference_that_cannot_be_used_is_named_with_the_reason():
    given = (
        records()
        + records("full")
        + records("lora")[:4]
        + records("ssf", config={"a": 1})
        + records("ssf", config={"a": 2})
    )
    chosen = only_set(given)
    assert significance_table(chosen, "full").caption.startswith("Tests are paired")
    for name, why in (
        ("lora", "LORA lacks a task"),
        ("ssf", "it stands for SSF (a=1), SSF (a=2)"),
        ("bitfit", "no method here"),
    ):
        assert f"Not against {name!r}: {why}" in significance_table(chosen, name).caption


def test_a_report_of_a_suite_file_has_its_groups(tmp_path, monkeypatch):
    monkeypatch.delitem(SUITES, "mine", raising=False)
    file = tmp_path / "mine.yaml"
    tasks = "".join(
        f"  - {{name: {t}, group: {g}, num_classes: 2, train: 9}}\n" for t, g in (("moon", "night"), ("sun", "day"))
    )
    file.write_text(f"name: mine\ntitle: Mine\nabout: Two.\ntasks:\n{tasks}")
    write(
        tmp_path,
        [make_record(spec=make_spec(suite="mine", task=t, method=m)) for t in ("moon", "sun") for m in ("sct", "lora")],
    )
    done = run("report", "--out", tmp_path, "--suite", file)
    assert done.exit_code == 0, done.output
    (table,) = (tmp_path / "report").glob("mine-*/tasks.csv")
    assert {"night/moon", "day/sun", "mean of/night"} <= set(table.read_text().splitlines()[0].split(","))
    del SUITES["mine"]
