"""What a suite is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, versions

#: Environment steps and score of each evaluation
Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Suite:
    """
    A table of tasks and algorithms.

    :param description: One line
    :param score: What a curve's values are
    :param tasks: Name of each task and its environment steps
    :param algos: Names of the algorithms
    :param settings: All settings of a cell, as JSON can hold them; a result made with others is another result
    :param module: Name of the module, of whatever package, that an algorithm's result depends on
    :param run: Runs a cell in this process: cell, its settings, environment steps, folder -> details to keep
    :param curve: Reads the evaluations so far from the cell's folder
    :param check: Raises ``FileNotFoundError`` or ``ImportError`` if what a task needs is not on this machine
    :param modules: Names of modules of this package that a result depends on, beside the algorithm's
    :param packages: Names of packages that it depends on, beside those that all depend on
    :param bounds: Of each task's score, to normalise it by; ``None`` where scores are not comparable
    """

    description: str
    score: str
    tasks: Mapping[str, int]
    algos: tuple[str, ...]
    settings: Callable[[Cell], dict[str, Any]]
    module: Callable[[str], str]
    run: Callable[[Cell, dict[str, Any], int, Path], dict[str, Any]]
    curve: Callable[[Path], Curve]
    check: Callable[[str], None] = lambda task: None
    bounds: Mapping[str, tuple[float, float]] | None = None
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def versions(self, algo: str) -> dict[str, str]:
        """
        :param algo: Name of an algorithm
        :return: What its results depend on, as it is now
        """
        return versions(self.module(algo), self.modules, self.packages)
