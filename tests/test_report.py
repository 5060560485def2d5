"""The benchmarks' report: its tables, what is missing or must not be mixed, the page."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rliable", reason='needs rliable: pip install "sb3-swfp[zoo]"')

from benchmarks import report as report_module  # noqa: E402
from benchmarks.cells import Cell, Result  # noqa: E402
from benchmarks.report import report  # noqa: E402
from benchmarks.reporting import statistics  # noqa: E402
from benchmarks.reporting.stored import collect, ranges  # noqa: E402
from benchmarks.suites import SUITES  # noqa: E402

VERSIONS = {"python": "3.11.0", "torch": "2.13.0", "code": "abcdef"}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A suite of two tasks and three algorithms."""
    suite = SimpleNamespace(
        description="Two tasks",
        score="success in 50 episodes",
        tasks={"door": 1_000, "pen": 1_000},
        algos=("swfp", "rlpd", "swfp-kl"),
        rates=True,
        unit="environment step",
        columns={},
        module=lambda algo: f"toy.{algo}",
        versions=lambda algo: VERSIONS,
        latest_code=lambda algo: VERSIONS["code"],
    )
    monkeypatch.setitem(SUITES, "toy", suite)
    return suite


def store(
    root: Path, algo: str, seed: int, *scores: float, task: str = "door", suite: str = "toy", **changed: Any
) -> Path:
    """Store a result with evaluations at steps 0, 100, ..."""
    cell = Cell(suite, task, algo, seed)
    result = Result(
        cell=cell,
        versions=VERSIONS,
        config={"steps": 1_000, "eval_episodes": 50},
        curve=[(100 * index, score) for index, score in enumerate(scores)],
        seconds=7.2,
        cpu_seconds=3.6,
        peak_memory_mb=300.0,
    )
    cell.folder(root).mkdir(parents=True, exist_ok=True)
    replace(result, **changed).save(cell.folder(root))
    return cell.folder(root)


def store_all(root: Path, finals: Mapping[str, list[float]]) -> None:
    for task in ("door", "pen"):
        for algo, scores in finals.items():
            for seed, final in enumerate(scores):
                store(root, algo, seed, 0.5, final, task=task)


def row(text: str, name: str, after: str = "") -> list[str]:
    """Entries of the first table row with this name after a text."""
    lines = text[text.index(after) :].splitlines()
    return next(line for line in lines if line.startswith(f"| {name} |")).strip("| ").split(" | ")


# Tables


def test_tables_of_success_rates(toy: Any, tmp_path: Path) -> None:
    for seed, final in enumerate((0.6, 0.8, 1.0)):
        store(tmp_path, "swfp", seed, 0.5, 0.4, final)
        store(tmp_path, "rlpd", seed, 0.0, 0.1, final - 0.4)
        store(tmp_path, "swfp-kl", seed, 0.5, 0.3, final)
    text = report("toy", tmp_path)
    assert row(text, "swfp") == ["swfp", "80.0", "60.0, 80.0, 100.0", "80.0 [60.0, 100.0]", "52.5"]
    # Started at 50, fell to 40; two evaluations of 50 episodes at one half: the lower of them is 5.6 points below
    noise = 100.0 * statistics.dip_by_noise(0.5, 50, 2)
    assert noise == pytest.approx(-100.0 * (0.25 / 50 / np.pi) ** 0.5, abs=0.05)
    dip = row(text, "swfp", "deepest dip")
    assert dip == ["swfp", "50.0", "-10.0", "-10.0, -10.0, -10.0", f"{noise:.1f}", "-10.0"]
    # From nothing it cannot fall, but it is 40 points below the clone
    assert row(text, "rlpd", "deepest dip")[1:] == ["0.0", "+10.0", "+10.0, +10.0, +10.0", "0.0", "-40.0"]
    assert "swfp at step 0 scores 50.0; one evaluation of 50 episodes at that level has a standard error of 7.1" in text
    assert "9 of 18 cells" in text and "- pen: swfp 0-2; rlpd 0-2; swfp-kl 0-2" in text
    assert "Over 1 of 2 tasks: door." in text
    assert row(text, "swfp", "### All tasks")[1:] == ["3", "80.0 [60.0, 100.0]", "80.0", "52.5", "-10.0", "-10.0"]
    # Of nine pairs 8 are won and 1 is tied; of the same scores half
    assert row(text, "rlpd", "swfp over")[1].startswith("0.944 [") and row(text, "rlpd", "swfp over")[3] == "1 of 1"
    assert row(text, "swfp-kl", "swfp over")[1].startswith("0.500 [") and row(text, "swfp-kl", "swfp over")[2] == "no"
    assert row(text, "door", "### Cost") == ["door", "swfp", "3.6", "7.2", "300", "cpu"]
    assert "9 runs took 0.01 hours of CPU time, 0.02 hours" in text


