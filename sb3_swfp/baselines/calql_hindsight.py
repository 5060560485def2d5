"""Cal-QL with hindsight experience replay (HER, arXiv 1707.01495): calibrated by the relabelled goals' returns."""

from __future__ import annotations

import io
import pathlib
import pkgutil
from typing import Any, TypeVar

import numpy as np
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her import HerReplayBuffer
from tqdm.auto import tqdm

from sb3_swfp.baselines.calql import _LAST_REWARDS, CalibratedSamples, CalQL
from sb3_swfp.checks import check_arguments
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.pretraining import fit_normaliser, start_logging

SelfHindsightCalQL = TypeVar("SelfHindsightCalQL", bound="HindsightCalQL")


def _part_class(requested: Any) -> Any:
    """SB3's class, which other algorithms take for hindsight goals, means the one that knows their returns."""
    if isinstance(requested, str):
        try:
            requested = pkgutil.resolve_name(requested)
        except (ImportError, AttributeError, ValueError):
            return requested  # of which DemonstrationReplayBuffer says that there is no such class
    if requested in (None, HerReplayBuffer):
        return HindsightMonteCarloReplayBuffer
    if not isinstance(requested, type) or not issubclass(requested, HindsightMonteCarloReplayBuffer):
        raise ValueError(
            "HindsightCalQL's online_buffer_class must be HindsightMonteCarloReplayBuffer or a subclass of it, not "
            f"{requested}"
        )
    return requested


