"""Behaviour cloning of a flow cascade by conditional flow matching."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.utils import configure_logger
from stable_baselines3.common.vec_env import VecNormalize
from tqdm.auto import tqdm

from sb3_swfp.bounds import bound_action, unbound_action
from sb3_swfp.demonstrations import Demonstrations
from sb3_swfp.demonstrations.buffers import DemonstrationReplayBuffer
from sb3_swfp.policies import FlowActor, track
from sb3_swfp.transport import interpolate

if TYPE_CHECKING:
    from sb3_swfp.flow_algorithm import FlowAlgorithm

Observations = th.Tensor | dict[str, th.Tensor]
Batch = tuple[Observations, th.Tensor]
#: Actor, observations, scaled actions ``[B, d]``, source of noise -> scalar
CloningLoss = Callable[[Any, Observations, th.Tensor, th.Generator | None], th.Tensor]

#: Gradient steps between two looks at the held-out episodes
VALIDATE_EVERY = 100


@dataclass(frozen=True)
class PretrainResult:
    """
    Outcome of behaviour cloning.

    :param gradient_steps: Steps that were run
    :param best_step: Step whose averaged weights were kept
    :param validation_loss: Flow-matching loss of these weights on the held-out episodes; NaN if none were held out
    :param train_loss: Flow-matching loss at the last report
    """

    gradient_steps: int
    best_step: int
    validation_loss: float
    train_loss: float


def flow_matching_loss(
    actor: FlowActor, features: th.Tensor, actions: th.Tensor, generator: th.Generator | None = None
) -> th.Tensor:
    """
    Conditional flow matching of all blocks at once (Lipman et al., arXiv 2210.02747, eq. 23, straight path): block n
    sees times in ``[t_{n-1}, t_n]`` only, so the blocks train independently and nothing is integrated.

    :param actor: Actor whose cascade is trained
    :param features: State features, ``[B, features_dim]``
    :param actions: Scaled actions, ``[B, d]``
    :param generator: Source of noise and times; the global one when omitted
    :return: Mean squared velocity error per action dimension, scalar
    """
    cascade = actor.cascade
    shape = (cascade.n_blocks, len(actions), 1)
    x_0 = th.randn(shape[0], *actions.shape, generator=generator, device=actions.device)
    t = cascade.block_starts(actions) + th.rand(shape, generator=generator, device=actions.device) / cascade.n_blocks
    x_t, target = interpolate(x_0, unbound_action(actions), t)
    velocity, _ = cascade.velocity(slice(None), cascade.project(features), x_t, t)
    return (velocity - target).square().mean()


def flow_cloning_loss(
    actor: FlowActor, observations: Observations, actions: th.Tensor, generator: th.Generator | None = None
) -> th.Tensor:
    """
    :func:`flow_matching_loss` of observations.

    :param actor: Actor whose cascade is trained
    :param observations: Observations
    :param actions: Scaled actions, ``[B, d]``
    :param generator: Source of noise and times; the global one when omitted
    :return: Mean squared velocity error per action dimension, scalar
    """
    return flow_matching_loss(actor, actor.features(observations), actions, generator)


class BehaviourCloning:
    """
    Training loop state: live weights, their average, and the best average so far.

    :param actor: Actor to train in place
    :param learning_rate: Adam's learning rate
    :param weight_decay: Decoupled weight decay
    :param average_decay: Decay of the weight average; shorter at the start, so that the initial weights are forgotten
    :param loss: What is minimised
    """

    def __init__(
        self,
        actor: BaseModel,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-4,
        average_decay: float = 0.999,
        loss: CloningLoss = flow_cloning_loss,
    ):
        self.actor, self.loss = actor, loss
        _forget_graph(actor)
        self.average = copy.deepcopy(actor).requires_grad_(False)
        self.average.set_training_mode(False)  # validated as it will act: no dropout, running batch-norm statistics
        self.average_decay = average_decay
        parameters = [parameter for parameter in actor.parameters() if parameter.requires_grad]
        self.optimizer = th.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=True)
        self.steps, self.best_step, self.best_loss = 0, 0, float("inf")
        self.best_weights = copy.deepcopy(actor.state_dict())

    def step(self, observations: Observations, actions: th.Tensor) -> th.Tensor:
        """
        One gradient step.

        :param observations: Batch of observations
        :param actions: Scaled actions, ``[B, d]``
        :return: The loss, detached
        """
        loss = self.loss(self.actor, observations, actions, None)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        decay = min(self.average_decay, self.steps / (self.steps + 10.0))
        with th.no_grad():
            for mean, value in zip(self.average.parameters(), self.actor.parameters(), strict=True):
                mean.lerp_(value, 1.0 - decay)
            # Batch-norm statistics are averages already
            for copied, buffer in zip(self.average.buffers(), self.actor.buffers(), strict=True):
                copied.copy_(buffer)
        return loss.detach()

    @th.no_grad()
    def validate(self, batches: Callable[[], list[Batch]]) -> float:
        """
        Loss of the averaged weights, with the same noise and times at every call; remembers the best.

        :param batches: Returns the held-out (observations, actions) batches
        """
        generator = th.Generator(self.actor.device).manual_seed(0)
        losses, rows = [], []
        for observations, actions in batches():
            losses.append(self.loss(self.average, observations, actions, generator))
            rows.append(len(actions))
        weights = th.tensor(rows, dtype=th.float32, device=losses[0].device)
        loss = ((th.stack(losses) * weights).sum() / weights.sum()).item()
        if loss < self.best_loss:
            self.best_loss, self.best_step = loss, self.steps
            self.best_weights = copy.deepcopy(self.average.state_dict())
        return loss


def _forget_graph(actor: BaseModel) -> None:
    """SB3's Gaussian actor keeps its last distribution, with the graph behind it, which can't be copied."""
    last = getattr(actor, "action_dist", None)
    if last is not None:
        vars(last).update(dict.fromkeys(vars(last).keys() & {"distribution", "gaussian_actions"}))


def start_logging(model: BaseAlgorithm, tb_log_name: str) -> None:
    """
    Give a model that has no logger yet the one that its arguments ask for, as SB3's ``learn`` does.

    :param model: The model
    :param tb_log_name: Name of the TensorBoard run
    """
    if not model._custom_logger:
        model._logger = configure_logger(model.verbose, model.tensorboard_log, tb_log_name, True)


def clone_demonstrations(
    model: BaseAlgorithm,
    actor: BaseModel,
    demonstrations: Demonstrations,
    gradient_steps: int,
    batch_size: int,
    learning_rate: float,
    validation_fraction: float,
    patience: int,
    progress_bar: bool,
    tb_log_name: str,
    loss: CloningLoss = flow_cloning_loss,
) -> PretrainResult:
    """
    Behaviour cloning with early stopping: the average that did best on the held-out episodes becomes the actor. With
    nothing to hold out (one episode, or ``validation_fraction=0``) the last average does.

    :param model: Model that the actor belongs to
    :param actor: The network to train
    :param demonstrations: Demonstrations that fit the model's spaces
    :param gradient_steps: Most gradient steps to run
    :param batch_size: Transitions per gradient step
    :param learning_rate: AdamW's learning rate
    :param validation_fraction: Share of held-out episodes
    :param patience: Stop after so many gradient steps without improvement
    :param progress_bar: Show a progress bar
    :param tb_log_name: Name of the TensorBoard run
    :param loss: What is minimised
    :return: Losses and the step whose weights were kept
    :raises ValueError: if the loss is not finite; the actor is as it was before, as after Ctrl-C
    """
    start_logging(model, tb_log_name)
    train, validation = demonstrations.split(validation_fraction, model.seed or 0)
    data, held_out = (_to_tensors(model, part) for part in (train, validation))
    assert data is not None
    model.policy.set_training_mode(True)
    cloning = BehaviourCloning(actor, learning_rate, loss=loss)
    with _restored_on_failure(model, actor, cloning.best_weights):
        train_loss = _clone(model, cloning, data, held_out, gradient_steps, batch_size, patience, progress_bar)
        if held_out is None:
            cloning.best_weights, cloning.best_step = cloning.average.state_dict(), cloning.steps
        loss_kept = train_loss if held_out is None else cloning.best_loss
        # A training loss is that before the step, the weights those after it
        if not math.isfinite(loss_kept) or not _finite(cloning.best_weights):
            raise ValueError(
                f"Cloning diverged (loss {train_loss} after {cloning.steps} steps). Try a smaller learning_rate than "
                f"{learning_rate}, and see that no action's low equals its high"
            )
    actor.load_state_dict(cloning.best_weights)
    model.policy.set_training_mode(False)
    validation_loss = float("nan") if held_out is None else cloning.best_loss
    return PretrainResult(cloning.steps, cloning.best_step, validation_loss, train_loss)


def _finite(weights: dict[str, Any]) -> bool:
    return all(bool(value.isfinite().all()) for value in weights.values() if isinstance(value, th.Tensor))


@contextmanager
def _restored_on_failure(model: BaseAlgorithm, actor: BaseModel, weights: dict[str, Any]) -> Iterator[None]:
    """Half a clone is none: whoever ends cloning early has the network as it was."""
    try:
        yield
    except BaseException:
        actor.load_state_dict(weights)
        actor.set_training_mode(False)
        model.policy.set_training_mode(False)
        raise


def _clone(
    model: BaseAlgorithm,
    cloning: BehaviourCloning,
    data: Batch,
    held_out: Batch | None,
    gradient_steps: int,
    batch_size: int,
    patience: int,
    progress_bar: bool,
) -> float:
    """The gradient steps; the last one's loss."""
    steps = tqdm(range(1, gradient_steps + 1), desc="Cloning", unit="step", disable=not progress_bar)
    for step in steps:
        rows = th.randint(len(data[1]), (batch_size,), device=model.device)
        train_loss = cloning.step(_rows(data[0], rows), data[1][rows])
        if step % VALIDATE_EVERY == 0 or step == gradient_steps:
            validation_loss = float("nan") if held_out is None else cloning.validate(lambda: _batches(held_out))
            steps.set_postfix(train=f"{train_loss.item():.3f}", validation=f"{validation_loss:.3f}")
            model.logger.record("pretrain/train_loss", train_loss.item())
            model.logger.record("pretrain/validation_loss", validation_loss)
            model.logger.record("pretrain/best_step", cloning.best_step)
            model.logger.dump(step)
            if held_out is not None and step - cloning.best_step >= patience:
                break
    steps.close()
    return train_loss.item()


