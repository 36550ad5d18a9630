"""DyT: the release's gates and training pass with given noise, and what is computed of tokens that are left out."""

from dataclasses import replace

import pytest
import torch

from harness.training.cost import counted
from methods import dyt, registry, testbed
from methods.base import MethodError
from methods.blocks import blocks, plug, width
from tests.method_checks import attach, vit_b
from tests.methods.test_golden import TOLERANCE, relative, with_values
from tests.two_passes import first_pass, in_turn, same_gradients


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


def test_count_on_vit_b():
    assert registry.get("dyt").configure({}).expected_parameters(vit_b()) == 313_548  # as counted on the release


@pytest.mark.parametrize(
    ("field", "value"), [("bottleneck", 0), ("scale", 0.0), ("rate", 1.5), ("rate_weight", 0.0), ("temperature", 0.0)]
)
def test_bad_config_is_refused(field, value):
    with pytest.raises(MethodError, match=field):
        registry.get("dyt").configure({field: value})
