"""Work that is left out: only where that changes nothing, and then the same training."""

from contextlib import nullcontext
from typing import ClassVar

import pytest
import torch
from conftest import CLASSES, make_context, small_swin, small_vit
from timm.layers import DropPath
from torch import nn
from torch.nn.functional import cross_entropy

from harness.data.splits import Split
from harness.schema.preprocessing import Preprocessing
from harness.schema.spec import Recipe
from harness.training import evaluation, fast_path
from harness.training.fast_path_check import check_shortcuts
from harness.training.trainer import Trainer
from methods.base import Attachment, Method
from methods.blocks import plug
from methods.conformance_tools import NotConforming
from methods.registry import all_methods, get

HALF = Preprocessing(image_size=32, mean=(0.5,) * 3, std=(0.5,) * 3)
PIXELS = torch.randint(0, 256, (26, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
DATA = Split(PIXELS, torch.arange(26) % CLASSES)
IMAGES = HALF.normalise(PIXELS[:4])


def still_swin():
    """timm gives a Swin stochastic depth if it is not told otherwise."""
    model = small_swin()
    for module in model.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return model


def attached(method="linear", model=None, **config):
    model = small_vit() if model is None else model
    attachment = get(method).configure(config).attach(model, make_context())
    model.get_classifier().requires_grad_(True)
    return model, attachment


def trainer(method="linear", model=None, config=None, **recipe):
    model, attachment = attached(method, model, **(config or {}))
    values = {"epochs": 3, "warmup_epochs": 1, "batch_size": 10, "lr": 1e-2, "drop_path": 0.0}
    return Trainer(model, attachment, DATA, HALF, Recipe(**(values | recipe)), seed=3)


def trained(method="linear", model=None, **recipe):
    run = trainer(method, model, **recipe)
    run.fit()
    return run


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


# What is computed once


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    ("method", "build", "start"),
    [
        ("linear", small_vit, "head"),
        ("linear", still_swin, "head"),
        ("mlp_head", small_vit, "head"),
        ("partial", small_vit, "block 2"),
        ("partial", still_swin, "block 3"),
        ("sct", small_vit, "block 0, behind its attention"),
        ("sct", still_swin, "block 1, behind its attention"),
        ("adapter_plus", small_vit, "block 0, behind its attention"),
    ],
)
def test_training_from_cached_features_is_the_plain_training(method, build, start, precision, monkeypatch):
    """The last batch is smaller, for which torch may sum in another order: hence not bit for bit."""
    once = trained(method, build(), precision=precision)
    assert once.path.start == start
    no_cached_features(monkeypatch)
    plain = trained(method, build(), precision=precision)
    assert plain.path.start == ""
    same_training(once, plain, precision)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_with_whole_batches_only_the_weights_are_the_same_bits(precision, monkeypatch):
    once = trained(batch_size=13, precision=precision)
    no_cached_features(monkeypatch)
    plain = trained(batch_size=13, precision=precision)
    assert [run.path.start for run in (once, plain)] == ["head", ""]
    assert torch.equal(once.model.head.weight, plain.model.head.weight)
    assert once.curve == plain.curve


class Noise(nn.Module):
    """What a method from outside may bring: randomness without a name that gives it away."""

    stateless = True

    def forward(self, x):
        return x + 0.1 * torch.randn_like(x) if self.training else x


class Halved(nn.Module):
    """Nothing random, but another function in training."""

    stateless = True

    def forward(self, x):
        return 0.5 * x if self.training else x


class Remembers(nn.Module):
    """Takes a place among the last block's modules, and what it adds from the first block's."""

    stateless = True  # which is not true

    def __init__(self, first):
        super().__init__()
        self.seen = []
        first.register_forward_hook(lambda _, inputs, output: self.seen.append(output))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.gate * self.seen[-1] + 0.1 * self.seen[-1]


def with_module(module, slot="output", block=1):
    model = small_vit()
    plug(model.blocks[block], slot, module)
    return model


def remembering():
    model = small_vit()
    plug(model.blocks[2], "output", Remembers(model.blocks[0]))
    return model


def tied():
    """One trained layer in the first and in the last block."""
    model, layer = small_vit(), nn.Linear(32, 32)
    plug(model.blocks[0], "output", layer)
    plug(model.blocks[2], "output", layer)
    return model


@pytest.mark.parametrize(
    ("method", "model", "recipe", "start"),
    [
        ("lora", small_vit, {}, ""),
        ("linear", small_vit, {"augmentation": "flip"}, ""),
        ("linear", lambda: small_vit(drop_path_rate=0.1), {}, "block 1"),
        ("linear", lambda: small_vit(drop_rate=0.1), {}, "head"),
        ("linear", lambda: small_vit(pos_drop_rate=0.1), {}, ""),
        ("linear", lambda: with_module(Noise()), {}, "block 1, behind its attention"),
        ("linear", lambda: with_module(Halved()), {}, "block 1, behind its attention"),
        ("linear", remembering, {}, ""),
        ("linear", tied, {}, "block 0, behind its attention"),
        ("linear", lambda: with_module(nn.Linear(32, 32), block=2), {}, "block 2, behind its attention"),
    ],
)
def test_what_is_trained_or_random_is_not_cached(method, model, recipe, start):
    assert trained(method, model(), epochs=1, **recipe).path.start == start


def test_a_step_that_may_change_frozen_weights_is_given_the_images():
    run = trainer()
    run.attachment = Attachment(after_step=lambda step: None)
    run.fit()
    assert run.path.start == ""


def test_a_penalty_with_a_state_of_its_own_is_not_asked():
    calls = []

    def penalty():
        calls.append(1)
        return torch.zeros(())

    kept = Attachment(penalty=penalty, state=lambda: len(calls), load_state=lambda _: None)
    with fast_path.open_plan(attached()[0], kept, PIXELS, HALF, Recipe(epochs=1, warmup_epochs=0), "float32") as path:
        assert path.start == "" and calls == []


def test_too_much_is_not_kept(monkeypatch):
    monkeypatch.setattr(fast_path, "MOST_BYTES", 26 * 32 * 4)
    assert trained().path.start == "head"
    assert trained("partial").path.start == ""


def test_pooled_features_hold_no_tokens():
    with fast_path.open_plan(*attached(), PIXELS, HALF, Recipe(epochs=1, lr=1e-3, warmup_epochs=0), "float32") as path:
        assert path.inputs.shape == (26, 32) and path.inputs.untyped_storage().nbytes() == path.inputs.numel() * 4


# The class token alone


def is_alone(model, penalty=None):
    with fast_path.class_token_alone(model, IMAGES, penalty):
        last, x = model.blocks[-1], torch.zeros(2, 5, 32)
        return hasattr(last, "slots") and any(m(x).shape == (2, 1, 32) for m in last.slots["after_attention"])


class Mean(nn.Module):
    """Reads all tokens, through a weight that is zero at the start."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.weight * x.mean(dim=1, keepdim=True)


class Grid(nn.Module):
    """Must have the patches, though they do not matter to the class token."""

    stateless = True

    def forward(self, x):
        return torch.cat([x[:, :1], x[:, 1:].reshape(len(x), 4, 4, -1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("method", ["linear", "full", "lora", "sct", "vpt_deep", "ssf", "adapter_pfeiffer"])
@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_training_the_class_token_alone_is_the_plain_training(method, drop_path, monkeypatch):
    no_cached_features(monkeypatch)
    alone = trainer(method, small_vit(drop_path_rate=drop_path))
    assert is_alone(alone.model.train())
    alone.fit()
    logits = evaluation.predict(alone.model, DATA, HALF, "float32")
    all_tokens(monkeypatch)
    plain = trained(method, small_vit(drop_path_rate=drop_path))
    same_training(alone, plain)
    torch.testing.assert_close(logits, evaluation.predict(plain.model, DATA, HALF, "float32"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: small_vit(global_pool="avg"),
        lambda: with_module(Mean(), block=2),
        lambda: with_module(Grid(), block=2),
        lambda: with_module(nn.Dropout(0.1), block=2).train(),
        lambda: attached("convpass")[0],
        lambda: attached("lst")[0],
    ],
)
def test_tokens_that_are_read_are_computed(model):
    assert not is_alone(model())


class Kept(nn.Module):
    """Keeps what it saw for a penalty, which is called in the same pass."""

    stateless = True

    def forward(self, x):
        self.seen = x
        return x


def test_a_penalty_reads_tokens_too():
    kept = Kept()
    model = with_module(kept, block=2)
    assert is_alone(model, lambda: kept.seen[:, 0].mean())
    assert not is_alone(model, lambda: kept.seen.mean())


def test_a_hook_may_read_anything():
    model = small_vit()
    model.norm.register_forward_hook(lambda *_: None)
    assert not is_alone(model)
    assert trained("linear", model, epochs=1).path.start == ""


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


# Methods that read what they recorded earlier in the same pass


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


@pytest.mark.parametrize("method", all_methods())
def test_every_method_is_the_same_with_and_without_shortcuts(method):
    check_shortcuts(get(method))


def test_a_swin_is_left_alone():
    model = small_swin()
    with fast_path.class_token_alone(model, IMAGES):
        assert not hasattr(model.layers[-1].blocks[-1], "slots")


def test_asking_leaves_everything_as_it_was():
    model, attachment = attached("sct", small_vit(drop_path_rate=0.5))
    model.train()
    torch.manual_seed(1)
    random, state = torch.get_rng_state(), {name: t.clone() for name, t in model.state_dict().items()}
    recipe = Recipe(epochs=1, lr=1e-3, warmup_epochs=0)
    with fast_path.open_plan(model, attachment, PIXELS, HALF, recipe, "float32") as path:
        assert path.start == "block 0, behind its attention"
        assert torch.equal(random, torch.get_rng_state()) and model.training
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())
    plain, _ = attached()
    with fast_path.class_token_alone(plain, IMAGES):
        assert type(plain.blocks[-1]) is not type(plain.blocks[0])
    assert type(plain.blocks[-1]) is type(plain.blocks[0])


# Both


@pytest.mark.parametrize("method", [name for name in all_methods() if name != "compose"])
def test_every_method_has_the_same_gradients_on_its_shortest_path(method):
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
        loss = cross_entropy(logits, labels) + (attachment.penalty() if attachment.penalty else 0.0)
        return logits, *torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)

    plain = step(fast_path.ForwardPlan(forward=model.train()))
    with fast_path.open_plan(model, attachment, PIXELS, HALF, recipe, "float32") as path:
        shortest = step(path)
    for one, other in zip(shortest, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5 + 1e-4 * float(other.abs().max()))


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


# A stopped training


@pytest.mark.parametrize("method", ["linear", "partial", "sct"])
def test_a_stopped_training_goes_on_to_the_same_bits(method):
    whole = trained(method)
    stopped, state = trainer(method), {}

    class Stop(Exception):
        pass

    def boundary(_):
        if stopped.step == 4:
            state.update(stopped.state())
            raise Stop

    with pytest.raises(Stop):
        stopped.fit(boundary=boundary)
    again = Trainer(stopped.model, stopped.attachment, DATA, HALF, stopped.recipe, seed=3)
    again.load_state(state)
    again.fit()
    for one, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert again.curve == whole.curve and again.step_seconds > 0
