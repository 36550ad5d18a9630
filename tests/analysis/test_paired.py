"""Paired tests on images against direct computations: enumeration, scipy, resampling image by image, simulation."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.paired import Paired, bootstrap, compare_images, mcnemar, none_kept, outcomes, over_both, sentence
from analysis.statistics import Interval, smallest_wilcoxon, wilcoxon
from harness.errors import HarnessError
from tests.table_records import predictions


@pytest.mark.parametrize("counts", [(0, 0), (0, 1), (3, 3), (0, 12), (7, 19), (31, 50), (410, 301), (8101, 7904)])
def test_mcnemar_is_scipys_exact_binomial_test(counts):
    exact = stats.binomtest(counts[0], sum(counts)).pvalue if sum(counts) else 1
    assert mcnemar(*counts) == pytest.approx(exact, rel=1e-12, abs=0)
    assert mcnemar(*counts) == mcnemar(*counts[::-1])


@pytest.mark.parametrize("discordant", range(1, 8))
def test_mcnemar_by_enumerating_all_signs(discordant):
    sums = [abs(sum(signs)) for signs in itertools.product([-1, 1], repeat=discordant)]
    for first_only in range(discordant + 1):
        seen = abs(2 * first_only - discordant)
        assert mcnemar(first_only, discordant - first_only) == pytest.approx(np.mean([s >= seen for s in sums]))


def test_the_bootstrap_by_enumerating_all_resamples():
    images = np.array([1, 1, 1, -1, 0, 0])
    means = [100 * images[list(drawn)].mean() for drawn in itertools.product(range(6), repeat=6)]
    found = bootstrap(3, 1, 6)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))


def test_the_bootstrap_is_one_that_draws_image_by_image():
    images, rng = np.repeat([1, -1, 0], [60, 30, 310]), np.random.default_rng(1)
    means = 100 * images[rng.integers(0, 400, size=(10_000, 400))].mean(axis=1)
    found = bootstrap(60, 30, 400)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.26)
    assert found == bootstrap(60, 30, 400)


def drawn(rng, trainings, images, spread):
    """Right or wrong of two methods alike: images and both methods' own images differ, and seeds by `spread`."""
    size = (2, trainings, images)
    seeds = spread * rng.normal(size=(2, trainings, 1))
    right = 0.8 + rng.normal(size=images) + 0.5 * rng.normal(size=(2, 1, images)) + seeds + 0.7 * rng.normal(size=size)
    return np.subtract(*(right > 0).astype(float))


def test_variance_over_images_and_seeds_by_the_mean_squares():
    """Two-way layout, both factors random (Searle, Linear Models, 1971): V = (MS_s + MS_i - MS_e) / (S N)."""
    values = drawn(np.random.default_rng(3), 4, 50, 0.2)
    seeds, images = values.shape
    mean, of_seed, of_image = values.mean(), values.mean(axis=1), values.mean(axis=0)
    ms_seed = images * sum((a - mean) ** 2 for a in of_seed) / (seeds - 1)
    ms_image = seeds * sum((b - mean) ** 2 for b in of_image) / (images - 1)
    rest = sum((values[s, i] - of_seed[s] - of_image[i] + mean) ** 2 for s in range(seeds) for i in range(images))
    squares, freedoms = np.array([ms_seed, ms_image, rest / (seeds - 1) / (images - 1)]), np.array([3, 49, 147])
    variance = (squares[0] + squares[1] - squares[2]) / values.size
    t = stats.t((variance * values.size) ** 2 / (squares**2 / freedoms).sum())
    interval, p = over_both(values)
    half = t.ppf(0.975) * variance**0.5
    assert (interval.low, interval.high) == pytest.approx((mean - half, mean + half), rel=1e-12)
    assert p == pytest.approx(2 * t.sf(abs(mean) / variance**0.5), rel=1e-12)


@pytest.mark.parametrize("spread", [0, 0.1, 0.4])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_intervals_over_images_and_seeds_cover_what_they_say(seeds, spread):
    rng = np.random.default_rng(0)
    found = [over_both(drawn(rng, seeds, 300, spread))[0] for _ in range(500)]
    assert 0.9 <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= 0.99


def test_percentiles_over_images_and_seeds_or_over_images_alone_would_not():
    """Of two seeds, half of the resamples hold one alone, and none goes beyond them."""
    rng, covered = np.random.default_rng(0), []
    for _ in range(150):
        values = drawn(rng, 2, 300, 0.4)
        seeds, images = rng.integers(0, 2, size=(200, 2, 1)), rng.integers(0, 300, size=(200, 1, 300))
        resampled = values[seeds, images].mean(axis=(1, 2)), values.mean(axis=0)[images[:, 0]].mean(axis=1)
        covered.append([np.prod(np.quantile(means, [0.025, 0.975])) <= 0 for means in resampled])
    both, images_alone = np.mean(covered, axis=0)
    assert images_alone < 0.5 < both < 0.75


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 4), st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_p_is_below_5_per_cent_where_the_interval_leaves_out_zero(seeds, images, state):
    values = np.random.default_rng(state).integers(-1, 2, size=(seeds, images)).astype(float)
    interval, p = over_both(values)
    assume(interval.low < interval.high)
    assert (p < 0.05) == (interval.low > 0 or interval.high < 0) or p == pytest.approx(0.05)


