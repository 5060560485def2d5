"""SWFP: Stepwise Flow Policy, on Stable-Baselines3's off-policy API."""

from __future__ import annotations

import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, ReplayBufferSamples, Schedule
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_swfp.checks import check_arguments, check_spaces, check_transition
from sb3_swfp.critics import SoftQEnsemble
from sb3_swfp.demonstrations import Demonstrations, load_demonstrations
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.files import atomic_path
from sb3_swfp.jko import PLAN_PARTICLES, JKOStep
from sb3_swfp.policies import (
    CnnPolicy,
    FlowActor,
    FlowActorCriticPolicy,
    MlpPolicy,
    MultiInputPolicy,
    bound_action,
    cascade_log_prob,
)
from sb3_swfp.pretraining import PretrainResult, clone_demonstrations, fit_normaliser, pretrain_critic, return_scale
from sb3_swfp.ripeness import CriticRipeness
from sb3_swfp.transport import JKOStepSize

SelfSWFP = TypeVar("SelfSWFP", bound="SWFP")

#: What ``jko_step_size="auto"`` means: the W2 movement per JKO epoch that learns from scratch, and the one that improves
#: a clone without breaking it (measured: docs/experiments.md)
DEFAULT_TARGET, DEFAULT_TARGET_PRETRAINED = 0.03, 0.002
#: Initial temperature after pretraining with ``ent_coef="auto"``, relative to the size of the returns
_INITIAL_TEMPERATURE = 1e-3


