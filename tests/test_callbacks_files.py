"""Files that survive a kill, checkpoints, and the curve that the evaluation callback keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_swfp.callbacks import (
    AtomicCheckpointCallback,
    EvaluationPoint,
    SuccessEvalCallback,
    read_history,
    write_history,
)
from sb3_swfp.evaluation import EvaluationResult
from sb3_swfp.files import atomic_path


class Line(gym.Env):
    """Five steps; success is to end right of the start."""

    observation_space = spaces.Box(-10.0, 10.0, (1,))
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.x += 1.0 if action == 1 else -1.0
        self.t += 1
        return np.full(1, self.x, np.float32), self.x, False, self.t == 5, {"is_success": self.x > 0}


def make_model(normalized: bool = False) -> DQN:
    """A model that learns nothing, quickly."""
    env = DummyVecEnv([Line])
    return DQN(
        "MlpPolicy",
        VecNormalize(env) if normalized else env,
        learning_starts=10_000,
        train_freq=1,
        buffer_size=50,
        policy_kwargs={"net_arch": [4]},
        seed=0,
    )


def leftovers(folder: Path) -> list[str]:
    """Temporary files that were not cleaned up."""
    return [path.name for path in folder.rglob("*") if ".tmp" in path.name]


# --- files ---


def test_atomic_path_replaces_and_keeps_the_suffix(tmp_path):
    target = tmp_path / "new" / "model.v2.zip"
    for text in ("first", "second"):
        with atomic_path(target) as temporary:
            assert temporary.parent == target.parent and temporary.suffix == ".zip" and temporary != target
            temporary.write_text(text)
            assert not target.exists() or target.read_text() == "first"
        assert target.read_text() == text
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_path_leaves_the_old_file_on_error(tmp_path, error):
    target = tmp_path / "file.npz"
    target.write_text("old")
    with pytest.raises(error):
        with atomic_path(target) as temporary:
            temporary.write_text("half of the n")
            raise error
    assert target.read_text() == "old"
    assert leftovers(tmp_path) == []


def test_atomic_path_says_when_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="full\\s+suffix"):
        with atomic_path(tmp_path / "model") as temporary:
            temporary.with_suffix(".zip").write_text("a writer that appends a suffix")
    assert not (tmp_path / "model").exists()


@pytest.mark.skipif(os.name != "posix", reason="symbolic links and file modes are POSIX's")
def test_atomic_path_follows_links_and_keeps_the_usual_mode(tmp_path):
    real, link = tmp_path / "disk" / "real.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    with atomic_path(link) as temporary:
        temporary.write_text("new")
    assert link.is_symlink() and real.read_text() == "new"
    plain = tmp_path / "plain.txt"
    plain.touch()
    assert real.stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_a_kill_in_the_middle_of_writing_leaves_the_last_file(tmp_path):
    target = tmp_path / "checkpoint.zip"
    target.write_text("the last checkpoint")
    child = subprocess.Popen(
        [sys.executable, "-c", _WRITES_HALF_A_FILE, str(target)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "half written\n"
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    child.stdout.close()
    assert target.read_text() == "the last checkpoint"


_WRITES_HALF_A_FILE = """
import sys, time
from sb3_swfp.files import atomic_path
with atomic_path(sys.argv[1]) as temporary, open(temporary, "w") as handle:
    handle.write("half of the next")
    handle.flush()
    print("half written", flush=True)
    time.sleep(60)
