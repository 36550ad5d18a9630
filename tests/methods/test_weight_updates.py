"""Methods that change the weights of linear layers one by one: counts, starts, traps, dropout, merging."""

import copy
import dataclasses

import pytest
import torch

from methods import registry
from methods.base import MethodError
from methods.goft import level_sizes, turned
from methods.kradapter import KhatriRao
from methods.layers import body_layers
from tests import goldens
from tests.conftest import make_context, small_vit
from tests.method_checks import MODELS, attach, count, dead_after_merging, logits, trained, vit_b

# name, settings, parameters on ViT-B/16 without head: by the papers' or the releases' own counts where they give them.
VIT_B = [
    ("rlrr", {}, 288_768),
    ("snell", {}, 5_309_184),
    ("snella", {}, 5_309_400),
    ("apla", {}, 73_824),
    ("lora_xs", {}, 12_288),
    ("lora_xs", {"rank": 25}, 30_000),
    ("goft", {}, 128_976),
    ("goft", {"scaling": False}, 64_464),
    ("qgoft", {}, 257_856),
    ("kradapter", {}, 4_156_416),
    ("mlae", {}, 1_180_032),
]


@pytest.mark.parametrize(("name", "settings", "expected"), VIT_B)
def test_count_on_vit_b(name, settings, expected):
    model, method = vit_b(), registry.get(name).configure(settings)
    assert method.expected_parameters(model) == expected
    method.attach(model, make_context())
    assert count(model) == expected


