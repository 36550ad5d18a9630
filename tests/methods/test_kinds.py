"""Each kind of backbone against plain formulas: counts on published sizes, taps, tokens without a position, merging."""

import math

import pytest
import timm
import torch
from timm.layers import apply_rot_embed_cat

from harness.models.backbones import skeleton
from methods import testbed
from methods.blocks import blocks
from methods.registry import get
from methods.sct.selection import top_channels
from tests.conftest import CLASSES, batch, make_context

VPT, PREFIX = 10, 20
"""Default numbers of prompts and of prefixed keys per block."""


def sct(width):
    """A map on one in eight channels."""
    return (width // 8) ** 2 + width // 8


def transformer(d, blocks, hidden, qkv_bias, norms_after, extra=0):
    """Counts by method for `blocks` blocks of width d with all other biases and `norms_after` norms behind them.

    `qkv_bias`: biases of queries, keys and values, in d. `extra`: further biases per block.
    """
    return {
        "linear": 0,
        "sct": blocks * sct(d),
        "adaptformer": blocks * (2 * d * 8 + 8 + d),
        "norm_tuning": blocks * 4 * d + norms_after * 2 * d,
        "bitfit": blocks * ((qkv_bias + 4) * d + hidden + extra) + d + norms_after * d,
        "vpt_deep": blocks * VPT * d,
        "prefix_tuning": blocks * 2 * PREFIX * d,
        "lora_qv": blocks * 2 * 8 * 2 * d,
    }


TINY_SWIN = {96: 2, 192: 2, 384: 6, 768: 2}
TINY_CONVNEXT = {96: 3, 192: 3, 384: 9, 768: 3}
"""Width to number of blocks."""


def summed(stages, per_block):
    return sum(count * per_block(width) for width, count in stages.items())


FUSED = 12 * 8 * (768 + 3 * 768)
APART = 12 * 3 * 8 * (768 + 768)
COUNTS = {
    "vit_base_patch16_dinov3": {**transformer(768, 12, 3072, 0, 1), "lora": FUSED, "lora:targets": 12 * 8 * 5 * 768},
    "vit_base_patch16_dinov3_qkvb": {**transformer(768, 12, 3072, 2, 1), "lora": FUSED},
    # Gate and values apart, a norm of 2048 between; keys have no bias.
    "eva02_base_patch14_224": {**transformer(768, 12, 2 * 2048, 2, 1, 2048), "lora": APART}
    | {"norm_tuning": 12 * (4 * 768 + 2 * 2048) + 2 * 768},
    "naflexvit_base_patch16_gap": {**transformer(768, 12, 3072, 3, 1), "lora": FUSED},
    "beit_base_patch16_224": {**transformer(768, 12, 3072, 2, 1), "lora": FUSED},
    "deit_base_distilled_patch16_224": {**transformer(768, 12, 3072, 3, 1), "lora": FUSED},
    "vit_pe_core_base_patch16_224": {
        "sct": 12 * sct(768),
        "lora": FUSED,
        "vpt_deep": 12 * VPT * 768,
    },
    "swinv2_tiny_window8_256": {
        "sct": 3 * sct(384) + 2 * sct(768),
        "lora": summed(TINY_SWIN, lambda d: 8 * 4 * d),
        "adaptformer": summed(TINY_SWIN, lambda d: 2 * d * 8 + 8 + d),
        # Version 2 norms what its patch merging gives.
        "norm_tuning": 2 * 96 + summed(TINY_SWIN, lambda d: 4 * d) + 2 * (192 + 384 + 768) + 2 * 768,
    },
    "convnext_tiny": {
        "linear": 0,
        "sct": 4 * sct(384) + 3 * sct(768),
        "lora": summed(TINY_CONVNEXT, lambda d: 2 * 8 * (d + 4 * d)),
        "adaptformer": summed(TINY_CONVNEXT, lambda d: 2 * d * 8 + 8 + d),
        # Stem, blocks, then a norm of its inputs and a convolution between stages, and the head's norm.
        "bitfit": 2 * 96 + summed(TINY_CONVNEXT, lambda d: 7 * d) + 96 + 2 * 192 + 2 * 384 + 768 + 768,
        "norm_tuning": 2 * (96 + 96 + 192 + 384 + 768) + summed(TINY_CONVNEXT, lambda d: 2 * d),
    },
}
SETTINGS = {"lora:targets": ("lora", {"targets": ("fc1",)})}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_on_published_sizes(name):
    model = skeleton(name, 10)
    counted = {}
    for method in COUNTS[name]:
        registered, settings = SETTINGS.get(method, (method, {}))
        counted[method] = get(registered).configure(settings).expected_parameters(model)
    assert counted == COUNTS[name]


def residual_streams(name, model, images):
    """The stream after the attention of every block, from what enters the block and what its branch gives; of a
    ConvNeXt what leaves the block. Channels last."""
    heard = {}

    def keep(module, key, what):
        module.register_forward_hook(lambda _, inputs, output: heard.__setitem__(key, inputs[0] if what else output))

    for number, block in enumerate(blocks(model)):
        keep(block, (number, "out"), 0)
        keep(block, (number, "in"), 1)
        if name not in ("convnext", "convnext_v2"):
            keep(block.norm1 if name in ("swin_v2", "vit_post_norm") else block.attn, (number, "branch"), 0)
    model(images)
    for number, block in enumerate(blocks(model)):
        if (number, "branch") not in heard:
            yield heard[number, "out"].permute(0, 2, 3, 1)
            continue
        scale = block.ls1.gamma if name == "naflex" else getattr(block, "gamma_1", None)
        branch = heard[number, "branch"]
        yield heard[number, "in"] + (branch if scale is None else scale * branch)


PREFIX_TOKENS = {
    "dinov3": 5,
    "dinov3_qkvb": 5,
    "dinov3_plus": 5,
    "deit_distilled": 2,
    "eva02": 1,
    "pe_core": 1,
    "beit": 1,
    "naflex": 4,
}
WITH_REFERENCE = [
    *("deit_distilled", "vit_post_norm", "dinov3", "dinov3_qkvb", "dinov3_plus", "eva02", "pe_core", "beit"),
    *("naflex", "swin_v2", "convnext", "convnext_v2"),
]


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_sct_chooses_the_channels_of_a_plain_double_precision_reference(name):
    images, labels = batch(12)
    labels = labels % 3
    expected = []
    with torch.no_grad():
        for stream in residual_streams(name, testbed.small(name).double(), images.double()):
            tokens = stream.flatten(1, -2)[:, PREFIX_TOKENS.get(name, 0) :]
            norms = [torch.linalg.vector_norm(tokens[labels == c], dim=(0, 1)) for c in range(3)]
            expected.append(torch.stack(norms).mean(dim=0))
    count = len(blocks(testbed.small(name)))
    method = get("sct").configure({"channels": 4, "blocks": tuple(range(count))})
    info = method.attach(testbed.small(name), make_context(images, labels)).info
    assert info["channels"] == [top_channels(s, 4).tolist() for s in expected]


def rotated(x, rope, first, half):
    patches = apply_rot_embed_cat(x[:, :, first:], rope, half=half)
    return torch.cat([x[:, :, :first], patches], dim=2)


def heads(x, count):
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def plain_attention(q, k, v, bias=0.0):
    shares = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (shares @ v).transpose(1, 2).flatten(2)


def projected(attention, x):
    """Queries, keys and values of all heads, by the weights alone."""
    if attention.qkv is None:
        parts = [getattr(attention, f"{part}_proj")(x) for part in "qkv"]
    else:
        parts = (x @ attention.qkv.weight.T).chunk(3, dim=-1)
        if getattr(attention, "q_bias", None) is not None:
            parts = [parts[0] + attention.q_bias, parts[1], parts[2] + attention.v_bias]
        elif attention.qkv.bias is not None:
            parts = [p + b for p, b in zip(parts, attention.qkv.bias.chunk(3), strict=True)]
    return [heads(part, attention.num_heads) for part in parts]


EVAS = ["dinov3", "dinov3_qkvb", "eva02", "pe_core"]


@pytest.mark.parametrize("name", EVAS)
def test_prompts_are_not_rotated(name):
    model = testbed.small(name)
    block, own = model.blocks[0], model.num_prefix_tokens
    half = block.attn.rotate_half
    rope = model.rope.get_embed(shape=model.patch_embed.grid_size)
    get("vpt_deep").configure({"tokens": 3}).attach(model, make_context())
    x = torch.randn(2, own + 16, 32)
    with torch.no_grad():
        prompts = block.slots["input"][0].prompts.expand(2, -1, -1)
        tokens = torch.cat([x[:, :own], prompts, x[:, own:]], dim=1)
        q, k, v = projected(block.attn, block.norm1(tokens))
        q, k = (rotated(part, rope, own + 3, half) for part in (q, k))
        h = block.attn.proj(block.attn.norm(plain_attention(q, k, v)))
        tokens = tokens + (h if block.gamma_1 is None else block.gamma_1 * h)
        h = block.mlp(block.norm2(tokens))
        tokens = tokens + (h if block.gamma_2 is None else block.gamma_2 * h)
        expected = torch.cat([tokens[:, :own], tokens[:, own + 3 :]], dim=1)
        torch.testing.assert_close(block(x, rope=rope), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", EVAS)
def test_a_prefix_stands_in_front_of_the_rotated_keys(name):
    model = testbed.small(name)
    attention, own = model.blocks[1].attn, model.num_prefix_tokens
    rope = model.rope.get_embed(shape=model.patch_embed.grid_size)
    get("prefix_tuning").configure({"tokens": 3}).attach(model, make_context())
    x = torch.randn(2, own + 16, 32)
    with torch.no_grad():
        q, k, v = projected(attention, x)
        q, k = (rotated(part, rope, own, attention.rotate_half) for part in (q, k))
        keys, values = (t.expand(2, -1, -1, -1) for t in (attention.prefix.keys, attention.prefix.values))
        y = plain_attention(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2))
        torch.testing.assert_close(attention(x, rope=rope), attention.proj(attention.norm(y)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shared", [False, True])
def test_tokens_without_a_position_have_no_relative_bias(shared):
    positions = {"use_rel_pos_bias": not shared, "use_shared_rel_pos_bias": shared}
    model = testbed.small("beit", **positions)
    block = model.blocks[0]
    get("vpt_deep").configure({"tokens": 2}).attach(model, make_context())
    get("prefix_tuning").configure({"tokens": 3}).attach(model, make_context())
    attention, x = block.attn, torch.randn(2, 1 + 2 + 16, 32)
    with torch.no_grad():
        bias = model.rel_pos_bias() if shared else attention._get_rel_pos_bias()[0]
        there = [0, *range(3, 19)]
        padded = torch.zeros(4, 19, 3 + 19)
        padded[:, there[0], [3 + place for place in there]] = bias[:, 0]
        for row, place in enumerate(there):
            padded[:, place, [3 + column for column in there]] = bias[:, row]
        q, k, v = projected(attention, x)
        keys, values = (t.expand(2, -1, -1, -1) for t in (attention.prefix.keys, attention.prefix.values))
        y = plain_attention(q, torch.cat([keys, k], dim=2), torch.cat([values, v], dim=2), padded)
        given = {"shared_rel_pos_bias": bias} if shared else {}
        torch.testing.assert_close(attention(x, **given), attention.proj(y), rtol=1e-4, atol=1e-5)
    assert float(padded.abs().max()) > 0
    assert model(batch(2)[0]).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["beit", "dinov3_qkvb", "swin_v2", "eva02", "convnext"])
def test_a_merged_model_loads_in_timm_and_computes_the_same(name):
    """Also where timm's own attention reads the weight of `qkv` without calling the layer."""
    attached = testbed.attach(get("lora"), name)
    testbed.train(attached)
    expected = attached.logits()
    attached.attachment.merge()
    kind = (testbed.MODELS | testbed.VARIANTS)[name]
    timm_name, arguments = {**kind.small, **kind.variants}[name]
    plain = timm.create_model(timm_name, num_classes=CLASSES, **arguments).eval()
    plain.load_state_dict(attached.model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(plain(batch()[0]), expected, rtol=1e-4, atol=1e-4)
