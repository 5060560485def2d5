"""
When may a critic be trusted? Two measured signs: its values have settled, and its picks pay in the environment, or the
clone is worth too little for that to matter.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from statistics import fmean

import numpy as np

#: Drift below which the critic may be tried, and below which the blocks may follow its gradient
TRY_BELOW, POINT_BELOW = 0.3, 0.15
#: Episodes of each kind that a verdict needs, and how many of the latest it looks at
_MIN_EPISODES, _WINDOW = 5, 20
#: Share of the demonstrations' return below which a clone has little to lose: on the door with human demonstrations one
#: that succeeds in 8 % of its episodes was protected from the picks for a whole run (docs/experiments-human-door.md)
_LITTLE = 0.15


def _episodes() -> deque[float]:
    return deque(maxlen=_WINDOW)


@dataclass
class CriticRipeness:
    """
    The critic's values, tracked by a fast and a slow moving average, and the returns with and without its picks.

    A critic that has just begun climbs: its mean value still drifts by a good part of its own size per thousand
    updates, and its gradient points wherever the climb does. (On AdroitHandPen the drift was 0.28 after 2,500 updates,
    0.08 after 5,000 and 0.01 after 20,000: ``docs/experiments.md``.) A settled critic can still rank wrongly: on
    FetchPickAndPlace one with a drift of 0.06 halved a clone's success. So once it has settled it is tried: in one of
    every two episodes, by lot, it picks among the candidates, and it is ripe to rank once these return as much, or once
    20 episodes without them have shown that the clone has little to lose, and 5 with them that they do not cost more.

    :param updates: Critic updates seen
    :param fast: Mean Q over about 200 updates
    :param slow: Mean Q over about 1,000 updates
    :param magnitude: Mean absolute target over about 200 updates, the size of the Q signal
    :param with_picks: Returns of the latest episodes in which the critic picked, while it was tried
    :param without_picks: Returns of the latest episodes in which it did not, those before it was tried included
    :param demonstrated_return: Mean undiscounted return of the demonstrations, if there are any
    :param lowest_return: The lowest of their returns
    :param clone_episodes: Number of episodes in which the critic did not pick, before it was ripe
    :param clone_return: Their mean return: of all, since it is one and the same clone that plays them, and none counted
        higher than the demonstrations' mean
    :param clone_lowest: The lowest of their returns
    """

    updates: int = 0
    fast: float = 0.0
    slow: float = 0.0
    magnitude: float = 0.0
    with_picks: deque[float] = field(default_factory=_episodes)
    without_picks: deque[float] = field(default_factory=_episodes)
    demonstrated_return: float = math.nan
    lowest_return: float = math.nan
    clone_episodes: int = 0
    clone_return: float = 0.0
    clone_lowest: float = math.inf

    def begin(self, demonstrated_returns: np.ndarray) -> None:
        """
        A new clone: what was played before was another one's.

        :param demonstrated_returns: Undiscounted return of each demonstration, ``[n_episodes]``
        """
        self.with_picks.clear()
        self.without_picks.clear()
        self.clone_episodes, self.clone_return, self.clone_lowest = 0, 0.0, math.inf
        self.demonstrated_return = float(demonstrated_returns.mean())
        self.lowest_return = float(demonstrated_returns.min())

    def update(self, q_mean: float, target_magnitude: float) -> None:
        """
        :param q_mean: Mean Q of a batch
        :param target_magnitude: Mean absolute target of the batch
        """
        self.updates += 1
        # Plain means at first, so that nothing remembers the zeros
        self.fast += (q_mean - self.fast) / min(self.updates, 200)
        self.slow += (q_mean - self.slow) / min(self.updates, 1000)
        self.magnitude += (target_magnitude - self.magnitude) / min(self.updates, 200)

    @property
    def drift(self) -> float:
        """How far the values moved of late, relative to their size."""
        return abs(self.fast - self.slow) / max(self.magnitude, 1e-6)

    def settled(self, warmup: int) -> bool:
        """
        May the critic be tried?

        :param warmup: Updates that it gets in any case; in the first 200 the two averages are one, and no drift shows
        """
        return self.updates >= warmup and self.drift < TRY_BELOW

    def may_point(self, warmup: int) -> bool:
        """
        May the blocks follow the critic's gradient, once it is ripe to rank?

        :param warmup: Updates that the critic gets before it is tried; its gradient waits twice as long
        """
        return self.updates >= 2 * warmup and self.drift < POINT_BELOW

    def add_episode(self, episode_return: float, picked: bool) -> None:
        """
        :param episode_return: Undiscounted return of an episode played before the critic was ripe
        :param picked: Whether the critic picked among candidates in it
        """
        (self.with_picks if picked else self.without_picks).append(episode_return)
        if not picked:
            self.clone_episodes += 1
            self.clone_return += (self._capped(episode_return) - self.clone_return) / self.clone_episodes
            self.clone_lowest = min(self.clone_lowest, episode_return)

    @property
    def picks_pay(self) -> bool:
        """
        Whether the latest episodes with the critic's picks returned at least as much. (Asking for half a standard error
        more kept a pen-turning critic waiting for more than 15,000 steps.)
        """
        if min(len(self.with_picks), len(self.without_picks)) < _MIN_EPISODES:
            return False
        return fmean(self.with_picks) >= fmean(self.without_picks)

    @property
    def little_to_lose(self) -> bool:
        """
        Whether the trial may end although the picks did not pay: over 20 episodes or more the clone reached less than
        15 % of the demonstrations' mean return, and the latest with the picks, 5 or more, cost no more than that. A
        clone that succeeds now and then can be ahead by a success or two for as long as it is on trial, and until that
        ends its blocks stand still. Returns count from what is worth nothing: the lowest of any episode, demonstrated
        or the clone's own, or 0 if all are above; and no higher than the demonstrations' mean, so that the 15 % are
        about how often the clone does as well as these do on average. (Where most demonstrations fail their mean is
        low, and a single success, worth three times as much, held a trial up for 20,000 steps:
        docs/experiments-drift.md. The price: a clone of demonstrations of which less than 15 % succeed is let go.)
        """
        if (
            len(self.with_picks) < _MIN_EPISODES
            or self.clone_episodes < _WINDOW
            or math.isnan(self.demonstrated_return)
        ):
            return False
        nothing = min(0.0, self.lowest_return, self.clone_lowest)
        least = _LITTLE * (self.demonstrated_return - nothing)
        # Picks can return less than "nothing": a robot that falls
        cost = self.clone_return - fmean(map(self._capped, self.with_picks))
        return self.clone_return - nothing < least and cost < least

    def _capped(self, episode_return: float) -> float:
        # Without demonstrations the cap is NaN, and min() keeps its first argument
        return min(episode_return, self.demonstrated_return)