def test_trainings_that_agree_in_everything():
    assert over_both(np.zeros((2, 40))) == (Interval(0, 0), 1)
    assert over_both(np.ones((2, 3))) == (Interval(1, 1), 0.25)


def test_two_methods_image_by_image():
    first, second = predictions([0, 0, 0, 1, 2]), predictions([0, 1, 0, 1, 0])  # the class of every image is 0
    pair = compare_images({(-1, 0): first}, {(-1, 0): second})
    assert (pair.images, pair.trainings, pair.first, pair.second) == (5, 1, 60, 60)
    assert (pair.first_only, pair.second_only, pair.agreement, pair.oracle) == (1, 1, 60, 80)
    assert (pair.p, pair.interval) == (1, bootstrap(1, 1, 5))
    assert np.isnan(pair.averaged)


def test_the_average_of_probabilities_is_that_of_softmax():
    """Both logits favour class 1 in the sum, but the first is surer in probabilities of class 0."""
    logits = [np.array([[4, 0], [0, 1]]), np.array([[0, 4.5], [3, 0]])]
    first, second = (predictions(one.argmax(axis=1), logits=one) for one in logits)
    together = sum(np.exp(one) / np.exp(one).sum(axis=1, keepdims=True) for one in logits)
    pair = compare_images({(-1, 0): first}, {(-1, 0): second})
    assert pair.averaged == 100 * np.mean(together.argmax(axis=1) == 0)


def test_seeds_are_paired_by_number_and_others_left_out():
    first = {(-1, seed): predictions([0, 0, 0, seed]) for seed in (0, 1)}
    second = {(-1, seed): predictions([0, 1, 1, 1]) for seed in (1, 2)}
    pair = compare_images(first, second)
    assert (pair.trainings, pair.first, pair.first_only, pair.p) == (1, 75, 2, mcnemar(2, 0))
    both = compare_images(first, second | {(-1, 0): predictions([0, 0, 1, 1])})
    assert (both.trainings, both.first, both.second, both.first_only) == (2, 87.5, 37.5, 2)
    values = 100 * np.array([[0, 0, 1, 1], [0, 1, 1, 0.0]])
    assert (both.interval, both.p) == over_both(values)


def test_seeds_on_one_draw_of_the_training_list_are_one_training():
    first = {(draw, seed): predictions([0, seed, draw, 0]) for draw in (0, 1) for seed in (0, 1)}
    second = {key: predictions([1, 1, 0, 0]) for key in first}
    pair = compare_images(first, second)
    assert pair.trainings == 2
    assert (pair.interval, pair.p) == over_both(100 * np.array([[1, 0.5, 0, 0], [1, 0.5, -1, 0]]))


def test_other_images_and_other_seeds_are_not_paired():
    one = {(-1, 0): predictions([0, 0])}
    assert compare_images(one, {(-1, 1): predictions([0, 0])}) == "no seed in common"
    assert compare_images(one, {(-1, 0): predictions([0, 0], of="other")}) == "their lists of images differ"
    with pytest.raises(HarnessError, match="not known"):
        none_kept(pd.DataFrame([{}]))


def pair(p, difference, trainings=1):
    numbers = dict.fromkeys(("first_only", "second_only", "agreement", "oracle", "averaged"), 0.0)
    values = {"images": 9, "trainings": trainings, "first": difference, "second": 0.0, "interval": Interval(0, 0)}
    return Paired(p=p, **values, **numbers)


def test_the_sentence_counts_what_is_left_after_holm():
    pairs = {"a": pair(0.01, 2), "b": pair(0.02, -1), "c": pair(0.03, 5), "d": pair(0.8, 5)}
    found = outcomes(pairs)
    assert [found[task].p for task in pairs] == pytest.approx([0.04, 0.06, 0.06, 0.8])
    assert [found[task].reading for task in pairs] == ["better", *["undecided"] * 3]
    assert sentence("SCT", "LoRA", pairs) == (
        "SCT beats LoRA on 1 of 4 tasks, loses on 0, undecided on 3 (exact McNemar over the images, Holm over tasks, "
        "5 %)."
    )
    assert "Student's t over images and seeds, Holm" in sentence("a", "b", {"a": pair(0.01, -2, trainings=3)})
    mixed = {"a": pair(0.01, -2, trainings=3), "b": pair(0.01, -2)}
    assert "loses on 2" in sentence("a", "b", mixed)
    assert "exact McNemar over the images where there is one seed" in sentence("a", "b", mixed)


@pytest.mark.parametrize("tasks", range(1, 9))
def test_no_differences_give_wilcoxon_a_smaller_p(tasks):
    assert smallest_wilcoxon(tasks) == pytest.approx(wilcoxon(range(1, tasks + 1)))
    assert wilcoxon([1.0] * tasks) >= smallest_wilcoxon(tasks) - 1e-12
