"""Tables from stored results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from benchmarks.cells import Cell, Result
from benchmarks.suites import SUITES


def report(suite: str, root: Path) -> str:
    """
    A table of each task, in Markdown: score at the end (mean and standard deviation over seeds), score of each seed,
    mean over all evaluations (area under the curve), wall-clock time.

    :param suite: Name of the suite
    :param root: Folder of all results
    :return: The tables
    :raises FileNotFoundError: if there are no results
    """
    lines: list[str] = []
    for task in SUITES[suite].tasks:
        rows = [_row(algo, _results(suite, task, algo, root)) for algo in SUITES[suite].algos]
        rows = [row for row in rows if row]
        if rows:
            lines += [f"**{task}**, {SUITES[suite].score}", ""]
            lines += ["| algorithm | at the end | each seed | area under the curve | seconds per 1,000 steps |"]
            lines += ["|---|---|---|---|---|", *rows, ""]
    if not lines:
        raise FileNotFoundError(f"No results of {suite} in {root}: python -m benchmarks run --suite {suite}")
    return "\n".join(lines)


def _results(suite: str, task: str, algo: str, root: Path) -> list[Result]:
    folders = sorted(Cell(suite, task, algo, 0).folder(root).parent.glob(f"{algo}-*"))
    return [result for result in map(Result.load, folders) if result is not None and result.curve]


def _row(algo: str, results: Sequence[Result]) -> str:
    if not results:
        return ""
    finals = [result.curve[-1][1] for result in results]
    areas = [fmean(score for _, score in result.curve) for result in results]
    speeds = [1000.0 * result.seconds / result.config["steps"] for result in results]
    spread = f" ± {stdev(finals):,.0f}" if len(finals) > 1 else ""
    seeds = ", ".join(f"{score:,.0f}" for score in finals)
    return f"| {algo} | {fmean(finals):,.0f}{spread} | {seeds} | {fmean(areas):,.0f} | {fmean(speeds):.1f} |"