"""


# --- checkpoints ---


def test_checkpoints_are_complete_readable_and_the_oldest_go(tmp_path):
    callback = AtomicCheckpointCallback(
        10, tmp_path, "run", save_replay_buffer=True, save_vecnormalize=True, keep_last=2
    )
    model = make_model(normalized=True)
    model.learn(35, callback=callback)
    kinds = ("run_{}_steps.zip", "run_replay_buffer_{}_steps.pkl", "run_vecnormalize_{}_steps.pkl")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        kind.format(steps) for steps in (20, 30) for kind in kinds
    )
    loaded = DQN.load(tmp_path / "run_30_steps.zip")
    assert loaded.num_timesteps == 30
    loaded.load_replay_buffer(tmp_path / "run_replay_buffer_30_steps.pkl")
    # SB3 calls callbacks before it stores the step.
    assert loaded.replay_buffer is not None and loaded.replay_buffer.size() == 29
    VecNormalize.load(str(tmp_path / "run_vecnormalize_30_steps.pkl"), DummyVecEnv([Line]))


def test_learning_twice_does_not_delete_the_names_written_again(tmp_path):
    callback = AtomicCheckpointCallback(10, tmp_path, keep_last=1)
    model = make_model()
    for _ in range(2):
        model.learn(10, callback=callback)
        assert [path.name for path in tmp_path.iterdir()] == ["rl_model_10_steps.zip"]


def test_a_failed_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    callback = AtomicCheckpointCallback(10, tmp_path, keep_last=1)
    model = make_model()
    model.learn(10, callback=callback)

    def interrupted(path: Path, *args: Any, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.learn(10, callback=callback, reset_num_timesteps=False)
    assert [path.name for path in tmp_path.iterdir()] == ["rl_model_10_steps.zip"]
    DQN.load(tmp_path / "rl_model_10_steps.zip")


def test_impossible_checkpoint_arguments(tmp_path):
    with pytest.raises(ValueError, match="save_freq"):
        AtomicCheckpointCallback(0, tmp_path)
    with pytest.raises(ValueError, match="keep_last"):
        AtomicCheckpointCallback(10, tmp_path, keep_last=0)


# --- the evaluation callback ---


def test_the_curve_is_kept_logged_printed_and_written(tmp_path, capsys):
    path = tmp_path / "curve.csv"
    callback = SuccessEvalCallback(Line, eval_freq=20, n_eval_episodes=3, history_path=path)
    model = make_model()
    logged: dict[str, Any] = {}
    model.learn(50, callback=callback)
    assert [steps for steps, _ in callback.history] == [0, 20, 40]
    assert all(share in (0.0, 1.0) for _, share in callback.history)
    assert callback.last_result is not None and callback.last_result.timesteps == 40
    assert read_history(path) == callback.points
    assert capsys.readouterr().out.count("of 3 episodes") == 3
    monkey = model.logger.dump
    model.logger.dump = lambda step=0: logged.update(model.logger.name_to_value)  # type: ignore[method-assign]
    result = callback.evaluate()
    model.logger.dump = monkey  # type: ignore[method-assign]
    assert logged["eval/success_rate"] == result.success_rate
    assert logged["eval/mean_reward"] == result.mean_return
    assert leftovers(tmp_path) == []


def test_the_curve_goes_on_after_a_restart_and_starts_anew_otherwise(tmp_path):
    path = tmp_path / "curve.npz"
    make = lambda: SuccessEvalCallback(Line, eval_freq=20, n_eval_episodes=2, history_path=path, verbose=0)  # noqa: E731
    model = make_model()
    model.learn(40, callback=make())
    continued = make()  # as after a restart: nothing in memory
    model.learn(40, callback=continued, reset_num_timesteps=False)
    assert [steps for steps, _ in continued.history] == [0, 20, 40, 60, 80]
    model.learn(20, callback=continued)
    assert [steps for steps, _ in continued.history] == [0, 20]
    assert read_history(path) == continued.points


def test_the_best_model_is_the_best_by_success_then_by_return(tmp_path, monkeypatch):
    results = iter([(0.5, 0.0), (1.0, -3.0), (1.0, -2.0), (0.5, 9.0)])

    def scripted(model: Any, *args: Any, **kwargs: Any) -> EvaluationResult:
        success, value = next(results)
        successes = np.array([True, success == 1.0])
        return EvaluationResult(successes, np.full(2, value), np.full(2, 5), model.num_timesteps, 0)

    monkeypatch.setattr("sb3_swfp.callbacks.evaluate_success", scripted)
    callback = SuccessEvalCallback(Line, eval_freq=10, best_model_save_path=tmp_path, verbose=0)
    make_model(normalized=True).learn(30, callback=callback)
    assert callback.best == EvaluationPoint(20, 1.0, -2.0)
    assert DQN.load(tmp_path / "best_model.zip").num_timesteps == 20
    VecNormalize.load(str(tmp_path / "best_vecnormalize.pkl"), DummyVecEnv([Line]))


def test_an_evaluation_does_not_change_the_training_run():
    actions = []
    for callback in (None, SuccessEvalCallback(Line, eval_freq=7, n_eval_episodes=2, verbose=0)):
        model = make_model()  # seeds the global generators, so each model is made just before it learns
        model.learn(30, callback=callback)
        assert model.replay_buffer is not None
        actions.append(model.replay_buffer.actions[:30].copy())
    np.testing.assert_array_equal(*actions)


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_history_files(tmp_path, suffix):
    path = tmp_path / f"curve{suffix}"
    points = [EvaluationPoint(0, 0.25, -1.5), EvaluationPoint(5000, 1.0, 1 / 3)]
    write_history(path, points)
    assert read_history(path) == points
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="curve"):
        read_history(path)
    with pytest.raises(FileNotFoundError):
        read_history(tmp_path / f"missing{suffix}")


def test_impossible_evaluation_arguments():
    with pytest.raises(ValueError, match="eval_freq"):
        SuccessEvalCallback(Line, eval_freq=0)
    with pytest.raises(ValueError, match=r"\.csv or \.npz"):
        SuccessEvalCallback(Line, history_path="curve.json")
