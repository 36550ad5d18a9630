"""A metric that the harness gains is in every table and figure, by its own title, unit and direction."""

import dataclasses

import pytest
from rich.console import Console
from typer.testing import CliRunner

from analysis.columns import frame_of
from analysis.comparison import compare_in_sets
from analysis.figures.gallery import drawings
from analysis.figures.tradeoff import pareto_front
from analysis.frame import comparable_sets
from analysis.page_tables import make_page_table
from analysis.render.markdown import to_markdown
from analysis.render.text import marked_rows
from analysis.report import write_report
from analysis.statistics import Interval, verdict
from analysis.tables import TableOptions, all_tables
from analysis.tables.differences import bias_tables, weights_tables
from analysis.tables.significance import significance_table
from analysis.tables.tasks import task_table
from harness.commands.main import app
from harness.records.store import Store
from harness.schema.metrics import LOSS, METRICS, Metric
from tests.examples import make_record, make_spec
from tests.table_records import TASKS, cells, domain, from_records, only_set, records

ERROR = Metric(name="ece", title="calibration error", unit="", higher_is_better=False, compute=lambda *_: 0.0)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    monkeypatch.setitem(METRICS, ERROR.name, ERROR)


def scored(record, error):
    """The record with a calibration error on every split."""
    splits = {
        split: dataclasses.replace(metrics, values=metrics.values | {ERROR.name: error + 0.01 * place})
        for place, (split, metrics) in enumerate(record.metrics.items())
    }
    return dataclasses.replace(record, metrics=splits, last_epoch={k: splits[k] for k in record.last_epoch})


def with_errors(errors=None, **changes):
    """Methods by their error; the accuracies say the opposite: the least calibrated method is the most accurate."""
    errors = errors or {"linear": 0.3, "lora": 0.2, "sct": 0.1}
    return [
        scored(record, error + 0.001 * place)
        for name, error in errors.items()
        for place, record in enumerate(records(name, (100 * error + 10,) * 5, **changes))
    ]


def tables_by(metric, given):
    return {table.name: table for table in all_tables(only_set(given), TableOptions(metric=metric))}


def test_the_frame_has_a_column_of_every_metric_of_the_result_and_of_the_last_epoch():
    frame = frame_of([*with_errors(), make_record(spec=make_spec(method="full"))])
    for name in METRICS:
        assert frame[name].dtype == frame[f"last_{name}"].dtype == float
    assert frame["ece"].tolist()[:2] == [0.3, 0.301]
    assert frame["ece"].isna().sum() == 1  # of a record from before there was the metric


def test_where_lower_is_better_bold_ranks_and_tests_go_down():
    tables = tables_by(ERROR, with_errors())
    table = tables["tasks"]
    assert "**0.100**" in to_markdown(table) and "<ins>0.200</ins>" in to_markdown(table)
    assert table.caption.startswith("Calibration error; one seed")
    ranks = {label: cells(table, label)["", "rank"].value for label in table.rows}
    assert ranks == {"SCT": 1, "LORA": 2, "LINEAR": 3}
    assert marked_rows(table)[0].best == {"SCT"}
    significance = tables["significance"]
    assert list(significance.rows) == ["SCT", "LORA", "LINEAR"]
    sct = cells(significance, "SCT")
    assert [sct["against the reference", name].value for name in ("wins", "ties", "losses")] == [5, 0, 0]
    assert sct["mean difference, 95 % interval", "units"].value == pytest.approx(-0.2)
    assert "points" not in significance.caption  # nothing counts as practically equal by default


def test_by_accuracy_the_same_records_say_the_opposite():
    table = tables_by(METRICS["accuracy"], with_errors())["tasks"]
    assert {label: cells(table, label)["", "rank"].value for label in table.rows} == {"SCT": 3, "LORA": 2, "LINEAR": 1}
    assert table.caption.startswith("Top-1 accuracy in per cent")


def test_without_a_linear_row_the_lowest_is_the_reference():
    chosen = only_set(with_errors({"lora": 0.2, "sct": 0.1})).by(ERROR)
    assert significance_table(chosen).title.endswith("against SCT")


def test_targets_are_scored_by_the_metric():
    given = [scored(domain(), 0.5), scored(domain("lora"), 0.2)]
    row = cells(tables_by(ERROR, given)["domains"], "SCT")
    assert row["source", "imagenet"].value == 0.5
    assert row["targets, 1000-way", "imagenetv2"].value == pytest.approx(0.51)
    page_table = make_page_table(only_set(given).by(ERROR), tables_by(ERROR, given)["domains"], "../runs")
    (run,) = page_table.rows[0].runs["imagenet 16-shot"]
    assert run.targets["imagenetv2"] == pytest.approx(0.21)
    assert next(heading.ascending for heading in page_table.headings if heading.plain_mean)


def test_differences_of_sets_and_of_methods():
    random = dataclasses.replace(make_spec().backbone, weights="random", digest="")
    pretrained, at_random = (s.by(ERROR) for s in comparable_sets(with_errors() + with_errors(backbone=random)))
    (worth,) = weights_tables(pretrained, [at_random])
    assert "units of calibration error" in worth.caption and "negative means that the pretrained" in worth.caption
    later = [dataclasses.replace(r, last_epoch=r.metrics) for r in with_errors(protocol="oracle")]
    (gained,) = bias_tables([s.by(ERROR) for s in comparable_sets(with_errors() + later)])
    assert gained.caption.startswith("Units of calibration error")
    (compared,) = compare_in_sets([only_set(with_errors()).by(ERROR)], "sct", "lora", 0)
    assert "SCT beats LORA on 5 of 5 tasks" in compared.caption
    assert verdict(Interval(-2, -1), 0.01, 0, higher_is_better=False) == "better"


def test_figures_name_the_metric_and_the_front_is_the_cheapest_that_nothing_is_below():
    chosen = only_set(with_errors()).by(ERROR)
    drawn = {drawing.name: drawing for drawing in drawings(chosen, from_records(with_errors()).read)}
    assert drawn["ece_parameters"].caption.startswith("Mean calibration error against trained parameters")
    axes = drawn["ece_parameters"].draw().axes[0]
    assert axes.get_ylabel() == "mean calibration error over tasks"
    names = [text.get_text().split("  ")[0].strip() for text in drawn["critical_difference"].draw().axes[0].texts]
    assert any(name.startswith("SCT") for name in names)
    assert pareto_front([1, 2, 3], [0.3, 0.4, 0.1], higher_is_better=False) == [0, 2]


def test_report_by_a_metric(tmp_path):
    for record in with_errors():
        Store(tmp_path).write(record)
    answer = CliRunner().invoke(app, ["report", "--out", str(tmp_path), "--metric", "lss"])
    assert answer.exit_code != 0
    paths = write_report(
        from_records(with_errors()), tmp_path / "report", Console(quiet=True), options=TableOptions(metric=ERROR)
    )
    assert "ece_parameters.png" in {path.name for path in paths}
    assert "Calibration error" in paths[0].read_text()


def test_the_loss_of_any_record_can_be_tabulated():
    table = task_table(only_set(records()).by(LOSS))
    assert [cell.value for cell in table.cells("SCT")[: len(TASKS)]] == [1.25] * 5
    assert table.caption.startswith("Cross-entropy; ")
