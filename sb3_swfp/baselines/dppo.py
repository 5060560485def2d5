"""DPPO: PPO through the denoising chain of a cloned flow policy, on Stable-Baselines3's on-policy API."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, explained_variance, obs_as_tensor, update_learning_rate
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from sb3_swfp.baselines.chains import (
    ChainRolloutBuffer,
    ChainSamples,
    DictChainRolloutBuffer,
    RewardScaler,
    chain_length,
    clipped_loss,
    step_clip_ranges,
)
from sb3_swfp.baselines.dppo_policy import FlowValuePolicy, ValueNetwork
from sb3_swfp.bounds import bound_action
from sb3_swfp.checks import check_actions, check_arguments, check_finite, check_terminal_observations
from sb3_swfp.cloning import CloningAlgorithm
from sb3_swfp.demonstrations import Demonstrations, load_demonstrations
from sb3_swfp.policies import FlowActor
from sb3_swfp.saving import AtomicSave

SelfDPPO = TypeVar("SelfDPPO", bound="DPPO")

_POSITIVE = ("clip_range", "clip_range_base", "clip_range_rate", "min_sampling_std", "min_logprob_std", "target_kl")


def _check(**arguments: Any) -> None:
    check_arguments(**arguments)
    for name, value in arguments.items():
        if name == "n_epochs" and value < 1:
            raise ValueError(f"n_epochs must be at least 1, got {value}")
        if name == "critic_warmup_rollouts" and value < 0:
            raise ValueError(f"critic_warmup_rollouts must not be negative, got {value}")
        if name in ("gae_lambda", "gamma_denoising") and not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
        # Not schedules and None
        is_number = isinstance(value, (int, float))
        if name in (*_POSITIVE, "max_grad_norm") and is_number and not 0.0 < value < math.inf:
            raise ValueError(f"{name} must be a positive number, got {value}")


class DPPO(CloningAlgorithm, AtomicSave, OnPolicyAlgorithm):
    """
    Diffusion Policy Policy Optimization (Ren et al., 2024, https://arxiv.org/abs/2409.00588) of a flow policy.

    The policy's denoising steps are a Markov decision process inside the environment's: every Euler step of the flow is
    a Gaussian transition, and PPO's clipped objective is taken of each. Official code:
    https://github.com/irom-princeton/dppo (read at commit cc7234a). Where an argument has a published value, the
    default is that of ``cfg/robomimic/finetune/can/ft_ppo_diffusion_mlp_ta1.yaml``: robot manipulation from states,
    without action chunks. Its other configurations have ``gamma`` 0.99 (Gym, Kitchen, D3IL), ``gamma_denoising`` 0.9
    (proficient-human Can and Square) and 0.95 (D3IL), ``clip_range_base=0.01`` (Gym, Kitchen), 5 epochs (Gym), actor
    learning rates down to 1e-5 (D3IL, images), and no critic warm-up (Gym, Kitchen).

    What differs from the publication, and why:

    - **The denoiser is this package's flow**, cloned by the code that clones SWFP's, not a DDPM. An ODE has no noise of
      its own, so ``min_sampling_std`` is not a floor but all of it, added after every Euler step as in ReinFlow
      (https://arxiv.org/abs/2505.22094; there a network sets its size, here it is fixed). All steps are fine-tuned
      (DPPO: the last 10 of 20; ReinFlow: all 4). As in DPPO's official code the last step is noisy too while learning,
      the noise is cut off at 3 standard deviations, and evaluation adds none.
    - **Roll-outs.** Published: 300 steps in each of 50 environments, over millions of steps. ``n_steps=3000`` of one
      environment is for a budget of some tens of thousands; ``batch_size`` keeps the published tenth of a roll-out.
    - **Minibatches** are of states with their whole chains, not of shuffled (state, denoising step) pairs: the blocks
      have weights of their own and are evaluated at once. The gradient's expectation is the same.
    - **Critic.** [256, 256] with Mish instead of [256, 256, 256] with residual connections. Since actor and critic have
      an optimiser each, a ``vf_coef`` would cancel in Adam's update and is left out; so is entropy, which is constant.

    Logged under ``train/``, as means over a roll-out's minibatches: ``policy_gradient_loss``, ``approx_kl`` and
    ``clip_fraction`` (over all denoising steps; after the critic's warm-up) and ``value_loss``, in units of the scaled
    reward; and ``explained_variance``, ``reward_scale`` (what rewards are divided by), ``clip_range`` and the rates.

    :param policy: ``"FlowPolicy"`` (or SB3's aliases), which picks its features extractor from the observation space
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Adam's learning rate of the actor, or a schedule of the progress left. Published: 1e-4
    :param critic_learning_rate: Likewise of the critic. Published: 1e-3
    :param n_steps: Steps of each environment in a roll-out. Published: 300, with 50 environments
    :param batch_size: States in a minibatch, each with its whole chain. Published: a tenth of the roll-out
    :param n_epochs: Passes through a roll-out. Published: 10
    :param gamma: Discount factor. Published: 0.999
    :param gae_lambda: Trade-off of bias and variance in the advantages. Published: 0.95
    :param gamma_denoising: Discount of advantages, for each denoising step that follows. Published: 0.99
    :param clip_range: Clip range of the last denoising step, or a schedule of the progress left. Published: 0.01 (of
        densities averaged over the action's dimensions)
    :param clip_range_base: Clip range of the first denoising step. Published: 0.001
    :param clip_range_rate: Rate of the exponential interpolation between the two. Published: 3
    :param min_sampling_std: Standard deviation of the noise in every denoising step, in SB3's scaled actions [-1, 1].
        Published: 0.1
    :param min_logprob_std: Standard deviation that log-densities are computed with. Published: 0.1
    :param normalize_advantage: Whether to normalise advantages in each minibatch. Published: yes
    :param reward_scaling: Whether to divide rewards by the running standard deviation of returns, see
        :class:`RewardScaler`. Published: yes
    :param critic_warmup_rollouts: Roll-outs that only the critic learns from. Published: 1 (their 2 count the first
        iteration, which evaluates only)
    :param max_grad_norm: Largest norm of the actor's gradient. Published: no limit
    :param target_kl: Stop learning from a roll-out once the approximate KL divergence is above it. Published: 1
    :param demonstrations: What ``pretrain()`` clones unless it is given others: anything that
        :func:`load_demonstrations` takes. They are read and checked at once, and not saved with the model, except for
        their name or path
    :param n_demonstrations: How many of their episodes to use, the first ones; all when omitted
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: Folder for TensorBoard logs, none by default
    :param policy_kwargs: Arguments of the policy: ``n_blocks``, ``block_net_arch``, ``net_arch`` ...
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed of the pseudo random generators
    :param device: Device (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    :raises ValueError: for impossible arguments, or demonstrations that don't fit the environment
    :raises FileNotFoundError: if the demonstrations aren't there
    :raises AssertionError: by SB3, for an action space that is not a ``Box`` with finite bounds
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowValuePolicy,
        "MlpPolicy": FlowValuePolicy,
        "CnnPolicy": FlowValuePolicy,
        "MultiInputPolicy": FlowValuePolicy,
    }
    action_space: spaces.Box
    policy: FlowValuePolicy  # type: ignore[assignment]
    actor: FlowActor
    critic: ValueNetwork
    rollout_buffer: ChainRolloutBuffer

    def __init__(
        self,
        policy: str | type[FlowValuePolicy],
        env: GymEnv | str,
        learning_rate: float | Schedule = 1e-4,
        critic_learning_rate: float | Schedule = 1e-3,
        n_steps: int = 3000,
        batch_size: int = 300,
        n_epochs: int = 10,
        gamma: float = 0.999,
        gae_lambda: float = 0.95,
        gamma_denoising: float = 0.99,
        clip_range: float | Schedule = 0.01,
        clip_range_base: float = 0.001,
        clip_range_rate: float = 3.0,
        min_sampling_std: float = 0.1,
        min_logprob_std: float = 0.1,
        normalize_advantage: bool = True,
        reward_scaling: bool = True,
        critic_warmup_rollouts: int = 1,
        max_grad_norm: float | None = None,
        target_kl: float | None = 1.0,
        demonstrations: Any = None,
        n_demonstrations: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ):
        _check(
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            gamma_denoising=gamma_denoising,
            clip_range=clip_range,
            clip_range_base=clip_range_base,
            clip_range_rate=clip_range_rate,
            min_sampling_std=min_sampling_std,
            min_logprob_std=min_logprob_std,
            critic_warmup_rollouts=critic_warmup_rollouts,
            max_grad_norm=max_grad_norm,
            target_kl=target_kl,
        )
        if normalize_advantage and batch_size < 2:
            raise ValueError("batch_size must be at least 2 with normalize_advantage: one advantage has no deviation")
        if demonstrations is None and n_demonstrations is not None:
            raise ValueError(f"n_demonstrations={n_demonstrations} was given without demonstrations")
        super().__init__(
            policy,  # type: ignore[arg-type]
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            gamma=gamma,
            gae_lambda=gae_lambda,
            ent_coef=0.0,
            vf_coef=1.0,
            max_grad_norm=max_grad_norm,  # type: ignore[arg-type]  # None is no limit
            use_sde=False,
            sde_sample_freq=-1,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box,),
        )
        self.critic_learning_rate = critic_learning_rate
        self.batch_size, self.n_epochs = batch_size, n_epochs
        self.gamma_denoising = gamma_denoising
        self.clip_range, self.clip_range_base, self.clip_range_rate = clip_range, clip_range_base, clip_range_rate
        self.min_sampling_std, self.min_logprob_std = min_sampling_std, min_logprob_std
        self.normalize_advantage, self.target_kl = normalize_advantage, target_kl
        self.critic_warmup_rollouts = critic_warmup_rollouts
        self.reward_scaling, self.reward_scaler = reward_scaling, RewardScaler()
        self.demonstrations, self.n_demonstrations = demonstrations, n_demonstrations
        self._demonstrations: Demonstrations | None = None
        self._n_rollouts = 0
        if _init_setup_model:
            if demonstrations is not None:
                # A missing file must show now, not after an hour; a loaded model may act without it
                self._demonstrations = self._fitting(demonstrations, n_demonstrations)
            self._setup_model()

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, FlowValuePolicy):
            raise ValueError(
                f"DPPO needs a FlowValuePolicy, not {self.policy_class.__name__}: another algorithm's file?"
            )
        self._setup_lr_schedule()
        self.critic_lr_schedule = FloatSchedule(self.critic_learning_rate)
        self.clip_schedule = FloatSchedule(self.clip_range)
        self.set_random_seed(self.seed)
        self.policy = self.policy_class(
            self.observation_space,
            self.action_space,
            self.lr_schedule,
            sampling_std=self.min_sampling_std,
            **self.policy_kwargs,
        ).to(self.device)
        self.actor, self.critic = self.policy.actor, self.policy.critic
        is_dict = isinstance(self.observation_space, spaces.Dict)
        self.rollout_buffer = (DictChainRolloutBuffer if is_dict else ChainRolloutBuffer)(
            self.n_steps,
            self.observation_space,
            self.action_space,
            self.device,
            self.gae_lambda,
            self.gamma,
            self.n_envs,
            chain_length(self.actor.cascade),
        )

    def _fitting(self, source: Any, n_episodes: int | None = None) -> Demonstrations:
        return load_demonstrations(source, n_episodes).for_spaces(self.observation_space, self.action_space)

    def _demonstrations_for_pretraining(self, source: Any) -> Demonstrations:
        if source is not None:
            return self._fitting(source)
        if self._demonstrations is None:
            if self.demonstrations is None:
                raise ValueError("pretrain() needs demonstrations: pass them, or create the model with demonstrations=")
            self._demonstrations = self._fitting(self.demonstrations, self.n_demonstrations)
        return self._demonstrations

    def _keep_demonstrations(self, source: Any, data: Demonstrations) -> None:
        """It learns from roll-outs alone."""

    def _network_to_clone(self) -> FlowActor:
        return self.actor

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """
        As SB3's, but of chains; rewards are scaled once the roll-out is complete.

        :param env: The training environments
        :param callback: Called at every step, and before and after the roll-out
        :param rollout_buffer: Buffer to fill
        :param n_rollout_steps: Steps of each environment
        :return: False if the callback ended training
        """
        assert self._last_obs is not None, "No previous observation was provided"
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        timeout_values = np.zeros_like(rollout_buffer.rewards)
        callback.on_rollout_start()
        for step in range(n_rollout_steps):
            with th.no_grad():
                observations = obs_as_tensor(self._last_obs, self.device)  # type: ignore[arg-type]
                chains = self.policy.sample_chains(observations)
                log_probs = self.policy.log_probs(observations, chains, self.min_logprob_std)
                values = self.policy.predict_values(observations)
            new_obs, rewards, dones, infos = env.step(self._env_actions(chains))
            self._check_data(new_obs, rewards, dones, infos)
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            timeout_values[step] = self._timeout_values(dones, infos)
            starts: Any = self._last_episode_starts
            rollout_buffer.add(self._last_obs, chains.cpu().numpy(), rewards, starts, values, log_probs)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        if self.reward_scaling:
            rollout_buffer.rewards = self.reward_scaler(rollout_buffer.rewards, rollout_buffer.episode_starts)
        rollout_buffer.rewards += self.gamma * timeout_values
        with th.no_grad():
            last_values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))  # type: ignore[arg-type]
        rollout_buffer.compute_returns_and_advantage(last_values, dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _env_actions(self, chains: th.Tensor) -> np.ndarray:
        scaled = bound_action(chains[:, -1]).cpu().numpy().reshape(-1, *self.action_space.shape)
        check_actions(scaled, self.num_timesteps)
        return self.policy.unscale_action(scaled)

    def _check_data(self, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]) -> None:
        # Before normalisation: a NaN in one environment would show up in all through the running statistics
        normalize = self._vec_normalize_env
        observations = new_obs if normalize is None else normalize.get_original_obs()
        check_terminal_observations(infos, dones, self.num_timesteps)
        check_finite(
            observations, self.num_timesteps, rewards if normalize is None else normalize.get_original_reward()
        )

    def _timeout_values(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """Values of the states in which a time limit cut episodes off, 0 for all other environments: ``[n_envs]``."""
        values = np.zeros(len(dones), dtype=np.float32)
        for i in np.flatnonzero(dones):
            last = infos[i].get("terminal_observation")
            if last is not None and infos[i].get("TimeLimit.truncated", False):
                with th.no_grad():
                    values[i] = self.policy.predict_values(self.policy.obs_to_tensor(last)[0]).item()
        return values

    def train(self) -> None:
        """Learn from the roll-out: the critic always, the actor once the critic has had its warm-up."""
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.actor.optimizer)
        update_learning_rate(self.critic.optimizer, self.critic_lr_schedule(self._current_progress_remaining))
        history = list(self._updates(actor_learns=self._n_rollouts >= self.critic_warmup_rollouts))
        self._n_rollouts += 1
        self._log_metrics(history)

    def _updates(self, actor_learns: bool) -> Iterator[dict[str, th.Tensor]]:
        clip_ranges, discounts = self._clip_ranges(), self._denoising_discounts()
        for _ in range(self.n_epochs):
            self._n_updates += 1
            for batch in self.rollout_buffer.batches(self.batch_size):
                metrics = self._train_critic(batch)
                if actor_learns:
                    metrics |= self._train_actor(batch, clip_ranges, discounts)
                yield metrics
                if actor_learns and self.target_kl is not None and metrics["approx_kl"] > self.target_kl:
                    return

    def _clip_ranges(self) -> th.Tensor:
        """Of every denoising step, ``[K]``."""
        last = self.clip_schedule(self._current_progress_remaining)
        n_steps = self.rollout_buffer.n_denoising_steps
        return step_clip_ranges(n_steps, last, self.clip_range_base, self.clip_range_rate).to(self.device)

    def _denoising_discounts(self) -> th.Tensor:
        """Of every denoising step, ``[K]``: 1 for the last."""
        remaining = th.arange(self.rollout_buffer.n_denoising_steps - 1, -1, -1, device=self.device)
        return self.gamma_denoising**remaining

    def _train_critic(self, batch: ChainSamples) -> dict[str, th.Tensor]:
        loss = 0.5 * nn.functional.mse_loss(self.critic(batch.observations), batch.returns)
        self.critic.optimizer.zero_grad()
        loss.backward()
        self.critic.optimizer.step()
        return {"value_loss": loss.detach()}

    def _train_actor(self, batch: ChainSamples, clip_ranges: th.Tensor, discounts: th.Tensor) -> dict[str, th.Tensor]:
        advantages = batch.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_probs = self.policy.log_probs(batch.observations, batch.chains, self.min_logprob_std)
        loss, metrics = clipped_loss(log_probs, batch.old_log_probs, advantages, clip_ranges, discounts)
        self.actor.optimizer.zero_grad()
        loss.backward()
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.actor.parameters(), self.max_grad_norm)
        self.actor.optimizer.step()
        return metrics

    def _log_metrics(self, history: list[dict[str, th.Tensor]]) -> None:
        for name in history[-1]:
            self.logger.record(f"train/{name}", float(np.mean([float(metrics[name]) for metrics in history])))
        buffer = self.rollout_buffer
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        self.logger.record("train/critic_learning_rate", self.critic_lr_schedule(self._current_progress_remaining))
        self.logger.record("train/clip_range", self.clip_schedule(self._current_progress_remaining))
        if self.reward_scaling:
            self.logger.record("train/reward_scale", self.reward_scaler.scale)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")

    def _setup_learn(self, *args: Any, **kwargs: Any) -> tuple[int, BaseCallback]:
        result = super()._setup_learn(*args, **kwargs)
        first = self._last_obs if self._vec_normalize_env is None else self._vec_normalize_env.get_original_obs()
        check_finite(first, self.num_timesteps)  # type: ignore[arg-type]
        return result

    def learn(
        self: SelfDPPO,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "DPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfDPPO:
        """
        :param total_timesteps: Environment steps, also as a float such as 1e6; the last roll-out is completed
        :param callback: SB3 callback(s)
        :param log_interval: Roll-outs between two logs
        :param tb_log_name: Name of the TensorBoard run
        :param reset_num_timesteps: False to continue the time steps of an earlier call
        :param progress_bar: Show a progress bar
        """
        return super().learn(
            int(total_timesteps), callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar
        )

    def _excluded_save_params(self) -> list[str]:
        excluded = [*super()._excluded_save_params(), "actor", "critic", "_demonstrations"]
        # A name or path is kept, so that the loaded model can find them; the data is not
        return excluded if isinstance(self.demonstrations, (str, pathlib.Path)) else [*excluded, "demonstrations"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "actor.optimizer", "critic.optimizer"], []
