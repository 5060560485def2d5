"""
Denoising chains: the flow's Euler steps as a Markov decision process of their own, and the roll-outs that hold them.

A chain ``x_0, ..., x_K`` has one transition for each Euler step of a cascade, ``K = n_blocks * euler_steps``:
``x_k ~ N(x_{k-1} + h v(x_{k-1}, t_{k-1}, s), std^2 I)``. Its end is bounded and becomes the action. Everything here is
before the bound, which counts as a part of the environment.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.type_aliases import PyTorchObs

from sb3_swfp.flows import FlowCascade

#: Noise is drawn from a normal distribution that is cut off here, in standard deviations (DPPO's ``randn_clip_value``)
NOISE_CLIP = 3.0
#: Log-densities fall no further than at so many standard deviations. The official code clamps them to [-5, 2], which at
#: its standard deviation of 0.1 is this. (The upper end is out of reach there, and below 0.054 would stop all learning)
_LOG_PROB_CLIP = 3.573
_HALF_LOG_2_PI = 0.9189385332046727


def chain_length(cascade: FlowCascade) -> int:
    """
    :param cascade: The flow
    :return: ``K``, the number of Euler steps from noise to action
    """
    return cascade.n_blocks * cascade.euler_steps


def sample_chains(cascade: FlowCascade, features: th.Tensor, x_0: th.Tensor, std: float) -> th.Tensor:
    """
    Integrate the flow with Gaussian noise after every Euler step, the last one included (ReinFlow, arXiv 2505.22094,
    has the same chain; its noise is learned, here ``std`` is a constant).

    :param cascade: The flow
    :param features: State features, ``[B, features_dim]``
    :param x_0: Noise that the chains start from, ``[B, d]``
    :param std: Standard deviation of the noise that is added
    :return: Chains, ``[B, K + 1, d]``
    """
    state, x = cascade.project(features), x_0
    chain = [x_0]
    for n in range(cascade.n_blocks):
        for k in range(cascade.euler_steps):
            velocity, _ = cascade.velocity(n, state[n], x, n / cascade.n_blocks + k * cascade.step)
            noise = th.randn_like(x).clamp_(-NOISE_CLIP, NOISE_CLIP)
            x = x + cascade.step * velocity + std * noise
            chain.append(x)
    return th.stack(chain, dim=1)


def transition_means(cascade: FlowCascade, features: th.Tensor, chains: th.Tensor) -> th.Tensor:
    """
    Where the flow alone would have taken every step of the chains; all blocks are evaluated at once.

    :param cascade: The flow
    :param features: State features, ``[B, features_dim]``
    :param chains: Chains, ``[B, K + 1, d]``
    :return: ``x_{k-1} + h v(x_{k-1}, t_{k-1}, s)`` for k = 1 to K, ``[B, K, d]``
    """
    state = cascade.project(features)
    # [N, B, Euler steps, d]: block n starts from the chain's entries n * euler_steps, ...
    inputs = chains[:, :-1].unflatten(1, (cascade.n_blocks, cascade.euler_steps)).transpose(0, 1)
    starts = cascade.block_starts(chains)
    means = []
    for k in range(cascade.euler_steps):
        velocity, _ = cascade.velocity(slice(None), state, inputs[:, :, k], starts + k * cascade.step)
        means.append(inputs[:, :, k] + cascade.step * velocity)
    return th.stack(means, dim=2).transpose(0, 1).flatten(1, 2)


def transition_log_probs(chains: th.Tensor, means: th.Tensor, std: float) -> th.Tensor:
    """
    Log-density of every step of the chains, averaged over the action's dimensions, as the official code has it: the
    clip range then means the same in 2 and in 28 dimensions.

    :param chains: Chains, ``[B, K + 1, d]``
    :param means: What :func:`transition_means` returns, ``[B, K, d]``
    :param std: Standard deviation of the transitions
    :return: ``[B, K]``
    """
    deviations = (chains[:, 1:] - means) / std
    exponents = 0.5 * deviations.square().clamp_max(_LOG_PROB_CLIP**2)
    return -exponents.mean(dim=-1) - math.log(std) - _HALF_LOG_2_PI


def step_clip_ranges(n_steps: int, clip_range: float, clip_range_base: float, clip_range_rate: float) -> th.Tensor:
    """
    Clip range of every denoising step: exponential interpolation from ``clip_range_base`` at the first to
    ``clip_range`` at the last, ``base + (range - base) (exp(rate t) - 1) / (exp(rate) - 1)`` with t from 0 to 1 (the
    official ``PPODiffusion.loss``). Early steps are amplified by those after them, so they may move less.

    :param n_steps: Denoising steps ``K``; a single one has ``clip_range``
    :param clip_range: Clip range of the last step
    :param clip_range_base: Clip range of the first step
    :param clip_range_rate: Rate of the interpolation
    :return: ``[K]``
    """
    if n_steps == 1:
        return th.tensor([clip_range])
    share = th.expm1(clip_range_rate * th.linspace(0.0, 1.0, n_steps)) / math.expm1(clip_range_rate)
    return clip_range_base + (clip_range - clip_range_base) * share


def clipped_loss(
    log_probs: th.Tensor, old_log_probs: th.Tensor, advantages: th.Tensor, clip_ranges: th.Tensor, discounts: th.Tensor
) -> tuple[th.Tensor, dict[str, th.Tensor]]:
    """
    PPO's clipped objective (arXiv 1707.06347, eq. 7) of every denoising step, each with the advantage of the action at
    the chain's end, discounted by the steps that follow (DPPO, arXiv 2409.00588, section 4).

    :param log_probs: Log-densities of the chains' steps, ``[B, K]``
    :param old_log_probs: The same when they were sampled, ``[B, K]``
    :param advantages: Advantages of the actions, ``[B]``
    :param clip_ranges: Clip range of every step, ``[K]``
    :param discounts: Denoising discount of every step, ``[K]``
    :return: Loss and metrics, scalars
    """
    log_ratio = log_probs - old_log_probs
    ratio = log_ratio.exp()
    weights = advantages[:, None] * discounts
    clipped = ratio.clamp(1.0 - clip_ranges, 1.0 + clip_ranges)
    loss = -th.min(weights * ratio, weights * clipped).mean()
    with th.no_grad():
        metrics = {
            "policy_gradient_loss": loss.detach(),
            "approx_kl": (ratio - 1.0 - log_ratio).mean(),
            "clip_fraction": ((ratio - 1.0).abs() > clip_ranges).float().mean(),
        }
    return loss, metrics


class ChainSamples(NamedTuple):
    """
    A minibatch of states, each with its whole chain.

    :param observations: Observations, ``[B, ...]``, or a dictionary of such
    :param chains: Chains, ``[B, K + 1, d]``
    :param old_log_probs: Log-densities of the chains' steps when they were sampled, ``[B, K]``
    :param advantages: Of the actions at the chains' ends, ``[B]``
    :param returns: TD(lambda) returns, ``[B]``
    """

    observations: PyTorchObs
    chains: th.Tensor
    old_log_probs: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor


class ChainRolloutBuffer(RolloutBuffer):
    """
    SB3's roll-out buffer, with chains in the place of actions and a log-density for each of their steps.

    :param buffer_size: Steps of each environment
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Trade-off of bias and variance of the advantages
    :param gamma: Discount factor
    :param n_envs: Number of environments
    :param n_denoising_steps: Transitions ``K`` of a chain
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 0.95,
        gamma: float = 0.999,
        n_envs: int = 1,
        n_denoising_steps: int = 5,
    ):
        self.n_denoising_steps = n_denoising_steps
        self.particle_dim = get_action_dim(action_space)
        chain_space = spaces.Box(-np.inf, np.inf, ((n_denoising_steps + 1) * self.particle_dim,), np.float32)
        super().__init__(buffer_size, observation_space, chain_space, device, gae_lambda, gamma, n_envs)

    def reset(self) -> None:
        """Forget all roll-outs."""
        super().reset()
        self.log_probs = np.zeros((self.buffer_size, self.n_envs, self.n_denoising_steps), dtype=np.float32)

    def batches(self, batch_size: int) -> Iterator[ChainSamples]:
        """
        One pass through the roll-outs in random order.

        :param batch_size: States in a minibatch; the last one may be smaller
        :return: The minibatches
        """
        for samples in self.get(batch_size):
            yield ChainSamples(
                samples.observations,
                samples.actions.view(-1, self.n_denoising_steps + 1, self.particle_dim),
                samples.old_log_prob.view(-1, self.n_denoising_steps),
                samples.advantages,
                samples.returns,
            )


