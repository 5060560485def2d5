"""SWFP with a Kullback-Leibler trust region in place of Wasserstein's: the ablation of what the JKO step adds."""

from __future__ import annotations

import math
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

from sb3_swfp.bounds import bound_action, unbound_action
from sb3_swfp.checks import check_arguments
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.flow_algorithm import FlowAlgorithm
from sb3_swfp.policies import FlowActor, FlowActorCriticPolicy, cascade_log_prob, every_other
from sb3_swfp.transport import interpolate, w2_paired

#: Bisection of the logarithm of the step's temperature: its range, in units of the values' spread, and its steps
_LOG_RANGE, _BISECTIONS = math.log(1e4), 30
#: What ``kl_step="auto"`` begins with, in nats: MPO's
_DEFAULT_STEP = 0.1
#: Times are kept so far from 1, where velocities have no bound
_LEAST_REST = 1e-3


def kl_of_weights(values: th.Tensor, temperature: th.Tensor | float) -> th.Tensor:
    """
    ``KL(w || uniform)`` of the weights ``w ~ exp(values / temperature)``: how far the reweighted particles are from the
    particles as they were drawn.

    :param values: Values of each state's particles, ``[B, M]``
    :param temperature: Of the weights
    :return: Mean over the states in nats, scalar; between 0 and ``log M``
    """
    log_weights = th.log_softmax(values / temperature, dim=1)
    return (log_weights.exp() * (log_weights + math.log(values.shape[1]))).sum(dim=1).mean()


def temperature_of_kl(values: th.Tensor, target: float) -> th.Tensor:
    """
    The temperature at which :func:`kl_of_weights` is ``target``, by bisection (it falls as the temperature rises).

    :param values: Values of each state's particles, ``[B, M]``
    :param target: Nats
    :return: Temperature, scalar
    """
    spread = values.std(dim=1).mean().clamp_min(1e-8)
    low, high = -_LOG_RANGE, _LOG_RANGE
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        if kl_of_weights(values, spread * math.exp(middle)).item() > target:
            low = middle
        else:
            high = middle
    return spread * math.exp(high)


def velocity_change(x_t: th.Tensor, t: th.Tensor, particles: th.Tensor, log_weights: th.Tensor) -> th.Tensor:
    """
    What weights change in the flow matching velocity of a cloud of particles: ``(E_w[x_1 | x_t] - E[x_1 | x_t]) / (1 -
    t)``, with the posterior of a point's end among the particles (Lipman et al., arXiv 2210.02747, eq. 8, straight
    path), weighted and not. It is 0 where all count the same. With few particles in many dimensions a point's posterior
    sticks to the one that it was drawn towards, and the change is smaller than that of the density behind them.

    :param x_t: Points on straight paths from noise to the particles, ``[N, B, M, d]``
    :param t: Their times in [0, 1], ``[N, B, M, 1]``
    :param particles: M particles of each of B states, ``[B, M, d]``
    :param log_weights: Logarithms of their weights, up to a constant of each state, ``[B, M]``
    :return: Change of velocity at the points, ``[N, B, M, d]``
    """
    rest = (1.0 - t).clamp_min(_LEAST_REST)
    off = x_t.unsqueeze(3) - t.unsqueeze(3) * particles.unsqueeze(1)
    log_posterior = -0.5 * off.square().sum(dim=-1) / rest.square()
    # Exactly 0 where all count the same: Adam would make steps of rounding errors, too
    weighted = log_posterior + (log_weights - log_weights.amax(dim=-1, keepdim=True)).unsqueeze(1)
    change = weighted.softmax(dim=-1) - log_posterior.softmax(dim=-1)
    return change @ particles / rest


