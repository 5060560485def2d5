"""
How the policy acts: candidate particles, noise that depends on the state alone, and the critic's choice among them.

There are two implementations of one rule. :func:`act` is plain torch and works everywhere. :class:`NumpyActing` does
the same on the CPU for a few observations at a time: an action takes about a hundred products and sums of a few hundred
numbers each, and starting a torch kernel costs several times what numpy takes for all of it.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.nn import functional as F

from sb3_swfp.bounds import LINEAR_RANGE, bound_action
from sb3_swfp.critics import LAYER_NORM_EPS, EnsembleQNetwork
from sb3_swfp.flows import FlowCascade

if TYPE_CHECKING:
    from sb3_swfp.policies import FlowActorCriticPolicy

#: Particles (observations times candidates) up to which numpy acts; beyond, the products dominate and torch has threads
NUMPY_MAX_PARTICLES = 256
#: Multiplications in a product up to which numpy does it. Beyond, its linear algebra takes all processors, where torch
#: keeps to the user's number of threads
_ONE_THREAD_PRODUCT = 2**18

# splitmix64's constants (Steele, Lea and Flood, OOPSLA 2014)
_ODD_1, _ODD_2, _ODD_3 = 0xBF58476D1CE4E5B9, 0x9E3779B97F4A7C15, 0x94D049BB133111EB
_64_BITS = 2**64 - 1


def _mix(z: int) -> int:
    """splitmix64's finaliser."""
    z = (z ^ (z >> 30)) * _ODD_1 & _64_BITS
    z = (z ^ (z >> 27)) * _ODD_3 & _64_BITS
    return z ^ (z >> 31)


