"""Published numbers: what the literature's own tables say under our statistics."""

import pandas as pd
import pytest
from rich.console import Console

from analysis import literature
from analysis.figures.reproduction import reproduction_scatter
from analysis.frame import comparable_sets
from analysis.render.latex import to_latex
from analysis.render.markdown import to_markdown
from analysis.render.terminal import to_terminal
from analysis.statistics import average_ranks, nemenyi_difference
from analysis.tables.base import MEANS
from analysis.tables.tasks import task_table
from harness.errors import HarnessError
from tests.examples import make_record, make_spec

COLUMNS = [
    "source",
    "table",
    "protocol",
    "backbone",
    "suite",
    "method",
    "params_m",
    "dataset",
    "shots",
    "metric",
    "value",
]


@pytest.fixture(scope="module")
def vpetl():
    return literature.source("vpetl")


@pytest.fixture(scope="module")
def vtab(vpetl):
    return next(table for table in literature.tables(vpetl) if "vtab1k" in table.title)


def cell(table, label, name, group=MEANS):
    return table.rows[label][group, name]


def test_every_row_has_a_source_a_table_and_a_protocol():
    for path in sorted(literature.FOLDER.glob("*.csv")):
        rows = pd.read_csv(path, dtype=str, keep_default_na=False)
        assert list(rows) == COLUMNS
        for column in ("source", "table", "protocol", "suite", "method", "metric", "value"):
            assert (rows[column] != "").all(), (path.name, column)


def test_values_are_kept_digit_for_digit(vpetl):
    assert "0.10" in set(vpetl.rows["params_m"])
    assert set(vpetl.rows[vpetl.rows["part"] == "mean19_stated"]["value"]) >= {"73.59", "74.10"}


def test_both_averages_of_sct(vtab):
    assert cell(vtab, "SCT", "tasks").value == pytest.approx(73.59, abs=0.005)
    assert cell(vtab, "SCT", "groups").value == pytest.approx(76.00, abs=0.005)
    assert cell(vtab, "SCT", "mean19", literature.STATED).value == 73.59


@pytest.mark.parametrize("name", ["noah", "convpass", "vpetl", "osu", "goft", "dyt", "pace"])
def test_averages_are_those_computed_from_the_same_rows_elsewhere(name):
    chosen = literature.source(name)
    rows = chosen.rows
    checked = 0
    for table in literature.tables(chosen):
        if (MEANS, "groups") not in [(c.group, c.name) for c in table.columns]:
            continue
        base = table.title.rsplit(", ", 1)[1]
        for part, column in (("mean19_computed", "tasks"), ("groupmean_computed", "groups")):
            for row in rows[(rows["part"] == part) & (rows["base"] == base)].itertuples():
                if row.label in table.rows:
                    assert cell(table, row.label, column).value == pytest.approx(float(row.value), abs=0.0051)
                    checked += 1
    assert checked >= 8


def test_sct_against_lora_is_not_significant(vpetl):
    table = literature.significance(vpetl, "SCT")
    row = {name: cell for (_, name), cell in table.rows["LoRA"].items()}
    assert row["points"].value == pytest.approx(-1.34, abs=0.005)
    assert row["Holm p"].value == pytest.approx(0.19, abs=0.005)
    assert row["reads"].text == "undecided"
    assert [row[name].value for name in ("wins", "ties", "losses")] == [4, 0, 15]


def test_neighbours_of_sct_are_not_significant_either(vpetl):
    table = literature.significance(vpetl, "SCT")
    for name in ("FacT", "NOAH", "RepAdapter", "DTL", "Hydra", "LAST", "SNF", "GPS"):
        assert cell(table, name, "Holm p", "Wilcoxon").value > 0.05


def test_average_ranks_and_critical_difference(vpetl):
    values = literature.matrix(vpetl)
    ranks = average_ranks(values)
    assert ranks["SCT"] == pytest.approx(7.74, abs=0.005)
    assert ranks["LoRA"] == pytest.approx(11.66, abs=0.005)
    assert nemenyi_difference(*values.shape) == pytest.approx(6.80, abs=0.005)


def test_the_two_averages_put_methods_in_different_orders(vtab):
    def places(column):
        values = {label: cell(vtab, label, column).value for label in vtab.rows}
        return {
            label.split(" [")[0]: place for place, label in enumerate(sorted(values, key=values.get)[::-1], start=1)
        }

    tasks, groups = places("tasks"), places("groups")
    moved = {name: (tasks[name], groups[name]) for name in tasks if tasks[name] != groups[name]}
    assert moved == {"SNF": (6, 4), "Hydra": (4, 5), "LAST": (5, 6), "SSF": (11, 9), "NOAH": (9, 11)}


def test_a_backbone_that_differs_is_named_in_the_row(vtab):
    assert any(label.startswith("SSF [") and "AugReg" in label for label in vtab.rows)


def test_published_rows_never_enter_a_table_of_runs():
    (chosen,) = comparable_sets([make_record()])
    assert list(task_table(chosen).rows) == ["SCT"]


def test_all_tables_of_all_sources_render():
    console = Console(quiet=True)
    for chosen in literature.load().values():
        for table in literature.tables(chosen):
            assert table.rows and to_markdown(table) and to_latex(table)
            to_terminal(table, console)


def test_unknown_names_are_answered_with_what_there_is(vpetl, tmp_path):
    with pytest.raises(HarnessError, match="vpetl"):
        literature.source("petl")
    with pytest.raises(HarnessError, match="LoRA"):
        literature.significance(vpetl, "nonesuch")
    with pytest.raises(HarnessError, match="no published numbers"):
        literature.load(tmp_path)


def test_measured_numbers_stand_beside_the_published_ones_of_the_same_method_and_task():
    specs = [
        make_spec(suite="vtab1k", task=task, method="sct", seed=seed)
        for task in ("cifar100", "kitti")
        for seed in (0, 1)
    ]
    measured = [
        make_record(spec=s, accuracy=a, method_title="SCT")
        for s, a in zip(specs, (70.0, 72.0, 80.0, 80.0), strict=True)
    ]
    (chosen,) = comparable_sets(measured)
    pairs = literature.measured_beside(chosen).set_index("task")
    assert set(pairs["method"]) == {"sct"}  # by which figures choose its colour
    assert pairs["measured"].to_dict() == {"cifar100": 71.0, "kitti": 80.0}
    quoted = literature.matrix(literature.source("vpetl"))
    assert pairs["published"].to_dict() == quoted.loc["SCT", ["cifar100", "kitti"]].to_dict()
    assert reproduction_scatter(pairs.reset_index()) is not None


def test_nothing_is_published_on_the_demo():
    (chosen,) = comparable_sets([make_record(spec=make_spec())])
    assert literature.measured_beside(chosen) is None
