"""SA2VP: both streams as the release computes them, the loss, windows, counts, the start, refusals."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from methods import testbed
from methods.base import MethodError
from methods.objective import recorded
from methods.registry import get
from methods.sa2vp import neighbours, prompt_logits, readers
from tests.conftest import batch, make_context, small_vit
from tests.method_checks import attach, count, trained, vit_b
from tests.methods.test_golden import ROUNDING, TOLERANCE, relative, with_values


def both(model, attachment, images):
    """Logits of the images, and those of the prompts."""
    with recorded(model, attachment.features) as features:
        logits = model(images)
    return logits, prompt_logits(model, features[attachment.features[0]])


def test_both_streams_and_the_gradients_of_both_are_those_of_the_release():
    golden, model, attachment = with_values("sa2vp")
    logits, prompts = both(model, attachment, golden.images)
    assert relative(logits.detach(), golden.out) < TOLERANCE
    assert relative(prompts.detach(), golden.extra["prompt_out"]) < TOLERANCE
    weighted = (logits * golden.weights).sum() + (prompts * golden.extra["prompt_w"]).sum()
    parameters = trained(model)
    found = torch.autograd.grad(weighted + logits.square().sum() + prompts.square().sum(), list(parameters.values()))
    theirs = {n.removeprefix("both:grad:"): t for n, t in golden.extra.items() if n.startswith("both:grad:")}
    assert set(theirs) == set(parameters)
    least = ROUNDING * max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in zip(parameters, found, strict=True):
        assert float(theirs[name].abs().max()) > least and relative(gradient, theirs[name]) < TOLERANCE, name


@pytest.mark.parametrize(("inner", "expected"), [(16, 372_912), (8, 202_200)])
def test_the_count_on_vit_b(inner, expected):
    model, method = vit_b(), get("sa2vp").configure({"inner": inner})
    assert method.expected_parameters(model) == expected
    method.attach(model, make_context())
    assert count(model) == expected


def test_the_loss_is_shared_by_the_streams():
    model, attachment = attach("sa2vp", dropout=0.0)
    images, labels = batch()
    losses = testbed.objective(model, attachment)(model, images, labels)
    logits, prompts = both(model, attachment, images)
    expected = 0.8 * cross_entropy(logits, labels) + 0.2 * cross_entropy(prompts, labels)
    torch.testing.assert_close(losses.total, expected)


def test_patches_see_their_neighbours_and_the_class_token_sees_all():
    mask = neighbours((4, 5), 1, torch.device("cpu"))
    assert mask.shape == (21, 21) and bool(mask[0].all()) and not bool(mask[1:, 0].any())
    for row in range(4):
        for column in range(5):
            seen = mask[1 + 5 * row + column, 1:].nonzero().flatten().tolist()
            near = [(y, x) for y in range(4) for x in range(5) if abs(y - row) <= 1 and abs(x - column) <= 1]
            assert seen == [5 * y + x for y, x in near]


@pytest.mark.parametrize(
    ("depth", "expected"),
    [(12, [0, 4, 8]), (24, [0, 8, 16]), (5, [0, 1, 3]), (3, [0, 1]), (2, [0]), (1, [])],
)
def test_the_images_feed_the_prompts_in_three_blocks_never_in_the_last(depth, expected):
    assert readers(depth) == expected


@pytest.mark.parametrize("settings", [{}, {"no_embed_class": True}, {"pos_embed": "none"}, {"pre_norm": True}])
def test_prompts_have_the_positions_of_the_tokens(settings):
    model, (images, _) = small_vit(**settings), batch(2)
    plain = model.norm_pre(model._pos_embed(model.patch_embed(images)))
    attach("sa2vp", model)
    begin = model.blocks[0].slots["input"][0]
    x = begin(plain)
    assert torch.equal(x[:2], plain)
    positions = torch.zeros(1, 17, 32)
    if model.pos_embed is not None:
        positions[:, -model.pos_embed.shape[1] :] = model.pos_embed
    expected = model.norm_pre(begin.prompts.tokens @ begin.prompts.up.weight.T + begin.prompts.up.bias + positions)
    torch.testing.assert_close(x[2:], expected.expand(2, -1, -1))


def test_the_start_and_the_dropout_of_the_frozen_part():
    model, _ = attach("sa2vp", small_vit(embed_dim=192), dropout=0.3)
    enter, leave = model.blocks[1].slots["input"][0], model.blocks[1].slots["output"][0]
    assert float(enter.own.tokens.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert float(leave.factor.detach().std()) == pytest.approx(0.02, rel=0.2)
    up = enter.cross.feed[0].up.weight.detach()
    assert 0.97 * (6 / 208) ** 0.5 < float(up.abs().max()) <= (6 / 208) ** 0.5
    assert 0 < float(enter.own.up.bias.detach().abs().max()) < 1e-5
    dropping = [name for name, m in model.named_modules() if getattr(m, "p", 0) == 0.3 and "slots" not in name]
    assert dropping == ["pos_drop", *(f"blocks.{i}.mlp.drop{j}" for i in range(3) for j in (1, 2))]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("swin", "needs one sequence of tokens of one width, which swin has not"),
        ("eva02", "serves vit, not eva"),
        ("vit_post_norm", "serves pre-norm blocks with timm's plain attention only"),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_changed(model, words):
    model = testbed.small(model)
    before = set(model.state_dict())
    with pytest.raises(MethodError, match=words):
        attach("sa2vp", model)
    assert set(model.state_dict()) == before and not trained(model)
