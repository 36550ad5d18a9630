"""Oracle minus fixed: what reporting the best test epoch gains."""

import dataclasses

import pytest
from rich.console import Console

from analysis import commands
from analysis.frame import comparable_sets
from analysis.render.markdown import to_markdown
from analysis.tables.differences import bias_tables
from harness.errors import HarnessError
from harness.records.store import Store
from harness.schema.record import Fingerprint
from tests.examples import make_metrics, make_record
from tests.table_records import TASKS, cells, records


def oracle(method, accuracies, last, **changes):
    given = records(method, accuracies, protocol="oracle", **changes)
    return [
        dataclasses.replace(record, test_looks=10, last_epoch={"test": make_metrics(value)})
        for record, value in zip(given, last, strict=True)
    ]


def both():
    """SCT gains 2 points on each task, LoRA 10 on the last one, which puts it first."""
    return (
        records("sct", (50, 50, 50, 50, 50))
        + records("lora", (50, 50, 50, 50, 49))
        + oracle("sct", (52, 52, 52, 52, 52), (51, 51, 51, 51, 51))
        + oracle("lora", (51, 51, 51, 51, 62), (50, 50, 50, 50, 49))
    )


def test_differences_by_task_their_mean_and_the_largest():
    (table,) = bias_tables(comparable_sets(both()))
    assert list(table.rows) == ["LORA", "SCT"]
    lora, sct = cells(table, "LORA"), cells(table, "SCT")
    assert [lora[column.group, column.name].value for column in table.columns[: len(TASKS)]] == [1, 1, 1, 1, 13]
    assert (lora["mean of", "tasks"].value, lora["over tasks", "largest"].value) == (pytest.approx(3.4), 13)
    assert (sct["mean of", "tasks"].value, sct["over tasks", "mean within a run"].value) == (2, 1)
    assert "2 of 2 methods change their rank" in table.caption
    assert "†" not in to_markdown(table)


def test_a_task_that_is_missing_under_one_protocol_makes_no_mean():
    given = [r for r in both() if not (r.spec.protocol == "oracle" and r.spec.task == "digits")]
    (table,) = bias_tables(comparable_sets(given))
    row = cells(table, "SCT")
    assert not row["specialized", "digits"].is_number
    assert not row["mean of", "tasks"].is_number
    assert not row["over tasks", "mean within a run"].is_number


def test_runs_on_other_pixels_are_no_pair_and_records_that_know_none_are():
    def on(given, pixels):
        data = Fingerprint(lists="l", files="d", sizes={}, pixels=pixels)
        return [dataclasses.replace(record, data=data) for record in given]

    fixed = on(records("lora", (50,) * 5), "p")
    for pixels in ("p", ""):
        (table,) = bias_tables(comparable_sets(fixed + on(oracle("lora", (51,) * 5, (50,) * 5), pixels)))
        assert list(table.rows) == ["LORA"]
    with pytest.raises(HarnessError, match=r"oracle: LORA † \(5 runs, on other data\)"):
        bias_tables(comparable_sets(fixed + on(oracle("lora", (51,) * 5, (50,) * 5), "q")))


def test_runs_are_paired_by_settings_seed_and_data_and_the_others_are_named():
    more = records("sct", (90,) * 5, seed=1) + records("lora", (0,) * 5, config={"rank": 4})
    sct = oracle("sct", (52,) * 5, (51,) * 5, config={"channels": 48})
    lora = oracle("lora", (51,) * 5, (50,) * 5, config={"rank": 8})
    fixed = records("sct", (50,) * 5) + records("sct", (10,) * 5, config={"channels": 24}) + more
    (table,) = bias_tables(comparable_sets([*fixed, *sct, *lora]))
    assert {label: [c.value for c in table.cells(label)[:5]] for label in table.rows} == {"SCT (channels=48)": [2] * 5}
    assert {cell.note for cell in table.cells("SCT (channels=48)")[:6]} == {"1/2", "*"}
    assert "settings differ: rank 8 against 4" in table.caption
    elsewhere = [dataclasses.replace(r, data=make_record(data="x").data) for r in sct]
    with pytest.raises(HarnessError, match=r"oracle: SCT † \(5 runs, on other data\)"):
        bias_tables(comparable_sets(records("sct") + elsewhere))


def test_sets_that_differ_in_more_than_the_protocol_are_not_compared():
    other = oracle("sct", (52,) * 5, (51,) * 5, preprocessing="other")
    with pytest.raises(HarnessError, match="both protocols"):
        bias_tables(comparable_sets(records("sct") + other))


def test_the_command_reads_a_folder(tmp_path):
    store = Store(tmp_path)
    for record in both():
        store.write(record)
    (table,) = commands.bias(tmp_path, "demo", Console(quiet=True))
    assert len(table.rows) == 2
    with pytest.raises(HarnessError):
        commands.bias(tmp_path, "vtab1k", Console(quiet=True))
