"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cells import Result
from benchmarks.reporting.aggregate import Comparison, Improvement
from benchmarks.reporting.statistics import Estimate, Summaries, clone_level, dip_by_noise
from benchmarks.reporting.stored import Stored

NONE = "–"
IMPROVEMENT = ["probability of improvement [95 %]", "excludes 0.5", "tasks where its interquartile mean is no lower"]


@dataclass(frozen=True)
class Format:
    """
    How scores are written.

    :param factor: What they are multiplied by
    :param digits: Digits behind the point
    """

    factor: float
    digits: int

    def __call__(self, score: float, sign: str = "") -> str:
        """
        :param score: A score, or a difference of scores
        :param sign: ``"+"`` to write the sign of positive ones too
        :return: As text
        """
        rounded = round(self.factor * float(score), self.digits) or 0.0  # no -0
        return f"{rounded:{sign if rounded else ''},.{self.digits}f}"

    def estimate(self, estimate: Estimate) -> str:
        """
        :param estimate: A single one
        :return: With its interval, where it has one
        """
        text = self(estimate.value[0])
        if estimate.low is None or estimate.high is None:
            return text
        return f"{text} [{self(estimate.low[0])}, {self(estimate.high[0])}]"


PERCENT = Format(100.0, 1)
PROBABILITY = Format(1.0, 3)


def score_format(stored: Stored, task: str) -> Format:
    """
    :param stored: Results of a suite
    :param task: Name of a task
    :return: Success rates in per cent, returns with about 3 to 4 digits of a middling final one
    """
    if stored.suite.rates:
        return PERCENT
    results = [result for algo in stored.suite.algos for result in stored.of(task, algo)]
    # Not of the largest: one run that diverges would hide what the others differ in
    middling = float(np.median([abs(result.curve[-1][1]) for result in results])) if results else 0.0
    return Format(1.0, 0 if middling >= 100.0 else 1 if middling >= 10.0 else 3)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """
    :param head: Titles of the columns
    :param rows: Their entries
    :return: Lines in Markdown, and an empty one
    """
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def spread(counts: Iterable[int]) -> str:
    """
    :param counts: Numbers of seeds, task by task
    :return: ``"3"`` if they are the same, else ``"3 to 6"``
    """
    found = sorted(set(counts))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def score_table(stored: Stored, task: str, summaries: Summaries) -> list[str]:
    """
    :param stored: Results of a suite
    :param task: Name of a task
    :param summaries: Summary of each task and algorithm that have results
    :return: Final scores and areas under the curve
    """
    write = score_format(stored, task)
    algos = stored.algos(task)
    seeds = sorted({seed for algo in algos for seed in summaries[task, algo].seeds})
    rows = []
    for algo in algos:
        summary = summaries[task, algo]
        by_seed = dict(zip(summary.seeds, summary.finals, strict=True))
        each = ", ".join(write(by_seed[seed]) if seed in by_seed else NONE for seed in seeds)
        mean = write(np.mean(summary.finals))
        rows.append([algo, mean, each, write.estimate(summary.final), write(np.mean(summary.areas))])
    listed = ", ".join(map(str, seeds))
    return table(
        ["algorithm", "final score", f"seeds {listed}", "interquartile mean [95 %]", "area under the curve"], rows
    )


def steadiness_table(stored: Stored, task: str, summaries: Summaries) -> list[str]:
    """
    :param stored: Results of a suite
    :param task: Name of a task
    :param summaries: Summary of each task and algorithm that have results
    :return: How deep each algorithm fell below where it started and below the clone, and how much of that is noise;
        nothing if no algorithm was evaluated at step 0 and later
    """
    write, level = score_format(stored, task), clone_level(stored, task, summaries)
    rows = []
    for algo in stored.algos(task):
        summary = summaries[task, algo]
        if not len(summary.dips):
            continue
        start, dip = float(np.mean(summary.starts)), float(np.mean(summary.dips))
        below = NONE if level is None else write(start + dip - level, "+")
        noise, episodes = NONE, _episodes(stored, task, algo)
        if episodes is not None:
            noise = write(dip_by_noise(start, episodes, len(summary.steps) - 1), "+")
        each = ", ".join(write(dip, "+") for dip in summary.dips)
        rows.append([algo, write(start), write(dip, "+"), each, noise, below])
    if not rows:
        return []
    head = ["algorithm", "at step 0", "deepest dip", "each seed", "of an unchanged policy, by noise"]
    lines = table([*head, f"lowest, against {stored.reference} at step 0"], rows)
    episodes = _episodes(stored, task, stored.reference)
    if level is not None and episodes is not None:
        error = write((level * (1.0 - level) / episodes) ** 0.5)
        noise = f"one evaluation of {episodes} episodes at that level has a standard error of {error} points"
        lines += [f"{stored.reference} at step 0 scores {write(level)}; {noise}.", ""]
    return lines


