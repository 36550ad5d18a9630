"""Features computed once: only where that is exact, and then the same training."""

import pytest
import torch
from conftest import CLASSES, make_context, small_swin, small_vit
from timm.layers import DropPath

from harness import features
from harness.data import Split
from harness.preprocessing import Preprocessing
from harness.spec import Recipe
from harness.trainer import Trainer
from methods.blocks import plug
from methods.registry import get

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = torch.randint(0, 256, (26, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = Split(PIXELS, torch.arange(26) % CLASSES)


def still_swin():
    """timm gives a Swin stochastic depth if it is not told otherwise."""
    model = small_swin()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


def trainer(method="linear", model=None, **recipe):
    model = small_vit() if model is None else model
    attachment = get(method).configure({}).attach(model, make_context())
    model.get_classifier().requires_grad_(True)
    values = {"epochs": 3, "warmup_epochs": 1, "batch_size": 10, "lr": 1e-2, "drop_path": 0.0}
    return Trainer(model, attachment, DATA, HALF, Recipe(**(values | recipe)), seed=3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("build", [small_vit, still_swin])
@pytest.mark.parametrize("method", ["linear", "mlp_head"])
def test_training_on_cached_features_is_the_plain_training(method, build, precision, monkeypatch):
    """The last batch is smaller, for which torch may sum in another order: hence not bit for bit."""
    cached = trainer(method, build(), precision=precision)
    cached.fit()
    assert cached.cached is not None
    monkeypatch.setattr(features, "are_fixed", lambda *_: False)
    plain = trainer(method, build(), precision=precision)
    plain.fit()
    assert plain.cached is None
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "float32" else {"rtol": 2e-2, "atol": 2e-3}
    for name, parameter in plain.model.named_parameters():
        torch.testing.assert_close(cached.model.get_parameter(name), parameter, **tolerance)
    for ours, theirs in zip(cached.curve, plain.curve, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=tolerance["rtol"])
        assert ours.lr == theirs.lr


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_with_whole_batches_only_the_weights_are_the_same_bits(precision, monkeypatch):
    runs = []
    for fixed in (features.are_fixed, lambda *_: False):
        monkeypatch.setattr(features, "are_fixed", fixed)
        runs.append(trainer(batch_size=13, precision=precision))
        runs[-1].fit()
    assert [run.cached is not None for run in runs] == [True, False]
    assert torch.equal(runs[0].model.head.weight, runs[1].model.head.weight)
    assert runs[0].curve == runs[1].curve


class Noise(torch.nn.Module):
    """What a method from outside may bring: randomness without a name that gives it away."""

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Halved(torch.nn.Module):
    """Nothing random, but another function in training."""

    def forward(self, x):
        return 0.5 * x if self.training else x


def with_module(module):
    model = small_vit()
    plug(model.blocks[1], "output", module)
    return model


@pytest.mark.parametrize(
    ("method", "model", "recipe"),
    [
        ("lora", small_vit, {}),
        ("linear", small_vit, {"augmentation": "flip"}),
        ("linear", lambda: small_vit(drop_path_rate=0.1), {}),
        ("linear", small_swin, {}),
        ("linear", lambda: small_vit(drop_rate=0.1), {}),
        ("linear", lambda: with_module(Noise()), {}),
        ("linear", lambda: with_module(Halved()), {}),
    ],
)
def test_what_is_trained_or_random_before_the_head_is_not_cached(method, model, recipe):
    run = trainer(method, model(), epochs=1, **recipe)
    run.fit()
    assert run.cached is None


def test_asking_leaves_generators_and_mode_alone():
    model = small_vit(drop_path_rate=0.5).train()
    model.head.requires_grad_(True)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert not features.are_fixed(model, HALF.normalise(PIXELS[:4]), "float32")
    assert torch.equal(before, torch.get_rng_state()) and model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_hold_no_tokens():
    found = features.pooled(small_vit(), iter([HALF.normalise(PIXELS)]), "float32")
    assert found.shape == (26, 32) and found.untyped_storage().nbytes() == found.numel() * 4


def test_a_stopped_training_on_features_goes_on_to_the_same_bits():
    whole = trainer()
    whole.fit()
    stopped, state = trainer(), {}

    class Stop(Exception):
        pass

    def boundary(_):
        if stopped.step == 4:
            state.update(stopped.state())
            raise Stop

    with pytest.raises(Stop):
        stopped.fit(boundary=boundary)
    again = trainer(model=stopped.model)
    again.load_state(state)
    again.fit()
    assert torch.equal(again.model.head.weight, whole.model.head.weight)
    assert again.curve == whole.curve and again.step_seconds > 0
