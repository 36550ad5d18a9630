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
    ("snell", {}, 5_309_184),
    ("snella", {}, 5_309_400),
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


def kernels(model):
    return [kernel for block in model.blocks for kernel in block.attn.qkv.slots["parallel"][0].kernels]


@pytest.mark.parametrize("name", ["snell", "snella"])
@torch.no_grad()
def test_a_masked_kernel_keeps_its_large_entries_and_the_released_one_squares_them(name):
    masked, released = (attach(name, sparsity=0.75, variant=variant)[0] for variant in ("masked", "released"))
    for ours, theirs in zip(kernels(masked), kernels(released), strict=True):
        update, kernel = ours.update(), ours.kernel()
        kept = update != 0
        assert float(kept.float().mean()) == pytest.approx(0.25)
        assert torch.equal(update[kept], kernel[kept])
        assert float(kernel[kept].abs().min()) > float(kernel[~kept].abs().max())
        assert torch.equal(theirs.update(), update * update.abs())


@torch.no_grad()
def test_a_kernel_is_a_tenth_of_the_difference_of_two_distances():
    kernel = kernels(attach("snell", rank=6)[0])[1]
    expected = torch.empty(32, 32)
    for i in range(32):
        for o in range(32):
            first, second = (kernel.inputs[h, i] - kernel.outputs[h, o] for h in range(2))
            expected[i, o] = 0.1 * (first.norm() - second.norm())
    assert torch.allclose(kernel.kernel(), expected, atol=1e-6)
    assert float(kernel.inputs.abs().max()) <= (32 * 3) ** -0.5


@torch.no_grad()
def test_snella_mixes_its_kernel_with_a_softmax_over_outputs():
    kernel = kernels(attach("snella")[0])[0]
    assert kernel.mix.tolist() == [1, 1, 0]
    plain = super(type(kernel), kernel).kernel()
    assert torch.allclose((kernel.update() - plain).sum(1), torch.ones(32), atol=1e-5)


def test_snell_trains_the_class_token_and_drops_no_input_of_the_output_projection():
    model, _ = attach("snell")
    assert "cls_token" in trained(model)
    rates = {name: getattr(model.blocks[0].attn, name).slots["parallel"][0].dropout.p for name in ("qkv", "proj")}
    assert rates == {"qkv": 0.1, "proj": 0.0}
    model.train()
    branch = model.blocks[0].attn.qkv.slots["parallel"][0]
    branch.dropout.p, branch.drop_path.drop_prob = 0.0, 0.5
    left_out = branch(torch.ones(64, 1, 32)).unflatten(-1, (3, 32)).abs().sum((1, 3)) == 0
    assert 0 < int(left_out.sum()) < left_out.numel()
    assert bool((left_out.any(1) & ~left_out.all(1)).any())  # each of the three for itself