def _episodes(stored: Stored, task: str, algo: str) -> int | None:
    """Episodes of an evaluation, where they can tell its noise: of success rates, and if the settings say it."""
    results = stored.of(task, algo)
    return results[0].config.get("eval_episodes") if results and stored.suite.rates else None


def details_table(stored: Stored, task: str) -> list[str]:
    """
    :param stored: Results of a suite
    :param task: Name of a task
    :return: The suite's own columns, of each seed; nothing if it has none
    """
    columns = stored.suite.columns
    rows = [
        [
            algo,
            *(
                ", ".join(f"{read(result.details):.3g}" for result in stored.of(task, algo))
                for read in columns.values()
            ),
        ]
        for algo in stored.algos(task)
    ]
    return table(["algorithm", *columns], rows) if columns else []


def aggregate_table(stored: Stored, comparison: Comparison) -> list[str]:
    """
    :param stored: Results of a suite
    :param comparison: Its tasks put together
    :return: Each algorithm over all tasks; nothing where scores are no success rates
    """

    def maybe(difference: float | None) -> str:
        return NONE if difference is None else PERCENT(difference, "+")

    rows = [
        [
            *(algo, spread(comparison.runs[algo]), PERCENT.estimate(each.final)),
            *(PERCENT(each.mean), PERCENT(each.area), maybe(each.dip), maybe(each.below)),
        ]
        for algo, each in comparison.algos.items()
    ]
    head = ["algorithm", "seeds", "interquartile mean [95 %]", "mean", "area under the curve", "deepest dip"]
    return table([*head, f"lowest, against {stored.reference} at step 0"], rows) if rows else []


def improvement_table(stored: Stored, comparison: Comparison) -> list[str]:
    """
    :param stored: Results of a suite
    :param comparison: Its tasks put together
    :return: The reference algorithm against each other one; nothing if it or they have no results
    """
    if not comparison.improvements:
        return []
    rows = [[algo, *improvement_cells(each, len(comparison.tasks))] for algo, each in comparison.improvements.items()]
    return table([f"{stored.reference} over", *IMPROVEMENT], rows)


def improvement_cells(improvement: Improvement, tasks: int) -> list[str]:
    """
    :param improvement: The reference algorithm against another one
    :param tasks: Number of tasks
    :return: Entries under the titles ``IMPROVEMENT``
    """
    low, high = improvement.probability.low, improvement.probability.high
    verdict = "no interval"
    if low is not None and high is not None:
        verdict = "yes, above" if low[0] > 0.5 else "yes, below" if high[0] < 0.5 else "no"
    return [PROBABILITY.estimate(improvement.probability), verdict, f"{improvement.matched} of {tasks}"]


def cost_table(stored: Stored) -> list[str]:
    """
    :param stored: Results of a suite
    :return: Time and memory, means over seeds
    """
    rows = []
    for task in stored.tasks:
        for algo in stored.algos(task):
            results = stored.of(task, algo)
            memory = np.mean([result.peak_memory_mb for result in results])
            cpu = _per_step(results, lambda result: result.cpu_seconds)
            wall = _per_step(results, lambda result: result.seconds)
            devices = sorted({str(result.details.get("device", "cpu")) for result in results})
            rows.append([task, algo, cpu, wall, f"{memory:,.0f}", ", ".join(devices)])
    head = ["task", "algorithm", f"CPU ms per {stored.suite.unit}", f"wall-clock ms per {stored.suite.unit}"]
    return table([*head, "peak memory, MiB", "device"], rows)


def _per_step(results: Sequence[Result], seconds: Callable[[Result], float | None]) -> str:
    known = [value for value in map(seconds, results) if value is not None]
    return f"{1000.0 * np.mean(known) / results[0].config['steps']:.1f}" if known else "not kept"
