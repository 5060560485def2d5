"""What is computed from curves: interquartile means, bootstrap intervals, areas, dips and the noise in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import lcm

import numpy as np

from benchmarks.cells import Result
from benchmarks.reporting.optional import optional
from benchmarks.reporting.stored import MIN_SEEDS, Stored

#: Bootstrap replications of each interval: few enough for 200 results in seconds. Another draw moves an end of a
#: probability's interval by some 0.02
REPLICATIONS = 2_000
_BOOTSTRAP_SEED = 0

Curve = Sequence[tuple[int, float]]
#: Scores by task, which may have different numbers of runs: the first axis
Scores = Sequence[np.ndarray]


@dataclass(frozen=True)
class Estimate:
    """
    Estimates and their 95 % intervals.

    :param value: The estimates, [k]
    :param low: Lower ends [k], ``None`` where there were too few seeds for an interval
    :param high: Upper ends, likewise
    """

    value: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None

    def __getitem__(self, part: slice) -> Estimate:
        """
        :param part: Some of the k
        :return: These
        """
        if self.low is None or self.high is None:
            return Estimate(self.value[part], None, None)
        return Estimate(self.value[part], self.low[part], self.high[part])


@dataclass(frozen=True)
class Summary:
    """
    The seeds of one algorithm on one task.

    :param seeds: The seeds, [n]
    :param finals: Score of each one's last evaluation, [n]
    :param final: Their interquartile mean
    :param steps: Environment steps of the evaluations, [k]
    :param curve: Interquartile means over the seeds at these steps, [k]
    :param starts: Score of each seed at step 0, empty if they were not evaluated there
    :param dips: Deepest dip of each seed (:func:`deepest_dip`), empty likewise
    :param areas: Area under each seed's curve (:func:`area_under_curve`), [n]
    """

    seeds: list[int]
    finals: np.ndarray
    final: Estimate
    steps: np.ndarray
    curve: Estimate
    starts: np.ndarray
    dips: np.ndarray
    areas: np.ndarray


#: Summary of each task and algorithm that have results
Summaries = Mapping[tuple[str, str], Summary]


def summarise(results: Sequence[Result]) -> Summary:
    """
    :param results: Of one task and one algorithm
    :return: Their summary
    """
    steps, scores = common_steps([result.curve for result in results])
    finals = np.array([result.curve[-1][1] for result in results])
    curve = interquartile_estimate([scores])
    # Not drawn anew where it is the same, so that the band in the figure ends where the table's interval does
    same = np.array_equal(scores[:, -1], finals)
    starts = np.array([result.curve[0][1] for result in results if result.curve[0][0] == 0])
    dips = [dip for result in results if (dip := deepest_dip(result.curve)) is not None]
    return Summary(
        seeds=[result.cell.seed for result in results],
        finals=finals,
        final=curve[-1:] if same else interquartile_estimate([finals[:, None]]),
        steps=steps,
        curve=curve,
        starts=starts if len(starts) == len(results) else np.empty(0),
        dips=np.array(dips) if len(dips) == len(results) else np.empty(0),
        areas=np.array([area_under_curve(result.curve) for result in results]),
    )


def clone_level(stored: Stored, task: str, summaries: Summaries) -> float | None:
    """
    :param stored: Results of a suite
    :param task: Name of a task
    :param summaries: Summary of each task and algorithm that have results
    :return: The clone's score: mean of the reference's at step 0, ``None`` if it was not evaluated there
    """
    reference = summaries.get((task, stored.reference))
    return None if reference is None or not len(reference.starts) else float(np.mean(reference.starts))


def common_steps(curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """
    Curves on the same environment steps; where one was not evaluated at a step of another it is interpolated.

    :param curves: n curves
    :return: Steps [k] and scores [n, k]
    """
    first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
    steps = np.array(sorted({step for curve in curves for step, _ in curve if first <= step <= last}), dtype=float)
    points = [np.array(curve, dtype=float) for curve in curves]
    return steps, np.array([np.interp(steps, each[:, 0], each[:, 1]) for each in points])


def area_under_curve(curve: Curve) -> float:
    """
    :param curve: Environment steps and scores
    :return: Area by trapezoids over the steps that it spans, so in the score's unit: the mean score on the way
    """
    if len(curve) == 1:
        return curve[0][1]
    parts = [(right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pairwise(curve)]
    return sum(parts) / (curve[-1][0] - curve[0][0])


def deepest_dip(curve: Curve) -> float | None:
    """
    :param curve: Environment steps and scores
    :return: Lowest later score minus that at step 0 (negative: below the start), ``None`` if either is missing
    """
    if curve[0][0] != 0 or len(curve) == 1:
        return None
    return min(score for _, score in curve[1:]) - curve[0][1]


def dip_by_noise(rate: float, episodes: int, evaluations: int) -> float:
    """
    Deepest dip that a policy shows on average without changing at all, from the chance in which episodes succeed:
    E[min of k] - E[one], each X / n with X binomial, where E[min] = sum over j of P(X >= j)^k, for j = 1..n.

    :param rate: Its success rate p, in [0, 1]
    :param episodes: Episodes of an evaluation, n, drawn afresh each time
    :param evaluations: Evaluations after step 0, k
    :return: The dip, not above 0
    """
    reached = optional("scipy.stats").binom.sf(np.arange(episodes), episodes, rate)
    return float(np.sum(reached**evaluations) / episodes - rate)


def mean_of_means(scores: Scores) -> float:
    """
    :param scores: Of each task, [its runs]
    :return: Mean over tasks of their means over runs, so that a task with more of these does not weigh more; NaN if a
        task has none
    """
    return float(np.mean([np.mean(each) if len(each) else np.nan for each in scores]))


def repeated(scores: Scores) -> list[np.ndarray]:
    """
    :param scores: Of each task, [its runs, ...]
    :return: The same with each run repeated so often that all have as many: the least common multiple
    """
    runs = lcm(*map(len, scores))
    return [np.repeat(each, runs // len(each), axis=0) for each in scores]


def interquartile_mean(scores: Scores) -> np.ndarray:
    """
    Mean of what is left without the lowest and the highest quarter, each rounded down; rliable's ``aggregate_iqm``,
    for several evaluations at a time and without its overhead, which 2,000 replications would feel. Tasks weigh alike,
    also where they have different numbers of runs, which rliable does not foresee: each task's runs are repeated until
    all have as many, and what is left out is rounded after that.

    :param scores: Of each task, [its runs] or [its runs, k]
    :return: Interquartile means over runs and tasks, [] or [k]
    """
    pooled = np.sort(np.concatenate(repeated(scores)), axis=0)
    cut = len(pooled) // 4
    return pooled[cut : len(pooled) - cut].mean(axis=0)


def interquartile_estimate(scores: Scores) -> Estimate:
    """
    :param scores: Of each task, [its runs, k]
    :return: Their interquartile means over runs and tasks, with stratified bootstrap intervals unless a task has fewer
        than ``MIN_SEEDS`` runs
    """
    if min(map(len, scores)) < MIN_SEEDS:
        return Estimate(interquartile_mean(scores), None, None)
    return _bootstrap(scores, lambda *drawn: interquartile_mean(drawn))


def mean_improvement(scores: Scores, others: Scores) -> np.ndarray:
    """
    Probability that a run scores higher than one of the other algorithm on the same task, ties counting half, mean over
    tasks: rliable's ``probability_of_improvement``, whose test of significance takes a hundred times as long, and which
    wants as many runs on every task.

    :param scores: Of each task, [its runs]
    :param others: The other algorithm's, likewise
    :return: The probability, [1]
    """
    pairs = [(left[:, None], right[None]) for left, right in zip(scores, others, strict=True)]
    return np.array([np.mean([np.mean(left > right) + np.mean(left == right) / 2 for left, right in pairs])])


def improvement_estimate(scores: Scores, others: Scores) -> Estimate:
    """
    :param scores: Of each task, [its runs]
    :param others: The other algorithm's, likewise
    :return: Probability of improvement, with its stratified bootstrap interval unless a task has fewer than
        ``MIN_SEEDS`` runs of either, [1]
    """
    if min(map(len, (*scores, *others))) < MIN_SEEDS:
        return Estimate(mean_improvement(scores, others), None, None)
    tasks = len(scores)
    return _bootstrap([*scores, *others], lambda *drawn: mean_improvement(drawn[:tasks], drawn[tasks:]))


def _bootstrap(scores: Scores, function: Callable[..., np.ndarray]) -> Estimate:
    library = optional("rliable.library")
    # As a list, rliable draws from each array apart: the strata, which need not have as many runs as each other
    with _seeded():
        values, intervals = library.get_interval_estimates({"": list(scores)}, function, reps=REPLICATIONS)
    return Estimate(values[""], *intervals[""])


@contextmanager
def _seeded() -> Iterator[None]:
    # rliable draws its resamples from NumPy's global state, whatever random_state it is given
    state = np.random.get_state()
    np.random.seed(_BOOTSTRAP_SEED)
    try:
        yield
    finally:
        np.random.set_state(state)
