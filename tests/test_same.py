"""Two checkouts that do the same, to the last bit, and two that don't."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import subprocess_environment

from benchmarks import cells, runner, same
from benchmarks.cells import Cell, Result, latest_code
from benchmarks.suites import SUITES

ROOT = Path(__file__).resolve().parents[1]
CELL = Cell("step-size", "3-blocks", "eta-0.1", 0)


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """Another checkout, so far the same."""
    checkout = tmp_path / "other"
    for name in ("sb3_swfp", "benchmarks"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("results", "__pycache__"))
    return checkout


@pytest.fixture(autouse=True)
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "same-code.json"
    for module in (cells, same):
        monkeypatch.setattr(module, "LEDGER", path)
    latest_code.cache_clear()
    yield path
    latest_code.cache_clear()


def edit(checkout: Path, old: str, new: str) -> None:
    path = checkout / "sb3_swfp" / "jko.py"
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def stored(root: Path, code: str) -> Path:
    folder = CELL.folder(root)
    folder.mkdir(parents=True)
    Result(CELL, {"code": code}, {}, [(0, 0.0)], 1.0, 1.0).save(folder)
    return folder


def test_codes_that_do_the_same_are_one(other: Path, ledger: Path, tmp_path: Path) -> None:
    edit(other, "must be", "has to be")
    (line,) = same.make_same(other, [CELL], steps=100)
    old, new = line.split(":")[0].split(" is ")
    assert new == SUITES["step-size"].versions("eta-0.1")["code"] != old
    noted = json.loads(ledger.read_text())[old]
    assert noted["same_as"] == new and noted["compared"] == ["step-size 3-blocks eta-0.1 0, 100 steps"]
    # Results of the one are the other's now, and what was compared before is kept
    assert latest_code(old) == latest_code(new) == new
    loaded = Result.load(stored(tmp_path / "results", old))
    assert loaded is not None and loaded.versions["code"] == new
    assert same.stored_cells(tmp_path / "results") == []
    same.make_same(other, [CELL], steps=60)
    assert len(json.loads(ledger.read_text())[old]["compared"]) == 2


def test_codes_that_differ_are_told_apart(other: Path, ledger: Path) -> None:
    edit(other, "0.5 *", "0.49 *")
    with pytest.raises(same.Differs, match=r"curve.* after 100 steps"):
        same.make_same(other, [CELL], steps=100)
    assert not ledger.exists()


def test_a_checkout_that_does_not_run(other: Path) -> None:
    edit(other, "from __future__ import annotations", "from __future__ import annotations\n\nraise RuntimeError('no')")
    with pytest.raises(same.Differs, match="does not run in .*other"):
        same.make_same(other, [CELL], steps=60)


def test_networks_and_missing_values_are_compared() -> None:
    import torch as th

    nan = float("nan")
    tree = {"policy": {"a": th.tensor([1.0, nan])}, "optimiser": [{"step": 3}]}
    leaves = dict(same._tensors(tree))
    assert list(leaves) == [".policy.a", ".optimiser.0.step"]
    assert same._equal(leaves[".policy.a"], th.tensor([1.0, nan]))
    assert not same._equal(leaves[".policy.a"], th.tensor([nan, 1.0]))
    assert not same._equal(leaves[".policy.a"], th.tensor([1.0, 0.0]))
    assert same._equal(th.ones(1, requires_grad=True), th.ones(1, requires_grad=True))  # a learned temperature
    assert same._equal(th.tensor(True), th.tensor(True)) and not same._equal(th.tensor(1), th.tensor(1.0))
    assert not same._equal(3, th.tensor(3)) and not same._equal(th.zeros(2), th.zeros(3))


def test_chains_of_codes_end(ledger: Path) -> None:
    links = {"a": "b", "b": "c"}
    ledger.write_text(json.dumps({old: {"same_as": new} for old, new in links.items()}))
    latest_code.cache_clear()
    assert [latest_code(code) for code in ("a", "b", "c", "d")] == ["c", "c", "c", "d"]
    same._note("c", "a", ["nothing new"])  # they are one already: a circle would have no latest
    assert latest_code("a") == "c"
    same._note("a", "d", ["something"])
    assert latest_code("a") == latest_code("b") == latest_code("c") == "d"


@pytest.mark.parametrize("text", ["<<<<<<< HEAD", '{"a": {}}', "[]"])
def test_a_damaged_ledger_is_named(text: str, ledger: Path, tmp_path: Path) -> None:
    folder = stored(tmp_path / "results", "a")
    ledger.write_text(text)
    with pytest.raises(ValueError, match=r"same-code.json is damaged .*version control"):
        Result.load(folder)


def test_results_of_a_code_that_is_one_with_the_present_are_finished(ledger: Path, tmp_path: Path) -> None:
    """Also of the present code itself, where a later one was noted as the same and then taken back."""
    now = SUITES["step-size"].versions("eta-0.1")["code"]
    ledger.write_text(json.dumps({"older": {"same_as": "later"}, now: {"same_as": "later"}}))
    for code in ("older", "later", now, "another"):
        folder = stored(tmp_path / code, code)
        result = Result.load(folder)
        assert result is not None
        assert ("code" in runner._changed(result, CELL, 1)) == (code == "another")


def test_a_copy_keeps_the_code_that_it_was_run_by(ledger: Path, tmp_path: Path) -> None:
    ledger.write_text(json.dumps({"older": {"same_as": SUITES["order"].versions("swfp")["code"]}}))
    source, copy = (Cell(suite, "pick-and-place", "swfp", 0) for suite in ("order", "trust-region"))
    versions = SUITES["order"].versions("swfp") | {"code": "older"}
    folder = source.folder(tmp_path)
    folder.mkdir(parents=True)
    Result(source, versions, runner._wanted(source, 10), [(0, 0.0), (10, 0.0)], 1.0, 1.0).save(folder)
    assert runner._copied(copy, tmp_path, 10)
    assert json.loads((copy.folder(tmp_path) / "result.json").read_text())["versions"]["code"] == "older"


def test_what_is_taken_along_without_being_run_is_said(tmp_path: Path) -> None:
    for algo in ("eta-0.1", "eta-1"):
        cell = Cell("step-size", "3-blocks", algo, 0)
        cell.folder(tmp_path).mkdir(parents=True)
        Result(cell, {"code": "older"}, {}, [(0, 0.0)], 1.0, 1.0).save(cell.folder(tmp_path))
    assert same.left_out(tmp_path, [CELL]) == ["step-size eta-1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no checkout of this project"),
        ([".", "--algos", "calql"], "None of these stored results are of another code"),
        ([".", "--algos", "unknown"], "Unknown algorithm 'unknown': there is swfp,"),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], message: str, tmp_path: Path) -> None:
    stored(tmp_path, "0123456789ab")
    command = [sys.executable, "-m", "benchmarks", "same", *arguments, "--out", str(tmp_path)]
    done = subprocess.run(command, env=subprocess_environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr
