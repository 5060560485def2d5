"""SWFP: Stepwise Flow Policy, on Stable-Baselines3's off-policy API."""

from __future__ import annotations

from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import (
    DictReplayBufferSamples,
    GymEnv,
    ReplayBufferSamples,
    Schedule,
)

from sb3_swfp.checks import check_arguments
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.flow_algorithm import FlowAlgorithm
from sb3_swfp.jko import PLAN_PARTICLES, JKOStep, evenly
from sb3_swfp.policies import (
    CnnPolicy,
    FlowActorCriticPolicy,
    MlpPolicy,
    MultiInputPolicy,
    every_other,
)
from sb3_swfp.transport import JKOStepSize

#: What ``jko_step_size="auto"`` means: the W2 movement per JKO epoch that learns from scratch; and, for a clone, the
#: share of its own spread that it may move, since what is a small step for a spread of 0.2 (AdroitHandPen) breaks a
#: clone with a spread of 0.03 (AdroitHandDoor): docs/experiments.md
DEFAULT_TARGET, DEFAULT_TARGET_OF_SPREAD = 0.1, 0.02
#: What ``jko_epoch="auto"`` means, from scratch and for a clone. The adjoint is the energy's gradient at the frozen
#: reference: in long epochs a policy that has far to go follows one that is out of date
DEFAULT_EPOCH, DEFAULT_EPOCH_OF_CLONE = 2, 50


