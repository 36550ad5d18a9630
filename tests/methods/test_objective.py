"""What a penalty sees of a step, and what an attachment says of steps, groups and the classifier."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from methods import testbed
from methods.base import Attachment, MethodError, ParameterGroup
from methods.blocks import replace_classifier
from methods.objective import Objective, require_sound
from tests.conftest import batch, small_swin, small_vit

IMAGES, LABELS = batch()


def objective(model, smoothing=0.0, **fields):
    attachment = Attachment(**fields)
    return Objective(
        model=model,
        attachment=attachment,
        loss=lambda logits, targets: cross_entropy(logits, targets, label_smoothing=smoothing),
    )


def test_a_penalty_sees_the_batch_and_what_the_model_made_of_it():
    model, seen = small_vit(), []

    def penalty(batch):
        seen.append(batch)
        return 2 * batch.logits.mean()

    losses = objective(model, penalty=penalty, features=("norm", "blocks.1"))(model, IMAGES, LABELS)
    (given,) = seen
    assert torch.equal(given.images, IMAGES) and torch.equal(given.labels, LABELS)
    assert set(given.features) == {"norm", "blocks.1"}
    assert torch.equal(model.head(given.pooled), given.logits)
    assert torch.equal(given.features["norm"][:, 0], given.pooled)
    torch.testing.assert_close(losses.own, cross_entropy(model(IMAGES), LABELS))
    torch.testing.assert_close(losses.total, losses.own + 2 * losses.logits.mean())
    assert not any(module._forward_hooks for module in model.modules())


def test_other_logits_are_scored_as_the_models_own_are():
    model = small_vit()
    losses = objective(model, smoothing=0.1, penalty=lambda batch: batch.loss(batch.logits))(model, IMAGES, LABELS)
    assert torch.equal(losses.total, 2 * losses.own)


def test_mixed_images_have_the_label_of_their_largest_share():
    shares = torch.tensor([[0.2, 0.8, 0, 0], [0.6, 0, 0.4, 0]])
    labels = []
    model = small_vit()

    def penalty(batch):
        labels.append(batch.labels.tolist())
        return batch.loss(batch.logits)

    losses = objective(model, penalty=penalty)(model, IMAGES[:2], shares)
    assert labels == [[1, 0]] and torch.equal(losses.total, 2 * losses.own)


def test_a_second_pass_has_logits_and_features_of_its_own():
    model = small_vit(drop_path_rate=0.5).train()

    def penalty(batch):
        again = batch.forward()
        assert not torch.equal(again.features["norm"], batch.features["norm"])
        return (again.logits - batch.logits).square().sum()

    torch.manual_seed(0)
    losses = objective(model, penalty=penalty, features=("norm",), forward_passes=2)(model, IMAGES, LABELS)
    assert float(losses.total) > float(losses.own)


@pytest.mark.parametrize(("declared", "run"), [(1, 2), (3, 2), (2, 1)])
def test_passes_that_are_not_declared_are_refused(declared, run):
    model = small_vit()

    def penalty(batch):
        for _ in range(run - 1):
            batch.forward()
        return batch.logits.sum()

    with pytest.raises(MethodError, match=f"runs the model {run} times, `Attachment.forward_passes` says {declared}"):
        objective(model, penalty=penalty, forward_passes=declared)(model, IMAGES, LABELS)


@pytest.mark.parametrize("fields", [{"features": ("norm",)}, {"forward_passes": 2}])
def test_what_only_a_penalty_needs_is_refused_without_one(fields):
    with pytest.raises(MethodError, match="are the penalty's, and there is none"):
        require_sound(small_vit(), Attachment(**fields))


def test_what_an_attachment_says_of_its_model_must_hold():
    model = small_vit()
    weight = model.blocks[0].mlp.fc1.weight.requires_grad_(True)
    groups = (ParameterGroup(parameters=(weight,)),)
    require_sound(model, Attachment(penalty=lambda batch: batch.logits.sum(), features=("blocks.0",), groups=groups))
    with pytest.raises(MethodError, match=r"names 'block\.0', but the model has no module of that name"):
        require_sound(model, Attachment(features=("block.0",)))
    for wrong in ((weight, weight), (model.norm.weight,), (torch.nn.Parameter(torch.zeros(3)),)):
        with pytest.raises(MethodError, match="twice, or one that is not trained"):
            require_sound(model, Attachment(groups=(ParameterGroup(parameters=wrong),)))


@pytest.mark.parametrize("model", [small_vit, small_swin])
def test_a_classifier_for_other_features_takes_the_place_of_the_backbones(model):
    model = model()
    state = torch.get_rng_state()
    new = replace_classifier(model, 7, torch.Generator().manual_seed(0))
    assert model.get_classifier() is new and new.weight.shape == (testbed.CLASSES, 7)
    assert torch.equal(state, torch.get_rng_state()) and not new.weight.requires_grad and not new.bias.any()
