"""Methods that keep something from pass to pass, and those that say they do not: they are trained on fresh features."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from harness.schema.spec import Recipe
from harness.training import fast_path
from harness.training.fast_path_check import check_shortcuts
from methods.base import Attachment, Method
from methods.blocks import plug
from methods.conformance_tools import NotConforming
from tests.conftest import make_context, small_vit
from tests.fast_path_models import HALF, PIXELS, is_alone, with_module


class Scale(nn.Module):
    """Keeps nothing, which it does not say."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(32))

    def forward(self, x):
        return self.gain * x


class Declared(Scale):
    """Declares for itself, and not for those that come after it."""

    stateless = True

    def forward(self, x):
        return super().forward(x)


class Inherited(Declared):
    """Another forward, of which nothing was said."""

    def forward(self, x):
        return super().forward(x)


def replaced():
    model = small_vit()
    model.blocks[-1].mlp.forward = model.blocks[-1].mlp.__class__.forward.__get__(model.blocks[-1].mlp)
    return model


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: with_module(Declared(), block=2), True),
        (lambda: with_module(Scale(), block=2), False),
        (lambda: with_module(Inherited(), block=2), False),
        (replaced, False),
    ],
)
def test_code_of_a_method_must_say_that_it_keeps_nothing(model, expected):
    assert is_alone(model()) == expected


class Tap(nn.Module):
    """Keeps the mean over the tokens of what passes: in an attribute or in a buffer."""

    def __init__(self, buffer):
        super().__init__()
        self.buffer = buffer
        if buffer:
            self.register_buffer("mean", torch.zeros(1, 32), persistent=False)

    def forward(self, x):
        self.mean = x.detach().mean(dim=1)
        return x


class Readout(nn.Module):
    """x + sum of W_l mean_l for every token, where each W_l is zero at the start; or is opened after some passes."""

    def __init__(self, taps, opens_at):
        super().__init__()
        self.taps, self.opens_at, self.calls = [*taps], opens_at, 0
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(32, 32)) for _ in taps)

    def forward(self, x):
        self.calls += self.training
        if self.calls < self.opens_at:
            return x + 0 * self.weights[0].sum()
        return x + sum(tap.mean @ weight for tap, weight in zip(self.taps, self.weights, strict=True))[:, None]


def tapped(buffer, opens_at=0):
    class Tapped(Method):
        """Linear read-outs of every block."""

        name, title, family, paper, serves = "tapped", "Tapped", "adapter", "none", frozenset({"vit"})
        recipe: ClassVar = {"lr": 0.05}

        def attach(self, backbone, context):
            taps = [Tap(buffer) for _ in backbone.blocks]
            for block, tap in zip(backbone.blocks, taps, strict=True):
                plug(block, "output", tap)
            plug(backbone.blocks[-1], "output", Readout(taps, opens_at))
            return Attachment()

        def expected_parameters(self, backbone):
            return len(backbone.blocks) * 32 * 32

    return Tapped


@pytest.mark.parametrize("method", [tapped(False), tapped(True), tapped(False, opens_at=5), tapped(True, opens_at=5)])
def test_a_method_that_reads_what_it_recorded_is_trained_on_fresh_features(method):
    check_shortcuts(method)
    model = small_vit()
    attachment = method().attach(model, make_context())
    model.get_classifier().requires_grad_(True)
    with fast_path.open_plan(model, attachment, PIXELS, HALF, Recipe(epochs=1, warmup_epochs=0), "float32") as path:
        assert path.start == "" and path.forward is model


class Liar(nn.Module):
    """Says that it keeps nothing, and counts its calls."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.gain, self.calls = nn.Parameter(torch.zeros(())), 0

    def forward(self, x):
        self.calls += self.training
        return x + self.gain * x + (x.mean(dim=1, keepdim=True) if self.calls > 12 else 0.0)


def test_the_conformance_check_finds_who_declares_what_is_not_true():
    class Lying(tapped(False)):
        def attach(self, backbone, context):
            plug(backbone.blocks[-1], "output", Liar())
            return Attachment()

    with pytest.raises(NotConforming, match="stateless"):
        check_shortcuts(Lying)
