"""The methods beside the authors' released code: outputs, gradients, choices, counts and merges, in float64."""

import pytest
import torch

from tests import goldens
from tests.goldens import NAMES
from tests.method_checks import count, trained

TOLERANCE = 1e-6
"""Rounding in float64 is 1e-14; gradients are stored in float32, and the release of Bi-AdaptFormer holds its two levels
so."""

ROUNDING = 1e-9
"""A gradient this much smaller than the largest is zero in exact arithmetic, as that of an offset on all keys is."""

ALSO_TRAINED = {
    "consolidator_release": {"norm1", "norm2", "norm", "qkv", "proj", "fc1", "fc2"},
    "dyt": {"router"},  # in evaluation mode tokens that are left out tell it nothing: test_dyt.py trains it
}
"""Layers that are trained beside the parameters whose gradients a golden has."""


def relative(ours, theirs):
    """Largest difference, relative to the largest value expected."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-30))


def with_values(name):
    """A golden, and its model with the golden's values."""
    golden = goldens.load(name)
    model, attachment = golden.attached()
    golden.load(model)
    return golden, model, attachment


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients(name):
    golden, model, _ = with_values(name)
    out = model(golden.images)
    assert relative(out.detach(), golden.out) < TOLERANCE
    if not golden.grads:
        return
    parameters = {n: p for n, p in trained(model).items() if n in golden.grads}
    others = {n.split(".")[-2] for n in set(trained(model)) - set(parameters)}
    assert (set(parameters), others) == (set(golden.grads), ALSO_TRAINED.get(name, set()))
    found = torch.autograd.grad(golden.objective(out), list(parameters.values()), materialize_grads=True)
    largest = max(float(gradient.abs().max()) for gradient in golden.grads.values())
    for parameter, ours in zip(parameters, found, strict=True):
        theirs = golden.grads[parameter]
        zero = theirs.abs().max() < ROUNDING * largest and ours.abs().max() < ROUNDING * largest
        assert zero or relative(ours, theirs) < TOLERANCE, parameter


@pytest.mark.parametrize("name", NAMES)
def test_counts_and_choices(name):
    golden = goldens.load(name)
    model, attachment = golden.attached()
    assert count(model) == golden.configured().expected_parameters(golden.plain())
    if golden.channels is not None:
        assert attachment.info["channels"] == golden.channels


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_merge_and_float32(name):
    golden, model, attachment = with_values(name)
    images = golden.images
    assert relative(model.float()(images.float()).double(), golden.out) < 1e-4
    if attachment.merge is None:
        return
    golden.load(model.double())
    attachment.merge()
    assert relative(model(images), golden.out) < TOLERANCE
    assert set(model.state_dict()) == set(golden.plain().state_dict())


def test_the_readme_says_what_is_compared():
    text = (goldens.FOLDER.parents[2] / "methods" / "README.md").read_text()
    assert goldens.comparison() in text, f"methods/README.md should hold:\n{goldens.comparison()}"


def test_goldens_stay_small():
    assert sum(path.stat().st_size for path in goldens.FOLDER.iterdir()) < 6_000_000
