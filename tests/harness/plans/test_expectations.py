"""`expect:` of experiment files: mistakes are named with their line; the snapshot and a short run are held to it."""

import re
from pathlib import Path

import pandas as pd
import pytest

from harness.plans.expectations import MEAN
from harness.plans.experiment import read_expectations, read_file
from methods import registry
from suites.base import SuiteError
from tests.command import sctbench

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "suites" / "experiments" / "demo.yaml"
SNAPSHOT = ROOT / "results" / "demo"


def outside(table, expectations):
    """What a suite's table (tasks.csv) shows outside the expected ranges. Rows and tasks that it lacks are left out."""
    rows = pd.read_csv(table).set_index("method").rename(columns=lambda name: name.rpartition("/")[2])
    far = []
    for task, ranges in expectations.items():
        for method, (low, high) in ranges.items():
            title = registry.get(method).title
            value = rows["tasks" if task == MEAN else task].get(title) if title in rows.index else None
            if value is not None and not low <= value <= high:
                far.append(f"{title}, {task}: {value:.1f} is not within {low} and {high}")
    return far


def test_the_demos_snapshot_is_as_expected():
    expectations = read_expectations(DEMO)
    assert set(expectations[MEAN]) == set(read_file(DEMO).values["methods"])
    assert outside(SNAPSHOT / "tasks.csv", expectations) == []


def test_the_snapshot_of_random_weights_is_as_expected():
    """It holds differences from the pretrained weights, by task, and no accuracies."""
    expectations = read_expectations(DEMO.with_name("demo_random_weights.yaml"))[MEAN]
    text = (SNAPSHOT / "pretrained_minus_random.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if re.match(r"\| \w+ \| [+-]", line)]
    assert {title for title, *_ in rows} == {registry.get(method).title for method in expectations}
    pretrained = pd.read_csv(SNAPSHOT / "tasks.csv").set_index("method")["mean of/tasks"]
    means = {title: pretrained[title] - sum(map(float, gains)) / len(gains) for title, *gains in rows}
    for method, (low, high) in expectations.items():
        assert low <= means[registry.get(method).title] <= high


def test_a_result_outside_its_range_is_noticed():
    table = SNAPSHOT / "tasks.csv"
    expectations = {MEAN: {"sct": (55.3, 100.0)}, "digits": {"lora": (0.0, 76.1), "linear": (28, 29)}}
    assert outside(table, expectations) == [
        "SCT, mean: 55.2 is not within 55.3 and 100.0",
        "LoRA, digits: 76.2 is not within 0.0 and 76.1",
    ]


def test_the_demo_gives_what_its_file_expects(tmp_path):
    digits = read_expectations(DEMO)["digits"]
    sctbench("run", DEMO, "--tasks", "digits", "--methods", ",".join(digits), cwd=tmp_path)
    sctbench("report", cwd=tmp_path)
    (table,) = tmp_path.glob("results/report/demo-*/tasks.csv")
    assert len(pd.read_csv(table)) == len(digits) == 2
    assert outside(table, {"digits": digits}) == []


def test_the_default_learning_rates_are_of_the_grid_that_they_were_chosen_from():
    rates = {}
    for item in read_file(DEMO.with_name("demo_learning_rates.yaml")).values["methods"]:
        rates.setdefault(item["name"], []).append(item["lr"])
    assert {name: len(grid) for name, grid in rates.items()} == dict.fromkeys(read_file(DEMO).values["methods"], 4)
    assert not {name for name, grid in rates.items() if registry.get(name).recipe["lr"] not in grid}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("expect: 3", "expect=3 must be a mapping"),
        ("expect: {mean: 50}", "mean=50 must be a mapping"),
        ("expect: {mean: {lorra: [1, 2]}}", "method 'lorra' that the experiment does not run. Did you mean 'lora'"),
        ("expect: {digit: {lora: [1, 2]}}", "task 'digit'. Did you mean 'digits'"),
        ("expect: {mean: {lora: 50}}", r"mean: lora=50 must be \[from, to\]"),
        ("expect: {mean: {lora: [60, 50]}}", r"mean: lora=\[60, 50\] must be \[from, to\]"),
        ("expect: {mean: {lora: [50, 101]}}", r"must be \[from, to\] in per cent"),
        ("expect: {mean: {lora: [50, x]}}", r"must be \[from, to\] in per cent"),
    ],
    ids=lambda value: value.partition(":")[2].strip() or None,
)
def test_mistakes_are_named_with_their_line(tmp_path, line, message):
    path = tmp_path / "mine.yaml"
    path.write_text(f"suite: demo\nmethods: [lora]\n{line}\n")
    with pytest.raises(SuiteError, match=rf"mine\.yaml:3: .*{message}"):
        read_file(path)
