"""Learning from scratch, through RL Zoo's own command, beside SB3's SAC and sb3-contrib's TQC."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import yaml

from benchmarks.cells import Cell
from benchmarks.suites.base import Curve, Suite

_MODULES = {"swfp": "sb3_swfp.swfp", "sac": "stable_baselines3", "tqc": "sb3_contrib"}


def settings(cell: Cell) -> dict[str, Any]:
    """
    :param cell: The cell; its task is an environment's id
    :return: The Zoo's hyperparameters; what it has for MuJoCo's "-v4" serves "-v5"
    :raises ValueError: if the Zoo has none for this algorithm and environment
    :raises ImportError: if the Zoo is missing
    """
    if cell.algo == "swfp":
        from sb3_swfp.zoo import config_path

        source = config_path()
    else:
        source = _zoo() / "hyperparams" / f"{cell.algo}.yml"
    entries = yaml.safe_load(source.read_text(encoding="utf-8"))
    entry = entries.get(cell.task) or entries.get(cell.task.replace("-v5", "-v4"))
    if entry is None:
        raise ValueError(f"{source} has no hyperparameters of {cell.algo} for {cell.task}")
    return dict(entry)


def _zoo() -> Path:
    """Folder of RL Zoo's package."""
    zoo = find_spec("rl_zoo3")
    if zoo is None or zoo.origin is None:
        raise ImportError('The suite "scratch" needs RL Zoo: pip install "sb3-swfp[zoo]"')
    return Path(zoo.origin).parent


def run(cell: Cell, settings: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """
    Train with RL Zoo's own command.

    :param cell: The cell
    :param settings: Hyperparameters
    :param steps: Environment steps
    :param folder: Where logs, evaluations and the model go
    :return: The device, which RL Zoo leaves to Stable-Baselines3
    """
    from rl_zoo3 import train
    from stable_baselines3.common.utils import get_device

    from sb3_swfp.zoo import register

    register()
    config = folder / "hyperparams.yml"
    config.write_text(yaml.safe_dump({cell.task: settings}), encoding="utf-8")
    evaluations = max(steps // 10, 1)
    sys.argv = ["train", "--algo", cell.algo, "--env", cell.task, "--seed", str(cell.seed), "-n", str(steps)]
    sys.argv += ["-conf", str(config), "-f", str(folder), "--eval-freq", str(evaluations), "--eval-episodes", "10"]
    sys.argv += ["--num-threads", "1", "--log-interval", "-1"]
    train.train()
    return {"device": str(get_device("auto"))}


def _check(task: str) -> None:
    _zoo()


def curve(folder: Path) -> Curve:
    """
    :param folder: Folder of a cell
    :return: Mean returns so far
    """
    files = list(folder.glob("*/*/evaluations.npz"))
    if not files:
        return []
    try:
        with np.load(files[0]) as stored:
            pairs = zip(stored["timesteps"], stored["results"], strict=True)
            return [(int(step), float(returns.mean())) for step, returns in pairs]
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):  # just being written
        return []


SUITES: Mapping[str, Suite] = {
    "scratch": Suite(
        "without demonstrations, RL Zoo's hyperparameters, beside SB3's SAC and sb3-contrib's TQC",
        "mean return of 10 episodes",
        {"Pendulum-v1": 10_000, "Hopper-v5": 100_000, "HalfCheetah-v5": 100_000},
        ("swfp", "sac", "tqc"),
        settings,
        _MODULES.__getitem__,
        run,
        curve,
        _check,
    ),
}
