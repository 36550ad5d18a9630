"""Models, trainings and comparisons for the tests of what a training leaves out."""

from contextlib import nullcontext

import pytest
import torch

from harness.data.splits import Split
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from harness.training import fast_path
from harness.training.trainer import Trainer
from methods import testbed
from methods.blocks import plug
from methods.registry import get
from tests.conftest import CLASSES, small_vit

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = torch.randint(0, 256, (26, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = Split(PIXELS, torch.arange(26) % CLASSES)
IMAGES = HALF.normalise(PIXELS[:4])


def attached(method="linear", model=None, **config):
    model = small_vit() if model is None else model
    done = testbed.attach(get(method), model=model, config=get(method).configure(config).config)
    model.get_classifier().requires_grad_(True)
    return model, done.attachment


def trainer(method="linear", model=None, config=None, **recipe):
    model, attachment = attached(method, model, **(config or {}))
    values = {"epochs": 3, "warmup_epochs": 1, "batch_size": 10, "lr": 1e-2, "drop_path": 0.0}
    return Trainer(model, attachment, DATA, HALF, Recipe(**(values | recipe)), seed=3)


def trained(method="linear", model=None, **recipe):
    run = trainer(method, model, **recipe)
    run.fit()
    return run


def with_module(module, slot="output", block=1):
    model = small_vit()
    plug(model.blocks[block], slot, module)
    return model


def no_cached_features(monkeypatch):
    monkeypatch.setattr(fast_path, "last_fixed_cut", lambda *_: None)


def all_tokens(monkeypatch):
    monkeypatch.setattr(fast_path, "class_token_alone", lambda *_: nullcontext())


def same_training(ours, theirs, precision="float32"):
    tolerance = {"rtol": 1e-4, "atol": 1e-6} if precision == "float32" else {"rtol": 2e-2, "atol": 2e-3}
    for name, parameter in theirs.model.named_parameters():
        torch.testing.assert_close(ours.model.get_parameter(name), parameter, **tolerance)
    for one, other in zip(ours.curve, theirs.curve, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=tolerance["rtol"])
        assert one.lr == other.lr


def is_alone(model):
    with fast_path.class_token_alone(model, IMAGES):
        last, x = model.blocks[-1], torch.zeros(2, 5, 32)
        return hasattr(last, "slots") and any(m(x).shape == (2, 1, 32) for m in last.slots["after_attention"])