def _to_tensors(model: BaseAlgorithm, demonstrations: Demonstrations | None) -> Batch | None:
    """Observations, normalised as the environment's are, and scaled actions."""
    if demonstrations is None:
        return None
    observations = demonstrations.observations()
    if model._vec_normalize_env is not None:
        observations = model._vec_normalize_env.normalize_obs(observations)
    # Demonstrations hold flat actions, whatever the shape of the action space
    actions = demonstrations.actions()
    scaled = model.policy.scale_action(actions.reshape(-1, *(model.action_space.shape or ()))).reshape(actions.shape)
    targets = th.as_tensor(scaled, dtype=th.float32, device=model.device)
    if isinstance(observations, dict):
        return {key: th.as_tensor(value, device=model.device) for key, value in observations.items()}, targets
    return th.as_tensor(observations, device=model.device), targets


def _rows(observations: Observations, rows: th.Tensor | slice) -> Observations:
    if isinstance(observations, dict):
        return {key: value[rows] for key, value in observations.items()}
    return observations[rows]


def _batches(data: Batch, size: int = 1024) -> list[Batch]:
    starts = range(0, len(data[1]), size)
    return [(_rows(data[0], slice(i, i + size)), data[1][i : i + size]) for i in starts]


@th.no_grad()
def particle_spread(model: FlowAlgorithm, demonstrations: Demonstrations, n_states: int = 1024) -> float:
    """
    How far a clone's particles lie apart: root mean square deviation per action dimension within a state, in units of
    the scaled action space.

    :param model: Model whose actor is measured
    :param demonstrations: Where the states come from
    :param n_states: Most states to use, evenly spaced
    :return: Spread, at least 1e-3
    """
    data = _to_tensors(model, demonstrations)
    assert data is not None
    rows = th.linspace(0, len(data[1]) - 1, min(n_states, len(data[1])), device=model.device).long()
    features = model.actor.features(_rows(data[0], rows))
    # Half the mean squared distance of two independent particles is their variance
    first, second = (
        bound_action(model.actor.cascade.integrate(features, model.actor.noise(len(features))).particles[-1])
        for _ in range(2)
    )
    return max((0.5 * (first - second).square().mean()).sqrt().item(), 1e-3)


