"""A suite's tasks put together: interquartile mean over tasks and seeds, probability of improvement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.reporting.statistics import (
    Estimate,
    Summaries,
    clone_level,
    improvement_estimate,
    interquartile_estimate,
    interquartile_mean,
)
from benchmarks.reporting.stored import Stored


@dataclass(frozen=True)
class Aggregate:
    """
    One algorithm over several tasks; scores are success rates.

    :param final: Interquartile mean of the final scores
    :param mean: Their mean
    :param area: Mean area under the curve
    :param dip: Mean deepest dip, ``None`` if a run was not evaluated at step 0 and later
    :param below: Mean of the lowest score after step 0 minus the clone's on the task, ``None`` likewise
    """

    final: Estimate
    mean: float
    area: float
    dip: float | None
    below: float | None


@dataclass(frozen=True)
class Improvement:
    """
    The reference algorithm against another one.

    :param probability: That a run of the reference scores higher
    :param matched: Tasks on which the reference's interquartile mean is no lower
    """

    probability: Estimate
    matched: int


@dataclass(frozen=True)
class Comparison:
    """
    All algorithms over the tasks that they have in common.

    :param tasks: The tasks
    :param runs: Seeds of each algorithm on each task
    :param algos: Each algorithm's figures, empty where scores are no success rates
    :param improvements: The reference against each of the others, empty where the reference has no results
    :param notes: What was left out and why
    """

    tasks: list[str]
    runs: Mapping[str, int]
    algos: Mapping[str, Aggregate]
    improvements: Mapping[str, Improvement]
    notes: list[str]


def compare(stored: Stored, summaries: Summaries) -> Comparison:
    """
    :param stored: Results of a suite
    :param summaries: Summary of each task and algorithm that have results
    :return: The comparison; without tasks if there are none that all algorithms have results on
    """
    algos, notes = stored.algos(), []
    tasks = [task for task in stored.tasks if all(stored.of(task, algo) for algo in algos)]
    for task in stored.tasks:
        if task not in tasks:
            lacking = ", ".join(algo for algo in algos if not stored.of(task, algo))
            notes.append(f"Left out: {task}, where there is nothing of {lacking}.")
    if not tasks:
        return Comparison([], {}, {}, {}, notes)
    # rliable's bootstrap wants as many runs on every task; which ones does not matter, as it draws them task by task
    counts = {algo: [len(stored.of(task, algo)) for task in tasks] for algo in algos}
    runs = {algo: min(counts[algo]) for algo in algos}
    cut = [f"{algo} {runs[algo]}" for algo in algos if max(counts[algo]) > runs[algo]]
    if cut:
        notes.append(f"Of these only the first seeds, as many as the task with fewest has: {', '.join(cut)}.")
    return Comparison(
        tasks,
        runs,
        {algo: _aggregate(stored, summaries, tasks, algo, runs[algo]) for algo in algos} if stored.suite.rates else {},
        _improvements(summaries, tasks, stored.reference, runs),
        notes,
    )


def _aggregate(stored: Stored, summaries: Summaries, tasks: list[str], algo: str, runs: int) -> Aggregate:
    found = [summaries[task, algo] for task in tasks]
    levels = [clone_level(stored, task, summaries) for task in tasks]
    finals = np.array([each.finals[:runs] for each in found])
    dips = np.array([each.dips[:runs] for each in found]) if all(len(each.dips) for each in found) else None
    below = None
    if dips is not None and None not in levels:
        starts = np.array([each.starts[:runs] for each in found])
        below = float(np.mean(starts + dips - np.array(levels)[:, None]))
    return Aggregate(
        final=interquartile_estimate(finals.T[:, :, None]),
        mean=float(np.mean(finals)),
        area=float(np.mean([each.areas[:runs] for each in found])),
        dip=None if dips is None else float(np.mean(dips)),
        below=below,
    )


def _improvements(
    summaries: Summaries, tasks: list[str], reference: str, runs: Mapping[str, int]
) -> dict[str, Improvement]:
    if reference not in runs:
        return {}
    scores = {algo: np.array([summaries[task, algo].finals[:most] for task in tasks]).T for algo, most in runs.items()}
    return {algo: improvement(scores[reference], scores[algo]) for algo in runs if algo != reference}


def improvement(scores: np.ndarray, others: np.ndarray) -> Improvement:
    """
    :param scores: Final scores of the reference algorithm, [runs, tasks]
    :param others: Another one's, [its runs, tasks]
    :return: The one against the other
    """
    means, other_means = (interquartile_mean(each[:, None, :]) for each in (scores, others))
    # Rates are rounded
    return Improvement(improvement_estimate(scores, others), int(np.sum(means >= other_means - 1e-9)))