def _mix_array(z: np.ndarray) -> np.ndarray:
    """:func:`_mix` of an array, whose products wrap by themselves."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_ODD_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_ODD_3)
    return z ^ (z >> np.uint64(31))


@functools.lru_cache(maxsize=64)
def _multiples(n: int, factor: int) -> np.ndarray:
    """``factor * [1, ..., n]``, modulo 2^64."""
    return np.arange(1, n + 1, dtype=np.uint64) * np.uint64(factor)


@functools.lru_cache(maxsize=64)
def _odd_multiples(n: int) -> np.ndarray:
    """As many odd numbers as there are features."""
    return _multiples(n, _ODD_1) | np.uint64(1)


def state_noise(features: np.ndarray, n_particles: int, action_dim: int) -> np.ndarray:
    """
    Pseudo-random noise that is a function of the state alone: deterministic acting without a frozen set of particles.

    A few noise vectors fixed once and for all span only a few of the flow's actions, the critic then picks the same
    extreme ones state after state, and the robot can get stuck: on AdroitHandPen a fixed set of 8 succeeded in 42 % of
    50 episodes where fresh noise did in 76 % (same networks; ``docs/experiments.md``). Here the features' bits are
    hashed (splitmix64) into a seed per row, so equal states give equal noise, alone or in a batch, on every device.

    :param features: State features, ``[B, features_dim]``
    :param n_particles: Particles ``M`` per state
    :param action_dim: Dimension ``d`` of the particles
    :return: Standard normal noise, ``[B * M, d]``, 32-bit
    """
    # + 0.0 makes -0.0 and 0.0 one state; from 32 bits to 64 with the sign
    bits = (features.astype(np.float32, copy=False) + np.float32(0.0)).view(np.int32).astype(np.int64).view(np.uint64)
    keys = np.dot(bits, _odd_multiples(bits.shape[1])).tolist()
    seeds = np.array([_mix(key) for key in keys], dtype=np.uint64)
    n_pairs = (n_particles * action_dim + 1) // 2
    # The top 24 bits, as a float in (0, 1]
    uniform = (_mix_array(seeds[:, None] + _multiples(2 * n_pairs, _ODD_2)) >> np.uint64(40)).astype(np.float32)
    uniform *= 2.0**-24
    uniform += 2.0**-25
    radius, angle = np.sqrt(-2.0 * np.log(uniform[:, :n_pairs])), (2.0 * math.pi) * uniform[:, n_pairs:]
    noise = np.empty_like(uniform)
    np.multiply(radius, np.cos(angle), out=noise[:, :n_pairs])
    np.multiply(radius, np.sin(angle), out=noise[:, n_pairs:])
    return noise[:, : n_particles * action_dim].reshape(-1, action_dim)


def noise_of_states(features: th.Tensor, n_particles: int, action_dim: int) -> th.Tensor:
    """
    :func:`state_noise` as a tensor beside the features.

    :param features: State features, ``[B, features_dim]``
    :param n_particles: Particles ``M`` per state
    :param action_dim: Dimension ``d`` of the particles
    :return: Standard normal noise, ``[B * M, d]``
    :raises RuntimeError: while torch traces the network: the noise would be frozen at that of the traced state
    """
    if th.jit.is_tracing():
        raise RuntimeError(
            "A flow policy's deterministic actions can't be traced: their noise is a hash of the state, which would be "
            "frozen. Deploy by load() and predict(): docs/demonstrations.md#deploying"
        )
    return th.from_numpy(state_noise(features.detach().cpu().numpy(), n_particles, action_dim)).to(features)


def _gumbel(n: int, m: int, device: th.device) -> th.Tensor:
    """Gumbel noise: the best of ``Q / alpha`` plus it is a sample from the softmax."""
    return -th.log(-th.log(th.rand(n, m, device=device).clamp(1e-10, 1.0 - 1e-7)))


def pick(q_values: th.Tensor, temperature: th.Tensor) -> th.Tensor:
    """
    One candidate per state, from the softmax of their values.

    :param q_values: Values of the candidates, ``[B, M]``
    :param temperature: Of the softmax, scalar
    :return: Indices, ``[B]``
    """
    return (q_values / temperature + _gumbel(len(q_values), q_values.shape[1], q_values.device)).argmax(dim=1)


def act(policy: FlowActorCriticPolicy, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
    """
    Draw candidates from the average actor and pick one per state (see
    :class:`~sb3_swfp.policies.FlowActorCriticPolicy` for the rule).

    :param policy: Policy whose networks act
    :param observation: Observations, as SB3's ``obs_to_tensor`` returns them
    :param deterministic: Noise from the state and the best candidate, instead of fresh noise and a sampled one
    :return: Scaled actions, ``[B, action_dim]``
    """
    features = policy.actor_average.features(observation)
    cascade, n = policy.actor_average.cascade, len(features)
    m = policy.n_candidates if bool(policy.critic_is_ripe) else 1
    if deterministic:
        noise = noise_of_states(features, m, cascade.action_dim)
    elif m == 1 and policy.exploration_noise is not None:
        noise = policy.exploration_noise().to(features)
    else:
        noise = th.randn(n * m, cascade.action_dim, device=features.device)
    actions = bound_action(cascade.integrate(features, noise).particles[-1])
    if m == 1:
        return actions
    candidates = actions.view(n, m, -1)
    q_values = policy.critic_target.q_values(policy.critic_target.features(observation), actions).mean(dim=0).view(n, m)
    best = q_values.argmax(dim=1) if deterministic else pick(q_values, policy.temperature)
    return candidates[th.arange(n, device=best.device), best]


class NumpyActing:
    """
    :func:`act` on arrays that share memory with the networks' parameters, so that optimiser steps are seen at once.

    Parameters that were replaced or moved are noticed by their addresses, on every call.
    """

    def __init__(self) -> None:
        self._networks: tuple[FlowCascade, EnsembleQNetwork] | None = None
        self._parameters: list[dict[str, th.nn.Parameter | None]] = []
        self._addresses: list[int] | None = None
        self._usable = False

    def __reduce__(self) -> tuple[type[NumpyActing], tuple[()]]:
        # A copy of the arrays would no longer be the copied networks' memory: copies and pickles start afresh
        return NumpyActing, ()

    def act(self, policy: FlowActorCriticPolicy, observation: PyTorchObs, deterministic: bool) -> th.Tensor | None:
        """
        :param policy: Policy whose networks act
        :param observation: Observations, as SB3's ``obs_to_tensor`` returns them
        :param deterministic: As in :func:`act`
        :return: Scaled actions, ``[B, action_dim]``; ``None`` where only torch will do: a GPU, gradients, other
            features extractors than a flatten, images, 64-bit networks, many observations, tracing
        """
        if not isinstance(observation, th.Tensor) or observation.is_cuda or th.is_grad_enabled():
            return None
        if th.jit.is_tracing():
            return None
        n = len(observation)
        if not 0 < n * policy.n_candidates <= NUMPY_MAX_PARTICLES or not self._refresh(policy):
            return None
        m = policy.n_candidates if bool(policy.critic_is_ripe) else 1
        features = observation.reshape(n, -1).float()
        state = features.numpy()
        # Python code that makes numpy raise on rounding must not make acting raise
        with np.errstate(all="ignore"):
            if deterministic:
                noise = state_noise(state, m, self._action_dim)
            elif m == 1 and policy.exploration_noise is not None:
                noise = policy.exploration_noise().numpy()
            else:
                noise = th.randn(n * m, self._action_dim).numpy()
            actions = _bound(self._flow(state, noise))
            if m == 1:
                return th.from_numpy(actions)
            candidates = actions.reshape(n, m, -1)
            scores = self._q_values(features, actions).mean(axis=0).reshape(n, m)
            if not deterministic:
                factor = float(policy.critic_target.scale) / float(policy.temperature)
                scores = scores * np.float32(factor) + _gumbel(n, m, features.device).numpy()
        return th.from_numpy(candidates[np.arange(n), scores.argmax(axis=1)])

    def _refresh(self, policy: FlowActorCriticPolicy) -> bool:
        """See that the arrays are the networks' memory. False if they can't be."""
        cascade, critic = policy.actor_average.cascade, policy.critic_target.q_networks
        if self._networks is None or self._networks[0] is not cascade or self._networks[1] is not critic:
            modules = (cascade, cascade.weights, cascade.biases, critic, critic.weights, critic.biases)
            self._networks, self._parameters = (cascade, critic), [module._parameters for module in modules]
            self._addresses = None
        addresses = [p.data_ptr() for owner in self._parameters for p in owner.values() if p is not None]
        if addresses != self._addresses:
            self._addresses, self._usable = addresses, _fits(policy)
            if self._usable:
                self._share_memory(cascade, critic)
        return self._usable

    def _share_memory(self, cascade: FlowCascade, critic: EnsembleQNetwork) -> None:
        self._action_dim, self._n_blocks = cascade.action_dim, cascade.n_blocks
        self._euler_steps, self._step = cascade.euler_steps, np.float32(cascade.step)
        self._state_weight = cascade.state_weight.detach().numpy().T
        self._state_bias = cascade.state_bias.detach().numpy()
        self._time_weight = cascade.time_weight.detach().numpy()
        self._starts = (np.arange(self._n_blocks, dtype=np.float32) / self._n_blocks).reshape(-1, 1, 1)
        weights, biases = ([p.detach().numpy() for p in group] for group in (cascade.weights, cascade.biases))
        self._first_weights = list(weights[0])
        others = list(zip(weights[1:], biases, strict=True))
        self._layers = [[(weight[n], bias[n]) for weight, bias in others] for n in range(self._n_blocks)]
        self._n_critics, self._layer_norm = critic.n_critics, critic.layer_norm
        first_weight, n_features = critic.first_weight.detach(), cascade.features_dim
        self._critic_state = first_weight[:, :n_features], critic.first_bias.detach()
        self._critic_action = first_weight[:, n_features:].numpy().T
        self._critic_layers = [(w.detach(), b.detach()) for w, b in zip(critic.weights, critic.biases, strict=True)]
        self._critic_arrays = [(weight.numpy(), bias.numpy()) for weight, bias in self._critic_layers]

    def _flow(self, state: np.ndarray, x: np.ndarray) -> np.ndarray:
        """:meth:`FlowCascade.integrate`: features ``[B, features_dim]``, noise ``[B * M, d]`` -> particles."""
        n, m = len(state), len(x) // len(state)
        projected = np.dot(state, self._state_weight)
        projected += self._state_bias
        blocks = projected.reshape(n, self._n_blocks, 1, -1) + self._starts * self._time_weight
        for block, (first_weight, layers) in enumerate(zip(self._first_weights, self._layers, strict=True)):
            for k in range(self._euler_steps):
                bias = blocks[:, block] if k == 0 else blocks[:, block] + k * self._step * self._time_weight[block]
                hidden = np.dot(x, first_weight)
                by_state = hidden.reshape(n, m, -1)
                by_state += bias
                for weight, layer_bias in layers:
                    # ELU: its two branches are each the smaller one where the other applies
                    negative = np.minimum(hidden, 0.0)
                    np.expm1(negative, out=negative)
                    hidden = np.dot(np.maximum(hidden, negative, out=negative), weight)
                    hidden += layer_bias
                hidden *= self._step
                x = x + hidden
        return x

    def _q_values(self, features: th.Tensor, actions: np.ndarray) -> np.ndarray:
        """:class:`EnsembleQNetwork`: features ``[B, features_dim]``, actions ``[B * M, d]`` -> ``[E, B * M]``."""
        n, rows = len(features), len(actions)
        # The state's share is the same for all of its actions
        state = F.linear(features, *self._critic_state).numpy()
        hidden = np.dot(actions, self._critic_action)
        by_state = hidden.reshape(n, rows // n, -1)
        by_state += state[:, None]
        hidden = hidden.reshape(rows, self._n_critics, -1)
        for depth, (weight, bias) in enumerate(self._critic_arrays):
            if self._layer_norm:
                _normalize(hidden)
            np.maximum(hidden, 0.0, out=hidden)
            if depth == 0:
                hidden = hidden.swapaxes(0, 1)
            if rows * weight[0].size <= _ONE_THREAD_PRODUCT:
                hidden = np.matmul(hidden, weight)
                hidden += bias
            else:
                weight_tensor, bias_tensor = self._critic_layers[depth]
                hidden = th.baddbmm(bias_tensor, th.from_numpy(hidden), weight_tensor).numpy()
        return hidden[..., 0]


def _fits(policy: FlowActorCriticPolicy) -> bool:
    """Whether the networks are of the kind that :class:`NumpyActing` knows, in the CPU's memory."""
    actor, critic, space = policy.actor_average, policy.critic_target, policy.observation_space
    extractors = (type(actor.features_extractor), type(critic.features_extractor))
    parameters = [*actor.cascade.parameters(), *critic.q_networks.parameters()]
    return (
        isinstance(space, spaces.Box)
        and not (policy.normalize_images and is_image_space(space))
        and extractors == (FlattenExtractor, FlattenExtractor)
        and (type(actor.cascade), type(critic.q_networks)) == (FlowCascade, EnsembleQNetwork)
        and all(p.device.type == "cpu" and p.dtype == th.float32 for p in parameters)
    )


def _bound(x: np.ndarray) -> np.ndarray:
    """:func:`~sb3_swfp.bounds.bound_action` in numpy."""
    tail = 1.0 - LINEAR_RANGE
    linear = np.minimum(np.maximum(x, -LINEAR_RANGE), LINEAR_RANGE)
    return linear + tail * np.tanh((x - linear) / tail)


def _normalize(hidden: np.ndarray) -> None:
    """LayerNorm over the last axis, in place."""
    share = np.float32(1.0 / hidden.shape[-1])
    hidden -= np.add.reduce(hidden, axis=-1, keepdims=True) * share
    variance = np.einsum("...i,...i->...", hidden, hidden) * share
    hidden *= (1.0 / np.sqrt(variance + np.float32(LAYER_NORM_EPS)))[..., None]
