"""CVPT beside its definition written out in double precision, at every place and on every kind of backbone."""

import pytest
import torch
from torch.nn import functional

from methods import testbed
from methods.base import MethodError
from methods.blocks import blocks
from methods.registry import get
from tests.conftest import batch, make_context
from tests.method_checks import attach, count, vit_b
from tests.references import attention, classified, double_vit, embedded, given, small_images, worst


def by_hand(layer, x, prompts):
    """Cross attention head by head: x [batch, tokens, channels], prompts [P, channels]."""
    if getattr(layer, "q_proj", None) is not None:
        q, k, v = layer.q_proj(x), layer.k_proj(prompts), layer.v_proj(prompts)
    else:
        bias = layer.qkv.bias
        if getattr(layer, "q_bias", None) is not None:
            bias = torch.cat([layer.q_bias, layer.k_bias, layer.v_bias])
        elif bias is None:
            bias = x.new_zeros(3 * x.shape[-1])
        weights, biases = layer.qkv.weight.chunk(3), bias.chunk(3)
        q, k, v = (t @ w.T + b for t, w, b in zip((x, prompts, prompts), weights, biases, strict=True))
    each, outputs = q.shape[-1] // layer.num_heads, []
    for head in range(layer.num_heads):
        here = slice(head * each, (head + 1) * each)
        queries, keys, factor = q[..., here], k[:, here], each**-0.5
        if hasattr(layer, "logit_scale"):
            queries = queries / queries.norm(dim=-1, keepdim=True)
            keys = keys / keys.norm(dim=-1, keepdim=True)
            factor = layer.logit_scale[head].exp()
        outputs.append((factor * queries @ keys.T).softmax(-1) @ v[:, here])
    return layer.proj(torch.cat(outputs, -1))


def written_out(vit, parameters, images, insert):
    x = embedded(vit, images)
    for block, prompts in zip(vit.blocks, parameters, strict=True):

        def seen(x, block=block, prompts=prompts):
            return by_hand(block.attn, x, prompts)

        if insert == 1:
            x = x + seen(x)
        h = attention(block.attn, block.norm1(x))
        x = x + (h + seen(x) if insert == 2 else h)
        if insert == 3:
            x = x + seen(x)
        h = block.norm2(x)
        x = x + block.mlp(h + seen(x) if insert == 4 else h)
        if insert == 5:
            x = x + seen(x)
    return classified(vit, x)


@pytest.mark.parametrize("insert", [1, 2, 3, 4, 5])
def test_it_computes_what_its_definition_says(insert):
    model, images = double_vit(), small_images()
    attach("cvpt", model, tokens=3, insert=insert)
    expected = written_out(double_vit(), given(model).values(), images, insert)
    assert max(worst(model, expected, images)) < 1e-10


@pytest.mark.parametrize("name", ["vit", "naflex", "dinov3", "dinov3_qkvb", "eva02", "beit", "swin", "swin_v2"])
@torch.no_grad()
def test_the_layers_of_every_kind_are_its_blocks_own(name):
    model = testbed.small(name)
    get("cvpt").configure({"tokens": 3}).attach(model, make_context())
    for block in (blocks(model)[0], blocks(model)[-1]):
        (module,) = block.slots["after_attention"]
        d = module.prompts.shape[1]
        x = torch.randn(2, *((4, 4) if "swin" in name else (17,)), d)
        expected = x.flatten(1, -2) + by_hand(block.attn, x.flatten(1, -2), module.prompts)
        torch.testing.assert_close(module(x), expected.view_as(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("insert", "slot"), [(2, "attention_output"), (4, "mlp_input")])
def test_a_branch_that_is_dropped_takes_what_is_seen_with_it(insert, slot):
    model = testbed.small_vit()
    attach("cvpt", model, insert=insert)
    block, x = model.blocks[0], torch.randn(2, 17, 32)
    for path in (block.drop_path1, block.drop_path2):
        path.forward = torch.zeros_like
    assert torch.equal(block(x), x) and len(block.slots[slot]) == 1


def test_the_count_on_vit_b_and_the_start():
    model, method = vit_b(), get("cvpt")()
    assert method.expected_parameters(model) == 92_160
    method.attach(model, make_context())
    assert count(model) == 92_160
    start = get("cvpt")().start(12, 768, torch.Generator().manual_seed(0))
    bound = float(torch.nn.init._calculate_fan_in_and_fan_out(torch.empty(12, 10, 768))[0] + 12 * 768)
    assert 0.0187 < float(start.abs().max()) <= (6 / bound) ** 0.5 == pytest.approx(0.01884, abs=1e-5)


def test_each_image_has_a_dropout_of_its_own():
    model, _ = attach("cvpt", dropout=0.5)
    (module,) = model.blocks[0].slots["after_attention"]
    x = batch(1)[0].new_ones(2, 17, 32)
    out = module.train()(x)
    assert not functional.mse_loss(out[0], out[1]) < 1e-8
    out = module.eval()(x)
    assert torch.allclose(out[0], out[1])


@pytest.mark.parametrize(("settings", "field"), [({"insert": 6}, "insert"), ({"insert": 0}, "insert")])
def test_bad_settings_are_refused_by_name(settings, field):
    with pytest.raises(MethodError, match=field):
        get("cvpt").configure(settings)