@pytest.mark.parametrize(
    ("name", "setting", "value", "message"),
    [
        ("snell", "rank", 5, "even"),
        ("snell", "sparsity", 1.0, "in \\[0, 1\\)"),
        ("apla", "rows", 33, "at most the outputs of every attention, 32"),
        ("lora_xs", "rank", 33, "at most the smaller side of the tuned layers, 32"),
        ("mlae", "masked", 1.0, "in \\[0, 1\\)"),
        ("goft", "targets", ["fc3"], "some of"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_by_name(name, setting, value, message):
    with pytest.raises(MethodError, match=f"{setting}=.* must be .*{message}"):
        registry.get(name).configure({setting: value}).expected_parameters(small_vit())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in VIT_B))
def test_merge_leaves_the_plain_model(name, model):
    assert not dead_after_merging(name, model, moved=1e-3)


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
            factor = 1 + torch.outer(rescaling.rows[rows, 0], rescaling.columns[part])
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
    without = kernels(attach("snella", alpha=0.0)[0])[0]
    assert torch.allclose(without.update(), plain, atol=1e-7)


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


def test_apla_trains_the_rows_themselves_and_every_block_draws_its_own():
    plain = small_vit()
    model, _ = attach("apla", copy.deepcopy(plain), rows=16)
    drawn = [block.attn.proj.reweighting.rows for block in model.blocks]
    assert all(len(set(rows.tolist())) == 16 for rows in drawn)
    assert len({tuple(rows.tolist()) for rows in drawn}) == 3
    layer, rows = model.blocks[0].attn.proj, drawn[0]
    assert torch.equal(layer.reweighting.weight, plain.blocks[0].attn.proj.weight[rows])
    assert torch.equal(layer.reweighting.bias, plain.blocks[0].attn.proj.bias[rows])
    with torch.no_grad():
        layer.reweighting.weight += 1
        weight, _ = layer.reweighting(layer.weight, layer.bias)
    moved = weight != plain.blocks[0].attn.proj.weight
    assert sorted(moved.any(1).nonzero().flatten().tolist()) == sorted(rows.tolist())


@torch.no_grad()
def test_lora_xs_holds_singular_values_once_on_the_side_of_the_inputs():
    model, attachment = attach("lora_xs", rank=32)
    for block in model.blocks:
        layer = block.attn.proj
        (branch,) = layer.slots["parallel"]
        singular = torch.linalg.svdvals(layer.weight)
        assert torch.allclose(branch.b.T @ branch.b, torch.eye(32), atol=1e-5)
        assert torch.allclose(branch.a @ branch.a.T, torch.diag(singular.square()), atol=1e-3)
        assert torch.allclose(branch.b @ branch.a, layer.weight, atol=1e-5)
        assert branch.scale == 0.5
    assert float(branch.latent.std()) == pytest.approx(1e-5, rel=0.1)
    assert len(attachment.recomputed) == 2 * 4 * 3


def test_lora_xs_takes_no_second_decomposition_of_what_is_remembered(monkeypatch):
    context = make_context()
    first = small_vit()
    registry.get("lora_xs")().attach(first, context)
    monkeypatch.setattr(torch.linalg, "svd", None)
    second = small_vit()
    registry.get("lora_xs")().attach(second, dataclasses.replace(make_context(), memory=context.memory))
    assert torch.equal(logits(first), logits(second))


@pytest.mark.parametrize(("width", "sizes"), [(768, [384, 192, 96, 48, 24, 12, 6, 3, 1, 1]), (7, [3, 2, 1]), (2, [1])])
def test_the_levels_of_goft(width, sizes):
    assert level_sizes(width) == sizes
    assert sum(sizes) == width - 1


def turned_inputs(x, pairs):
    """x [batch, width] through the levels as the paper has it, the widest apart first: 2 x 2 maps of (i, i + s)."""
    places, s, c = [], 1, x.shape[1]
    while c > 1:
        places += [(i, i + s) for i in range(0, (c // 2) * 2 * s, 2 * s)]
        c, s = c // 2 + c % 2, 2 * s
    x, levels = x.clone(), sorted({j - i for i, j in places}, reverse=True)
    for s in levels:
        for (i, j), g in zip(places, pairs, strict=True):
            if j - i == s:
                x[:, [i, j]] = x[:, [i, j]] @ g
    return x


@pytest.mark.parametrize("width", [2, 7, 16, 33, 48])
def test_qgoft_turns_weights_as_the_levels_turn_inputs(width):
    generator = torch.Generator().manual_seed(0)
    pairs, weight, x = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((width - 1, 2, 2), (5, width), (3, width))
    )
    ours = x @ turned(weight, pairs.split(level_sizes(width))).T
    assert torch.allclose(ours, turned_inputs(x, pairs) @ weight.T, rtol=1e-10)


@torch.no_grad()
def test_goft_is_a_rotation_and_then_a_factor_for_each_input():
    layer = attach("goft")[0].double().blocks[1].mlp.fc1
    turning = layer.reweighting
    assert torch.equal(turning(layer.weight, None)[0], layer.weight)
    torch.nn.init.normal_(turning.angles)
    rotation, _ = turning(torch.eye(32, dtype=torch.float64), None)
    assert torch.allclose(rotation @ rotation.T, torch.eye(32, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(rotation)) == pytest.approx(1)
    assert bool((rotation[0] != 0).sum() > 2)
    torch.nn.init.normal_(turning.factors)
    scaled, _ = turning(torch.eye(32, dtype=torch.float64), None)
    assert torch.allclose(scaled, torch.diag(turning.factors) @ rotation)


@pytest.mark.parametrize(("inputs", "outputs"), [(32, 32), (20, 45), (45, 20)])
@torch.no_grad()
def test_kradapter_is_a_row_wise_kronecker_product_of_full_rank(inputs, outputs):
    branch = KhatriRao(torch.nn.Linear(inputs, outputs), 2.0, torch.Generator().manual_seed(0))
    m, n = min(inputs, outputs), max(inputs, outputs)
    p, q = branch.p.shape[1], branch.q.shape[1]
    assert (p, q) == (int(m**0.5), -(-n // int(m**0.5)))
    assert not branch.p.any()
    assert 0.9 * (6 / (26 * q)) ** 0.5 < float(branch.q.abs().max()) <= (6 / (26 * q)) ** 0.5
    torch.nn.init.normal_(branch.p)
    rows = torch.stack([torch.kron(branch.q[i], branch.p[i])[:n] for i in range(m)])
    expected = rows if outputs <= inputs else rows.T
    assert torch.linalg.matrix_rank(expected) == m
    assert torch.allclose(branch(torch.eye(inputs)), 2 * expected.T)


def test_mlae_drops_the_experts_of_its_release_in_training():
    golden = goldens.load("mlae")
    model, _ = golden.attached()
    golden.load(model)
    layers = [m for block in model.blocks for m in (block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)]
    for layer, kept in zip(layers, golden.extra["masks"], strict=True):
        layer.slots["parallel"][0].mask = Kept(kept / 0.5)
    out = model.train()(golden.images)
    assert torch.allclose(out, golden.extra["train_out"], rtol=1e-10)


class Kept(torch.nn.Module):
    """A mask of experts that is given."""

    def __init__(self, factors):
        super().__init__()
        self.factors = factors

    def forward(self, weights):
        return weights * self.factors


def test_mlae_draws_one_mask_for_a_whole_batch_and_starts_its_weights_at_alpha():
    model, _ = attach("mlae", alpha=0.5, masked=0.5)
    branch = model.blocks[0].attn.qkv.slots["parallel"][0].train()
    assert branch.weights.tolist() == [0.5] * 8
    torch.nn.init.normal_(branch.b)
    one, other = branch(torch.ones(2, 3, 32))
    assert torch.equal(one, other)
    assert not torch.equal(branch(torch.ones(2, 3, 32))[0], one)
