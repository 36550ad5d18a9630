"""The class token alone after the last attention: only where no other token is read."""

import pytest
import torch
from torch import nn

from harness.training import evaluation, fast_path
from tests.conftest import small_swin, small_vit
from tests.fast_path_models import (
    DATA,
    HALF,
    IMAGES,
    all_tokens,
    attached,
    is_alone,
    no_cached_features,
    same_training,
    trained,
    trainer,
    with_module,
)


class Mean(nn.Module):
    """Reads all tokens, through a weight that is zero at the start."""

    stateless = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return x + self.weight * x.mean(dim=1, keepdim=True)


class Grid(nn.Module):
    """Must have the patches, though they do not matter to the class token."""

    stateless = True

    def forward(self, x):
        return torch.cat([x[:, :1], x[:, 1:].reshape(len(x), 4, 4, -1).flatten(1, 2)], dim=1)


@pytest.mark.parametrize("method", ["linear", "full", "lora", "sct", "vpt_deep", "ssf", "adapter_pfeiffer"])
@pytest.mark.parametrize("drop_path", [0.0, 0.3])
def test_training_the_class_token_alone_is_the_plain_training(method, drop_path, monkeypatch):
    no_cached_features(monkeypatch)
    alone = trainer(method, small_vit(drop_path_rate=drop_path))
    assert is_alone(alone.model.train())
    alone.fit()
    logits = evaluation.predict(alone.model, DATA, HALF, "float32")
    all_tokens(monkeypatch)
    plain = trained(method, small_vit(drop_path_rate=drop_path))
    same_training(alone, plain)
    torch.testing.assert_close(logits, evaluation.predict(plain.model, DATA, HALF, "float32"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        lambda: small_vit(global_pool="avg"),
        lambda: with_module(Mean(), block=2),
        lambda: with_module(Grid(), block=2),
        lambda: with_module(nn.Dropout(0.1), block=2).train(),
        lambda: attached("convpass")[0],
        lambda: attached("lst")[0],
    ],
)
def test_tokens_that_are_read_are_computed(model):
    assert not is_alone(model())


def test_a_hook_may_read_anything():
    model = small_vit()
    model.norm.register_forward_hook(lambda *_: None)
    assert not is_alone(model)
    assert trained("linear", model, epochs=1).plan.start == ""


def test_a_swin_is_left_alone():
    model = small_swin()
    with fast_path.class_token_alone(model, IMAGES):
        assert not hasattr(model.layers[-1].blocks[-1], "slots")
