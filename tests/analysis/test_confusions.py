"""Which classes are taken for which: the most frequent first, with names, a column per method."""

import dataclasses

import numpy as np
import pytest

from analysis.frame import comparable_sets
from analysis.index import from_folder
from analysis.render.markdown import to_markdown
from analysis.tables.confusions import MOST, confusions_table
from harness.records.predictions import Predictions
from tests.examples import make_record, make_spec
from tests.table_records import write_with_predictions

NAMES = ["cat", "dog", "owl"]


def said(labels, predicted):
    known = np.full(len(labels), 0.5, np.float32)
    labels, predicted = np.asarray(labels, np.uint16), np.asarray(predicted, np.uint16)
    return Predictions(labels=labels, predicted=predicted, probability=known, label_probability=known, list_digest="l")


def write(root, method, kept, names=NAMES, **spec):
    record = make_record(spec=make_spec(method=method, config={}, **spec), class_names=list(names))
    write_with_predictions(root, record, kept)


def table_of(root):
    runs = from_folder(root)
    (peers,) = comparable_sets(runs.rows)
    return confusions_table(peers, runs.predictions)


LABELS = [0, 0, 0, 1, 1, 2]


def test_confusions_are_counted_by_method_and_named(tmp_path):
    write(tmp_path, "linear", said(LABELS, [1, 1, 0, 0, 1, 2]))
    write(tmp_path, "lora", said(LABELS, [1, 0, 0, 1, 2, 2]))
    assert to_markdown(table_of(tmp_path)).splitlines()[2:7] == [
        "| class → taken for | images of the class | LINEAR | LORA |",
        "|---|---:|---:|---:|",
        "| cat → dog | 3 | 2 | 1 |",
        "| dog → cat | 2 | 1 | 0 |",
        "| dog → owl | 2 | 0 | 1 |",
    ]


def test_counts_are_means_over_seeds_and_only_the_most_frequent_are_shown(tmp_path):
    classes = 8
    labels = np.repeat(np.arange(classes), classes)
    predicted = np.tile(np.arange(classes), classes)
    names = [f"c{number}" for number in range(classes)]
    write(tmp_path, "linear", said(labels, predicted), names, seed=0)
    write(tmp_path, "linear", said(labels, np.where(labels == 3, 5, labels)), names, seed=1)
    table = table_of(tmp_path)
    assert len(table.rows) == MOST
    assert next(iter(table.rows)) == "c3 → c5"
    assert table.cells("c3 → c5")[1].value == (1 + 8) / 2


def test_several_tasks_are_told_apart(tmp_path):
    write(tmp_path, "linear", said(LABELS, [1, 1, 0, 0, 1, 2]), task="digits")
    write(tmp_path, "linear", said(LABELS, [0, 0, 0, 1, 1, 1]), task="animals")
    assert list(table_of(tmp_path).rows) == [
        "animals: owl → dog",
        "digits: cat → dog",
        "digits: dog → cat",
    ]


@pytest.mark.parametrize("names", [NAMES, []])
def test_there_is_no_table_where_nothing_is_confused_or_named(tmp_path, names):
    write(tmp_path, "linear", said(LABELS, LABELS if names else [2] * 6), names)
    assert table_of(tmp_path) is None


def test_runs_whose_predictions_are_gone_are_passed_over(tmp_path):
    record = make_record(spec=make_spec(method="linear", config={}), class_names=list(NAMES))
    kept = write_with_predictions(tmp_path, record, said(LABELS, [2] * 6))
    kept.unlink()
    assert table_of(tmp_path) is None
    assert dataclasses.asdict(record)["class_names"] == NAMES
