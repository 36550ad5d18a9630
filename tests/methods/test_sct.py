"""SCT: scores against a reference that stores every activation, exact top-K, the module, the parameter count."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.base import MethodError
from methods.blocks import blocks
from methods.registry import get
from methods.sct.module import SalientChannels
from methods.sct.selection import Tap, feature_sums, saliency_sums, top_channels
from tests.conftest import CLASSES, batch, make_context, small_swin, small_vit


def reference_scores(model, images, labels):
    """protocol: one L2 norm per class over all its images and patch tokens, then the mean over the classes present."""
    kept = {}
    hooks = [
        block.norm2.register_forward_pre_hook(lambda _, x, i=i: kept.__setitem__(i, x[0].double()))
        for i, block in enumerate(blocks(model))
    ]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    prefix = getattr(model, "num_prefix_tokens", 0)
    scores = []
    for features in (kept[i] for i in range(len(kept))):
        tokens = features.flatten(1, -2)[:, prefix:]
        norms = [torch.linalg.vector_norm(tokens[labels == c], dim=(0, 1)) for c in labels.unique()]
        scores.append(torch.stack(norms).mean(0))
    return scores


def score(model, images, labels, size):
    batches = zip(images.split(size), labels.split(size), strict=True)
    taps = [Tap(b.norm2, "input", slice(0, b.norm1.normalized_shape[0])) for b in blocks(model)]
    return feature_sums(model, taps, batches, CLASSES).class_aware()


@pytest.mark.parametrize("build", [small_vit, small_swin])
@pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 0, 0, 0, 0, 0, 1], [2] * 8])
def test_scores_equal_a_reference_that_stores_all_activations(build, labels):
    # The second case has a class with one image, the last has classes without any.
    model, (images, _) = build(), batch()
    labels = torch.tensor(labels)
    expected = reference_scores(model, images, labels)
    for size in (8, 3):
        for ours, theirs in zip(score(model, images, labels, size), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)  # batches change float32 features a little


def test_scores_of_the_same_batches_are_exact():
    model, (images, labels) = small_vit(), batch()
    for ours, theirs in zip(score(model, images, labels, 8), reference_scores(model, images, labels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)


def test_class_tokens_do_not_count():
    model, (images, labels) = small_vit(), batch()
    before = score(model, images, labels, 8)
    with torch.no_grad():
        model.cls_token += 100
        model.blocks[0].attn.proj.weight.zero_()  # so that the class token reaches no patch in the first block
    after = score(model, images, labels, 8)
    model.blocks[0].attn.proj.weight.zero_()
    assert not torch.equal(before[1], after[1])
    again = small_vit()
    with torch.no_grad():
        again.blocks[0].attn.proj.weight.zero_()
    torch.testing.assert_close(after[0], score(again, images, labels, 8)[0])


def test_scoring_leaves_no_hook_behind():
    model, (images, labels) = small_vit(), batch()
    score(model, images, labels, 8)
    assert not any(module._forward_pre_hooks for module in model.modules())


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
@settings(deadline=None)
def test_top_channels_is_exact_under_ties(values, data):
    count = data.draw(st.integers(1, len(values)))
    chosen = top_channels(torch.tensor(values, dtype=torch.float64), count).tolist()
    by_hand = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:count])
    assert chosen == by_hand


def test_all_channels_may_be_chosen_but_not_more():
    assert top_channels(torch.ones(5), 5).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(MethodError, match="channels=6 must be at most"):
        top_channels(torch.ones(5), 6)


def test_more_channels_than_the_backbone_has_are_refused_before_any_image_is_seen(vit):
    def no_images(_):
        raise AssertionError("images were read")

    context = make_context()
    object.__setattr__(context, "calibration", no_images)
    with pytest.raises(MethodError, match="channels=33 must be at most the width of the backbone's blocks, 32"):
        get("sct").configure({"channels": 33}).attach(vit, context)


def test_zero_channels_are_refused():
    with pytest.raises(MethodError, match="channels=0 must be at least 1"):
        get("sct").configure({"channels": 0})


def test_module_adds_a_linear_map_of_the_chosen_channels_only():
    torch.manual_seed(0)
    module = SalientChannels(torch.tensor([1, 4]), torch.nn.Linear(2, 2))
    x = torch.randn(3, 5, 6)
    expected = x.clone()
    expected[..., [1, 4]] += x[..., [1, 4]] @ module.linear.weight.T + module.linear.bias
    torch.testing.assert_close(module(x), expected)


def test_attached_module_acts_between_attention_and_mlp(vit, context):
    images, _ = batch()
    get("sct").configure({"channels": 4}).attach(vit, context)
    block, x = vit.blocks[0], torch.randn(2, 17, 32)
    middle = x + block.attn(block.norm1(x))
    middle = block.slots["after_attention"][0](middle)
    torch.testing.assert_close(block(x), middle + block.mlp(block.norm2(middle)))
    assert vit(images).shape == (8, CLASSES)


def test_attach_reports_the_channels_that_the_scores_name(vit):
    images, labels = batch()
    expected = [top_channels(s, 4).tolist() for s in reference_scores(vit, images, labels)]
    attachment = get("sct").configure({"channels": 4}).attach(vit, make_context(images, labels))
    assert attachment.info["channels"] == expected
    assert attachment.info["selection_seconds"] > 0


def sct(**config):
    return get("sct").configure(config)


def qkv_taps(model):
    return [Tap(b.attn.qkv, "output", slice(s, s + 32)) for b in blocks(model) for s in (0, 64)]


def test_queries_and_values_are_ranked_separately(vit):
    images, labels = batch()
    kept = []
    hook = vit.blocks[1].attn.qkv.register_forward_hook(lambda m, i, o: kept.append(o.double()))
    vit.forward_features(images)
    hook.remove()
    sums = feature_sums(vit, qkv_taps(vit), [(images, labels)], CLASSES)
    for part, ours in ((slice(0, 32), sums.class_aware()[2]), (slice(64, 96), sums.class_aware()[3])):
        tokens = kept[0][:, 1:, part]
        norms = [torch.linalg.vector_norm(tokens[labels == c], dim=(0, 1)) for c in range(CLASSES)]
        torch.testing.assert_close(ours, torch.stack(norms).mean(0))


def test_l2_is_one_norm_over_all_images(vit):
    images, labels = batch()
    tap = Tap(vit.blocks[2], "output", slice(0, 32))
    features = vit.forward_intermediates(images, intermediates_only=True, norm=False)[2]
    expected = features.double().flatten(2).square().sum(dim=(0, 2)).sqrt()
    torch.testing.assert_close(feature_sums(vit, [tap], [(images, labels)], CLASSES).l2()[0], expected)


def test_gradient_saliency_is_feature_times_gradient(vit):
    """Against the model taken apart by hand at the residual stream after the first block's attention."""
    images, labels = batch()
    block, tap = vit.blocks[0], Tap(vit.blocks[0].norm2, "input", slice(0, 32))
    x = vit._pos_embed(vit.patch_embed(images))
    middle = (x + block.attn(block.norm1(x))).requires_grad_(True)
    rest = vit.blocks[1:](middle + block.mlp(block.norm2(middle)))
    logits = vit.forward_head(vit.norm(rest))
    (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"), middle)
    expected = (middle * gradient).double().square().sum(dim=(0, 1)).sqrt().detach()
    ours = saliency_sums(vit, [tap], zip(images.split(3), labels.split(3), strict=True), CLASSES).l2()[0]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("mode", ["attn", "mlp", "qkv"])
def test_gradient_rule_tells_the_channels_of_the_last_block_apart(vit, context, mode):
    images = next(context.calibration(8))[0]
    chosen = sct(mode=mode, selection="gradient", channels=6).attach(vit, context).info["channels"]
    assert all(indices != [0, 1, 2, 3, 4, 5] for indices in chosen)  # what equal scores give
    assert not images.requires_grad


def test_scores_that_are_all_equal_are_refused(vit, context):
    vit.head.weight.zero_()
    with pytest.raises(MethodError, match="selection='gradient'"):
        sct(selection="gradient").attach(vit, context)


@pytest.mark.parametrize("selection", ["class_aware", "l2", "random", "lowest", "gradient"])
@pytest.mark.parametrize("mode", ["attn", "mlp", "qkv"])
@pytest.mark.parametrize("build", [small_vit, small_swin])
def test_every_rule_works_in_every_mode(build, mode, selection):
    model, (images, _) = build(), batch()
    method = sct(mode=mode, selection=selection, channels=5)
    expected = method.expected_parameters(model)
    info = method.attach(model, make_context()).info
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == expected == len(info["channels"]) * 30
    assert all(indices == sorted(set(indices)) and len(indices) == 5 for indices in info["channels"])
    model(images).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)


