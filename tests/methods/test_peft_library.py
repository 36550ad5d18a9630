"""Tuners of the peft package: counts on ViT-B/16, configs that are refused, starts from data, AdaLoRA's schedule."""

import dataclasses
import json

import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

from harness.commands.main import app
from harness.models.backbones import skeleton
from methods.base import MethodError
from methods.conformance_tools import without_data
from methods.peft_library.adalora import AdaLoRA
from methods.peft_library.common import PeftMethod
from methods.peft_library.data_driven import random_batches
from methods.registry import all_methods, get
from methods.testbed import (
    CLASSES,
    MODELS,
    Attached,
    attach,
    batch,
    make_context,
    separable,
    small_model,
    small_vit,
    train,
)

PEFT = {name: method for name, method in all_methods().items() if issubclass(method, PeftMethod)}

VIT_B = {  # depth 12, d 768, qkv 768 -> 2304; defaults
    "lora": 12 * 8 * (768 + 2304),
    "lora_plus": 12 * 8 * (768 + 2304),
    "dora": 12 * (8 * (768 + 2304) + 2304),
    "lora_fa": 12 * 8 * 2304,
    "mica": 12 * 8 * 768,
    "adalora": 12 * 12 * (768 + 2304 + 1),
    "loha": 12 * 2 * 8 * (768 + 2304),
    "lokr": 12 * (48 * 24 + 8 * (48 + 32)),
    "ia3": 12 * (2304 + 3072),
    "ln_tuning": 12 * 4 * 768,
    "oft": 12 * 96 * 28,
    "vera": 12 * (256 + 2304),
    "vblora": 12 * 4 * 12 * 90 + 90 * 256,
    "fourierft": 12_000,
    "c3a": 12 * 2304,
    "unilora": 512,
}


@pytest.fixture(scope="module")
def vit_b():
    return skeleton("vit_base_patch16_224")


@pytest.mark.parametrize("name", VIT_B)
def test_parameters_on_vit_b(vit_b, name):
    assert get(name)().expected_parameters(vit_b) == VIT_B[name]


@pytest.mark.parametrize(
    ("name", "model"),
    [
        (name, model)
        for name, method in PEFT.items()
        for model in ("vit", "swin", "eva02")
        if name != "ln_tuning" and MODELS[model].name in method.serves
    ],
)
def test_formula_holds_on_all_four_layers(name, model):
    model = small_model(model)
    few = {"fourierft": {"frequencies": 9}, "waveft": {"coefficients": 9}}.get(name, {})
    method = PEFT[name].configure({"targets": ("qkv", "proj", "fc1", "fc2"), **few})
    expected = method.expected_parameters(model)
    method.attach(model, make_context())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


def test_frod_refuses_layers_of_different_shapes():
    with pytest.raises(MethodError, match="'frod' needs one sequence of tokens of one width, which swin has not"):
        PEFT["frod"]().attach(small_model("swin"), make_context())


@pytest.mark.parametrize("name", PEFT)
def test_wrong_values_are_refused_by_name(name):
    wrong = {"rank": 0, "alpha": -1.0, "targets": ("head",), "dropout": 1.5, "scale": 0.0, "block": 1, "length": 0}
    fields = {f.name for f in dataclasses.fields(PEFT[name].Config)}
    for field in fields & set(wrong):
        with pytest.raises(MethodError, match=f"{field}="):
            PEFT[name].configure({field: wrong[field]})
    with pytest.raises(MethodError, match="no setting 'rnak'"):
        PEFT[name].configure({"rnak": 1})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("oft", {"block": 7}),
        ("boft", {"block": 7}),
        ("bone", {"rank": 7}),
        ("psoft", {"rank": 33}),
        ("c3a", {"parts": 5}),
        ("vblora", {"length": 7}),
        ("road", {"group": 10}),
        ("lora_ga", {"rank": 17}),
        ("adalora", {"init_rank": 33}),
        ("kasa", {"rank": 32}),
        ("miss", {"rank": 33}),
        ("shira", {"rank": 25}),
        ("supertuning", {"sparsity": 0.9999}),
        ("deft", {"rank": 97}),
        ("adamss", {"clusters": 97}),
        ("lily", {"experts": 1}),
        ("vera", {"start": 0.0}),
        ("pvera", {"start": float("nan")}),
        ("vblora", {"top": 1}),
        ("psoft", {"rank": 1}),
        ("lora", {"targets": ("qkv", "qkv")}),
    ],
)
def test_what_does_not_fit_is_refused_when_runs_are_planned(name, values):
    with pytest.raises(MethodError, match=f"{next(iter(values))}="):
        PEFT[name].configure(values).expected_parameters(small_vit())


