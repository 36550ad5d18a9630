"""Tables and the figure of suites whose test images are scored corrupted too."""

import dataclasses

import pytest

from analysis.figures.data import run_frame
from analysis.figures.gallery import drawings
from analysis.figures.panels import corruption_curves
from analysis.tables.tasks import result_tables
from suites.corruptions import KINDS, STRENGTHS
from tests.examples import make_metrics, make_record, make_spec
from tests.table_records import cells, from_records, only_set


def corrupted(method="sct", task="digits", less=0.0, **changes):
    """A run that has 60 % on clean images, one point less per strength and two less per kind in their order."""
    spec = make_spec(suite="demo+corruptions", task=task, method=method, **changes)
    names = {f"{kind}-{strength}": strength + 2 * n for n, kind in enumerate(KINDS) for strength in STRENGTHS}
    values = {name: make_metrics(60 - less - off) for name, off in {"test": 0, **names}.items()}
    return make_record(spec=spec, metrics=values)


def test_clean_and_corrupted_side_by_side_with_a_breakdown():
    (table,) = result_tables(
        only_set([corrupted(), corrupted(seed=1, less=2.0), corrupted("lora"), corrupted("lora", seed=1)])
    )
    assert table.name == "corruptions"
    names = ["clean", "corrupted", *KINDS, *(f"strength {n}" for n in STRENGTHS), "params", "params+head", "seconds"]
    assert [column.name for column in table.columns] == names
    row = cells(table, "SCT")
    assert row["", "clean"].value == 59 and row["", "clean"].spread == pytest.approx(2**0.5)
    assert row["", "corrupted"].value == pytest.approx(59 - 3 - 4)
    assert row["", "corrupted"].spread == pytest.approx(2**0.5)
    assert row["corrupted, by kind", "noise"].value == 59 - 3
    assert row["corrupted, by kind", "pixelate"].value == 59 - 3 - 8
    assert row["corrupted, by strength", "strength 5"].value == 59 - 5 - 4


def test_several_tasks_are_averaged_and_shown_one_by_one():
    given = [corrupted(), corrupted(task="animals", less=10.0), corrupted("lora")]
    table, clean = result_tables(only_set(given))
    assert (table.name, clean.name) == ("corruptions", "tasks")
    row = cells(table, "SCT")
    assert row["", "clean"].value == 55 and row["", "corrupted"].value == 55 - 7
    assert row["corrupted, by task", "animals"].value == 50 - 7
    assert cells(table, "LORA")["", "corrupted"].note == "missing"


def test_a_run_without_one_of_the_corruptions_has_no_mean():
    whole = corrupted()
    less = {name: one for name, one in whole.metrics.items() if name != "jpeg-3"}
    (table,) = result_tables(only_set([dataclasses.replace(whole, metrics=less), corrupted("lora")]))
    row = cells(table, "SCT")
    assert row["", "corrupted"].note == row["corrupted, by kind", "jpeg"].note == "missing"
    assert row["corrupted, by kind", "blur"].is_number


def test_the_figure_has_a_panel_for_each_kind_from_clean_to_the_strongest():
    chosen = only_set([corrupted(), corrupted("lora", less=4.0)])
    figure = corruption_curves(run_frame(chosen))
    assert [axes.get_title() for axes in figure.axes] == list(KINDS)
    assert sorted(line.get_ydata().tolist() for line in figure.axes[1].lines) == [
        [56, 53, 52, 51, 50, 49],
        [60, 57, 56, 55, 54, 53],
    ]
    names = {drawing.name: drawing.caption for drawing in drawings(chosen, from_records([]).read)}
    assert "corruptions" in names and "targets" not in names
    assert "On the clean images alone" in names["accuracy_seconds"]
