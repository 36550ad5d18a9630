"""A training step of a method that runs the model twice, in the model's own precision."""

import torch
from torch.nn.functional import cross_entropy

from methods.objective import Objective
from tests.method_checks import trained
from tests.methods.test_golden import TOLERANCE, relative


def first_pass(model, attachment, images, labels):
    """A batch as a training step gives it to the penalty."""
    return Objective(model=model, attachment=attachment, loss=cross_entropy).batch(model, images, labels)


def in_turn(monkeypatch, module, name, numbers):
    """Let a module's drawing function give these tensors, one after the other; returns what is left of them."""
    left = list(numbers)
    monkeypatch.setattr(module, name, lambda *_: left.pop(0))
    return left


def same_gradients(golden, model, total):
    expected = {n.removeprefix("traingrad:"): g for n, g in golden.extra.items() if n.startswith("traingrad:")}
    parameters = {n: p for n, p in trained(model).items() if n in expected}
    assert set(parameters) == set(expected) == set(trained(model))
    found = torch.autograd.grad(total, list(parameters.values()), materialize_grads=True)
    for ours, name in zip(found, parameters, strict=True):
        assert relative(ours, expected[name]) < TOLERANCE, name
