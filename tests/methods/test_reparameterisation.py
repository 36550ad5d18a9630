"""Reparameterisations, adapters and heads: counts, starting point, definition, merging."""

import copy

import pytest
import timm
import torch

from methods import registry
from methods.base import MethodError
from methods.blocks import blocks, plug_layer
from methods.layers import fold_linears
from tests.conftest import make_context, small_vit
from tests.method_checks import MODELS, attach, close, count, dead_after_merging, logits, shape_of, train, vit_b

# In the comment, what the method's paper or released code says; all without head.
VIT_B = {
    "lora_qv": 294_912,  # SCT's and V-PETL's code, 0.29 M
    "ssf": 205_824,  # 0.205 M
    "fact_tt": 61_440,  # 2*768*16 + 144*16^2; the paper's 0.037 M is a mean over per-task ranks up to 16
    "fact_tk": 86_528,  # 2*768*32 + 144*32 + 32^3; the paper's 0.069 M is a mean over per-task ranks up to 32
    "arc": 96_432,  # 0.13 M with heads
    "consolidator": 304_128,  # 0.35 % of ViT-B, as in the abstract
    "hydra": 239_712,  # 0.28 M with heads
    "compacter": 57_088,  # 4^3 + 24 * 3 * (768 + 24); the paper counts T5, not ViT
    "lorand": 915_456,  # 24 * (2 * (2*8*1152 + 64) + 1152); the paper counts Swin, not ViT
    "mlp_head": 1_181_184,  # two hidden 768 x 768 layers in front of the head
}
MERGEABLE = ["lora_qv", "ssf", "fact_tt", "fact_tk", "arc", "consolidator", "hydra"]


@pytest.mark.parametrize("name", VIT_B)
def test_count_on_vit_b(name):
    model = vit_b()
    method = registry.get(name).configure({})
    assert method.expected_parameters(model) == VIT_B[name]
    method.attach(model, make_context())
    assert count(model) == VIT_B[name]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", VIT_B)
def test_start_and_gradients(name, model):
    plain = MODELS[model]()
    backbone, _ = attach(name, copy.deepcopy(plain))
    assert registry.get(name).configure({}).expected_parameters(plain) == count(backbone)
    assert close(logits(backbone), logits(plain), 1e-6) == registry.get(name).identity_at_start
    assert not train(backbone)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merge(name, model):
    dead_after_merging(name, model, moved=1e-2)


def test_lora_variants():
    released, _ = attach("lora_qv", variant="released")
    assert not close(logits(released), logits(small_vit()), 1e-6)
    q, v = released.blocks[0].attn.qkv.slots["parallel"]
    x = torch.randn(2, 32)
    update = q(x) + v(x)
    assert torch.equal(update[:, 32:64], torch.zeros(2, 32))  # keys stay
    assert torch.allclose(update[:, 64:], x @ v.down.weight.T @ v.up.weight.T)
    paper, _ = attach("lora_qv", rank=4, alpha=8.0)
    assert paper.blocks[0].attn.qkv.slots["parallel"][0].scale == 2.0


def test_ssf_is_scale_and_shift():
    plain = small_vit()
    backbone, _ = attach("ssf", copy.deepcopy(plain))
    x = torch.randn(2, 32)
    for layer, frozen in [(backbone.blocks[1].mlp.fc1, plain.blocks[1].mlp.fc1), (backbone.norm, plain.norm)]:
        (module,) = layer.slots["output"]
        assert torch.allclose(layer(x), frozen(x) * module.scale + module.shift)
    exact, _ = attach("ssf", init_std=0.0)
    assert torch.equal(logits(exact), logits(plain))


@pytest.mark.parametrize("name", ["fact_tt", "fact_tk"])
def test_fact_increment_is_the_decomposition(name):
    plain = small_vit()
    backbone, attachment = attach(name, copy.deepcopy(plain), rank=3, scale=2.0)
    f = backbone.blocks[0].attn.qkv.slots["parallel"][0].factors
    with torch.no_grad():
        f.v.normal_()
        if name == "fact_tt":
            tensor = torch.einsum("ia,nab,bo->nio", f.u, f.sigma, f.v)
        else:
            tensor = torch.einsum("ia,abc,nc,bo->nio", f.u, f.c, f.p, f.v)
    assert tensor.shape == (12 * 3, 32, 32)
    attachment.merge()
    block, frozen, slices = backbone.blocks[1], plain.blocks[1], 2.0 * tensor[12:24]
    for new, old, part in [
        (block.attn.qkv, frozen.attn.qkv, torch.cat(list(slices[:3]), dim=1)),
        (block.attn.proj, frozen.attn.proj, slices[3]),
        (block.mlp.fc1, frozen.mlp.fc1, torch.cat(list(slices[4:8]), dim=1)),
        (block.mlp.fc2, frozen.mlp.fc2, torch.cat(list(slices[8:]), dim=0)),
    ]:
        assert torch.allclose(new.weight - old.weight, part.T, atol=1e-4)