def test_lowest_is_the_other_end():
    chosen = [
        sct(selection=s, channels=16).attach(small_vit(), make_context()).info["channels"]
        for s in ("class_aware", "lowest")
    ]
    assert all(set(high) | set(low) == set(range(32)) for high, low in zip(*chosen, strict=True))


def test_fixed_indices_are_used_as_given(vit, context):
    given = ((3, 1), (0, 31), (5, 6))
    info = sct(selection="fixed", channels=2, indices=given).attach(vit, context).info
    assert info["channels"] == [[1, 3], [0, 31], [5, 6]]


@pytest.mark.parametrize("indices", [((0, 1),) * 2, ((0, 0),) * 3, ((0, 32),) * 3, ((0, 1, 2),) * 3])
def test_impossible_fixed_indices_are_refused(vit, indices):
    with pytest.raises(MethodError, match=r"indices=.* must be 3 tuples"):
        sct(selection="fixed", channels=2, indices=indices).expected_parameters(vit)


@pytest.mark.parametrize(
    ("scaling", "formula"),
    [
        ("none", lambda x, update: x + update),
        ("output", lambda x, update: x + 0.3 * update),
        ("input", lambda x, update: 0.3 * x + update),
    ],
)
def test_scale_variants_are_the_released_formulas(scaling, formula):
    indices, linear, x = torch.tensor([0, 2]), torch.nn.Linear(2, 2), torch.randn(4, 3)
    scale, keep = {"none": (1, 1), "output": (0.3, 1), "input": (1, 0.3)}[scaling]
    expected = x.clone()
    expected[:, [0, 2]] = formula(x[:, [0, 2]], linear(x[:, [0, 2]]))
    torch.testing.assert_close(SalientChannels(indices, linear, scale, keep)(x), expected)


