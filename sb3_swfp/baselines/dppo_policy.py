"""DPPO's policy: a flow actor whose denoising chains are sampled with noise, and a state value."""

from __future__ import annotations

from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, create_mlp
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_swfp.acting import noise_of_states
from sb3_swfp.baselines.chains import sample_chains, transition_log_probs, transition_means
from sb3_swfp.bounds import bound_action
from sb3_swfp.policies import FlowActor, default_features_extractor


class ValueNetwork(BaseModel):
    """
    State value ``V(s)``, with a features extractor of its own.

    :param observation_space: Observation space
    :param action_space: Action space
    :param features_extractor: Network that turns observations into features
    :param features_dim: Dimension of the features
    :param net_arch: Hidden widths
    :param normalize_images: Whether to divide images by 255
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        net_arch: list[int],
        normalize_images: bool = True,
    ):
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self.net = nn.Sequential(*create_mlp(features_dim, 1, net_arch, nn.Mish))

    def forward(self, observations: PyTorchObs) -> th.Tensor:
        """
        :param observations: Observations
        :return: Values, ``[B]``
        """
        return self.net(self.extract_features(observations, self.features_extractor)).squeeze(-1)


class FlowValuePolicy(BasePolicy):
    """
    Flow policy with a state value: what DPPO trains. The ``actor`` has the same parameters, under the same names, as
    SWFP's, so ``dppo.actor.load_state_dict(swfp.actor.state_dict())`` starts both from one clone.

    A deterministic action is the flow's end without added noise, from a noise that is a function of the state
    (:func:`sb3_swfp.acting.state_noise`); any other is the end of a noisy chain.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule of the actor; DPPO sets the critic's
    :param net_arch: Hidden widths of the value network
    :param n_blocks: Number of flow blocks ``N``
    :param block_net_arch: Hidden widths of every flow block
    :param euler_steps: Euler steps in each block
    :param sampling_std: Standard deviation of the noise in every step of a chain; DPPO sets it to ``min_sampling_std``
    :param features_extractor_class: Features extractor; chosen from the observation space when omitted
    :param features_extractor_kwargs: Its keyword arguments
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: Optimiser, ``th.optim.Adam`` when omitted
    :param optimizer_kwargs: Its keyword arguments, without the learning rate
    :raises ValueError: for impossible sizes
    """

    action_space: spaces.Box
    actor: FlowActor
    critic: ValueNetwork

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | None = None,
        n_blocks: int = 5,
        block_net_arch: list[int] | None = None,
        euler_steps: int = 1,
        sampling_std: float = 0.1,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        if features_extractor_class is None:
            features_extractor_class = default_features_extractor(observation_space, normalize_images)
        if optimizer_class is None:
            # As SWFP's: one kernel for all parameters
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
        self.net_arch = [256, 256] if net_arch is None else list(net_arch)
        if not self.net_arch or min(self.net_arch) < 1:
            raise ValueError(f"net_arch needs at least one hidden layer of positive width, got {self.net_arch}")
        self.sampling_std = sampling_std
        shared = dict(observation_space=observation_space, action_space=action_space, normalize_images=normalize_images)
        self.actor_kwargs: dict[str, Any] = shared | dict(
            n_blocks=n_blocks, block_net_arch=block_net_arch, euler_steps=euler_steps
        )
        self.critic_kwargs: dict[str, Any] = shared | dict(net_arch=self.net_arch)
        self.actor = FlowActor(**self._update_features_extractor(self.actor_kwargs)).to(self.device)
        self.critic = ValueNetwork(**self._update_features_extractor(self.critic_kwargs)).to(self.device)
        for module in (self.actor, self.critic):
            module.optimizer = self.optimizer_class(module.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            lr_schedule=self._dummy_schedule,  # not needed to load a policy alone
            net_arch=self.net_arch,
            n_blocks=self.actor_kwargs["n_blocks"],
            block_net_arch=self.actor_kwargs["block_net_arch"],
            euler_steps=self.actor_kwargs["euler_steps"],
            sampling_std=self.sampling_std,
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        if not deterministic:
            return bound_action(self.sample_chains(observation)[:, -1])
        features, cascade = self.actor.features(observation), self.actor.cascade
        noise = noise_of_states(features, 1, cascade.action_dim)
        return bound_action(cascade.integrate(features, noise).particles[-1])

    def sample_chains(self, observation: PyTorchObs) -> th.Tensor:
        """
        :param observation: Observations, as SB3's ``obs_to_tensor`` returns them
        :return: Noisy chains, ``[B, K + 1, action_dim]``; the bounded end of each is an action in the scaled space
        """
        features = self.actor.features(observation)
        return sample_chains(self.actor.cascade, features, self.actor.noise(len(features)), self.sampling_std)

    def log_probs(self, observation: PyTorchObs, chains: th.Tensor, std: float) -> th.Tensor:
        """
        :param observation: Observations
        :param chains: Chains, ``[B, K + 1, action_dim]``
        :param std: Standard deviation to assume of their steps
        :return: Log-density of every step, averaged over the action's dimensions, ``[B, K]``
        """
        means = transition_means(self.actor.cascade, self.actor.features(observation), chains)
        return transition_log_probs(chains, means, std)

    def predict_values(self, obs: PyTorchObs) -> th.Tensor:
        """
        :param obs: Observations
        :return: State values, ``[B]``
        """
        return self.critic(obs)
