"""Methods that run the model twice in a training step: PACE, DyT and MoSA."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from harness.training.cost import counted
from methods import dyt, pace, registry, testbed
from methods.base import Batch, MethodError
from methods.blocks import blocks, plug, width
from methods.objective import recorded
from tests import goldens
from tests.conftest import small_vit
from tests.method_checks import attach, close, logits, train, trained, vit_b
from tests.methods.test_golden import TOLERANCE, relative, with_values


def first_pass(model, attachment, images, labels):
    """A batch as a training step gives it to the penalty, its logits in the model's own precision."""

    def run():
        with recorded(model, attachment.features) as features:
            out = model(images)
        return Batch(
            images=images,
            targets=labels,
            logits=out,
            features=features,
            loss=lambda other: cross_entropy(other, labels),
            forward=run,
        )

    return run()


def in_turn(monkeypatch, module, name, numbers):
    """Let a module's drawing function give these tensors, one after the other; returns what is left of them."""
    left = list(numbers)

    def draw(like, *shape):
        drawn = left.pop(0).to(like.dtype)
        assert not shape or drawn.shape == shape
        return drawn

    monkeypatch.setattr(module, name, draw)
    return left


def same_gradients(golden, model, total):
    expected = {n.removeprefix("traingrad:"): g for n, g in golden.extra.items() if n.startswith("traingrad:")}
    parameters = {n: p for n, p in trained(model).items() if n in expected}
    assert set(parameters) == set(expected) == set(trained(model))
    found = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    for ours, name in zip(found, parameters, strict=True):
        assert relative(ours, expected[name]) < TOLERANCE, name


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("pace", {}, 2_203_104),  # as counted on the releases
        ("dyt", {}, 313_548),
    ],
)
def test_count_on_vit_b(name, config, expected):
    method = registry.get(name).configure(config)
    assert method.expected_parameters(vit_b()) == expected


def test_a_training_pass_of_pace_is_the_releases(monkeypatch):
    golden, model, attachment = with_values("pace")
    labels, extra = golden.extra["labels"], golden.extra
    layers = [*(f"blocks.1.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")), "head"]
    draws = [extra[f"normal:{layer}"].split(len(labels)) for layer in layers]
    left = in_turn(monkeypatch, pace, "normal_like", [half for halves in zip(*draws, strict=True) for half in halves])
    batch = first_pass(model.train(), attachment, golden.images, labels)
    own, penalty = batch.loss(batch.logits), attachment.penalty(batch)
    assert not left
    assert relative(batch.logits.detach(), extra["train_logits_first"]) < TOLERANCE
    assert relative(own.detach(), extra["cls_loss"]) < TOLERANCE
    assert relative((own + penalty).detach(), extra["total_loss"]) < TOLERANCE
    same_gradients(golden, model, own + penalty)


def levels(model):
    layers = [layer for layer in model.modules() if isinstance(layer, pace.NoisyChange | pace.LogitNoise)]
    return [layer.level for layer in layers]


def test_the_noise_of_pace_falls_with_depth():
    model, _ = attach("pace", sigma=0.9)  # three blocks
    assert levels(model) == pytest.approx([0.0] * 4 + [0.9] * 4 + [0.6] * 4 + [0.3])
    swin, _ = attach("pace", "swin", sigma=1.0)  # two stages of two blocks
    assert levels(swin) == pytest.approx([1.0] * 4 + [0.8] * 4 + [0.6] * 5 + [0.4] * 4 + [0.2])
    assert torch.equal(goldens.load("pace").extra["sigma_of_block"], torch.tensor([0, 1.2, 0.6], dtype=torch.float64))


def test_the_noise_of_pace_is_on_the_change_alone_and_the_same_for_all_tokens():
    model, attachment = attach("pace")
    layer, x = model.blocks[1].mlp.fc1.train(), torch.ones(2, 5, 32)
    assert torch.equal(layer(x), small_vit().blocks[1].mlp.fc1(x))  # nothing is changed yet
    with torch.no_grad():
        layer.change.a.fill_(0.1)
    out = layer(x).detach()
    assert torch.equal(out[:, :1].expand_as(out), out) and not close(out[0], out[1])
    model.train()
    noisy, again = (model(torch.ones(2, 3, 32, 32)).detach() for _ in range(2))
    assert not close(noisy, again) and attachment.forward_passes == 2


def test_pace_takes_its_noise_off_the_classifier_when_it_merges():
    model, attachment = attach("pace")
    train(model)
    before = logits(model)
    attachment.merge()
    assert close(logits(model), before) and type(model.head) is torch.nn.Linear
    _, swin = attach("pace", "swin")
    assert swin.merge is None  # between its stages are layers without bias


