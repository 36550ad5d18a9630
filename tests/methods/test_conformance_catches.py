"""The conformance suite notices methods that break the contract, and says how."""

import functools
import json
import os
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from harness.commands.main import app
from methods import conformance, registry
from methods.base import Attachment, Method, MethodError, check
from methods.blocks import blocks, new_linear, plug, plug_layer, require_served, the_one, width
from methods.layers import fold_linears


class Good(Method):
    """A d x d map behind the attention of every block."""

    name = "good"
    title = "Good"
    paper = "a test"
    family = "adapter"
    needs = frozenset({"attention"})
    identity_at_start = False

    def expected_parameters(self, backbone):
        return sum(width(b) ** 2 for b in blocks(require_served(self, backbone)))

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


class CountsInSilence(Good):
    """Its penalty grows with the number of steps, which nothing stores."""

    def attach(self, backbone, context):
        super().attach(backbone, context)
        first, steps = next(p for p in backbone.parameters() if p.requires_grad), [0]

        def penalty(batch):
            steps[0] += 1
            return 0.1 * steps[0] * first.square().sum()

        return Attachment(penalty=penalty)


class RemembersInAModule(Good):
    """A factor that moves with every training pass, in a plain attribute."""

    def attach(self, backbone, context):
        super().attach(backbone, context)
        plug(blocks(backbone)[0], "output", Drifting())
        return Attachment()


class Drifting(nn.Module):
    factor = 1.0

    def forward(self, x):
        if self.training:
            self.factor *= 0.9
        return x * self.factor


class PlainTensor(Good):
    """Adds a tensor that is no buffer."""

    def attach(self, backbone, context):
        super().attach(backbone, context)
        plug(blocks(backbone)[0], "output", Offset(torch.full((width(blocks(backbone)[0]),), 0.1)))
        return Attachment()


class Offset(nn.Module):
    def __init__(self, offset):
        super().__init__()
        self.offset = offset

    def forward(self, x):
        return x + self.offset


class ForgetsWhatItDrew(Good):
    """Shuffles channels in an order that depends on the seed, and is stored nowhere."""

    def attach(self, backbone, context):
        block = blocks(backbone)[0]
        plug(block, "output", Shuffle(torch.randperm(width(block), generator=context.generator).tolist()))
        return super().attach(backbone, context)


class Shuffle(nn.Module):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, x):
        return x[..., self.order]


class LooksTwice(Good):
    """Chooses by the calibration data, and would again in a resumed run."""

    def attach(self, backbone, context):
        images, _ = next(context.calibration(4))
        blocks(backbone)[0].sign = float(images.mean())
        return super().attach(backbone, context)


class RemembersWhatCannotBeStored(Good):
    """Keeps a generator."""

    def attach(self, backbone, context):
        context.remember("generator", lambda: context.generator)
        return super().attach(backbone, context)


class UncountedInTheHead(Good):
    """Plugs a map into the classifier, and takes it for a part of the head."""

    def attach(self, backbone, context):
        head = backbone.get_classifier()
        plug_layer(head, "output", new_linear(head.out_features, head.out_features, context.generator))
        return super().attach(backbone, context)


class ReplacesTheHead(Good):
    """Puts a classifier of its own in the place of the harness's."""

    def attach(self, backbone, context):
        backbone.reset_classifier(backbone.get_classifier().out_features)
        return super().attach(backbone, context)


class Knobs(Good):
    """With settings that the defaults say nothing of; as it is, a zero map on the projection, which folds."""

    identity_at_start = True
    mergeable = True

    @dataclass(frozen=True, kw_only=True)
    class Config:
        bias: bool = False
        """Whether the map has a bias."""

        start: str = "zero"
        """Of the map: `zero` or `normal`."""

        scale: float = 2.0
        """Factor on the map."""

        def __post_init__(self):
            check(self.start in ("zero", "normal"), "start", self.start, "one of zero, normal")

    def expected_parameters(self, backbone):
        return sum(width(b) * (width(b) + self.config.bias) for b in blocks(backbone))

    def starts_at_identity(self):
        return self.config.start == "zero"

    def attach(self, backbone, context):
        c = self.config
        for block in blocks(require_served(self, backbone)):
            std = 0.02 if c.start == "normal" else 0.0
            plain = new_linear(width(block), width(block), context.generator, std=std, bias=c.bias)
            plug_layer(block.attn.proj, "parallel", Scaled(plain, c.scale))
        return Attachment(merge=lambda: fold_linears([block.attn.proj for block in blocks(backbone)]))


class Scaled(nn.Module):
    def __init__(self, linear, scale):
        super().__init__()
        self.linear, self.scale = linear, scale

    def forward(self, x):
        return self.scale * self.linear(x)


class ForgetsTheBias(Knobs):
    """Counts as if there were no bias."""

    def expected_parameters(self, backbone):
        return sum(width(b) ** 2 for b in blocks(backbone))


class ForgetsTheStart(Knobs):
    """Says that it starts at the identity whatever the setting."""

    def starts_at_identity(self):
        return True


class ForgetsTheScale(Knobs):
    """Folds as if the scale were the default."""

    def attach(self, backbone, context):
        super().attach(backbone, context)

        def merge():
            for block in blocks(backbone):
                block.attn.proj.slots["parallel"][0].scale = 2.0
            fold_linears([block.attn.proj for block in blocks(backbone)])

        return Attachment(merge=merge)


