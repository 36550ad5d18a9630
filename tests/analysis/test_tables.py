"""Tables out of records: right means, right marks, nothing averaged or mixed in silence."""

import dataclasses

import pytest
from rich.console import Console

from analysis.frame import comparable_sets
from analysis.render.markdown import to_csv, to_markdown
from analysis.render.terminal import to_terminal
from analysis.render.text import count_text
from analysis.tables.differences import weights_tables
from analysis.tables.tasks import task_table
from harness.schema.record import RunRecord
from tests.examples import make_record, make_spec
from tests.table_records import cells, only_set, recipe, records


def test_both_averages_and_group_means():
    row = cells(task_table(only_set(records())), "SCT")
    assert row["mean of", "natural"].value == 15
    assert row["mean of", "specialized"].value == 30
    assert row["mean of", "structured"].value == 45
    assert row["mean of", "tasks"].value == 30
    assert row["mean of", "groups"].value == 30
    assert row["", "params"].value == 10
    assert row["", "seconds"].value == 4.0


def test_spread_is_the_standard_deviation_with_ddof_one():
    table = task_table(only_set(records() + records(accuracies=(14, 20, 30, 40, 50), seed=1)))
    cell = cells(table, "SCT")["natural", "photo_crops"]
    assert cell.value == 12
    assert cell.spread == pytest.approx(8**0.5)
    assert "ddof=1" in table.caption
    assert "2 seeds" in table.caption


def test_a_missing_task_takes_its_averages_with_it():
    table = task_table(only_set(records()[:4] + records("lora")))
    row = cells(table, "SCT")
    assert row["structured", "dsprites_ori"].note == "missing"
    assert not row["mean of", "structured"].is_number
    assert not row["mean of", "tasks"].is_number
    assert row["mean of", "natural"].value == 15
    assert cells(table, "LORA")["mean of", "tasks"].value == 30


def test_a_failed_run_is_shown_as_failed():
    failed = RunRecord(spec=make_spec(task="digits"), method_title="SCT", status="failed", reason="x")
    table = task_table(only_set([*(r for r in records() if r.spec.task != "digits"), failed]))
    assert cells(table, "SCT")["specialized", "digits"].note == "failed"
    assert "failed" in to_markdown(table)


def test_fewer_seeds_than_the_others_is_marked():
    table = task_table(only_set(records() + records(seed=1)[:1]))
    assert "(1/2)" in to_markdown(table)
    assert cells(table, "SCT")["mean of", "tasks"].note == "*"


def test_variants_of_one_method_are_told_apart_by_what_differs():
    chosen = only_set(records(config={"channels": 24}) + records(config={"channels": 48}) + records("lora"))
    assert set(chosen.rows["label"]) == {"SCT (channels=24)", "SCT (channels=48)", "LORA"}


@pytest.mark.parametrize("change", [{"protocol": "validation"}, {"preprocessing": "other"}, {"suite": "demo-full"}])
def test_unlike_records_never_share_a_table(change):
    assert len(comparable_sets(records() + records(**change))) == 2


def test_a_record_on_other_data_is_left_out_and_named():
    stranger = make_record(spec=make_spec(task="digits", method="lora"), data="other pixels")
    table = task_table(only_set([*records(), *records("full"), stranger]))
    assert "LORA" not in table.rows
    assert "1 run of LORA on digits (images differ)" in table.caption


def test_pretrained_minus_random():
    random = dataclasses.replace(make_spec().backbone, weights="random", digest="")
    sets = comparable_sets(records() + records(accuracies=(5, 25, 30, 30, 30), backbone=random))
    pretrained, at_random = sorted(sets, key=lambda s: s.key["weights"])
    (table,) = weights_tables(pretrained, [at_random])
    assert [cell.value for cell in table.cells("SCT")] == [5, -5, 0, 10, 20]


def test_pretrained_minus_random_pairs_runs_of_the_same_settings_and_names_the_others():
    random = [dataclasses.replace(make_spec().backbone, weights="random", digest=d * 32) for d in ("cd", "ef")]
    others = records(accuracies=(5, 25, 30, 30, 30), backbone=random[0], recipe=recipe(epochs=7))
    ours, *randoms = comparable_sets(
        records() + records(accuracies=(9,) * 5, seed=1) + others + records(backbone=random[1])
    )
    unpaired, paired = weights_tables(ours, randoms)
    assert (unpaired.name, paired.name) == ("pretrained_minus_random_cdcdcdcd", "pretrained_minus_random_efefefef")
    assert unpaired.label != paired.label
    assert not unpaired.rows
    assert "SCT (10 runs, settings differ: epochs 2 against 7)" in unpaired.caption
    assert [(cell.value, cell.note) for cell in paired.cells("SCT")] == [(0, "1/2")] * 5
    assert "pretrained: SCT (5 runs, no complete run of the task and seed under random)" in paired.caption


def test_csv_holds_full_precision():
    text = to_csv(task_table(only_set(records(accuracies=(100 / 3, 1, 2, 3, 4)))))
    assert "33.333333333333336" in text
    assert text.splitlines()[0].startswith("method,natural/photo_crops,natural/photo_crops sd,natural/photo_crops note")


def test_a_narrow_terminal_gets_the_table_in_parts_and_nothing_is_cut():
    everything = [r for m in ("sct", "lora", "full", "linear", "bitfit", "ssf") for r in records(m)]
    console = Console(width=50, force_terminal=True, record=True, color_system=None)
    to_terminal(task_table(only_set(everything)), console)
    text = console.export_text()
    assert "…" not in text
    assert all(name in text for name in ("SCT", "SSF", "BITFIT", "mean of specialized"))
    assert max(map(len, text.splitlines())) <= 50


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (14112, "14.1k"), (111744, "0.11M"), (85.8e6, "85.80M")]
)
def test_counts_are_written_for_humans(value, text):
    assert count_text(value) == text
