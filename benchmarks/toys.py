"""
Figures of the toys: how SWFP works, on a bandit whose answer is known.

    python -m benchmarks.toys paths        # noise to action through the blocks, before and after, beside the geodesic
    python -m benchmarks.toys boltzmann    # exact W2 to the Boltzmann density against training steps
    python -m benchmarks.toys shifting     # regret where the best mode moves: SWFP, its KL variant, DPPO

Each writes a PNG and, beside it, the numbers as JSON, and takes some minutes on one core. ``docs/toys.md`` shows them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from tqdm.auto import tqdm

from benchmarks import toy_runs
from benchmarks.arguments import positive, seed_range
from benchmarks.reporting.curves import COLOURS
from benchmarks.reporting.optional import optional
from sb3_swfp.envs.bandit import Bandit
from sb3_swfp.files import atomic_path

#: Environment steps of each figure's runs
STEPS = {"paths": 3000, "boltzmann": 8000, "shifting": 5000}
#: Particles whose paths are drawn, of those that are measured
DRAWN = 60
_TITLES = {"before": "before: the clone", "after": "after SWFP", "geodesic": "optimal transport"}


def draw_paths(results: dict[int, dict[str, Any]], figure: Any) -> dict[str, Any]:
    """
    Particle paths over the Boltzmann density, of the first seed.

    :param results: :func:`~benchmarks.toy_runs.paths_run` of each seed
    :param figure: matplotlib figure to draw into
    :return: Numbers of every seed
    """
    figure.set_size_inches(9.6, 3.5)
    ticks = np.linspace(-1.0, 1.0, 101)
    square = np.stack(np.meshgrid(ticks, ticks), axis=-1)
    density = np.exp(Bandit().log_boltzmann(square, toy_runs.ALPHA))
    seed, first = next(iter(results.items()))
    for axes, (name, path) in zip(figure.subplots(1, 3, sharex=True, sharey=True), first["paths"].items(), strict=True):
        axes.contourf(ticks, ticks, density, levels=8, cmap="Greys", alpha=0.6)
        for particle in path[:, :DRAWN].transpose(1, 0, 2):
            axes.plot(*particle.T, "-", color=COLOURS[0], linewidth=0.7, alpha=0.6)
        # One scatter a block end: the darker, the later
        axes.plot(*path[0, :DRAWN].T, ".", color=COLOURS[7], markersize=3, label="noise")
        axes.plot(*path[1:-1, :DRAWN].reshape(-1, 2).T, ".", color=COLOURS[0], markersize=1.5, label="between blocks")
        axes.plot(*path[-1, :DRAWN].T, ".", color=COLOURS[1], markersize=4, label="action")
        numbers = first["numbers"][name]
        axes.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal")
        axes.set_title(f"{_TITLES[name]}\nW2 {numbers['w2_to_boltzmann']:.3f}", fontsize="medium")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    figure.suptitle(f"Through the {toy_runs.N_BLOCKS} blocks (seed {seed}; grey: the Boltzmann density)")
    return {str(seed): {key: value for key, value in each.items() if key != "paths"} for seed, each in results.items()}


def draw_boltzmann(results: dict[int, dict[str, Any]], figure: Any) -> dict[str, Any]:
    """
    W2 to the Boltzmann density against steps, with the noise floor.

    :param results: :func:`~benchmarks.toy_runs.boltzmann_run` of each seed
    :param figure: matplotlib figure to draw into
    :return: Numbers of every seed
    """
    figure.set_size_inches(6.4, 3.8)
    axes = figure.add_subplot()
    _band(axes, results, "w2", "SWFP's flow", COLOURS[0])
    floors = np.concatenate([each["floor"] for each in results.values()])
    axes.axhline(floors.mean(), color="black", linestyle="--", linewidth=1.0, label="noise floor (mean and range)")
    axes.axhspan(floors.min(), floors.max(), color="black", alpha=0.1, linewidth=0)
    axes.set(xlabel="environment steps", ylim=(0.0, None), title=f"Exact W2 of {toy_runs.CLOUD}-point clouds")
    axes.set_ylabel(f"W2 to exp(r / {toy_runs.ALPHA}) / Z")
    axes.legend()
    axes.grid(alpha=0.3)
    return {str(seed): each for seed, each in results.items()}


def draw_shifting(results: dict[int, dict[str, dict[str, Any]]], figure: Any) -> dict[str, Any]:
    """
    Regret against steps: of the flow's own particles, and of the actions taken.

    :param results: :func:`~benchmarks.toy_runs.shifting_run` of each seed and algorithm
    :param figure: matplotlib figure to draw into
    :return: Numbers of every algorithm and seed, and each one's mean regret once the mode moves
    """
    figure.set_size_inches(9.6, 3.9)
    titles = {"flow_regret": "the flow's own particles", "acted_regret": "actions taken, exploration included"}
    panels, wanted = figure.subplots(1, 2, sharey=True), toy_runs.boltzmann_regret()
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        for index, name in enumerate(toy_runs.ALGORITHMS):
            _band(axes, {seed: each[name] for seed, each in results.items()}, key, name, COLOURS[index])
        last = next(iter(next(iter(results.values())).values()))["steps"][-1]
        axes.axvline(toy_runs.HOLD_SHARE * last, color="black", linestyle=":", linewidth=1.0)
        axes.set(title=title, xlabel="environment steps", ylim=(0.0, None))
        axes.grid(alpha=0.3)
        axes.axhline(wanted, color="black", linestyle="--", linewidth=1.0, label="the Boltzmann density itself")
    panels[0].set_ylabel("regret")
    panels[0].legend(title=f"mean and range of {len(results)} seeds", fontsize="small", title_fontsize="small")
    figure.suptitle("From the dotted line on, the best mode moves")
    numbers: dict[str, Any] = {name: {} for name in toy_runs.ALGORITHMS} | {"boltzmann_regret": wanted}
    for name in toy_runs.ALGORITHMS:
        for seed, each in results.items():
            run = each[name]
            moving = np.array(run["steps"]) > toy_runs.HOLD_SHARE * run["steps"][-1]
            means = {
                f"mean_{key}_moving": float(np.mean(np.array(run[key])[moving[-len(run[key]) :]])) for key in titles
            }
            numbers[name][str(seed)] = run | means
    return numbers


def _band(axes: Any, runs: dict[int, dict[str, Any]], key: str, label: str, colour: str) -> None:
    """Mean and range over seeds of ``runs[seed][key]``, which may lack the look before the first step."""
    values = np.array([run[key] for run in runs.values()])
    steps = next(iter(runs.values()))["steps"][-values.shape[1] :]
    axes.plot(steps, values.mean(axis=0), color=colour, label=label)
    axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.15, linewidth=0)


_DRAW: dict[str, Callable[[dict[int, Any], Any], dict[str, Any]]] = {
    "paths": draw_paths,
    "boltzmann": draw_boltzmann,
    "shifting": draw_shifting,
}


def run_all(name: str, seeds: list[int], steps: int) -> dict[int, Any]:
    """
    :param name: Figure
    :param seeds: Seeds
    :param steps: Environment steps of each run
    :return: Each seed's runs
    """
    runs_per_seed = len(toy_runs.ALGORITHMS) if name == "shifting" else 1
    with tqdm(total=len(seeds) * runs_per_seed * steps, desc=name, unit="step") as bar:
        if name == "shifting":
            settings = {algo: toy_runs.shifting_settings(algo) for algo in toy_runs.ALGORITHMS}
            return {
                seed: {
                    algo: toy_runs.shifting_run(algo, own, seed, steps, bar.update) for algo, own in settings.items()
                }
                for seed in seeds
            }
        run = toy_runs.paths_run if name == "paths" else toy_runs.boltzmann_run
        return {seed: run(seed, steps, bar.update) for seed in seeds}


def make_figure(name: str, seeds: list[int], steps: int, folder: Path) -> tuple[Path, Path]:
    """
    Run, draw and write ``toys-<name>.png`` and ``.json``.

    :param name: ``"paths"``, ``"boltzmann"`` or ``"shifting"``
    :param seeds: Seeds
    :param steps: Environment steps of each run
    :param folder: Where to
    :return: The two files
    :raises ImportError: if matplotlib is missing
    """
    # Without pyplot, which would keep the figure and choose a screen; before the runs, so that a lack shows at once
    figure = optional("matplotlib.figure").Figure(layout="constrained")
    numbers = _DRAW[name](run_all(name, seeds, steps), figure)
    picture, data = folder / f"toys-{name}.png", folder / f"toys-{name}.json"
    with atomic_path(picture) as temporary:
        # No version of matplotlib in the file
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    packages = ("torch", "numpy", "stable-baselines3", "gymnasium", "pot")
    content = {
        "figure": name,
        "steps": steps,
        "seeds": seeds,
        "ent_coef": toy_runs.ALPHA,
        "versions": {package: version(package) for package in packages},
        "numbers": numbers,
    }
    with atomic_path(data) as temporary:
        temporary.write_text(json.dumps(_rounded(content), indent=1) + "\n", encoding="utf-8")
    return picture, data


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: Command line, ``sys.argv`` when omitted
    """
    parser = argparse.ArgumentParser("python -m benchmarks.toys", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("figure", choices=tuple(STEPS))
    parser.add_argument("--seeds", type=seed_range, default=[0, 1, 2], help="3, 0-2 or 0,2,5 (default: 0-2)")
    parser.add_argument("--steps", type=positive, help=f"environment steps of each run (default: {STEPS})")
    parser.add_argument("--out", type=Path, default=Path("docs/figures"), help="folder (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    # The networks are tiny, and one thread is what can be repeated
    th.set_num_threads(1)
    try:
        files = make_figure(parsed.figure, parsed.seeds, parsed.steps or STEPS[parsed.figure], parsed.out)
    except ImportError as error:
        raise SystemExit(str(error)) from error
    print("\n".join(map(str, files)))


if __name__ == "__main__":
    main()
