"""SWFP without the JKO step, for variants that improve the flow otherwise: cloning, critics, when to trust them."""

from __future__ import annotations

import io
import math
import pathlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, PyTorchObs, ReplayBufferSamples
from stable_baselines3.common.utils import update_learning_rate

from sb3_swfp.acting import pick
from sb3_swfp.base import DemonstrationAlgorithm
from sb3_swfp.checks import check_arguments
from sb3_swfp.cloning import CloningAlgorithm
from sb3_swfp.critics import SoftQEnsemble
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.flows import FlowCascade
from sb3_swfp.losses import td_loss, td_target
from sb3_swfp.noise import CorrelatedNoise
from sb3_swfp.policies import FlowActor, FlowActorCriticPolicy, bound_action, cascade_log_prob, track
from sb3_swfp.pretraining import (
    PretrainResult,
    particle_spread,
    pretrain_critic,
    return_scale,
)
from sb3_swfp.ripeness import CriticRipeness
from sb3_swfp.trial import CriticTrial
from sb3_swfp.valuation import candidate_values

#: Initial temperature after pretraining with ``ent_coef="auto"``, relative to the size of the returns
_INITIAL_TEMPERATURE = 1e-3
#: Polyak coefficient of a clone's averaged actor, relative to ``tau``. From scratch a slow average costs too much: on
#: Pendulum 10,000 steps then end near -200 instead of -170 (docs/experiments-scratch.md)
_CLONE_TAU_RATIO = 0.4
#: Share of demonstrations in a clone's batches where none is chosen, in place of the buffer's half: on the door with
#: human demonstrations the critic's picks were worse than none with half, probably since it learned to tell
#: demonstrations from the clone's own actions; without any a clone that never succeeds would see no reward
#: (docs/experiments-human-door.md)
_CLONE_DEMONSTRATION_SHARE, _BUFFER_DEMONSTRATION_SHARE = 0.1, 0.5
#: Least share of its first movement per epoch that a flow aims at whose movement falls
_LEAST_MOVEMENT = 0.1


@contextmanager
def _evaluating(network: BaseModel) -> Iterator[None]:
    """A network as it acts, while it is trained: no dropout, batch-norm statistics that are used and left alone."""
    if not network.training:
        yield
        return
    network.set_training_mode(False)
    try:
        yield
    finally:
        network.set_training_mode(True)


