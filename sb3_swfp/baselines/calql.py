"""Cal-QL: calibrated conservative Q-learning (Nakamoto et al., arXiv 2303.05479), on CQL (arXiv 2006.04779)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import NStepReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm

from sb3_swfp.baselines.gaussian import Batch, GaussianAlgorithm, GaussianPolicy
from sb3_swfp.checks import check_arguments
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.pretraining import fit_normaliser, start_logging

SelfCalQL = TypeVar("SelfCalQL", bound="CalQL")
#: Rewards before a time limit whose mean is taken to go on
_LAST_REWARDS = 10


class CalibratedSamples(NamedTuple):
    """SB3's samples, and the Monte-Carlo return of each transition, ``[B, 1]``."""

    observations: th.Tensor
    actions: th.Tensor
    next_observations: th.Tensor
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    monte_carlo_returns: th.Tensor


class MonteCarloReplayBuffer(NStepReplayBuffer):
    """
    SB3's n-step buffer that also knows the discounted Monte-Carlo return of each transition, once its episode ended.

    Beyond a time limit the mean of an episode's last rewards goes on for ever: a return that ends there would fall
    towards nothing along an episode whose value does not, and calibrate no longer. (The authors' episodes end at
    success; of those that fail they let the last reward go on, likewise.) Rewards are added up unnormalised; a
    ``VecNormalize`` that scales rewards scales the returns when they are sampled.

    :param args: As SB3's ``NStepReplayBuffer``
    :param kwargs: Likewise
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.monte_carlo_returns = np.full((self.buffer_size, self.n_envs), -np.inf, dtype=np.float32)
        self._episode_starts = np.zeros(self.n_envs, dtype=np.int64)  # counted without wrapping around
        self._n_added = 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one transition of each environment, with the arguments of SB3's ``ReplayBuffer.add``."""
        self._finish_episodes()  # that were closed from outside: truncate_last_trajectory()
        row = self.pos
        super().add(*args, **kwargs)
        self.monte_carlo_returns[row] = -np.inf
        self._n_added += 1
        self._finish_episodes()

    def _finish_episodes(self) -> None:
        row = (self._n_added - 1) % self.buffer_size
        for env in np.flatnonzero((self.dones[row] > 0) & (self._episode_starts < self._n_added)):
            self._finish_episode(int(env), self.timeouts[row, env] > 0)

    def _finish_episode(self, env: int, cut: bool) -> None:
        length = min(self._n_added - int(self._episode_starts[env]), self.buffer_size)
        rows = (self._n_added - 1 - np.arange(length)) % self.buffer_size  # newest first
        running = 0.0
        if cut and self.gamma < 1.0:
            running = float(self.rewards[rows[:_LAST_REWARDS], env].mean()) / (1.0 - self.gamma)
        for row in rows:
            running = float(self.rewards[row, env]) + self.gamma * running
            self.monte_carlo_returns[row, env] = running
        self._episode_starts[env] = self._n_added

    def _finished(self) -> tuple[int, int]:
        """First and last (exclusive) transition that is still stored and whose episode ended in every environment."""
        return max(self._n_added - self.buffer_size, 0), int(self._episode_starts.min())

    def has_finished_episodes(self) -> bool:
        """
        :return: Whether there is anything to sample
        """
        first, end = self._finished()
        return end > first

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        Draw from finished episodes alone: the others have no return to calibrate by.

        :param batch_size: Number of transitions
        :param env: To normalise with
        :return: Transitions with their Monte-Carlo returns
        :raises ValueError: if no episode has ended yet
        """
        first, end = self._finished()
        if end <= first:
            raise ValueError("no episode has ended yet, so there are no Monte-Carlo returns to sample")
        return self._get_samples(np.random.randint(first, end, size=batch_size) % self.buffer_size, env)

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.monte_carlo_returns[:] = -np.inf
        self._episode_starts[:] = self._n_added = 0

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        # SB3 draws the environments inside: the same draw again tells which ones they were
        state = np.random.get_state()
        samples = super()._get_samples(batch_inds, env)
        after = np.random.get_state()
        np.random.set_state(state)
        env_indices = np.random.randint(self.n_envs, size=batch_inds.shape)
        np.random.set_state(after)
        returns = self.monte_carlo_returns[batch_inds, env_indices].reshape(-1, 1)
        if env is not None and env.norm_reward:
            # Scaled as rewards are, but not clipped as they are
            returns = (returns / np.sqrt(env.ret_rms.var + env.epsilon)).astype(np.float32)
        fields = samples._asdict()
        return CalibratedSamples(**fields, monte_carlo_returns=self.to_torch(returns))


class CalQL(GaussianAlgorithm):
    """
    SAC whose critics are pushed down on the policy's own actions, but never below the data's Monte-Carlo returns:
    conservative offline, calibrated when it goes online.

    Defaults are the authors' for Adroit: 2 critics of three hidden layers of 512 and an actor of two, actor learning
    rate 1e-4 (critics 3e-4), 10 actions each from the policy at this state, the policy at the next state and the
    uniform distribution, regulariser's weight 1, best of 10 next actions in the target, no entropy there, target
    entropy ``-d`` (theirs is 0 by name, which their code replaces), half of each batch from demonstrations online,
    20,000 offline steps, no LayerNorm. Online learning waits for the first episode to end, as theirs does. Their
    rewards are ``10 r + 5`` of -1 and 0; the rewards here are the environment's. With n-step returns "the next state"
    of the regulariser is the one n steps on.

    :param policy: ``"MlpPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param cql_weight: Weight of the conservative regulariser, ``alpha`` in equation 1 of CQL
    :param cql_n_actions: Actions of each kind in the regulariser's log-sum-exp, and next actions in the target
    :param actor_learning_rate: Learning rate of the actor and the temperature
    :param learning_starts: Steps to collect before online learning starts, by the policy itself once pretrained
    :param replay_buffer_kwargs: ``demonstrations``, ``demonstration_share``, ...; the buffer is always a
        :class:`DemonstrationReplayBuffer` of :class:`MonteCarloReplayBuffer`
    :param policy_kwargs: Arguments of the policy
    :param kwargs: As :class:`~sb3_swfp.baselines.gaussian.GaussianAlgorithm`
    :raises ValueError: for impossible arguments
    """

    is_pretrained = False

    def __init__(
        self,
        policy: str | type[GaussianPolicy],
        env: GymEnv | str,
        *,
        cql_weight: float = 1.0,
        cql_n_actions: int = 10,
        actor_learning_rate: float = 1e-4,
        learning_starts: int = 0,
        target_entropy: str | float = "auto",
        replay_buffer_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        if cql_n_actions < 1 or cql_weight < 0.0:
            raise ValueError(
                f"cql_n_actions must be at least 1 and cql_weight not negative, got {cql_n_actions} and {cql_weight}"
            )
        self.cql_weight, self.cql_n_actions = cql_weight, cql_n_actions
        self.actor_learning_rate = actor_learning_rate
        super().__init__(
            policy,
            env,
            learning_starts=learning_starts,
            target_entropy=target_entropy,
            backup_entropy=False,
            replay_buffer_kwargs=replay_buffer_kwargs,
            policy_kwargs=dict(net_arch=dict(pi=[512, 512], qf=[512, 512, 512]), critic_layer_norm=False)
            | (policy_kwargs or {}),
            **kwargs,
        )

    def _setup_model(self) -> None:
        # Here and not in the constructor: load() may have been given replay_buffer_kwargs of its own
        self.replay_buffer_kwargs = {"online_buffer_class": MonteCarloReplayBuffer} | self.replay_buffer_kwargs
        super()._setup_model()
        if not hasattr(self.replay_buffer, "has_finished_episodes"):
            raise ValueError(
                "CalQL's online_buffer_class must be MonteCarloReplayBuffer or a subclass of it, not "
                f"{self.replay_buffer_kwargs['online_buffer_class']}"
            )

    def pretrain(
        self: SelfCalQL,
        demonstrations: Any = None,
        gradient_steps: int = 20_000,
        batch_size: int = 256,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
    ) -> None:
        """
        The offline phase: the same updates as online, on demonstrations alone, with an actor update after each of the
        critics' (``policy_delay`` is for online updates: offline is where the actor comes from).

        :param demonstrations: Anything :func:`load_demonstrations` takes; those of the replay buffer when omitted
        :param gradient_steps: Gradient steps
        :param batch_size: Transitions per gradient step
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run; by default the class's name and ``_pretrain``
        :raises ValueError: if there are no demonstrations, or they don't fit the environment
        """
        check_arguments(gradient_steps=gradient_steps, batch_size=batch_size)
        data = self._demonstrations_for_pretraining(demonstrations)
        self._keep_demonstrations(demonstrations, data)
        fit_normaliser(self._vec_normalize_env, data, self.gamma)
        self._scale_critics()
        start_logging(self, tb_log_name or f"{type(self).__name__}_pretrain")
        buffer = DemonstrationReplayBuffer(
            1,
            self.observation_space,
            self.action_space,
            device=self.device,
            demonstrations=data,
            n_steps=self.n_steps,
            gamma=self.gamma,
            online_buffer_class=MonteCarloReplayBuffer,
        )
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        online_delay, self.policy_delay = self.policy_delay, 1
        try:
            for step in tqdm(range(1, gradient_steps + 1), desc="Offline phase", unit="step", disable=not progress_bar):
                self._update(buffer.sample(batch_size, env=self._vec_normalize_env))
                if step % 1000 == 0 or step == gradient_steps:
                    self._log_metrics()
                    self.logger.dump(step)
        finally:  # also where it was interrupted
            self.policy_delay = online_delay
        self.policy.set_training_mode(False)
        self.is_pretrained = True

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with an actor update after every ``policy_delay`` of them; none
            before the first episode has ended, since its transitions have no return to calibrate by until then
        :param batch_size: Minibatch size
        :raises ValueError: if the buffer is full and holds no finished episode
        """
        online: Any = self.replay_buffer
        if online.has_finished_episodes():
            super().train(gradient_steps, batch_size)
        elif online.full:
            raise ValueError(
                f"no episode ended in the {self.buffer_size} steps that the replay buffer holds, so Cal-QL has no "
                "Monte-Carlo returns to learn from: give the environment a time limit or the model a larger buffer_size"
            )

    def _update_learning_rate(self, optimizers: Any) -> None:
        super()._update_learning_rate(optimizers)
        slower = [self.actor.optimizer] + ([self.ent_coef_optimizer] if self.ent_coef_optimizer is not None else [])
        for optimizer in slower:
            for group in optimizer.param_groups:
                group["lr"] = self.actor_learning_rate

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        return super()._sample_action(0 if self.is_pretrained else learning_starts, action_noise, n_envs)

    def _next_values(self, observations: PyTorchObs, ent_coef: float) -> th.Tensor:
        m, features = self.cql_n_actions, self.critic_target.features(observations)
        actions, _ = self._sampled_actions(observations)
        pair = th.randperm(self.critic.n_critics)[:2]
        return self.critic_target.q_values(features, actions, pair).amin(dim=0).view(-1, m).amax(dim=1)

    def _sampled_actions(self, observations: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """The policy's actions, ``[B * M, d]``, those of a state in consecutive rows, and log-densities ``[B * M]``."""
        mean, log_std, _ = self.actor.get_action_dist_params(observations)
        m = self.cql_n_actions
        repeated = mean.repeat_interleave(m, dim=0), log_std.repeat_interleave(m, dim=0)
        return self.actor.action_dist.log_prob_from_params(*repeated)

    def _critic_regulariser(
        self, batch: Batch, features: th.Tensor, q_values: th.Tensor
    ) -> tuple[th.Tensor | float, dict[str, Any]]:
        """
        ``weight * E[log sum_a exp Q - Q(s, a_data)]`` with importance sampling (CQL, appendix F), where Q of the
        policy's actions is first raised to the Monte-Carlo return (Cal-QL, equation 5.1).
        """
        if self.cql_weight == 0.0:
            return 0.0, {}
        assert isinstance(batch, CalibratedSamples), "Cal-QL's buffer holds Monte-Carlo returns"
        m, rows, scale = self.cql_n_actions, len(batch.actions), self.critic.scale
        uniform = 2.0 * th.rand(rows * m, self.action_dim, device=self.device) - 1.0
        with th.no_grad():
            here, here_log_prob = self._sampled_actions(batch.observations)
            following, following_log_prob = self._sampled_actions(batch.next_observations)
        together = th.cat([part.view(rows, m, -1) for part in (uniform, here, following)], dim=1).flatten(0, 1)
        values = self.critic.q_values(features, together).view(self.critic.n_critics, rows, 3 * m)
        returns = batch.monte_carlo_returns.view(1, rows, 1)
        below = values[..., m:] < returns
        values = th.cat([values[..., :m], th.maximum(values[..., m:], returns)], dim=-1)
        log_density = th.cat(
            [
                th.full((rows, m), -self.action_dim * math.log(2.0), device=self.device),
                here_log_prob.view(rows, m),
                following_log_prob.view(rows, m),
            ],
            dim=1,
        )
        gap = th.logsumexp(values - log_density, dim=-1) - q_values
        # Half of it beside half a squared error, and in units of the scale squared as that is
        loss = 0.5 * self.cql_weight * gap.mean(dim=1).sum() / scale.square()
        return loss, {"cql_gap": gap.detach().mean(), "calibrated_share": below.float().mean()}
