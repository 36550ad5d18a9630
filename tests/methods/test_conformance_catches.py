"""The conformance suite notices methods that break the contract, and says how."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from harness.commands.main import app
from methods import conformance
from methods.base import Attachment, Method
from methods.blocks import blocks, new_linear, plug, plug_layer, width


class Good(Method):
    """A d x d map behind the attention of every block."""

    name = "good"
    title = "Good"
    paper = "a test"
    family = "adapter"
    identity_at_start = False

    def expected_parameters(self, backbone):
        return sum(width(b) ** 2 for b in blocks(backbone))

    def attach(self, backbone, context):
        for block in blocks(backbone):
            plug(block, "attention_output", new_linear(width(block), width(block), context.generator, bias=False))
        return Attachment()


class Miscounts(Good):
    """Counts one too many."""

    def expected_parameters(self, backbone):
        return super().expected_parameters(backbone) + 1


class ClaimsIdentity(Good):
    """Is not the identity at the start."""

    identity_at_start = True


class DrawsGlobally(Good):
    """Takes its random numbers from torch's global generator."""

    def attach(self, backbone, context):
        for block in blocks(backbone):
            plug(block, "attention_output", nn.Linear(width(block), width(block), bias=False))
        return Attachment()


class LeavesHooks(Good):
    """Works through a hook."""

    def attach(self, backbone, context):
        blocks(backbone)[0].register_forward_hook(lambda module, inputs, output: output)
        return super().attach(backbone, context)


class Unused(Good):
    """Adds a parameter that nothing uses."""

    def attach(self, backbone, context):
        backbone.extra = nn.Parameter(torch.ones(3))
        return super().attach(backbone, context)


class MovesFrozen(Good):
    """Changes a frozen weight during training."""

    def attach(self, backbone, context):
        def after_step(step):
            blocks(backbone)[0].norm1.weight.data.mul_(0.9)

        super().attach(backbone, context)
        return Attachment(after_step=after_step)


class MergesWrongly(Good):
    """Throws its update away in merge."""

    mergeable = True

    def attach(self, backbone, context):
        for block in blocks(backbone):
            plug_layer(block.attn.proj, "output", new_linear(width(block), width(block), context.generator, bias=False))
        return Attachment(merge=lambda: [setattr(block.attn, "proj", fresh(block)) for block in blocks(backbone)])


def fresh(block):
    return nn.Linear(width(block), width(block))


class MixesImages(Good):
    """Adds the mean over the batch."""

    def attach(self, backbone, context):
        for block in blocks(backbone):
            mixer = new_linear(width(block), width(block), context.generator, bias=False)
            mixer.register_forward_pre_hook(lambda _, inputs: inputs[0] - inputs[0].mean(0, keepdim=True))
            plug(block, "attention_output", mixer)
        return Attachment()


class ViTOnlyInSilence(Good):
    """Says that it serves ViT only, and attaches to Swin without a word."""

    serves = frozenset({"vit"})


CASES = {
    (Miscounts, "parameters"): "expected_parameters says",
    (ClaimsIdentity, "identity"): "identity_at_start is True",
    (DrawsGlobally, "clean"): "global generator",
    (DrawsGlobally, "deterministic"): "same seed differ",
    (LeavesHooks, "clean"): "leaves hooks",
    (Unused, "gradients"): "extra",
    (MovesFrozen, "frozen"): "norm1.weight",
    (MergesWrongly, "merge"): "in merge",
    (MixesImages, "alone"): "with the other images of its batch",
    (ViTOnlyInSilence, "backbones"): "did not raise MethodError",
}


@pytest.mark.parametrize("check", conformance.CHECKS)
def test_good_passes(check):
    assert conformance.run_check(check, Good) is None


@pytest.mark.parametrize(("method", "check"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_breach_is_named(method, check):
    assert CASES[method, check] in conformance.run_check(check, method)


def test_check_command_fails_with_the_reason(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(
        "from methods.base import Attachment, Method\n\n\n"
        "class Broken(Method):\n"
        "    name = 'broken'\n    title = 'Broken'\n    paper = ''\n    family = 'adapter'\n\n"
        "    def expected_parameters(self, backbone):\n        return 1\n\n"
        "    def attach(self, backbone, context):\n        return Attachment()\n"
    )
    result = CliRunner().invoke(app, ["check", f"{file}:Broken", "--json"])
    assert result.exit_code == 1
    found = {row["check"]: row["result"] for row in json.loads(result.stdout)}
    assert found["declared"] == "failed: class attribute 'paper' is missing or empty"
    assert "0 parameters are trained, expected_parameters says 1" in found["parameters"]
    assert found["frozen"] == "ok"