def pretrain_critic(
    model: FlowAlgorithm, demonstrations: Demonstrations, gradient_steps: int, batch_size: int, progress_bar: bool
) -> None:
    """
    Train the critics on demonstrations alone, by the same step as online.

    :param model: Model whose critics are trained
    :param demonstrations: Demonstrations that fit the model's spaces
    :param gradient_steps: Gradient steps
    :param batch_size: Transitions per gradient step
    :param progress_bar: Show a progress bar
    """
    data = DemonstrationReplayBuffer(
        1,
        model.observation_space,
        model.action_space,
        device=model.device,
        demonstrations=demonstrations,
        n_steps=model.n_steps,
        gamma=model.gamma,
    )
    model.policy.set_training_mode(True)
    for _ in tqdm(range(gradient_steps), desc="Training the critics", unit="step", disable=not progress_bar):
        metrics = model.train_critic(data.sample(batch_size, env=model._vec_normalize_env), model._current_ent_coef())
        track(model.critic, model.critic_target, model.tau)
    for name in ("critic_loss", "q_mean", "critic_drift"):
        model.logger.record(f"pretrain/{name}", float(metrics[name]))
    model.logger.dump(gradient_steps)
    model.policy.set_training_mode(False)


def fit_normaliser(normaliser: VecNormalize | None, demonstrations: Demonstrations, gamma: float) -> None:
    """
    Give a ``VecNormalize`` that has seen no data yet the demonstrations' statistics: a clone trained on unnormalised
    observations would fail as soon as the first roll-outs normalised them. The first observations alone, which
    ``learn()`` has drawn before its callbacks start, are no data.

    :param normaliser: The environment's ``VecNormalize``, if any
    :param demonstrations: Demonstrations
    :param gamma: Discount factor of the running return that scales rewards
    """
    if normaliser is None:
        return
    observations = demonstrations.observations()
    if normaliser.norm_obs and normaliser.training:
        statistics = normaliser.obs_rms if isinstance(normaliser.obs_rms, dict) else {"": normaliser.obs_rms}
        parts = observations if isinstance(observations, dict) else {"": observations}
        for key, running in statistics.items():
            if running.count < normaliser.num_envs + 1.0:
                fresh = RunningMeanStd(shape=running.mean.shape)
                fresh.update(parts[key])
                running.mean, running.var, running.count = fresh.mean, fresh.var, fresh.count
    if normaliser.norm_reward and normaliser.training and normaliser.ret_rms.count < 1.0:
        for episode in demonstrations:
            running_return, returns = 0.0, []
            for reward in episode.rewards:
                running_return = gamma * running_return + float(reward)
                returns.append(running_return)
            normaliser.ret_rms.update(np.array(returns))


def return_scale(demonstrations: Demonstrations, normaliser: VecNormalize | None, gamma: float) -> float:
    """
    Size of the returns that a critic will have to predict.

    :param demonstrations: Demonstrations
    :param normaliser: The environment's ``VecNormalize``, if any
    :param gamma: Discount factor
    :return: Mean absolute discounted reward-to-go, after reward normalisation, and at least 1e-3
    """
    scale = float(np.abs(demonstrations.discounted_returns(gamma)).mean())
    if normaliser is not None and normaliser.norm_reward:
        scale /= float(np.sqrt(normaliser.ret_rms.var + normaliser.epsilon))
    return max(scale, 1e-3)
