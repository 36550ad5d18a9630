"""Work that a training leaves out: methods train the same, and probing leaves the model as it was."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from harness.schema.spec import Recipe
from harness.training import fast_path, fast_path_check
from harness.training.callbacks import Callback
from harness.training.trainer import Trainer
from methods.base import Attachment
from methods.registry import get
from tests.chosen_methods import WITH_OWN_CODE
from tests.conftest import CLASSES, small_vit
from tests.fast_path_models import DATA, HALF, IMAGES, PIXELS, attached, is_alone, trained, trainer, with_module


@pytest.mark.parametrize("method", WITH_OWN_CODE)
def test_a_method_is_the_same_with_and_without_shortcuts(method, monkeypatch):
    """In two epochs: what was left out or kept in the first is missing in the second."""
    monkeypatch.setattr(fast_path_check, "EPOCHS", 2)
    fast_path_check.check_shortcuts(get(method))


@pytest.mark.parametrize("method", [name for name in WITH_OWN_CODE if name != "compose"])
def test_a_method_has_the_same_gradients_on_its_shortest_path(method):
    model, attachment = attached(method, small_vit(drop_path_rate=0.2))
    labels, trained = torch.arange(26) % CLASSES, [p for p in model.parameters() if p.requires_grad]
    recipe = Recipe(epochs=1, lr=1e-3, warmup_epochs=0, batch_size=26)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained:  # as if in the middle of a training
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))

    def step(path):
        torch.manual_seed(0)
        logits = path.forward(HALF.normalise(PIXELS) if path.inputs is None else path.inputs)
        loss = cross_entropy(logits, labels)
        return logits, *torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)

    plain = step(fast_path.ForwardPlan(forward=model.train()))
    with fast_path.open_plan(model, attachment, PIXELS, HALF, recipe, "float32") as path:
        shortest = step(path)
    for one, other in zip(shortest, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 + 1e-4 * float(other.abs().max()))


def test_asking_leaves_everything_as_it_was():
    model, attachment = attached("sct", small_vit(drop_path_rate=0.5))
    model.train()
    torch.manual_seed(1)
    random, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    recipe = Recipe(epochs=1, lr=1e-3, warmup_epochs=0)
    with fast_path.open_plan(model, attachment, PIXELS, HALF, recipe, "float32") as path:
        assert path.start == "block 0, after its attention"
        assert torch.equal(random, torch.get_rng_state()) and model.training
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    plain, _ = attached()
    with fast_path.class_token_alone(plain, IMAGES):
        assert type(plain.blocks[-1]) is not type(plain.blocks[0])
    assert type(plain.blocks[-1]) is type(plain.blocks[0])


class Picky(nn.Module):
    """Refuses what it was not trained to."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        if self.gain != 1:
            raise ValueError("not my number")
        return self.gain * x


def test_a_model_that_cannot_be_asked_is_trained_as_it_is():
    model = with_module(Picky())
    assert not is_alone(model)
    with fast_path.open_plan(
        model, Attachment(), PIXELS, HALF, Recipe(epochs=1, lr=1e-3, warmup_epochs=0), "float32"
    ) as path:
        assert path.start == "" and path.forward is model
    assert model.blocks[1].slots["output"][0].gain == 1


@pytest.mark.parametrize("method", ["linear", "partial", "sct"])
def test_a_stopped_training_goes_on_to_the_same_bits(method):
    whole = trained(method)
    stopped, state = trainer(method), {}

    class Stop(Exception):
        pass

    class StopAtStepFour(Callback):
        def on_step(self, trainer):
            if trainer.step == 4:
                state.update(trainer.state_dict())
                raise Stop

    stopped.callbacks = [StopAtStepFour()]
    with pytest.raises(Stop):
        stopped.fit()
    again = Trainer(stopped.model, stopped.attachment, DATA, HALF, stopped.recipe, seed=3)
    again.load_state_dict(state)
    again.fit()
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.curve == whole.curve and again.step_seconds > 0
