"""SB3's callbacks and loggers with SWFP."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tiny import Mirror, mirror_demonstrations, same, tiny_model, weights, with_demonstrations

from sb3_swfp import SWFP

#: What reaches TensorBoard (docs/metrics.md), with demonstrations and entropy switched on
KEYS = {
    "actor_learning_rate",
    "actor_loss",
    "critic_loss",
    "demonstration_share",
    "energy",
    "ent_coef",
    "entropy",
    "jko_step_size",
    "learning_rate",
    "q_mean",
    "staleness",
    "transport_cost_block_1",
    "transport_cost_block_2",
    "w2_bound",
    "w2_exact",
    "w2_paired",
}


def test_all_together(tmp_path: pathlib.Path) -> None:
    stop_on_reward = StopTrainingOnRewardThreshold(reward_threshold=1e9, verbose=0)
    no_improvement = StopTrainingOnNoModelImprovement(max_no_improvement_evals=100)
    evaluation = EvalCallback(
        DummyVecEnv([Mirror]),
        callback_on_new_best=stop_on_reward,
        callback_after_eval=no_improvement,
        eval_freq=20,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    checkpoints = CheckpointCallback(30, str(tmp_path / "checkpoints"), save_replay_buffer=True, save_vecnormalize=True)
    calls: list[int] = []
    every = EveryNTimesteps(20, CallbackList([]))
    model = tiny_model(Mirror())
    model.learn(
        60,
        callback=[evaluation, checkpoints, every, ConvertCallback(lambda *_: calls.append(0) or True)],
        progress_bar=True,
    )
    assert len(calls) == 60 and evaluation.n_calls == 60
    with np.load(tmp_path / "evaluations.npz") as results:
        assert results["timesteps"].tolist() == [20, 40, 60] and results["results"].shape == (3, 2)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert {"rl_model_30_steps.zip", "rl_model_60_steps.zip", "rl_model_replay_buffer_60_steps.pkl"} <= names
    best = SWFP.load(tmp_path / "best_model.zip", env=Mirror())
    assert best.predict(np.zeros(2, np.float32))[0].shape == (2,)
    last = SWFP.load(tmp_path / "checkpoints" / "rl_model_60_steps.zip")
    assert last.num_timesteps == 60
    # A callback sees step 60 before its update
    assert last._n_updates == 39 and model._n_updates == 40


def test_reward_threshold_stops() -> None:
    evaluation = EvalCallback(
        Mirror(), callback_on_new_best=StopTrainingOnRewardThreshold(-1e9, verbose=0), eval_freq=10, verbose=0
    )
    with pytest.warns(UserWarning, match="not of the same type|not wrapped"):
        assert tiny_model(Mirror()).learn(60, callback=evaluation).num_timesteps == 10


def test_episode_limit_and_false_stop() -> None:
    model = tiny_model(Mirror(), learning_starts=100)
    assert model.learn(60, callback=StopTrainingOnMaxEpisodes(3, verbose=0)).num_timesteps == 30
    assert model.learn(60, callback=lambda *_: False).num_timesteps == 1


def test_normalised_checkpoints(tmp_path: pathlib.Path) -> None:
    env = VecNormalize(DummyVecEnv([Mirror]))
    tiny_model(env).learn(30, callback=CheckpointCallback(30, str(tmp_path), save_vecnormalize=True))
    loaded = VecNormalize.load(str(tmp_path / "rl_model_vecnormalize_30_steps.pkl"), DummyVecEnv([Mirror]))
    assert loaded.obs_rms.count == env.obs_rms.count  # type: ignore[union-attr]


def test_callbacks_see_the_rollout() -> None:
    class Watch(BaseCallback):
        seen: list[Any] = []

        def _on_step(self) -> bool:
            assert self.training_env is self.model.get_env()
            assert self.locals["actions"].shape == (1, 2) and self.num_timesteps == self.model.num_timesteps
            self.seen.append(self.locals["new_obs"])
            return True

    watch = Watch()
    tiny_model(Mirror()).learn(30, callback=watch)
    assert len(watch.seen) == 30


def test_progress_bar_also_while_pretraining(capfd: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(Mirror())
    model.pretrain(mirror_demonstrations(2), gradient_steps=10, critic_gradient_steps=5, progress_bar=True)
    shown = capfd.readouterr()
    assert "Cloning" in shown.err and "Training the critics" in shown.err
    model.pretrain(mirror_demonstrations(2), gradient_steps=10)
    assert "Cloning" not in capfd.readouterr().err


def test_evaluating_leaves_the_model_alone() -> None:
    class Same(BaseCallback):
        def _on_step(self) -> bool:
            before = weights(self.model.policy)
            self.model.predict(np.zeros((3, 2), np.float32), deterministic=True)
            return same(before, weights(self.model.policy))

    assert tiny_model(Mirror()).learn(40, callback=Same()).num_timesteps == 40


def test_logs_of_a_clone(tmp_path: pathlib.Path) -> None:
    """While its blocks wait for the critic the logs say nothing of them, but they do of cloning and of the critic."""
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(3)))
    model.set_logger(configure(str(tmp_path), ["csv", "json", "log"]))
    model.pretrain(gradient_steps=100, critic_gradient_steps=5)
    model.learn(60, log_interval=1)
    model.logger.close()
    expected = {"pretrain/train_loss", "pretrain/validation_loss", "pretrain/best_step", "pretrain/critic_loss"}
    expected |= {"train/critic_loss", "train/q_mean", "train/demonstration_share", "rollout/ep_rew_mean"}
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert expected <= set().union(*rows)
    assert expected <= set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))
    assert "critic_loss" in (tmp_path / "log.txt").read_text()


def test_every_promised_key_is_logged(tmp_path: pathlib.Path) -> None:
    model = tiny_model(Mirror(), **with_demonstrations(mirror_demonstrations(3)))
    model.set_logger(configure(str(tmp_path), ["csv", "json"]))
    model.learn(60, log_interval=1)
    model.logger.close()  # open files would warn in whichever test they are collected in
    rows = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    expected = {f"train/{key}" for key in KEYS} | {"time/total_timesteps", "rollout/ep_rew_mean"}
    assert expected <= set(rows[-1]) and all(np.isfinite(rows[-1][key]) for key in expected)
    assert expected <= set((tmp_path / "progress.csv").read_text().splitlines()[0].split(","))


def test_tensorboard(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = tiny_model(Mirror(), tensorboard_log=str(tmp_path), **with_demonstrations(mirror_demonstrations(3)))
    model.learn(60, log_interval=1)
    model.learn(20, reset_num_timesteps=False, log_interval=1)
    model.pretrain(gradient_steps=100)
    model.learn(30, tb_log_name="tuned")
    assert {path.name for path in tmp_path.iterdir()} == {"SWFP_1", "SWFP_pretrain_1", "tuned_1"}
    events = EventAccumulator(str(tmp_path / "SWFP_1")).Reload()
    assert {f"train/{key}" for key in KEYS} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/critic_loss")][-1] == 80
    events = EventAccumulator(str(tmp_path / "SWFP_pretrain_1")).Reload()
    assert "pretrain/validation_loss" in events.Tags()["scalars"]
