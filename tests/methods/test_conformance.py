"""Every registered method passes every conformance check; a new file in `methods/` is covered without an edit here."""

import itertools

import pytest

from harness.spec import RECIPE_KEYS
from methods import conformance
from methods.registry import all_methods

CASES = [
    pytest.param(method, check, id=f"{name}-{check}")
    for name, method in all_methods().items()
    for check in conformance.CHECKS
]


@pytest.mark.parametrize(("method", "check"), CASES)
def test_conforms(method, check):
    conformance.CHECKS[check](method)


def test_no_two_methods_are_the_same_under_two_names():
    found = {name: conformance.trained_function(method) for name, method in all_methods().items()}
    for (a, (kind_a, logits_a)), (b, (kind_b, logits_b)) in itertools.combinations(found.items(), 2):
        gap = conformance.relative_gap(logits_a, logits_b)
        assert kind_a != kind_b or gap > 1e-6, f"{a} and {b} train to the same function (relative gap {gap:.1e})"


def test_recipe_fields_are_those_of_the_harness():
    assert conformance.RECIPE_FIELDS == RECIPE_KEYS