def test_a_rate_that_is_none_is_refused(toy: Any, tmp_path: Path) -> None:
    store(tmp_path, "swfp", 0, 0.5, 1.5)
    with pytest.raises(ValueError, match=r"swfp-0 has a success rate outside \[0, 1\]"):
        report("toy", tmp_path)


def test_without_a_clone_there_is_no_level(toy: Any, tmp_path: Path) -> None:
    store(tmp_path, "rlpd", 0, 0.0, 0.1)
    text = report("toy", tmp_path)
    assert row(text, "rlpd", "deepest dip")[-1] == "–" and "at step 0 scores" not in text
    store(tmp_path, "rlpd", 0, curve=[(100, 0.2), (200, 0.1)])
    text = report("toy", tmp_path)
    assert "deepest dip | each seed" not in text and row(text, "rlpd", "### All tasks")[-2:] == ["–", "–"]


def test_shortened_runs_say_so(toy: Any, tmp_path: Path) -> None:
    store(tmp_path, "swfp", 0, 0.5, 0.6)
    store(tmp_path, "rlpd", 0, 0.5, 0.6, config={"steps": 500})
    text = report("toy", tmp_path)
    assert "1,000 environment steps, but rlpd 500." in text and "--steps" not in text
    store(tmp_path, "swfp", 0, 0.5, 0.6, config={"steps": 500})
    text = report("toy", tmp_path)
    assert "but swfp 500, rlpd 500." in text and "--suite toy --seeds 0-2 --steps 500\n" in text


def test_a_suites_own_unit_and_columns(toy: Any, tmp_path: Path) -> None:
    toy.unit, toy.columns = "gradient step", {"energy won": lambda details: details["gain"]}
    for seed, gain in enumerate((1.987, 2.0123)):
        store(tmp_path, "swfp", seed, 0.5, 0.6, details={"gain": gain})
    text = report("toy", tmp_path)
    assert "1,000 gradient steps." in text and "CPU ms per gradient step" in text and "environment step" not in text
    assert row(text, "swfp", "| energy won |")[1:] == ["1.99, 2.01"]


def test_returns(toy: Any, tmp_path: Path) -> None:
    toy.rates = False
    for seed in range(3):
        store(tmp_path, "swfp", seed, -1_500.0, -200.0)
        store(tmp_path, "rlpd", seed, -1_500.0, -300.0)
    text = report("toy", tmp_path)
    assert row(text, "swfp")[1:] == ["-200", "-200, -200, -200", "-200 [-200, -200]", "-850"]
    assert "No mean over tasks" in text
    assert row(text, "rlpd", "swfp over")[1:] == ["1.000 [1.000, 1.000]", "yes, above", "1 of 1"]


def test_a_loss_is_shown_as_one(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.1, 0.2, 0.3], "rlpd": [0.7, 0.8, 0.9]})
    assert row(report("toy", tmp_path), "rlpd", "swfp over")[1:] == ["0.000 [0.000, 0.000]", "yes, below", "0 of 2"]


def test_a_suite_without_swfp_is_compared_with_its_first(toy: Any, tmp_path: Path) -> None:
    toy.algos = ("sequential", "parallel")
    store_all(tmp_path, {"sequential": [0.1, 0.2, 0.3], "parallel": [0.7, 0.8, 0.9]})
    assert "sequential over" in report("toy", tmp_path)


