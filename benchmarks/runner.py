"""Runs the cells that have no result yet, each in its own process with one thread."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from benchmarks.arithmetic import arithmetic_digest
from benchmarks.cells import Cell, Result, latest_code
from benchmarks.suites import SUITES
from benchmarks.suites.base import Curve

ROOT = Path(__file__).resolve().parents[1]
_ONE_THREAD = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


@dataclass
class _Running:
    cell: Cell
    process: subprocess.Popen[bytes]
    folder: Path
    lock: IO[str]
    seen: int = 0


def run_cell(cell: Cell, steps: int, folder: Path, runner: int) -> None:
    """
    Run one cell in this process and store its result.

    :param cell: The cell
    :param steps: Environment steps
    :param folder: Its folder
    :param runner: The runner's process id
    """
    _end_with(runner)
    suite = SUITES[cell.suite]
    started = time.monotonic()
    # Now: the code on disk may change while it runs
    found, arithmetic = suite.versions(cell.algo), arithmetic_digest()
    settings = suite.settings(cell)
    details = suite.run(cell, settings, steps, folder)
    curve = suite.curve(folder)
    if not _reaches_the_end(curve, steps, settings):
        raise RuntimeError(f"{folder}: evaluated at {[step for step, _ in curve]} only, of {steps} steps")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = Result(
        cell=cell,
        versions=found,
        config=settings | {"steps": steps},
        curve=curve,
        seconds=time.monotonic() - started,
        peak_memory_mb=usage.ru_maxrss / 1024,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        details=details,
        arithmetic=arithmetic,
    )
    result.save(folder)


def _reaches_the_end(curve: Curve, steps: int, settings: Mapping[str, Any]) -> bool:
    """False if whatever ended the run early raised no error: its result, stored, would count as finished."""
    if not curve:
        return False
    interval = curve[-1][0] - curve[-2][0] if len(curve) > 1 else settings.get("eval_freq", 1)
    return steps - curve[-1][0] < max(interval, 1)


def _end_with(parent: int) -> None:
    """A runner that is killed takes its cells along: one that went on would write into the folder of its successor."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_cells(cells: Sequence[Cell], root: Path, jobs: int, steps: int | None = None) -> list[Path]:
    """
    Run all cells that have no result yet; a killed one starts afresh. One that another runner is at is left to it, so
    several can share a folder. One whose very run another suite has in this folder is copied from there.

    :param cells: Cells of one suite
    :param root: Folder of all results
    :param jobs: Processes side by side
    :param steps: Environment steps of every cell, instead of each task's own
    :return: Logs of the cells that failed
    :raises ValueError: if there are results of other versions of the code, or of other budgets
    :raises FileNotFoundError: if demonstrations that a cell needs are missing; nothing is run then
    :raises ImportError: likewise, if a package is
    """
    budgets = {cell: SUITES[cell.suite].tasks[cell.task] if steps is None else steps for cell in cells}
    waiting = [cell for cell in cells if not _is_finished(cell, root, budgets[cell])]
    _tell_of_other_arithmetic({(cell.suite, cell.task) for cell in waiting}, root)
    waiting = [cell for cell in waiting if not _copied(cell, root, budgets[cell])]
    for suite, task in dict.fromkeys((cell.suite, cell.task) for cell in waiting):
        SUITES[suite].check(task)  # one line now instead of a log for each cell
    running: list[_Running] = []
    failed: list[Path] = []
    total = sum(budgets[cell] for cell in waiting)
    # Into a file, at most a line a minute: several a second would make a log of megabytes
    terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="step", unit_scale=True, mininterval=0.1 if terminal else 60.0, miniters=1) as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    cell = waiting.pop(0)
                    started = _start(cell, root, budgets[cell])
                    if started is None:
                        bar.update(budgets[cell])
                    else:
                        running.append(started)
                time.sleep(0.5)
                for each in list(running):
                    ended = each.process.poll() is not None
                    done = budgets[each.cell] if ended else _steps_done(each)
                    bar.update(done - each.seen)
                    each.seen = done
                    if ended:
                        running.remove(each)
                        _release(each.lock)
                        if each.process.returncode != 0 or Result.load(each.folder) is None:
                            failed.append(each.folder / "log.txt")
                at_work = ", ".join(f"{each.cell.task} {each.folder.name}" for each in running)
                bar.set_postfix_str(at_work, refresh=terminal)
        finally:
            for each in running:
                each.process.terminate()
            for each in running:
                _await_end(each.process)  # first: whoever takes the lock removes the folder
                _release(each.lock)
    return failed


def _tell_of_other_arithmetic(tasks: set[tuple[str, str]], root: Path) -> None:
    """Runs elsewhere are samples, too, so nothing is refused; but arms that share a clone here may not across them."""
    here = None
    for suite, task in sorted(tasks):
        digests: dict[str, list[str]] = {}
        for path in sorted((root / suite / task).glob("*/result.json")):
            with suppress(ValueError):  # damaged: whoever needs it says so
                result = Result.load(path.parent)
                if result is not None and result.arithmetic is not None:
                    digests.setdefault(result.arithmetic, []).append(path.parent.name)
        if not digests:
            continue
        here = here or _digest_of_a_cell()
        others = [f"{digest}: {', '.join(names)}" for digest, names in digests.items() if digest != here]
        if others:
            tqdm.write(
                f"{suite} {task}: float arithmetic here ({here}) differs from that of stored results "
                f"({'; '.join(others)}), so runs of the same seed may differ: docs/benchmarks.md#another-processor",
                file=sys.stderr,
            )


