"""The benchmarks' runner: resuming, results of other versions, crashes, bad input."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

pytest.importorskip("rl_zoo3", reason='needs RL Zoo: pip install "sb3-swfp[zoo]"')

from tiny import subprocess_environment  # noqa: E402

from benchmarks import __main__ as command_line  # noqa: E402
from benchmarks import runner  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.arguments import seed_range  # noqa: E402
from benchmarks.cells import Cell, Result  # noqa: E402
from benchmarks.report import report  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402

RUN = ["run", "--suite", "scratch", "--tasks", "Pendulum-v1", "--seeds", "0"]


def refuse(*_: object) -> None:
    raise AssertionError("a cell ran")


def test_runs_resumes_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*RUN, "--algos", "swfp,sac", "--steps", "220", "--out", str(tmp_path)]
    main(command)
    table, display = capsys.readouterr()
    assert 0 < display.count("step/s") < 6  # into a file: not several lines a second
    assert "### Pendulum-v1" in table and "| swfp |" in table and "| sac |" in table and "| tqc |" not in table
    result = Result.load(Cell("scratch", "Pendulum-v1", "sac", 0).folder(tmp_path))
    assert result is not None and [step for step, _ in result.curve] == list(range(22, 221, 22))
    assert result.arithmetic == runner._digest_of_a_cell() and f"Float arithmetic: {result.arithmetic}." in table
    assert all(-2000.0 < score < 0.0 for _, score in result.curve) and result.peak_memory_mb > 100.0

    monkeypatch.setattr(runner, "_start", refuse)
    main(command)
    assert capsys.readouterr().out == table
    with pytest.raises(SystemExit, match="another steps"):
        main([*command, "--steps", "230"])


def is_running(argument: str) -> bool:
    """Whether a process has this among its arguments (where there is a /proc to tell)."""
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if argument.encode() in command.read_bytes():
                return True
    return False


def test_a_run_that_was_killed_gives_the_same_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", "--suite", "scratch", "--tasks", "Pendulum-v1", "--algos", "sac,swfp", "--seeds", "0"]
    arguments += ["--steps", "240", "--jobs", "1"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    first, second = (Cell("scratch", "Pendulum-v1", algo, 0).folder(broken) for algo in ("sac", "swfp"))
    command = [sys.executable, "-m", "benchmarks", *arguments, "--out", str(broken)]
    with subprocess.Popen(command, cwd=runner.ROOT, stderr=subprocess.DEVNULL, env=subprocess_environment()) as process:
        deadline = time.monotonic() + 240.0
        while not (second / "log.txt").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert (first / "result.json").exists() and not (second / "result.json").exists()
    finished = (first / "result.json").stat().st_mtime_ns
    time.sleep(2.0)  # the killed run's cell ends by itself, on a busy machine not at once
    while is_running(str(second)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    main([*arguments, "--out", str(broken)])
    resumed = capsys.readouterr().out
    main([*arguments, "--out", str(whole)])
    assert resumed.partition("Cost")[0] == capsys.readouterr().out.partition("Cost")[0] and "### Pendulum-v1" in resumed
    assert (first / "result.json").stat().st_mtime_ns == finished


def store(root: Path, algo: str, seed: int, final: float, **changed: str) -> Path:
    cell = Cell("scratch", "Pendulum-v1", algo, seed)
    folder = cell.folder(root)
    folder.mkdir(parents=True)
    curve = [(5_000, final - 100.0), (10_000, final)]
    suite = SUITES["scratch"]
    config = suite.settings(cell) | {"steps": 10_000}
    Result(cell, suite.versions(algo) | changed, config, curve, 50.0, 300.0).save(folder)
    return folder


def test_results_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    store(tmp_path, "swfp", 0, -100.0, code="older")
    with pytest.raises(SystemExit, match=r"another code.*not mixed"):
        main([*RUN, "--algos", "swfp", "--out", str(tmp_path)])


def test_the_report_names_results_of_other_code(tmp_path: Path) -> None:
    store(tmp_path, "swfp", 0, -100.0, code="older")
    store(tmp_path, "sac", 0, -100.0)
    text = report("scratch", tmp_path)
    assert "other code than this checkout's" in text
    assert "- Pendulum-v1: swfp 0\n" in text.partition("other code")[2]
    assert "sac 0" not in text.partition("other code")[2].partition("Versions")[0]


def test_results_of_other_float_arithmetic_are_said_and_mixed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[Cell] = []
    monkeypatch.setattr(runner, "_start", lambda cell, *others: begun.append(cell))
    wanted = [Cell("scratch", "Pendulum-v1", "sac", 9)]
    here = runner._digest_of_a_cell()

    def messages(*digests: str | None) -> str:
        root = tmp_path / str(len(begun))
        for seed, digest in enumerate(digests):
            folder = store(root, "sac", seed, -100.0)
            result = Result.load(folder)
            assert result is not None
            replace(result, arithmetic=digest).save(folder)
        (store(root, "tqc", 0, -100.0) / "result.json").write_text("damaged, but not needed")
        assert runner.run_cells(wanted, root, jobs=1) == []
        return capsys.readouterr().err

    assert "arithmetic" not in messages(None, None)
    assert "arithmetic" not in messages(here, None)
    said = messages(here, "0123456789ab", None, "0123456789ab", "ba9876543210")
    assert f"scratch Pendulum-v1: float arithmetic here ({here}) differs" in said
    assert "(0123456789ab: sac-1, sac-3; ba9876543210: sac-4)" in said
    assert begun == 3 * wanted


def digest_with(**changed: str) -> str:
    """Of a process whose environment has these of the variables that decide, and no others."""
    decide = ("MKL_", "ATEN_", "OPENBLAS_", "NPY_", "LD_PRELOAD")
    env = {name: text for name, text in subprocess_environment().items() if not name.startswith(decide)}
    code = "from benchmarks.arithmetic import arithmetic_digest as digest; print(digest())"
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, cwd=runner.ROOT, env=env | changed, capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.skipif(
    th.backends.cpu.get_cpu_capability() == "DEFAULT" or not th.backends.mkl.is_available(),
    reason="needs an x86 processor with AVX2 and a PyTorch with MKL",
)
def test_the_digest_tells_the_libraries_instructions_apart() -> None:
    usual = digest_with()
    assert len(usual) == 12 and digest_with() == usual
    # MKL without vector instructions; NumPy's matrix products as on a processor of 2008
    assert len({usual, digest_with(MKL_CBWR="COMPATIBLE"), digest_with(OPENBLAS_CORETYPE="Nehalem")}) == 3


def test_a_cell_named_twice_is_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Cell] = []
    monkeypatch.setattr(command_line, "run_cells", lambda cells, *others: seen.extend(cells) or ["log"])
    with pytest.raises(SystemExit, match="1 of 2 cells failed"):
        main([*RUN, "--algos", "sac,sac", "--seeds", "0,1,0", "--out", str(tmp_path)])
    assert [cell.seed for cell in seen] == [0, 1]


def test_a_cell_of_another_runner_is_left_to_it(tmp_path: Path) -> None:
    cell = Cell("scratch", "Pendulum-v1", "sac", 0)
    lock = runner._claim(cell.folder(tmp_path))
    assert lock is not None
    assert runner.run_cells([cell], tmp_path, jobs=1, steps=100) == [] and not cell.folder(tmp_path).exists()
    lock.close()
    again = runner._claim(cell.folder(tmp_path))
    assert again is not None
    again.close()


def test_what_another_suite_has_run_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stored_in(suite: str, seed: int) -> Cell:
        cell = Cell(suite, "pick-and-place", "swfp", seed)
        cell.folder(tmp_path).mkdir(parents=True)
        (cell.folder(tmp_path) / "curve.csv").write_text("of the run\n")
        config, found = SUITES[suite].settings(cell) | {"steps": 10_000}, SUITES[suite].versions("swfp")
        Result(cell, found, config, [(0, 0.1), (10_000, 0.9)], 50.0, 300.0).save(cell.folder(tmp_path))
        return cell

    original = stored_in("blocks", 0)
    stored_in("fetch", 1)  # with eight candidates an action: another run
    begun: list[Cell] = []
    monkeypatch.setattr(runner, "_start", lambda cell, *others: begun.append(cell))
    wanted = [Cell("order", "pick-and-place", algo, seed) for seed in (0, 1) for algo in SUITES["order"].algos]
    assert runner.run_cells(wanted, tmp_path, jobs=1) == []
    assert begun == wanted[1:]
    folder = wanted[0].folder(tmp_path)
    result, first = Result.load(folder), Result.load(original.folder(tmp_path))
    assert result is not None and first is not None
    assert result == replace(first, cell=wanted[0], details={"copied_from": "blocks/pick-and-place/swfp-0"})
    assert (folder / "curve.csv").read_text() == "of the run\n"
    assert not list(folder.parent.glob(".*"))  # no lock is left
    assert "order/pick-and-place/swfp-0 is the run that blocks/pick-and-place/swfp-0 has" in capsys.readouterr().err
    assert "1 of them are runs of other suites" in report("order", tmp_path)
    begun.clear()
    shutil.rmtree(original.folder(tmp_path))  # to have it run again: its own copy is no answer
    runner.run_cells([original], tmp_path, jobs=1)
    assert begun == [original]
    begun.clear()
    runner.run_cells(wanted[:1], tmp_path, jobs=1)  # it counts as finished from now on
    runner.run_cells(wanted[:1], tmp_path / "elsewhere", jobs=1)
    assert begun == wanted[:1]


def test_results_of_other_settings_are_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, "sac", 0, -100.0)
    others = replace(SUITES["scratch"], settings=lambda cell: {"learning_rate": 0.1})
    monkeypatch.setitem(SUITES, "scratch", others)  # type: ignore[arg-type, misc]
    with pytest.raises(SystemExit, match=r"another learning_rate.*not mixed"):
        main([*RUN, "--algos", "sac", "--steps", "10000", "--out", str(tmp_path)])


def test_a_setting_that_is_gone_is_another_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, "sac", 0, -100.0)
    suite = SUITES["scratch"]

    def without_rate(cell: Cell) -> dict[str, Any]:
        return {key: value for key, value in suite.settings(cell).items() if key != "learning_rate"}

    monkeypatch.setitem(SUITES, "scratch", replace(suite, settings=without_rate))  # type: ignore[arg-type, misc]
    with pytest.raises(SystemExit, match=r"another learning_rate.*not mixed"):
        main([*RUN, "--algos", "sac", "--steps", "10000", "--out", str(tmp_path)])


def test_stored_results_are_of_the_settings_that_the_suites_have() -> None:
    command = ["git", "ls-files", "benchmarks/results/*/result.json"]  # git's * takes folders in, too
    listed = subprocess.run(command, cwd=runner.ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("no checkout, so what lies there may be anybody's trial")
    found = [Result.load((runner.ROOT / line).parent) for line in listed.stdout.splitlines()]
    assert found
    for result in found:
        assert result is not None
        # Those of SAC and TQC are the installed Zoo's
        if result.cell.algo not in ("sac", "tqc"):
            wanted = runner._wanted(result.cell, SUITES[result.cell.suite].tasks[result.cell.task])
            assert result.config == wanted, result.cell


def test_missing_demonstrations_are_said_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(SystemExit, match="adroit/door-expert-v0"):
        main(["run", "--suite", "adroit", "--tasks", "door", "--out", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("suite", "task"), [("adroit", "door"), ("fetch", "pick-and-place")])
def test_a_missing_package_is_said_before_anything_runs(
    suite: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.suites.finetuning.find_spec", lambda name: None)
    monkeypatch.setattr(runner, "_start", refuse)
    with pytest.raises(SystemExit, match=r"needs gymnasium_robotics: pip install"):
        main(["run", "--suite", suite, "--tasks", task, "--out", str(tmp_path / "results")])
    assert not (tmp_path / "results").exists()


def test_what_is_finished_needs_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(task: str) -> None:
        raise FileNotFoundError("no demonstrations")

    store(tmp_path, "sac", 0, -100.0)
    monkeypatch.setitem(SUITES, "scratch", replace(SUITES["scratch"], check=missing))  # type: ignore[misc]
    monkeypatch.setattr(runner, "_start", refuse)
    main([*RUN, "--algos", "sac", "--steps", "10000", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no demonstrations"):
        main([*RUN, "--algos", "swfp", "--steps", "10000", "--out", str(tmp_path)])


def test_the_scratch_suite_needs_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.suites.scratch.find_spec", lambda name: None)
    monkeypatch.setattr(runner, "_start", refuse)
    with pytest.raises(SystemExit, match="needs RL Zoo: pip install"):
        main([*RUN, "--algos", "swfp", "--out", str(tmp_path)])


def test_cells_of_another_runner_are_not_said_to_be_there(tmp_path: Path) -> None:
    lock = runner._claim(Cell("scratch", "Pendulum-v1", "sac", 0).folder(tmp_path))
    assert lock is not None
    with pytest.raises(SystemExit, match="No results of scratch"):
        main([*RUN, "--algos", "sac", "--out", str(tmp_path)])
    lock.close()


def test_cells_that_ran_are_no_failure_because_a_table_is_not_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store(tmp_path, "sac", 0, -100.0)
    store(tmp_path, "sac", 1, -100.0, torch="0.1")  # not asked for, but the table is of the whole suite
    main([*RUN, "--algos", "sac", "--steps", "10000", "--out", str(tmp_path)])
    said = capsys.readouterr()
    assert said.out == "" and "All 1 cells have results. No report of them:" in said.err and "torch" in said.err


def test_ctrl_c_says_how_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ended: list[int] = []

    def start(cell: Cell, root: Path, steps: int) -> runner._Running:
        lock = runner._claim(cell.folder(root))
        assert lock is not None
        process = runner.subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        running = runner._Running(cell, process, cell.folder(root), lock)
        release = runner._release
        monkeypatch.setattr(runner, "_release", lambda lock: (ended.append(process.poll()), release(lock)))
        return running

    def press(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "_start", start)
    monkeypatch.setattr(runner, "_steps_done", press)
    with pytest.raises(SystemExit) as stopped:
        main([*RUN, "--algos", "sac", "--out", str(tmp_path)])
    assert stopped.value.code == 130 and "The same command goes on" in capsys.readouterr().err
    assert ended == [-signal.SIGTERM]  # before its folder is anybody else's


@pytest.mark.parametrize(
    ("steps", "ends"),
    [([], False), ([22, 44], False), ([22, 198], True), ([0, 22, 198], True), ([176, 198], False), ([176, 199], True)],
    ids=str,
)
def test_a_run_that_ends_early_is_no_result(
    steps: list[int], ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve = [(step, -100.0) for step in steps]
    suite = replace(SUITES["scratch"], run=lambda *_: {}, curve=lambda folder: curve)  # type: ignore[misc, arg-type]
    monkeypatch.setitem(SUITES, "scratch", suite)  # type: ignore[misc]
    monkeypatch.setattr(runner, "_end_with", lambda parent: None)
    with contextlib.nullcontext() if ends else pytest.raises(RuntimeError, match="only, of 220 steps"):
        runner.run_cell(Cell("scratch", "Pendulum-v1", "sac", 0), 220, tmp_path, 0)
    assert (Result.load(tmp_path) is not None) == ends


def test_a_trial_shorter_than_the_evaluations_interval_ends_at_its_start() -> None:
    assert runner._reaches_the_end([(0, 0.5)], 1_000, {"eval_freq": 3_000})
    assert not runner._reaches_the_end([(0, 0.5)], 3_000, {"eval_freq": 3_000})


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\n", "{}", "[]", '{"curve": [], "cell": {"name": 1}}'])
def test_a_damaged_result_is_named(text: str, tmp_path: Path) -> None:
    folder = store(tmp_path, "sac", 0, -100.0)
    (folder / "result.json").write_text(text)
    with pytest.raises(SystemExit, match=r"sac-0/result.json is damaged"):
        main([*RUN, "--algos", "sac", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"sac-0/result.json is damaged"):
        main(["report", "--suite", "scratch", "--out", str(tmp_path), "--page", str(tmp_path / "page.md")])


def test_evaluations_that_are_just_being_written_are_no_news(tmp_path: Path) -> None:
    path = tmp_path / "sac" / "Pendulum-v1_1" / "evaluations.npz"
    path.parent.mkdir(parents=True)
    np.savez(path, timesteps=np.array([22, 44]), results=np.full((2, 10), -100.0))
    whole, read = path.read_bytes(), SUITES["scratch"].curve
    assert read(tmp_path) == [(22, -100.0), (44, -100.0)]
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert read(tmp_path) in ([], [(22, -100.0), (44, -100.0)])


def test_a_lock_that_was_removed_while_it_was_taken_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Cell("scratch", "Pendulum-v1", "sac", 0).folder(tmp_path)
    flock, tries = runner.fcntl.flock, []

    def flock_late(lock: Any, how: int) -> None:
        tries.append(lock)
        if len(tries) == 1:
            Path(lock.name).unlink()  # its owner let it go in between
        flock(lock, how)

    monkeypatch.setattr(runner.fcntl, "flock", flock_late)
    lock = runner._claim(folder)
    assert lock is not None and len(tries) == 2 and Path(lock.name).exists()
    assert runner._claim(folder) is None
    runner._release(lock)
    store(tmp_path, "sac", 0, -100.0)
    assert runner._claim(folder) is None and not list(folder.parent.glob(".*"))  # it has a result: no lock stays


def test_a_crash_names_its_log_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(cell: Cell, root: Path, steps: int) -> runner._Running:
        started.append(cell.algo)
        folder = cell.folder(root)
        lock = runner._claim(folder)
        assert lock is not None
        folder.mkdir(parents=True)
        code = "raise SystemExit(3)" if cell.algo == "swfp" else "pass"
        if cell.algo == "sac":
            folder.rmdir()
            store(root, "sac", 0, -100.0)
        return runner._Running(cell, runner.subprocess.Popen([runner.sys.executable, "-c", code]), folder, lock)

    monkeypatch.setattr(runner, "_start", start)
    with pytest.raises(SystemExit, match=r"1 of 2 cells failed(.|\n)*swfp-0/log.txt"):
        main([*RUN, "--algos", "swfp,sac", "--jobs", "1", "--out", str(tmp_path)])
    assert started == ["swfp", "sac"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--suite", "adriot"], "invalid choice: 'adriot'"),
        (["run", "--suite", "scratch", "--seeds", "2-0"], "no range of seeds"),
        (["run", "--suite", "scratch", "--jobs", "0"], "not a number from 1"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_unknown_names_and_missing_results(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="Unknown algorithm 'ppo': there is swfp, sac, tqc"):
        main([*RUN, "--algos", "ppo"])
    with pytest.raises(SystemExit, match="Unknown task 'Ant-v5'"):
        main(["run", "--suite", "scratch", "--tasks", "Ant-v5"])
    with pytest.raises(SystemExit, match="No results of scratch"):
        main(["report", "--suite", "scratch", "--out", str(tmp_path)])


def test_seed_ranges() -> None:
    assert (seed_range("3"), seed_range("0-2"), seed_range("0,2,5")) == ([3], [0, 1, 2], [0, 2, 5])


def test_a_partial_result_is_no_result(tmp_path: Path) -> None:
    folder = store(tmp_path, "sac", 0, -100.0)
    stored = json.loads((folder / "result.json").read_text())
    (folder / "result.json").unlink()
    (folder / ".result.123.tmp.json").write_text(json.dumps(stored)[:50])
    assert Result.load(folder) is None
