"""HST: counts, stages, the start, resizing, what a training step leaves behind, refusals."""

import copy
import math

import pytest
import torch
from torch.nn import functional

from methods import testbed
from methods.base import MethodError
from methods.hst_network import resizing
from methods.registry import get
from tests.conftest import batch, make_context, small_swin, small_vit
from tests.method_checks import attach, count, trained, vit_b


def with_classifier(model="vit", **settings):
    """A small model with HST, and the classifier that belongs to it."""
    model = testbed.small_model(model) if isinstance(model, str) else model
    return testbed.attach(get("hst"), model=model, config=get("hst").configure(settings).config)


def test_the_count_on_vit_b():
    model, method = vit_b(), get("hst")()
    assert method.expected_parameters(model) == 764_840
    assert method.attach(model, make_context()).head_width == 72
    assert count(model) == 764_840


@pytest.mark.parametrize(
    ("depth", "shares"), [(12, [3, 3, 3, 3]), (24, [6, 6, 6, 6]), (4, [1, 1, 1, 1]), (3, [1, 1, 1]), (6, [2, 1, 2, 1])]
)
def test_blocks_are_shared_out_over_the_stages(depth, shares):
    assert get("hst")().shares(depth) == shares


def test_the_maps_halve_and_the_classifier_reads_the_last_stage():
    attached, sizes = with_classifier(small_vit(depth=4, img_size=64)), []
    model = attached.model
    for stage in model.head_drop.side.stages:
        stage.register_forward_hook(lambda module, inputs, output: sizes.append(tuple(output.shape[1:])))
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 4)
    assert sizes == [(32, 16, 16), (48, 8, 8), (64, 4, 4), (72, 2, 2)]
    assert (attached.attachment.head_width, model.head.in_features) == (72, 72)


@pytest.mark.parametrize(("before", "after"), [(14, 56), (14, 28), (14, 14), (14, 7), (5, 3)])
def test_resizing_is_bilinear_interpolation(before, after):
    x = torch.randn(2, 3, before, before)
    matrix = resizing(before, after, x.device)
    expected = functional.interpolate(x, size=(after, after), mode="bilinear", align_corners=False)
    torch.testing.assert_close(matrix @ x @ matrix.T, expected, rtol=1e-5, atol=1e-6)


def test_the_start():
    model, _ = attach("hst", small_vit(embed_dim=192), widths=(64, 96), heads=(2, 4))
    values = {name: p.detach() for name, p in trained(model).items()}
    tokens = torch.stack([block.slots["input"][0].prompts.detach() for block in model.blocks])
    assert 0.97 * math.sqrt(3 / 192) < float(tokens.abs().max()) <= math.sqrt(3 / 192)
    for name, fan in (("0.embed.0", 9 * 64), ("0.embed.3", 4 * 64), ("1.embed", 9 * 96)):
        weights = values[f"head_drop.side.stages.{name}.weight"]
        assert float(weights.std()) == pytest.approx(math.sqrt(2 / fan), rel=0.1)
    fc1 = values["head_drop.side.stages.1.blocks.0.fc1.weight"]
    assert float(fc1.std()) == pytest.approx(0.02, rel=0.1)


def test_the_gradient_reaches_tokens_and_norms_through_the_backbone():
    model = with_classifier().model
    model(batch()[0]).square().sum().backward()
    for end in ("slots.input.0.prompts", "norm1.weight", "norm2.bias"):
        assert bool(model.get_parameter(f"blocks.0.{end}").grad.any()), end
    assert model.norm.weight.grad is None


def test_a_step_with_checkpointing_leaves_nothing_on_the_tape():
    model = with_classifier().model.train()
    model.set_grad_checkpointing()
    model(batch()[0]).sum().backward()
    assert not model.head_drop.side.tape.features
    copy.deepcopy(model)  # tensors of a graph would refuse


def test_a_batch_of_one_image_trains_with_the_running_statistics():
    model = with_classifier().model.train()
    norm = model.head_drop.side.norm
    norm.running_mean.normal_()
    before = norm.running_mean.clone()
    model(batch(1)[0]).sum().backward()
    assert torch.equal(norm.running_mean, before)
    model(batch(2)[0])
    assert not torch.equal(norm.running_mean, before)


def test_what_cannot_be_served_is_refused_in_a_sentence():
    for model, words in ((small_swin(), "needs one sequence of tokens"), (testbed.small("naflex"), "serves beit")):
        with pytest.raises(MethodError, match=words):
            attach("hst", model)
        assert not trained(model)
    for settings, words in (
        ({"heads": (2, 4, 8)}, "heads=.* must be a divisor of each of widths"),
        ({"widths": (30, 48, 64, 72), "heads": (4, 4, 8, 12)}, "heads"),
        ({"widths": ()}, "widths=.* must be one width or more"),
    ):
        with pytest.raises(MethodError, match=words):
            get("hst").configure(settings)
