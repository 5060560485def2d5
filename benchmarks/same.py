"""
Whether this checkout does the same as another one, to the last bit: if so, results of the other's code are results of
this one's, and a change that can't alter them, such as an error message, costs no hundred hours of computing.

    python -m benchmarks same ../older-checkout

Of each algorithm whose stored results are of another code than this checkout's, a cell is run by both, and what they
leave behind is compared: curve and details, and the networks and optimisers of the suites from demonstrations. Where
nothing differs, the two codes are noted as one in ``results/same-code.json``, with what was compared. A part that did
not run, such as an actor that waits for its critic, is not compared: so by default a cell has 10,000 steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.cells import LEDGER, Cell, Result, latest_code, read_ledger
from benchmarks.runner import ROOT, environment
from benchmarks.suites import SUITES
from sb3_swfp.files import atomic_path

#: Of a run that is only compared: enough for each part to run
_EVAL_EPISODES, _CLONING_STEPS = 5, 1_000

#: Run in either checkout: its code, then what is left behind
_RUN = """
import json, sys
from pathlib import Path
import torch as th
th.set_num_threads(1)
from stable_baselines3.common.save_util import load_from_zip_file
from benchmarks.cells import Cell
from benchmarks.suites import SUITES
cell, settings = Cell(*json.loads(sys.argv[1])), json.loads(sys.argv[2])
steps, folder = int(sys.argv[3]), Path(sys.argv[4])
suite = SUITES[cell.suite]
code = suite.versions(cell.algo).get("code")  # now: the code on disk may change while it runs
details = suite.run(cell, settings, steps, folder)
left = {"curve": suite.curve(folder), "details": details, "code": code}
(folder / "left.json").write_text(json.dumps(left, default=str))
if (folder / "model.zip").exists():
    _, parameters, variables = load_from_zip_file(folder / "model.zip", load_data=False)
    th.save([parameters, variables], folder / "left.pt")
"""


class Differs(Exception):
    """Two checkouts don't do the same."""


def make_same(other: Path, cells: Sequence[Cell], steps: int) -> list[str]:
    """
    Compare cells and note which codes are one.

    :param other: Folder of the other checkout
    :param cells: Cells to compare
    :param steps: Steps of each
    :return: One line for each pair of codes that are one
    :raises Differs: if something differs; nothing is noted then
    :raises FileNotFoundError: if there is no checkout there
    """
    if not (other / "sb3_swfp" / "__init__.py").is_file():
        raise FileNotFoundError(f"{other} is no checkout of this project: it has no sb3_swfp/__init__.py")
    compared: dict[tuple[str, str], list[str]] = {}
    for cell in tqdm(cells, unit="cell"):
        n = min(steps, SUITES[cell.suite].tasks[cell.task])
        with tempfile.TemporaryDirectory() as folder:
            pair = _compare(cell, other.resolve(), Path(folder), n)
        if pair[0] != pair[1]:
            compared.setdefault(pair, []).append(f"{cell.suite} {cell.task} {cell.algo} {cell.seed}, {n} steps")
    lines = [f"{cell.suite} {cell.algo} has the same code in both" for cell in cells] if not compared else []
    for (old, new), what in compared.items():
        _note(old, new, what)
        lines.append(f"{old} is {new}: {'; '.join(what)}")
    return lines


def _note(old: str, new: str, what: list[str]) -> None:
    """Two codes are one from now on. No circles: what is one already stays as it is noted."""
    ledger = read_ledger()
    if latest_code(old) != latest_code(new):
        ledger[latest_code(old)] = {"same_as": new, "date": date.today().isoformat(), "compared": what}
    elif old in ledger:
        ledger[old]["compared"] = list(dict.fromkeys(ledger[old]["compared"] + what))
    with atomic_path(LEDGER) as temporary:
        temporary.write_text(json.dumps(ledger, indent=1) + "\n", encoding="utf-8")
    latest_code.cache_clear()


