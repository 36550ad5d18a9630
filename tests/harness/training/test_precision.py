"""Precision: resolved before the plan where the device is known, kept to by whatever goes on, and never mixed."""

import dataclasses

import pytest
import torch

from harness import device as devices
from harness.errors import HarnessError
from harness.execution import worker
from harness.plans import plan
from harness.records.store import read_record
from harness.training import rerun
from suites import SUITES
from tests import tiny
from tests.command import sctbench


@pytest.fixture
def fast(monkeypatch):
    """Sets whether this machine computes faster in bf16."""
    return lambda value: monkeypatch.setattr(devices, "fast_bf16", lambda device: value)


@pytest.mark.parametrize("protocol", ["fixed", "tuned"])
def test_a_recipe_that_leaves_it_to_the_device_gets_the_precision_of_the_device_that_is_known(protocol):
    chosen = tiny.selection(["linear", ("lora", {"precision": "float32"})], protocol=protocol, precision="auto")
    runs = plan.expand(dataclasses.replace(chosen, precision="bf16"))
    assert {spec.method: spec.recipe.precision for spec in runs} == {"linear": "bf16", "lora": "float32"}
    unknown = plan.expand(chosen)
    assert {spec.method: spec.recipe.precision for spec in unknown} == {"linear": "auto", "lora": "float32"}
    same = {a.method for a, b in zip(runs, unknown, strict=True) if a.run_id == b.run_id}
    assert same == {"lora"}


def test_run_says_it_in_the_identity_and_other_precisions_are_other_runs_in_other_tables(setup, fast, tmp_path):
    SUITES.setdefault(tiny.SUITE.name, tiny.SUITE)
    what = ["--suite", "tiny", "--methods", "linear,bitfit", "--tasks", "first", "--backbone", "test_vit"]
    what += ["--weights", "random", "--recipe", "precision=auto,epochs=1", "--image-size", "32"]
    for precision in ("bf16", "float32"):
        fast(precision == "bf16")
        said = " ".join(sctbench("run", *what, "--root", setup.data.data, "--jobs", 1, cwd=tmp_path).split())
        assert "2 runs, 0 complete already" in said
        told = (
            "note: 2 complete runs were computed in bf16; these are to be computed in float32, so they are other runs"
        )
        assert (told in said) == (precision == "float32") and said.count("note: ") == (precision == "float32")
        assert "2 complete" in sctbench("status", *what, cwd=tmp_path).splitlines()[-1]
    records = [read_record(path) for path in setup.root.glob("runs/*/*/*/record.json")]
    found = [(record.spec.recipe.precision, record.environment["precision"]) for record in records]
    assert sorted(found) == [("bf16", "bf16")] * 2 + [("float32", "float32")] * 2
    shown = sctbench("report", cwd=tmp_path)
    captions = [text.read_text() for text in setup.root.glob("report/*/settings.md")]
    assert len(captions) == 2
    for precision in ("bf16", "float32"):
        assert f"tiny, protocol fixed, test_vit (random), {precision}" in shown
        (settings,) = [text for text in captions if f"precision {precision}. Device" in text]
        assert f"| adamw | {precision} | cosine |" in settings


def test_status_finds_what_a_cluster_did_with_the_precision_left_to_it(setup, fast, tmp_path):
    (spec,) = tiny.specs(["linear"], precision="auto", epochs=1)
    assert worker.execute_run(spec, setup).status == "complete"
    what = ["--suite", "tiny", "--methods", "linear", "--tasks", "first", "--backbone", "test_vit"]
    what += ["--weights", "random", "--recipe", "precision=auto,epochs=1", "--image-size", "32", "--statistics", "half"]
    for value in (True, False):
        fast(value)
        assert sctbench("status", *what, cwd=tmp_path).splitlines()[-1] == "1 complete"


@pytest.mark.parametrize("was", [True, False])
def test_a_rerun_keeps_to_the_precision_of_the_record(setup, fast, was):
    fast(was)
    (spec,) = tiny.specs(["lora"], precision="auto")
    before = worker.execute_run(spec, setup)
    assert before.environment["precision"] == ("bf16" if was else "float32")
    fast(not was)
    now = rerun.again(before, setup.data, device="cpu")
    assert now.environment["precision"] == before.environment["precision"]
    assert rerun.compare(before, now).identical


def test_float32_is_float32_whatever_the_surroundings_have_set():
    """As `TORCH_ALLOW_TF32_CUBLAS_OVERRIDE`, which some containers set, or a method's file may."""
    torch.set_float32_matmul_precision("high")
    devices.use(torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_a_rerun_says_why_it_cannot(setup, fast, monkeypatch):
    fast(True)
    (spec,) = tiny.specs(["linear"], precision="auto")
    before = worker.execute_run(spec, setup)
    monkeypatch.setattr(devices, "can", lambda precision, device: precision == "float32")
    with pytest.raises(HarnessError, match=r"the run was computed in bf16, which .* cannot: choose another --device"):
        rerun.again(before, setup.data, device="cpu")
