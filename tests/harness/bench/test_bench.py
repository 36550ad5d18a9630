"""Every part of the bench on a tiny model; what the released way computes; the command's files."""

import json

import pytest
import torch
from typer.testing import CliRunner

from harness.bench import released, report
from harness.bench.base import Measurement, Setting, Sizes, peak_bytes
from harness.bench.selection import select
from harness.commands.main import app
from harness.schema.spec import BackboneSpec
from tests.conftest import CLASSES, batch, small_vit

TINY = Setting(
    device=torch.device("cpu"),
    backbone=BackboneSpec(name="test_vit", weights="random", digest="", image_size=32),
    sizes=Sizes(images=64, test_images=64, epochs=1, rounds=1, side=64),
)


@pytest.mark.parametrize("part", report.PARTS)
def test_every_part_measures(part):
    found = report.PARTS[part](TINY)
    assert {m.part for m in found} == {part}
    assert all(m.ours > 0 or "overhead" in m.what or m.unit == "%" for m in found)
    assert all(set(m.row()) == set(found[0].row()) for m in found)


def test_the_released_way_selects_the_same_channels():
    """Where it works at all: one class token, classes that all occur."""
    model, (images, labels) = small_vit(), batch(12)
    batches = list(zip(images.split(5), labels.split(5), strict=True))
    theirs = released.select(model, batches, 4)
    assert [t.tolist() for t in theirs] == [t.tolist() for t in select(model, batches, CLASSES)]


def test_the_released_module_is_the_formula():
    module, x = released.ReleasedModule(torch.tensor([1, 4])), torch.randn(2, 3, 6)
    expected = x.clone()
    expected[..., [1, 4]] += module.linear(x[..., [1, 4]])
    torch.testing.assert_close(module(x), expected)


def test_peak_counts_what_is_alive_at_once():
    def action():
        first = torch.zeros(1000, dtype=torch.uint8)
        second = first.repeat(3)
        del first
        third = second[1:].view(-1)  # no memory of its own
        del second, third
        torch.zeros(500, dtype=torch.uint8)

    assert peak_bytes(action) == 4000


@pytest.mark.parametrize(("judged", "reached"), [(4.0, False), (5.0, True)])
def test_targets(judged, reached):
    line = Measurement(part="p", what="w", unit="s", ours=1.0, other=judged, judged=judged, at_least=5)
    assert line.reached is reached and line.ratio == judged
    assert report.verdict([line]) == ("1 of 1 targets reached" if reached else "0 of 1 targets reached; not: p: w")


def test_the_command_prints_and_writes(tmp_path, monkeypatch):
    line = Measurement(part="module", what="w", unit="s", ours=1.0)
    monkeypatch.setitem(report.PARTS, "module", lambda setting: [line])
    arguments = ["--size", "small", "--backbone", "test_vit", "--weights", "random", "--device", "cpu"]
    result = CliRunner().invoke(app, ["bench", "module", *arguments, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (path,) = tmp_path.glob("*.json")
    written = json.loads(path.read_text())
    assert path.name == "cpu-test_vit-module-small.json"
    assert written["environment"]["packages"]["torch"] and written["cores"] >= 1
    assert {m["part"] for m in written["measurements"]} == {"module"}
    assert "targets reached" in result.output
    table = path.with_suffix(".md").read_text()
    assert "| module | w | s | 1 |" in table and "torch 2" in table


def test_an_unknown_part_is_answered_with_the_known(tmp_path):
    result = CliRunner().invoke(app, ["bench", "modul", "--out", str(tmp_path)])
    assert "has no part 'modul'. Did you mean 'module'" in str(result.exception)