def test_the_order_of_targets_makes_no_other_run():
    assert PEFT["lora"].configure({"targets": ("fc1", "qkv")}).config == PEFT["lora"].Config(targets=("qkv", "fc1"))


def test_layers_that_a_backbone_lacks_are_refused_by_name():
    with pytest.raises(MethodError, match="no linear layer qkv"):
        PEFT["lora"].configure({"targets": ("qkv",)}).expected_parameters(small_model("convnext"))
    model = small_vit()
    model.blocks[1].mlp.fc1 = nn.Conv2d(32, 128, 1)
    with pytest.raises(MethodError, match="fc1 of this backbone's blocks is a Conv2d, no linear layer"):
        PEFT["lora"].configure({"targets": ("fc1",)}).expected_parameters(model)


@pytest.mark.parametrize("name", [name for name in PEFT if name != "psoft"])  # its seed is for another SVD
def test_every_seed_that_peft_takes_is_drawn_from_the_run(name):
    config = PEFT[name]().peft_config(small_vit(), 12345)
    assert {value for key, value in vars(config).items() if "seed" in key or "prng" in key} <= {12345, None}


@pytest.mark.parametrize(
    ("name", "values"), [("frod", {"sparsity": 1e-9}), ("deft", {"rank": 96}), ("adamss", {"clusters": 96})]
)
def test_formula_holds_at_the_bounds(name, values):
    model, method = small_vit(), PEFT[name].configure(values)
    expected = method.expected_parameters(model)
    method.attach(model, make_context())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("name", ["eva", "lora_ga"])
def test_the_start_depends_on_the_training_images(name):
    starts = []
    for seed in (1, 2):
        model = small_vit()
        PEFT[name]().attach(model, make_context(*batch(16, seed=seed)))
        starts.append(Attached(model, None, 0.0, frozenset()).trained())
    assert any(not torch.equal(starts[0][n], starts[1][n]) for n in starts[0])