class SWFP(FlowAlgorithm):
    """
    Stepwise Flow Policy: a flow-matching policy, cloned from demonstrations or not, improved online by JKO steps.

    Paper: Iterative Refinement of Flow Policies in Probability Space for Online Reinforcement Learning
    (https://arxiv.org/abs/2510.15388). No official code exists; ``docs/algorithm.md`` says what was read into it.

    The flow is cut into N small blocks. Each block's update is a JKO step: soft-Q energy plus a Wasserstein-2 trust
    region to the previous iterate. The arguments that SB3's SAC has mean what they mean there.

    :param policy: ``"FlowPolicy"`` (or SB3's aliases), which picks its features extractor from the observation space
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param learning_rate: Adam's learning rate for blocks, critics and temperature, or a schedule of the progress left.
        The blocks' (with the actor's features extractor) is multiplied by the share of its target that a falling
        ``jko_step_size`` still aims at
    :param buffer_size: Size of the replay buffer
    :param learning_starts: Steps to collect before learning starts: uniformly at random by a new policy, by the policy
        itself once it is pretrained
    :param batch_size: Minibatch size
    :param tau: Polyak coefficient of the target critics and of the averaged actor, which acts. A clone's has
        ``0.4 tau``, and a clone explores with the trained actor instead
    :param gamma: Discount factor
    :param train_freq: Update the model every so many steps, or a tuple like ``(5, "step")`` or ``(2, "episode")``
    :param gradient_steps: Gradient steps after each rollout; -1 for as many as steps were taken
    :param action_noise: Noise added to the actions, none by default
    :param replay_buffer_class: Replay buffer class, ``DemonstrationReplayBuffer`` to keep demonstrations in play
    :param replay_buffer_kwargs: Its keyword arguments. ``n_steps`` and ``gamma`` reach a ``DemonstrationReplayBuffer``
        by themselves, and a clone's ``demonstration_share`` is 0.1 (0.5 with hindsight goals) unless set
    :param optimize_memory_usage: Enable a memory efficient variant of the replay buffer
    :param n_steps: Length of n-step returns. With sparse rewards and demonstrations 10 made the difference
    :param ent_coef: Entropy coefficient alpha: a number (0 is none), ``"auto"`` or ``"auto_0.1"``
    :param target_update_interval: Update the target critics every so many gradient steps
    :param target_entropy: Target entropy for ``ent_coef="auto"``; ``"auto"`` is minus the action dimension
    :param jko_step_size: JKO step size ``eta``, or ``"auto_<target>"`` to hold a root-mean-square W2 movement per
        action dimension and JKO epoch, or ``"auto_lin_<target>"`` to decay it linearly over ``learn()``, to a tenth;
        ``"auto"`` is ``"auto_0.1"`` from scratch and, once pretrained, 2 % of the clone's own spread, decaying
    :param jko_epoch: Block updates per JKO epoch, against one frozen reference; ``"auto"`` is 2 from scratch and 50
        once pretrained
    :param confined: Whether a step pulls actions only where a change of their noise would move them, along what the
        policy already does, or wherever the critic's gradient leads (``docs/algorithm.md``, "Confinement");
        ``"auto"`` is ``True`` once pretrained and ``False`` from scratch
    :param block_training: ``"parallel"`` (all blocks at once on stale particles) or ``"sequential"`` (strict JKO)
    :param w2: Trust region: ``"paired"`` (an upper bound, cheap), ``"exact"`` or ``"sinkhorn"`` (both by POT;
        ``"sinkhorn"`` did worse from demonstrations than ``"paired"``, docs/results.md#trust-regions)
    :param policy_delay: Critic updates per block update, as in TD3
    :param critic_warmup: Gradient steps that the critic gets before it may pick among candidates. After pretraining it
        must also prove itself (:class:`~sb3_swfp.ripeness.CriticRipeness`) before it picks in every episode, unless the
        clone has little to lose, and the blocks follow its gradient after twice as many steps at the earliest
    :param target_candidates: Actions per next state of which the critic picks one in its target once it is ripe, by
        the softmax by which it explores (EMaQ's N, arXiv 2007.11091), but with the critics that don't judge the pick;
        at most ``n_candidates``. 1 values the flow without the picks; ``"auto"`` is 1 from scratch and
        ``n_candidates`` once pretrained
    :param noise_correlation: Correlation of the flow's noise from one step to the next while one particle explores
        (:class:`~sb3_swfp.noise.CorrelatedNoise`), in [0, 1). Tasks that white noise can't solve need 0.8 and more
    :param stats_window_size: Window size for the rollout logging
    :param tensorboard_log: Folder for TensorBoard logs, none by default
    :param policy_kwargs: Arguments of the policy: ``n_blocks``, ``block_net_arch``, ``n_critics``, ``n_candidates`` ...
    :param verbose: 0 for no output, 1 for info messages, 2 for debug messages
    :param seed: Seed of the pseudo random generators
    :param device: Device (cpu, cuda, ...)
    :param _init_setup_model: Whether to build the networks at the creation of the instance
    :raises ValueError: for impossible arguments
    :raises AssertionError: by SB3, for an action space that is not a ``Box`` with finite bounds
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowActorCriticPolicy,
        "MlpPolicy": MlpPolicy,
        "CnnPolicy": CnnPolicy,
        "MultiInputPolicy": MultiInputPolicy,
    }
    block_optimizer: th.optim.Optimizer

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
        jko_epoch: int | str = "auto",
        confined: bool | str = "auto",
        block_training: str = "parallel",
        w2: str = "paired",
        policy_delay: int = 2,
        critic_warmup: int = 2000,
        target_candidates: int | str = "auto",
        noise_correlation: float = 0.0,
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
            noise_correlation=noise_correlation,
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
        self.ent_coef = ent_coef
        self.target_update_interval = target_update_interval
        self.jko_step_size, self.jko_epoch, self.confined = jko_step_size, jko_epoch, confined
        self.block_training, self.w2 = block_training, w2
        self.policy_delay, self.critic_warmup = policy_delay, critic_warmup
        self.target_candidates, self.noise_correlation = target_candidates, noise_correlation
        self._step_size: JKOStepSize | None = None
        self._step_size_spec: float | str | None = None
        self._demonstrations_required = _init_setup_model
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        super()._setup_model()
        if self._step_size is None or self._step_size_spec != self.jko_step_size:
            # Kept over save and load, unless load() was given another one
            self._step_size, self._step_size_spec = self._make_step_size(), self.jko_step_size
        self.jko = JKOStep(
            self.actor.cascade,
            self.actor_reference.cascade,
            self._step_size,
            self._epoch_length(),
            self.block_training,
            self.w2,
            self._is_confined(),
        )
        if self.block_training == "sequential":
            blocks = [{"params": self.actor.cascade.block_views(n)} for n in range(self.actor.cascade.n_blocks)]
            self.block_optimizer = self.policy.optimizer_class(
                blocks,
                lr=self.lr_schedule(1),  # type: ignore[call-arg]
                **self.policy.optimizer_kwargs,
            )
        self._set_temperature()

    def _make_step_size(self) -> JKOStepSize:
        if self.jko_step_size != "auto":
            return JKOStepSize(self.jko_step_size)
        if not self.is_pretrained:
            return JKOStepSize(f"auto_{DEFAULT_TARGET}")
        return JKOStepSize(f"auto_lin_{DEFAULT_TARGET_OF_SPREAD * self.clone_spread}")

    def _epoch_length(self) -> int:
        if self.jko_epoch == "auto":
            return DEFAULT_EPOCH_OF_CLONE if self.is_pretrained else DEFAULT_EPOCH
        if not isinstance(self.jko_epoch, int):
            raise ValueError(f'jko_epoch must be a number of block updates or "auto", got {self.jko_epoch!r}')
        return self.jko_epoch

    def _is_confined(self) -> bool:
        if self.confined == "auto":
            return self.is_pretrained
        if not isinstance(self.confined, bool):
            raise ValueError(f'confined must be True, False or "auto", got {self.confined!r}')
        return self.confined

    def _after_cloning(self, data: Demonstrations) -> None:
        super()._after_cloning(data)
        self.jko.epoch_length, self.jko.steps_in_epoch = self._epoch_length(), 0
        self.jko.confined = self._is_confined()
        self._step_size = self.jko.step_size = self._make_step_size()
        self._set_temperature()

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with a block update after every ``policy_delay`` of them
        :param batch_size: Minibatch size
        """
        self.jko.step_size.progress_remaining = self._current_progress_remaining
        super().train(gradient_steps, batch_size)

    @property
    def _movement_left(self) -> float:
        return self._falling_movement if self.jko.step_size.decays else 1.0

    def _actor_optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = super()._actor_optimizers()
        return [*optimizers, self.block_optimizer] if self.block_training == "sequential" else optimizers

    def _train_actor(self, batch: ReplayBufferSamples | DictReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        observations = every_other(batch.observations)
        with th.no_grad():
            critic_features = self._plan_rows(self.critic.features(observations))
            features_reference = self._plan_rows(self.actor_reference.features(observations))

        def q_function(actions: th.Tensor) -> th.Tensor:
            q_values = self.critic.q_values(critic_features, actions)
            # From scratch nothing but pessimism keeps the flow from what the critics overestimate: on Pendulum the mean
            # ended near -210 instead of -170. A clone's movement is bounded by its spread (docs/experiments-scratch.md)
            return q_values.mean(dim=0) if self.is_pretrained else q_values.amin(dim=0)

        scale = max(self.ripeness.magnitude, 1e-6)
        if self.block_training == "parallel":
            stale = self.jko.stale_particles(features_reference, q_function, ent_coef, scale)
            q_values, entropy = stale.q_values, stale.entropy
            loss = self.jko.parallel_loss(self._plan_rows(self.actor.features(observations)), stale, ent_coef, scale)
            self.actor.optimizer.zero_grad()
            loss.backward()
            self.actor.optimizer.step()
        else:
            x_0 = self.jko.noise(features_reference)
            with th.no_grad():
                _, q_values, entropy = self.jko.evaluate(features_reference, x_0, q_function, ent_coef)
            loss = self._train_blocks_in_order(observations, x_0, q_function, ent_coef, scale)
        metrics: dict[str, Any] = {
            "actor_loss": loss.detach(),
            "energy": -q_values.mean(),
            "ent_coef": ent_coef,
        }
        if ent_coef > 0.0:
            metrics["entropy"] = entropy
            self._train_ent_coef(entropy)
        self._set_temperature()
        if self.jko.count_step():
            features = self._plan_rows(self.actor.features(observations)).detach()
            metrics |= self.jko.finish_epoch(features, features_reference)
            self.actor_reference.load_state_dict(self.actor.state_dict())
        return metrics

    def _plan_rows(self, features: th.Tensor) -> th.Tensor:
        """An optimal plan needs several particles of each state: fewer states then, the same number of rows."""
        if self.w2 == "paired":
            return features
        # From the whole batch: its first rows are demonstrations
        kept = evenly(len(features), max(len(features) // PLAN_PARTICLES, 1))
        return features[kept].repeat_interleave(PLAN_PARTICLES, dim=0)

    def _train_blocks_in_order(
        self, observations: Any, x_0: th.Tensor, q_function: Any, ent_coef: float, scale: float
    ) -> th.Tensor:
        total, x = th.zeros((), device=self.device), x_0
        cascade = self.actor.cascade
        self.actor.optimizer.zero_grad()
        for n in range(cascade.n_blocks):
            features = self._plan_rows(self.actor.features(observations))
            loss = self.jko.sequential_loss(n, features, x_0, x, q_function, ent_coef, scale)
            loss.backward()
            for view, stacked in zip(self.block_optimizer.param_groups[n]["params"], cascade.parameters(), strict=True):
                assert stacked.grad is not None
                view.grad = cascade.block_slice(stacked.grad, n).contiguous()
                stacked.grad = None
            self.block_optimizer.step()
            self.block_optimizer.zero_grad()
            if n + 1 < cascade.n_blocks:
                with th.no_grad():
                    x = cascade.apply_block(n, features, x)
            total += loss.detach()
        # What remains are the features extractor's gradients, if it has parameters
        self.actor.optimizer.step()
        return total

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "jko", "block_optimizer"]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return [*state_dicts, "block_optimizer"] if self.block_training == "sequential" else state_dicts, tensors
