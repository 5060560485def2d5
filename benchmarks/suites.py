"""The suites: what each runs, and how one of its cells is run. A new suite is one entry of ``SUITES``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import Cell

Curve = list[tuple[int, float]]


@dataclass(frozen=True)
class Suite:
    """
    A table of tasks and algorithms.

    :param description: One line
    :param score: What a curve's values are
    :param tasks: Name of each task and its environment steps
    :param algos: Names of the algorithms
    :param run: Runs a cell in this process: cell, environment steps, folder -> the run's settings
    :param curve: Reads the evaluations so far from the cell's folder
    """

    description: str
    score: str
    tasks: Mapping[str, int]
    algos: tuple[str, ...]
    run: Callable[[Cell, int, Path], dict[str, Any]]
    curve: Callable[[Path], Curve]


def run_zoo(cell: Cell, steps: int, folder: Path) -> dict[str, Any]:
    """
    Train with RL Zoo's own command and hyperparameters. What the Zoo has for MuJoCo's "-v4" serves "-v5".

    :param cell: The cell; its task is an environment's id
    :param steps: Environment steps
    :param folder: Where logs, evaluations and the model go
    :return: The hyperparameters
    :raises KeyError: if the Zoo has none for this algorithm and environment
    """
    import yaml
    from rl_zoo3 import train

    from sb3_swfp.zoo import config_path, register

    register()
    source = config_path() if cell.algo == "swfp" else Path(train.__file__).parent / "hyperparams" / f"{cell.algo}.yml"
    entries = yaml.safe_load(source.read_text(encoding="utf-8"))
    entry = entries.get(cell.task) or entries[cell.task.replace("-v5", "-v4")]
    config = folder / "hyperparams.yml"
    config.write_text(yaml.safe_dump({cell.task: entry}), encoding="utf-8")
    evaluations = max(steps // 10, 1)
    sys.argv = ["train", "--algo", cell.algo, "--env", cell.task, "--seed", str(cell.seed), "-n", str(steps)]
    sys.argv += ["-conf", str(config), "-f", str(folder), "--eval-freq", str(evaluations), "--eval-episodes", "10"]
    sys.argv += ["--num-threads", "1", "--log-interval", "-1"]
    train.train()
    return dict(entry)


def zoo_curve(folder: Path) -> Curve:
    """
    :param folder: Folder of a cell that :func:`run_zoo` runs
    :return: Mean returns so far
    """
    files = list(folder.glob("*/*/evaluations.npz"))
    if not files:
        return []
    try:
        with np.load(files[0]) as stored:
            pairs = zip(stored["timesteps"], stored["results"], strict=True)
            return [(int(step), float(returns.mean())) for step, returns in pairs]
    except (OSError, EOFError, ValueError, KeyError):  # just being written
        return []


SUITES: Mapping[str, Suite] = {
    "scratch": Suite(
        "without demonstrations, RL Zoo's hyperparameters, beside SB3's SAC and sb3-contrib's TQC",
        "mean return of 10 episodes",
        {"Pendulum-v1": 10_000, "Hopper-v5": 100_000, "HalfCheetah-v5": 100_000},
        ("swfp", "sac", "tqc"),
        run_zoo,
        zoo_curve,
    ),
}
