"""The policy: flow actors (live, frozen reference, average), the critic ensemble, and how they act together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_action_dim, is_image_space
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from stable_baselines3.common.utils import polyak_update
from torch import nn

from sb3_swfp.acting import NumpyActing, act
from sb3_swfp.bounds import bound_action, bound_log_det
from sb3_swfp.critics import SoftQEnsemble
from sb3_swfp.flows import FlowCascade, Sweep

_LOG_2_PI = 1.8378770664093453


class FlowActor(BasePolicy):
    """
    A flow cascade on top of SB3's feature extraction.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Network that turns observations into features
    :param features_dim: Dimension of the features
    :param n_blocks: Number of flow blocks ``N``
    :param block_net_arch: Hidden widths of every block
    :param euler_steps: Euler steps in each block
    :param normalize_images: Whether to divide images by 255
    """

    action_space: spaces.Box
    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        n_blocks: int = 5,
        block_net_arch: list[int] | None = None,
        euler_steps: int = 1,
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self.features_dim = features_dim
        self.cascade = FlowCascade(features_dim, get_action_dim(action_space), n_blocks, block_net_arch, euler_steps)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            features_extractor=self.features_extractor,
            features_dim=self.features_dim,
            n_blocks=self.cascade.n_blocks,
            block_net_arch=self.cascade.widths,
            euler_steps=self.cascade.euler_steps,
        )

    def features(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Observations, as SB3's replay buffers return them
        :return: Features, ``[B, features_dim]``
        """
        return self.extract_features(observations, self.features_extractor)

    def noise(self, n: int) -> th.Tensor:
        """
        :param n: Number of particles
        :return: ``x_0 ~ N(0, I)``, ``[n, action_dim]``
        """
        return th.randn(n, self.cascade.action_dim, device=self.device)

    def forward(self, observations: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(observations, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        # One particle; how several compete is the policy's business, since that takes a critic
        features = self.features(observation)
        return bound_action(self.cascade.integrate(features, self.noise(len(features))).particles[-1])


def cascade_log_prob(sweep: Sweep) -> th.Tensor:
    """
    Log-density of the bounded actions at a sweep's end, by the change of variables.

    :param sweep: Particles and log-determinants of a cascade
    :return: ``log N(x_0; 0, I) - sum_n log det(I + h J_n) - log det(bound)``, ``[B]``
    :raises ValueError: if the sweep has no log-determinants
    """
    if sweep.log_dets is None:
        raise ValueError("This sweep has no log-determinants: integrate with log_det=True")
    x_0, end = sweep.particles[0], sweep.particles[-1]
    return -0.5 * (x_0.square() + _LOG_2_PI).sum(dim=-1) - sweep.log_dets.sum(dim=0) - bound_log_det(end)


class FlowActorCriticPolicy(BasePolicy):
    """
    Stepwise flow policy with a soft-Q critic ensemble.

    It holds three flow actors of one architecture: ``actor`` is trained, ``actor_reference`` is the frozen previous
    iterate of the JKO step, ``actor_average`` is the moving average that acts. (Raw flow weights jitter: a clone
    evaluated with them loses the last centimetre.) A clone explores with ``actor``, which is ahead of its average.

    Acting draws one particle while the critic is not ripe (``critic_is_ripe``). Once it is, ``n_candidates`` particles
    compete and the critic picks: the best one when deterministic, by ``exp(Q / alpha)`` otherwise. Either way the
    action is one of the flow's samples, so it lies on a mode and not between modes. A deterministic action's noise is a
    function of the state (:func:`sb3_swfp.acting.state_noise`). From scratch with entropy, learning explores without
    the picks.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule
    :param net_arch: Hidden widths of the critics, a list or ``dict(qf=[...])``. The flow blocks have ``block_net_arch``
    :param n_blocks: Number of flow blocks ``N``
    :param block_net_arch: Hidden widths of every flow block
    :param euler_steps: Euler steps in each block
    :param n_critics: Number of critics
    :param critic_layer_norm: Normalise the critics' hidden layers
    :param n_candidates: Particles that compete for each action; 1 switches competition off
    :param features_extractor_class: Features extractor; chosen from the observation space when omitted
    :param features_extractor_kwargs: Its keyword arguments
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: Optimiser, ``th.optim.Adam`` when omitted
    :param optimizer_kwargs: Its keyword arguments, without the learning rate
    :param share_features_extractor: The critics use the actor's features extractor and don't train it
    :raises ValueError: for impossible sizes
    """

    action_space: spaces.Box
    actor: FlowActor
    actor_reference: FlowActor
    actor_average: FlowActor
    critic: SoftQEnsemble
    critic_target: SoftQEnsemble
    critic_is_ripe: th.Tensor
    temperature: th.Tensor
    #: Source of the noise of actions that are neither deterministic nor picked, ``() -> [n_envs, action_dim]``, in
    #: place of fresh noise: set while an algorithm explores
    exploration_noise: Callable[[], th.Tensor] | None = None

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        n_blocks: int = 5,
        block_net_arch: list[int] | None = None,
        euler_steps: int = 1,
        n_critics: int = 2,
        critic_layer_norm: bool = True,
        n_candidates: int = 8,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = False,
    ):
        if features_extractor_class is None:
            features_extractor_class = default_features_extractor(observation_space, normalize_images)
        if optimizer_class is None:
            # One fused kernel instead of a dozen per parameter: the same update, a third of the time
            optimizer_class, optimizer_kwargs = th.optim.Adam, {"fused": True} | (optimizer_kwargs or {})
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )
        if not isinstance(n_candidates, (int, np.integer)):
            raise ValueError(f"n_candidates must be a whole number, got {n_candidates!r}")
        if n_candidates < 1:
            raise ValueError(f"n_candidates must be at least 1, got {n_candidates}")
        self.net_arch = [256, 256] if net_arch is None else net_arch
        self.n_candidates = n_candidates
        self.share_features_extractor = share_features_extractor
        shared = dict(observation_space=observation_space, action_space=action_space, normalize_images=normalize_images)
        self.actor_kwargs: dict[str, Any] = shared | dict(
            n_blocks=n_blocks, block_net_arch=block_net_arch, euler_steps=euler_steps
        )
        if not isinstance(self.net_arch, list) and (not isinstance(self.net_arch, dict) or "qf" not in self.net_arch):
            raise ValueError(f'net_arch must be a list of widths, or a dictionary with the key "qf", not {net_arch!r}')
        critic_arch = self.net_arch if isinstance(self.net_arch, list) else self.net_arch["qf"]
        self.critic_kwargs: dict[str, Any] = shared | dict(
            net_arch=critic_arch,
            n_critics=n_critics,
            layer_norm=critic_layer_norm,
            share_features_extractor=share_features_extractor,
        )
        self._numpy_acting = NumpyActing()
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.actor_reference, self.actor_average = self.make_actor(), self.make_actor()
        for frozen in (self.actor_reference, self.actor_average):
            frozen.load_state_dict(self.actor.state_dict())
            frozen.requires_grad_(False).set_training_mode(False)
        self.critic = self.make_critic(self.actor.features_extractor if self.share_features_extractor else None)
        self.critic_target = self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False).set_training_mode(False)
        # A shared features extractor is the actor's: two optimisers must not pull it two ways
        critic_parameters = [
            parameter
            for name, parameter in self.critic.named_parameters()
            if not (self.share_features_extractor and "features_extractor" in name)
        ]
        for module, parameters in ((self.actor, list(self.actor.parameters())), (self.critic, critic_parameters)):
            module.optimizer = self.optimizer_class(parameters, lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]
        # Not parameters, but part of how the policy acts: they must survive save and load
        self.register_buffer("critic_is_ripe", th.tensor(False))
        self.register_buffer("temperature", th.tensor(1.0))

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            lr_schedule=self._dummy_schedule,  # not needed to load a policy alone
            net_arch=self.net_arch,
            n_blocks=self.actor_kwargs["n_blocks"],
            block_net_arch=self.actor_kwargs["block_net_arch"],
            euler_steps=self.actor_kwargs["euler_steps"],
            n_critics=self.critic_kwargs["n_critics"],
            critic_layer_norm=self.critic_kwargs["layer_norm"],
            n_candidates=self.n_candidates,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
            share_features_extractor=self.share_features_extractor,
        )

    def make_actor(self) -> FlowActor:
        return FlowActor(**self._update_features_extractor(self.actor_kwargs)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> SoftQEnsemble:
        return SoftQEnsemble(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        action = self._numpy_acting.act(self, observation, deterministic)
        return act(self, observation, deterministic) if action is None else action

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training, False for evaluation; the frozen networks stay in evaluation mode
        """
        if mode:
            self.actor.set_training_mode(True)
            self.critic.set_training_mode(True)
            self.training = True
        elif self.training or self.actor.training or self.critic.training:
            # Only if need be: the walk through all modules is a tenth of a `predict`, which asks for it each time
            self.train(False)


def track(trained: nn.Module, copied: nn.Module, tau: float) -> None:
    """
    Move a copy towards the trained network: parameters by ``tau``, running statistics (batch norm) all the way.

    :param trained: Network being trained
    :param copied: Its moving average
    :param tau: Polyak coefficient
    """
    polyak_update(trained.parameters(), copied.parameters(), tau)
    for new, old in zip(trained.buffers(), copied.buffers(), strict=True):
        old.copy_(new)


def every_other(observations: Any) -> Any:
    """
    Half of a batch, with half of its demonstrations, wherever in the batch these are.

    :param observations: Observations, as SB3's replay buffers return them
    :return: Rows 0, 2, 4, ...
    """
    if isinstance(observations, dict):
        return {key: value[::2] for key, value in observations.items()}
    return observations[::2]


def default_features_extractor(
    observation_space: spaces.Space, normalize_images: bool = True
) -> type[BaseFeaturesExtractor]:
    """
    SB3's usual choice: a CNN for images, a combined extractor for dictionaries, a flatten for everything else.

    :param observation_space: Observation space
    :param normalize_images: Whether images arrive as 0..255 and are divided by 255
    """
    if isinstance(observation_space, spaces.Dict):
        return CombinedExtractor
    if is_image_space(observation_space, normalized_image=not normalize_images):
        return NatureCNN
    return FlattenExtractor


#: SB3's aliases. All pick the features extractor from the observation space, as "FlowPolicy" does
MlpPolicy = CnnPolicy = MultiInputPolicy = FlowActorCriticPolicy
