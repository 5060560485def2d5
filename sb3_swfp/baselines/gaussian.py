"""What the baselines with a Gaussian policy share: the policy, and SAC on a soft-Q ensemble (arXiv 1801.01290)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, get_actor_critic_arch
from stable_baselines3.common.type_aliases import (
    DictReplayBufferSamples,
    GymEnv,
    PyTorchObs,
    ReplayBufferSamples,
    Schedule,
)
from stable_baselines3.sac.policies import Actor

from sb3_swfp.base import DemonstrationAlgorithm
from sb3_swfp.checks import check_arguments
from sb3_swfp.critics import SoftQEnsemble
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.losses import td_loss, td_target
from sb3_swfp.policies import default_features_extractor, track
from sb3_swfp.pretraining import return_scale

Batch = ReplayBufferSamples | DictReplayBufferSamples


class GaussianPolicy(BasePolicy):
    """
    SB3's tanh-Gaussian actor with this package's soft-Q ensemble.

    :param observation_space: Observation space
    :param action_space: Action space
    :param lr_schedule: Learning rate schedule
    :param net_arch: Hidden widths, a list or ``dict(pi=[...], qf=[...])``
    :param n_critics: Number of critics
    :param critic_layer_norm: Normalise the critics' hidden layers
    :param features_extractor_class: Features extractor; chosen from the observation space when omitted
    :param features_extractor_kwargs: Its keyword arguments
    :param normalize_images: Whether to divide images by 255
    :param optimizer_class: Optimiser, ``th.optim.Adam`` (fused) when omitted
    :param optimizer_kwargs: Its keyword arguments, without the learning rate
    """

    action_space: spaces.Box
    actor: Any
    critic: SoftQEnsemble
    critic_target: SoftQEnsemble

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        n_critics: int = 2,
        critic_layer_norm: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] | None = None,
        optimizer_kwargs: dict[str, Any] | None = None,
    ):
        if features_extractor_class is None:
            features_extractor_class = default_features_extractor(observation_space, normalize_images)
        if optimizer_class is None:
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
        self.net_arch = [256, 256] if net_arch is None else net_arch
        self.actor_arch, self.critic_arch = get_actor_critic_arch(self.net_arch)
        self.shared_kwargs: dict[str, Any] = dict(
            observation_space=observation_space, action_space=action_space, normalize_images=normalize_images
        )
        self.critic_kwargs = self.shared_kwargs | dict(
            net_arch=self.critic_arch, n_critics=n_critics, layer_norm=critic_layer_norm
        )
        self._build(lr_schedule)

    def _build(self, lr_schedule: Schedule) -> None:
        self.actor = self.make_actor()
        self.critic, self.critic_target = self.make_critic(), self.make_critic()
        self.critic_target.load_state_dict(self.critic.state_dict())
        self.critic_target.requires_grad_(False).set_training_mode(False)
        for module in (self.actor, self.critic):
            module.optimizer = self.optimizer_class(module.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def make_actor(self) -> Any:
        return Actor(**self._update_features_extractor(self.shared_kwargs), net_arch=self.actor_arch).to(self.device)

    def make_critic(self) -> SoftQEnsemble:
        return SoftQEnsemble(**self._update_features_extractor(self.critic_kwargs)).to(self.device)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | dict(
            lr_schedule=self._dummy_schedule,  # not needed to load a policy alone
            net_arch=self.net_arch,
            n_critics=self.critic_kwargs["n_critics"],
            critic_layer_norm=self.critic_kwargs["layer_norm"],
            features_extractor_class=self.features_extractor_class,
            features_extractor_kwargs=self.features_extractor_kwargs,
            optimizer_class=self.optimizer_class,
            optimizer_kwargs=self.optimizer_kwargs,
        )

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self._predict(obs, deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation, deterministic)

    def set_training_mode(self, mode: bool) -> None:
        """
        :param mode: True for training, False for evaluation; target networks stay in evaluation mode
        """
        self.actor.set_training_mode(mode)
        self.critic.set_training_mode(mode)
        self.training = mode


class GaussianAlgorithm(DemonstrationAlgorithm):
    """
    SAC with demonstrations, on an ensemble of critics; the base of the baselines with a Gaussian policy.

    Arguments that SB3's SAC has mean what they mean there.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Adam's learning rate for actor, critics and temperature
    :param buffer_size: Size of the replay buffer
    :param learning_starts: Steps to collect before learning starts
    :param batch_size: Minibatch size
    :param tau: Polyak coefficient of the target critics
    :param gamma: Discount factor
    :param train_freq: Update the model every so many steps
    :param gradient_steps: Critic updates after each rollout (the update-to-data ratio)
    :param action_noise: Noise added to the actions
    :param replay_buffer_class: Replay buffer class; :class:`DemonstrationReplayBuffer` when omitted
    :param replay_buffer_kwargs: Its keyword arguments: ``demonstrations``, ``demonstration_share``, ...
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
    :param n_steps: Length of n-step returns
    :param ent_coef: Entropy coefficient: a number, ``"auto"`` or ``"auto_0.1"``
    :param target_update_interval: Update the target critics every so many critic updates
    :param target_entropy: Target entropy for ``ent_coef="auto"``; ``"auto"`` is minus the action dimension
    :param policy_delay: Critic updates per actor update
    :param backup_entropy: Whether the target has the entropy bonus of the next action
    :param pessimistic_actor: Whether the actor follows the critics' minimum instead of their mean
    :param critic_scale: ``Q = critic_scale * network``; ``"auto"``: mean absolute discounted return of the
        demonstrations, as SWFP has it once pretrained
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: Folder for TensorBoard logs, none by default
    :param policy_kwargs: Arguments of the policy: ``net_arch``, ``n_critics``, ...
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed of the pseudo random generators
    :param device: Device (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    :raises ValueError: for impossible arguments
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": GaussianPolicy,
        "CnnPolicy": GaussianPolicy,
        "MultiInputPolicy": GaussianPolicy,
    }
    policy: GaussianPolicy
    actor: Any
    critic: SoftQEnsemble
    critic_target: SoftQEnsemble

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 3e-4,
        buffer_size: int = 1_000_000,
        learning_starts: int = 100,
        batch_size: int = 256,
        tau: float = 0.005,
        gamma: float = 0.99,
        train_freq: int | tuple[int, str] = 1,
        gradient_steps: int = 1,
        action_noise: ActionNoise | None = None,
        replay_buffer_class: type[ReplayBuffer] | None = None,
        replay_buffer_kwargs: dict[str, Any] | None = None,
        optimize_memory_usage: bool = False,
        n_steps: int = 1,
        ent_coef: str | float = "auto",
        target_update_interval: int = 1,
        target_entropy: str | float = "auto",
        policy_delay: int = 1,
        backup_entropy: bool = True,
        pessimistic_actor: bool = True,
        critic_scale: float | str = 1.0,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        check_arguments(
            batch_size=batch_size,
            target_update_interval=target_update_interval,
            policy_delay=policy_delay,
            n_steps=n_steps,
            buffer_size=buffer_size,
            gamma=gamma,
            tau=tau,
        )
        if critic_scale != "auto" and not (isinstance(critic_scale, (int, float)) and critic_scale > 0.0):
            raise ValueError(f'critic_scale must be a number above 0 or "auto", got {critic_scale!r}')
        super().__init__(
            policy,
            env,
            learning_rate,
            buffer_size,
            learning_starts,
            batch_size,
            tau,
            gamma,
            train_freq,
            gradient_steps,
            action_noise,
            replay_buffer_class=DemonstrationReplayBuffer if replay_buffer_class is None else replay_buffer_class,
            replay_buffer_kwargs=replay_buffer_kwargs,
            optimize_memory_usage=optimize_memory_usage,
            n_steps=n_steps,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            verbose=verbose,
            device=device,
            seed=seed,
            sde_support=False,
            supported_action_spaces=(spaces.Box,),
            support_multi_env=True,
        )
        self.target_entropy, self.ent_coef = target_entropy, ent_coef
        self.target_update_interval, self.policy_delay = target_update_interval, policy_delay
        self.backup_entropy, self.pessimistic_actor = backup_entropy, pessimistic_actor
        self.critic_scale = critic_scale
        self._demonstrations_required = _init_setup_model
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        self.actor, self.critic, self.critic_target = self.policy.actor, self.policy.critic, self.policy.critic_target
        self._scale_critics()

    def _scale_critics(self) -> None:
        scale = self.critic_scale
        if self._n_updates > 0:
            return  # another one would multiply values that have been learned
        if scale == "auto":
            buffer = self.replay_buffer
            if not isinstance(buffer, DemonstrationReplayBuffer) or buffer.demonstrations is None:
                return  # a loaded model has its scale in its file; others get it once they have demonstrations
            scale = return_scale(buffer.demonstrations, self._vec_normalize_env, self.gamma)
        for critic in (self.critic, self.critic_target):
            critic.scale.fill_(float(scale))

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with an actor update after every ``policy_delay`` of them
        :param batch_size: Minibatch size
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        for _ in range(gradient_steps):
            self._update(self.replay_buffer.sample(batch_size, env=self._vec_normalize_env))
        self._log_metrics()

    def _update(self, batch: Batch) -> None:
        ent_coef = self._current_ent_coef()
        self._metrics |= self._train_critic(batch, ent_coef)
        self._n_updates += 1
        if self._n_updates % self.policy_delay == 0:
            self._metrics |= self._train_actor(batch, ent_coef)
        if self._n_updates % self.target_update_interval == 0:
            self._track_targets()

    def _track_targets(self) -> None:
        track(self.critic, self.critic_target, self.tau)

    def _optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        return optimizers if self.ent_coef_optimizer is None else [*optimizers, self.ent_coef_optimizer]

    def _train_critic(self, batch: Batch, ent_coef: float) -> dict[str, Any]:
        with th.no_grad():
            target = td_target(batch, self._next_values(batch.next_observations, ent_coef), self.gamma)
        features = self.critic.features(batch.observations)
        q_values = self.critic.q_values(features, batch.actions)
        loss = td_loss(self.critic, q_values, target)
        regulariser, metrics = self._critic_regulariser(batch, features, q_values)
        loss = loss + regulariser
        self.critic.optimizer.zero_grad()
        loss.backward()
        self.critic.optimizer.step()
        return metrics | {"critic_loss": loss.detach(), "q_mean": q_values.detach().mean()}

    def _critic_regulariser(
        self, batch: Batch, features: th.Tensor, q_values: th.Tensor
    ) -> tuple[th.Tensor | float, dict[str, Any]]:
        """What the critic's loss has beside the temporal difference, and metrics."""
        return 0.0, {}

    def _next_values(self, observations: PyTorchObs, ent_coef: float) -> th.Tensor:
        """Minimum over a random pair (REDQ, arXiv 2101.05982), of the policy's action: ``[B]``."""
        actions, log_prob = self.actor.action_log_prob(observations)
        pair = th.randperm(self.critic.n_critics)[:2]
        values = self.critic_target(observations, actions, pair).amin(dim=0)
        return values - ent_coef * log_prob if self.backup_entropy else values

    def _train_actor(self, batch: Batch, ent_coef: float) -> dict[str, Any]:
        actions, log_prob = self.actor.action_log_prob(batch.observations)
        with th.no_grad():
            features = self.critic.features(batch.observations)
        q_values = self.critic.q_values(features, actions)
        q_value = q_values.amin(dim=0) if self.pessimistic_actor else q_values.mean(dim=0)
        # In units of the scale: a gradient of one size, whatever the returns
        loss = (ent_coef * log_prob - q_value).mean() / self.critic.scale
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        entropy = -log_prob.detach().mean()
        self._train_ent_coef(entropy)
        return {"actor_loss": loss.detach(), "entropy": entropy, "ent_coef": ent_coef}

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "actor", "critic", "critic_target"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return ["policy", "actor.optimizer", "critic.optimizer", *state_dicts], tensors
