"""The speed benchmark runs and reports everything that it promises; what it measures is not a matter for tests."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import speed


def test_quick_run_reports_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    speed.main(["--quick", "--size", "Hopper", "--out", str(out)])
    printed, report = capsys.readouterr().out, json.loads(out.read_text())
    assert report["conditions"]["torch"] and report["conditions"]["threads"] == 1
    rows = {row["what"]: row for row in report["rows"]}
    targets = {what: row["target"] for what, row in rows.items()}
    assert targets.pop("gradient step, ms") == "<= 1"
    assert targets.pop("gradient step, sequential / parallel, ms") == ""
    assert targets.pop("block training alone, sequential / parallel, ms") == ">= 2"
    assert targets.pop("peak memory, MiB") == "<= 1.1"
    assert len(targets) == 4 and all(what.startswith("predict") and it == "<= 1.5" for what, it in targets.items())
    for what, row in rows.items():
        assert what in printed
        assert all(value > 0.0 for value in (*row["figures"].values(), *row["wall_clock"].values()))
        first, second, *_ = row["figures"].values()
        assert row["ratio"] == pytest.approx(first / second)
    assert list(rows["gradient step, ms"]["figures"]) == ["SWFP", "SAC", "SWFP sequential"]


@pytest.mark.parametrize(("figures", "at_most", "met"), [((3, 2), True, False), ((3, 2), False, True)])
def test_targets_hold_in_their_direction(figures: tuple[float, float], at_most: bool, met: bool) -> None:
    row = speed.compare("x", "Hopper", dict(zip("ab", figures, strict=True)), {}, 1.2, at_most)
    assert row.met is met and row.ratio == 1.5
    assert ("met" if met else "NOT") in speed.format_table([row])
