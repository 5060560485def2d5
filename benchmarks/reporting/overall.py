"""The main comparison: the reference algorithm against each other one, over the tasks of several suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.reporting.aggregate import Improvement, improvement
from benchmarks.reporting.statistics import Summaries, Summary, interquartile_mean
from benchmarks.reporting.stored import MIN_SEEDS, Stored
from benchmarks.reporting.tables import IMPROVEMENT, NONE, PERCENT, improvement_cells, table


@dataclass(frozen=True)
class Duel:
    """
    The reference against one algorithm, over the tasks where both have enough seeds. Of each algorithm as many seeds as
    the task with fewest has, since rliable's bootstrap wants as many runs on every task.

    :param tasks: Names of the tasks, with their suite's
    :param seeds: Number of seeds, of the reference and of the other
    :param improvement: Of the reference on the other
    :param finals: Interquartile mean over tasks and seeds of the final scores, of the reference and of the other
    :param areas: Mean area under the curve, likewise
    :param lowest: Mean of the lowest score after step 0 minus the reference's at step 0, likewise; NaN where a run was
        not evaluated at step 0 and later
    """

    tasks: list[str]
    seeds: tuple[int, int]
    improvement: Improvement
    finals: tuple[float, float]
    areas: tuple[float, float]
    lowest: tuple[float, float]


#: Summaries of the reference and of another algorithm on each task, named with its suite
Pairs = Mapping[str, tuple[Summary, Summary]]


def overall(stored: Sequence[Stored], summaries: Mapping[str, Summaries]) -> str:
    """
    :param stored: Results of the suites
    :param summaries: Of each suite, the summary of each task and algorithm that have results
    :return: The section in Markdown, without a blank line at its end
    :raises ValueError: if there are scores that are no success rates
    """
    if returns := [each.name for each in stored if not each.suite.rates]:
        raise ValueError(f"{', '.join(returns)}: scores that are not success rates cannot be put together")
    reference = stored[0].reference
    rows, left_out = _rows(stored, summaries, reference)
    named = ", ".join(f"`{each.name}`" for each in stored)
    lines = [
        "## Main comparison",
        "",
        f"Suites {named}: {reference} against each of the others on all tasks where both have at least {MIN_SEEDS}",
        f"seeds. Of two figures the first is {reference}'s. Final scores: interquartile means over tasks and seeds",
        "together; areas under the curve and lowest scores: means over them.",
    ]
    if left_out:
        listed = "; ".join(f"{task}, of {reference} or {', '.join(algos)}" for task, algos in left_out.items())
        lines += ["", f"Left out for want of seeds: {listed}."]
    if mixed := _of_different_code(stored):
        lines += ["", f"Made by different code in these suites, so rerun before this is believed: {', '.join(mixed)}."]
    if others := _of_other_modules(stored):
        lines += ["", f"Of another module in one suite than in another: {'; '.join(others)}."]
    head = [f"{reference} over", "tasks", "seeds", "final scores", "areas under the curve"]
    head += [f"lowest, against {reference} at step 0", *IMPROVEMENT]
    lines += ["", *(table(head, rows) if rows else ["No results yet."])]
    # One suite of several tasks says by itself whether the aggregate hangs on another
    for each in stored if len(stored) > 1 else ():
        alone = _rows([each], summaries, reference)[0] if len(each.suite.tasks) > 1 else []
        if alone:
            lines += [f"`{each.name}` alone:", "", *table(head, alone)]
    return "\n".join(lines).rstrip("\n")


def _rows(
    stored: Sequence[Stored], summaries: Mapping[str, Summaries], reference: str
) -> tuple[list[list[str]], dict[str, list[str]]]:
    """One row for each other algorithm, and the algorithms that have too few seeds on a task, by task."""
    rows: list[list[str]] = []
    left_out: dict[str, list[str]] = {}
    for algo in dict.fromkeys(algo for each in stored for algo in each.suite.algos if algo != reference):
        pairs, few = _pairs(stored, summaries, reference, algo)
        for task in few:
            left_out.setdefault(task, []).append(algo)
        if pairs:
            rows.append([algo, *_entries(_duel(pairs))])
    return rows, left_out


def _of_different_code(stored: Sequence[Stored]) -> list[str]:
    """
    Algorithms whose results differ in their code from suite to suite; within one they do not, see collect(). A suite
    that takes an algorithm from another module has other code on purpose.
    """
    codes: dict[tuple[str, str], set[str | None]] = {}
    for each in stored:
        for result in each.all:
            algo = result.cell.algo
            codes.setdefault((algo, each.suite.module(algo)), set()).add(result.versions.get("code"))
    return list(dict.fromkeys(algo for (algo, _), found in codes.items() if len(found) > 1))


def _of_other_modules(stored: Sequence[Stored]) -> list[str]:
    """Algorithms that come from another module in one suite than in another, with the modules."""
    modules: dict[str, dict[str, str]] = {}
    for each in stored:
        for algo in dict.fromkeys(result.cell.algo for result in each.all):
            modules.setdefault(algo, {})[each.name] = each.suite.module(algo)
    return [
        f"{algo} ({', '.join(f'`{module}` in `{name}`' for name, module in found.items())})"
        for algo, found in modules.items()
        if len(set(found.values())) > 1
    ]


def _pairs(
    stored: Sequence[Stored], summaries: Mapping[str, Summaries], reference: str, algo: str
) -> tuple[Pairs, list[str]]:
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


def _duel(pairs: Pairs) -> Duel:
    starts = [_mean(ours.starts) for ours, _ in pairs.values()]
    seeds, finals, areas, lowest = [], [], [], []
    for side in zip(*pairs.values(), strict=True):
        runs = min(len(summary.finals) for summary in side)
        seeds.append(runs)
        finals.append(np.array([summary.finals[:runs] for summary in side]).T)
        areas.append(float(np.mean([summary.areas[:runs] for summary in side])))
        below = [
            _mean(each.starts[:runs]) + _mean(each.dips[:runs]) - start
            for each, start in zip(side, starts, strict=True)
        ]
        lowest.append(float(np.mean(below)))
    first, second = (float(interquartile_mean(scores[:, :, None])[0]) for scores in finals)
    return Duel(
        tasks=list(pairs),
        seeds=(seeds[0], seeds[1]),
        improvement=improvement(*finals),
        finals=(first, second),
        areas=(areas[0], areas[1]),
        lowest=(lowest[0], lowest[1]),
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _entries(duel: Duel) -> list[str]:
    return [
        ", ".join(duel.tasks),
        ", ".join(map(str, duel.seeds)),
        ", ".join(map(PERCENT, duel.finals)),
        ", ".join(map(PERCENT, duel.areas)),
        ", ".join(NONE if np.isnan(each) else PERCENT(each, "+") for each in duel.lowest),
        *improvement_cells(duel.improvement, len(duel.tasks)),
    ]
