"""The report's statistics against closed forms and rliable's own."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("rliable", reason='needs rliable: pip install "sb3-swfp[zoo]"')

from benchmarks.reporting import statistics  # noqa: E402
from benchmarks.reporting.optional import optional  # noqa: E402


@pytest.mark.parametrize("runs", [1, 3, 4, 5, 8])
def test_interquartile_mean_is_rliables(runs: int) -> None:
    scores = np.random.default_rng(0).random((runs, 3, 2))
    expected = [optional("rliable.metrics").aggregate_iqm(scores[..., index]) for index in range(2)]
    assert np.allclose(statistics.interquartile_mean([*scores.swapaxes(0, 1)]), expected)
    assert statistics.interquartile_mean([np.array([0.0, 1.0, 2.0, 9.0])]) == 1.5


def test_tasks_weigh_alike_however_many_runs_they_have() -> None:
    # Twice the runs with the same scores are no more of a task than once (of 8 and of 16 a quarter is whole)
    few, many = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.2, 0.6, 0.7, 0.9])
    once = statistics.interquartile_mean([few, many])
    assert statistics.interquartile_mean([few, np.tile(many, 2)]) == pytest.approx(once)
    # Of 2 + 3 runs each counts 3 or 2 times: 0 0 0 | 1 1 1 2 2 3 | 3 4 4
    assert statistics.interquartile_mean([np.array([0.0, 1.0]), np.array([2.0, 3.0, 4.0])]) == pytest.approx(10 / 6)
    assert statistics.mean_of_means([few, np.tile(many, 2)]) == pytest.approx((0.15 + 0.6) / 2)
    assert np.isnan(statistics.mean_of_means([few, np.empty(0)]))


def test_probability_of_improvement_is_rliables() -> None:
    generator = np.random.default_rng(0)
    scores, others = generator.integers(0, 5, (3, 4)) / 4, generator.integers(0, 5, (5, 4)) / 4
    expected = optional("rliable.metrics").probability_of_improvement(scores, others)
    assert statistics.mean_improvement([*scores.T], [*others.T]) == pytest.approx(expected)
    low, same = np.array([0.0, 0.5]), np.array([0.5, 1.0])
    assert statistics.mean_improvement([low], [same]) == pytest.approx(0.125)  # one tie of four pairs, no win
    # The mean over tasks, not over pairs
    assert statistics.mean_improvement([low, same[[1]]], [same, low]) == pytest.approx((0.125 + 1.0) / 2)


def test_the_interval_of_an_improvement_over_tasks_with_different_numbers_of_runs() -> None:
    # Bernoulli scores: that a run of rate p beats one of rate q, ties counting half, is 1/2 + (p - q) / 2, and its
    # estimate varies with (p (1 - p) / n + q (1 - q) / m) / 4 on each task, a quarter of which the mean of two keeps
    counts = [(20, 30), (40, 25)]
    scores, others = ([np.arange(runs) < runs / 2 for runs in side] for side in zip(*counts, strict=True))
    estimate = statistics.improvement_estimate(scores, others)
    assert estimate.low is not None and estimate.high is not None
    odd = 13 / 25  # rate of the last ones
    assert estimate.value == pytest.approx((0.5 + 0.5 + (0.5 - odd) / 2) / 2)
    variance = sum((0.25 / runs + 0.25 / other) / 4 for runs, other in counts) / 4
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * variance**0.5, rel=0.1)
    assert statistics.improvement_estimate([scores[0], scores[1][:2]], others).low is None  # fewer than MIN_SEEDS


def test_intervals_are_the_same_each_time_and_leave_numpys_state_alone() -> None:
    scores = [*np.random.default_rng(0).random((2, 5, 1))]
    np.random.seed(3)
    drawn = np.random.random(3)
    np.random.seed(3)
    first, second = (statistics.interquartile_estimate(scores) for _ in range(2))
    assert (first.low, first.high) == (second.low, second.high)
    assert np.array_equal(np.random.random(3), drawn)
    assert first.low is not None and first.high is not None
    assert np.min(scores) < first.low < first.value < first.high < np.max(scores)


def test_the_intervals_coverage_of_a_mean() -> None:
    # Of 4 x 10 runs the interval of the interquartile mean is near that of a normal mean, 1.96 standard errors
    scores = [*np.random.default_rng(0).normal(size=(4, 40, 1))]
    estimate = statistics.interquartile_estimate(scores)
    assert estimate.low is not None and estimate.high is not None
    assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * 1.09 / 160**0.5, rel=0.15)


def test_area_and_dip() -> None:
    curve = [(0, 0.4), (100, 0.2), (400, 0.6)]
    assert statistics.area_under_curve(curve) == pytest.approx((100 * 0.3 + 300 * 0.4) / 400)
    assert statistics.area_under_curve(curve[:1]) == 0.4
    assert statistics.deepest_dip(curve) == pytest.approx(-0.2)
    assert statistics.deepest_dip([(0, 0.1), (100, 0.3), (200, 0.2)]) == pytest.approx(0.1)
    assert statistics.deepest_dip(curve[:1]) is None and statistics.deepest_dip(curve[1:]) is None


def test_dip_by_noise() -> None:
    assert statistics.dip_by_noise(0.5, 50, 1) == pytest.approx(0.0)
    assert statistics.dip_by_noise(0.5, 1, 3) == pytest.approx(0.5**3 - 0.5)  # all three must succeed
    samples = np.random.default_rng(0).binomial(20, 0.7, (20_000, 10)) / 20
    assert statistics.dip_by_noise(0.7, 20, 10) == pytest.approx(samples.min(axis=1).mean() - 0.7, abs=0.003)
    assert statistics.dip_by_noise(0.0, 50, 10) == statistics.dip_by_noise(1.0, 50, 10) == 0.0


def test_curves_with_other_steps_are_interpolated() -> None:
    steps, scores = statistics.common_steps([[(0, 0.0), (100, 1.0), (300, 0.0)], [(0, 0.2), (200, 0.4)]])
    assert steps.tolist() == [0, 100, 200]
    assert np.allclose(scores, [[0.0, 1.0, 0.5], [0.2, 0.3, 0.4]])
