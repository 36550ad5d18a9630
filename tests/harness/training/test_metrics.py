"""Metrics: one object each, computed for every split and kept in the record."""

import math

import pytest
import torch

from harness.execution import worker
from harness.records.store import Store
from harness.schema.metrics import METRICS, Metric
from harness.training.evaluation import score
from tests import tiny


def test_values_and_counts_of_three_images():
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    metrics = score(logits, torch.tensor([0, 1, 1]))
    assert metrics.values.keys() == METRICS.keys()
    assert metrics.accuracy == pytest.approx(200 / 3)
    assert metrics.loss == pytest.approx(math.log(1 + math.exp(2)) - 4 / 3)
    assert (metrics.correct_per_class, metrics.images_per_class) == ([1, 1], [1, 2])


def test_a_new_metric_is_in_the_record_once_it_is_in_the_list(tmp_path, monkeypatch):
    error = Metric(
        name="error",
        title="top-1 error",
        unit="%",
        higher_is_better=False,
        compute=lambda logits, labels: 100 - METRICS["accuracy"].compute(logits, labels),
    )
    monkeypatch.setitem(METRICS, "error", error)
    (spec,) = tiny.specs(["linear"], epochs=1)
    worker.execute_run(spec, tiny.setup(tmp_path, tiny.write_data(tmp_path / "data")))
    metrics = Store(tmp_path).read(spec).metrics["test"]
    assert metrics.values["error"] == 100 - metrics.accuracy
