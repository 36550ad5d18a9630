"""VAPT beside its definition written out in double precision."""

import pytest
import torch

from methods.base import MethodError
from methods.registry import get
from methods.testbed import small_vit
from tests.conftest import make_context
from tests.method_checks import attach, count, vit_b
from tests.references import classified, double_vit, embedded, given, run_block, small_images, worst

SHARED = "blocks.1.slots.input.0.refine"


def computed(parameters, number, patches, grid):
    """Prompts of a block from its patches, [batch, rows * columns, channels]."""
    own = f"blocks.{number}.slots.input.0"
    centred = patches - patches.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * parameters[f"{own}.norm.weight"] + parameters[f"{own}.norm.bias"]
    kernel = parameters[f"{own}.kernel"]
    weight, bias = parameters[f"{own}.mix.weight"], parameters[f"{own}.mix.bias"]
    rows, columns = grid
    positions = []
    for r in range(rows - 1):
        for c in range(columns - 1):
            places = [(i, j, (r + i) * columns + c + j) for i in (0, 1) for j in (0, 1)]
            positions.append(sum(kernel[i, j] * normed[:, place] for i, j, place in places))
    prompts = []
    for p in range(len(bias)):
        z = sum(weight[p, n] * position for n, position in enumerate(positions)) + bias[p]
        hidden = (z @ parameters[f"{SHARED}.down.weight"].T).clamp_min(0)
        prompts.append(z + hidden @ parameters[f"{SHARED}.up.weight"].T)
    return torch.stack(prompts, 1)


def written_out(vit, parameters, images, tokens, grid=(4, 4)):
    x = embedded(vit, images)
    learned = parameters["blocks.0.slots.input.0.prompts"].expand(len(x), -1, -1)
    x = torch.cat([x[:, :1], learned, x[:, 1:]], 1)
    for number, block in enumerate(vit.blocks):
        if number > 0:
            patches = x[:, 1 + tokens :]
            x = torch.cat([x[:, :1], computed(parameters, number, patches, grid), patches], 1)
        x = run_block(block, x)
    return classified(vit, x)


@pytest.mark.parametrize("tokens", [1, 3])
def test_it_computes_what_its_definition_says(tokens):
    model, images = double_vit(), small_images()
    attach("vapt", model, tokens=tokens)
    assert max(worst(model, written_out(double_vit(), given(model), images, tokens), images)) < 1e-10


@torch.no_grad()
def test_a_grid_need_not_be_square():
    model = small_vit(img_size=(32, 24)).double()
    attach("vapt", model, tokens=2)
    images, parameters = small_images()[..., :24], given(model)
    expected = written_out(small_vit(img_size=(32, 24)).double(), parameters, images, 2, (4, 3))
    torch.testing.assert_close(model(images), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("settings", "parameters"), [({}, 55_608), ({"tokens": 5, "bottleneck": 4}, 36_274)])
def test_the_count_on_vit_b(settings, parameters):
    method, model = get("vapt").configure(settings), vit_b()
    assert method.expected_parameters(model) == parameters
    method.attach(model, make_context())
    assert count(model) == parameters


def test_the_start_is_prompts_of_zero_behind_block_0():
    model, _ = attach("vapt", small_vit(embed_dim=192))
    first, second = (model.blocks[i].slots["input"][0] for i in (1, 2))
    entered = first(torch.randn(2, 1 + 10 + 16, 192))
    assert not entered[:, 1:11].any() and entered[:, 11:].any()
    assert hasattr(first, "refine") and not hasattr(second, "refine") and second.shared[0] is first.refine
    for weight, inputs in ((first.refine.down.weight, 192), (first.refine.up.weight, 8)):
        assert 0.95 * inputs**-0.5 < float(weight.detach().abs().max()) <= inputs**-0.5
    assert not torch.equal(first.kernel, second.kernel)


def test_dropout_takes_whole_channels_of_an_image():
    model, _ = attach("vapt", dropout=0.5, tokens=9)
    module = model.blocks[1].slots["input"][0].train()
    torch.nn.init.eye_(module.mix.weight)
    torch.nn.init.zeros_(module.refine.up.weight)
    positions = module(torch.randn(2, 1 + 9 + 16, 32))[:, 1:10].detach()
    dropped = (positions == 0).all(1)
    assert torch.equal(dropped, (positions == 0).any(1)) and not torch.equal(dropped[0], dropped[1])


def test_one_row_of_patches_is_refused():
    model = small_vit(img_size=(8, 32))
    with pytest.raises(MethodError, match=r"grid of patches=\(1, 4\) must be 2 x 2 at least"):
        attach("vapt", model)
    assert not hasattr(model.blocks[0], "slots")