def routes(model):
    return [module for module in model.modules() if isinstance(module, dyt.Route)]


def gates_of(batch):
    return torch.stack([gates[:, 1:] for gates in batch.features.values()], dim=1).detach()


def test_a_training_pass_of_dyt_is_the_releases(monkeypatch):
    golden, model, attachment = with_values("dyt")
    extra = golden.extra
    left = in_turn(monkeypatch, dyt, "exponential_like", extra["gumbel_exponentials"].squeeze(-1))
    batch = first_pass(model.train(), attachment, golden.images, extra["labels"])
    own, penalty = batch.loss(batch.logits), attachment.penalty(batch)
    assert not left
    assert torch.equal(gates_of(batch).bool(), extra["train_select"].squeeze(-1))
    assert relative(batch.logits.detach(), extra["train_out"]) < TOLERANCE
    assert relative(own.detach(), extra["ce"]) < TOLERANCE
    rest = extra["token_loss"] + extra["ce_complete"] + extra["kl"]
    assert relative(penalty.detach(), rest) < TOLERANCE
    assert relative((own + penalty).detach(), extra["total"]) < TOLERANCE
    same_gradients(golden, model, own + penalty)


def test_the_gates_and_the_complete_pass_of_dyt_are_the_releases():
    golden, model, attachment = with_values("dyt")
    batch = first_pass(model, attachment, golden.images, golden.extra["labels"])
    assert torch.equal(gates_of(batch).bool(), golden.extra["select_eval"].squeeze(-1))
    with dyt.complete(routes(model)):
        assert relative(model(golden.images).detach(), golden.extra["complete_out"]) < TOLERANCE
    assert relative(model(golden.images).detach(), golden.out) < TOLERANCE


def test_dyt_computes_the_mlp_for_the_tokens_that_it_serves_alone():
    model, attachment = attach("dyt")
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    served = [int((gates > 0.5).sum()) for gates in first_pass(model, attachment, images, None).features.values()]
    with dyt.complete(routes(model)):
        whole = counted(lambda: model(images))
    left_out = 3 * 17 - sum(served)  # of three blocks of 17 tokens
    assert 0 < left_out < 3 * 16
    routers = 3 * 16 * 2 * 32  # which a complete pass does not ask
    assert whole + routers - counted(lambda: model(images)) == left_out * 2 * 2 * 32 * 128


@pytest.mark.parametrize("name", ["vit", "deit_distilled", "dinov3", "eva02", "beit", "swin", "swin_v2"])
@torch.no_grad()
def test_dyt_leaves_out_what_the_gates_say(name):
    model, _ = attach("dyt", testbed.small_model(name))
    block, route = blocks(model)[-1], routes(model)[-1]
    shape = (2, 4, 4) if name.startswith("swin") else (2, 16 + route.gate.prefix)
    x = torch.randn(*shape, width(block), generator=torch.Generator().manual_seed(0))
    (adapter,) = block.slots["mlp_parallel"]
    torch.nn.init.ones_(adapter.up.weight)
    gates = route.gate(x)
    assert gates[:, : route.gate.prefix].all() and not gates.all()
    plain = testbed.small_model(name)
    plug(blocks(plain)[-1], "output", torch.nn.Identity())
    branch = blocks(plain)[-1].feed_forward(blocks(plain)[-1].mlp_reads(x))
    found = block.from_after_attention(x)
    torch.testing.assert_close(found, x + gates.unsqueeze(-1) * branch + adapter(x), rtol=1e-4, atol=1e-5)
    assert (route.gate.prefix > 0) == (not name.startswith("swin"))


def test_dyt_serves_tokens_again_as_the_gates_say_after_a_complete_pass_that_fails():
    model, attachment = attach("dyt")
    batch = first_pass(model.train(), attachment, torch.zeros(2, 3, 32, 32), torch.zeros(2, dtype=torch.long))

    def fails():
        assert all(route.complete for route in routes(model))
        raise InterruptedError

    with pytest.raises(InterruptedError):
        attachment.penalty(replace(batch, forward=fails))
    assert not any(route.complete for route in routes(model))


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("pace", "rank", 0),
        ("pace", "sigma", -1.0),
        ("pace", "consistency", 0.0),
        ("dyt", "bottleneck", 0),
        ("dyt", "scale", 0.0),
        ("dyt", "rate", 1.5),
        ("dyt", "rate_weight", 0.0),
        ("dyt", "temperature", 0.0),
    ],
)
def test_bad_config_is_refused(name, field, value):
    with pytest.raises(MethodError, match=field):
        registry.get(name).configure({field: value})
