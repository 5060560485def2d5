"""The main comparison: the reference algorithm against each other one, over the tasks of several suites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.reporting.aggregate import improvement
from benchmarks.reporting.statistics import Summaries, Summary, interquartile_mean, mean_of_means
from benchmarks.reporting.stored import MIN_SEEDS, Stored
from benchmarks.reporting.tables import IMPROVEMENT, NONE, PERCENT, improvement_cells, spread, table

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
            rows.append([algo, *_entries(pairs)])
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


def _entries(pairs: Pairs) -> list[str]:
    """A row of the table; tasks weigh alike, however many seeds they have."""
    sides = [list(side) for side in zip(*pairs.values(), strict=True)]
    finals = [[each.finals for each in side] for side in sides]
    areas = [mean_of_means([each.areas for each in side]) for side in sides]
    starts = [mean_of_means([each.starts for each in side]) for side in sides]
    dips = [mean_of_means([each.dips for each in side]) for side in sides]
    lowest = [start + dip - starts[0] for start, dip in zip(starts, dips, strict=True)]
    return [
        ", ".join(pairs),
        ", ".join(spread(map(len, side)) for side in finals),
        ", ".join(PERCENT(float(interquartile_mean(side))) for side in finals),
        ", ".join(map(PERCENT, areas)),
        ", ".join(NONE if np.isnan(each) else PERCENT(each, "+") for each in lowest),
        *improvement_cells(improvement(*finals), len(pairs)),
    ]
