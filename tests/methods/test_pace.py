"""PACE: the release's training pass with given noise, where the noise is, and how it leaves the model."""

import pytest
import torch

from methods import pace, registry
from methods.base import MethodError
from tests import goldens
from tests.conftest import small_vit
from tests.method_checks import attach, close, logits, train, vit_b
from tests.methods.test_golden import TOLERANCE, relative, with_values
from tests.two_passes import first_pass, in_turn, same_gradients


def test_a_training_pass_of_pace_is_the_releases(monkeypatch):
    golden, model, attachment = with_values("pace")
    labels, extra = golden.extra["labels"], golden.extra
    layers = [*(f"blocks.1.{layer}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")), "head"]
    draws = [extra[f"normal:{layer}"].split(len(labels)) for layer in layers]
    left = in_turn(
        monkeypatch, pace, "normal_like", [half.double() for halves in zip(*draws, strict=True) for half in halves]
    )
    batch = first_pass(model.train(), attachment, golden.images, labels)
    own, penalty = batch.loss(batch.logits), attachment.penalty(batch)
    assert not left
    assert relative(batch.logits.detach(), extra["train_logits_first"]) < TOLERANCE
    assert relative(own.detach(), extra["cls_loss"]) < TOLERANCE
    assert relative((own + penalty).detach(), extra["total_loss"]) < TOLERANCE
    same_gradients(golden, model, own + penalty)


def levels(model):
    layers = [layer for layer in model.modules() if isinstance(layer, pace.NoisyChange | pace.LogitNoise)]
    return [layer.level for layer in layers]


def test_the_noise_of_pace_falls_with_depth():
    model, _ = attach("pace", sigma=0.9)  # three blocks
    assert levels(model) == pytest.approx([0.0] * 4 + [0.9] * 4 + [0.6] * 4 + [0.3])
    swin, _ = attach("pace", "swin", sigma=1.0)  # two stages of two blocks
    assert levels(swin) == pytest.approx([1.0] * 4 + [0.8] * 4 + [0.6] * 5 + [0.4] * 4 + [0.2])
    assert torch.equal(goldens.load("pace").extra["sigma_of_block"], torch.tensor([0, 1.2, 0.6], dtype=torch.float64))


def test_the_noise_of_pace_is_on_the_change_alone_and_the_same_for_all_tokens():
    model, attachment = attach("pace")
    layer, x = model.blocks[1].mlp.fc1.train(), torch.ones(2, 5, 32)
    assert torch.equal(layer(x), small_vit().blocks[1].mlp.fc1(x))  # nothing is changed yet
    with torch.no_grad():
        layer.change.a.fill_(0.1)
    out = layer(x).detach()
    assert torch.equal(out[:, :1].expand_as(out), out) and not close(out[0], out[1])
    model.train()
    noisy, again = (model(torch.ones(2, 3, 32, 32)).detach() for _ in range(2))
    assert not close(noisy, again) and attachment.forward_passes == 2


def test_pace_takes_its_noise_off_the_classifier_when_it_merges():
    model, attachment = attach("pace")
    train(model)
    before = logits(model)
    attachment.merge()
    assert close(logits(model), before) and type(model.head) is torch.nn.Linear
    _, swin = attach("pace", "swin")
    assert swin.merge is None  # between its stages are layers without bias


def test_count_on_vit_b():
    assert registry.get("pace").configure({}).expected_parameters(vit_b()) == 2_203_104  # as counted on the release


@pytest.mark.parametrize(("field", "value"), [("rank", 0), ("sigma", -1.0), ("consistency", 0.0)])
def test_bad_config_is_refused(field, value):
    with pytest.raises(MethodError, match=field):
        registry.get("pace").configure({field: value})
