"""Every registered method passes every conformance check; a new file in `methods/` is covered without an edit here."""

import itertools

import pytest

from harness.spec import RECIPE_KEYS
from methods import conformance
from methods.registry import all_methods


def cases():
    """Every method with every check; `compile`, which takes most of the time, once per file of methods."""
    compiled = set()
    for name, method in all_methods().items():
        for check in conformance.CHECKS:
            if check == "compile" and method.__module__ in compiled:
                continue
            compiled |= {method.__module__} if check == "compile" else set()
            yield pytest.param(method, check, id=f"{name}-{check}")


@pytest.mark.parametrize(("method", "check"), cases())
def test_conforms(method, check):
    conformance.CHECKS[check](method)


def test_no_two_methods_are_the_same_under_two_names():
    found = {name: conformance.trained_function(method) for name, method in all_methods().items()}
    for (a, (kind_a, count_a, logits_a)), (b, (kind_b, count_b, logits_b)) in itertools.combinations(found.items(), 2):
        if kind_a == kind_b and count_a == count_b:
            gap = conformance.relative_gap(logits_a, logits_b)
            assert gap > 1e-6, f"{a} and {b} train as many parameters to the same function (relative gap {gap:.1e})"


def test_recipe_fields_are_those_of_the_harness():
    assert conformance.RECIPE_FIELDS == RECIPE_KEYS