class MergesByDefaultOnly(Knobs):
    """Does not fold with a bias, and does not say so."""

    def attach(self, backbone, context):
        made = super().attach(backbone, context)
        return Attachment() if self.config.bias else made


class Open(Good):
    """A map of a width that is taken from the backbone where it is left open."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        hidden: int | None = None
        """Width of the map; None is that of the block."""

    def hidden(self, block):
        return width(block) if self.config.hidden is None else self.config.hidden

    def expected_parameters(self, backbone):
        return sum(2 * width(b) * self.hidden(b) for b in blocks(backbone))

    def resolve(self, backbone):
        return replace(self.config, hidden=the_one(map(self.hidden, blocks(backbone))))

    def attach(self, backbone, context):
        for block in blocks(backbone):
            down = new_linear(width(block), self.hidden(block), context.generator, bias=False)
            up = new_linear(self.hidden(block), width(block), context.generator, bias=False)
            plug(block, "attention_output", nn.Sequential(down, up))
        return Attachment()


class ResolvesToAnother(Open):
    """Its open width is not the one that it names."""

    def resolve(self, backbone):
        return self.Config(hidden=16)


class ResolvesAnew(Open):
    """Grows whenever it is resolved."""

    def resolve(self, backbone):
        return self.Config(hidden=(self.config.hidden or 31) + 1)


CASES = {
    (CountsInSilence, "resume"): "in `state` and `load_state`",
    (RemembersInAModule, "resume"): "stopped and resumed it trains differently",
    (PlainTensor, "moves"): "register it as a buffer",
    (ForgetsWhatItDrew, "state"): "restored under another seed",
    (LooksTwice, "remember"): "inside of `context.remember`",
    (RemembersWhatCannotBeStored, "remember"): "more than tensors, numbers, texts",
    (UncountedInTheHead, "parameters"): "expected_parameters says",
    (ReplacesTheHead, "head"): "replaces the classifier",
    (ForgetsTheBias, "settings"): "with bias=True",
    (ForgetsTheStart, "settings"): "with start='normal', starts_at_identity() is True",
    (ForgetsTheScale, "settings"): "with scale=1.0, the logits move by",
    (MergesByDefaultOnly, "settings"): "with bias=True, there is no merge",
    (ResolvesToAnother, "resolved"): "resolved, expected_parameters says",
    (ResolvesAnew, "resolved"): "resolved twice",
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
@pytest.mark.parametrize("method", [Good, Knobs, Open])
def test_good_passes(method, check):
    assert conformance.run_check(check, method) is None


@pytest.mark.parametrize(("method", "check"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_breach_is_named(method, check):
    assert CASES[method, check] in conformance.run_check(check, method)


BROKEN = '''
from methods.base import Attachment, Method


class Broken(Method):
    """Trains nothing."""

    name = "broken"
    title = "Broken"
    paper = "a test"
    family = "adapter"

    def expected_parameters(self, backbone):
        return 1

    def attach(self, backbone, context):
        return Attachment()
'''


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """Exit code and output of the command on a file with this source, the only one that is known."""
    monkeypatch.setattr(registry, "_external", {})
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # all in this process
    return functools.partial(check_source, tmp_path)


def check_source(folder, source, *options):
    file = folder / "broken.py"
    file.write_text(source)
    result = CliRunner().invoke(app, ["check", f"{file}:Broken", *options])
    return result.exit_code, result.stdout


def test_check_command_fails_with_the_reason(checked):
    code, out = checked(BROKEN, "--json")
    found = {row["check"]: row["result"] for row in json.loads(out)}
    assert code == 1 and found["frozen"] == "ok"
    assert "0 parameters are trained, expected_parameters says 1" in found["parameters"]


def test_check_command_says_each_reason_once_and_what_to_do(checked):
    code, out = checked(BROKEN.replace("return Attachment()", "return Attachment(info=1 / 0)"))
    assert code == 1
    _, said = out.split("2 of 3 checks failed, and 22 were not run")
    assert said.count("backbones, parameters: ZeroDivisionError: division by zero (broken.py, line 17)") == 1
    assert "What backbones asks: Every small model is served" in said
    assert said.rstrip().endswith("broken.py:Broken") and "run again: sctbench check" in said


@pytest.mark.parametrize(
    ("left_out", "reason"),
    [
        ('    title = "Broken"\n    paper = "a test"\n', "class attributes that are missing or no text: title, paper"),
        ("    def attach(self, backbone, context):\n        return Attachment()\n", "methods that are missing: attach"),
    ],
)
def test_a_class_that_does_not_declare_itself_gives_one_message(checked, left_out, reason):
    assert left_out in BROKEN
    code, out = checked(BROKEN.replace(left_out, ""), "--json")
    results = {row["check"]: row["result"] for row in json.loads(out)}
    assert code == 1 and results.pop("declared") == f"failed: {reason}"
    assert set(results.values()) == {"not run"}


def test_a_class_without_a_name_is_no_method(tmp_path):
    file = tmp_path / "nameless.py"
    file.write_text(BROKEN.replace('    name = "broken"\n', ""))
    with pytest.raises(MethodError, match=r"nameless\.py:Broken: a method is a subclass .* with a `name` of its own"):
        registry.get(f"{file}:Broken")
