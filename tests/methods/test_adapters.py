"""Adapters: counts on ViT-B, the definition against plain formulas, merging, refusals."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from methods.base import MethodError
from methods.registry import get
from tests.conftest import batch, make_context, small_swin, small_vit
from tests.method_checks import MODELS, attach, count, train, trained, vit_b

# name, settings, parameters on ViT-B/16 without head; the comment gives where the number stands.
COUNTS = [
    ("adaptformer", {}, 156_768),  # 0.16M in VTAB-1K comparisons at h = 8
    ("adaptformer", {"variant": "sct_release"}, 1_798_272),  # protocol.md 1.6, executed from the SCT repository
    ("adapter_pfeiffer", {}, 156_768),  # NOAH issue 1: 0.157M
    ("adapter_pfeiffer", {"variant": "sct_release"}, 1_779_840),  # protocol.md 1.6
    ("adapter_pfeiffer", {"variant": "noah_release"}, 156_768),  # protocol.md 2
    ("adapter_houlsby", {}, 313_536),
    ("adapter_plus", {}, 165_984),  # 0.1660 in the OSU study; the paper's 0.20M add the mean head
    ("convpass", {}, 327_552),  # 0.33M in the paper, 0.3276 in the OSU study
    ("convpass", {"positions": "attention"}, 163_776),  # 0.16M in the paper
    ("repadapter", {}, 239_808),  # 0.2398 in the OSU study; the paper's 0.22M are 221,184 weights without biases
    ("bi_adaptformer", {}, 589_824),  # 0.071 MB in the paper, at one bit each
    ("mona", {}, 2_684_928),
]
IDS = [f"{name}-{'-'.join(settings.values())}" for name, settings, _ in COUNTS]


@pytest.mark.parametrize(("name", "settings", "parameters"), COUNTS, ids=IDS)
def test_the_count_on_vit_b_is_the_published_one(name, settings, parameters):
    method = get(name).configure(settings)
    model = vit_b()
    assert method.expected_parameters(model) == parameters
    method.attach(model, make_context())
    assert count(model) == parameters


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize(("name", "settings", "parameters"), COUNTS, ids=IDS)
def test_start_gradients_and_names(name, settings, parameters, kind):
    model = MODELS[kind]()
    names, images = set(dict(model.named_parameters())), batch()[0]
    before = model(images)
    attach(name, model, **settings)
    assert names <= set(dict(model.named_parameters()))
    containers = (torch.nn.ModuleDict, torch.nn.ModuleList)
    assert not any(m.training for m in model.modules() if not isinstance(m, containers))
    identity = get(name).identity_at_start and "release" not in settings.get("variant", "")
    assert torch.allclose(model(images), before, atol=1e-6) == identity
    assert not train(model, lr=0.01)


@pytest.mark.parametrize("kind", ["vit", "swin"])
def test_repadapter_merges_into_timms_own_modules(kind):
    model, plain = MODELS[kind](), MODELS[kind]()
    _, attachment = attach("repadapter", model, scale=0.5)
    train(model, lr=0.01)
    images = batch()[0]
    before = model(images)
    attachment.merge()
    after = model(images)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert (after - plain(images)).abs().max() > 1e-3
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_merging_leaves_other_methods_plugged_in():
    model = small_vit()
    _, attachment = attach("repadapter", model)
    attach("adaptformer", model, variant="sct_release", bottleneck=4)
    train(model, lr=0.01)
    images = batch()[0]
    before = model(images)
    attachment.merge()
    assert (model(images) - before).abs().max() <= 1e-4 * before.abs().max()
    assert all(len(block.slots["mlp_parallel"]) == 1 for block in model.blocks)


def test_repadapter_does_not_offer_to_merge_where_it_would_be_wrong():
    assert attach("repadapter", small_vit(qkv_bias=False))[1].merge is None
    padded = small_swin()
    padded.set_input_size((40, 40), window_size=(4, 4), always_partition=True)
    assert attach("repadapter", padded)[1].merge is None


def test_repadapter_is_a_grouped_affine_map():
    model = small_vit()
    attach("repadapter", model, groups=4, scale=2.0)
    adapter = model.blocks[0].slots["mlp_input"][0]
    torch.nn.init.normal_(adapter.up)
    torch.nn.init.normal_(adapter.bias)
    torch.nn.init.normal_(adapter.down.bias)
    x = torch.randn(3, 5, 32)
    hidden = x @ adapter.down.weight.T + adapter.down.bias
    columns = [hidden[..., 2 * g : 2 * g + 2] @ adapter.up[g].T for g in range(4)]
    expected = x + 2 * (torch.cat(columns, -1) + adapter.bias)
    assert torch.allclose(adapter(x), expected, atol=1e-5)
    matrix, shift = adapter.as_affine()
    assert torch.allclose(x.double() @ matrix.T + shift, expected.double(), atol=1e-5)


def test_adapters_stand_behind_the_layers_before_the_residual_sum():
    model = small_vit()
    attach("adapter_houlsby", model, variant="sct_release", bottleneck=5)
    block, x = model.blocks[1], torch.randn(2, 17, 32)
    first, second = block.slots["attention_output"][0], block.slots["mlp_output"][0]
    plain = lambda a, h: h + a.up(functional.gelu(a.down(h)))  # noqa: E731
    y = x + plain(first, block.attn(block.norm1(x)))
    y = y + plain(second, block.mlp(block.norm2(y)))
    assert torch.allclose(block(x), y, atol=1e-5)


def test_adapter_of_the_vpt_release_trains_one_bias_alone():
    model, images = small_vit(), batch()[0]
    before = model(images)
    attach("adapter_pfeiffer", model, variant="vpt_release", bottleneck=4)
    assert torch.equal(model(images), before)
    train(model, lr=0.01)
    learnt = {n.rpartition(".slots.")[2] for n, p in trained(model).items() if bool(p.any())}
    assert learnt == {"mlp_output.0.up.bias"}


def test_adapter_of_the_noah_release_has_its_activation():
    model = small_vit()
    attach("adapter_pfeiffer", model, variant="noah_release")
    adapter, h = model.blocks[0].slots["mlp_output"][0], torch.randn(3, 32)
    code = adapter.down(h)
    assert torch.allclose(adapter(h), h + adapter.up(code * torch.sigmoid(1.702 * code)), atol=1e-6)
    assert 0.01 < float(adapter.up.weight.std()) < 0.03


def test_adaptformer_of_the_sct_release_norms_its_input():
    model = small_vit()
    attach("adaptformer", model, variant="sct_release", bottleneck=5)
    block, x = model.blocks[0], torch.randn(2, 17, 32)
    adapter = block.slots["mlp_parallel"][0]
    y = x + block.attn(block.norm1(x))
    side = adapter.up(adapter.down(functional.layer_norm(y, (32,))).relu())
    assert torch.allclose(block(x), y + block.mlp(block.norm2(y)) + side, atol=1e-5)


@pytest.mark.parametrize("registers", [0, 3])
def test_convpass_convolves_patches_as_a_grid_and_prefix_tokens_alone(registers):
    model = small_vit(reg_tokens=registers)
    attach("convpass", model, scale=3.0)
    block, prefix = model.blocks[0], 1 + registers
    bypass = block.slots["attention_parallel"][0]
    for weight in bypass.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x = torch.randn(2, prefix + 16, 32)
    gelu = lambda h: h * torch.sigmoid(1.702 * h)  # noqa: E731
    h = gelu(bypass.down(block.norm1(x)))
    grid = h[:, prefix:].reshape(2, 4, 4, 8).permute(0, 3, 1, 2)
    patches = bypass.convolution(grid).permute(0, 2, 3, 1).reshape(2, 16, 8)
    alone = h[:, :prefix] @ bypass.convolution.weight[:, :, 1, 1].T + bypass.convolution.bias
    expected = 3 * bypass.up(gelu(torch.cat([alone, patches], 1)))
    assert torch.allclose(bypass(x), expected, atol=1e-5)


def test_mona_mixes_three_filter_sizes():
    model = small_vit()
    attach("mona", model, bottleneck=6)
    layer = model.blocks[0].slots["output"][0]
    torch.nn.init.normal_(layer.scale_normed)
    x = torch.randn(2, 17, 32)
    h = layer.down(layer.norm(x) * layer.scale_normed + x * layer.scale_raw)

    def convolve(image):
        z = image + sum(f(image) for f in layer.convolution.filters) / 3
        return z + layer.convolution.mix(z)

    patches = convolve(h[:, 1:].reshape(2, 4, 4, 6).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).reshape(2, 16, 6)
    token = convolve(h[:, 0, :, None, None])[:, :, 0, 0]
    expected = x + layer.up(functional.gelu(torch.cat([token[:, None], patches], 1)))
    assert torch.allclose(layer(x), expected, atol=1e-5)


def test_binary_weights_take_two_values_and_pass_gradients_on():
    model = small_vit()
    info = attach("bi_adaptformer", model)[1].info
    assert info["stored_bytes"] == 3 * (2 * 32 * 32 // 8 + 16)
    down = model.blocks[0].slots["mlp_parallel"][0].down
    values = down.quantised().detach()
    assert len(values.round(decimals=6).unique()) == 2
    weight = down.weight
    median = 0.6744897501960817  # of the upper half of a standard normal
    found = (values.unique() - weight.mean()) / weight.std()
    assert torch.allclose(found, torch.tensor([-median, median]).repeat_interleave(len(found) // 2), atol=1e-4)
    down.quantised()[0, 0].backward()
    assert weight.grad[0, 0] > 0.9


BAD = [
    ("adaptformer", {"bottleneck": 0}, "bottleneck"),
    ("adaptformer", {"scale": -1.0}, "scale"),
    ("adaptformer", {"variant": "paper2"}, "variant"),
    ("adapter_pfeiffer", {"bottleneck": 0}, "bottleneck"),
    ("adapter_houlsby", {"variant": "x"}, "variant"),
    ("adapter_plus", {"drop_path": 1.0}, "drop_path"),
    ("convpass", {"scale": 0.0}, "scale"),
    ("convpass", {"positions": "mlp"}, "positions"),
    ("convpass", {"start": "zero"}, "start"),
    ("repadapter", {"groups": 3}, "groups"),
    ("bi_adaptformer", {"bottleneck": 0}, "bottleneck"),
    ("mona", {"dropout": 1.0}, "dropout"),
]


@pytest.mark.parametrize(("name", "settings", "field"), BAD)
def test_bad_settings_are_refused_by_name(name, settings, field):
    with pytest.raises(MethodError, match=field):
        get(name).configure(settings)


def test_groups_that_do_not_divide_the_width_are_refused_before_anything_is_plugged():
    model = small_vit()
    with pytest.raises(MethodError, match="groups"):
        attach("repadapter", model, bottleneck=9, groups=9)
    assert not trained(model) and not hasattr(model.blocks[0], "slots")