def test_zero_init_is_the_identity(vit, context):
    images, _ = batch()
    before = vit(images)
    sct(init="zero").attach(vit, context)
    torch.testing.assert_close(vit(images), before, rtol=0, atol=0)


@pytest.mark.parametrize("scaling", ["none", "output", "input"])
@pytest.mark.parametrize("mode", ["mlp", "qkv"])
@pytest.mark.parametrize("build", [small_vit, small_swin])
def test_modes_behind_a_linear_layer_merge(build, mode, scaling):
    model, (images, _) = build(), batch()
    plain = {name: type(module) for name, module in model.named_modules()}
    scale = 1.0 if scaling == "none" else 0.5
    attachment = sct(mode=mode, channels=6, scaling=scaling, scale=scale).attach(model, make_context())
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.3)
    before = model(images)
    attachment.merge()
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    assert {name: type(module) for name, module in model.named_modules()} == plain


def test_a_residual_module_cannot_be_merged(vit, context):
    assert sct(mode="attn").attach(vit, context).merge is None


def test_chosen_blocks_alone_are_tuned(vit, context):
    assert sct(blocks=(2, 0), channels=4).expected_parameters(vit) == 2 * 20
    sct(blocks=(2, 0), channels=4).attach(vit, context)
    assert [hasattr(block, "slots") for block in vit.blocks] == [True, False, True]
    with pytest.raises(MethodError, match=r"blocks=.* must be below 3"):
        sct(blocks=(3,)).expected_parameters(vit)


@pytest.mark.parametrize(
    "config",
    [
        {"mode": "attention"},
        {"selection": "best"},
        {"scaling": "output", "scale": -1.0},
        {"scale": 0.5},
        {"init": "ones"},
        {"blocks": (1, 1)},
        {"indices": ((1,),)},
        {"selection": "fixed"},
    ],
)
def test_bad_settings_are_refused_by_name(config):
    with pytest.raises(MethodError, match="must be"):
        sct(**config)


@pytest.mark.parametrize(
    ("name", "config", "count"),
    [
        ("vit_base_patch16_224", {}, 111_744),  # the paper's 0.11 M, 12 * (96 * 96 + 96)
        ("vit_base_patch16_224", {"mode": "mlp"}, 111_744),
        ("vit_base_patch16_224", {"mode": "qkv"}, 223_488),
        ("vit_large_patch16_224", {}, 24 * (128 * 128 + 128)),
        ("vit_huge_patch14_224", {}, 32 * (160 * 160 + 160)),
        ("swin_base_patch4_window7_224", {"channels": 96}, 102_432),  # 11 blocks, as in the released Swin code
    ],
)
def test_published_parameter_counts(name, config, count):
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert sct(**config).expected_parameters(model) == count
