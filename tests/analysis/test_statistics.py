"""Statistics against independent implementations: brute force, exact enumeration, printed critical values."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.statistics import (
    Interval,
    average_ranks,
    friedman,
    holm,
    independent,
    nemenyi_difference,
    seeds_interval,
    tasks_interval,
    verdict,
    wilcoxon,
    win_tie_loss,
)

ACCURACIES = st.integers(0, 1000).map(lambda value: value / 10)


def matrices(max_methods=5, max_tasks=6):
    sizes = st.tuples(st.integers(2, max_methods), st.integers(2, max_tasks))
    return sizes.flatmap(
        lambda size: st.lists(
            st.lists(ACCURACIES, min_size=size[1], max_size=size[1]), min_size=size[0], max_size=size[0]
        )
    ).map(lambda rows: pd.DataFrame(rows, index=[f"m{i}" for i in range(len(rows))]))


def test_one_value_has_no_interval_and_equal_ones_none_over_seeds():
    assert not any(seeds_interval(cells).known for cells in ([], [[1.0]], [[1.0, 2.0], [3.0]]))
    assert not any(seeds_interval(cells).known for cells in ([[2.0, 2.0]], [[1.0, 1.0], [0.1 + 0.2, 0.3]]))
    assert not tasks_interval([1.0]).known and not tasks_interval([]).known
    assert tasks_interval([1.5, 1.5, 1.5]) == Interval(1.5, 1.5)  # two folders of the same runs


@given(matrices())
def test_ranks_by_counting(values):
    """Rank = 1 + number of better ones + half the number of other equal ones."""
    ranks = average_ranks(values)
    for name in values.index:
        by_hand = [
            1
            + sum(v > values.at[name, task] for v in values[task])
            + (sum(v == values.at[name, task] for v in values[task]) - 1) / 2
            for task in values
        ]
        assert ranks[name] == pytest.approx(np.mean(by_hand))
    assert ranks.sum() == pytest.approx(len(values) * (len(values) + 1) / 2)


def test_friedman_by_the_formula_and_by_permutation():
    """Demsar 2006, section 3.2.2: 12 N / (k (k + 1)) (sum of R^2 - k (k + 1)^2 / 4), without ties."""
    values = pd.DataFrame([[9, 8, 7, 9, 6.0], [5, 9, 6, 4, 5.5], [4, 3, 5, 6, 2.0]])
    ranks, (k, n) = average_ranks(values), values.shape
    formula = 12 * n / (k * (k + 1)) * ((ranks**2).sum() - k * (k + 1) ** 2 / 4)
    assert friedman(values)[0] == pytest.approx(formula)
    orders = list(itertools.permutations([1, 2, 3]))
    extreme = sum(
        12 * n / (k * (k + 1)) * ((np.mean(draw, axis=0) ** 2).sum() - k * (k + 1) ** 2 / 4) >= formula - 1e-9
        for draw in itertools.product(orders, repeat=n)
    )
    assert friedman(values)[1] == pytest.approx(extreme / 6**n, abs=0.05)  # chi-squared approximates the exact p


def test_friedman_of_demsars_average_ranks():
    """Demsar 2006, section 3.2.2: ranks 3.143, 2.000, 2.893, 1.964 on 14 data sets give 9.28; CD at 0.05 is 1.25."""
    squares = 3.143**2 + 2.0**2 + 2.893**2 + 1.964**2
    assert 12 * 14 / (4 * 5) * (squares - 4 * 25 / 4) == pytest.approx(9.28, abs=0.01)
    assert nemenyi_difference(4, 14) == pytest.approx(1.25, abs=0.005)


def test_friedman_needs_three_methods_and_two_tasks():
    assert friedman(pd.DataFrame([[1, 2], [3, 4]])) is None
    assert friedman(pd.DataFrame([[1], [3], [4]])) is None
    assert friedman(pd.DataFrame([[1.0, 2], [1, 2], [1, 2]]))[1] == 1


def test_nemenyi_critical_values_as_printed():
    """Demsar 2006, Table 5a: q at 0.05 for two to ten classifiers."""
    printed = [1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164]
    for k, q in enumerate(printed, start=2):
        assert nemenyi_difference(k, 1) / math.sqrt(k * (k + 1) / 6) == pytest.approx(q, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=9, unique=True), st.integers(0, 2**9 - 1))
def test_wilcoxon_by_enumerating_all_signs(sizes, signs):
    differences = [size if signs >> i & 1 else -size for i, size in enumerate(sizes)]
    ranks = {size: rank for rank, size in enumerate(sorted(sizes), start=1)}
    total = sum(ranks.values())

    def distance(subset):
        return abs(sum(subset) - total / 2)

    seen = distance([ranks[abs(d)] for d in differences if d > 0])
    subsets = [s for k in range(len(sizes) + 1) for s in itertools.combinations(ranks.values(), k)]
    exact = sum(distance(subset) >= seen - 1e-9 for subset in subsets) / len(subsets)
    assert wilcoxon(differences) == pytest.approx(exact)


def test_wilcoxon_of_nothing_but_zeros():
    assert wilcoxon([0.0, 0.0]) == 1
    assert math.isnan(wilcoxon([]))


def test_rounding_noise_does_not_break_ties():
    assert win_tie_loss([0.1 + 0.2 - 0.3, 1, -1]).ties == 1
    assert wilcoxon([0.3 - 0.2, 0.2 - 0.1, 5]) == wilcoxon([0.1, 0.1, 5])


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=7))
def test_holm_by_its_definition(p):
    """The corrected value is the smallest level at which the step-down procedure rejects (Holm 1979)."""
    ordered = sorted(p, key=p.get)
    corrected = holm(p)
    for position, name in enumerate(ordered):
        needed = max((len(p) - i) * p[ordered[i]] for i in range(position + 1))
        assert corrected[name] == pytest.approx(min(1, needed))
        assert corrected[name] >= p[name]


def test_holm_worked_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})


def test_interval_of_one_cell_by_the_table():
    """t(0.975, 4) = 2.776."""
    half = 2.776 * math.sqrt(2.5) / math.sqrt(5)
    for interval in (seeds_interval([[1, 2, 3, 4, 5]]), tasks_interval([1, 2, 3, 4, 5])):
        assert (interval.low, interval.high) == pytest.approx((3 - half, 3 + half), abs=1e-3)


def test_interval_over_tasks_of_equal_spread_by_hand():
    """Four tasks of s^2 = 2 and two seeds: v = 1, f half way between 4 and 4 * 3 - 2, cut at 4 * 1; t(0.975, 4)."""
    interval = seeds_interval([[m - 1, m + 1] for m in (10, 20, 30, 40)])
    assert (interval.low, interval.high) == pytest.approx((25 - 2.776 / 2, 25 + 2.776 / 2), abs=1e-3)


@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize(("tasks", "spread"), [(1, 1), (5, 1), (5, 3), (5, 6), (19, 1), (19, 10)])
def test_intervals_over_seeds_cover_what_they_say(tasks, spread, seeds):
    """`spread`: how many times the standard deviation of the most unstable task is that of the most stable one."""
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1000, tasks, seeds)) * np.geomspace(1, spread, tasks)[:, None]
    found = [seeds_interval(list(draw)) for draw in draws]
    assert 0.93 <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= 0.97


@pytest.mark.parametrize("tasks", [2, 3, 5, 19])
def test_intervals_over_tasks_cover_what_they_say(tasks):
    draws = np.random.default_rng(0).normal(3, 2, size=(1000, tasks))
    found = [tasks_interval(draw) for draw in draws]
    assert 0.93 <= np.mean([interval.low <= 3 <= interval.high for interval in found]) <= 0.97


def test_runs_on_one_draw_of_the_training_list_are_no_independent_values():
    """Three draws that differ by more than seeds do: nine runs as independent ones would cover 79 %."""
    rng, index = np.random.default_rng(0), pd.MultiIndex.from_product([range(3), range(3)])
    draws = rng.normal(0, 2, size=(1000, 3, 1)) + rng.normal(0, 1, size=(1000, 3, 3))
    found = [seeds_interval([independent(pd.Series(draw.ravel(), index=index))]) for draw in draws]
    assert 0.93 <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= 0.97
    one = pd.Series([1.0, 2.0, 4.0], index=pd.MultiIndex.from_product([[-1], range(3)]))
    assert independent(one) == [1, 2, 4]


@pytest.mark.parametrize(
    ("low", "high", "p", "text"),
    [(-0.5, 0.5, 0.9, "equal"), (0.1, 0.9, 0.01, "equal"), (0.1, 3, 0.01, "better"), (0.1, 3, 0.2, "undecided"),
     (-3, -0.1, 0.01, "worse"), (-0.5, 3, 0.01, "undecided"), (float("nan"), 1, 0.1, "unknown")],
)  # fmt: skip
def test_verdicts(low, high, p, text):
    assert verdict(Interval(low, high), p, margin=1.0) == text
