"""
Benchmarks of SWFP beside other algorithms.

    python -m benchmarks list
    python -m benchmarks run --suite scratch --seeds 0-2 --jobs 2
    python -m benchmarks report
    python -m benchmarks demonstrations ../hand_dapg
    python -m benchmarks same ../older-checkout

Each cell (task, algorithm, seed) runs in its own process with one thread. What has a result is not run again, so a
stopped run goes on where it was; python -m benchmarks.speed measures speed and memory.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.adroit_data import make_datasets
from benchmarks.arguments import positive, seed_range
from benchmarks.cells import Cell, Result
from benchmarks.report import report
from benchmarks.runner import run_cell, run_cells
from benchmarks.same import Differs, left_out, make_same, stored_cells
from benchmarks.suites import SUITES

#: Result files in it are kept under version control; logs and models beside them are not (.gitignore)
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """
    :param arguments: Command line, ``sys.argv`` when omitted
    """
    parsed = _parser().parse_args(arguments)
    if parsed.command == "cell":
        run_cell(Cell(parsed.suite, parsed.task, parsed.algo, parsed.seed), parsed.steps, parsed.folder, parsed.runner)
    elif parsed.command == "list":
        for name, suite in SUITES.items():
            print(f"{name}: {suite.description}\n  tasks: {', '.join(suite.tasks)}\n  algos: {', '.join(suite.algos)}")
    elif parsed.command == "report":
        names = [parsed.suite] if parsed.suite else [name for name in SUITES if (parsed.out / name).is_dir()]
        _report(names or list(SUITES), parsed.out, parsed.page)
    elif parsed.command == "demonstrations":
        _make_demonstrations(parsed.checkout)
    elif parsed.command == "same":
        _make_same(parsed)
    else:
        _run(parsed)


def _run(parsed: argparse.Namespace) -> None:
    suite = SUITES[parsed.suite]
    tasks = _choose("task", parsed.tasks, tuple(suite.tasks))
    algos = _choose("algorithm", parsed.algos, suite.algos)
    # Seed by seed, so that a run that is stopped has compared something
    cells = [Cell(parsed.suite, task, algo, seed) for seed in parsed.seeds for task in tasks for algo in algos]
    cells = list(dict.fromkeys(cells))  # what was named twice is run once
    try:
        failed = run_cells(cells, parsed.out, parsed.jobs, parsed.steps)
    except (OSError, ImportError, ValueError) as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on with the cells that have no result yet.", file=sys.stderr)
        raise SystemExit(130) from None
    if failed:
        logs = "\n".join(str(path) for path in failed)
        raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; their logs:\n{logs}")
    try:
        print(report([parsed.suite], parsed.out))
    except (OSError, ImportError, ValueError) as error:
        if any(Result.load(cell.folder(parsed.out)) is None for cell in cells):
            raise SystemExit(str(error)) from error  # another runner is at them
        # Hours of cells that are there are no failure because a table over them, or over other tasks', is not
        print(f"All {len(cells)} cells have results. No report of them:\n{error}", file=sys.stderr)


def _report(suites: list[str], root: Path, page: Path) -> None:
    try:
        print(report(suites, root, page))
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error


def _make_demonstrations(checkout: Path) -> None:
    try:
        for line in make_datasets(checkout):
            print(line, flush=True)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(str(error)) from error


def _make_same(parsed: argparse.Namespace) -> None:
    cells = [cell for cell in stored_cells(parsed.out) if parsed.suites is None or cell.suite in parsed.suites]
    if parsed.algos is not None:
        named = _choose("algorithm", parsed.algos, tuple(dict.fromkeys(a for s in SUITES.values() for a in s.algos)))
        cells = [cell for cell in cells if cell.algo in named]
    if not cells:
        raise SystemExit("None of these stored results are of another code than this checkout's")
    if others := left_out(parsed.out, cells):
        print(f"Of the same code, and taken along without being run: {', '.join(others)}", file=sys.stderr)
    try:
        for line in make_same(parsed.checkout, cells, parsed.steps):
            print(line)
    except (OSError, ValueError, Differs) as error:
        raise SystemExit(str(error)) from error


def _choose(what: str, named: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    chosen = known if named is None else tuple(named.split(","))
    for name in chosen:
        if name not in known:
            raise SystemExit(f"Unknown {what} {name!r}: there is {', '.join(known)}")
    return chosen


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = parser.add_subparsers(dest="command", required=True, metavar="{list,run,report,demonstrations,same}")
    commands.add_parser("list", help="the suites, their tasks and algorithms")
    run = commands.add_parser("run", help="run what has no result yet, then report")
    tables = commands.add_parser("report", help="tables and figures from stored results")
    run.add_argument("--suite", required=True, choices=tuple(SUITES))
    tables.add_argument("--suite", choices=tuple(SUITES), help="one of them (default: all that have results)")
    tables.add_argument("--page", type=Path, default=Path("docs/results.md"), help="page that the tables go to")
    for each in (run, tables):
        each.add_argument("--out", type=Path, default=RESULTS, help="folder of all results (default: %(default)s)")
    run.add_argument("--tasks", help="some of the suite's tasks, separated by commas (default: all)")
    run.add_argument("--algos", help="some of the suite's algorithms, likewise")
    run.add_argument("--seeds", type=seed_range, default=[0, 1, 2], help="3, 0-2 or 0,2,5 (default: 0-2)")
    run.add_argument("--jobs", type=positive, default=2, help="processes side by side (default: 2)")
    run.add_argument("--steps", type=positive, help="environment steps of every cell, to try things out")
    made = commands.add_parser("demonstrations", help="make the Adroit data sets in Minari's store")
    made.add_argument("checkout", type=Path, help="folder of a checkout of github.com/aravindr93/hand_dapg")
    same = commands.add_parser("same", help="whether another checkout does the same, so that its results still count")
    same.add_argument("checkout", type=Path, help="folder of the other checkout")
    same.add_argument("--suites", nargs="+", choices=tuple(SUITES), help="cells of these (default: all with results)")
    same.add_argument("--algos", help="of these algorithms, separated by commas (default: all)")
    same.add_argument("--steps", type=positive, default=10_000, help="steps of each cell (default: %(default)s)")
    same.add_argument("--out", type=Path, default=RESULTS, help="folder of all results (default: %(default)s)")
    cell = commands.add_parser("cell")
    for name in ("suite", "task", "algo"):
        cell.add_argument(name)
    for name in ("seed", "steps"):
        cell.add_argument(name, type=int)
    cell.add_argument("folder", type=Path)
    cell.add_argument("runner", type=int)
    return parser


if __name__ == "__main__":
    main()
