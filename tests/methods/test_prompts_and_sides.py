"""Prefixes, prompts, side networks and combinations: counts on ViT-B, the definition against plain formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from timm.layers import SwiGLUPacked
from torch.nn import functional

from methods.base import MethodError
from methods.registry import get
from tests.conftest import batch, make_context, small_swin, small_vit
from tests.method_checks import MODELS, attach, count, train, trained, vit_b

# name, settings, parameters on ViT-B/16 without head; the comment gives where the number stands.
COUNTS = [
    ("prefix_tuning", {}, 368_640),  # 0.36M in V-PETL Bench
    ("gate_vpt", {}, 76_823),
    ("dtl", {}, 36_864),  # 0.04M in V-PETL Bench, r = 2
    ("dtl", {"kernel": 3}, 43_776),  # DTL+, the released default
    ("dtl", {"kernel": 4}, 49_152),  # DTL+ on some tasks
    ("vqt", {}, 184_320),
    ("lst", {"init": "random"}, 2_376_492),  # 2.38M in V-PETL Bench
    ("consolidator", {}, 304_128),  # 0.30M in Adapters Strike Back, Figure 1
    ("compose", {}, 543_840),  # 156,768 + 294,912 + 92,160
]
IDS = [f"{name}-{'-'.join(settings)}" for name, settings, _ in COUNTS]
VARIANTS = [*COUNTS, ("lst", {}, 0), ("lst", {"output": "sum"}, 0)]
IDENTITIES = {"dtl", "vqt", "consolidator"}


def same(a, b):
    return torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("name", "settings", "parameters"), COUNTS, ids=IDS)
def test_the_count_on_vit_b(name, settings, parameters):
    method = get(name).configure(settings)
    model = vit_b()
    assert method.expected_parameters(model) == parameters
    if name == "compose":
        return  # peft builds its layers off the meta device; the small models below hold attach to the formula
    method.attach(model, make_context())
    assert count(model) == parameters


@pytest.mark.parametrize("kind", ["vit", "swin"])
@pytest.mark.parametrize(("name", "settings", "parameters"), VARIANTS)
def test_start_gradients_and_names(name, settings, parameters, kind):
    model = MODELS[kind]()
    if kind not in get(name).serves:
        with pytest.raises(MethodError, match=r"serves vit, not swin|needs one sequence of tokens"):
            attach(name, model, **settings)
        assert not trained(model)
        return
    names, images = set(dict(model.named_parameters())), batch()[0]
    before, expected = model(images), get(name).configure(settings).expected_parameters(model)
    attach(name, model, **settings)
    assert count(model) == expected
    assert name == "compose" or names <= set(dict(model.named_parameters()))
    assert same(model(images), before) == (name in IDENTITIES or settings.get("output") == "sum")
    assert get(name).identity_at_start == (name in IDENTITIES)
    assert not train(model, lr=0.01)


DROPLESS = [("dtl", {"kernel": 3}), ("gate_vpt", {"dropout": 0.0}), ("vqt", {"dropout": 0.0}), ("lst", {})]


@pytest.mark.parametrize(("name", "settings"), DROPLESS)
def test_gradient_checkpointing_changes_no_gradient_and_copies_are_independent(name, settings):
    model = small_vit()
    attach(name, model, **settings)
    train(model, lr=0.01)
    twin = copy.deepcopy(model)
    twin.set_grad_checkpointing()
    images, labels = batch(4)
    for each in (model, twin):
        each.zero_grad()
        each.train()
        functional.cross_entropy(each(images), labels).backward()
    for p, q in zip(trained(model).values(), trained(twin).values(), strict=True):
        assert p is not q
        assert torch.allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["qk_norm", "plain"])
def test_prefix_tuning_is_a_softmax_over_concatenated_keys(kind):
    model = small_vit(qk_norm=kind == "qk_norm")
    attach("prefix_tuning", model, tokens=3)
    attention, x = model.blocks[1].attn, torch.randn(2, 17, 32)
    for tensor in attention.prefix.parameters():
        torch.nn.init.normal_(tensor)
    outputs = []
    q, k, v = (x @ attention.qkv.weight.T + attention.qkv.bias).split(32, dim=-1)
    for head in range(4):
        here = slice(8 * head, 8 * head + 8)
        queries, image_keys = attention.q_norm(q[..., here]), attention.k_norm(k[..., here])
        keys = torch.cat([attention.prefix.keys[head].expand(2, 3, 8), image_keys], 1)
        values = torch.cat([attention.prefix.values[head].expand(2, 3, 8), v[..., here]], 1)
        outputs.append((queries @ keys.transpose(1, 2) / 8**0.5).softmax(-1) @ values)
    assert same(attention(x), attention.proj(torch.cat(outputs, -1)))


@pytest.mark.parametrize("name", ["vpt_deep", "prefix_tuning"])
def test_dropout_falls_on_each_image_anew(name):
    model = small_vit()
    attach(name, model, dropout=0.5, tokens=8)
    images = batch(1)[0].expand(2, -1, -1, -1)
    model.train()
    out = model(images)
    assert not same(out[0], out[1])
    model.eval()
    out = model(images)
    assert same(out[0], out[1])


def test_gated_prompts_are_mixed_with_those_that_entered_the_block():
    model, plain = small_vit(), small_vit()
    attach("gate_vpt", model, tokens=5)
    first, second, _ = model.blocks
    insert, _ = first.slots["input"]
    gates = [block.slots["output"][0].logit.data.normal_() for block in (first, second)]
    temperatures = [b.attn.qkv.slots["output"][0].temperature.data.uniform_(0.5, 2) for b in model.blocks]
    for block, t in zip(plain.blocks, temperatures, strict=True):
        block.attn.qkv.weight[:32] /= t
        block.attn.qkv.bias[:32] /= t
    images = batch(2)[0]
    x = plain._pos_embed(plain.patch_embed(images))
    x = torch.cat([x[:, :1], insert.prompts.expand(2, -1, -1), x[:, 1:]], 1)
    for block, logit in zip(plain.blocks, [*gates, torch.tensor(9.0)], strict=True):
        y, g = block(x), logit.sigmoid()
        x = torch.cat([y[:, :1], g * y[:, 1:6] + (1 - g) * x[:, 1:6], y[:, 6:]], 1)
    x = torch.cat([x[:, :1], x[:, 6:]], 1)
    assert same(model(images), plain.forward_head(plain.norm(x)))


@pytest.mark.parametrize("kernel", [0, 3, 4])
def test_dtl_adds_gathered_side_features_behind_later_blocks(kernel):
    model, plain = small_vit(), small_vit()
    attach("dtl", model, kernel=kernel, beta=2.0, start=0.5)
    for parameter in trained(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    images = batch(2)[0]
    x, h = plain._pos_embed(plain.patch_embed(images)), 0
    for number, block in enumerate(plain.blocks):
        extract, feedback = model.blocks[number].slots["input"][0], model.blocks[number].slots["output"][0]
        h = h + x @ extract.a.weight.T @ extract.b.weight.T
        x = block(x)
        if number < 1:
            continue
        side = h * torch.sigmoid(2 * h)
        if kernel:
            before, behind = (kernel - 1) // 2, kernel // 2  # an even kernel looks further right and down
            image = functional.pad(side[:, 1:].reshape(2, 4, 4, 32).permute(0, 3, 1, 2), (before, behind) * 2)
            grid = functional.conv2d(image, feedback.shared[0].weight, groups=32)
            side = torch.cat([side[:, :1], grid.permute(0, 2, 3, 1).reshape(2, 16, 32)], 1)
        x = x + side
    assert torch.allclose(model(images), plain.forward_head(plain.norm(x)), atol=1e-4)


def test_vqt_queries_see_keys_and_values_and_nobody_sees_the_queries():
    model, plain = small_vit(), small_vit()
    attach("vqt", model, tokens=2)
    summary = model.norm.slots["output"][0]
    torch.nn.init.normal_(summary.queries)
    torch.nn.init.normal_(summary.weights)
    images = batch(2)[0]
    x, total = plain._pos_embed(plain.patch_embed(images)), 0
    for number, block in enumerate(plain.blocks):
        tokens = torch.cat([x, summary.queries[number].expand(2, -1, -1)], 1)
        hidden = torch.zeros(19, 19).masked_fill(torch.arange(19) >= 17, float("-inf"))
        out = block(tokens, attn_mask=hidden)  # no token may look at a query
        x = out[:, :17]
        total = total + (functional.layer_norm(out[:, 17:], (32,)) * summary.weights[number]).sum(1)
    expected = plain.head(plain.norm(x)[:, 0] + total)
    assert torch.allclose(model(images), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["lst", "vqt"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_side_methods_leave_the_backbone_without_gradients(name, pool):
    model = small_vit(global_pool=pool)
    attach(name, model)
    train(model, lr=0.01)
    seen = []
    model.blocks[2].register_forward_hook(lambda _, inputs, output: seen.append(output.requires_grad))
    model(batch(2)[0]).sum().backward()
    assert seen == [False]


def test_lst_follows_the_ladder():
    model, plain = small_vit(), small_vit()
    attach("lst", model, reduction=4)
    ladder = model.norm.slots["output"][0]
    torch.nn.init.normal_(ladder.gates, std=0.1)
    images = batch(2)[0]
    x = plain._pos_embed(plain.patch_embed(images))
    h = ladder.rungs[0](x)
    for number, block in enumerate(plain.blocks):
        x, m = block(x), torch.sigmoid(ladder.gates[number] * 10)
        h = ladder.steps[number](m * h + (1 - m) * ladder.rungs[number + 1](x))
    assert same(model(images), plain.head(ladder.up(ladder.norm(h))[:, 0]))


def test_lst_starts_as_a_slice_of_the_backbone():
    model = small_vit()
    attach("lst", model, reduction=1)
    ladder, x = model.norm.slots["output"][0], torch.randn(2, 17, 32)
    for step, block in zip(ladder.steps, small_vit().blocks, strict=True):
        assert same(step(x), block(x))  # a slice of everything is the block itself
    half = small_vit()
    attach("lst", half, reduction=2)
    ladder = half.norm.slots["output"][0]
    channels = ladder.rungs[0].weight.argmax(1)
    assert same(ladder.rungs[0](x), x[..., channels])
    kept = half.blocks[0].mlp.fc1.weight[:, channels]
    strongest = kept.square().sum(1).topk(64).indices.sort().values
    assert torch.equal(ladder.steps[0].mlp.fc1.weight, kept[strongest])


@pytest.mark.parametrize(
    ("shape", "settings", "field"),
    [
        ({"mlp_ratio": 2.0}, {"reduction": 1}, "reduction=1 must be at least 2"),
        ({"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}, {}, "init="),
    ],
)
def test_lst_starts_at_random_where_there_is_no_slice(shape, settings, field):
    with pytest.raises(MethodError, match=field):
        get("lst").configure(settings).expected_parameters(small_vit(**shape))
    model = small_vit(**shape)
    attach("lst", model, init="random", **settings)
    assert model(batch()[0]).isfinite().all()


@pytest.mark.parametrize("make", [small_vit, small_swin])
def test_consolidator_merges_into_timms_own_modules(make):
    model, plain = make(), make()
    _, attachment = attach("consolidator", model, groups=4)
    train(model, lr=0.01)
    images = batch()[0]
    before = model(images)
    attachment.merge()
    after = model(images)
    assert (after - before).abs().max() <= 1e-4 * before.abs().max()
    assert (after - plain(images)).abs().max() > 1e-3
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_consolidator_interleaves_its_groups():
    model = small_vit()
    attach("consolidator", model, groups=4)
    connection = model.blocks[0].attn.proj.slots["parallel"][0]
    for parameter in connection.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 32)
    by_group = [x[:, 8 * g : 8 * g + 8] @ connection.weight[g].T for g in range(4)]
    expected = torch.stack(by_group, -1).flatten(1) + connection.bias
    assert same(connection(x), expected)
    assert same(x @ connection.dense().T + connection.bias, expected)


PARTS = [
    ("repadapter", "lora"),
    ("lora", "repadapter"),
    ("lora", "consolidator"),
    ("consolidator", "repadapter", "lora"),
    ("mona", "sct", "norm_tuning"),
    ("adapter_pfeiffer", "bitfit"),
]


@pytest.mark.parametrize("parts", PARTS)
def test_compose_keeps_all_parts_trainable_in_any_order(parts):
    model = small_vit()
    _, attachment = attach("compose", model, parts=parts)
    assert set(attachment.info) == set(parts)
    assert attachment.merge is None
    assert not train(model, lr=0.01)


def test_compose_serves_what_all_parts_serve():
    attach("compose", small_swin(), parts=("lora", "adaptformer"))


def test_compose_chooses_channels_by_the_untouched_model():
    alone = attach("sct", small_vit(), selection="class_aware")[1].info["channels"]
    _, together = attach("compose", small_vit(), parts=("adapter_plus", "sct"))
    assert together.info["sct"]["channels"] == alone


def test_compose_hands_on_what_its_parts_add_to_a_step():
    model, attachment = attach("compose", parts=("adalora", "mona", "sct"))
    assert float(attachment.penalty(None).detach()) > 0
    train(model, lr=0.01)
    attachment.after_step(1)
    states = attachment.state()
    assert [state is None for state in states] == [True, True, False]  # sct, mona, adalora
    attachment.load_state(states)


def test_compose_refuses_parts_that_train_the_same_tensors():
    with pytest.raises(MethodError, match=r"bitfit.*norm_tuning.*1568 parameters"):
        attach("compose", small_vit(), parts=("bitfit", "norm_tuning"))


def test_single_weights_are_not_trained_in_a_layer_that_another_method_changed():
    for first in ("lora_qv", "hydra"):
        model = small_vit()
        attach(first, model)
        with pytest.raises(MethodError, match="changed by another method"):
            attach("gps", model)


BAD = [
    ("prefix_tuning", {"tokens": 0}, "tokens"),
    ("gate_vpt", {"gate_logit": 100.0}, "gate_logit"),
    ("dtl", {"rank": 0}, "rank"),
    ("dtl", {"kernel": -1}, "kernel"),
    ("dtl", {"readout": "token"}, "readout"),
    ("dtl", {"start": 1.0}, "start"),
    ("vqt", {"tokens": 0}, "tokens"),
    ("vqt", {"dropout": 1.0}, "dropout"),
    ("lst", {"output": "both"}, "output"),
    ("consolidator", {"groups": 0}, "groups"),
    ("compose", {"parts": ()}, "parts"),
    ("compose", {"parts": ("lora", "lora")}, "parts"),
    ("compose", {"parts": ("compose",)}, "parts"),
    ("compose", {"parts": ("lroa",)}, "lora"),
    ("compose", {"parts": ("lora", "dora")}, "at most one"),
    *(
        ("compose", {"parts": ("lora", side)}, "parts")
        for side in ("dtl", "lst", "vqt", "gate_vpt", "ssf", "gps", "full")
    ),
]


@pytest.mark.parametrize(("name", "settings", "field"), BAD)
def test_bad_settings_are_refused_by_name(name, settings, field):
    with pytest.raises(MethodError, match=field):
        get(name).configure(settings)


@pytest.mark.parametrize(
    ("name", "settings", "field"), [("lst", {"reduction": 16}, "reduction"), ("consolidator", {"groups": 3}, "groups")]
)
def test_settings_that_do_not_fit_the_backbone_are_refused_before_anything_is_plugged(name, settings, field):
    model = small_vit()
    with pytest.raises(MethodError, match=field):
        attach(name, model, **settings)
    assert not trained(model) and not hasattr(model.blocks[0], "slots")
