"""A run done again from its record: the same to the bit, or what differs."""

import dataclasses

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from harness.errors import USER_ERRORS, HarnessError
from harness.execution import worker
from harness.plans import plan
from harness.records import place
from harness.records.store import Store
from harness.training import rerun
from tests import tiny


def done(setup, method="sct", **choices):
    (spec,) = tiny.specs([method], **choices)
    return worker.execute_run(spec, setup)


def invoke(setup, record):
    """The command as the user gives it, on a record that is put in its place first."""
    path = Store(setup.root).folder(record.spec)
    (path / "record.json").write_text(record.to_json())
    result = CliRunner().invoke(app, ["rerun", str(path), "--root", str(setup.data.data), "--device", "cpu"])
    return result.exit_code, result.stdout


@pytest.mark.parametrize("protocol", ["fixed", "validation", "oracle"])
def test_the_same_run_gives_the_same_bits(setup, protocol):
    record = done(setup, protocol=protocol, drop_path=0.2)
    before = Store(setup.root).folder(record.spec) / "record.json"
    text = before.read_text()
    code, output = invoke(setup, record)
    assert (code, output.splitlines()[-1].split(":")[0]) == (0, "bit-identical"), output
    assert before.read_text() == text  # nothing is written


def test_a_metric_that_an_older_record_lacks_is_no_difference(setup):
    record = done(setup, "linear")
    metrics = record.metrics["test"]
    values = {name: value for name, value in metrics.values.items() if name != "brier"}
    older = dataclasses.replace(record, metrics={"test": dataclasses.replace(metrics, values=values)})
    assert rerun.compare(older, record).identical
    assert not rerun.compare(record, older).identical


def test_a_tuned_run_is_done_again_without_its_trials(setup):
    chosen = tiny.selection(["linear"], protocol="tuned", trials=2)
    for trial in plan.expand(chosen):
        worker.execute_run(trial, setup)
    record = worker.execute_run(*plan.finals(chosen), setup)
    now = rerun.again(record, setup.data, device="cpu")
    assert rerun.compare(record, now).identical
    assert now.tuning == record.tuning


def test_what_differs_is_named_and_the_exit_status_tells(setup):
    record = done(setup)
    curve = [dataclasses.replace(e, train_loss=e.train_loss + (e.epoch == 2) * 1e-9) for e in record.curve]
    surroundings = record.environment | {"packages": record.environment["packages"] | {"torch": "1.0"}}
    altered = dataclasses.replace(record, curve=curve, weights="0" * 64, environment=surroundings)
    code, output = invoke(setup, altered)
    assert code == 1
    assert "not identical: 2 of 17 results differ; the curve differs since epoch 2" in output
    assert "000000000000" in output and record.weights[:12] in output
    assert "packages torch" in output and "1.0" in output
    assert "packages timm" not in output


def test_a_record_that_knows_no_pixels_is_compared_by_what_it_has(setup):
    now = done(setup, "linear")
    assert now.data.pixels
    old = dataclasses.replace(now, data=dataclasses.replace(now.data, pixels=""))
    assert rerun.compare(old, now).identical
    found = rerun.compare(dataclasses.replace(now, data=dataclasses.replace(now.data, pixels="q")), now)
    assert [fact.what for fact in found.results if not fact.same] == ["decoded pixels"]


def test_a_failed_run_may_fail_again_in_the_same_way(setup):
    record = done(setup, method=("lora", {"lr": 1e30, "precision": "float32"}))
    assert record.failure.kind == "diverged"
    now = rerun.again(record, setup.data, device="cpu")
    found = rerun.compare(record, now)
    assert found.identical
    assert [fact.what for fact in found.results] == ["status"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"suite": "mine"}, "suite 'mine' is not known here: give its file or folder with --suite"),
        ({"method": "mine"}, "unknown method 'mine'"),
        ({"weights": "vit.pth", "digest": "ab"}, "checkpoint from a file 'vit.pth': give it with --weights"),
        ({"weights": "pretrained", "digest": "ab", "name": "demo_vit", "image_size": 56}, "sha256 ab..., not 1986"),
    ],
)
def test_what_the_run_needs_and_is_not_there_is_named(setup, change, message):
    (spec,) = tiny.specs(["linear"])
    backbone = {key: value for key, value in change.items() if hasattr(spec.backbone, key)}
    change = {key: value for key, value in change.items() if key not in backbone}
    spec = dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **backbone), **change)
    record = dataclasses.replace(done(setup, "linear"), spec=spec)
    with pytest.raises(USER_ERRORS, match=message):
        rerun.again(record, setup.data, device="cpu")


def test_a_file_that_is_no_record_is_named(tmp_path):
    with pytest.raises(HarnessError, match="cannot be read"):
        place.read(tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(HarnessError, match="no valid record: torn"):
        place.read(tmp_path)


def test_two_runs_are_not_compared(setup):
    with pytest.raises(HarnessError, match="not the same run"):
        rerun.compare(done(setup, "linear"), done(setup, "bitfit"))