class DictChainRolloutBuffer(ChainRolloutBuffer, DictRolloutBuffer):
    """:class:`ChainRolloutBuffer` for dictionaries of observations."""


class RewardScaler:
    """
    Divides rewards by the running standard deviation of discounted returns, once a roll-out is complete: with sparse
    rewards the first one would otherwise be judged by statistics that have seen none (``VecNormalize`` does that).
    """

    #: Discount of the returns and largest scaled reward, both fixed in the official code (``util/reward_scaling.py``)
    GAMMA, CLIP = 0.99, 10.0

    def __init__(self) -> None:
        self.statistics = RunningMeanStd(shape=())
        self.running_return = np.zeros(1)

    @property
    def scale(self) -> float:
        """What rewards are divided by."""
        return math.sqrt(float(self.statistics.var) + 1e-8)

    def __call__(self, rewards: np.ndarray, episode_starts: np.ndarray) -> np.ndarray:
        """
        :param rewards: Rewards of a roll-out, ``[n_steps, n_envs]``
        :param episode_starts: 1 where a step is an episode's first, ``[n_steps, n_envs]``
        :return: Scaled rewards, ``[n_steps, n_envs]``
        """
        if len(self.running_return) != rewards.shape[1]:
            self.running_return = np.zeros(rewards.shape[1])
        returns = []
        for reward, start in zip(rewards, episode_starts, strict=True):
            self.running_return = reward + self.GAMMA * (1.0 - start) * self.running_return
            returns.append(self.running_return)
        self.statistics.update(np.concatenate(returns))
        return np.clip(rewards / self.scale, -self.CLIP, self.CLIP).astype(np.float32)
