"""Exploration that is correlated in time, without a change of the policy."""

from __future__ import annotations

import math

import numpy as np
import torch as th


class CorrelatedNoise:
    """
    The flow's noise ``x_0`` as a stationary process: ``x_0(t + 1) = c x_0(t) + sqrt(1 - c^2) e``, ``e ~ N(0, I)``.

    At every step ``x_0`` is a sample of ``N(0, I)``, so every action is a sample of the policy; but actions that
    follow one another come from neighbouring noise, as where a person goes on trying one thing for a while. White noise
    averages out in systems that integrate it (Eberhard et al., "Pink noise is all you need", ICLR 2023, on coloured
    action noise; here it is a flow's source that is coloured).

    :param correlation: ``c``, of one step to the next, in (0, 1); it is forgotten in about ``1 / (1 - c)`` steps
    :param n_envs: Number of environments
    :param action_dim: Dimension of ``x_0``
    """

    def __init__(self, correlation: float, n_envs: int, action_dim: int):
        self.correlation, self.shape = correlation, (n_envs, action_dim)
        self._noise = th.zeros(self.shape)
        self._begins = np.ones(n_envs, dtype=bool)

    def __call__(self) -> th.Tensor:
        """:return: Each environment's next ``x_0``, ``[n_envs, action_dim]``, on the CPU"""
        fresh = th.randn(self.shape)
        going_on = self.correlation * self._noise + math.sqrt(1.0 - self.correlation**2) * fresh
        self._noise = th.where(th.from_numpy(self._begins)[:, None], fresh, going_on)
        self._begins = np.zeros_like(self._begins)
        return self._noise

    def end_episodes(self, dones: np.ndarray) -> None:
        """
        :param dones: Which environments' episodes ended; the next ones begin with noise of their own, ``[n_envs]``
        """
        self._begins = dones.astype(bool)
