"""Success over a fixed set of episodes: the same initial states at every evaluation, so that curves can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from tqdm.auto import tqdm

SuccessRule = Literal["any", "last"]
EnvSource = str | gym.Env | Callable[[], gym.Env] | Sequence[gym.Env]

# What an info key means by convention: the Fetch robots ask where the object is when the episode ends (it may pass
# through the goal on its way), the Adroit hands whether the door was ever opened.
SUCCESS_RULES: Mapping[str, SuccessRule] = {"is_success": "last", "success": "any"}


@dataclass(frozen=True)
class EvaluationResult:
    """
    One evaluation over fixed episodes; entry ``i`` of each array belongs to the episode reset with ``seed + i``.

    :param successes: whether the episode succeeded, bool [n_episodes]
    :param returns: undiscounted sum of rewards, float [n_episodes]
    :param lengths: steps of the episode, int [n_episodes]
    :param timesteps: the model's ``num_timesteps`` when it was evaluated (0 for a model that does not count)
    :param seed: seed of the first episode
    """

    successes: np.ndarray
    returns: np.ndarray
    lengths: np.ndarray
    timesteps: int
    seed: int

    @property
    def n_episodes(self) -> int:
        """How many episodes were run."""
        return len(self.successes)

    @property
    def success_rate(self) -> float:
        """Share of the episodes that succeeded, in [0, 1]."""
        return float(np.mean(self.successes))

    @property
    def mean_return(self) -> float:
        """Mean undiscounted return."""
        return float(np.mean(self.returns))

    def __str__(self) -> str:
        return (
            f"success {100 * self.success_rate:.0f} % of {self.n_episodes} episodes, mean return {self.mean_return:.2f}"
        )


def evaluate_success(
    model: PolicyPredictor,
    env: EnvSource,
    n_episodes: int = 50,
    seed: int = 10_000,
    deterministic: bool = True,
    *,
    n_envs: int = 10,
    success_key: str | None = None,
    success_rule: SuccessRule | None = None,
    vec_normalize: VecNormalize | None = None,
    progress_bar: bool = False,
) -> EvaluationResult:
    """
    Run fixed episodes and report success: episode ``i`` always starts from ``env.reset(seed=seed + i)``.

    Several environments are stepped side by side with one ``model.predict`` for all of them. torch's random state is
    put back afterwards, so an evaluation in the middle of a training run does not change the run.

    :param model: anything with SB3's ``predict`` that does not carry a recurrent state
    :param env: environment id, factory, environment, or list of environments. Those made here are closed here.
    :param n_episodes: number of episodes
    :param seed: seed of the first episode; also torch's seed for stochastic actions
    :param deterministic: whether to ask the model for deterministic actions
    :param n_envs: environments to make side by side when ``env`` is an id or a factory
    :param success_key: key of the step's ``info`` that tells success. Default: ``"is_success"``, else ``"success"``.
    :param success_rule: ``"last"`` reads the last step of the episode, ``"any"`` is content with one step. Default: by
        the key's convention (:data:`SUCCESS_RULES`), ``"last"`` for other keys.
    :param vec_normalize: statistics to normalise the observations with. Default: those of the model's own
        environment, if it has any.
    :param progress_bar: show a bar that counts the episodes
    :return: success, return and length of every episode
    :raises ValueError: if an argument is impossible, or if no step of an episode tells success
    """
    if n_episodes < 1 or n_envs < 1:
        raise ValueError(f"n_episodes and n_envs must be at least 1, got {n_episodes} and {n_envs}")
    if success_rule not in (None, "any", "last"):
        raise ValueError(f"success_rule must be 'any' or 'last', got {success_rule!r}")
    if vec_normalize is None and hasattr(model, "get_vec_normalize_env"):
        vec_normalize = model.get_vec_normalize_env()
    envs, made_here = make_envs(env, min(n_envs, n_episodes))
    episodes = [_Episode(seed + i, success_key, success_rule) for i in range(n_episodes)]
    try:
        with _own_random_state(model, seed), tqdm(total=n_episodes, desc="evaluation", disable=not progress_bar) as bar:
            _run(model, envs, episodes, deterministic, vec_normalize, bar)
    finally:
        if made_here:
            close_envs(envs)
    return EvaluationResult(
        successes=np.array([episode.success for episode in episodes]),
        returns=np.array([episode.total_reward for episode in episodes]),
        lengths=np.array([episode.length for episode in episodes]),
        timesteps=int(getattr(model, "num_timesteps", 0)),
        seed=seed,
    )


def make_envs(env: EnvSource, n_envs: int) -> tuple[list[gym.Env], bool]:
    """
    Make a list of environments out of what the user gave.

    :param env: environment id, factory, environment, or list of environments
    :param n_envs: how many to make from an id or a factory; of environments that exist at most as many are used
    :return: the environments, and whether they were made here (whoever makes environments closes them)
    :raises ValueError: if ``env`` is a vectorised environment, an empty list, or something else altogether
    """
    if isinstance(env, VecEnv):
        raise ValueError(
            "evaluation chooses each episode's seed, but an SB3 VecEnv resets by itself: pass the environment's id, "
            "a function that makes it, or a list of gymnasium environments (and vec_normalize=... for statistics)"
        )
    if isinstance(env, str):
        return [gym.make(env) for _ in range(n_envs)], True
    if isinstance(env, gym.Env):
        return [env], False
    if callable(env):
        return [env() for _ in range(n_envs)], True
    if isinstance(env, Sequence):
        given = [one for one in env if isinstance(one, gym.Env)]
        if given and len(given) == len(env):
            return given[:n_envs], False
    raise ValueError(
        f"env must be an environment id, a function that makes one, or gymnasium environments, got {env!r}"
    )


def close_envs(envs: Sequence[gym.Env]) -> None:
    """
    Close every environment.

    :param envs: the environments
    """
    for env in envs:
        env.close()


class _Episode:
    """What is known about one episode while it runs."""

    def __init__(self, seed: int, success_key: str | None, success_rule: SuccessRule | None) -> None:
        self.seed = seed
        self.success_key = success_key
        self.success_rule = success_rule
        self.success: bool | None = None
        self.total_reward = 0.0
        self.length = 0

    def add(self, reward: float, info: dict[str, Any]) -> None:
        """Take one step's reward and success into account."""
        self.total_reward += float(reward)
        self.length += 1
        if self.success_key is None:
            self.success_key = next((key for key in SUCCESS_RULES if key in info), None)
        if self.success_key is None or self.success_key not in info:
            return
        now = bool(info[self.success_key])
        rule = self.success_rule or SUCCESS_RULES.get(self.success_key, "last")
        self.success = now or (rule == "any" and bool(self.success))

    def check(self, info: dict[str, Any]) -> None:
        """Raise if the episode ended without a word on success."""
        if self.success is None:
            looked_for = [self.success_key] if self.success_key else list(SUCCESS_RULES)
            raise ValueError(
                f"no step of the episode with seed {self.seed} has any of {looked_for} in its info (the last one has "
                f"{sorted(info)}): name the key that tells success with success_key=..."
            )


