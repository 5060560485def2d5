"""The main comparison: the reference algorithm against each other one, over the tasks of several suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.reporting.aggregate import Improvement
from benchmarks.reporting.statistics import Summaries, Summary, improvement_estimate, interquartile_mean
from benchmarks.reporting.stored import MIN_SEEDS, Stored
from benchmarks.reporting.tables import IMPROVEMENT, NONE, PERCENT, improvement_cells, table


@dataclass(frozen=True)
class Duel:
    """
    The reference against one algorithm, over the tasks where both have enough seeds.

    :param tasks: Names of the tasks, with their suite's
    :param improvement: Of the reference on the other
    :param finals: Interquartile mean of the final scores, of the reference and of the other
    :param areas: Mean area under the curve, likewise
    :param lowest: Mean of the lowest score after step 0 minus the reference's at step 0, likewise; NaN where a run was
        not evaluated at step 0 and later
    """

    tasks: list[str]
    improvement: Improvement
    finals: tuple[float, float]
    areas: tuple[float, float]
    lowest: tuple[float, float]


def overall(stored: Sequence[Stored], summaries: Mapping[str, Summaries]) -> str:
    """
    :param stored: Results of the suites, whose scores are success rates
    :param summaries: Of each suite, the summary of each task and algorithm that have results
    :return: The section in Markdown, without a blank line at its end
    """
    reference = stored[0].reference
    named = ", ".join(f"`{each.name}`" for each in stored)
    opponents = dict.fromkeys(algo for each in stored for algo in each.suite.algos if algo != reference)
    rows, left_out = [], []
    for algo in opponents:
        pairs, few = _pairs(stored, summaries, reference, algo)
        left_out += [f"{algo} on {task}" for task in few]
        if not pairs:
            continue
        duel = _duel(pairs)
        scores = [f"{PERCENT(ours)}, {PERCENT(theirs)}" for ours, theirs in (duel.finals, duel.areas)]
        scores.append(", ".join(NONE if np.isnan(each) else PERCENT(each, "+") for each in duel.lowest))
        rows.append([algo, ", ".join(duel.tasks), *scores, *improvement_cells(duel.improvement, len(duel.tasks))])
    if not rows:
        return ""
    head = ["tasks", "interquartile means of the final scores", "areas under the curve"]
    head += [f"lowest, against {reference} at step 0", *IMPROVEMENT]
    lines = ["## Main comparison", "", f"Suites {named}: {reference} against each of the others on all tasks where"]
    lines[-1] += f" both have at least {MIN_SEEDS} seeds; {reference}'s figure is the first of two."
    if left_out:
        lines += ["", f"Left out, with fewer seeds of one of the two: {'; '.join(left_out)}."]
    return "\n".join([*lines, "", *table([f"{reference} over", *head], rows)]).rstrip("\n")


def _pairs(
    stored: Sequence[Stored], summaries: Mapping[str, Summaries], reference: str, algo: str
) -> tuple[dict[str, tuple[Summary, Summary]], list[str]]:
    """Both algorithms' summaries of the tasks where they have enough seeds, and the names of the other tasks."""
    pairs, few = {}, []
    for each in stored:
        for task in each.suite.tasks if algo in each.suite.algos else ():
            ours, theirs = (summaries[each.name].get((task, name)) for name in (reference, algo))
            if ours is None or theirs is None or min(len(ours.seeds), len(theirs.seeds)) < MIN_SEEDS:
                few.append(f"{each.name}/{task}")
            else:
                pairs[f"{each.name}/{task}"] = ours, theirs
    return pairs, few


def _duel(pairs: Mapping[str, tuple[Summary, Summary]]) -> Duel:
    sides = list(zip(*pairs.values(), strict=True))
    finals = []
    for side in sides:
        # rliable's bootstrap wants as many runs on every task, see compare()
        runs = min(len(summary.finals) for summary in side)
        finals.append(np.array([summary.finals[:runs] for summary in side]).T)
    matched = sum(ours.final.value[0] >= theirs.final.value[0] - 1e-9 for ours, theirs in pairs.values())
    first, second = (float(interquartile_mean(scores[:, :, None])[0]) for scores in finals)
    areas = [float(np.mean([summary.area for summary in side])) for side in sides]
    lowest = [
        float(np.mean([_lowest(each) - _start(ours) for each, (ours, _) in zip(side, pairs.values(), strict=True)]))
        for side in sides
    ]
    improvement = Improvement(improvement_estimate(*finals), int(matched))
    return Duel(list(pairs), improvement, (first, second), (areas[0], areas[1]), (lowest[0], lowest[1]))


def _start(summary: Summary) -> float:
    return float(np.mean(summary.starts)) if len(summary.starts) else float("nan")


def _lowest(summary: Summary) -> float:
    return _start(summary) + float(np.mean(summary.dips)) if len(summary.dips) else float("nan")