def _digest_of_a_cell() -> str:
    """In a process with one thread, as cells have."""
    code = "from benchmarks.arithmetic import arithmetic_digest as digest; print(digest())"
    command, env = [sys.executable, "-c", code], environment()
    return subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def environment(checkout: Path = ROOT) -> dict[str, str]:
    """
    :param checkout: Folder of a checkout
    :return: Environment variables of a process with one thread that uses it
    """
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    return os.environ | _ONE_THREAD | {"PYTHONPATH": path}


def _is_finished(cell: Cell, root: Path, steps: int) -> bool:
    folder = cell.folder(root)
    result = Result.load(folder)
    if result is None:
        return False
    changed = _changed(result, cell, steps)
    if changed:
        raise ValueError(
            f"{folder} holds a result with another {', '.join(changed)}: results of different versions are not mixed. "
            f"Take another --out, leave it out (--tasks, --algos, --seeds), or remove the folder"
        )
    return True


def _changed(result: Result, cell: Cell, steps: int) -> list[str]:
    """Names of the versions and settings in which a result differs from what a run of the cell would have now."""
    current, wanted = SUITES[cell.suite].versions(cell.algo), _wanted(cell, steps)
    if "code" in current:
        current["code"] = latest_code(current["code"])  # as a loaded result's is
    changed = [name for name in current if result.versions.get(name) != current[name]]
    # Also what the settings no longer have
    names, absent = {**wanted, **result.config}, object()
    return changed + [name for name in names if result.config.get(name, absent) != wanted.get(name, absent)]


def _wanted(cell: Cell, steps: int) -> dict[str, Any]:
    """The settings of a cell as a result has them: tuples are lists in JSON."""
    found: dict[str, Any] = json.loads(json.dumps(SUITES[cell.suite].settings(cell) | {"steps": steps}))
    return found


def _copied(cell: Cell, root: Path, steps: int) -> bool:
    """Whether another suite has the same run, down to its versions: it is copied then, as it would only be repeated."""
    for other in _same_seed_elsewhere(cell):
        source = other.folder(root)
        result = Result.load(source)
        # A copy is no source: whoever removes a folder to have it run again would get it back from its own copy
        if result is None or not result.curve or "copied_from" in result.details:
            continue
        if _changed(result, cell, steps):
            continue
        lock = _claim(cell.folder(root))
        if lock is None:
            return False
        try:
            folder, name = cell.folder(root), str(source.relative_to(root))
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(source, folder, ignore=shutil.ignore_patterns("result.json"))
            # With the code that it was run by, not a later one that does the same
            versions = json.loads((source / "result.json").read_text(encoding="utf-8"))["versions"]
            details = result.details | {"copied_from": name}
            replace(result, cell=cell, versions=versions, details=details).save(folder)
        finally:
            _release(lock)
        tqdm.write(f"{folder.relative_to(root)} is the run that {name} has: copied", file=sys.stderr)
        return True
    return False


def _same_seed_elsewhere(cell: Cell) -> Iterator[Cell]:
    """Cells of other suites whose run is the same function. Suites that share one leave the rest to their settings."""
    for name, suite in SUITES.items():
        if name != cell.suite and suite.run is SUITES[cell.suite].run and cell.task in suite.tasks:
            yield from (Cell(name, cell.task, algo, cell.seed) for algo in suite.algos)


def _claim(folder: Path) -> IO[str] | None:
    """A cell's lock, which ends with this process; ``None`` while another runner has it, or if it has used it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path = folder.parent / f".{folder.name}.lock"
    while True:
        lock = path.open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return None
        # Its last owner may have removed the file between opening and locking: another runner may have a new one by now
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                break
        lock.close()
    if Result.load(folder) is not None:
        _release(lock)
        return None
    return lock


def _await_end(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(10.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _release(lock: IO[str]) -> None:
    Path(lock.name).unlink(missing_ok=True)
    lock.close()


def _start(cell: Cell, root: Path, steps: int) -> _Running | None:
    folder = cell.folder(root)
    lock = _claim(folder)
    if lock is None:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "benchmarks", "cell", cell.suite, cell.task, cell.algo, str(cell.seed)]
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [*command, str(steps), str(folder), str(os.getpid())],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            # The terminal's Ctrl-C is for the runner: RL Zoo would take it for a good moment to end and save
            start_new_session=True,
        )
    return _Running(cell, process, folder, lock)


def _steps_done(running: _Running) -> int:
    curve = SUITES[running.cell.suite].curve(running.folder)
    return max(curve[-1][0], running.seen) if curve else running.seen
