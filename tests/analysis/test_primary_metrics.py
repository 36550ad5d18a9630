"""Each task is shown by its own primary metric; a value that no record has is not known."""

import dataclasses

import pytest
from rich.console import Console

from analysis.commands import bias, compare
from analysis.comparison import CompareError, compare_folders, compare_in_sets
from analysis.frame import comparable_sets, judged
from analysis.report import write_report
from analysis.shown import tables_of_frame
from analysis.tables import TableOptions, all_tables
from analysis.tables.differences import bias_tables
from analysis.tables.settings import tuning_table
from analysis.tables.tasks import domain_table, task_table
from harness.records.store import Store
from harness.schema.metrics import METRICS
from harness.schema.record import Trial, Tuning
from tests.examples import make_record, make_spec
from tests.table_records import TASKS, cells, domain, failed, from_records, only_set, records

QUIET = Console(quiet=True)
KAPPA, LOSS = METRICS["quadratic_kappa"], METRICS["loss"]


def scored(record, kappa, primary="accuracy", **changes):
    """The record with a kappa on every split."""
    splits = {
        split: dataclasses.replace(one, values=one.values | {"quadratic_kappa": kappa})
        for split, one in record.metrics.items()
    }
    return dataclasses.replace(record, metrics=splits, primary_metric=primary, **changes)


def mixed(method="sct", kappa=0.5, **changes):
    """The first three tasks by accuracy, the two of dSprites by kappa."""
    primary = {task: "quadratic_kappa" if task.startswith("dsprites") else "accuracy" for task in TASKS}
    return [scored(r, kappa + i / 100, primary[r.spec.task]) for i, r in enumerate(records(method, **changes))]


def test_tasks_of_different_metrics_stand_in_tables_of_their_own():
    first, second = judged(comparable_sets([*mixed(), *mixed("lora", 0.7)]), None)
    assert (first.metric.name, second.metric.name) == ("accuracy", "quadratic_kappa")
    above, below = task_table(first), task_table(second)
    assert [c.name for c in above.columns if c.over and not c.group.startswith("mean")] == TASKS[:3]
    assert cells(above, "SCT")["mean of", "3 of 5 tasks"].value == 20
    assert cells(below, "SCT")["mean of", "2 of 5 tasks"].value == pytest.approx(0.535)
    assert above.title.endswith(", by top-1 accuracy") and below.title.endswith(", by quadratic weighted kappa")
    assert below.caption.startswith("Quadratic weighted kappa; ")
    assert [cells(below, label)["", "rank"].value for label in ("SCT", "LORA")] == [2, 1]


def test_a_metric_that_is_asked_for_has_all_tasks_in_one_table():
    (chosen,) = judged(comparable_sets(mixed()), KAPPA)
    assert cells(task_table(chosen), "SCT")["mean of", "tasks"].value == pytest.approx(0.52)
    assert "by" not in chosen.apart


def test_one_primary_metric_of_all_tasks_needs_no_parts():
    given = [dataclasses.replace(r, primary_metric="quadratic_kappa") for r in mixed()]
    (chosen,) = judged(comparable_sets([*given, failed(task="digits", method="lora")]), None)
    assert (chosen.metric, chosen.apart) == (KAPPA, "")
    (table,) = tables_of_frame(from_records(given).rows)
    assert table.caption.startswith("Quadratic weighted kappa")


def test_the_report_has_a_section_for_each_metric(tmp_path):
    paths = write_report(from_records(mixed()), tmp_path, QUIET)
    tables = sorted(path for path in paths if path.name == "tasks.csv")
    held = [tuple(name in table.read_text() for name in ("photo_crops", "dsprites_ori")) for table in tables]
    assert held == [(True, False), (False, True)]
    assert "by quadratic weighted kappa" in paths[0].read_text()


def test_settings_and_epochs_that_another_metric_chose_are_left_out():
    given = [
        dataclasses.replace(r, spec=dataclasses.replace(r.spec, chosen_by=name), last_epoch=r.metrics)
        for name, seeds in (("accuracy", (0, 1)), ("quadratic_kappa", (2,)))
        for seed in seeds
        for r in mixed(seed=seed, protocol="oracle")
    ]
    chosen = only_set(given)
    assert set(chosen.rows["seed"]) == {0, 1}
    assert {run.reason for run in chosen.left_out} == {"chosen by quadratic_kappa instead of accuracy"}


def test_the_difference_of_protocols_is_taken_metric_by_metric():
    oracle = [
        dataclasses.replace(
            r, spec=dataclasses.replace(r.spec, chosen_by=r.primary_metric), last_epoch=r.metrics, test_looks=2
        )
        for r in mixed(protocol="oracle", kappa=0.6)
    ]
    first, second = bias_tables(judged(comparable_sets([*mixed(), *oracle]), None))
    assert first.caption.startswith("Points of top-1 accuracy")
    assert second.caption.startswith("Units of quadratic weighted kappa")
    assert cells(second, "SCT †" if "SCT †" in second.rows else "SCT")["mean of", "tasks"].value == pytest.approx(0.1)


