"""The section of a suite: what it is, what is there of it, its tables."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from benchmarks.cells import Cell
from benchmarks.reporting.aggregate import compare
from benchmarks.reporting.curves import figure_name
from benchmarks.reporting.statistics import REPLICATIONS, Summaries
from benchmarks.reporting.stored import MIN_SEEDS, Stored, ranges
from benchmarks.reporting.tables import (
    aggregate_table,
    cost_table,
    details_table,
    improvement_table,
    score_table,
    steadiness_table,
)

LEGEND = f"""\
Algorithms are named as for `--algos`; `clone` is clone + SAC. Final score: that of the last evaluation, mean over
seeds. Interquartile mean: without the lowest and the highest quarter of the runs, so with fewer than 4 runs it is the
mean; it is compared task by task after runs were repeated to as many of both algorithms. Over tasks, each weighs alike,
however many seeds it has. Intervals: 95 %, percentiles of {REPLICATIONS:,} stratified bootstrap replications (rliable):
another draw moves an end by up to some 2 points; over few seeds they come out too narrow, and with fewer than
{MIN_SEEDS} there is none. Area under the curve: over the steps, so in the score's unit. Deepest dip: lowest later
evaluation minus that at step 0 (what was cloned or pretrained, before it learns online), in the score's unit (points
for success rates); beside it what the dip of a policy that never changes would be on average, were its episodes drawn
afresh at each evaluation. Probability of improvement: that a run of the one algorithm scores higher than one of the
other on the same task, mean over tasks, ties counting half."""


def section(stored: Stored, summaries: Summaries, figures: str | None) -> str:
    """
    :param stored: Results of a suite
    :param summaries: Summary of each task and algorithm that have results
    :param figures: Where the figures are, as the page links them; ``None`` for no links
    :return: The suite's section in Markdown, without a blank line at its end
    """
    lines = [f"## {stored.name}", "", f"{stored.suite.description}. Score: {stored.suite.score}.", ""]
    lines += ["```", command(stored), "```", ""]
    if not stored.all:
        return "\n".join([*lines, "No results yet."])
    lines += [*_completeness(stored), "", _versions(stored), "", *_arithmetic(stored)]
    for task in stored.tasks:
        lines += [f"### {task}", "", f"{_budgets(stored, task)}{_seed_counts(stored, task)}", ""]
        if figures is not None:
            lines += [f"![{stored.name}: {task}]({figures}/{figure_name(stored.name, task)})", ""]
        lines += score_table(stored, task, summaries) + steadiness_table(stored, task, summaries)
        lines += details_table(stored, task)
    lines += _all_tasks(stored, summaries)
    # Last and apart: the only figures that differ from run to run
    cpu, wall = (sum(getattr(each, what) or 0.0 for each in stored.all) / 3600 for what in ("cpu_seconds", "seconds"))
    lines += ["### Cost", "", f"{len(stored.all)} runs took {cpu:.2f} hours of CPU time, {wall:.2f} hours of "]
    lines[-1] += "wall-clock time. Cloning, evaluations and start-up are part of a run's time and memory."
    if copied := sum("copied_from" in each.details for each in stored.all):
        lines[-1] += f" {copied} of them are runs of other suites, copied: counted there, too."
    return "\n".join([*lines, "", *cost_table(stored)]).rstrip("\n")


def command(stored: Stored) -> str:
    """
    :param stored: Results of a suite
    :return: What makes them
    """
    text = f"python -m benchmarks run --suite {stored.name} --seeds {ranges(stored.seeds)}"
    steps = {result.config["steps"] for result in stored.all}
    if len(steps) == 1 and any(budget not in steps for budget in stored.suite.tasks.values()):
        text += f" --steps {steps.pop()}"
    return text


def _completeness(stored: Stored) -> list[str]:
    missing, results = stored.missing, len(stored.all)
    lines = [f"Seeds {ranges(stored.seeds)}: {results} of {results + len(missing)} cells have results."]
    if missing:
        lines += ["Missing:", *_listed(missing)]
        if begun := [cell for cell in missing if cell in stored.begun]:
            lines += ["", "Of these, begun without a result (see their log.txt):", *_listed(begun)]
    current = {algo: stored.suite.latest_code(algo) for algo in stored.algos()}
    if old := [result.cell for result in stored.all if result.versions.get("code") != current[result.cell.algo]]:
        lines += [
            "",
            "Made by other code than this checkout's, so the next run refuses to mix with them:",
            *_listed(old),
        ]
    return lines


def _listed(cells: Iterable[Cell]) -> list[str]:
    """A line for each task, naming algorithms and seeds."""
    lines = []
    for task, of_task in groupby(cells, key=lambda cell: cell.task):
        algos = [
            f"{algo} {ranges(cell.seed for cell in of_algo)}"
            for algo, of_algo in groupby(of_task, key=lambda cell: cell.algo)
        ]
        lines.append(f"- {task}: {'; '.join(algos)}")
    return ["", *lines]


def _versions(stored: Stored) -> str:
    # A task's packages and an algorithm's code are the same, see collect()
    pairs = {(task, algo): stored.of(task, algo) for task in stored.tasks for algo in stored.algos(task)}
    found = {pair: results[0].versions for pair, results in pairs.items()}
    left = list(dict.fromkeys(key for versions in found.values() for key in versions))
    parts = []
    # What all share; what a task's algorithms share; what an algorithm's tasks share; what is left
    for name in (lambda pair: "", lambda pair: pair[0], lambda pair: pair[1], lambda pair: " ".join(reversed(pair))):
        groups: dict[str, list[dict[str, str]]] = {}
        for pair, versions in found.items():
            groups.setdefault(name(pair), []).append(versions)
        keys = [key for key in left if all(len({each.get(key) for each in group}) == 1 for group in groups.values())]
        left = [key for key in left if key not in keys]
        for group, (versions, *_) in groups.items():
            if text := ", ".join(f"{key} {versions[key]}" for key in keys if key in versions):
                parts.append(f"{group} with {text}" if group else text)
    return f"Versions: {'; '.join(parts)}."


def _arithmetic(stored: Stored) -> list[str]:
    """Nothing if no result says where it ran; a line each for those that ran alike, if not all did."""
    kinds: dict[str | None, list[Cell]] = {}
    for result in stored.all:
        kinds.setdefault(result.arithmetic, []).append(result.cell)
    if not any(kinds):
        return []
    if len(kinds) == 1:
        return [f"Float arithmetic: {next(iter(kinds))}.", ""]
    lines = ["Float arithmetic (where it differs, runs of the same seed may):", ""]
    for digest in sorted(kinds, key=lambda each: each or "~"):  # hexadecimal, so what was not recorded comes last
        lines.append(f"- {digest or 'not recorded'}:")
        lines += [f"  {line}" for line in _listed(kinds[digest]) if line]
    return [*lines, ""]


def _budgets(stored: Stored, task: str) -> str:
    steps = {algo: stored.of(task, algo)[0].config["steps"] for algo in stored.algos(task)}
    usual = stored.suite.tasks[task]
    others = [f"{algo} {number:,}" for algo, number in steps.items() if number != usual]
    return f"{usual:,} {stored.suite.unit}s{', but ' if others else ''}{', '.join(others)}."


def _seed_counts(stored: Stored, task: str) -> str:
    counts = {algo: len(stored.of(task, algo)) for algo in stored.algos(task)}
    few = [algo for algo, count in counts.items() if count < MIN_SEEDS]
    text = ""
    if len(set(counts.values())) > 1:
        text = " Numbers of seeds differ: " + ", ".join(f"{algo} {count}" for algo, count in counts.items()) + "."
    return text + (f" Fewer than {MIN_SEEDS} seeds, so no interval: {', '.join(few)}." if few else "")


def _all_tasks(stored: Stored, summaries: Summaries) -> list[str]:
    comparison = compare(stored, summaries)
    common, notes = comparison.tasks, "".join(f" {note}" for note in comparison.notes)
    if not common:
        return ["### All tasks", "", f"No task has results of all algorithms, so nothing is put together.{notes}", ""]
    total = len(stored.suite.tasks)
    lines = ["### All tasks", "", f"Over {len(common)} of {total} tasks: {', '.join(common)}.{notes}", ""]
    scores = aggregate_table(stored, comparison)
    if not scores:
        scores = [
            "No mean over tasks: the scores are no success rates, and may differ in scale.",
            "",
        ]
    return [*lines, *scores, *improvement_table(stored, comparison)]