def left_out(root: Path, compared: Sequence[Cell]) -> list[str]:
    """
    :param root: Folder of all results
    :param compared: Cells that are to be compared
    :return: What has the same code as one of these but other settings, and so is taken along without having run
    """
    codes = {_code_now(cell.suite, cell.algo) for cell in compared}
    chosen = {(cell.suite, cell.algo) for cell in compared}
    others = (cell for cell in stored_cells(root) if (cell.suite, cell.algo) not in chosen)
    return [f"{cell.suite} {cell.algo}" for cell in others if _code_now(cell.suite, cell.algo) in codes]


def stored_cells(root: Path) -> list[Cell]:
    """
    :param root: Folder of all results
    :return: A cell of each suite and algorithm that has results of another code than this checkout's
    """
    found: dict[tuple[str, str], Cell] = {}
    for path in sorted(root.glob("*/*/*/result.json")):
        result = Result.load(path.parent)
        assert result is not None
        cell = result.cell
        if cell.suite not in SUITES or "copied_from" in result.details or not _is_known(cell):
            continue
        if result.versions.get("code") != _code_now(cell.suite, cell.algo):
            found.setdefault((cell.suite, cell.algo), cell)
    return list(found.values())


def _is_known(cell: Cell) -> bool:
    suite = SUITES[cell.suite]
    return cell.task in suite.tasks and cell.algo in suite.algos


@cache
def _code_now(suite: str, algo: str) -> str | None:
    return SUITES[suite].latest_code(algo)


def _compare(cell: Cell, other: Path, folder: Path, steps: int) -> tuple[str, str]:
    """Codes of the other checkout and of this one, of a cell that both run alike."""
    settings = SUITES[cell.suite].settings(cell)
    if "eval_freq" in settings:
        settings |= {"eval_freq": steps, "eval_episodes": _EVAL_EPISODES}
    if settings.get("pretrain") is not None:
        settings["pretrain"] = settings["pretrain"] | {"gradient_steps": _CLONING_STEPS}
    left = []
    for name, checkout in (("other", other), ("this", ROOT)):
        place = folder / name
        place.mkdir()
        arguments = [json.dumps(list(asdict(cell).values())), json.dumps(settings), str(steps), str(place)]
        command = [sys.executable, "-c", _RUN, *arguments]
        done = subprocess.run(command, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
        if done.returncode != 0:
            raise Differs(f"{cell} does not run in {checkout}:\n{done.stderr[-2000:]}")
        left.append(place)
    differences = list(_differences(*left))
    if differences:
        raise Differs(f"{cell}: {', '.join(differences)} differ after {steps} steps")
    codes = [json.loads((place / "left.json").read_text(encoding="utf-8"))["code"] for place in left]
    return codes[0], codes[1]


def _differences(first: Path, second: Path) -> Iterator[str]:
    """Names of what two runs left behind that is not the same."""
    import torch as th

    before, after = (json.loads((place / "left.json").read_text(encoding="utf-8")) for place in (first, second))
    for name in ("curve", "details"):
        if json.dumps(before[name]) != json.dumps(after[name]):  # as text: NaN is NaN
            yield name
    if (first / "left.pt").exists() != (second / "left.pt").exists():
        yield "models"
    elif (first / "left.pt").exists():
        parts = [dict(_tensors(th.load(place / "left.pt", weights_only=True))) for place in (first, second)]
        yield from (name for name in parts[0].keys() | parts[1].keys() if not _equal(*(p.get(name) for p in parts)))


def _tensors(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, (dict, list, tuple)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _tensors(value, f"{name}.{key}")
    else:
        yield name, tree


def _equal(first: Any, second: Any) -> bool:
    import torch as th

    if isinstance(first, th.Tensor) and isinstance(second, th.Tensor):
        if first.shape != second.shape or first.dtype != second.dtype:
            return False
        return first.detach().numpy().tobytes() == second.detach().numpy().tobytes()
    return type(first) is type(second) and repr(first) == repr(second)