def test_starts_see_images_of_the_whole_training_split():
    images, labels = torch.arange(300).float()[:, None], torch.arange(300) // 100
    batches = random_batches(make_context(images, labels))
    assert [len(y) for _, y in batches] == [32] * 8
    seen, classes = (torch.cat(each) for each in zip(*batches, strict=True))
    assert len(seen.unique()) == 256 and torch.equal(classes, seen[:, 0].long() // 100)
    assert all(len(y.unique()) == 3 for _, y in batches)


@pytest.mark.parametrize("name", ["eva", "lora_ga"])
def test_few_images_are_enough(name):
    PEFT[name]().attach(small_vit(), make_context(*batch(1)))


def test_adalora_ends_with_its_rank_budget():
    model, steps = small_vit(), 10
    method = AdaLoRA.configure({"init_rank": 6, "target_rank": 2, "interval": 1})
    attachment = method.attach(model, make_context(steps=steps))
    train(Attached(model, attachment, 0.0, frozenset()), steps=steps, data=separable())
    alive = sum(int((p != 0).sum()) for n, p in model.named_parameters() if ".lora_E." in n)
    assert alive == 3 * 2
    assert float(attachment.penalty(None)) > 0


def test_adalora_refuses_a_training_too_short_to_prune():
    with pytest.raises(MethodError, match="total_steps=1"):
        AdaLoRA().attach(small_vit(), make_context(steps=1))


@pytest.mark.parametrize("steps", [2, 3, 7])
def test_adalora_takes_any_number_of_steps(steps):
    model = small_vit()
    attachment = AdaLoRA().attach(model, make_context(steps=steps))
    train(Attached(model, attachment, 0.0, frozenset()), steps=steps)


@pytest.mark.parametrize("name", ["pissa", "olora", "lora_ga"])
def test_residual_starts_change_the_weight_and_keep_the_function(name):
    plain, attached = small_vit(), attach(PEFT[name])
    assert not torch.equal(plain.blocks[0].attn.qkv.weight, attached.model.blocks[0].attn.qkv.base_layer.weight)
    with torch.no_grad():
        assert torch.allclose(plain(batch()[0]), attached.logits(), atol=1e-5)


@pytest.mark.parametrize("name", ["boft", "frod", "kasa", "lora_ga", "olora", "pissa"])
def test_layers_that_a_tuner_changes_are_not_kept(name):
    block = timm.create_model("vit_base_patch16_224", depth=1, img_size=32, num_classes=CLASSES).requires_grad_(False)
    attached = attach(PEFT[name], model=block.eval())
    kept = [*attached.state().values(), *tensors_in(attached.memory)]
    assert 12 * sum(t.numel() * t.element_size() for t in kept) < 32 * 2**20  # ViT-B has twelve blocks


def test_nor_are_they_in_a_composition():
    compose = get("compose").configure({"parts": ("bitfit", "pissa")})
    attached = attach(get("compose"), config=compose.config)
    again = attach(get("compose"), config=compose.config, context=without_data(attached.memory, seed=1))
    weights = {n: t for n, t in attached.model.named_parameters() if n.endswith(".base_layer.weight")}
    assert len(weights) == 3 and not set(weights) & set(attached.state())
    assert all(torch.equal(again.model.get_parameter(n), t) for n, t in weights.items())


def tensors_in(value):
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return [tensor for item in items for tensor in tensors_in(item)]


def test_kasa_takes_the_smallest_singular_directions_away():
    plain, attached = small_vit(), attach(PEFT["kasa"])
    weight, frozen = plain.blocks[0].attn.qkv.weight, attached.model.blocks[0].attn.qkv.base_layer.weight
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = PEFT["kasa"].Config().rank
    expected = left[:, :-rank] * values[:-rank] @ right[:-rank]
    assert torch.allclose(frozen, expected, atol=1e-5)


def test_methods_command_counts_and_shows_refusals():
    result = CliRunner().invoke(app, ["methods", "--backbone", "swin_tiny_patch4_window7_224", "--json"])
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["lora"]["parameters"] == 8 * 4 * (2 * 96 + 2 * 192 + 6 * 384 + 2 * 768)
    assert rows["vpt_deep"]["parameters"] == "needs one sequence of tokens of one width, which swin has not"
    assert rows["lora"]["mergeable"] and not rows["sct"]["mergeable"]


def test_mica_trains_a_between_the_smallest_directions_of_the_weight():
    plain, attached = small_vit(), attach(PEFT["mica"])
    layer = attached.model.blocks[0].attn.qkv
    left = torch.linalg.svd(plain.blocks[0].attn.qkv.weight).U[:, 24:32]  # [96, 32] has 32 singular values
    up = layer.lora_B["default"].weight
    assert torch.allclose(up @ up.T, left @ left.T, atol=1e-4)
    assert not any(".lora_B." in name for name in attached.trained())


def test_oft_stays_a_rotation():
    from peft.tuners.oft.layer import OFTRotationModule

    attached = attach(PEFT["oft"])
    train(attached, steps=20, lr=0.05)
    rotations = [m.get_weight().detach() for m in attached.model.modules() if isinstance(m, OFTRotationModule)]
    assert len(rotations) == 3
    for r in rotations:
        assert float((r @ r.T - torch.eye(len(r))).abs().max()) < 1e-5
        assert float((r - torch.eye(len(r))).abs().max()) > 0.1


def test_lora_of_the_noah_release_redraws_both_factors():
    model = small_vit()
    PEFT["lora"].configure({"variant": "noah_release", "dropout": 0.1}).attach(model, make_context())
    factors = Attached(model, None, 0.0, frozenset()).trained().values()
    assert all(0.015 < float(factor.detach().std()) < 0.025 for factor in factors)
    assert model.blocks[0].attn.qkv.scaling == {"default": 1.0}