# What is missing


def test_one_seed_has_no_interval(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.8], "rlpd": [0.6]})
    text = report("toy", tmp_path, tmp_path / "results.md")
    assert row(text, "swfp")[3] == "80.0" and "Fewer than 3 seeds, so no interval: swfp, rlpd." in text
    assert row(text, "rlpd", "swfp over")[1:] == ["1.000", "no interval", "2 of 2"]
    assert "Seeds 0-2: 4 of 18 cells" in text


def test_unequal_seeds_and_cells_begun(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.7, 0.8, 0.9, 1.0], "rlpd": [0.7, 0.8, 0.9]})
    store(tmp_path, "rlpd", 3, 0.5, 0.6)
    (store(tmp_path, "swfp-kl", 1, 0.5, 0.5) / "result.json").unlink()
    text = report("toy", tmp_path)
    assert "Numbers of seeds differ: swfp 4, rlpd 3." in text
    assert "15 of 24 cells" in text and "- pen: rlpd 3; swfp-kl 0-3" in text
    assert "begun without a result (see their log.txt):\n\n- door: swfp-kl 1\n" in text
    assert row(text, "rlpd", "### pen")[2] == "70.0, 80.0, 90.0, –"


def test_tasks_with_different_numbers_of_seeds(toy: Any, tmp_path: Path) -> None:
    for seed in range(3):
        store(tmp_path, "swfp", seed, 0.5, 0.9)
        store(tmp_path, "rlpd", seed, 0.4, 0.7)
        store(tmp_path, "swfp", seed, 0.5, 0.4, 0.8, task="pen")
        store(tmp_path, "rlpd", seed, 0.4, 0.3, 0.8, task="pen")
    store(tmp_path, "swfp", 3, 0.3, 0.0, 0.0, task="pen")
    # Door: final score 0.9, area 0.7, dip +0.4. Pen: 0.6 (of the inner 12 of 24 runs 6 have 0.8), 0.4125 and -0.15
    found = row(report("toy", tmp_path), "swfp", "### All tasks")
    assert found[:2] == ["swfp", "3 to 4"] and found[2].startswith("85.0 [")
    assert found[3:] == ["75.0", "55.6", "+12.5", "+12.5"]
    # Of RLPD's three 0.8 and SWFP's three 0.8 and one 0 the inner halves are the same
    assert row(report("toy", tmp_path), "rlpd", "swfp over")[3] == "2 of 2"


def test_a_task_that_an_algorithm_lacks_is_not_put_together(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.7, 0.8, 0.9]})
    for seed in range(3):
        store(tmp_path, "rlpd", seed, 0.5, 0.6)
    assert "Over 1 of 2 tasks: door. Left out: pen, where there is nothing of rlpd." in report("toy", tmp_path)
    store(tmp_path, "swfp-kl", 0, 0.5, 0.6, task="pen")
    assert "No task has results of all algorithms" in report("toy", tmp_path)


def test_names_that_begin_alike_are_kept_apart(toy: Any, tmp_path: Path) -> None:
    store(tmp_path, "swfp-kl", 0, 0.5, 0.6)
    stored = collect("toy", tmp_path)
    assert stored.algos() == ["swfp-kl"] and stored.of("door", "swfp") == ()


