"""Every registered method passes every conformance check; a new file in `methods/` is covered without an edit here."""

import copy
import itertools

import pytest
from timm.layers import RmsNorm, SwiGLU

from harness.schema.spec import RECIPE_KEYS
from methods import conformance, conformance_settings
from methods.base import MethodError
from methods.registry import all_methods, parameters_on
from methods.testbed import attach, model_for, small_vit, train
from tests.chosen_methods import WITH_OWN_LAYERS

CASES = [
    pytest.param(method, check, id=f"{name}-{check}")
    for name, method in all_methods().items()
    for check in conformance.CHECKS
    if check != "compile" or name in WITH_OWN_LAYERS  # tracing a model takes longer than all else
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_conforms(method, check):
    conformance.CHECKS[check](method)


APART = {"spt_adapter": {"share": 0.05}}
"""Settings with which a method is told from another: by default SPT trains single weights alone on the small model."""


def trained_function(method):
    """Backbone kind, and logits after three steps: equal for two methods that are one under two names."""
    attached = attach(method, config=method.configure(APART.get(method.name, {})).config)
    train(attached)
    return model_for(method), attached.logits()


def test_no_two_methods_are_the_same_under_two_names():
    functions = {name: trained_function(method) for name, method in all_methods().items()}
    for (a, (kind_a, logits_a)), (b, (kind_b, logits_b)) in itertools.combinations(functions.items(), 2):
        gap = conformance.relative_gap(logits_a, logits_b)
        assert kind_a != kind_b or gap > 1e-6, f"{a} and {b} train to the same function (relative gap {gap:.1e})"


SHAPES = {  # how other ViTs differ from the small one, and which methods refuse them
    "registers": (
        {"reg_tokens": 2, "class_token": False, "global_pool": "avg", "fc_norm": True, "qk_norm": True},
        {"gate_vpt"},
    ),
    "no biases": ({"qkv_bias": False, "proj_bias": False, "norm_layer": RmsNorm}, set()),
    "gated": (
        {"mlp_layer": SwiGLU, "init_values": 0.1},
        {"lst"},
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_other_shapes_of_vit_work_or_are_refused_when_runs_are_planned(shape):
    arguments, refusing = SHAPES[shape]
    plain, refused = small_vit(depth=2, **arguments), set()
    for name, method in all_methods().items():
        try:
            expected = parameters_on(method(), plain)
        except MethodError:
            refused.add(name)
            continue
        attached = attach(method, model=copy.deepcopy(plain))
        trained = attached.trained()
        assert sum(p.numel() for p in trained.values()) == expected, name
        assert set(trained) == train(attached), name
        if attached.attachment.merge:
            before = attached.logits()
            attached.attachment.merge()
            assert conformance.relative_gap(attached.logits(), before) < 1e-3, name
    assert refused == refusing


def test_recipe_fields_are_those_of_the_harness():
    assert conformance_settings.RECIPE_FIELDS == RECIPE_KEYS
