"""Methods that change the weights of linear layers one by one: counts, starts, traps, dropout, merging."""

import copy

import pytest
import torch

from methods import registry
from methods.layers import body_layers
from tests.conftest import make_context
from tests.method_checks import MODELS, attach, close, count, logits, shape_of, train, trained, vit_b

# name, settings, parameters on ViT-B/16 without head: by the papers' or the releases' own counts where they give them.
VIT_B = [
    ("rlrr", {}, 288_768),
]


@pytest.mark.parametrize(("name", "settings", "expected"), VIT_B)
def test_count_on_vit_b(name, settings, expected):
    model, method = vit_b(), registry.get(name).configure(settings)
    assert method.expected_parameters(model) == expected
    method.attach(model, make_context())
    assert count(model) == expected


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in VIT_B))
def test_merge_leaves_the_plain_model(name, model):
    plain = MODELS[model]()
    backbone, attachment = attach(name, copy.deepcopy(plain))
    assert not train(backbone)
    before = logits(backbone)
    assert not close(before, logits(plain), 1e-3)
    backbone.train()  # merging must not depend on the mode
    attachment.merge()
    assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)


def test_rlrr_starts_at_weights_that_are_rescaled_by_its_distributions():
    model, _ = attach("rlrr")
    rescaling = model.blocks[1].mlp.fc2.reweighting
    assert rescaling.columns.shape == (1, 128)
    assert 0.9 * (6 / 128) ** 0.5 < float(rescaling.columns.detach().abs().max()) <= (6 / 128) ** 0.5
    assert 0.8 * 6**0.5 < float(rescaling.rows.detach().abs().max()) <= 6**0.5
    assert not rescaling.shift.any()
    scale = torch.cat([p.detach() for n, p in trained(model).items() if n.endswith(".scale")])
    assert float(scale.mean()) == pytest.approx(1, abs=0.01)
    assert float(scale.std()) == pytest.approx(0.02, rel=0.2)


def test_rlrr_takes_queries_keys_and_values_as_three_matrices():
    model, _ = attach("rlrr")
    layer = model.blocks[0].attn.qkv
    rescaling = layer.reweighting
    with torch.no_grad():
        weight, bias = rescaling(layer.weight, layer.bias)
        for part in range(3):
            rows = slice(32 * part, 32 * part + 32)
            factor = 1 + torch.outer(rescaling.rows[rows], rescaling.columns[part])
            assert torch.allclose(weight[rows], layer.weight[rows] * factor)
        assert torch.equal(bias, layer.bias + rescaling.shift)


def test_rlrr_rescales_what_merges_patches_and_gives_no_shift_to_a_layer_without_bias():
    model, _ = attach("rlrr", "swin")
    linears = body_layers(model, torch.nn.Linear)
    assert all(hasattr(layer, "reweighting") for layer in linears)
    without = [layer for layer in linears if layer.bias is None]
    assert without
    assert all(layer.reweighting.shift is None for layer in without)
    assert not hasattr(model.patch_embed.proj, "slots")
    assert not hasattr(model.patch_embed.norm, "slots")


def test_rlrr_drops_single_entries_of_its_branches_at_rates_that_rise():
    model, _ = attach("rlrr", branch_dropout=0.4)
    rates = [block.slots["attention_output"][0].p for block in model.blocks]
    assert rates == pytest.approx([0, 0.2, 0.4])
    assert rates == [block.slots["mlp_output"][0].p for block in model.blocks]
    assert [block.mlp.fc2.dropout.p for block in model.blocks] == [0.1] * 3
    assert all(type(block.attn.proj).__name__ == "ReweightedLinear" for block in model.blocks)
