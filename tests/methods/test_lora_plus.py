"""LoRA+: B learns faster than A, also as a part of a composition."""

import pytest

from harness.schema.optimizers import make_optimizer, set_rate
from harness.schema.spec import Recipe
from methods.base import MethodError
from methods.registry import get
from tests.method_checks import attach, logits, trained


def rates(model, attachment, rate):
    """The learning rate and the weight decay of each trained parameter, at this rate of the recipe."""
    optimizer = make_optimizer(model, Recipe(lr=1e-3, weight_decay=0.01), attachment.groups)
    set_rate(optimizer, rate)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: (groups[id(p)]["lr"], groups[id(p)]["weight_decay"]) for name, p in trained(model).items()}


@pytest.mark.parametrize("ratio", [16.0, 4.0])
def test_the_optimiser_trains_b_with_a_multiple_of_the_rate_of_a(ratio):
    model, attachment = attach("lora_plus", ratio=ratio)
    found = rates(model, attachment, rate=0.5)
    assert {name for name, _ in found.items() if "lora_B" in name} and len(found) == 6
    for name, (rate, decay) in found.items():
        assert (rate, decay) == (0.5 * ratio if "lora_B" in name else 0.5, 0.01), name


def test_in_a_composition_the_other_parts_keep_the_recipes_rate():
    model, attachment = attach("compose", parts=("lora_plus", "vpt_deep"))
    fast = {name for name, (rate, _) in rates(model, attachment, rate=1.0).items() if rate == 16}
    assert fast == {name for name in trained(model) if "lora_B" in name}


def test_it_computes_what_lora_computes():
    (plus, _), (plain, _) = attach("lora_plus"), attach("lora")
    assert set(trained(plus)) == set(trained(plain)) and bool((logits(plus) == logits(plain)).all())


def test_a_ratio_below_one_is_refused():
    with pytest.raises(MethodError, match=r"ratio=0\.5 must be at least 1"):
        get("lora_plus").configure({"ratio": 0.5})
