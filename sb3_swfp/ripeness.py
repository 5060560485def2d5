"""When may a critic be trusted? A measured sign."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CriticRipeness:
    """
    The critic's values, tracked by a fast and a slow moving average.

    A critic that has just begun climbs: its mean value still drifts by a good part of its own size per thousand
    updates. Its gradient then points wherever the climb does. It ranks actions before it points the right way, so
    competition among candidates starts earlier, at a larger drift, than the blocks' own movement. (On AdroitHandPen the
    drift was 0.28 after 2,500 updates, 0.08 after 5,000 and 0.01 after 20,000: ``docs/experiments.md``.)

    :param updates: Critic updates seen
    :param fast: Mean Q over about 200 updates
    :param slow: Mean Q over about 1,000 updates
    :param magnitude: Mean absolute target over about 200 updates, the size of the Q signal
    """

    updates: int = 0
    fast: float = 0.0
    slow: float = 0.0
    magnitude: float = 0.0

    #: Drift below which the critic may rank candidates, and below which the blocks may follow its gradient
    RANK_BELOW, POINT_BELOW = 0.3, 0.15

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

    def can_rank(self, warmup: int) -> bool:
        """
        :param warmup: Updates that the critic gets in any case
        """
        return self.updates >= warmup and self.drift < self.RANK_BELOW

    def can_point(self, warmup: int) -> bool:
        """
        :param warmup: Updates that the critic gets before its ranking is used; twice as many before its gradient is
        """
        return self.updates >= 2 * warmup and self.drift < self.POINT_BELOW
