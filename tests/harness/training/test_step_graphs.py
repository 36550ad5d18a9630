"""Training steps replayed from CUDA graphs: the same bits as steps that are run as they are."""

from copy import deepcopy

import pytest
import torch

from harness.data.splits import Split
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from harness.training import trainer as trainers
from harness.training.callbacks import Callback
from harness.training.step_graphs import StepGraphs, can_replay
from harness.training.trainer import Trainer
from methods import registry
from methods.base import Attachment
from methods.testbed import CLASSES, attach, make_context, model_for, small, small_vit

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
GPU = torch.device("cuda")


def on_gpu(test):
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")(test))


def split(count=40):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return Split(pixels, torch.arange(count) % CLASSES).to(GPU)


def make_trainer(method, **recipe):
    """40 images in batches of 12: three whole ones and one of four."""
    kind = model_for(registry.get(method))
    model = small(kind, drop_path_rate=0.1, **({"depth": 3} if kind == "vit" else {})).to(GPU)
    data = split()
    context = make_context(HALF.normalise(data.images), data.labels, steps=24)
    attachment = attach(registry.get(method), model=model, context=context).attachment
    model.get_classifier().requires_grad_(True)
    values = {"epochs": 6, "warmup_epochs": 1, "batch_size": 12, "lr": 1e-2, "augmentation": "flip"} | recipe
    return Trainer(model, attachment, data, HALF, Recipe(**values), seed=3)


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def eager(monkeypatch):
    monkeypatch.setattr(trainers, "can_replay", lambda *_: False)


def same(one, other):
    assert one.curve == other.curve
    theirs = weights(other)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(one).items())


CHANGES = {"adalora", "dtl", "dyt", "gate_vpt", "hst", "lst", "res_tuning", "sa2vp", "vqt"}
"""Methods whose steps are not all the same, or of which it cannot be told."""

WAITS = {"adamss", "boft", "fourierft", "frod", "oft", "psoft", "vblora", "waveft"}
"""Methods whose forward pass waits for the device, or copies from the CPU."""


@on_gpu
@pytest.mark.parametrize("method", registry.all_methods())
def test_a_replayed_training_gives_the_same_bits(method, monkeypatch):
    replayed = make_trainer(method)
    replayed.fit()
    mode = "eager" if method in CHANGES else "eager (" if method in WAITS else "CUDA graph"
    assert replayed.step_mode.startswith(mode)
    eager(monkeypatch)
    plain = make_trainer(method)
    plain.fit()
    assert plain.step_mode == "eager"
    same(replayed, plain)


@on_gpu
@pytest.mark.parametrize(
    "recipe",
    [
        {"augmentation": "none"},
        {"optimizer": "sgd"},
        {"precision": "float32"},
        {"label_smoothing": 0.1},
        {"batch_size": 40},
    ],
)
def test_with_other_recipes(recipe, monkeypatch):
    replayed = make_trainer("sct", **recipe)
    replayed.fit()
    eager(monkeypatch)
    plain = make_trainer("sct", **recipe)
    plain.fit()
    assert replayed.step_mode == "CUDA graph"
    same(replayed, plain)


class Stopper(Callback):
    """Keeps where a training stands at step 14, after replays, and stops it."""

    name = "stopper"

    def on_step(self, trainer):
        if trainer.step == 14:
            assert trainer.update.mode == "CUDA graph"
            self.state, self.weights = deepcopy((trainer.state_dict(), trainer.model.state_dict()))
            raise InterruptedError


@on_gpu
def test_a_resumed_training_gives_the_same_bits():
    whole, first, second = (make_trainer("sct") for _ in range(3))
    whole.fit()
    stopper = Stopper()
    first.callbacks = [stopper]
    with pytest.raises(InterruptedError):
        first.fit()
    second.load_state_dict(stopper.state)
    second.model.load_state_dict(stopper.weights)
    second.fit()
    assert second.step_mode == "CUDA graph"
    same(whole, second)


@on_gpu
def test_a_step_that_waits_for_the_device_is_run_as_it_is():
    p = torch.zeros((), device=GPU)

    def step(inputs, targets):
        p.add_(1)
        return (inputs.sum() + targets.sum() + float(p),)

    graphs = StepGraphs(step)
    answers = [float(graphs(torch.ones(3, device=GPU) * n, torch.ones(3, device=GPU))[0]) for n in range(6)]
    assert answers == [3 * n + 3 + n + 1 for n in range(6)]
    assert graphs.mode.startswith("eager (")
    trainer = make_trainer("lora")  # the device is as good as before
    trainer.fit()
    assert trainer.step_mode == "CUDA graph"


def test_only_steps_that_are_always_the_same_are_replayed():
    refused = {
        name
        for name in registry.all_methods()
        for attached in [attach(registry.get(name))]
        if not can_replay(attached.model, attached.attachment, GPU)
    }
    assert refused == CHANGES
    assert not can_replay(small_vit(), Attachment(), torch.device("cpu"))