def reweighting_loss(
    actor: FlowActor, reference: FlowActor, observations: Any, actions: th.Tensor, log_weights: th.Tensor
) -> th.Tensor:
    """
    Squared distance of all blocks' velocities to the reference's plus :func:`velocity_change`, which leads to the
    reweighted density as far as the reference's velocity is flow matching's (a clone's nearly is). Flow matching to the
    reweighted particles themselves would fit the flow to its own samples again and again, and one of few steps drifts
    away by that alone (a clone on FetchPickAndPlace from 22 to 0 % within 20 epochs in which nothing was preferred).

    :param actor: Actor whose cascade is trained
    :param reference: The frozen actor that the particles come from
    :param observations: Observations of B states
    :param actions: M scaled actions of each, ``[B, M, d]``
    :param log_weights: Logarithms of their weights, up to a constant of each state, ``[B, M]``
    :return: Mean per action dimension, scalar
    """
    cascade, (n, m, d), particles = actor.cascade, actions.shape, unbound_action(actions)
    shape = (cascade.n_blocks, n, m, 1)
    start = cascade.block_starts(actions).view(-1, 1, 1, 1)
    t = start + th.rand(shape, device=actions.device) / cascade.n_blocks
    x_t, _ = interpolate(th.randn(*shape[:3], d, device=actions.device), particles, t)
    velocities = []
    for each in (actor, reference):
        state = each.cascade.project(each.features(observations)).repeat_interleave(m, dim=1)
        velocity, _ = each.cascade.velocity(slice(None), state, x_t.flatten(1, 2), t.flatten(1, 2))
        velocities.append(velocity.view_as(x_t))
    target = velocities[1].detach() + velocity_change(x_t, t, particles, log_weights)
    return (velocities[0] - target).square().mean()


