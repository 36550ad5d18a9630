"""Starts and knobs of methods as their authors' code has them: distributions, ranges, defaults, released variants."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from harness.plans import tuning
from harness.training.fast_path import class_token_alone
from methods import testbed
from methods.base import MethodError
from methods.registry import all_methods, get
from tests.conftest import batch, make_context, small_swin, small_vit
from tests.method_checks import attach, close, count, logits, trained, vit_b

WIDTH = 192  # of `wide`, whose patches have 8 * 8 * 3 = 192 values, too
XAVIER = math.sqrt(6 / (192 + WIDTH))
CUT = 0.8796  # standard deviation of a unit normal cut at two standard deviations

# name, settings, end of the parameters' names, largest value, standard deviation
STARTS = [
    ("adaptformer", {}, "down.weight", WIDTH**-0.5, (3 * WIDTH) ** -0.5),  # 0.021 on ViT-B
    ("adapter_plus", {}, "down.weight", 0.02, 0.01 * CUT),
    ("adapter_plus", {}, "up.weight", 0.02, 0.01 * CUT),
    ("adapter_houlsby", {}, "down.weight", 0.02, 0.01 * CUT),
    ("adapter_houlsby", {}, "up.weight", 0.02, 0.01 * CUT),
    ("convpass", {"start": "xavier"}, "convolution.weight", math.sqrt(6 / (2 * 9 * 8)), math.sqrt(2 / (2 * 9 * 8))),
    ("vpt_deep", {}, "prompts", XAVIER, XAVIER / 3**0.5),  # 0.036 on ViT-B/16
    ("vqt", {}, "queries", XAVIER, XAVIER / 3**0.5),
    ("mona", {}, "filters.0.bias", 1 / 3, 1 / 27**0.5),
    ("mona", {}, "filters.1.bias", 1 / 5, 1 / 75**0.5),
    ("mona", {}, "filters.2.bias", 1 / 7, 1 / 147**0.5),
    ("mona", {}, "mix.bias", 1 / 8, 1 / 192**0.5),
    ("compacter", {"variant": "released"}, "down.s", math.sqrt(12 / (48 + 1)), math.sqrt(4 / (48 + 1))),
    ("compacter", {"variant": "released"}, "up.t", math.sqrt(12 / (48 + 1)), math.sqrt(4 / (48 + 1))),
]


DROPPING = [name for name, method in all_methods().items() if "dropout" in method.Config.__dataclass_fields__]


def wide():
    """A ViT with enough channels to tell distributions apart."""
    return small_vit(embed_dim=WIDTH, depth=6)


def values(model, end):
    """All trained values of the parameters whose names end so."""
    return torch.cat([p.detach().flatten() for n, p in trained(model).items() if n.endswith(end)])


@pytest.mark.parametrize(("name", "settings", "end", "largest", "std"), STARTS)
def test_a_start_has_the_range_and_the_spread_of_the_release(name, settings, end, largest, std):
    model, _ = attach(name, wide(), **settings)
    found = values(model, end)
    assert 0.95 * largest < float(found.abs().max()) <= largest * (1 + 1e-6)
    assert float(found.std()) == pytest.approx(std, rel=0.1)


def test_convpass_starts_its_convolution_as_the_identity_unless_told():
    convolution = attach("convpass")[0].blocks[0].slots["mlp_parallel"][0].convolution
    assert torch.equal(convolution.weight, torch.nn.init.dirac_(torch.empty(8, 8, 3, 3)))
    assert not convolution.bias.any()
    xavier, _ = attach("convpass", start="xavier")
    assert close(logits(xavier), logits(small_vit()), 1e-6)  # the up-projection is zero in both


@pytest.mark.parametrize("name", DROPPING)
def test_dropout_is_off_in_a_model_that_is_in_evaluation_mode(name):
    model, _ = attach(name, dropout=0.5)
    assert not any(m.training for m in model.modules() if isinstance(m, torch.nn.Dropout) and m.p == 0.5)


def test_hydra_drops_out_a_fifth_of_its_codes():
    model, _ = attach("hydra", rank=400)
    branch = model.blocks[0].mlp.fc2.parallel_branch
    dropped = branch.train().dropout(torch.ones(100, 400)) == 0
    assert float(dropped.float().mean()) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("name", ["vpt_shallow", "vpt_deep", "gate_vpt"])
def test_tuning_tries_several_prompt_lengths(name):
    method = get(name)
    assert set(method.search_space["tokens"]) == {1, 5, 10, 50, 100, 200}
    default = {"lr": method.recipe["lr"], "weight_decay": 1e-4}
    default |= {key: getattr(method.Config(), key) for key in method.search_space if key not in default}
    assert all(default[key] in values for key, values in method.search_space.items())
    drawn = tuning.draw(name, method.search_space, default, 8)
    assert len({setting["tokens"] for setting in drawn}) > 2


def test_gates_start_almost_shut_and_prompts_are_dropped_out():
    model, _ = attach("gate_vpt")
    gates = [block.slots["output"][0].logit.item() for block in model.blocks[:-1]]
    assert gates == [-5.0, -5.0]
    assert model.blocks[0].slots["input"][0].dropout.p == 0.1
    assert attach("gate_vpt", gate_logit=-10.0)[0].blocks[0].slots["output"][0].logit.item() == -10.0


def temperatures(model):
    return [block.attn.qkv.slots["output"][0].temperature for block in model.blocks]


@pytest.mark.parametrize(("value", "bound"), [(0.0, 0.01), (-3.0, 0.01), (0.004, 0.01), (11.0, 10.0)])
def test_a_temperature_out_of_its_range_counts_as_the_bound(value, bound):
    outputs, gradients = [], []
    for start in (value, bound):
        model, _ = attach("gate_vpt", tokens=5)
        temperatures(model)[1].data.fill_(start)
        outputs.append(model(batch()[0]))
        gradients.append(torch.autograd.grad(outputs[-1].square().sum(), temperatures(model)[1])[0])
    assert outputs[0].isfinite().all()
    assert torch.allclose(outputs[0], outputs[1], rtol=1e-5, atol=1e-6)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-4)
    assert gradients[0] != 0  # it is not stuck there


def test_training_cannot_take_a_temperature_out_of_its_range():
    attached = testbed.attach(get("gate_vpt"))
    for temperature, start in zip(temperatures(attached.model), (0.02, 1.0, 9.99), strict=True):
        temperature.data.fill_(start)
    testbed.train(attached, steps=5, lr=3.0)
    low, high = torch.tensor([0.01, 10.0])
    found = torch.stack(temperatures(attached.model)).detach()
    assert bool(((found >= low) & (found <= high)).all())
    assert attached.logits().isfinite().all()


def test_vqt_drops_out_its_queries_for_each_image_anew():
    model, _ = attach("vqt")
    torch.nn.init.normal_(model.norm.slots["output"][0].weights)
    images = batch(1)[0].expand(2, -1, -1, -1)
    model.train()
    one, other = model(images)
    assert not torch.allclose(one, other)
    model.eval()
    one, other = model(images)
    assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_dtl_reads_the_mean_of_the_patches_before_the_norm(pool):
    shape = {"global_pool": pool, "reg_tokens": 2, "fc_norm": False}
    model, plain = small_vit(**shape), small_vit(**shape)
    attach("dtl", model, readout="patches")
    images = batch()[0]
    x = plain.blocks(plain._pos_embed(plain.patch_embed(images)))
    expected = plain.head(plain.norm(x[:, 3:].mean(dim=1)))
    assert torch.allclose(model(images), expected, atol=1e-5)
    assert not close(logits(model), logits(plain), 1e-3)
    with class_token_alone(model, images):  # a shortcut of the trainer, wrong where the patches are read
        assert torch.allclose(model(images), expected, atol=1e-5)


def test_dtl_refuses_to_read_patches_on_swin_before_anything_is_plugged():
    model = small_swin()
    with pytest.raises(MethodError, match="readout='patches' must be 'backbone' here"):
        attach("dtl", model, readout="patches")
    assert not trained(model)


def test_compacter_as_released_trains_the_norms_and_starts_near_the_identity():
    model, plain = attach("compacter", variant="released")[0], small_vit()
    rule = model.blocks[0].slots["mlp_output"][0].down.rule
    assert float(rule.matrices.detach().std()) == pytest.approx(1e-4, rel=0.3)  # 64 values
    norms = {n for n in trained(model) if "norm" in n}
    assert norms == {n for n, _ in plain.named_parameters() if "norm" in n}
    assert close(logits(model), logits(plain), 1e-5)
    assert not torch.equal(logits(model), logits(plain))


def test_compacter_as_released_counts_the_norms():
    method, model = get("compacter").configure({"variant": "released"}), vit_b()
    assert method.expected_parameters(model) == 95_488  # 57,088 and 25 norms of 2 * 768
    method.attach(model, make_context())
    assert count(model) == 95_488


def test_compacter_as_released_is_a_sum_of_kronecker_products():
    model, _ = attach("compacter", variant="released")
    adapter, x = model.blocks[1].slots["attention_output"][0], torch.randn(3, 32)
    torch.nn.init.normal_(adapter.down.rule.matrices)
    down, up = (
        sum(torch.kron(a, torch.outer(s, t)) for a, s, t in zip(w.rule.matrices, w.s, w.t, strict=True))
        for w in (adapter.down, adapter.up)
    )
    assert torch.allclose(adapter(x), x + functional.gelu(x @ down) @ up, rtol=1e-4, atol=1e-4)
