"""Fixed-episode evaluation: which episodes, which success rule, and what it leaves untouched."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_swfp.evaluation import evaluate_success


class Countdown(gym.Env):
    """
    Lasts 3 to 6 steps by its seed; the return is the sum of actions, the first observation a seeded number.

    :param key: the info key that tells success, on even seeds only
    :param when: step at which success shows, counted from 1 (-1: at the last step)
    :param as_dict: whether observations are dictionaries
    """

    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, key: str = "is_success", when: int = -1, as_dict: bool = False) -> None:
        box = spaces.Box(-np.inf, np.inf, (2,))
        self.observation_space = spaces.Dict({"state": box}) if as_dict else box
        self.key, self.when, self.as_dict = key, when, as_dict
        self.seeds: list[int | None] = []
        self.closed = False

    def _observation(self) -> Any:
        observation = np.array([self.start, self.t], dtype=np.float32)
        return {"state": observation} if self.as_dict else observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.seed_now = -1 if seed is None else seed
        self.start, self.t = self.np_random.random(), 0
        self.length = 3 + self.seed_now % 4
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        shows_at = self.length if self.when == -1 else self.when
        info = {self.key: self.seed_now % 2 == 0 and self.t == shows_at}
        done = self.t == self.length
        return self._observation(), float(action[0]), done and self.seed_now % 3 == 0, done, info

    def close(self) -> None:
        self.closed = True


class Actor:
    """Acts by the first number of the observation (or with torch's noise), and keeps what it was shown."""

    num_timesteps = 123

    def __init__(self) -> None:
        self.seen: list[np.ndarray] = []

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, None]:
        values = observation["state"] if isinstance(observation, dict) else observation
        self.seen.append(np.array(values))
        actions = np.clip(values[:, :1], -1, 1)
        return (actions if deterministic else actions + th.randn(len(actions), 1).numpy()), None


def test_same_episodes_whatever_the_number_of_environments():
    one = evaluate_success(Actor(), Countdown(), n_episodes=11, seed=40)
    many = evaluate_success(Actor(), Countdown, n_episodes=11, seed=40, n_envs=4)
    for name in ("successes", "returns", "lengths"):
        np.testing.assert_allclose(getattr(one, name), getattr(many, name))
    np.testing.assert_array_equal(one.lengths, [3 + (40 + i) % 4 for i in range(11)])
    np.testing.assert_array_equal(one.successes, [(40 + i) % 2 == 0 for i in range(11)])
    assert one.success_rate == pytest.approx(6 / 11)
    assert one.mean_return == pytest.approx(one.returns.mean())
    assert (one.n_episodes, one.timesteps, one.seed) == (11, 123, 40)
    assert "55 % of 11 episodes" in str(one)


def test_each_seed_is_used_once_and_live_environments_share_one_predict():
    envs = [Countdown() for _ in range(3)]
    actor = Actor()
    result = evaluate_success(actor, envs, n_episodes=8, seed=100)
    assert sorted(seed for env in envs for seed in env.seeds) == list(range(100, 108))
    assert sum(map(len, actor.seen)) == result.lengths.sum()
    assert len(actor.seen) < result.lengths.sum()
    assert max(map(len, actor.seen)) == 3
    assert not any(env.closed for env in envs), "environments of the caller stay open"


def test_environments_made_here_are_closed_also_after_an_error():
    made: list[Countdown] = []

    def make() -> Countdown:
        made.append(Countdown(key="done_well"))
        return made[-1]

    with pytest.raises(ValueError, match=r"is_success.*done_well.*success_key"):
        evaluate_success(Actor(), make, n_episodes=5)
    assert made and all(env.closed for env in made)


@pytest.mark.parametrize(
    ("key", "when", "rule", "expected"),
    [
        ("is_success", 1, None, 0.0),  # Fetch: passing through the goal does not count
        ("is_success", -1, None, 0.5),
        ("is_success", 1, "any", 0.5),
        ("success", 1, None, 0.5),  # Adroit: opened once is opened
        ("success", 1, "last", 0.0),
    ],
)
def test_success_rules(key, when, rule, expected):
    result = evaluate_success(Actor(), Countdown(key, when), n_episodes=4, success_rule=rule)
    assert result.success_rate == expected


def test_success_key_of_ones_own():
    result = evaluate_success(Actor(), Countdown("solved"), n_episodes=4, success_key="solved")
    assert result.success_rate == 0.5


def test_dictionary_observations():
    plain = evaluate_success(Actor(), Countdown(), n_episodes=5)
    as_dict = evaluate_success(Actor(), lambda: Countdown(as_dict=True), n_episodes=5)
    np.testing.assert_allclose(plain.returns, as_dict.returns)


def test_stochastic_actions_are_repeatable_and_leave_torch_alone():
    th.manual_seed(7)
    expected = th.rand(3)
    th.manual_seed(7)
    first = evaluate_success(Actor(), Countdown(), n_episodes=5, deterministic=False)
    second = evaluate_success(Actor(), Countdown(), n_episodes=5, deterministic=False)
    np.testing.assert_array_equal(first.returns, second.returns)
    assert th.equal(th.rand(3), expected)


@pytest.mark.parametrize("from_model", [True, False])
def test_observations_are_normalised_and_the_statistics_stay(from_model):
    normalize = VecNormalize(DummyVecEnv([Countdown]))
    normalize.obs_rms.mean = np.array([5.0, 1.0])
    normalize.obs_rms.var = np.array([4.0, 1.0])
    actor = Actor()
    if from_model:
        actor.get_vec_normalize_env = lambda: normalize  # type: ignore[attr-defined]
    evaluate_success(actor, Countdown(), n_episodes=2, vec_normalize=None if from_model else normalize)
    raw = Actor()
    evaluate_success(raw, Countdown(), n_episodes=2)
    np.testing.assert_allclose(actor.seen[0], (raw.seen[0] - [5.0, 1.0]) / [2.0, 1.0], rtol=1e-5)
    np.testing.assert_array_equal(normalize.obs_rms.mean, [5.0, 1.0])


def test_impossible_arguments():
    with pytest.raises(ValueError, match="n_episodes and n_envs"):
        evaluate_success(Actor(), Countdown(), n_episodes=0)
    with pytest.raises(ValueError, match="n_episodes and n_envs"):
        evaluate_success(Actor(), Countdown, n_envs=0)
    with pytest.raises(ValueError, match="'any' or 'last'"):
        evaluate_success(Actor(), Countdown(), success_rule="first")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="VecEnv"):
        evaluate_success(Actor(), DummyVecEnv([Countdown]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="env must be"):
        evaluate_success(Actor(), [])
