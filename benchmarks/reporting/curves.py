"""Figures: score against steps."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.reporting.optional import optional
from benchmarks.reporting.statistics import Summaries, clone_level
from benchmarks.reporting.stored import Stored

#: Okabe and Ito's colours, which colour-blind people can tell apart; black is left for the clone
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D46", "#7F7F7F")


def figure_name(suite: str, task: str) -> str:
    """
    :param suite: Name of a suite
    :param task: Name of a task
    :return: Name of the figure's file
    """
    return f"results-{re.sub(r'[^A-Za-z0-9_.-]+', '-', f'{suite}-{task}')}.png"


def draw(stored: Stored, task: str, summaries: Summaries, folder: Path) -> Path:
    """
    Score against steps for every algorithm: interquartile mean over seeds with its bootstrap band (none
    with too few seeds), the clone's level dashed.

    :param stored: Results of a suite
    :param task: Name of a task
    :param summaries: Summary of each task and algorithm that have results
    :param folder: Where the figure goes
    :return: The figure's file
    :raises ImportError: if matplotlib is missing
    """
    # Without pyplot, which would keep the figure and choose a screen
    figure = optional("matplotlib.figure").Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.add_subplot()
    factor = 100.0 if stored.suite.rates else 1.0
    for index, algo in enumerate(stored.suite.algos):
        summary = summaries.get((task, algo))
        if summary is None:
            continue
        style = {"color": COLOURS[index % len(COLOURS)], "linestyle": "-" if index < len(COLOURS) else "-."}
        front = algo == stored.reference
        axes.plot(
            summary.steps,
            factor * summary.curve.value,
            label=f"{algo} ({len(summary.seeds)})",
            marker=".",
            linewidth=2.2 if front else 1.4,
            zorder=3 if front else 2,
            **style,
        )
        if summary.curve.low is not None and summary.curve.high is not None:
            band = factor * summary.curve.low, factor * summary.curve.high
            axes.fill_between(summary.steps, *band, color=style["color"], alpha=0.15, linewidth=0)
    if (level := clone_level(stored, task, summaries)) is not None:
        axes.axhline(
            factor * level, color="black", linestyle="--", linewidth=1.0, label=f"{stored.reference} at step 0"
        )
    axes.set(title=f"{stored.name}: {task}", xlabel=f"{stored.suite.unit}s")
    axes.set_ylabel(f"{stored.suite.score}{', %' if stored.suite.rates else ''}")
    axes.xaxis.set_major_formatter(optional("matplotlib.ticker").EngFormatter(sep=""))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="(seeds)", title_fontsize="small")
    path = folder / figure_name(stored.name, task)
    # No version of matplotlib in the file
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return path
