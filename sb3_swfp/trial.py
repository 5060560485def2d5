"""The critic's trial: by lot, in which episodes it picks among candidates, and what they return."""

from __future__ import annotations

from typing import Any

import numpy as np


class CriticTrial:
    """
    In each environment episodes come in pairs: the critic picks in one of the two, and a lot decides in which. (With a
    lot for every episode, a critic on AdroitHandDoor waited 17 episodes of 200 steps for its fifth of each kind.)
    Rewards are added up here, so that environments without a ``Monitor`` are judged too.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int):
        self.picking = np.zeros(n_envs, dtype=bool)
        self._returns = np.zeros(n_envs)
        # Whether the next episode of an environment is the second of two, and so of the other kind
        self._second = np.zeros(n_envs, dtype=bool)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Files of before there were pairs
        self.__dict__.update({"_second": np.zeros_like(state["picking"])} | state)

    def step(self, rewards: np.ndarray, dones: np.ndarray, on_trial: bool) -> list[tuple[float, bool]]:
        """
        :param rewards: Unnormalised rewards of a step, ``[n_envs]``
        :param dones: Which episodes ended with it, ``[n_envs]``
        :param on_trial: Whether the critic is on trial; if not, it picks in none of the episodes that begin now
        :return: Return of each episode that ended, and whether the critic picked in it
        """
        self._returns += rewards
        ended = [(float(self._returns[i]), bool(self.picking[i])) for i in np.flatnonzero(dones)]
        self._returns[dones] = 0.0
        # The global generator, which SB3 seeds: the same seed draws the same lots
        lots = np.where(self._second[dones], ~self.picking[dones], np.random.random(int(dones.sum())) < 0.5)
        self.picking[dones] = lots & on_trial
        self._second[dones] = ~self._second[dones] & on_trial
        return ended
