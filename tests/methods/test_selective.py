"""Methods that train a part of the pretrained weights: which part, counts, and what stays bit-identical."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch.nn.functional import cross_entropy

from methods import registry
from methods.base import MethodError
from methods.gps import contrastive_loss, largest_per_row
from methods.segments import Segment, choose_whole
from tests.conftest import batch, make_context, small_vit
from tests.method_checks import MODELS, attach, close, count, logits, shape_of, train, trained, vit_b

# In the comment, what papers say; all without head.
VIT_B = {
    "bitfit": 102_912,  # 0.10 M
    "norm_tuning": 38_400,  # 25 norms of 2*768: 0.04 M
    "partial": 7_089_408,  # one block 7.09 M: VPT's 3.00x for 24 tasks
    "difffit": 140_544,  # biases 102,912 + norm weights 19,200 + scales 18,432; the paper counts DiT, not ViT
    "gps": 167_424,  # one weight and one bias of 83,712 neurons, as in the released code
    "spt_lora": 428_993,  # the default budget, 0.5 % of 85,798,656
}
SELECTING = ("gps", "spt_lora")


@pytest.mark.parametrize("name", VIT_B)
def test_count_on_vit_b(name):
    model = vit_b()
    method = registry.get(name).configure({})
    assert method.expected_parameters(model) == VIT_B[name]
    if name not in SELECTING:  # these need gradients; the small models show that theirs is the count
        method.attach(model, make_context())
        assert count(model) == VIT_B[name]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", VIT_B)
def test_start_gradients_and_merge(name, model):
    plain = MODELS[model]()
    backbone, attachment = attach(name, copy.deepcopy(plain))
    assert registry.get(name).configure({}).expected_parameters(plain) == count(backbone)
    assert torch.equal(logits(backbone), logits(plain))
    assert not train(backbone, lr=0.02)
    before = logits(backbone)
    assert not close(before, logits(plain), 1e-2)
    if attachment.merge is not None:
        attachment.merge()
        assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)


def flat(update):
    return set(update.indices.tolist())


@pytest.mark.parametrize("name", SELECTING)
def test_selection_leaves_nothing_behind(name):
    plain = small_vit()
    backbone, _ = attach(name, copy.deepcopy(plain))
    assert all(p.grad is None for p in backbone.parameters())
    chosen = {n for n in trained(backbone) if n in dict(plain.named_parameters())}
    assert chosen == ({n for n in chosen if n.endswith("bias")} if name == "gps" else set())
    train(backbone)
    after = dict(backbone.named_parameters())
    head = ("head.weight", "head.bias")
    assert all(torch.equal(after[n], p) for n, p in plain.named_parameters() if n not in chosen and n not in head)


def test_gps_takes_the_largest_gradients_of_each_neuron():
    backbone, _ = attach("gps", connections=2, loss="cross_entropy")
    plain = small_vit().requires_grad_(True)
    images, labels = batch()
    cross_entropy(plain(images), labels).backward()
    for layer, frozen in [(backbone.blocks[0].mlp.fc2, plain.blocks[0].mlp.fc2), (backbone.patch_embed.proj, None)]:
        gradient = (frozen or plain.patch_embed.proj).weight.grad.flatten(1)
        chosen = [i // gradient.shape[1] for i in sorted(flat(layer.sparse["weight"]))]
        assert chosen == [row for row in range(len(gradient)) for _ in range(2)]
        mask = torch.zeros(gradient.numel(), dtype=torch.bool)
        mask[layer.sparse["weight"].indices.long()] = True
        mask = mask.view_as(gradient)
        least = gradient.abs().masked_fill(~mask, float("inf")).min(dim=1).values
        assert (least >= gradient.abs().masked_fill(mask, 0).max(dim=1).values).all()


def test_gps_parts():
    assert largest_per_row(torch.tensor([[1.0, -3.0, 2.0], [0.5, 0.1, 0.2]]), 2).tolist() == [1, 2, 3, 5]
    labels = torch.tensor([0, 1, 0, 1])
    tight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    mixed = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert contrastive_loss(tight, labels) < 1e-4 < contrastive_loss(mixed, labels)
    x = torch.randn(4, 3, requires_grad=True)
    z = torch.nn.functional.normalize(x, dim=1)
    first = -torch.log(((z[0] @ z[2]) / 0.07).exp() / sum(((z[0] @ z[j]) / 0.07).exp() for j in (1, 2, 3)))
    assert torch.allclose(contrastive_loss(x[[0, 1, 2, 3]], torch.tensor([0, 1, 0, 1])) * 4 - first, rest(z), atol=1e-4)
    contrastive_loss(x, labels).backward()
    assert torch.isfinite(x.grad).all()


def rest(z):
    """The terms of images 1 to 3 of the loss above."""
    partner = {1: 3, 2: 0, 3: 1}
    others = {i: [j for j in range(4) if j != i] for i in partner}
    return sum(
        -torch.log(((z[i] @ z[j]) / 0.07).exp() / sum(((z[i] @ z[k]) / 0.07).exp() for k in others[i]))
        for i, j in partner.items()
    )


def test_spt_mixes_lora_and_single_weights():
    config = {"share": 0.05, "rank": 1}
    plain = small_vit()
    backbone, attachment = attach("spt_lora", copy.deepcopy(plain), **config)
    expected = registry.get("spt_lora").configure(config).expected_parameters(plain)
    assert count(backbone) == expected
    assert attachment.info["lora_matrices"] > 0
    assert attachment.info["single_weights"] > 0
    assert not train(backbone)
    before = logits(backbone)
    attachment.merge()
    assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)


def test_spt_takes_the_most_sensitive_weights():
    backbone, _ = attach("spt_lora", share=0.01, threshold=100.0)  # no matrix has enough for a LoRA
    plain = small_vit().requires_grad_(True)
    images, labels = batch()
    cross_entropy(plain(images), labels).backward()
    chosen, others = [], []
    for (name, layer), (_, frozen) in zip(plain_layers(backbone), plain_layers(plain), strict=True):
        squares = frozen.get_parameter(name).grad.square().flatten()
        mask = torch.zeros(len(squares), dtype=torch.bool)
        if hasattr(layer, "sparse") and name in layer.sparse:
            mask[layer.sparse[name].indices.long()] = True
        chosen.append(squares[mask])
        others.append(squares[~mask])
    assert torch.cat(chosen).min() >= torch.cat(others).max()


def plain_layers(model):
    layers = {id(s.layer): s.layer for s in registry.get("spt_lora").configure({}).segments(model)}.values()
    return [(name, layer) for layer in layers for name in ("weight", "bias")]


@pytest.mark.parametrize("model", MODELS)
def test_spt_as_released(model):
    config = {"share": 0.05, "rank": 1, "variant": "released"}
    plain = MODELS[model]()
    backbone, attachment = attach("spt_lora", copy.deepcopy(plain), **config)
    expected = registry.get("spt_lora").configure(config).expected_parameters(plain)
    assert count(backbone) == expected == round(0.05 * (sum(p.numel() for p in plain.parameters()) - head_size(plain)))
    assert ("cls_token" in trained(backbone)) == (model == "vit")
    info = attachment.info
    assert info["lora_matrices"] > 0 and info["whole_vectors"] > 0 and info["single_weights"] > 0
    for layer in backbone.modules():  # the weights of norms are trained as whole vectors, or not at all
        if hasattr(layer, "sparse") and isinstance(layer, torch.nn.LayerNorm):
            assert all(len(update.values) == len(layer.weight) for update in layer.sparse.values())
    assert not close(logits(backbone), logits(plain), 1e-6)  # B does not start at zero
    assert not train(backbone)
    before = logits(backbone)
    attachment.merge()
    assert close(logits(backbone), before)
    assert shape_of(backbone) == shape_of(plain)


def head_size(model):
    return sum(p.numel() for p in model.get_classifier().parameters())


def test_the_loras_of_spt_as_released_are_dropped_out_but_for_proj():
    everything = 3072 / 44_928  # a LoRA in every matrix, all vectors and the class token
    backbone, _ = attach("spt_lora", share=everything, rank=1, variant="released")
    block = backbone.blocks[0]
    layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    found = {name: layer.slots["parallel"][0] for name, layer in layers.items()}
    assert {name: loras.dropout.p for name, loras in found.items()} == {"qkv": 0.1, "proj": 0.0, "fc1": 0.1, "fc2": 0.1}
    assert all(loras.drop_path.drop_prob == 0.1 for loras in found.values())
    assert [len(loras.branches) for loras in found.values()] == [3, 1, 1, 1]


def test_spt_as_released_looks_at_sixteen_batches():
    seen = []

    def calibration(size):
        for _ in range(20):
            seen.append(size)
            yield batch()

    for variant, batches in (("released", 16), ("paper", 20)):
        seen.clear()
        context = dataclasses.replace(make_context(), calibration=calibration)
        registry.get("spt_lora").configure({"share": 0.05, "rank": 1, "variant": variant}).attach(small_vit(), context)
        assert seen == [32] * batches


def test_spt_allocation():
    scores = [torch.tensor([9.0, 8.0, 7.0, 6.0, 0.1, 0.1]), torch.tensor([5.0, 0.0]), torch.tensor([4.0, 3.0, 0.0])]

    def chosen(budget, costs=(3, None, 2), share=1.0):
        layer = torch.nn.Linear(1, 1)
        common = {"layer": layer, "name": "weight", "rows": (0, 1), "singles": True}
        found = [Segment(cost=c, enough=share * c if c else 0.0, **common) for c in costs]
        return choose_whole(found, scores, budget)

    assert chosen(5) == [True, False, False]  # 3 + 1 + 1
    assert chosen(2) == [False, False, False]
    assert chosen(100) == [True, False, True]
    assert chosen(6, costs=(5, None, 2))[0] is False  # four sensitive weights cost less than five
    assert chosen(6, costs=(5, None, 2), share=0.1) == [True, False, False]  # one sensitive weight is enough


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("partial", "blocks", 0),
        ("gps", "connections", 0),
        ("gps", "loss", "hinge"),
        ("spt_lora", "share", 0.0),
        ("spt_lora", "rank", 0),
        ("spt_lora", "threshold", -1.0),
        ("spt_lora", "variant", "other"),
    ],
)
def test_bad_config_is_refused(name, field, value):
    with pytest.raises(MethodError, match=field):
        registry.get(name).configure({field: value})


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("partial", "blocks", 4),
        ("gps", "connections", 33),
        ("spt_lora", "share", 0.99),
        ("spt_lora", "share", 1e-9),
    ],
)
def test_impossible_for_the_backbone(name, field, value):
    with pytest.raises(MethodError, match=f"{field}="):
        registry.get(name).configure({field: value}).expected_parameters(small_vit())


def test_norms_without_weights_are_refused():
    with pytest.raises(MethodError, match="no norms with weights"):
        attach("norm_tuning", small_vit(norm_layer=partial(torch.nn.LayerNorm, elementwise_affine=False)))


def test_partial_trains_the_end():
    names = set(trained(attach("partial")[0]))
    assert names == {n for n, _ in small_vit().named_parameters() if n.startswith(("blocks.2.", "norm."))}


def test_copy_and_autocast():
    for name in (*SELECTING, "difffit"):
        backbone, _ = attach(name)
        twin = copy.deepcopy(backbone)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.isfinite(logits(twin)).all()
        assert not train(twin)
        assert not close(logits(twin), logits(backbone))
