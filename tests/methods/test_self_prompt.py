"""Self-Prompt Tuning: the start beside the released code's, and what it is drawn from."""

import dataclasses

import pytest
import torch

from methods import testbed
from methods.registry import get
from methods.self_prompt import BATCH, patch_tokens, tokens_at
from tests import goldens
from tests.conftest import make_context
from tests.method_checks import attach, count, logits, vit_b
from tests.references import double_vit, embedded, run_block, small_images


def test_chosen_rows_are_the_releases_prompts():
    arrays = goldens._arrays("starts/self_prompt_tuning")
    images, expected = torch.from_numpy(arrays["images"]), torch.from_numpy(arrays["prompts"])
    vit = goldens.load("cvpt").plain()  # the same backbone
    for size in (1, 2, 3):
        batches = zip(images.split(size), images.split(size), strict=True)
        found = tokens_at(vit, batches, arrays["rows"].tolist())
        torch.testing.assert_close(torch.stack(found).double(), expected, rtol=1e-6, atol=1e-6)  # held in float32
    tables = patch_tokens(vit, images, 2)
    for table, rows, prompts in zip(tables, arrays["rows"], expected, strict=True):
        assert float((table.flatten(0, 1)[rows] - prompts).abs().max()) < 1e-12


@torch.no_grad()
def test_tables_are_patches_without_positions_and_what_blocks_are_given():
    vit, images = double_vit(), small_images(3)
    tables, x = patch_tokens(vit, images, 3), embedded(vit, images)
    torch.testing.assert_close(tables[0], x[:, 1:] - vit.pos_embed[:, 1:], rtol=1e-10, atol=1e-10)
    for number in (1, 2):
        x = run_block(vit.blocks[number - 1], x)
        torch.testing.assert_close(tables[number], x[:, 1:], rtol=1e-10, atol=1e-10)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in vit.modules())


def prompts(model):
    inputs = [getattr(block, "slots", {"input": []})["input"] for block in model.blocks]
    return [module.prompts.detach() for each in inputs for module in each]


@pytest.mark.parametrize(("name", "tokens"), [("self_prompt_deep", 20), ("self_prompt_shallow", 100)])
@pytest.mark.parametrize("kind", ["vit", "naflex", "dinov3", "eva02", "beit", "deit_distilled"])
def test_the_start_is_distinct_tokens_of_the_training_images(name, tokens, kind):
    model, plain = (testbed.small_model(kind) for _ in range(2))
    get(name)().attach(model, make_context())
    images = torch.cat([each for each, _ in make_context().calibration(8)])
    found = prompts(model)
    assert len(found) == (1 if "shallow" in name else 3)
    for own, table in zip(found, patch_tokens(plain, images, len(found)), strict=True):
        near = torch.cdist(own, table.flatten(0, 1), compute_mode="donot_use_mm_for_euclid_dist")
        assert float(near.min(1).values.max()) < 1e-3 and len(near.argmin(1).unique()) == tokens


def test_images_without_a_chosen_row_do_not_pass_the_model():
    model, seen = testbed.small_vit(), []
    model.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = torch.randn(3 * BATCH, 3, 32, 32)
    batches = list(zip(images.split(BATCH), images.split(BATCH), strict=True))
    found = tokens_at(model, batches, [[5, 16 * 2 * BATCH, 7], [16, 20, 3]])
    assert seen == [2, 1]  # images 0 and 1, and the first of the third batch
    expected = patch_tokens(model, images[:2], 2)[1]
    assert torch.allclose(found[1], torch.stack([expected[1, 0], expected[1, 4], expected[0, 3]]), atol=1e-5)


def test_blocks_and_seeds_draw_anew_and_what_is_drawn_is_remembered():
    context = make_context()
    model = testbed.small_vit()
    get("self_prompt_deep")().attach(model, context)
    drawn = context.memory["prompts"]
    assert all(torch.equal(a, b) for a, b in zip(prompts(model), drawn, strict=True))

    def closed(size):
        raise AssertionError("looks at the data again")

    again, other = testbed.small_vit(), testbed.small_vit()
    get("self_prompt_deep")().attach(again, dataclasses.replace(context, calibration=closed))
    assert torch.equal(logits(again), logits(model))
    get("self_prompt_deep")().attach(other, make_context(seed=1))
    assert not torch.equal(logits(other), logits(model))


@pytest.mark.parametrize(("name", "parameters"), [("self_prompt_deep", 184_320), ("self_prompt_shallow", 76_800)])
def test_the_count_on_vit_b(name, parameters):
    method, model = get(name)(), vit_b()
    assert method.expected_parameters(model) == parameters
    blocks = 12 if "deep" in name else 1
    start = [torch.zeros(method.config.tokens, 768) for _ in range(blocks)]
    method.attach(model, dataclasses.replace(make_context(), memory={"prompts": start}))
    assert count(model) == parameters


def test_where_patches_are_few_some_start_several_prompts():
    model, _ = attach("self_prompt_shallow", tokens=200)  # 8 images of 16 patches
    (found,) = prompts(model)
    counts = torch.unique(found, dim=0, return_counts=True)[1]
    assert len(counts) > 64 and int(counts.max()) == 2
