"""A complete run knows the source of its method: edited, it is named, and done again when asked."""

import dataclasses

import pytest

from harness.execution.worker import execute_run
from harness.plans import stages
from harness.records import stale
from harness.records.store import Store, read_record, read_stored
from harness.schema.record import RunRecord
from methods import registry
from methods.sources import digest_of
from slurm import submit
from tests import tiny
from tests.command import sctbench
from tests.examples import stored

METHOD = """
from dataclasses import dataclass
from methods.base import Attachment, Method
from methods.blocks import blocks, plug
{helper}
from torch import nn


class Mine(Method):
    "A bias behind every block: the widths' sum."

    name, title, paper, family = "mine", "Mine", "a test, arXiv 2309.08513", "adapter"

    def expected_parameters(self, backbone):
        return sum(block.norm1.weight.numel() for block in blocks(backbone))

    def attach(self, backbone, context):
        for block in blocks(backbone):
            plug(block, "output", Shift(block.norm1.weight.numel()))
        return Attachment()
"""
SHIFT = """
from torch import nn, zeros


class Shift(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shift = nn.Parameter(zeros(width))

    def forward(self, x):
        return x + {factor} * self.shift
"""


@pytest.fixture
def setup(setup, monkeypatch):
    """No method is known by path."""
    monkeypatch.setattr(registry, "_external", {})
    return setup


def write(folder, factor=1.0):
    (folder / "mine.py").write_text(METHOD.format(helper=SHIFT.format(factor=factor)))
    return f"{folder}/mine.py:Mine"


def edited(folder, factor):
    """As a new process finds it, after the file was edited within a second, to one of the same size."""
    registry._external.clear()
    return registry.get(write(folder, factor))


def test_an_edited_file_makes_its_runs_stale_and_only_when_told_they_are_done_again(setup, tmp_path):
    registry.get(write(tmp_path))
    (spec,) = tiny.specs(["mine"], lr=1e-1)
    first = execute_run(spec, setup)
    assert first.method_source == registry.source_digest("mine") and not stale.is_stale(first)

    edited(tmp_path, 0.0)
    store = Store(setup.root)
    assert stale.is_stale(store.read(spec))
    assert execute_run(spec, setup) == first  # the old result, as before; whoever asks for it is told, see below
    selection = tiny.selection(["mine"], lr=1e-1)
    assert stages.stage(selection, store.read).settled == [spec]
    assert stages.stage(selection, stale.without_stale(store.read)).ready == [spec]
    assert [stale.is_stale(done) for done in submit.todo(selection, store, {}).settled] == [True]
    assert submit.todo(selection, store, {}, redo_stale=True).ready == [spec]

    again = execute_run(spec, dataclasses.replace(setup, redo_stale=True))
    assert again.metrics != first.metrics and again.method_source != first.method_source
    assert store.read(spec) == again and not stale.is_stale(again)
    (kept,) = (setup.root / "superseded").glob("*/record.json")
    assert read_record(kept, spec) == first
    assert list(first.files) == ["predictions.safetensors", "weights.safetensors"] == list(again.files)
    for name in first.files:  # those of each, under its own record
        read_stored(kept.parent, first, name)
        read_stored(store.folder(spec), again, name)
    assert execute_run(spec, dataclasses.replace(setup, redo_stale=True)) == again  # once


def test_a_record_without_a_source_is_not_called_stale(setup):
    (spec,) = tiny.specs(["linear"])
    old = dataclasses.replace(execute_run(spec, setup), method_source="")
    assert not stale.is_stale(old)
    assert not stale.is_stale(dataclasses.replace(old, method_source="0" * 64, status="failed"))
    assert stale.is_stale(dataclasses.replace(old, method_source="0" * 64))


def test_run_status_and_submit_name_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SCTBENCH_CACHE", str(tmp_path / "cache"))
    selection = ["--suite", "demo", "--tasks", "digits", "--recipe", "epochs=1", "--backbone", "test_vit"]
    selection += ["--weights", "random", "--methods", write(tmp_path), "--image-size", "32"]
    sctbench("run", *selection, "--jobs", "1", cwd=tmp_path)
    assert "--redo stale" not in sctbench("run", *selection, cwd=tmp_path)
    write(tmp_path, 0.5)
    for command in (["run"], ["status"], ["submit", "--scheduler", "local"]):
        output = sctbench(*command, *selection, cwd=tmp_path)
        assert "1 complete run was done before the method's source was changed" in output, output
        assert "mine (1)" in output and "--redo stale" in output
    assert "1 runs, 0 complete" in sctbench("plan", *selection, "--redo", "stale", cwd=tmp_path)
    assert "--redo all: only `--redo stale`" in sctbench("run", *selection, "--redo", "all", cwd=tmp_path, ok=False)
    before = record_of(tmp_path)
    sctbench("run", *selection, "--redo", "stale", "--jobs", "1", cwd=tmp_path)
    assert record_of(tmp_path).method_source != before.method_source
    assert "--redo stale" not in sctbench("run", *selection, cwd=tmp_path)


def record_of(folder) -> RunRecord:
    (record,), _ = stored(folder / "results")
    return record


def test_what_belongs_to_a_methods_source(tmp_path, monkeypatch):
    assert registry.source_digest("lora") != registry.source_digest("lora_qv")
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "stale_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "shift.py").write_text(SHIFT.format(factor=1.0))
    (package / "unused.py").write_text("")
    text = METHOD.format(helper="from stale_package.shift import Shift")
    (tmp_path / "other.py").write_text(text)
    cls = registry._load_file(tmp_path / "other.py").Mine
    first = digest_of([cls])
    (package / "unused.py").write_text("changed = True")
    assert digest_of([cls]) == first
    (package / "shift.py").write_text(SHIFT.format(factor=2.0))
    assert digest_of([cls]) != first  # its own helper, in a file of its own
    assert digest_of([cls], "my-package 1.0") != digest_of([cls], "my-package 1.1")
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "other.py").write_text(text)
    assert digest_of([registry._load_file(tmp_path / "moved" / "other.py").Mine]) == digest_of([cls])


def test_an_edited_part_makes_a_composition_stale(monkeypatch):
    composed, lora = registry.get("compose"), registry.get("lora")
    assert lora.name in composed.built_from
    files = {digest_of([composed]), digest_of([composed, lora]), registry.source_digest("compose")}
    assert len(files) == 3
