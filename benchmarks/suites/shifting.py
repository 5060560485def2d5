"""Following a reward that moves: SWFP, its KL variant and DPPO on the bandit whose best mode turns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.cells import Cell
from benchmarks.suites.base import Suite, load_curve, save_curve

#: Names and modules; what the figure of ``benchmarks.toys shifting`` calls them
_ALGORITHMS = {
    "swfp": ("SWFP", "sb3_swfp.swfp"),
    "swfp_kl": ("KL variant", "sb3_swfp.baselines.swfp_kl"),
    "dppo": ("DPPO", "sb3_swfp.baselines.dppo"),
}


def settings(cell: Cell) -> dict[str, Any]:
    """
    :param cell: The cell
    :return: The figure's settings of this algorithm
    """
    from benchmarks.toy_runs import shifting_settings

    return shifting_settings(_ALGORITHMS[cell.algo][0])


def run(cell: Cell, settings: dict[str, Any], steps: int, folder: Path) -> dict[str, Any]:
    """
    Clone the first Boltzmann density, then learn while the modes turn.

    :param cell: The cell
    :param settings: Hyperparameters
    :param steps: Environment steps
    :param folder: Where the curve goes
    :return: Regrets and the best mode's share at each look
    """
    import torch as th

    from benchmarks.toy_runs import shifting_run

    th.set_num_threads(1)
    numbers = shifting_run(_ALGORITHMS[cell.algo][0], settings, cell.seed, steps, lambda _: None)
    scores = [-regret for regret in numbers["flow_regret"]]
    save_curve(folder, list(zip(numbers["steps"], scores, strict=True)))
    return numbers


SUITES: Mapping[str, Suite] = {
    "shifting": Suite(
        "a bandit whose best mode moves from an eighth of the run on, started from equal clones",
        "regret of the flow's own particles, negated",
        {"bandit": 5_000},
        tuple(_ALGORITHMS),
        settings,
        lambda algo: _ALGORITHMS[algo][1],
        run,
        load_curve,
        modules=("sb3_swfp.envs.bandit",),
    ),
}
