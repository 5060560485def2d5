"""
Benchmarks of SWFP beside other algorithms.

    python -m benchmarks list
    python -m benchmarks run --suite scratch --seeds 0-2 --jobs 2
    python -m benchmarks report --suite scratch

Each cell (task, algorithm, seed) runs in its own process with one thread. What has a result is not run again, so a
stopped run goes on where it was; python -m benchmarks.speed measures speed and memory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.cells import Cell
from benchmarks.report import report
from benchmarks.runner import run_cell, run_cells
from benchmarks.suites import SUITES


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: Command line, ``sys.argv`` when omitted
    """
    parsed = _parser().parse_args(arguments)
    if parsed.command == "cell":
        run_cell(Cell(parsed.suite, parsed.task, parsed.algo, parsed.seed), parsed.steps, parsed.folder)
    elif parsed.command == "list":
        for name, suite in SUITES.items():
            print(f"{name}: {suite.description}\n  tasks: {', '.join(suite.tasks)}\n  algos: {', '.join(suite.algos)}")
    elif parsed.command == "report":
        try:
            print(report(parsed.suite, parsed.out))
        except FileNotFoundError as error:
            raise SystemExit(str(error)) from error
    else:
        _run(parsed)


def _run(parsed: argparse.Namespace) -> None:
    suite = SUITES[parsed.suite]
    tasks = _choose("task", parsed.tasks, tuple(suite.tasks))
    algos = _choose("algorithm", parsed.algos, suite.algos)
    # Seed by seed, so that a run that is stopped has compared something
    cells = [Cell(parsed.suite, task, algo, seed) for seed in parsed.seeds for task in tasks for algo in algos]
    try:
        failed = run_cells(cells, parsed.out, parsed.jobs, parsed.steps)
    except ValueError as error:
        raise SystemExit(str(error)) from error
    if failed:
        logs = "\n".join(str(path) for path in failed)
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; their logs:\n{logs}")
    print(report(parsed.suite, parsed.out))


def _choose(what: str, named: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = known if named is None else tuple(named.split(","))
    for name in chosen:
        if name not in known:
            raise SystemExit(f"Unknown {what} {name!r}: there is {', '.join(known)}")
    return chosen


def seed_range(text: str) -> list[int]:
    """
    :param text: ``"3"``, ``"0-2"`` or ``"0,2,5"``
    :return: The seeds
    :raises argparse.ArgumentTypeError: if it is none of these
    """
    try:
        first, _, last = text.partition("-")
        seeds = list(range(int(first), int(last) + 1)) if last else [int(part) for part in text.split(",")]
    except ValueError:
        seeds = []
    if not seeds:
        raise argparse.ArgumentTypeError(f"{text!r} is no range of seeds: 3, 0-2 or 0,2,5")
    return seeds


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,run,report}")
    commands.add_parser("list", help="the suites, their tasks and algorithms")
    run = commands.add_parser("run", help="run what has no result yet, then report")
    for each in (run, commands.add_parser("report", help="tables from stored results")):
        each.add_argument("--suite", required=True, choices=tuple(SUITES))
        each.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="folder of all results")
    run.add_argument("--tasks", help="some of the suite's tasks, separated by commas (default: all)")
    run.add_argument("--algos", help="some of the suite's algorithms, likewise")
    run.add_argument("--seeds", type=seed_range, default=[0, 1, 2], help="3, 0-2 or 0,2,5 (default: 0-2)")
    run.add_argument("--jobs", type=_positive, default=2, help="processes side by side (default: 2)")
    run.add_argument("--steps", type=_positive, help="environment steps of every cell, to try things out")
    cell = commands.add_parser("cell")
    for name in ("suite", "task", "algo"):
        cell.add_argument(name)
    for name in ("seed", "steps"):
        cell.add_argument(name, type=int)
    cell.add_argument("folder", type=Path)
    return parser


if __name__ == "__main__":
    main()
