"""The stored results of a suite: collected, checked for what must not be averaged, and what of it is missing."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, Result
from benchmarks.suites import SUITES, Suite

#: Fewer seeds than this get no interval, and as many are expected of every cell
MIN_SEEDS = 3

Results = tuple[Result, ...]


@dataclass(frozen=True)
class Stored:
    """
    What there is of a suite.

    :param name: Name of the suite
    :param suite: The suite
    :param results: Results of each task and algorithm that has any, by seed
    :param begun: Cells that were begun and left no result: running, killed or failed
    """

    name: str
    suite: Suite
    results: Mapping[tuple[str, str], Results]
    begun: frozenset[Cell]

    def of(self, task: str, algo: str) -> Results:
        """
        :param task: Name of a task
        :param algo: Name of an algorithm
        :return: Their results by seed, maybe none
        """
        return self.results.get((task, algo), ())

    @property
    def all(self) -> list[Result]:
        """All results."""
        return [result for results in self.results.values() for result in results]

    @property
    def tasks(self) -> list[str]:
        """The tasks that have results, in the suite's order."""
        return [task for task in self.suite.tasks if any(self.of(task, algo) for algo in self.suite.algos)]

    def algos(self, task: str | None = None) -> list[str]:
        """
        :param task: Name of a task, or ``None`` for any of them
        :return: The algorithms that have results on it, in the suite's order
        """
        tasks = self.suite.tasks if task is None else (task,)
        return [algo for algo in self.suite.algos if any(self.of(each, algo) for each in tasks)]

    @property
    def seeds(self) -> list[int]:
        """Seeds that every cell is expected to have: all that any has, and at least ``MIN_SEEDS``."""
        seeds = {result.cell.seed for result in self.all}
        others = (seed for seed in range(MIN_SEEDS) if seed not in seeds)
        while len(seeds) < MIN_SEEDS:
            seeds.add(next(others))
        return sorted(seeds)

    @property
    def missing(self) -> list[Cell]:
        """Cells without a result."""
        done = {result.cell for result in self.all}
        pairs = [(task, algo) for task in self.suite.tasks for algo in self.suite.algos]
        cells = [Cell(self.name, task, algo, seed) for task, algo in pairs for seed in self.seeds]
        return [cell for cell in cells if cell not in done]

    @property
    def reference(self) -> str:
        """The algorithm that the others are compared with: SWFP, or the suite's first."""
        return "swfp" if "swfp" in self.suite.algos else self.suite.algos[0]


def collect(name: str, root: Path) -> Stored:
    """
    :param name: Name of a suite
    :param root: Folder of all results
    :return: Its results
    :raises ValueError: if there are results that must not be averaged: of different code within one algorithm, of
        different packages within a task, of different settings within both, or scores that are not finite, or no rates
        where they should be; all are named
    """
    suite, begun = SUITES[name], set()
    found: dict[tuple[str, str], list[Result]] = {}
    problems: list[str] = []
    for cell in _cells(name, suite, root):
        result = Result.load(cell.folder(root))
        if result is None or not result.curve:
            begun.add(cell)
        else:
            found.setdefault((cell.task, cell.algo), []).append(result)
            problems += _invalid(result, cell, root, suite.rates)
    for algo in suite.algos:
        groups = [results for (_, other), results in found.items() if other == algo]
        problems += _differences(algo, [result for results in groups for result in results], "versions", root, {"code"})
        for results in groups:
            problems += _differences(algo, results, "config", root)
    for task in suite.tasks:
        # What is compared is compared within a task: tasks may have run on different machines, its algorithms may not
        of_task = [result for (other, _), results in found.items() if other == task for result in results]
        common = set.intersection(*(set(result.versions) for result in of_task)) if of_task else set()
        problems += _differences(task, of_task, "versions", root, common - {"code"})
        for algo in suite.algos:
            results = found.get((task, algo), [])
            own = {key for result in results for key in result.versions} - common - {"code"}
            problems += _differences(algo, results, "versions", root, own)
    if problems:
        raise ValueError("\n".join(problems))
    return Stored(name, suite, {key: tuple(results) for key, results in found.items()}, frozenset(begun))


def _cells(name: str, suite: Suite, root: Path) -> Iterator[Cell]:
    """The cells that have a folder, in the suite's order, by seed."""
    for task in suite.tasks:
        folder = Cell(name, task, "", 0).folder(root).parent
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        # Both parts: "swfp-kl-0" is no seed of "swfp"
        parts = [match.groups() for each in names if (match := re.fullmatch(r"(.+)-(\d+)", each))]
        cells = [Cell(name, task, algo, int(seed)) for algo, seed in parts if algo in suite.algos]
        yield from sorted(cells, key=lambda cell: (suite.algos.index(cell.algo), cell.seed))


def _invalid(result: Result, cell: Cell, root: Path, rates: bool) -> list[str]:
    folder = cell.folder(root)
    if result.cell != cell:
        return [f"{folder} holds the result of another cell, {result.cell}: move it back or remove it"]
    if not all(math.isfinite(score) for _, score in result.curve):
        return [f"{folder} has a score that is not a finite number: see its log.txt, then remove the folder and rerun"]
    if rates and not all(0.0 <= score <= 1.0 for _, score in result.curve):
        return [f"{folder} has a success rate outside [0, 1]: remove the folder and rerun"]
    if any(after <= before for (before, _), (after, _) in pairwise(result.curve)):
        return [f"{folder} has evaluations whose environment steps do not increase: remove the folder and rerun"]
    return []


def _differences(
    name: str, results: Sequence[Result], what: str, root: Path, keys: set[str] | None = None
) -> list[str]:
    """One line for each entry (of these, or of all) of their ``what`` in which a task's or an algorithm's differ."""
    entries: list[dict[str, Any]] = [getattr(result, what) for result in results]
    problems = []
    for key in sorted({key for entry in entries for key in entry} if keys is None else keys):
        groups: dict[str, list[str]] = {}
        for result, entry in zip(results, entries, strict=True):
            value = json.dumps(entry[key], sort_keys=True) if key in entry else "none"
            groups.setdefault(value, []).append(str(result.cell.folder(root)))
        if len(groups) > 1:
            listed = "; ".join(f"{value} in {_some(folders)}" for value, folders in groups.items())
            problems.append(
                f"{results[0].cell.suite}: results of {name} differ in {key}: {listed}. Results of different {what} "
                f"are not averaged: remove the older folders and run the suite again"
            )
    return problems


def _some(folders: Sequence[str], most: int = 3) -> str:
    more = f" and {len(folders) - most} more" if len(folders) > most else ""
    return ", ".join(folders[:most]) + more


def ranges(numbers: Iterable[int]) -> str:
    """
    :param numbers: Such as seeds
    :return: As the command line takes them: ``"0-2"`` or ``"0,2,5"``
    """
    ordered = sorted(numbers)
    if len(ordered) > 1 and ordered[-1] - ordered[0] == len(ordered) - 1:
        return f"{ordered[0]}-{ordered[-1]}"
    return ",".join(map(str, ordered))
