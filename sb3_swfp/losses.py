"""Losses that all algorithms here share."""

from __future__ import annotations

import torch as th
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from torch.nn import functional as F

from sb3_swfp.critics import SoftQEnsemble


def td_target(batch: ReplayBufferSamples | DictReplayBufferSamples, next_values: th.Tensor, gamma: float) -> th.Tensor:
    """
    ``r + gamma^n (1 - done) V(s')``, with n-step returns where the batch has them.

    :param batch: Transitions
    :param next_values: Values of the next states, ``[B]``
    :param gamma: Discount factor, of batches without their own
    :return: Targets, ``[1, B]``
    """
    discounts = gamma if batch.discounts is None else batch.discounts.T
    return batch.rewards.T + (1.0 - batch.dones.T) * discounts * next_values


def td_loss(critic: SoftQEnsemble, q_values: th.Tensor, target: th.Tensor) -> th.Tensor:
    """
    Squared error of an ensemble, halved, in units of its scale; a sum over the members, so that each learns as it would
    alone.

    :param critic: The ensemble
    :param q_values: Its values, ``[E, B]``
    :param target: Targets, ``[1, B]``
    :return: Scalar
    """
    loss = 0.5 * F.mse_loss(q_values / critic.scale, (target / critic.scale).expand_as(q_values))
    return loss * critic.n_critics
