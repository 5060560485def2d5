"""The examples: the demo from end to end, small; what they print and draw; bad arguments; no video, no matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics")

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))  # they are scripts, and import each other as such

import common  # noqa: E402
import demo  # noqa: E402
import finetune_minari  # noqa: E402
import replay_video  # noqa: E402
import scripted_fetch  # noqa: E402

from sb3_swfp import SWFP, load_demonstrations  # noqa: E402
from sb3_swfp.callbacks import EvaluationPoint, read_history  # noqa: E402

POINTS = [EvaluationPoint(0, 0.12, -45.0), EvaluationPoint(2_000, 0.5, -30.0)]


def test_the_demo_from_end_to_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"pretrain_steps": 5, "eval_every": 60, "eval_episodes": 2, "film_episodes": 1}
    for name, value in small.items():
        monkeypatch.setitem(demo.SETTINGS, name, value)
    takes: list[dict[str, list[Any]]] = []
    monkeypatch.setattr(demo, "film", lambda env_id, seeds, take, path: takes.append(take) or "no driver")
    out = tmp_path / "demo"
    monkeypatch.setattr(sys, "argv", ["demo.py", "--steps", "120", "--demonstrations", "3", "--out", str(out)])
    demo.main()
    said = capsys.readouterr().out
    assert [f"{n}/5" for n in range(1, 6)] == [line[:3] for line in said.splitlines() if line[1:3] == "/5"]
    assert "No video (everything else is there): no driver" in said and "(the clone)" in said
    assert {caption: len(take) for caption, take in takes[0].items()} == {"clone": 1, "fine-tuned": 1}
    assert [point.timesteps for point in read_history(out / "learning_curve.csv")] == [0, 60, 120]
    named = [line.split()[0] for line in said.partition("Saved in")[2].splitlines()[1:]]
    assert len(named) == 8 and all(Path(name).exists() for name in named) and "mp4" not in " ".join(named)
    assert len(load_demonstrations(out / "demonstrations.npz")) == 3
    assert SWFP.load(out / "model.zip").is_pretrained


@pytest.mark.parametrize("script", [demo, finetune_minari])
@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--demonstrations", "-1"]])
def test_impossible_numbers_are_said(
    script: ModuleType,
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["script.py", *arguments])
    with pytest.raises(SystemExit):
        script.parse_arguments()
    assert "must be at least 1" in capsys.readouterr().err


def test_a_minari_id_needs_its_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune_minari.py", "--task", "D4RL/pen/human-v2"])
    with pytest.raises(SystemExit):
        finetune_minari.parse_arguments()
    assert "a Minari id needs --env beside it" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--env", "AdroitHandPen-v1"])
    arguments = finetune_minari.parse_arguments()
    assert (arguments.task.dataset, arguments.task.env) == ("D4RL/pen/human-v2", "AdroitHandPen-v1")
    assert arguments.out == Path("runs/D4RL-pen-human-v2-seed0")


def test_missing_demonstrations_say_how_to_make_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["finetune_minari.py", "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"No Minari data set adroit/door-expert-v0(.|\n)*benchmarks demonstrations"):
        finetune_minari.main()


def test_the_table_compares_with_the_clone() -> None:
    lines = [line.split() for line in common.curve_table(POINTS).splitlines()]
    assert lines[1] == ["0", "12", "%", "(the", "clone)", "-45.00"]
    assert lines[2] == ["2,000", "50", "%", "+38", "points", "-30.00"]


def test_without_matplotlib_there_is_a_reason_instead_of_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "curve.png"
    assert common.plot_curve(POINTS, 50, "title", path, teacher=0.7) is None and path.stat().st_size > 1_000
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    reason = common.plot_curve(POINTS, 50, "title", path)
    assert reason is not None and "needs matplotlib" in reason and not path.exists()


def test_without_a_renderer_there_is_a_reason_instead_of_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "film.mp4"
    path.write_text("an older run's")
    monkeypatch.setenv("MUJOCO_GL", "nothing-of-that-name")
    action = np.zeros(4, np.float32)
    reason = replay_video.film(scripted_fetch.ENV_ID, [0], {"clone": [[action]]}, path)
    assert reason is not None and replay_video.HOW_TO_ENABLE in reason and not path.exists()


def test_a_recording_needs_seeds() -> None:
    env = replay_video.ActionRecorder(scripted_fetch.make_env())
    with pytest.raises(ValueError, match="needs reset"):
        env.reset()
    env.reset(seed=3)
    env.step(env.action_space.sample())
    assert len(env.actions) == 1 and len(env.actions[0]) == 1
    env.close()


def test_the_teacher_is_good_but_not_perfect() -> None:
    """As the demo says: about 3 of 4 of its episodes succeed."""
    demonstrations = scripted_fetch.collect_demonstrations(24, 0, demo.SETTINGS["clumsiness"])
    rate = demonstrations.success_rate()
    assert rate is not None and 0.5 <= rate < 1.0
    again = scripted_fetch.collect_demonstrations(2, 0, demo.SETTINGS["clumsiness"])
    np.testing.assert_array_equal(again[1].actions, demonstrations[1].actions)