def test_no_results(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No results of toy in .*: python -m benchmarks run --suite toy"):
        report(["toy"], tmp_path)
    for name in SUITES:  # also that all of them can be reported
        with pytest.raises(FileNotFoundError):
            report(name, tmp_path)


# What must not be mixed


def test_other_versions_within_an_algorithm(toy: Any, tmp_path: Path) -> None:
    store(tmp_path, "rlpd", 0, 0.5, 0.6, versions=VERSIONS | {"code": "another"})  # another algorithm may
    store(tmp_path, "swfp", 0, 0.5, 0.6)
    assert "Versions: python 3.11.0, torch 2.13.0; swfp with code abcdef; rlpd with code another." in report(
        "toy", tmp_path
    )
    store(tmp_path, "swfp", 0, 0.5, 0.6, task="pen", versions=VERSIONS | {"code": "older"})
    page = tmp_path / "results.md"
    with pytest.raises(
        ValueError, match=r'toy: results of swfp differ in code: "abcdef" in .*door/swfp-0; "older" in .*pen/swfp-0'
    ):
        report("toy", tmp_path, page)
    assert not page.exists() and not (tmp_path / "figures").exists()


def test_tasks_may_have_run_on_different_machines(toy: Any, tmp_path: Path) -> None:
    elsewhere = VERSIONS | {"torch": "2.11.0"}
    for algo in ("swfp", "rlpd"):
        store(tmp_path, algo, 0, 0.5, 0.6)
        store(tmp_path, algo, 0, 0.5, 0.6, task="pen", versions=elsewhere | {"code": algo})
    with pytest.raises(ValueError, match="differ in code"):
        report("toy", tmp_path)
    for algo in ("swfp", "rlpd"):
        store(tmp_path, algo, 0, 0.5, 0.6, versions=VERSIONS | {"code": algo})
    page = report("toy", tmp_path)
    assert "Versions: python 3.11.0; door with torch 2.13.0; pen with torch 2.11.0; swfp with code swfp" in page
    store(tmp_path, "rlpd", 1, 0.5, 0.6, task="pen", versions=VERSIONS | {"code": "rlpd"})
    with pytest.raises(
        ValueError, match=r"results of pen differ in torch: .*2\.11.* in .*pen/swfp-0.*pen/rlpd-0; .*pen/rlpd-1"
    ):
        report("toy", tmp_path)
    # A package that one algorithm alone has
    store(tmp_path, "rlpd", 1, 0.5, 0.6, task="pen", versions=elsewhere | {"code": "rlpd", "sb3-contrib": "2.9.2"})
    with pytest.raises(ValueError, match=r'results of rlpd differ in sb3-contrib: none in .*; "2\.9\.2" in .*rlpd-1'):
        report("toy", tmp_path)


def test_float_arithmetic(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.6, 0.8, 1.0], "rlpd": [0.1, 0.2, 0.3]})
    assert "arithmetic" not in report("toy", tmp_path)  # results from before it was kept
    for seed in (0, 1):
        store(tmp_path, "swfp", seed, 0.5, 0.9, task="pen", arithmetic="0123456789ab")
    store(tmp_path, "rlpd", 0, 0.5, 0.9, task="pen", arithmetic="ba9876543210")
    text = report("toy", tmp_path)
    assert "- 0123456789ab:\n  - pen: swfp 0-1\n- ba9876543210:\n  - pen: rlpd 0\n- not recorded:\n" in text
    assert "- not recorded:\n  - door: swfp 0-2; rlpd 0-2\n  - pen: swfp 2; rlpd 1-2\n\n### door" in text


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"config": {"steps": 500}},
            r"differ in steps: 1000 in .*-0; 500 in .*-1\. Results of different config are not",
        ),
        ({"config": {"steps": 1_000, "eval_episodes": 50, "gamma": 0.9}}, r"differ in gamma: none in .*; 0.9 in "),
        ({"curve": [(0, 0.5), (100, float("nan"))]}, "swfp-1 has a score that is not a finite number"),
        ({"arithmetic": 5}, r"swfp-1.result.json is damaged .*arithmetic is 5"),
        ({"curve": [(0, 0.5), (0, 0.5)]}, "swfp-1 has evaluations whose environment steps do not increase"),
        ({"cell": Cell("toy", "door", "rlpd", 1)}, "swfp-1 holds the result of another cell"),
    ],
)
def test_results_that_cannot_be_averaged(toy: Any, tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    store(tmp_path, "swfp", 0, 0.5, 0.6)
    store(tmp_path, "swfp", 1, 0.5, 0.6, **changed)
    with pytest.raises(ValueError, match=message):
        report("toy", tmp_path)


def test_a_missing_package_is_named(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    store_all(tmp_path, {"swfp": [0.7, 0.8, 0.9]})
    monkeypatch.setattr("benchmarks.reporting.optional.import_module", missing)
    with pytest.raises(ImportError, match=r'needs rliable, which is missing: pip install "sb3-swfp\[zoo\]"'):
        report("toy", tmp_path)


# The page


def test_the_page_keeps_what_others_wrote(toy: Any, tmp_path: Path) -> None:
    store_all(tmp_path, {"swfp": [0.7, 0.8, 0.9]})
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    page.write_text("# Results\n\nThe claims.\n")
    report(["toy"], tmp_path, page)
    first = page.read_text()
    assert first.startswith("# Results\n\nThe claims.\n\n<!-- report legend")
    assert "![toy: door](figures/results-toy-door.png)" in first
    assert sorted(path.name for path in (page.parent / "figures").iterdir()) == [
        "results-toy-door.png",
        "results-toy-pen.png",
    ]
    page.write_text(first + "\nA remark.\n")
    store(tmp_path, "swfp", 3, 0.5, 1.0)
    report(["toy"], tmp_path, page)
    assert page.read_text().count("## toy") == 1 and "100.0" in page.read_text()
    assert page.read_text().startswith("# Results\n\nThe claims.") and page.read_text().endswith("\nA remark.\n")
    page.write_text(first.replace("<!-- end of report toy -->", ""))
    with pytest.raises(ValueError, match="is not followed by '<!-- end of report toy -->'"):
        report(["toy"], tmp_path, page)


def test_stopped_and_resumed_gives_the_same_tables(toy: Any, tmp_path: Path) -> None:
    """A report half way leaves nothing behind in the next one, and what depends on time stands apart."""
    finals = {"swfp": [0.7, 0.8, 0.9], "rlpd": [0.2, 0.9, 0.4]}
    store_all(tmp_path / "at_once", finals)
    store_all(tmp_path / "resumed", {"swfp": finals["swfp"][:2]})
    report("toy", tmp_path / "resumed", tmp_path / "b" / "results.md")
    store_all(tmp_path / "resumed", finals)
    for task in toy.tasks:
        store(tmp_path / "resumed", "rlpd", 1, 0.5, 0.9, task=task, seconds=99.0, cpu_seconds=98.0)
    report("toy", tmp_path / "at_once", tmp_path / "a" / "results.md")
    report("toy", tmp_path / "resumed", tmp_path / "b" / "results.md")
    one, other = ((tmp_path / name / "results.md").read_text() for name in "ab")
    assert one != other and one.partition("### Cost")[0] == other.partition("### Cost")[0]
    for task in toy.tasks:
        figure = f"figures/results-toy-{task}.png"
        assert (tmp_path / "a" / figure).read_bytes() == (tmp_path / "b" / figure).read_bytes()
    report("toy", tmp_path / "resumed", tmp_path / "b" / "results.md")
    assert (tmp_path / "b" / "results.md").read_text() == other


@pytest.fixture
def two_suites(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Beside the toy another one, that it is put together with."""
    other = SimpleNamespace(**vars(toy) | {"tasks": {"fetch": 1_000}, "algos": ("swfp", "rlpd")})
    monkeypatch.setitem(SUITES, "other", other)
    monkeypatch.setattr(report_module, "MAIN_COMPARISON", ("toy", "other"))
    return other


def test_suites_are_put_together_task_by_task(two_suites: Any, tmp_path: Path) -> None:
    for task, finals in {
        "door": {"swfp": [0.8, 0.8, 0.8, 0.0], "rlpd": [0.8, 0.9, 0.7], "swfp-kl": [0.1, 0.1, 0.1]},
        "pen": {"swfp": [0.6, 0.7, 0.8], "rlpd": [0.9, 0.9]},  # two seeds: left out
        "fetch": {"swfp": [0.6, 0.6, 0.6], "rlpd": [0.1, 0.2, 0.3]},
    }.items():
        for algo, scores in finals.items():
            for seed, final in enumerate(scores):
                suite = "other" if task == "fetch" else "toy"
                store(tmp_path, algo, seed, 0.5, 0.4, final, task=task, suite=suite)
    page = tmp_path / "results.md"
    text = report(["toy", "other"], tmp_path, page)
    assert text.startswith("## Main comparison") and "of seeds: toy/pen, of swfp or rlpd, swfp-kl." in text
    # Four seeds on the door and three on Fetch count as 12 runs each. Door: ties count half, so 3/4 of 0.5; fetch: 1
    head = "| swfp over | tasks"
    *found, probability, verdict, matched = row(text, "rlpd", head)
    assert found == ["rlpd", "toy/door, other/fetch", "3 to 4, 3", "65.0, 50.0", "47.5, 45.0", "-15.0, -20.0"]
    assert probability.startswith("0.688 [") and (verdict, matched) == ("no", "2 of 2")
    # Alone on the door all four count: the interquartile mean is without the 0
    assert row(text, "swfp-kl", head)[1:4] == ["toy/door", "4, 3", "80.0, 10.0"]
    assert "Made by different code" not in text
    # The toy has two tasks, so it is shown by itself; the other suite has one, which says no more than its section
    alone = text.partition("`toy` alone:\n\n")[2]
    assert row(alone, "rlpd", head)[1:4] == ["toy/door", "4, 3", "80.0, 80.0"] and "`other` alone" not in text
    store(tmp_path, "swfp", 0, 0.5, 0.4, 0.9, task="fetch", suite="other")
    report("toy", tmp_path, page)  # also where only one of them is reported
    assert row(page.read_text(), "rlpd", head)[3] != found[3]
    assert "## Main comparison" not in report(["toy", "other"], tmp_path)


def test_suites_put_together_say_what_they_lack(two_suites: Any, tmp_path: Path) -> None:
    for seed in range(3):
        store(tmp_path, "swfp", seed, 0.4, 0.8)
        store(tmp_path, "rlpd", seed, 0.7, curve=[(100, 0.5), (200, 0.7)])  # not evaluated at step 0
    page = tmp_path / "results.md"
    text = report("toy", tmp_path, page)
    assert row(text, "rlpd", "| swfp over | tasks")[5] == "+40.0, –" and "No results yet" not in text
    for seed in range(3):
        store(tmp_path, "swfp", seed, 0.5, suite="other", task="fetch", versions=VERSIONS | {"code": "older"})
    assert "so rerun before this is believed: swfp." in report("toy", tmp_path, page)
    # Another module has other code on purpose
    SUITES["other"].module = lambda algo: "somewhere.else"  # type: ignore[misc]
    text = report("toy", tmp_path, page)
    assert "so rerun before" not in text and "in another: swfp (`toy.swfp` in `toy`, `somewhere.else` in" in text
    for seed in range(3):
        (tmp_path / "toy" / "door" / f"rlpd-{seed}" / "result.json").unlink()
    assert "No results yet." in report("toy", tmp_path, page).partition("## toy")[0]
    SUITES["other"].rates = False  # type: ignore[misc]
    with pytest.raises(ValueError, match="other: scores that are not success rates cannot be put together"):
        report("toy", tmp_path, page)


def test_two_hundred_results_take_less_than_a_minute(toy: Any, tmp_path: Path) -> None:
    toy.tasks = {f"task/{index}": 1_000 for index in range(8)}
    toy.algos = ("swfp", "rlpd", "calql", "ibrl", "dppo", "clone", "swfp-kl", "rlpd-matched", "clone-sac")
    generator = random.Random(0)
    for task in toy.tasks:
        for algo in toy.algos:
            for seed in range(3):
                store(tmp_path, algo, seed, *(generator.randrange(51) / 50 for _ in range(11)), task=task)
    started = time.process_time()
    assert "216 of 216 cells" in report(["toy"], tmp_path, tmp_path / "results.md")
    assert time.process_time() - started < 60.0  # in practice less than 10
    assert (tmp_path / "figures" / "results-toy-task-7.png").is_file()


def test_ranges() -> None:
    assert (ranges([3]), ranges([2, 0, 1]), ranges([0, 2, 5])) == ("3", "0-2", "0,2,5")
