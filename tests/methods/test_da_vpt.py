"""DA-VPT: the metric loss as the release computes it, the classes' prompts, the start, what is trained."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional

from methods import testbed
from methods.base import MethodError
from methods.clusters import class_means, cluster
from methods.da_vpt import PARTS, anchor_loss
from methods.registry import get
from tests import goldens
from tests.conftest import CLASSES, batch, make_context, small_vit
from tests.method_checks import attach, count, trained, vit_b
from tests.methods.test_golden import TOLERANCE, relative


def test_the_metric_loss_and_its_gradients_are_those_of_the_release():
    golden = goldens.load("da_vpt")
    model, memory = golden.plain(), {"prompts of the classes": golden.extra["mapping"]}
    attachment = golden.configured().attach(model, dataclasses.replace(golden.context(), memory=memory))
    golden.load(model)
    losses = testbed.objective(model.train(), attachment)(model, golden.extra["train_images"], golden.extra["labels"])
    metric = losses.total - losses.own
    assert relative(losses.logits.detach(), golden.extra["train_logits"]) < TOLERANCE
    assert float(metric.detach()) == pytest.approx(float(golden.extra["prompt_loss"]), rel=TOLERANCE)
    parameters = trained(model)
    found = torch.autograd.grad(metric, list(parameters.values()))
    theirs = {name.removeprefix("lossgrad:"): t for name, t in golden.extra.items() if name.startswith("lossgrad:")}
    assert set(theirs) == set(parameters)
    for name, gradient in zip(parameters, found, strict=True):
        assert relative(gradient, theirs[name]) < TOLERANCE, name


@pytest.mark.parametrize(("settings", "expected"), [({}, 249_600), ({"besides": []}, 184_320)])
def test_the_count_on_vit_b(settings, expected):
    model, context = vit_b(), make_context()
    method = get("da_vpt").configure(settings)
    assert method.expected_parameters(model) == expected
    context.memory["prompts of the classes"] = torch.zeros(100, dtype=torch.long)
    method.attach(model, context)
    assert count(model) == expected


def test_of_more_prompts_than_classes_the_first_are_guided_one_for_each_class():
    model, attachment = attach("da_vpt", guided_blocks=2, guided_tokens=50, tokens=7)
    assert [len(block.slots["input"][0].prompts) for block in model.blocks] == [7, 50, 50]
    losses = testbed.objective(model, attachment)(model, *batch())
    prompts = model.blocks[2].slots["input"][0].prompts
    (gradient,) = torch.autograd.grad(losses.total - losses.own, prompts)
    assert bool(gradient[:CLASSES].any(dim=1).all()) and not bool((gradient[CLASSES:].abs() > 1e-7).any())


def test_prompts_start_at_an_eighth_of_xaviers_bound():
    model, _ = attach("da_vpt", small_vit(embed_dim=192), guided_blocks=1, guided_tokens=4, tokens=10)
    for block, tokens, together in ((model.blocks[0], 10, 2), (model.blocks[2], 4, 1)):
        bound = math.sqrt(6 / (192 * (tokens + together))) / 8
        prompts = block.slots["input"][0].prompts.detach()
        assert 0.98 * bound < float(prompts.abs().max()) <= bound
        assert float(prompts.std()) == pytest.approx(bound / 3**0.5, rel=0.1)


def test_the_loss_is_finite_at_any_similarity_and_counts_prompts_without_images_as_zero():
    prompts, anchors = torch.eye(3, 8, requires_grad=True), torch.eye(3, 8)[:2]
    loss = anchor_loss(anchors, prompts, torch.tensor([1, 1]))
    loss.backward()
    similarity = 5 * torch.eye(3)[:2].double()
    pull = math.log1p(math.exp(32 * 0.1) + math.exp(-32 * (5 - 0.1))) / 3
    push = float((32 * (similarity[:, [0, 2]] + 0.1)).exp().sum(0).log1p().sum()) / 3
    assert float(loss) == pytest.approx(pull + push, rel=1e-6)
    assert bool(prompts.grad.isfinite().all())


def test_classes_have_the_mean_features_of_their_first_ten_images():
    model, (images, _) = small_vit(), batch(30)
    labels = torch.tensor([0, 1] * 13 + [2] * 4)
    means = class_means(model, make_context(images, labels))
    features = model.forward_features(images)[:, 0]
    for label in range(3):
        expected = features[labels == label][:10].mean(dim=0)
        torch.testing.assert_close(means[label].float(), expected, rtol=1e-4, atol=1e-5)
    assert not means[3].any()


def test_clusters_are_of_one_direction_and_depend_on_the_generator_alone():
    directions = functional.normalize(torch.randn(3, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    lengths = torch.linspace(0.1, 10, 12)[:, None]
    points = (directions.repeat(4, 1) * lengths).double()
    found = cluster(points, 3, torch.Generator().manual_seed(4))
    assert [len(set(found[start::3].tolist())) for start in range(3)] == [1, 1, 1]
    assert torch.equal(found, cluster(points, 3, torch.Generator().manual_seed(4)))
    assert cluster(points[:3], 3, torch.Generator()).tolist() == [0, 1, 2]


def test_only_the_rows_of_keys_and_values_of_a_fused_bias_are_trained():
    model, _ = attach("da_vpt", besides=["key", "value", "class_token"])
    names = {name for name in trained(model) if "prompts" not in name}
    assert names == {"cls_token", *(f"blocks.{i}.attn.qkv.sparse.bias.values" for i in range(3))}
    assert model.blocks[0].attn.qkv.sparse["bias"].indices.tolist() == list(range(32, 96))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"guided_blocks": 4}, "guided_blocks=4 must be at most the number of blocks, 3"),
        ({"besides": ["query"]}, rf"some of \('{PARTS[0]}'"),
        ({"patch_weight": -0.1}, "patch_weight=-0.1 must be at least 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(MethodError, match=words):
        attach("da_vpt", **settings)