class HindsightMonteCarloReplayBuffer(HerReplayBuffer):
    """
    SB3's ``HerReplayBuffer`` that also knows each transition's discounted Monte-Carlo return, for the goal it is
    sampled with: for a relabelled (virtual) one the rewards of the rest of the episode are computed anew. Such a return
    is of behaviour that is known to reach the goal, so as a floor it is a high one. Where the environment ends an
    episode once the pursued goal is reached, a relabelled return ends there, too, as SB3's ``dones`` do.

    Beyond a time limit the mean of an episode's last rewards, for the same goal, goes on for ever
    (:class:`~sb3_swfp.baselines.calql.MonteCarloReplayBuffer` says why).

    :param args: As SB3's ``HerReplayBuffer``
    :param gamma: Discount factor
    :param kwargs: As SB3's ``HerReplayBuffer``
    """

    def __init__(self, *args: Any, gamma: float = 0.99, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gamma = gamma
        self._returns: list[np.ndarray] = []

    def has_finished_episodes(self) -> bool:
        """
        :return: Whether there is anything to sample
        """
        return bool(self.ep_length.any())

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        """
        :param batch_size: Number of transitions
        :param env: To normalise with
        :return: Transitions with the Monte-Carlo returns of their goals
        :raises RuntimeError: by SB3, if no episode has ended yet
        """
        self._returns = []
        samples = super().sample(batch_size, env)
        returns, self._returns = np.concatenate(self._returns).reshape(-1, 1), []
        if env is not None and env.norm_reward:
            # Scaled as rewards are, but not clipped as they are
            returns = returns / np.sqrt(env.ret_rms.var + env.epsilon)
        return CalibratedSamples(**samples._asdict(), monte_carlo_returns=self.to_torch(returns.astype(np.float32)))

    # SB3 samples real transitions first, then virtual ones

    def _get_real_samples(
        self, batch_indices: np.ndarray, env_indices: np.ndarray, env: VecNormalize | None = None
    ) -> Any:
        self._returns.append(self.monte_carlo_returns(batch_indices, env_indices))
        return super()._get_real_samples(batch_indices, env_indices, env)

    def _sample_goals(self, batch_indices: np.ndarray, env_indices: np.ndarray) -> np.ndarray:
        goals = super()._sample_goals(batch_indices, env_indices)
        self._returns.append(self.monte_carlo_returns(batch_indices, env_indices, goals))
        return goals

    def monte_carlo_returns(self, rows: np.ndarray, envs: np.ndarray, goals: np.ndarray | None = None) -> np.ndarray:
        """
        :param rows: Rows of transitions whose episodes ended, ``[B]``
        :param envs: Their environments, ``[B]``
        :param goals: Goals to compute the rewards for, ``[B, goal_dim]``; those that were pursued when omitted
        :return: Discounted, unnormalised returns from each transition on, ``[B]``
        """
        starts, lengths = self.ep_start[rows, envs], self.ep_length[rows, envs]
        left = lengths - (rows - starts) % self.buffer_size
        steps = np.arange(left.max(initial=0))
        later = (rows[:, None] + steps) % self.buffer_size
        rewards = self._rewards(later, steps < left[:, None], envs, goals)
        returns = rewards @ self.gamma**steps
        ends = (starts + lengths - 1) % self.buffer_size
        if self.gamma < 1.0:
            steps = np.arange(_LAST_REWARDS)
            last = steps < lengths[:, None]
            final = self._rewards((ends[:, None] - steps) % self.buffer_size, last, envs, goals)
            beyond = final.sum(axis=1) / last.sum(axis=1) / (1.0 - self.gamma)
            returns += np.where(self.timeouts[ends, envs] > 0, self.gamma**left * beyond, 0.0)
        return returns

    def _rewards(self, rows: np.ndarray, counted: np.ndarray, envs: np.ndarray, goals: np.ndarray | None) -> np.ndarray:
        """Rewards of these rows, ``[B, T]``, 0 where they don't count."""
        which, _ = np.nonzero(counted)
        flat = rows[counted], envs[which]
        rewards = np.zeros(rows.shape)
        if goals is None:
            rewards[counted] = self.rewards[flat]
        elif len(which) > 0:
            assert self.env is not None, "SB3 has asked for it to sample the goals' own rewards"
            infos = self.infos[flat] if self.copy_info_dict else [{} for _ in which]
            achieved = self.next_observations["achieved_goal"][flat]
            # All environments are taken to be alike, as SB3's buffer does
            rewards[counted] = self.env.env_method("compute_reward", achieved, goals[which], infos, indices=[0])[0]
        return rewards


class HindsightCalQL(CalQL):
    """
    :class:`~sb3_swfp.baselines.calql.CalQL` with relabelled goals, for environments that have a ``compute_reward``.

    The authors' code has no hindsight; here it is for comparisons in which all algorithms have it. Each transition is
    calibrated by the return of the goal that it is sampled with. The buffer must have room for two episodes of each
    environment: SB3 forgets an episode once its first transition is overwritten.

    :param args: As :class:`~sb3_swfp.baselines.calql.CalQL`
    :param kwargs: Likewise; ``replay_buffer_kwargs["online_buffer_kwargs"]`` may have ``n_sampled_goal`` and
        ``goal_selection_strategy``. SB3's ``HerReplayBuffer`` as ``online_buffer_class`` means
        :class:`HindsightMonteCarloReplayBuffer`
    :raises ValueError: for impossible arguments, ``n_steps`` above 1 among them
    """

    def _setup_model(self) -> None:
        kwargs = dict(self.replay_buffer_kwargs)
        of_part = dict(kwargs.get("online_buffer_kwargs") or {}) | {"gamma": self.gamma}
        part = _part_class(kwargs.get("online_buffer_class"))
        self.replay_buffer_kwargs = kwargs | {"online_buffer_class": part, "online_buffer_kwargs": of_part}
        super()._setup_model()

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        As :class:`~sb3_swfp.base.DemonstrationAlgorithm` does. Returns are discounted as this model does it.

        :param path: Path to the pickled replay buffer
        :param truncate_last_traj: Whether the episode that was being recorded ends there
        """
        super().load_replay_buffer(path, truncate_last_traj)
        buffer: Any = self.replay_buffer
        for part in (buffer._online, buffer._expert):
            if part is not None:
                part.gamma = self.gamma

    def pretrain(
        self: SelfHindsightCalQL,
        demonstrations: Any = None,
        gradient_steps: int = 20_000,
        batch_size: int = 256,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
    ) -> None:
        """
        As :meth:`CalQL.pretrain`, with relabelled goals in the demonstrations, too.

        :param demonstrations: Anything :func:`load_demonstrations` takes; those of the replay buffer when omitted
        :param gradient_steps: Gradient steps
        :param batch_size: Transitions per gradient step
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run; by default the class's name and ``_pretrain``
        :raises ValueError: if there are no demonstrations, or they don't fit the environment, or there is none
        """
        # A copy of CalQL's loop: a method for both, there, would make all stored results of CalQL those of older code
        if self.env is None:
            raise ValueError("hindsight needs the environment's rewards: load(..., env=env)")
        check_arguments(gradient_steps=gradient_steps, batch_size=batch_size)
        data = self._demonstrations_for_pretraining(demonstrations)
        self._keep_demonstrations(demonstrations, data)
        fit_normaliser(self._vec_normalize_env, data, self.gamma)
        self._scale_critics()
        start_logging(self, tb_log_name or f"{type(self).__name__}_pretrain")
        of_part = {key: self.replay_buffer_kwargs[key] for key in ("online_buffer_class", "online_buffer_kwargs")}
        buffer = DemonstrationReplayBuffer(
            1,
            self.observation_space,
            self.action_space,
            device=self.device,
            demonstrations=data,
            gamma=self.gamma,
            env=self.env,
            **of_part,
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
