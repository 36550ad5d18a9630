"""Every method works on a backbone that is held in bfloat16, as a large one on a GPU may be."""

import pytest

from methods.registry import all_methods
from methods.testbed import CLASSES, attach, batch, make_context, model_for, small_model
from tests.method_checks import trained


@pytest.mark.parametrize("name", all_methods())
def test_a_backbone_held_in_bfloat16_is_served(name):
    method = all_methods()[name]
    images, labels = batch()
    images = images.bfloat16()
    model = small_model(model_for(method)).bfloat16()
    attach(method, model=model, context=make_context(images, labels))
    logits = model.train()(images)
    assert logits.shape == (8, CLASSES) and bool(logits.isfinite().all())
    if trained(model):
        logits.float().square().sum().backward()
        grads = [p.grad for p in trained(model).values() if p.grad is not None]
        assert grads and all(bool(g.isfinite().all()) for g in grads)
