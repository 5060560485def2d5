"""Where the JKO picture breaks: constant step sizes on a known energy, with 1, 3, 5 and 10 blocks."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.suites.base import Curve, Suite, load_curve, save_curve

_BLOCKS = {"1-block": 1, "3-blocks": 3, "5-blocks": 5, "10-blocks": 10}
_STEP_SIZES = {f"eta-{eta:g}": eta for eta in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}
#: Gradient steps: 40 JKO epochs
_STEPS = 2_000
#: Nats that a divergence may rise by from one epoch to the next: the optimiser never rests, even at the minimum
_JITTER = 0.01


def settings(cell: Cell) -> dict[str, Any]:
    """
    :param cell: The cell
    :return: Its blocks and step size, and what all cells share
    """
    from benchmarks.jko_runs import step_size_settings

    return step_size_settings(_BLOCKS[cell.task], _STEP_SIZES[cell.algo])


def run(cell: Cell, settings: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """
    JKO epochs towards the bandit's Boltzmann density.

    :param cell: The cell
    :param settings: Its settings
    :param steps: Gradient steps
    :param folder: Where the curve goes
    :return: What :func:`~benchmarks.jko_runs.step_size_run` returns
    """
    import torch as th

    from benchmarks.jko_runs import step_size_run

    th.set_num_threads(1)
    curve: Curve = []

    def look(step: int, divergence: float) -> None:
        curve.append((step, -divergence))
        save_curve(folder, curve)

    return step_size_run(settings, cell.seed, steps, look)


def epochs_that_rose(details: Mapping[str, Any]) -> int:
    """
    :param details: What :func:`run` returned
    :return: Epochs in which the divergence rose by more than jitter
    """
    return sum(after - before > _JITTER for before, after in pairwise(details["divergence"]))


SUITES: Mapping[str, Suite] = {
    "step-size": Suite(
        "constant JKO step sizes and numbers of blocks, on the bandit with its reward in the critic's place",
        "KL of the flow from the Boltzmann density in nats, negated",
        dict.fromkeys(_BLOCKS, _STEPS),
        tuple(_STEP_SIZES),
        settings,
        lambda algo: "sb3_swfp.jko",
        run,
        load_curve,
        modules=("sb3_swfp.envs.bandit",),
        unit="gradient step",
        columns={
            "epochs in which the energy rose (a JKO step never lets it)": epochs_that_rose,
            "energy's fall / what the trust region charged (JKO steps: at least 1; gradient flow: 2)": itemgetter(
                "gain"
            ),
            "exact W2 to Boltzmann samples at the end (among these themselves: 0.16 on average)": itemgetter("w2"),
            "largest staleness": itemgetter("staleness"),
        },
    ),
}