@pytest.mark.parametrize("ratio", [4, 2])
def test_fact_tk_as_released_reads_the_slices_of_the_mlp_in_the_order_of_memory(ratio):
    plain = small_vit(mlp_ratio=ratio)
    backbone, attachment = attach("fact_tk", copy.deepcopy(plain), rank=3, scale=2.0, variant="released")
    f = backbone.blocks[0].attn.qkv.slots["parallel"][0].factors
    with torch.no_grad():
        f.v.normal_()
        stacked = torch.einsum("abc,nc->abn", f.c, f.p)
    attachment.merge()
    first = 4 + 2 * ratio + 4  # the second block's MLP
    fc1 = stacked[:, :, first : first + ratio].reshape(3, 3 * ratio).split(3, dim=1)
    fc2 = stacked[:, :, first + ratio : first + 2 * ratio].reshape(3, 3 * ratio).split(3, dim=1)
    block, frozen = backbone.blocks[1], plain.blocks[1]
    for new, old, part in [
        (block.attn.proj, frozen.attn.proj, f.u @ stacked[:, :, first - 1] @ f.v),
        (block.mlp.fc1, frozen.mlp.fc1, torch.cat([f.u @ core @ f.v for core in fc1], dim=1)),
        (block.mlp.fc2, frozen.mlp.fc2, torch.cat([f.u @ core.T @ f.v for core in fc2], dim=0)),
    ]:
        assert torch.allclose(new.weight - old.weight, 2.0 * part.T, atol=1e-4)


def test_fact_starts_as_the_released_linear_layers_and_xavier_do():
    tucker = attach("fact_tk", rank=16)[0].blocks[0].attn.qkv.slots["parallel"][0].factors
    assert 0.95 * 3**0.5 / 16 < tucker.c.abs().max() <= 3**0.5 / 16
    train = attach("fact_tt", rank=16)[0].blocks[0].attn.qkv.slots["parallel"][0].factors
    bounds = train.sigma.abs().amax(dim=(1, 2)).unflatten(0, (3, 12))
    assert (bounds[:, :8] <= 16**-0.5).all() and (bounds[:, :8] > 0.9 * 16**-0.5).all()
    assert (bounds[:, 8:] <= 64**-0.5).all() and (bounds[:, 8:] > 0.9 * 64**-0.5).all()  # fc2, of four inputs


@pytest.mark.parametrize("model", MODELS)
def test_consolidator_as_released(model):
    plain = MODELS[model]()
    backbone, attachment = attach("consolidator", copy.deepcopy(plain), variant="released")
    method = registry.get("consolidator").configure({"variant": "released"})
    assert method.expected_parameters(vit_b()) == 304_128 + 38_400 + 82_944
    assert method.expected_parameters(plain) == count(backbone)
    connection = backbone.get_submodule(
        next(n for n, _ in backbone.named_modules() if n.endswith("fc1.slots.parallel.0"))
    )
    assert 0 < connection.weight.abs().max() <= 1e-3 and 0 < connection.bias.abs().max() <= 1e-3
    x, groups = torch.randn(2, connection.weight.shape[2] * len(connection.weight)), len(connection.weight)
    expected = [w @ piece for w, piece in zip(connection.weight, x[0].chunk(groups), strict=True)]
    assert torch.allclose(connection(x)[0], torch.cat(expected) + connection.bias, atol=1e-6)
    assert not train(backbone)
    before = logits(backbone)
    assert not close(before, logits(plain), 1e-2)
    attachment.merge()
    assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)


def test_hydra_formula():
    plain = small_vit()
    backbone, _ = attach("hydra", copy.deepcopy(plain), scale=0.5)
    layer, x = backbone.blocks[0].mlp.fc2, torch.randn(2, 128)
    par, seq = layer.parallel_branch, layer.sequential_branch
    with torch.no_grad():
        for branch in (par, seq):
            branch.up.weight.normal_()
            branch.down.bias.normal_()
        y = plain.blocks[0].mlp.fc2(x)
        expected = y + 0.5 * (par.up(par.down(x)) + seq.up(seq.down(y)))
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_arc_formula_and_sharing():
    backbone, _ = attach("arc", rank=4)
    modules = [b.slots["attention_input"][0] for b in backbone.blocks]
    assert len({id(m.projection.weight) for m in modules}) == 1
    m, x = modules[0].eval(), torch.randn(2, 32)
    with torch.no_grad():
        m.coefficients.normal_()
        m.bias.normal_()
        u = m.projection.weight
        assert torch.allclose(m(x), x + x @ u @ torch.diag(m.coefficients) @ u.T + m.bias, atol=1e-5)
    released, _ = attach("arc", variant="released")
    assert not close(logits(released), logits(small_vit()), 1e-6)