class SWFPKL(FlowAlgorithm):
    """
    SWFP in everything (flow, clone, critics, ripeness, acting, epochs against a frozen reference), but an epoch's step
    is ``argmin F(rho) + KL(rho || rho_k) / eta`` (mirror descent) instead of the JKO step's ``W2^2 / (2 eta)``.

    Its minimiser is known: ``rho_k`` reweighted by ``exp((Q - alpha log rho_k) / temperature)``, where the temperature
    is the one at which the step has the KL divergence asked for (as in the E-step of MPO, arXiv 1806.06920). So each
    update draws particles of the frozen reference and moves all blocks from its velocity by what these weights change
    (:func:`reweighting_loss`; from a few particles, so less than was asked for). KL can only shift weight between
    actions that ``rho_k`` already takes; W2 moves them.

    Arguments that SWFP has mean what they mean there.

    :param policy: ``"FlowPolicy"`` (or SB3's aliases)
    :param env: The environment to learn from (if registered in Gym, can be str)
    :param kl_step: KL divergence of an epoch's step, in nats; or ``"lin_<nats>"`` to let it fall over ``learn()`` with
        the square of what remains, to a hundredth: movement goes with the root, and then falls as SWFP's does with
        ``jko_step_size="auto_lin_<target>"``. ``"auto"`` is 0.1 (MPO's) from scratch and ``"lin_0.1"`` once pretrained;
        on the toys 0.01 was better, and steadier where the flow has become narrow
    :param kl_particles: Particles per state that the reference is represented by
    :param kl_epoch: Block updates against one frozen reference (SWFP's ``jko_epoch``)
    :param others: See :class:`~sb3_swfp.swfp.SWFP`
    :raises ValueError: for impossible arguments
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "FlowPolicy": FlowActorCriticPolicy,
        "MlpPolicy": FlowActorCriticPolicy,
        "CnnPolicy": FlowActorCriticPolicy,
        "MultiInputPolicy": FlowActorCriticPolicy,
    }

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
        kl_step: float | str = "auto",
        kl_particles: int = 8,
        kl_epoch: int = 50,
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
        if kl_particles < 2 or kl_epoch < 1:
            raise ValueError(
                f"kl_particles must be at least 2 and kl_epoch at least 1, got {kl_particles} and {kl_epoch}"
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
        self.target_entropy, self.ent_coef = target_entropy, ent_coef
        self.target_update_interval = target_update_interval
        self.kl_step, self.kl_particles, self.kl_epoch = kl_step, kl_particles, kl_epoch
        self.policy_delay, self.critic_warmup = policy_delay, critic_warmup
        self.target_candidates, self.noise_correlation = target_candidates, noise_correlation
        self._demonstrations_required = _init_setup_model
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        nats, _ = self._first_step()
        if not 0.0 < nats < math.log(self.kl_particles):
            raise ValueError(
                f"kl_step must lie between 0 and log(kl_particles) = {math.log(self.kl_particles):.2f} nats, "
                f"got {self.kl_step!r}"
            )
        super()._setup_model()
        self._updates_in_epoch = 0
        self._set_temperature()

    def _after_cloning(self, data: Demonstrations) -> None:
        super()._after_cloning(data)
        self._updates_in_epoch = 0
        self._set_temperature()

    def _first_step(self) -> tuple[float, bool]:
        """The first step in nats, and whether later ones are smaller."""
        if self.kl_step == "auto":
            return _DEFAULT_STEP, self.is_pretrained
        falls = isinstance(self.kl_step, str) and self.kl_step.startswith("lin_")
        try:
            return float(str(self.kl_step).removeprefix("lin_")), falls
        except ValueError as error:
            raise ValueError(f'kl_step must be a number, "lin_<nats>" or "auto", got {self.kl_step!r}') from error

    @property
    def _movement_left(self) -> float:
        return self._falling_movement if self._first_step()[1] else 1.0

    def _train_actor(self, batch: ReplayBufferSamples | DictReplayBufferSamples, ent_coef: float) -> dict[str, Any]:
        observations = every_other(batch.observations)
        target = self._first_step()[0] * self._movement_left**2
        with th.no_grad():
            actions, values, entropy = self._particles(observations, ent_coef)
            temperature = temperature_of_kl(values, target)
            log_weights = th.log_softmax(values / temperature, dim=1)
        loss = reweighting_loss(self.actor, self.actor_reference, observations, actions, log_weights)
        self.actor.optimizer.zero_grad()
        loss.backward()
        self.actor.optimizer.step()
        metrics: dict[str, Any] = {
            "actor_loss": loss.detach(),
            "energy": -values.mean(),
            "ent_coef": ent_coef,
            "kl": kl_of_weights(values, temperature),
            "kl_temperature": temperature,
        }
        if ent_coef > 0.0:
            metrics["entropy"] = entropy
            self._train_ent_coef(entropy)
        self._set_temperature()
        self._updates_in_epoch += 1
        if self._updates_in_epoch >= self.kl_epoch:
            metrics |= self._finish_epoch(observations)
        return metrics

    def _particles(self, observations: Any, ent_coef: float) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Actions of the frozen reference, ``[B, M, d]``, their soft values, ``[B, M]``, and its entropy."""
        features = self.actor_reference.features(observations)
        n, m = len(features), self.kl_particles
        noise = self.actor_reference.noise(n * m)
        sweep = self.actor_reference.cascade.integrate(features, noise, log_det=ent_coef > 0.0)
        actions = bound_action(sweep.particles[-1])
        q_values = self.critic.q_values(self.critic.features(observations), actions)
        values = q_values.mean(dim=0) if self.is_pretrained else q_values.amin(dim=0)
        entropy = th.zeros((), device=self.device)
        if ent_coef > 0.0:
            log_prob = cascade_log_prob(sweep)
            values, entropy = values - ent_coef * log_prob, -log_prob.mean()
        return actions.view(n, m, -1), values.view(n, m), entropy

    @th.no_grad()
    def _finish_epoch(self, observations: Any) -> dict[str, float]:
        ends = []
        noise = self.actor.noise(len(self.actor.features(observations)))
        for actor in (self.actor, self.actor_reference):
            ends.append(bound_action(actor.cascade.integrate(actor.features(observations), noise).particles[-1]))
        self.actor_reference.load_state_dict(self.actor.state_dict())
        self._updates_in_epoch = 0
        return {"w2_paired": w2_paired(*ends).sqrt().item()}
