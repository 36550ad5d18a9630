"""Metrics: one object each, computed for every split and kept in the record."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from harness.execution import worker
from harness.records.store import Store
from harness.schema.metrics import METRICS, Metric, Outputs
from harness.training.evaluation import score
from tests import tiny

NO_CLASS = -math.inf


def test_values_and_counts_of_three_images():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    metrics = score(logits, torch.tensor([0, 1, 1]))
    assert metrics.values.keys() == METRICS.keys() - {"top5_accuracy"}
    assert metrics.accuracy == pytest.approx(200 / 3)
    assert metrics.loss == pytest.approx(math.log(1 + math.exp(2)) - 4 / 3)
    assert (metrics.correct_per_class, metrics.images_per_class) == ([1, 1], [1, 2])


def test_a_new_metric_is_in_the_record_once_it_is_in_the_list(tmp_path, monkeypatch):
    error = Metric(
        name="error",
        title="top-1 error",
        unit="%",
        higher_is_better=False,
        compute=lambda outputs: 100 - METRICS["accuracy"].of(outputs),
    )
    monkeypatch.setitem(METRICS, "error", error)
    (spec,) = tiny.specs(["linear"], epochs=1)
    worker.execute_run(spec, tiny.setup(tmp_path, tiny.write_data(tmp_path / "data")))
    metrics = Store(tmp_path).read(spec).metrics["test"]
    assert metrics.values["error"] == 100 - metrics.accuracy
    assert metrics.values.keys() == METRICS.keys() - {"top5_accuracy", "auroc"}


def by_hand(logits, labels):
    """Every metric by scikit-learn, or by its formula in plain Python where that has none."""
    probabilities = [[math.exp(v) / sum(map(math.exp, row)) for v in row] for row in logits]
    count, width = len(labels), len(logits[0])
    guesses = [row.index(max(row)) for row in logits]
    present = sorted(set(labels))
    named = [c for c in range(width) if any(row[c] != NO_CLASS for row in logits)]
    recalls = sklearn.recall_score(labels, guesses, labels=present, average=None, zero_division=0)
    values = {
        "accuracy": 100 * sklearn.accuracy_score(labels, guesses),
        "loss": sum(-math.log(row[label]) for row, label in zip(probabilities, labels, strict=True)) / count,
        "mean_class_accuracy": 100 * recalls.mean(),
        "worst_class_accuracy": 100 * recalls.min(),
        "macro_f1": 100 * sklearn.f1_score(labels, guesses, labels=present, average="macro", zero_division=0),
        "brier": np.square(np.array(probabilities) - np.eye(width)[labels]).sum() / count,
        "ece": 100 * calibration_error(probabilities, guesses, labels),
    }
    if len(set(labels + guesses)) > 1:
        values["quadratic_kappa"] = sklearn.cohen_kappa_score(
            labels, guesses, labels=list(range(width)), weights="quadratic"
        )
    if len(named) > 5:
        order = [sorted(range(width), key=lambda c: (-row[c], c))[:5] for row in logits]
        values["top5_accuracy"] = 100 * sum(t in five for t, five in zip(labels, order, strict=True)) / count
    if len(named) == 2 and len(present) == 2:
        odds = [row[named[1]] - row[named[0]] for row in logits]
        values["auroc"] = 100 * sklearn.roc_auc_score([label == named[1] for label in labels], odds)
    return values


def calibration_error(probabilities, guesses, labels):
    bins = {}
    for row, guess, label in zip(probabilities, guesses, labels, strict=True):
        number = next(m for m in range(1, 16) if max(row) <= m / 15 or m == 15)
        bins.setdefault(number, []).append((guess == label, max(row)))
    gaps = [abs(sum(right for right, _ in held) - sum(sure for _, sure in held)) for held in bins.values()]
    return sum(gaps) / len(labels)


def check(logits, labels):
    """Compare all values with those by hand; they are finite, and those not defined are absent."""
    logits = torch.tensor(logits, dtype=torch.float32)
    found = score(logits, torch.tensor(labels)).values
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of scikit-learn about one class alone
        expected = by_hand(logits.double().tolist(), labels)
    assert found.keys() == expected.keys()
    assert all(map(math.isfinite, found.values()))
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)
    return found


@st.composite
def splits(draw):
    """Logits, some of them equal, and labels; some of the classes that no image has may be masked."""
    width, count = draw(st.integers(2, 9)), draw(st.integers(1, 20))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    labels = rng.integers(width, size=count)
    logits = np.round(rng.normal(size=(count, width)) * draw(st.sampled_from([0.3, 1, 3])), draw(st.integers(0, 2)))
    if draw(st.booleans()):
        absent = np.setdiff1d(np.arange(width), labels)
        logits[:, absent[: draw(st.integers(0, width))]] = NO_CLASS
    return logits.tolist(), labels.tolist()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(splits())
def test_each_metric_agrees_with_an_independent_one(split):
    check(*split)


def test_large_splits_agree_too():
    rng = np.random.default_rng(0)
    for count, width in ((3000, 2), (3000, 40)):
        labels = rng.integers(width, size=count)
        logits = rng.normal(size=(count, width)) + 2 * np.eye(width)[labels]
        found = check(logits.tolist(), labels.tolist())
        assert ("auroc" in found, "top5_accuracy" in found) == (width == 2, width == 40)


def test_one_image_and_one_class():
    found = check([[0.0, 0.0, 1.0]], [2])
    assert "quadratic_kappa" not in found  # all labels and predictions are one class
    assert (found["macro_f1"], found["worst_class_accuracy"]) == (100, 100)
    assert check([[0.0, 0.0, 1.0]], [0])["quadratic_kappa"] == 0
    assert "auroc" not in check([[0.0, 1.0], [1.0, 0.0]], [1, 1])


def test_top_five_of_classes_that_are_masked_down_to_five_is_not_defined():
    logits = [[1.0, 2.0, 3.0, 4.0, 5.0, NO_CLASS, NO_CLASS]]
    assert "top5_accuracy" not in check(logits, [0])
    assert check([[*logits[0][:6], 6.0]], [0])["top5_accuracy"] == 0


def test_equal_logits_stand_in_the_order_of_the_classes():
    assert check([[0.0] * 7] * 7, list(range(7)))["top5_accuracy"] == pytest.approx(500 / 7)
    assert check([[1.0, 1.0], [1.0, 1.0], [0.0, 2.0]], [0, 1, 1])["auroc"] == 75


def test_two_classes_that_a_mask_leaves_have_an_auroc():
    logits = [[NO_CLASS, 0.0, NO_CLASS, 1.0], [NO_CLASS, 2.0, NO_CLASS, 1.0]]
    assert check(logits, [3, 1])["auroc"] == 100


def test_per_class_metrics_are_over_classes_with_images():
    logits = torch.eye(4)[[0, 0, 3]]  # class 3 has no image and is named once
    values = score(logits, torch.tensor([0, 0, 1])).values
    assert (values["mean_class_accuracy"], values["worst_class_accuracy"], values["macro_f1"]) == (50, 0, 50)


def test_logits_of_a_model_that_diverged_are_no_error_here():
    values = score(torch.full((3, 7), math.nan), torch.tensor([0, 1, 2])).values
    assert math.isnan(values["loss"])


def test_what_metrics_share_is_computed_once():
    outputs = Outputs(torch.randn(5, 7), torch.arange(5))
    METRICS["brier"].of(outputs)
    first = outputs.probabilities
    METRICS["ece"].of(outputs)
    assert outputs.probabilities is first
