"""The critic's trial: by lot, in which episodes it picks among candidates, and what they return."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Episodes per environment that may wait for one that began before them: one that never ends must not hold the verdict
#: back for ever
_MOST_WAITING = 20


class CriticTrial:
    """
    In each environment episodes come in pairs: the critic picks in one of the two, and a lot decides in which. (With a
    lot for every episode, a critic on AdroitHandDoor waited 17 episodes of 200 steps for its fifth of each kind.)
    Rewards are added up here, so that environments without a ``Monitor`` are judged too.

    Several environments report in the order in which their episodes began: in the order of their ends the short ones
    would come first, and where an episode ends with its success, or with a fall, these are not like the others. At most
    20 per environment wait for an episode that is still open.

    :param n_envs: Number of environments
    """

    def __init__(self, n_envs: int):
        self.picking = np.zeros(n_envs, dtype=bool)
        self._returns = np.zeros(n_envs)
        # Whether the next episode of an environment is the second of two, and so of the other kind
        self._second = np.zeros(n_envs, dtype=bool)
        # Number of each environment's episode, the next one's, and those that wait for episodes begun before them
        self._numbers, self._next_number = np.arange(n_envs), n_envs
        self._waiting: dict[int, tuple[float, bool] | None] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Files of before there were pairs, or numbers
        n_envs = len(state["picking"])
        new = {"_second": np.zeros(n_envs, dtype=bool), "_numbers": np.arange(n_envs)}
        self.__dict__.update(new | {"_next_number": n_envs, "_waiting": {}} | state)

    def step(self, rewards: np.ndarray, dones: np.ndarray, on_trial: bool) -> list[tuple[float, bool]]:
        """
        :param rewards: Unnormalised rewards of a step, ``[n_envs]``
        :param dones: Which episodes ended with it, ``[n_envs]``
        :param on_trial: Whether the critic is on trial; if not, it picks in none of the episodes that begin now, and
            those in which it did do not count: they may be half and half
        :return: Return of each episode that ended and whether the critic picked in it, as a rule once all that began
            before it have ended as well
        """
        self._returns += rewards
        for i in np.flatnonzero(dones):
            picked = bool(self.picking[i])
            self._waiting[int(self._numbers[i])] = (float(self._returns[i]), picked) if on_trial or not picked else None
            self._numbers[i], self._next_number = self._next_number, self._next_number + 1
        self._returns[dones] = 0.0
        # The global generator, which SB3 seeds: the same seed draws the same lots
        lots = np.where(self._second[dones], ~self.picking[dones], np.random.random(int(dones.sum())) < 0.5)
        self.picking[dones] = lots & on_trial
        self._second[dones] = ~self._second[dones] & on_trial
        oldest, numbers = self._numbers.min(), sorted(self._waiting)
        too_many = len(numbers) - _MOST_WAITING * len(self.picking)
        reported = [self._waiting.pop(n) for i, n in enumerate(numbers) if n < oldest or i < too_many]
        return [episode for episode in reported if episode is not None]