class SWFP(OffPolicyAlgorithm):
    """
    Stepwise Flow Policy: a flow-matching policy, cloned from demonstrations or not, improved online by JKO steps.

    Paper: Iterative Refinement of Flow Policies in Probability Space for Online Reinforcement Learning
    (https://arxiv.org/abs/2510.15388). No official code exists; ``docs/algorithm.md`` says what was read into it.

    The flow is cut into N small blocks. Each block's update is a JKO step: soft-Q energy plus a Wasserstein-2 trust
    region to the previous iterate. The arguments that SB3's SAC has mean what they mean there.

    :param policy: ``"FlowPolicy"`` (or SB3's aliases), which picks its features extractor from the observation space
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Adam's learning rate for blocks, critics and temperature, or a schedule of the remaining progress
    :param buffer_size: Size of the replay buffer
    :param learning_starts: Steps to collect before learning starts: uniformly at random by a new policy, by the policy
        itself once it is pretrained
    :param batch_size: Minibatch size
    :param tau: Polyak coefficient of the target critics and of the acting average of the actor
    :param gamma: Discount factor
    :param train_freq: Update the model every ``train_freq`` steps, or a tuple like ``(5, "step")`` or ``(2, "episode")``
    :param gradient_steps: Gradient steps after each rollout; -1 for as many as steps were taken
    :param action_noise: Noise added to the actions, none by default
    :param replay_buffer_class: Replay buffer class, ``DemonstrationReplayBuffer`` to keep demonstrations in play
    :param replay_buffer_kwargs: Its keyword arguments. ``n_steps`` and ``gamma`` reach a ``DemonstrationReplayBuffer``
        by themselves
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
    :param n_steps: Length of n-step returns. With sparse rewards and demonstrations 10 made the difference
    :param ent_coef: Entropy coefficient alpha: a number (0 is none), ``"auto"`` or ``"auto_0.1"``
    :param target_update_interval: Update the target critics every so many gradient steps
    :param target_entropy: Target entropy for ``ent_coef="auto"``; ``"auto"`` is minus the action dimension
    :param jko_step_size: JKO step size ``eta``, or ``"auto_<target>"`` to hold a root-mean-square W2 movement per action
        dimension and JKO epoch; ``"auto"`` is ``"auto_0.03"`` from scratch and ``"auto_0.002"`` once pretrained
    :param jko_epoch: Block updates per JKO epoch, against one frozen reference
    :param block_training: ``"parallel"`` (all blocks at once on stale particles) or ``"sequential"`` (strict JKO)
    :param w2: Trust region: ``"paired"`` (an upper bound, cheap), ``"exact"`` or ``"sinkhorn"`` (POT)
    :param policy_delay: Critic updates per block update, as in TD3
    :param critic_warmup: Gradient steps that the critic of a pretrained policy gets before its ranking is used, and again
        before the blocks may follow it; both also wait until its values settle (``train/critic_drift``)
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: Folder for TensorBoard logs, none by default
    :param policy_kwargs: Arguments of the policy: ``n_blocks``, ``block_net_arch``, ``n_critics``, ``n_candidates``, ...
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed of the pseudo random generators
    :param device: Device (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    :raises ValueError: for impossible arguments, or an action space without finite bounds
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowActorCriticPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    policy: FlowActorCriticPolicy
    actor: FlowActor
    actor_reference: FlowActor
    actor_average: FlowActor
    critic: SoftQEnsemble
    critic_target: SoftQEnsemble
    action_space: spaces.Box

    def __init__(
        self,
        policy: str | type[FlowActorCriticPolicy],
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
        jko_step_size: float | str = "auto",
        jko_epoch: int = 50,
        block_training: str = "parallel",
        w2: str = "paired",
        policy_delay: int = 2,
        critic_warmup: int = 2000,
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
            critic_warmup=critic_warmup,
            gamma=gamma,
            tau=tau,
        )
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
            replay_buffer_class=replay_buffer_class,
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
        self.target_entropy = target_entropy
        self.log_ent_coef: th.Tensor | None = None
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.ent_coef_optimizer: th.optim.Adam | None = None
        self.jko_step_size, self.jko_epoch = jko_step_size, jko_epoch
        self.block_training, self.w2 = block_training, w2
        self.policy_delay, self.critic_warmup = policy_delay, critic_warmup
        self.is_pretrained = False
        self.ripeness = CriticRipeness()
        self._step_size: JKOStepSize | None = None
        self._metrics: dict[str, Any] = {}
        # A loaded policy must act on a machine that doesn't have the demonstrations
        self._demonstrations_required = _init_setup_model
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        check_spaces(self.action_space)
        self.action_dim = int(np.prod(self.action_space.shape))
        with warnings.catch_warnings():
            if self.replay_buffer_class is not None and issubclass(self.replay_buffer_class, DemonstrationReplayBuffer):
                if self.replay_buffer is None:
                    self.replay_buffer = self._make_demonstration_buffer()
                # SB3 warns that n_steps won't reach a custom buffer; this one has it
                warnings.filterwarnings("ignore", message="`n_steps=.*is ignored")
            super()._setup_model()
        self._create_aliases()
        if self._step_size is None:
            self._step_size = self._make_step_size()
        self.jko = JKOStep(
            self.actor.cascade,
            self.actor_reference.cascade,
            self._step_size,
            self.jko_epoch,
            self.block_training,
            self.w2,
        )
        if self.block_training == "sequential":
            blocks = [{"params": self.actor.cascade.block_views(n)} for n in range(self.actor.cascade.n_blocks)]
            self.block_optimizer = self.policy.optimizer_class(
                blocks,
                lr=self.lr_schedule(1),  # type: ignore[call-arg]
                **self.policy.optimizer_kwargs,
            )
        self._setup_ent_coef()

    def _make_demonstration_buffer(self) -> ReplayBuffer:
        assert self.replay_buffer_class is not None
        # `env` is for hindsight goals; it must not end up in the saved replay_buffer_kwargs
        kwargs = {"n_steps": self.n_steps, "gamma": self.gamma, "env": self.env} | self.replay_buffer_kwargs
        arguments = (self.buffer_size, self.observation_space, self.action_space, self.device, self.n_envs)
        try:
            return self.replay_buffer_class(*arguments, self.optimize_memory_usage, **kwargs)
        except FileNotFoundError as error:
            if self._demonstrations_required:
                raise
            warnings.warn(
                f"The demonstrations that this model was trained with are not here ({error}). It can act; before learn(), "
                "call model.replay_buffer.set_demonstrations(...)",
                stacklevel=2,
            )
            for name in ("demonstrations", "n_demonstrations"):
                kwargs.pop(name, None)
            return self.replay_buffer_class(*arguments, self.optimize_memory_usage, **kwargs)

    def _make_step_size(self) -> JKOStepSize:
        if self.jko_step_size != "auto":
            return JKOStepSize(self.jko_step_size)
        return JKOStepSize(f"auto_{DEFAULT_TARGET_PRETRAINED if self.is_pretrained else DEFAULT_TARGET}")

    def _setup_ent_coef(self) -> None:
        if self.target_entropy == "auto":
            self.target_entropy = -float(self.action_dim)
        self.target_entropy = float(self.target_entropy)
        if isinstance(self.ent_coef, str) and self.ent_coef.startswith("auto"):
            initial = float(self.ent_coef.split("_")[1]) if "_" in self.ent_coef else 1.0
            if not initial > 0.0:
                raise ValueError(f"The initial value of ent_coef must be greater than 0, got {self.ent_coef!r}")
            self.log_ent_coef = th.log(th.ones(1, device=self.device) * initial).requires_grad_(True)
            self.ent_coef_optimizer = th.optim.Adam([self.log_ent_coef], lr=self.lr_schedule(1))
        else:
            try:
                self.ent_coef_tensor = th.tensor(float(self.ent_coef), device=self.device)
            except ValueError as error:
                message = f'ent_coef must be a number, "auto" or "auto_<initial value>", not {self.ent_coef!r}'
                raise ValueError(message) from error
            if not 0.0 <= self.ent_coef_tensor.item() < float("inf"):
                raise ValueError(f"ent_coef must not be negative or infinite, got {self.ent_coef}")

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.actor_reference = self.policy.actor_reference
        self.actor_average = self.policy.actor_average
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target

    def pretrain(
        self: SelfSWFP,
        demonstrations: Any = None,
        gradient_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int = 1000,
        critic_gradient_steps: int = 0,
        progress_bar: bool = False,
        tb_log_name: str = "SWFP_pretrain",
    ) -> PretrainResult:
        """
        Clone demonstrations: conditional flow matching of all blocks at once, and then, optionally, critic training on
        the same data. A ``VecNormalize`` that has seen no data yet takes its statistics from the demonstrations.

        :param demonstrations: Anything :func:`load_demonstrations` takes; those of the replay buffer when omitted. A
            ``DemonstrationReplayBuffer`` that has none yet keeps these in play
        :param gradient_steps: Most gradient steps to run
        :param batch_size: Transitions per gradient step; each block sees all of them
        :param learning_rate: AdamW's learning rate
        :param validation_fraction: Share of the episodes that is held out for early stopping
        :param patience: Stop after so many gradient steps without a better validation loss
        :param critic_gradient_steps: Gradient steps of the critics on the demonstrations afterwards
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run
        :return: Losses and the step whose weights were kept
        :raises ValueError: if there are no demonstrations, or they don't fit the environment
        """
        check_arguments(gradient_steps=gradient_steps, batch_size=batch_size, patience=patience)
        data = self._demonstrations_for_pretraining(demonstrations)
        fit_normaliser(self._vec_normalize_env, data, self.gamma)
        result = clone_demonstrations(
            self, data, gradient_steps, batch_size, learning_rate, validation_fraction, patience, progress_bar, tb_log_name
        )
        for frozen in (self.actor_reference, self.actor_average):
            frozen.load_state_dict(self.actor.state_dict())
        self.is_pretrained = True
        scale = return_scale(data, self._vec_normalize_env, self.gamma)
        for critic in (self.critic, self.critic_target):
            critic.scale.fill_(scale)
        if self.ent_coef == "auto" and self.log_ent_coef is not None:
            self.log_ent_coef.data.fill_(float(np.log(_INITIAL_TEMPERATURE * scale)))
        self._step_size = self.jko.step_size = self._make_step_size()
        if critic_gradient_steps > 0:
            pretrain_critic(self, data, critic_gradient_steps, batch_size, progress_bar)
        return result

    def _demonstrations_for_pretraining(self, source: Any) -> Demonstrations:
        buffer = self.replay_buffer if isinstance(self.replay_buffer, DemonstrationReplayBuffer) else None
        if source is None:
            if buffer is None or buffer.demonstrations is None:
                raise ValueError(
                    "pretrain() needs demonstrations: pass them, or use replay_buffer_class=DemonstrationReplayBuffer "
                    'with replay_buffer_kwargs={"demonstrations": ...}'
                )
            return buffer.demonstrations
        data = load_demonstrations(source).for_spaces(self.observation_space, self.action_space)
        if buffer is not None and buffer.demonstrations is None:
            buffer.set_demonstrations(data)
        return data

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with a block update after every ``policy_delay`` of them
        :param batch_size: Minibatch size
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            ent_coef = self._current_ent_coef()
            self._metrics |= self.train_critic(batch, ent_coef)
            self._n_updates += 1
            if self._n_updates % self.policy_delay == 0 and self._actor_may_move():
                self._metrics |= self._train_actor(batch, ent_coef)
                polyak_update(self.actor.parameters(), self.actor_average.parameters(), self.tau)
            if self._n_updates % self.target_update_interval == 0:
                polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        self._log_metrics()

    def _optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        if self.block_training == "sequential":
            optimizers.append(self.block_optimizer)
        return optimizers

    def _log_metrics(self) -> None:
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer):
            self._metrics["demonstration_share"] = self.replay_buffer.last_demonstration_share
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, value in self._metrics.items():
            self.logger.record(f"train/{name}", float(value))

    def _current_ent_coef(self) -> float:
        return self.log_ent_coef.exp().item() if self.log_ent_coef is not None else self.ent_coef_tensor.item()

    def _actor_may_move(self) -> bool:
        """Let candidates compete, then the blocks move, as the critic ripens; nothing to protect without a clone."""
        if not self.policy.critic_is_ripe and self.ripeness.can_rank(self.critic_warmup):
            self.policy.critic_is_ripe.fill_(True)
        return not self.is_pretrained or self.ripeness.can_point(self.critic_warmup)

    def train_critic(self, batch: ReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        """
        One gradient step of the soft-Q ensemble towards
        ``r + gamma^n (min over a random pair of Q_target(s', a') - alpha log pi(a'|s'))`` (REDQ, arXiv 2101.05982).

        :param batch: Transitions
        :param ent_coef: Entropy coefficient
        :return: Metrics
        """
        discounts = self.gamma if batch.discounts is None else batch.discounts
        with th.no_grad():
            features = self.actor_average.features(batch.next_observations)
            noise = self.actor_average.noise(len(features))
            sweep = self.actor_average.cascade.integrate(features, noise, log_det=ent_coef > 0.0)
            pair = th.randperm(self.critic.n_critics)[:2]
            next_q = self.critic_target(batch.next_observations, bound_action(sweep.particles[-1]), pair).amin(dim=0)
            if ent_coef > 0.0:
                next_q = next_q - ent_coef * cascade_log_prob(sweep)
            target = batch.rewards.T + (1.0 - batch.dones.T) * (discounts if discounts is self.gamma else discounts.T) * next_q
        q_values = self.critic(batch.observations, batch.actions)
        # In units of the scale; a sum over the ensemble, so that each member learns as it would alone
        loss = 0.5 * F.mse_loss(q_values / self.critic.scale, (target / self.critic.scale).expand_as(q_values))
        loss = loss * self.critic.n_critics
        self.critic.optimizer.zero_grad()
        loss.backward()
        self.critic.optimizer.step()
        q_mean = q_values.mean().item()
        self.ripeness.update(q_mean, target.abs().mean().item())
        return {"critic_loss": loss.detach(), "q_mean": q_mean, "critic_drift": self.ripeness.drift}

    def _train_actor(self, batch: ReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        observations = batch.observations
        with th.no_grad():
            critic_features = self._plan_rows(self.critic.features(observations))
            features_reference = self._plan_rows(self.actor_reference.features(observations))

        def q_function(actions: th.Tensor) -> th.Tensor:
            # The whole ensemble's minimum: what only some critics believe should not pull the flow
            return self.critic.q_values(critic_features, actions).amin(dim=0)

        scale = max(self.ripeness.magnitude, 1e-6)
        stale = self.jko.stale_particles(features_reference, q_function, ent_coef, scale)
        if self.block_training == "parallel":
            loss = self.jko.parallel_loss(self._plan_rows(self.actor.features(observations)), stale, ent_coef, scale)
            self.actor.optimizer.zero_grad()
            loss.backward()
            self.actor.optimizer.step()
        else:
            loss = self._train_blocks_in_order(observations, stale.inputs[0], q_function, ent_coef, scale)
        metrics = {"actor_loss": loss.detach(), "energy": -stale.q_values.mean(), "ent_coef": ent_coef}
        if ent_coef > 0.0:
            metrics["entropy"] = -stale.log_prob.mean()
            self._train_ent_coef(metrics["entropy"])
        if self.jko.count_step():
            features = self._plan_rows(self.actor.features(observations)).detach()
            metrics |= self.jko.finish_epoch(features, features_reference)
            self.actor_reference.load_state_dict(self.actor.state_dict())
        return metrics

    def _plan_rows(self, features: th.Tensor) -> th.Tensor:
        """An optimal plan needs several particles of each state: fewer states then, the same number of rows."""
        if self.w2 == "paired":
            return features
        return features[: max(len(features) // PLAN_PARTICLES, 1)].repeat_interleave(PLAN_PARTICLES, dim=0)

    def _train_blocks_in_order(
        self, observations: Any, x: th.Tensor, q_function: Any, ent_coef: float, scale: float
    ) -> th.Tensor:
        total = th.zeros((), device=self.device)
        cascade = self.actor.cascade
        self.actor.optimizer.zero_grad()
        for n in range(cascade.n_blocks):
            features = self._plan_rows(self.actor.features(observations))
            loss = self.jko.sequential_loss(n, features, x, q_function, ent_coef, scale)
            loss.backward()
            for view, stacked in zip(self.block_optimizer.param_groups[n]["params"], cascade.parameters(), strict=True):
                assert stacked.grad is not None
                view.grad = cascade.block_slice(stacked.grad, n).contiguous()
                stacked.grad = None
            self.block_optimizer.step()
            self.block_optimizer.zero_grad()
            with th.no_grad():
                x, _ = cascade.apply_block(n, features, x)
            total += loss.detach()
        # What remains are the features extractor's gradients, if it has parameters
        self.actor.optimizer.step()
        return total

    def _train_ent_coef(self, entropy: th.Tensor) -> None:
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            assert isinstance(self.target_entropy, float)
            loss = (self.log_ent_coef * (entropy - self.target_entropy)).mean()
            self.ent_coef_optimizer.zero_grad()
            loss.backward()
            self.ent_coef_optimizer.step()
        self.policy.temperature.fill_(self._current_ent_coef())

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        # Uniform noise would throw a clone away: its own roll-outs fill the buffer from the first step on
        return super()._sample_action(0 if self.is_pretrained else learning_starts, action_noise, n_envs)

    def _store_transition(
        self,
        replay_buffer: ReplayBuffer,
        buffer_action: np.ndarray,
        new_obs: np.ndarray | dict[str, np.ndarray],
        reward: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        check_transition(new_obs, reward, self.num_timesteps)
        super()._store_transition(replay_buffer, buffer_action, new_obs, reward, dones, infos)

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer) and (reset_num_timesteps or self._last_obs is None):
            # The environment is about to be reset: no return may run on from the episode that was open
            self.replay_buffer.truncate_last_trajectory()
        return super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)

    def learn(
        self: SelfSWFP,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "SWFP",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfSWFP:
        """
        :param total_timesteps: Environment steps, also as a float such as 1e6
        :param callback: SB3 callback(s)
        :param log_interval: Episodes between two logs
        :param tb_log_name: Name of the TensorBoard run
        :param reset_num_timesteps: False to continue the time steps of an earlier call
        :param progress_bar: Show a progress bar
        """
        return super().learn(int(total_timesteps), callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)

    def save(
        self,
        path: str | pathlib.Path | io.BufferedIOBase,
        exclude: Iterable[str] | None = None,
        include: Iterable[str] | None = None,
    ) -> None:
        """
        Save as SB3 does, but replace an existing file only once the new one is complete.

        :param path: Path (".zip" is added where there is no suffix) or open file
        :param exclude: Names of attributes to leave out
        :param include: Names of attributes to keep in spite of the defaults
        """
        if not isinstance(path, (str, pathlib.Path)):
            return super().save(path, exclude, include)
        path = pathlib.Path(path)
        with atomic_path(path if path.suffix else path.with_suffix(".zip")) as temporary:
            super().save(temporary, exclude, include)

    def load_replay_buffer(
        self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True
    ) -> None:
        """
        :param path: Path to the pickled replay buffer
        :param truncate_last_traj: Whether the episode that was being recorded ends there
        """
        super().load_replay_buffer(path, truncate_last_traj)
        if isinstance(self.replay_buffer, DemonstrationReplayBuffer):
            if self.env is not None:
                self.replay_buffer.set_env(self.env)
            if truncate_last_traj:
                self.replay_buffer.truncate_last_trajectory()

    def _excluded_save_params(self) -> list[str]:
        rebuilt = ["actor", "actor_reference", "actor_average", "critic", "critic_target", "jko", "block_optimizer"]
        return [*super()._excluded_save_params(), *rebuilt, "_demonstrations_required"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts = ["policy", "actor.optimizer", "critic.optimizer"]
        if self.block_training == "sequential":
            state_dicts.append("block_optimizer")
        if self.ent_coef_optimizer is not None:
            return [*state_dicts, "ent_coef_optimizer"], ["log_ent_coef"]
        return state_dicts, ["ent_coef_tensor"]
