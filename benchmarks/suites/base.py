"""What a suite is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell, latest_code, versions
from sb3_swfp.files import atomic_path

#: Steps and score of each evaluation
Curve = list[tuple[int, float]]

_CURVE = "curve.json"


def save_curve(folder: Path, curve: Curve) -> None:
    """
    Keep a curve where :func:`load_curve` finds it, as a whole or not at all: the runner reads it meanwhile.

    :param folder: Folder of a cell
    :param curve: Its evaluations so far
    """
    with atomic_path(folder / _CURVE) as temporary:
        temporary.write_text(json.dumps(curve), encoding="utf-8")


def load_curve(folder: Path) -> Curve:
    """
    :param folder: Folder of a cell
    :return: What :func:`save_curve` kept there, nothing if it kept none
    """
    try:
        return [(int(step), float(score)) for step, score in json.loads((folder / _CURVE).read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []


@dataclass(frozen=True)
class Suite:
    """
    A table of tasks and algorithms.

    :param description: One line
    :param score: What a curve's values are
    :param tasks: Name of each task and its steps
    :param algos: Names of the algorithms
    :param settings: All settings of a cell, as JSON can hold them; a result made with others is another result
    :param module: Name of the module, of whatever package, that an algorithm's result depends on
    :param run: Runs a cell in this process: cell, its settings, steps, folder -> details to keep
    :param curve: Reads the evaluations so far from the cell's folder
    :param check: Raises ``FileNotFoundError`` or ``ImportError`` if what a task needs is not on this machine
    :param modules: Names of modules of this package that a result depends on, beside the algorithm's
    :param packages: Names of packages that it depends on, beside those that all depend on
    :param unit: What a run's steps are
    :param columns: Numbers that the report shows of a result's details, by their titles
    :param rates: Whether scores are success rates, in [0, 1], of which a mean over tasks says something
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
    rates: bool = False
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    unit: str = "environment step"
    columns: Mapping[str, Callable[[Mapping[str, Any]], float]] = field(default_factory=dict)

    def versions(self, algo: str) -> dict[str, str]:
        """
        :param algo: Name of an algorithm
        :return: What its results depend on, as it is now
        """
        return versions(self.module(algo), self.modules, self.packages)

    def latest_code(self, algo: str) -> str | None:
        """
        :param algo: Name of an algorithm
        :return: What a loaded result has as its code if that does the same as the code now; ``None`` if none counts
        """
        code = self.versions(algo).get("code")
        return None if code is None else latest_code(code)