def test_chosen_settings_are_shown_with_the_metric_that_chose_them():
    trials = [Trial(run_id=f"t{i}", setting={}, score=score, seconds=1.0) for i, score in enumerate((0.912, 0.345))]
    given = []
    for task, metric in (("digits", "loss"), ("animals", "accuracy")):
        tuning = Tuning(metric=metric, budget=2, space={}, trials=trials, chosen=1, seconds=2.0)
        spec = make_spec(task=task, protocol="tuned", trials=2)
        given.append(make_record(spec=spec, tuning=tuning, primary_metric=metric))
    table = tuning_table(only_set(given))
    assert "cross-entropy (digits), top-1 accuracy in per cent (animals) of the winner" in table.caption
    assert {cells(table, row)["", "val"].value for row in table.rows} == {0.345}
    assert next(column for column in table.columns if column.name == "val").digits == 3


def test_a_value_that_no_record_has_is_not_known_and_in_no_mean():
    new = [scored(r, 0.5) for r in records("lora")]
    table = task_table(only_set([*records(), *new, failed(method="ssf", task="digits")]).by(KAPPA))
    assert {cell.note for cell in table.cells("SCT")[:5]} == {"unknown"}
    assert cells(table, "SCT")["mean of", "tasks"].note == cells(table, "SCT")["", "rank"].note == "missing"
    assert cells(table, "LORA")["mean of", "tasks"].value == 0.5
    assert cells(table, "SSF")["specialized", "digits"].note == "failed"
    assert "?: not known" in table.legend
    whole = all_tables(only_set(records()), TableOptions(metric=KAPPA))
    assert {cell.note for cell in whole[0].cells("SCT")[:5]} == {"unknown"}


def test_seeds_from_before_the_metric_are_counted_as_lacking():
    given = [*records(), *(scored(r, 0.5) for r in records(seed=1))]
    (cell, *_) = task_table(only_set(given).by(KAPPA)).cells("SCT")
    assert (cell.value, cell.note) == (0.5, "1/2")


def test_targets_without_the_metric_are_not_known():
    row = cells(domain_table(only_set([domain()]).by(KAPPA), "imagenet", 16), "SCT")
    assert row["source", "imagenet"].note == row["targets, 1000-way", "imagenetv2"].note == "unknown"


def test_a_comparison_says_unit_and_direction():
    given = [*mixed(kappa=0.5), *mixed("lora", 0.6)]
    (by_kappa,) = compare_in_sets(judged(comparable_sets(given), KAPPA), "sct", "lora")
    assert "SCT beats LORA on 0 of 5 tasks" in by_kappa.caption
    assert "Mean difference -0.1000 units of quadratic weighted kappa (95 % interval -0.1000 to" in by_kappa.caption
    assert ("difference in units", "mean") in {column.key for column in by_kappa.columns}
    worse = [
        dataclasses.replace(r, metrics={"test": dataclasses.replace(one, values=one.values | {"loss": 2.0})})
        for r in records("lora")
        for one in r.metrics.values()
    ]
    (by_loss,) = compare_in_sets(judged(comparable_sets([*records(), *worse]), LOSS), "sct", "lora", 1.0)
    assert "SCT beats LORA on 5 of 5 tasks" in by_loss.caption
    assert "Mean difference -0.7500 units of cross-entropy, of which less is better" in by_loss.caption
    assert "practically equal within ±1 units" in by_loss.caption


def test_folders_are_compared_metric_by_metric():
    sides = [judged(comparable_sets(mixed(kappa=kappa)), None) for kappa in (0.5, 0.6)]
    first, second = compare_folders(*sides, ("a", "b"))
    assert ("points of top-1" in first.caption, "units of quadratic" in second.caption) == (True, True)
    with pytest.raises(CompareError, match="only in a"):
        compare_folders(sides[0][:1], sides[1][1:], ("a", "b"))


def test_nothing_to_compare_by_a_metric_is_said():
    with pytest.raises(CompareError, match="no complete run with a quadratic weighted kappa"):
        compare_in_sets(judged(comparable_sets([*records(), *records("lora")]), KAPPA), "sct", "lora")


@pytest.fixture
def folder(tmp_path):
    later = [dataclasses.replace(r, last_epoch=r.metrics) for r in mixed(protocol="oracle")]
    for record in (*mixed(), *mixed("lora", 0.6), *later):
        Store(tmp_path).write(record)
    return tmp_path


def test_a_margin_is_in_the_metrics_unit(folder):
    (table,) = compare("sct", "lora", folder, None, "fixed", 0.2, QUIET, "quadratic_kappa")
    assert "practically equal within ±0.2 units" in table.caption
    (table,) = compare("sct", "lora", folder, None, "fixed", None, QUIET, "quadratic_kappa")
    assert "so it cannot decide); undecided. " in table.caption
    assert len(bias(folder, None, QUIET)) == 2
