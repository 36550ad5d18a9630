"""SCT: scores against a reference that stores every activation, exact top-K, the module, the parameter count."""

import pytest
import timm
import torch
from conftest import CLASSES, batch, make_context, small_swin, small_vit
from hypothesis import given, settings
from hypothesis import strategies as st

from methods.base import MethodError
from methods.blocks import blocks
from methods.registry import get
from methods.sct.module import SalientChannels
from methods.sct.selection import class_aware_scores, top_channels


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
    found = blocks(model)
    batches = zip(images.split(size), labels.split(size), strict=True)
    widths = [b.norm1.normalized_shape[0] for b in found]
    return class_aware_scores(model, [b.norm2 for b in found], widths, batches, CLASSES)


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


def test_published_parameter_count():
    model = timm.create_model("vit_base_patch16_224", num_classes=0)
    assert get("sct")().expected_parameters(model) == 12 * (96 * 96 + 96) == 111_744