def _run(
    model: PolicyPredictor,
    envs: Sequence[gym.Env],
    episodes: Sequence[_Episode],
    deterministic: bool,
    vec_normalize: VecNormalize | None,
    bar: tqdm,
) -> None:
    """Run the episodes to their ends; an environment whose episode has ended takes the next one that waits."""
    waiting = iter(episodes)
    live: list[tuple[gym.Env, _Episode, Any]] = []  # environment, episode, its current observation
    for env, episode in zip(envs, waiting, strict=False):
        live.append((env, episode, env.reset(seed=episode.seed)[0]))
    while live:
        observations = _stack([observation for _, _, observation in live])
        if vec_normalize is not None:
            observations = vec_normalize.normalize_obs(observations)
        actions, _ = model.predict(observations, deterministic=deterministic)
        still_live = []
        for (env, episode, _), action in zip(live, actions, strict=True):
            observation, reward, terminated, truncated, info = env.step(action)
            episode.add(float(reward), info)
            if terminated or truncated:
                episode.check(info)
                bar.update()
                following = next(waiting, None)
                if following is None:
                    continue
                episode, observation = following, env.reset(seed=following.seed)[0]
            still_live.append((env, episode, observation))
        live = still_live


def _stack(observations: Sequence[Any]) -> Any:
    """Stack single observations, arrays or dictionaries of arrays, along a new first axis."""
    if isinstance(observations[0], Mapping):
        return {key: np.stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)


@contextmanager
def _own_random_state(model: PolicyPredictor, seed: int) -> Iterator[None]:
    """Random numbers drawn inside come from ``seed``; torch's generators are as before afterwards."""
    device = th.device(getattr(model, "device", "cpu"))
    with th.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        th.manual_seed(seed)
        yield
