"""Backbones that no method works on are refused in words by every command that takes one, before anything starts."""

import pytest
from typer.testing import CliRunner

from harness.commands.main import app
from harness.errors import HarnessError

SELECTION = ["--suite", "demo", "--methods", "linear", "--weights", "random"]
COMMANDS = {
    "methods": [],
    "run": SELECTION,
    "plan": SELECTION,
    "status": SELECTION,
    "submit": [*SELECTION, "--scheduler", "local", "--dry-run"],
    "bench": ["selection", "--size", "small", "--device", "cpu", "--weights", "random"],
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50.a1_in1k", "is no .*, which is what methods work on"),
        ("vit_tiny_r_s16_p8_224", "is no .*, which is what methods work on"),
        ("vit_tiny_patch16_224.nope", r"has no weights 'nope'\. timm has: augreg_in21k"),
        ("vit_base_patch16_224_in21k", r"Did you mean 'vit_base_patch16_224\.orig_in21k'"),
        ("hf_hub:timm/vit_tiny_patch16_224", "unknown backbone"),
        ("", "unknown backbone ''"),
    ],
)
def test_unsupported_backbones(tmp_path, monkeypatch, command, name, message):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [command, *COMMANDS[command], "--backbone", name])
    assert done.exit_code != 0
    with pytest.raises(HarnessError, match=message):
        raise done.exception
    assert not list(tmp_path.iterdir())
