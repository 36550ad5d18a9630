"""Res-Tuning-Bypass on sequences and maps, beside its definition written out; its start, count and gradients."""

import pytest
import torch
from torch.nn import functional

from methods import testbed
from methods.architectures import architecture_of
from methods.blocks import stages
from methods.registry import get
from tests.conftest import make_context
from tests.method_checks import attach, count, vit_b
from tests.references import given, small_images, worst


def tuned(parameters, owner, which, z):
    down, up = (f"{owner}.slots.output.0.{which}.{part}" for part in ("down", "up"))
    hidden = functional.gelu(z @ parameters[f"{down}.weight"].T + parameters[f"{down}.bias"])
    return z + hidden @ parameters[f"{up}.weight"].T + parameters[f"{up}.bias"]


def inputs_and_outputs(model, images):
    """What each block of a plain model is given and gives, by its id."""
    seen = {}

    def hear(block, inputs, out):
        seen[id(block)] = inputs[0], out

    handles = [block.register_forward_hook(hear) for stage in stages(model) for block in stage]
    model.forward_features(images)
    for handle in handles:
        handle.remove()
    return seen


def written_out(model, parameters, images, channels_first):
    def turned(x, to_last):
        return x.movedim(*((1, -1) if to_last else (-1, 1))) if channels_first else x

    names, seen = {id(module): path for path, module in model.named_modules()}, inputs_and_outputs(model, images)
    bypass = turned(seen[id(stages(model)[0][0])][0], True)
    for number, stage in enumerate(stages(model)):
        if number > 0:
            between = (model.stages if channels_first else model.layers)[number].downsample
            bypass = turned(between(turned(bypass, False)), True)
        for block in stage:
            owner, out = names[id(block)], turned(seen[id(block)][1], True)
            bypass = tuned(parameters, owner, "lateral", out) + tuned(parameters, owner, "vertical", bypass)
    architecture = architecture_of(model)
    steps = architecture.steps(model)
    rest = steps[steps.index(stages(model)[-1][-1]) + 1 :]
    return model.forward_head(architecture.run(model, rest, turned(bypass, False)))


@pytest.mark.parametrize("name", ["vit", "beit", "eva02", "swin", "swin_v2", "convnext"])
def test_it_computes_what_its_definition_says(name):
    model, plain, images = testbed.small(name).double(), testbed.small(name).double(), small_images()
    get("res_tuning").configure({"bottleneck": 3}).attach(model, make_context())
    expected = written_out(plain, given(model), images, name == "convnext")
    assert max(worst(model, expected, images)) < 1e-10


def test_the_count_on_vit_b():
    model, method = vit_b(), get("res_tuning")()
    assert method.expected_parameters(model) == 1_198_848
    method.attach(model, make_context())
    assert count(model) == 1_198_848


def test_the_start():
    model, _ = attach("res_tuning", testbed.small_vit(embed_dim=192))
    leave = model.blocks[1].slots["output"][0]
    for tuner in (leave.lateral, leave.vertical):
        for layer in (tuner.down, tuner.up):
            assert 0.95 * (6 / 224) ** 0.5 < float(layer.weight.detach().abs().max()) <= (6 / 224) ** 0.5
            assert 0 < float(layer.bias.detach().abs().max()) < 1e-5
    assert not torch.equal(leave.lateral.up.weight, leave.vertical.up.weight)


def test_without_tuners_it_is_the_sum_of_all_blocks_outputs_and_the_input():
    model, plain, images = testbed.small_vit(), testbed.small_vit(), small_images().float()
    attach("res_tuning", model)
    given(model, std=0.0)
    total = x = plain.norm_pre(plain._pos_embed(plain.patch_embed(images)))
    for block in plain.blocks:
        x = block(x)
        total = total + x
    torch.testing.assert_close(model(images), plain.forward_head(plain.norm(total)))


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_no_gradient_passes_a_block(name):
    model, seen = testbed.small(name), []
    get("res_tuning")().attach(model, make_context())
    for stage in stages(model):
        for block in stage:
            block.attn.register_forward_hook(lambda _, inputs, out: seen.append(out.requires_grad))
    model(small_images().float()).sum().backward()
    assert seen == [False] * sum(map(len, stages(model)))