def test_compacter_weight_is_a_sum_of_kronecker_products():
    backbone, _ = attach("compacter")
    first, last = (b.slots["mlp_output"][0] for b in (backbone.blocks[0], backbone.blocks[2]))
    assert first.down.rule is first.up.rule is last.up.rule
    down = first.down
    factors = zip(down.rule.matrices, down.s, down.t, strict=True)
    expected = sum(torch.kron(a, torch.outer(s, t)) for a, s, t in factors)
    assert torch.allclose(down.weight(), expected, atol=1e-6)


def test_lorand_weight_is_a_sum_of_branches():
    backbone, _ = attach("lorand", branches=3)
    adapter = backbone.blocks[0].slots["attention_output"][0]
    assert adapter.down.kernel is adapter.up.kernel
    down, k = adapter.down, adapter.down.kernel.weight
    expected = sum(down.p[i] @ k[i] @ down.q[i] for i in range(3))
    assert torch.allclose(down.weight(), expected, atol=1e-6)


def test_impossible_for_the_backbone():
    for name, config, field in [
        ("compacter", {"products": 5, "bottleneck": 5}, "products"),
        ("lorand", {"reduction": 33}, "reduction"),
    ]:
        with pytest.raises(MethodError, match=field):
            attach(name, **config)
    with pytest.raises(MethodError, match="slices"):
        attach("fact_tt", small_vit(mlp_ratio=1.5))


def test_mlp_head_sits_behind_pooling():
    for model in MODELS:
        backbone, _ = attach("mlp_head", model)
        classifier = backbone.get_classifier()
        seen = []
        classifier.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        logits(backbone)
        assert seen[0].shape == (8, classifier.in_features)
        assert (seen[0] >= 0).all()


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("lora_qv", "rank", 0),
        ("lora_qv", "alpha", 0.0),
        ("lora_qv", "variant", "other"),
        ("ssf", "init_std", -1.0),
        ("fact_tt", "rank", 0),
        ("fact_tk", "scale", -1.0),
        ("fact_tk", "variant", "other"),
        ("consolidator", "variant", "other"),
        ("arc", "rank", 0),
        ("arc", "variant", "other"),
        ("hydra", "scale", 0.0),
        ("hydra", "dropout", 1.0),
        ("compacter", "bottleneck", 6),
        ("compacter", "variant", "other"),
        ("lorand", "branches", 0),
        ("mlp_head", "layers", 1),
    ],
)
def test_bad_config_is_refused(name, field, value):
    with pytest.raises(MethodError, match=field):
        registry.get(name).configure({field: value})


@pytest.mark.parametrize(
    ("name", "config"), [("hydra", {}), ("beft", {}), ("sct", {"mode": "qkv"}), ("sct", {"mode": "mlp"})]
)
def test_no_merge_where_layers_have_no_bias_to_take_an_offset(name, config):
    assert attach(name, small_vit(qkv_bias=False, proj_bias=False), **config)[1].merge is None


def test_an_offset_is_never_lost():
    layer = torch.nn.Linear(3, 2, bias=False)
    plug_layer(layer, "output", torch.nn.Linear(2, 2))
    with pytest.raises(MethodError, match="offset"):
        fold_linears([layer])


def test_copy_and_autocast():
    for name in MERGEABLE:
        backbone, _ = attach(name)
        twin = copy.deepcopy(backbone)
        assert torch.equal(logits(twin), logits(backbone))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isfinite(logits(twin)).all()
        assert not train(twin)
        assert len(blocks(twin)) == 3


@pytest.mark.parametrize("name", MERGEABLE)
def test_merge_where_swin_pads_windows(name):
    sizes = {"img_size": 32, "patch_size": 2, "window_size": 5, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)}
    model = timm.create_model("swin_tiny_patch4_window7_224", num_classes=4, **sizes).requires_grad_(False).eval()
    _, attachment = attach(name, model)
    train(model)
    before = logits(model)
    if name == "arc":  # padded tokens enter attention behind its modules
        assert attachment.merge is None
    else:
        attachment.merge()
        assert close(logits(model), before)
