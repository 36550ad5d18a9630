"""SPT-Adapter: the release's choice, what its adapters read and cost, its start and its training mode."""

import dataclasses
import math

import pytest
import torch

from methods import registry
from methods.base import MethodError
from methods.segments import allot
from methods.sensitive import Dropped
from tests import goldens
from tests.conftest import make_context, small_vit
from tests.method_checks import MODELS, attach, close, count, logits, train, trained, vit_b

UNIT = 5000
"""Of the golden's budgets; the release's is a million."""


def method(**config):
    return registry.get("spt_adapter").configure(config)


def released_choice(segments, scores, budget, token):
    """Whole segments, number of parameters and cut-off of the last of the release's 79 cut-offs that comes nearest to
    the budget."""
    ranked = torch.cat(scores).sort(descending=True).values
    found = []
    for k in range(1, 80):
        cut = ranked[math.ceil(0.02 * k * UNIT) - 1]
        whole, total = allot(segments, [int((score >= cut).sum()) for score in scores])
        found.append((abs(total + token - budget), -k, whole, total + token, cut))
    _, _, whole, total, cut = min(found, key=lambda one: one[:2])
    return whole, total, cut


@pytest.mark.parametrize("budget", ["0.1", "0.2", "0.4", "0.6"])
def test_it_chooses_as_the_release_does(budget):
    golden = goldens.load("spt_adapter")
    spt, model, extra = method(rank=2, variant="released"), golden.plain(), golden.extra
    batches = list(zip(extra["images"].split(4), extra["labels"].split(4), strict=True))
    context = dataclasses.replace(golden.context(), calibration=lambda size: iter(batches))
    segments = spt.segments(model)
    scores = spt.sensitivities(model, segments, context)
    whole, total, cut = released_choice(segments, scores, float(budget) * UNIT, model.cls_token.numel())
    assert whole == extra[f"{budget}:whole"].tolist()
    assert total == round(float(extra[f"{budget}:total"]))
    singles = [torch.zeros_like(s) if yes else s for s, yes in zip(scores, whole, strict=True)]
    assert torch.equal((torch.cat(singles) >= cut).nonzero().flatten(), extra[f"{budget}:singles"].long())


def test_adapters_everywhere_cost_what_the_release_counts():
    segments = method().segments(vit_b())
    assert sum(s.cost for s in segments if s.is_matrix) == 1_410_624
    assert method().expected_parameters(vit_b()) == 428_993  # the default budget, 0.5 % of 85,798,656


def everything(model, **config):
    """The model with an adapter in every matrix, and the adapters by layer."""
    spt = method(rank=1, **config)
    segments = spt.segments(model)
    every = [s.is_matrix and s.cost is not None for s in segments]
    context = dataclasses.replace(
        make_context(), memory={"weights": (every, torch.zeros(0, dtype=torch.long))}
    )  # a resumed run's
    spt.attach(model, context)
    block = model.blocks[0]
    layers = {"qkv": block.attn.qkv, "proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    return {name: [*layer.slots["parallel"], *layer.slots["output"]] for name, layer in layers.items()}


def test_adapters_read_outputs_and_that_of_the_projection_its_input():
    plain, model = small_vit().blocks[0].mlp.fc1, small_vit()
    adapters = everything(model)
    assert [len(found) for found in adapters.values()] == [3, 1, 1, 1]
    layer, (adapter,) = model.blocks[0].mlp.fc1, adapters["fc1"]
    torch.nn.init.ones_(adapter.branch.up.weight)
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))
    y = plain(x)
    assert torch.allclose(layer(x), y + adapter.branch(y))
    (beside,) = adapters["proj"]
    torch.nn.init.ones_(beside.up.weight)
    projected = small_vit().blocks[0].attn.proj(x)
    assert torch.allclose(model.blocks[0].attn.proj(x), projected + beside(x))
    query, _, value = adapters["qkv"]
    torch.nn.init.ones_(value.branch.up.weight)
    change = model.blocks[0].attn.qkv(x) - small_vit().blocks[0].attn.qkv(x)
    assert (value.start, value.stop) == (64, 96) and query.start == 0
    assert not change[..., :64].any() and change[..., 64:].abs().min() > 0


def test_as_released_adapters_are_dropped_out_but_for_the_projections():
    adapters = everything(small_vit(), variant="released")
    modules = {name: getattr(found[0], "branch", found[0]) for name, found in adapters.items()}
    assert all(isinstance(module, Dropped) and module.drop_path.drop_prob == 0.1 for module in modules.values())
    assert {n: m.dropout.p for n, m in modules.items()} == {"qkv": 0.1, "proj": 0.0, "fc1": 0.1, "fc2": 0.1}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("variant", ["paper", "released"])
def test_start_and_budget(model, variant):
    config = {"share": 0.05, "rank": 1, "variant": variant}
    plain = MODELS[model]()
    backbone, attachment = attach("spt_adapter", model, **config)
    assert count(backbone) == method(**config).expected_parameters(plain)
    assert attachment.info["adapter_matrices"] > 0 and attachment.info["single_weights"] > 0
    assert attachment.merge is None
    weights = [p for n, p in trained(backbone).items() if n.endswith((".up.weight", ".down.weight"))]
    assert all(p.any() for p in weights) == (variant == "released")
    assert torch.equal(logits(backbone), logits(plain)) == (variant == "paper")
    assert not train(backbone)
    assert not close(logits(backbone), logits(plain), 1e-2)


def test_the_start_has_the_spread_of_the_release():
    model = small_vit(embed_dim=192)
    everything(model, variant="released")
    weights = torch.cat([p.flatten() for n, p in trained(model).items() if n.endswith(("up.weight", "down.weight"))])
    assert float(weights.detach().std()) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(("field", "value"), [("share", 0.0), ("rank", 0), ("threshold", -1.0), ("variant", "other")])
def test_bad_config_is_refused(field, value):
    with pytest.raises(MethodError, match=field):
        method(**{field: value})
