"""VFPT beside its definition written out in double precision."""

import math

import pytest
import torch

from methods.base import MethodError
from methods.registry import get
from methods.testbed import small_vit
from tests.conftest import batch, make_context
from tests.method_checks import attach, count, logits, vit_b
from tests.references import classified, double_vit, embedded, given, run_block, small_images, worst


def transformed(prompts, dimension):
    """Sums of cosines, entry by entry."""
    rows, d = prompts.shape
    over_tokens, over_channels = dimension != "channels", dimension != "tokens"
    result = []
    for s in range(rows):
        for k in range(d):
            total = 0.0
            for t in range(rows) if over_tokens else [s]:
                channels = torch.arange(d, dtype=torch.float64) if over_channels else torch.tensor([float(k)])
                angle = (s * t / rows if over_tokens else 0) + (k * channels / d if over_channels else 0 * channels)
                total = total + (prompts[t][channels.long()] * torch.cos(2 * math.pi * angle)).sum()
            result.append(total)
    return torch.stack(result).view(rows, d)


def written_out(vit, parameters, images, transform, dimension):
    x = embedded(vit, images)
    for number, block in enumerate(vit.blocks):
        prompts = parameters[f"blocks.{number}.slots.input.0.prompts"]
        entering = [transformed(prompts[:transform], dimension), prompts[transform:]] if transform else [prompts]
        x = torch.cat([x[:, :1], torch.cat(entering).expand(len(x), -1, -1), x[:, 1:]], 1)
        x = run_block(block, x)
        x = torch.cat([x[:, :1], x[:, 1 + len(prompts) :]], 1)
    return classified(vit, x)


CASES = [(0.5, 2, "all"), (1.0, 5, "all"), (0.5, 2, "tokens"), (0.5, 2, "channels"), (0.39, 1, "all"), (0.1, 0, "all")]


@pytest.mark.parametrize(("fraction", "transform", "dimension"), CASES)
def test_it_computes_what_its_definition_says(fraction, transform, dimension):
    model, images = double_vit(), small_images()
    attach("vfpt", model, tokens=5, fraction=fraction, dimension=dimension)
    expected = written_out(double_vit(), given(model), images, transform, dimension)
    assert max(worst(model, expected, images)) < 1e-10


def test_the_count_on_vit_b():
    model, method = vit_b(), get("vfpt")()
    assert method.expected_parameters(model) == 92_160
    method.attach(model, make_context())
    assert count(model) == 92_160


def test_fraction_0_is_vpt_deep():
    fourier, plain = (attach(name, **settings)[0] for name, settings in [("vfpt", {"fraction": 0.0}), ("vpt_deep", {})])
    assert torch.equal(logits(fourier), logits(plain))


def test_transformed_prompts_are_a_hundred_times_as_large_at_the_start():
    model, _ = attach("vfpt", small_vit(embed_dim=768, num_heads=12, patch_size=16))
    insertion = model.blocks[0].slots["input"][0].eval()
    first = insertion.form(insertion.prompts[None])[0, :5].detach()
    assert float(first.std()) == pytest.approx(0.0625 * (5 * 768 / 6) ** 0.5, rel=0.1)


def test_one_dropped_entry_changes_all_of_an_images_transform():
    model, _ = attach("vfpt", tokens=4, fraction=0.5)
    insertion = model.blocks[0].slots["input"][0].train()
    entered = insertion(batch(2)[0].new_zeros(2, 17, 32))[:, 1:5].detach()
    assert bool((entered[0, :2] != entered[1, :2]).float().mean() > 0.9)
    shared = (entered[0, 2:] == entered[1, 2:]).float().mean()  # of the plain ones most are kept in both
    assert 0.5 < float(shared) < 1


def test_half_precision_transforms_in_float32():
    model, _ = attach("vfpt")
    insertion = model.blocks[0].slots["input"][0].eval()
    exact = insertion.form(insertion.prompts[None])
    half = insertion.form(insertion.prompts[None].bfloat16())
    assert half.dtype == torch.bfloat16 and torch.allclose(half.float(), exact, rtol=0.02, atol=0.02)


def test_fractions_that_transform_as_many_are_one_configuration():
    method, model = get("vfpt"), small_vit()
    assert method.configure({"fraction": 0.59}).resolve(model).fraction == 0.5
    assert method.configure({"fraction": 1.0}).resolve(model).fraction == 1.0
    with pytest.raises(MethodError, match="fraction"):
        method.configure({"fraction": 1.1})
