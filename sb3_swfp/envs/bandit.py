"""One-step bandits in two dimensions: a reward of several bumps, and so a known Boltzmann density."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

#: Cells of the square along each side, on which densities are normalised and sampled
GRID = 400
#: Steps of mean shift from each bump's centre to the mode beside it: the bumps hardly overlap, so few are enough
_MEAN_SHIFTS = 50

DEFAULT_CENTRES = ((0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5), (0.5, -0.5))
DEFAULT_HEIGHTS = (1.0, 0.9, 0.85, 0.8)


class Bandit(gym.Env[np.ndarray, np.ndarray]):
    """
    One step, one state, an action ``a`` in ``[-1, 1]^2``, and a smooth reward with several modes:
    ``r(a) = sum_k h_k exp(-|a - c_k|^2 / (2 w^2))``.

    Since the reward is known, so is the maximum-entropy policy, the Boltzmann density ``exp(r / alpha) / Z`` on the
    square. ``info`` has ``regret`` (best reward minus this one), ``best_mode`` (index of the highest bump) and
    ``best_action``.

    :param centres: Centres ``c_k`` of the bumps, ``[K, 2]``, in the square
    :param heights: Heights ``h_k``, ``[K]``, positive: a mode's share of the density grows as ``exp(h_k / alpha)``
    :param width: Standard deviation ``w`` of every bump
    :raises ValueError: if shapes don't fit, a centre lies outside, or a height or the width is not positive
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(
        self,
        centres: Sequence[Sequence[float]] = DEFAULT_CENTRES,
        heights: Sequence[float] = DEFAULT_HEIGHTS,
        width: float = 0.25,
    ) -> None:
        super().__init__()
        self.centres, self.heights, self.width = np.array(centres, float), np.array(heights, float), float(width)
        if self.centres.ndim != 2 or self.centres.shape != (len(self.heights), 2):
            raise ValueError(
                f"centres must have shape (K, 2) and heights (K,), not {self.centres.shape} and {self.heights.shape}"
            )
        if not (np.abs(self.centres) <= 1.0).all():
            raise ValueError(f"centres must lie in the square [-1, 1]^2, not {self.centres.tolist()}")
        if not ((self.heights > 0.0).all() and 0.0 < self.width < math.inf):
            raise ValueError(f"heights and width must be positive, not {self.heights.tolist()} and {width}")
        self.observation_space = spaces.Box(-1.0, 1.0, (1,))
        self.action_space = spaces.Box(-1.0, 1.0, (2,))

    def reward(self, actions: np.ndarray) -> np.ndarray:
        """
        :param actions: Actions, ``[..., 2]``
        :return: Rewards, ``[...]``, as they are now
        """
        return self._bumps(np.asarray(actions, float)).sum(axis=-1)

    def _bumps(self, actions: np.ndarray) -> np.ndarray:
        """Each bump's share of the reward, ``[..., K]``."""
        squares = np.square(actions[..., None, :] - self.centres).sum(axis=-1)
        return self.heights * np.exp(-squares / (2.0 * self.width**2))

    def best_action(self) -> np.ndarray:
        """
        The highest mode, by mean shift (which climbs a sum of Gaussian bumps from wherever it starts; Cheng, IEEE
        PAMI 17, 1995) from every bump's centre.

        :return: The action with the highest reward, ``[2]``
        """
        points = self.centres
        for _ in range(_MEAN_SHIFTS):
            weights = self._bumps(points)
            moved = weights @ self.centres / weights.sum(axis=-1, keepdims=True)
            if np.abs(moved - points).max() < 1e-12:
                break
            points = moved
        return points[self.reward(points).argmax()].copy()

    def log_boltzmann(self, actions: np.ndarray, alpha: float) -> np.ndarray:
        """
        Log-density of the maximum-entropy policy, ``r(a) / alpha - log Z``; ``Z`` by the midpoint rule on ``GRID^2``
        cells.

        :param actions: Actions in the square, ``[..., 2]``
        :param alpha: Entropy coefficient, in units of the reward
        :return: Log-densities, ``[...]``
        :raises ValueError: if ``alpha`` is not positive
        """
        logits = self.reward(_cells()) / _positive(alpha)
        peak = logits.max()
        log_z = peak + math.log(np.exp(logits - peak).sum() * (2.0 / GRID) ** 2)
        return self.reward(actions) / alpha - log_z

    def sample_boltzmann(self, n: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
        """
        Exact samples of the density of :meth:`log_boltzmann`, by rejection: a cell is drawn by a bound on its mass, a
        point in it uniformly, and the point is kept with the probability that corrects the bound.

        :param n: How many
        :param alpha: Entropy coefficient, in units of the reward
        :param rng: Source of randomness
        :return: Actions, ``[n, 2]``
        :raises ValueError: if ``alpha`` is not positive
        """
        cells = _cells()
        # A bump is steepest one width from its centre, so no point of a cell is this much above the cell's centre
        steepest = self.heights.sum() * math.exp(-0.5) / self.width
        slack = steepest * math.sqrt(2.0) / GRID
        rewards = self.reward(cells)
        shares = np.exp((rewards - rewards.max()) / _positive(alpha))
        cumulative = np.cumsum(shares / shares.sum())
        kept: list[np.ndarray] = []
        while sum(map(len, kept)) < n:
            drawn = np.minimum(np.searchsorted(cumulative, rng.random(2 * n + 16)), len(cells) - 1)
            points = cells[drawn] + rng.uniform(-1.0 / GRID, 1.0 / GRID, (len(drawn), 2))
            accepted = np.log(rng.random(len(drawn))) < (self.reward(points) - rewards[drawn] - slack) / alpha
            kept.append(points[accepted])
        return np.concatenate(kept)[:n]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of the environment's generator
        :param options: Not used
        :return: The one observation there is, and no information
        """
        super().reset(seed=seed)
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Action, ``[2]``
        :return: Observation, reward, True (the episode has one step), False, information
        """
        reward, best = float(self.reward(action)), self.best_action()
        info = {
            "regret": float(self.reward(best)) - reward,
            "best_mode": int(self.heights.argmax()),
            "best_action": best,
        }
        return self._observation(), reward, True, False, info

    @staticmethod
    def _observation() -> np.ndarray:
        return np.zeros(1, dtype=np.float32)


class ShiftingBandit(Bandit):
    """
    A bandit whose best mode moves with the steps taken in it. The clock starts at a reset *with* a seed (Stable-
    Baselines3 seeds an environment once, when training begins) and runs on over all other resets.

    :param schedule: ``"turn"``: all bumps turn together about the centre of the square, counter-clockwise, one turn a
        period; ``"switch"``: the bumps stay, their heights move on by one bump each period
    :param period: Environment steps
    :param hold: Steps for which nothing moves, at the start
    :param kwargs: Arguments of :class:`Bandit`: the bandit at the start
    :raises ValueError: for another schedule, a period below 1, a negative hold, or a bump that would leave the square
    """

    def __init__(self, schedule: str = "turn", period: int = 16_000, hold: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if schedule not in ("turn", "switch"):
            raise ValueError(f'schedule must be "turn" or "switch", not {schedule!r}')
        if period < 1 or hold < 0:
            raise ValueError(f"period must be at least 1 and hold at least 0, got {period} and {hold}")
        if schedule == "turn" and not (np.linalg.norm(self.centres, axis=1) <= 1.0).all():
            raise ValueError(f"centres that turn must lie in the unit disc, not {self.centres.tolist()}")
        self.schedule, self.period, self.hold = schedule, period, hold
        self._first_centres, self._first_heights = self.centres, self.heights
        self.env_steps = 0

    def move_to(self, env_steps: int) -> None:
        """
        Set the clock, and with it the reward.

        :param env_steps: Environment steps taken
        """
        self.env_steps = env_steps
        periods = max(env_steps - self.hold, 0) / self.period
        if self.schedule == "switch":
            self.heights = np.roll(self._first_heights, int(periods))
            return
        cosine, sine = math.cos(2.0 * math.pi * periods), math.sin(2.0 * math.pi * periods)
        self.centres = self._first_centres @ np.array([[cosine, sine], [-sine, cosine]])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """
        :param seed: Seed of the environment's generator; if given, the clock starts again
        :param options: Not used
        :return: The one observation there is, and no information
        """
        if seed is not None:
            self.move_to(0)
        return super().reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """
        :param action: Action, ``[2]``
        :return: Observation, reward (before the clock moves on), True, False, information
        """
        result = super().step(action)
        self.move_to(self.env_steps + 1)
        return result


def _cells() -> np.ndarray:
    """Centres of the grid's cells, ``[GRID^2, 2]``."""
    ticks = (np.arange(GRID) + 0.5) * (2.0 / GRID) - 1.0
    return np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)


def _positive(alpha: float) -> float:
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"alpha must be a positive number, not {alpha}")
    return alpha
