"""A suite's tasks put together: interquartile mean over tasks and seeds, probability of improvement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from benchmarks.reporting.statistics import (
    Estimate,
    Scores,
    Summaries,
    clone_level,
    improvement_estimate,
    interquartile_estimate,
    interquartile_mean,
    mean_of_means,
    repeated,
)
from benchmarks.reporting.stored import Stored


@dataclass(frozen=True)
class Aggregate:
    """
    One algorithm over several tasks; scores are success rates. Means are over tasks, of their means over seeds.

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
    :param matched: Number of tasks on which the reference's interquartile mean is no lower; where numbers of seeds
        differ, the means are of runs repeated to as many
    """

    probability: Estimate
    matched: int


@dataclass(frozen=True)
class Comparison:
    """
    All algorithms over the tasks that they have in common.

    :param tasks: The tasks
    :param runs: Numbers of seeds of each algorithm, task by task
    :param algos: Each algorithm's figures, empty where scores are no success rates
    :param improvements: The reference against each of the others, empty where the reference has no results
    :param notes: What was left out and why
    """

    tasks: list[str]
    runs: Mapping[str, list[int]]
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
    runs = {algo: [len(stored.of(task, algo)) for task in tasks] for algo in algos}
    return Comparison(
        tasks,
        runs,
        {algo: _aggregate(stored, summaries, tasks, algo) for algo in algos} if stored.suite.rates else {},
        _improvements(summaries, tasks, stored.reference, algos),
        notes,
    )


def _aggregate(stored: Stored, summaries: Summaries, tasks: list[str], algo: str) -> Aggregate:
    found = [summaries[task, algo] for task in tasks]
    levels = [level for task in tasks if (level := clone_level(stored, task, summaries)) is not None]
    dip = below = None
    if all(len(each.dips) for each in found):
        dip = mean_of_means([each.dips for each in found])
        if len(levels) == len(tasks):
            below = mean_of_means([each.starts for each in found]) + dip - float(np.mean(levels))
    return Aggregate(
        final=interquartile_estimate([each.finals[:, None] for each in found]),
        mean=mean_of_means([each.finals for each in found]),
        area=mean_of_means([each.areas for each in found]),
        dip=dip,
        below=below,
    )


def _improvements(summaries: Summaries, tasks: list[str], reference: str, algos: list[str]) -> dict[str, Improvement]:
    if reference not in algos:
        return {}
    finals = {algo: [summaries[task, algo].finals for task in tasks] for algo in algos}
    return {algo: improvement(finals[reference], finals[algo]) for algo in algos if algo != reference}


def improvement(scores: Scores, others: Scores) -> Improvement:
    """
    :param scores: Final scores of the reference algorithm: of each task, [its runs]
    :param others: Another one's, likewise
    :return: The one against the other
    """
    matched = 0
    for pair in zip(scores, others, strict=True):
        # The mean of few runs keeps the worst and that of more does not: as many of both, so that it is the same share
        ours, theirs = (interquartile_mean([each]) for each in repeated(pair))
        matched += bool(ours >= theirs - 1e-9)  # rates are rounded
    return Improvement(improvement_estimate(scores, others), matched)