class FlowAlgorithm(CloningAlgorithm, DemonstrationAlgorithm):
    """
    A flow policy with a soft-Q ensemble: cloning, critic updates, and acting on the critic's picks once it is ripe.

    How the flow is improved is the subclass's: it writes ``_train_actor``, and sets ``critic_warmup``,
    ``policy_delay``, ``target_candidates``, ``target_update_interval`` and ``noise_correlation``.
    """

    policy: FlowActorCriticPolicy
    actor: FlowActor
    actor_reference: FlowActor
    actor_average: FlowActor
    critic: SoftQEnsemble
    critic_target: SoftQEnsemble
    critic_warmup: int
    target_candidates: int | str
    policy_delay: int
    target_update_interval: int
    noise_correlation: float

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.clone_spread = 0.0
        self.ripeness = CriticRipeness()
        # For as many environments as there are, once learning starts
        self._trial = CriticTrial(1)
        self._noise: CorrelatedNoise | None = None

    def _setup_model(self) -> None:
        if not issubclass(self.policy_class, FlowActorCriticPolicy):
            raise ValueError(
                f"{type(self).__name__} needs a FlowActorCriticPolicy, not {self.policy_class.__name__}: another "
                "algorithm's file?"
            )
        candidates: Any = self.target_candidates
        whole = isinstance(candidates, (int, np.integer)) and not isinstance(candidates, bool)
        if candidates != "auto" and not whole:
            raise ValueError(f'target_candidates must be a whole number or "auto", got {candidates!r}')
        if whole:
            check_arguments(target_candidates=candidates)
        super()._setup_model()
        self._create_aliases()

    def _create_aliases(self) -> None:
        self.actor = self.policy.actor
        self.actor_reference = self.policy.actor_reference
        self.actor_average = self.policy.actor_average
        self.critic = self.policy.critic
        self.critic_target = self.policy.critic_target

    def _make_demonstration_buffer(self) -> ReplayBuffer:
        buffer = super()._make_demonstration_buffer()
        self._set_demonstration_share(buffer)
        return buffer

    def _set_demonstration_share(self, buffer: ReplayBuffer | None) -> None:
        chosen = "demonstration_share" in self.replay_buffer_kwargs
        if not self.is_pretrained or chosen or not isinstance(buffer, DemonstrationReplayBuffer):
            return
        # With hindsight goals half was better (FetchPickAndPlace); another share than that was set by hand
        if not hasattr(buffer, "n_sampled_goal") and buffer.demonstration_share == _BUFFER_DEMONSTRATION_SHARE:
            buffer.demonstration_share = _CLONE_DEMONSTRATION_SHARE

    def pretrain(
        self,
        demonstrations: Any = None,
        gradient_steps: int = 5000,
        batch_size: int = 256,
        learning_rate: float = 1e-3,
        validation_fraction: float = 0.1,
        patience: int = 1000,
        progress_bar: bool = False,
        tb_log_name: str | None = None,
        critic_gradient_steps: int = 0,
    ) -> PretrainResult:
        """
        Clone demonstrations: conditional flow matching of all blocks at once, and then, optionally, critic training on
        the same data. A ``VecNormalize`` that has seen no data yet takes its statistics from the demonstrations.

        :param demonstrations: Anything :func:`load_demonstrations` takes; those of the replay buffer when omitted. A
            ``DemonstrationReplayBuffer`` that has none yet keeps these in play. From then on a tenth of its batches is
            demonstrations, unless ``replay_buffer_kwargs`` has a ``demonstration_share``, its attribute is not 0.5 or
            it makes hindsight goals
        :param gradient_steps: Most gradient steps to run
        :param batch_size: Transitions per gradient step; each block sees all of them
        :param learning_rate: AdamW's learning rate
        :param validation_fraction: Share of the episodes that is held out for early stopping
        :param patience: Stop after so many gradient steps without a better validation loss
        :param progress_bar: Show a progress bar
        :param tb_log_name: Name of the TensorBoard run; by default the class's name and ``_pretrain``
        :param critic_gradient_steps: Gradient steps of the critics on the demonstrations afterwards, 0 for none
        :return: Losses and the step whose weights were kept
        :raises ValueError: if there are no demonstrations, or they don't fit the environment
        """
        check_arguments(critic_gradient_steps=critic_gradient_steps)
        result = super().pretrain(
            demonstrations,
            gradient_steps,
            batch_size,
            learning_rate,
            validation_fraction,
            patience,
            progress_bar,
            tb_log_name,
        )
        if critic_gradient_steps > 0:
            data = self._demonstrations_for_pretraining(demonstrations)
            pretrain_critic(self, data, critic_gradient_steps, batch_size, progress_bar)
        return result

    def _network_to_clone(self) -> FlowActor:
        return self.actor

    def _after_cloning(self, data: Demonstrations) -> None:
        for copy in (self.actor_reference, self.actor_average):
            copy.load_state_dict(self.actor.state_dict())
        self._set_demonstration_share(self.replay_buffer)
        # What a critic learned of another policy says little of this one: its picks are to be tried again
        self.policy.critic_is_ripe.fill_(False)
        self._trial = CriticTrial(self.n_envs)
        self.ripeness.begin(data.returns())
        self.clone_spread = particle_spread(self, data)
        scale = return_scale(data, self._vec_normalize_env, self.gamma)
        if self.ripeness.updates == 0:  # another scale would multiply values that have been learned
            for critic in (self.critic, self.critic_target):
                critic.scale.fill_(scale)
        if self.ent_coef == "auto":
            self.log_ent_coef.data.fill_(float(np.log(_INITIAL_TEMPERATURE * scale)))

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """
        :param gradient_steps: Critic updates to do, with an actor update after every ``policy_delay`` of them
        :param batch_size: Minibatch size
        """
        assert self.replay_buffer is not None
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizers())
        for optimizer in self._actor_optimizers():
            update_learning_rate(optimizer, self._actor_learning_rate())
        for _ in range(gradient_steps):
            batch = self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)
            ent_coef = self._current_ent_coef()
            self._metrics |= self.train_critic(batch, ent_coef)
            self._n_updates += 1
            if not self.is_pretrained and self.ripeness.settled(self.critic_warmup):
                self.policy.critic_is_ripe.fill_(True)
            if self._n_updates % self.policy_delay == 0 and self._actor_may_move():
                self._metrics |= self._train_actor(batch, ent_coef)
                ratio = _CLONE_TAU_RATIO if self.is_pretrained else 1.0
                track(self.actor, self.actor_average, ratio * self.tau)
            if self._n_updates % self.target_update_interval == 0:
                track(self.critic, self.critic_target, self.tau)
        self._metrics["actor_learning_rate"] = self._actor_learning_rate()
        self._log_metrics()

    def _train_actor(self, batch: ReplayBufferSamples | DictReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        """
        One update of the flow.

        :param batch: Transitions
        :param ent_coef: Entropy coefficient
        :return: Metrics
        """
        raise TypeError(f"{type(self).__name__} does not say how its flow is improved")

    def _actor_optimizers(self) -> list[th.optim.Optimizer]:
        return [self.actor.optimizer]

    def _optimizers(self) -> list[th.optim.Optimizer]:
        optimizers = [*self._actor_optimizers(), self.critic.optimizer]
        return optimizers if self.ent_coef_optimizer is None else [*optimizers, self.ent_coef_optimizer]

    @property
    def _movement_left(self) -> float:
        """Share of its first movement per epoch that the flow aims at now, in (0, 1]: all, unless a subclass says."""
        return 1.0

    @property
    def _falling_movement(self) -> float:
        return max(self._current_progress_remaining, _LEAST_MOVEMENT)

    def _actor_learning_rate(self) -> float:
        # Adam's jitter is as large as the rate, and soon all that moves a flow whose target alone falls: on Fetch the
        # blocks then followed the energy in 30 of 80 epochs (docs/experiments-clones.md)
        return self.lr_schedule(self._current_progress_remaining) * self._movement_left

    def _actor_may_move(self) -> bool:
        if not self.is_pretrained:
            return True  # nothing to protect
        return bool(self.policy.critic_is_ripe) and self.ripeness.may_point(self.critic_warmup)

    def _set_temperature(self) -> None:
        # Without entropy there is no softness either: exploration tries what the critic thinks best, or nothing would
        # ever prove it wrong
        self.policy.temperature.fill_(max(self._current_ent_coef(), 1e-8))

    def train_critic(self, batch: ReplayBufferSamples | DictReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        """
        One gradient step of the soft-Q ensemble towards
        ``r + gamma^n (min over a random pair of Q_target(s', a') - alpha log pi(a'|s'))`` (REDQ, arXiv 2101.05982),
        where ``a'`` is picked from ``target_candidates`` particles, once the critic is ripe (EMaQ, arXiv 2007.11091),
        by the mean of the critics outside that pair (double Q-learning; a pair alone picks and judges).

        :param batch: Transitions
        :param ent_coef: Entropy coefficient
        :return: Metrics
        """
        with th.no_grad():
            target = td_target(batch, self._next_values(batch.next_observations, ent_coef), self.gamma)
        q_values = self.critic(batch.observations, batch.actions)
        loss = td_loss(self.critic, q_values, target)
        self.critic.optimizer.zero_grad()
        loss.backward()
        self.critic.optimizer.step()
        q_mean = q_values.mean().item()
        self.ripeness.update(q_mean, target.abs().mean().item())
        return {
            "critic_loss": loss.detach(),
            "q_mean": q_mean,
            "critic_drift": self.ripeness.drift,
            "critic_is_ripe": self.policy.critic_is_ripe,
        }

    @property
    def _candidates_in_target(self) -> int:
        """Candidates per next state once the critic is ripe."""
        if isinstance(self.target_candidates, str):
            return self.policy.n_candidates if self.is_pretrained else 1
        return min(self.target_candidates, self.policy.n_candidates)

    def _next_values(self, observations: PyTorchObs, ent_coef: float) -> th.Tensor:
        """Soft values of the next states for the policy as it explores, critic's picks included: ``[B]``."""
        actor = self.actor if self.is_pretrained else self.actor_average
        critic_features = self.critic_target.features(observations)
        with _evaluating(actor):
            features = actor.features(observations)
        m = self._candidates_in_target if bool(self.policy.critic_is_ripe) else 1
        noise = actor.noise(len(features) * m)
        if m > 1:
            return self._picked_values(
                actor.cascade, features, critic_features, noise.view(len(features), m, -1), ent_coef
            )
        sweep = actor.cascade.integrate(features, noise, log_det=ent_coef > 0.0)
        actions = bound_action(sweep.particles[-1])
        log_prob = cascade_log_prob(sweep) if ent_coef > 0.0 else th.zeros(len(actions), device=self.device)
        judges, _ = self._judges_and_pickers()
        return self.critic_target.q_values(critic_features, actions, judges).amin(dim=0) - ent_coef * log_prob

    def _judges_and_pickers(self) -> tuple[th.Tensor, th.Tensor]:
        """
        A random pair that values the pick, and the critics that make it: the others, since a critic thinks too well of
        the action that it likes best (double Q-learning, van Hasselt, NeurIPS 2010). A pair alone does both.
        """
        order = th.randperm(self.critic.n_critics)
        return order[:2], order[2:] if len(order) > 2 else order

    def _picked_values(
        self,
        cascade: FlowCascade,
        features: th.Tensor,
        critic_features: th.Tensor,
        noise: th.Tensor,
        ent_coef: float,
    ) -> th.Tensor:
        """Soft values of what the critics pick among the particles of ``noise``, ``[B, M, d]``: ``[B]``."""
        n, m, _ = noise.shape
        actions = bound_action(cascade.integrate(features, noise.flatten(0, 1)).particles[-1])
        judges, pickers = self._judges_and_pickers()
        scores = candidate_values(self.critic_target, critic_features, actions, pickers).mean(dim=0).view(n, m)
        picked = pick(scores, self.policy.temperature).unsqueeze(1)
        rows = th.arange(n, device=actions.device)
        chosen = actions.view(n, m, -1)[rows, picked.squeeze(1)]
        values = self.critic_target.q_values(critic_features, chosen, judges).amin(dim=0)
        if ent_coef > 0.0:
            sweep = cascade.integrate(features, noise[rows, picked.squeeze(1)], log_det=True)
            # Picks with weights w have the density M w pi, to be had from M particles alone: less entropy than pi's
            log_weights = th.log_softmax(scores / self.policy.temperature, dim=1).gather(1, picked).squeeze(1)
            values = values - ent_coef * (cascade_log_prob(sweep) + log_weights + math.log(m))
        return values

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[np.ndarray, np.ndarray]:
        average, self.policy.exploration_noise = self.policy.actor_average, self._noise
        if self.is_pretrained:
            # A clone explores with the trained flow, in the place of the average with which its policy acts: by the
            # defaults that is some 1,000 steps behind, and what the critic promises would be tried, and refuted, that
            # much later (docs/experiments-human-door.md)
            self.policy.actor_average = self.actor
        try:
            return self._explore(learning_starts, action_noise, n_envs)
        finally:
            self.policy.exploration_noise, self.policy.actor_average = None, average

    def _explore(
        self, learning_starts: int, action_noise: ActionNoise | None, n_envs: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if not self.is_pretrained:
            with self._as_if_ripe(bool(self.policy.critic_is_ripe) and not self._flow_explores_alone()):
                return super()._sample_action(learning_starts, action_noise, n_envs)
        # Uniform noise would throw a clone away: its own roll-outs fill the buffer from the first step on
        actions, buffer_actions = super()._sample_action(0, action_noise, n_envs)
        picking = self._trial.picking
        if self._critic_on_trial() and len(picking) == n_envs and picking.any():
            with self._as_if_ripe(True):
                picked, buffer_picked = super()._sample_action(0, action_noise, n_envs)
            actions[picking], buffer_actions[picking] = picked[picking], buffer_picked[picking]
        return actions, buffer_actions

    def _flow_explores_alone(self) -> bool:
        # With entropy the flow itself approaches the Boltzmann density exp(Q / alpha): picks by the same weights would
        # explore at half the temperature, and not with the policy that the target values
        return self._current_ent_coef() > 0.0 and self._candidates_in_target == 1

    @contextmanager
    def _as_if_ripe(self, ripe: bool) -> Iterator[None]:
        before = bool(self.policy.critic_is_ripe)
        self.policy.critic_is_ripe.fill_(ripe)
        try:
            yield
        finally:
            self.policy.critic_is_ripe.fill_(before)

    def _critic_on_trial(self) -> bool:
        return self.is_pretrained and not self.policy.critic_is_ripe and self.ripeness.settled(self.critic_warmup)

    def _after_transition(self, rewards: np.ndarray, dones: np.ndarray) -> None:
        if self._noise is not None:
            self._noise.end_episodes(dones)
        if self.is_pretrained and not self.policy.critic_is_ripe:
            on_trial = self._critic_on_trial()
            # Without the picks the same clone plays, on trial or not
            for episode_return, picked in self._trial.step(rewards, dones, on_trial):
                self.ripeness.add_episode(episode_return, picked)
            # With one candidate there is nothing to pick, hence nothing to try but the clone itself
            nothing_to_try = self.policy.n_candidates == 1 and len(self.ripeness.without_picks) > 0
            tried = self.ripeness.picks_pay or self.ripeness.little_to_lose or nothing_to_try
            if on_trial and tried:
                self.policy.critic_is_ripe.fill_(True)

    def _restart_episodes(self) -> None:
        super()._restart_episodes()
        # What the episodes that were open have returned so far must not count for those that begin now
        self._trial = CriticTrial(self.n_envs)
        if self.noise_correlation > 0.0:
            self._noise = CorrelatedNoise(self.noise_correlation, self.n_envs, self.action_dim)

    def _excluded_save_params(self) -> list[str]:
        aliases = ["actor", "actor_reference", "actor_average", "critic", "critic_target"]
        return [*super()._excluded_save_params(), *aliases, "_noise"]

    def load_replay_buffer(self, path: str | pathlib.Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """
        As :class:`~sb3_swfp.base.DemonstrationAlgorithm` does. What a clone loads from before it was one gets a clone's
        share of demonstrations.

        :param path: Path to the pickled replay buffer
        :param truncate_last_traj: Whether the episode that was being recorded ends there
        """
        super().load_replay_buffer(path, truncate_last_traj)
        self._set_demonstration_share(self.replay_buffer)

    def set_parameters(
        self, load_path_or_dict: Any, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        As :class:`~sb3_swfp.base.DemonstrationAlgorithm` does.

        :param load_path_or_dict: File, or its parameters
        :param exact_match: Whether all parameters must be there, and no more
        :param device: Device to load to
        """
        super().set_parameters(load_path_or_dict, exact_match, device)
        if self.ent_coef_optimizer is None:
            self._set_temperature()  # the file's may be that of a learned coefficient

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        state_dicts, tensors = super()._get_torch_save_params()
        return ["policy", "actor.optimizer", "critic.optimizer", *state_dicts], tensors
