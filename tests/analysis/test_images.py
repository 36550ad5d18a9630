"""Tables of methods on the same images, and the commands that show them."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from typer.testing import CliRunner

from analysis.commands import compare
from analysis.frame import comparable_sets
from analysis.index import from_folder
from analysis.page_tables import make_page_table
from analysis.paired import bootstrap, mcnemar
from analysis.render import write_table
from analysis.report import tables_of
from analysis.tables import ALL_TABLES
from analysis.tables.images import images_table
from analysis.tables.significance import significance_of, significance_table
from harness.commands.main import app
from harness.records.store import Store
from harness.schema.metrics import ACCURACY, LOSS
from tests.examples import make_record, make_spec
from tests.table_records import TASKS, cells, only_set, predictions, records, write_with_predictions

IMAGES = 200
WRONG = {"linear": 100, "lora": 60, "sct": 98}
"""How many of the first images each method has wrong, of the images in an order of its own on each task."""


def predicted(method, task, seed=0, **changes):
    rng = np.random.default_rng([len(task), seed, *method.encode()])
    wrong = np.arange(IMAGES) < WRONG[method]
    wrong[rng.integers(0, IMAGES, 10)] ^= True
    return predictions(wrong, of=f"list of {task}", **changes)


def write_runs(root, methods=("linear", "sct", "lora"), tasks=TASKS, seeds=1, logits=False):
    for method in methods:
        for task in tasks:
            for seed in range(seeds):
                kept = predicted(method, task, seed)
                if logits:
                    kept = dataclasses.replace(kept, logits=np.eye(2, dtype=np.float16)[kept.predicted])
                write_with_predictions(root, make_record(spec=make_spec(task=task, method=method, seed=seed)), kept)
    return root


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp("kept"))


def run(*arguments):
    done = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "400"})
    assert done.exit_code == 0, done.output
    return done.output


def table_of(root, reference=None):
    runs = from_folder(root)
    (chosen,) = comparable_sets(runs.rows)
    return images_table(chosen, reference, runs.predictions)


def counted(table, label):
    row = cells(table, label)
    return [row["tasks against LINEAR", name].value for name in ("wins", "undecided", "losses")]


def test_compare_tells_task_by_task_what_is_real(kept):
    shown = run("compare", "sct", "lora", "--out", kept)
    assert "SCT against LORA, image by image" in shown
    assert "SCT beats LORA on 0 of 5 tasks, loses on 5, undecided on 0 (exact McNemar over the images, Holm" in shown
    assert "this is about two trained models" in shown
    assert "(over 5 tasks never below 0.0625, so it cannot decide)" in shown


def test_a_task_s_row_is_what_its_images_say(kept):
    _, table = compare("sct", "lora", kept, None, None, 1.0, Console(quiet=True))
    ours, theirs = predicted("sct", "digits").correct, predicted("lora", "digits").correct
    counts = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    row, ends = cells(table, "digits"), bootstrap(*counts, IMAGES)
    assert row["", "images"].value == IMAGES
    assert (row["", "SCT"].value, row["", "LORA"].value) == (100 * ours.mean(), 100 * theirs.mean())
    points = [row["points, 95 % interval", name].value for name in ("difference", "low", "high")]
    assert points == pytest.approx([100 * (ours.mean() - theirs.mean()), ends.low, ends.high])
    assert tuple(row["right by one alone", name].value for name in ("SCT", "LORA")) == counts
    assert row["two-sided test", "p"].value == mcnemar(*counts)
    assert row["two-sided test", "Holm p"].value >= mcnemar(*counts)
    assert row["", "reads"].text == "worse"
    means = cells(table, "mean of 5 tasks")
    assert means["", "SCT"].value == pytest.approx(100 * np.mean([predicted("sct", t).correct.mean() for t in TASKS]))


def test_several_seeds_are_tested_over_images_and_seeds(tmp_path):
    shown = run("compare", "lora", "sct", "--out", write_runs(tmp_path, tasks=TASKS[:2], seeds=2))
    assert "(Student's t over images and seeds, Holm over tasks, 5 %)" in shown
    assert "two trained models" not in shown


def test_runs_that_kept_no_predictions_are_compared_as_before(tmp_path):
    for record in records("sct") + records("lora"):
        Store(tmp_path).write(record)
    shown = run("compare", "sct", "lora", "--out", tmp_path)
    assert "SCT beats LORA on 0 of 5 tasks, ties on 5" in shown
    assert (
        "Not tested image by image: all (no predictions kept, as by runs of before schema 5, or packed without)."
        in shown
    )
    assert "against LORA, image by image" not in shown
    assert table_of(tmp_path) is None


def test_tasks_that_cannot_be_tested_are_named_with_the_reason(tmp_path):
    write_runs(tmp_path, methods=["lora"])
    for task, of in zip(TASKS, ("list of photo_crops", "list of animals", "other"), strict=False):
        write_with_predictions(tmp_path, make_record(spec=make_spec(task=task)), predictions([0] * IMAGES, of=of))
    for task in TASKS[3:]:
        Store(tmp_path).write(make_record(spec=make_spec(task=task)))
    next((tmp_path / "runs/demo/animals").glob("sct-*/predictions.safetensors")).write_bytes(b"altered")
    shown = run("compare", "sct", "lora", "--out", tmp_path)
    assert "SCT beats LORA on 1 of 1 tasks" in shown
    assert "digits (their lists of images differ); dsprites_loc, dsprites_ori (no predictions kept" in shown
    assert "predictions.safetensors: altered" in shown


def test_two_folders_are_compared_on_images_too(kept, tmp_path):
    shutil.copytree(kept / "runs", tmp_path / "runs")
    shown = run("compare", kept, tmp_path)
    assert shown.count(", image by image") == 3
    assert "undecided on 5 (exact McNemar" in shown


def test_every_method_against_the_reference(kept):
    table = table_of(kept)
    assert "against LINEAR" in table.title
    assert sorted(table.rows) == ["LORA", "SCT"]
    assert [counted(table, label) for label in ("LORA", "SCT")] == [[5, 0, 0], [0, 5, 0]]
    row = cells(table, "SCT")
    first, second = predicted("sct", "digits"), predicted("linear", "digits")
    digits = row["specialized", "digits"]
    assert (digits.value, digits.note) == (pytest.approx(100 * (first.correct.mean() - second.correct.mean())), "≈")
    assert cells(table, "LORA")["specialized", "digits"].note == ""
    pairs = [(predicted("sct", task), predicted("linear", task)) for task in TASKS]
    agreement = 100 * np.mean([a.predicted == b.predicted for a, b in pairs])
    oracle = 100 * np.mean([a.correct | b.correct for a, b in pairs])
    shares = [row["both together, in per cent", name].value for name in ("agreement", "oracle")]
    assert shares == pytest.approx([agreement, oracle])
    assert "needs runs with --keep-logits" in table.caption
    assert list(table_of(kept, "lora").rows) == ["LINEAR", "SCT"]


def test_the_average_is_shown_where_logits_were_kept(tmp_path):
    table = table_of(write_runs(tmp_path, methods=("linear", "sct"), tasks=TASKS[:1], logits=True))
    average = cells(table, "SCT")["both together, in per cent", "average"].value
    first, second = (predicted(name, TASKS[0]) for name in ("linear", "sct"))
    assert average == 100 * np.mean((first.predicted + second.predicted) <= 1)  # of equal sums the first class
    assert "--keep-logits" not in table.caption


def test_a_method_without_a_task_has_no_mean_and_is_named(tmp_path):
    write_runs(tmp_path, methods=("linear", "lora"))
    write_runs(tmp_path, methods=["sct"], tasks=TASKS[:4])
    Store(tmp_path).write(make_record(spec=make_spec(task=TASKS[4])))
    table = table_of(tmp_path)
    row = cells(table, "SCT")
    assert sum(counted(table, "SCT")) == 4
    assert row["both together, in per cent", "oracle"].note == row["structured", TASKS[4]].note == "missing"
    assert f"Not tested image by image: SCT on {TASKS[4]} (no predictions kept" in table.caption


def test_the_report_has_the_table_in_every_form_and_its_cells_lead_to_records(kept, tmp_path):
    runs = from_folder(kept)
    (chosen,) = comparable_sets(runs.rows)
    (table,) = (table for table in tables_of(chosen, [chosen], ALL_TABLES, runs.predictions) if table.name == "images")
    files = {path.suffix: path.read_text() for path in write_table(table, tmp_path)}
    assert "| SCT | 0 | 5 | 0 |" in files[".md"]
    assert r"$\approx$" in files[".tex"]
    assert "which differences on the same images are real, against LINEAR" in files[".html"]
    board = make_page_table(chosen, table, "../runs")
    digits = [heading.name for heading in board.headings].index("digits")
    assert all("/digits/" in row.cells[digits].href for row in board.rows)


def test_wilcoxons_caption_says_where_no_numbers_could_decide():
    few = significance_table(only_set(records() + records("lora"))).caption
    assert "Over 5 tasks its p is never below 0.0625: whatever the numbers, it cannot decide." in few
    assert "A table of its own tests differences on the same images" in few
    several = significance_caption(methods=6, tasks=7)
    assert "Over 7 tasks its p is never below 0.0156 (times 5, corrected)" in several
    assert "cannot decide" not in significance_caption(methods=4, tasks=7)


def significance_caption(methods, tasks):
    values = pd.DataFrame(np.arange(methods * tasks).reshape(methods, tasks), index=[f"m{i}" for i in range(methods)])
    return significance_of(values, "m0", ACCURACY, name="x", title="x", caption="").caption


def test_the_tests_are_of_accuracy_whatever_the_report_shows(kept):
    runs = from_folder(kept)
    (chosen,) = comparable_sets(runs.rows)
    table = images_table(chosen.by(LOSS), None, runs.predictions)
    assert table.rows == table_of(kept).rows
    assert "top-1 accuracy" in table.caption
