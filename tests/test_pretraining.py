"""Behaviour cloning without an environment: every mode of the demonstrated actions, the best average."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_swfp.bounds import bound_action, unbound_action
from sb3_swfp.demonstrations import Demonstrations, Episode
from sb3_swfp.policies import FlowActor
from sb3_swfp.pretraining import BehaviourCloning, flow_matching_loss, return_scale

#: Standard deviation of every mode
MODE_SD = 0.08
MODES = {
    1: (th.tensor([[-0.5], [0.5]]), th.tensor([0.7, 0.3])),
    2: (th.tensor([[-0.5, -0.4], [0.5, -0.4], [0.0, 0.5]]), th.tensor([0.5, 0.2, 0.3])),
}


def make_actor(action_dim: int, n_blocks: int = 5, euler_steps: int = 1) -> FlowActor:
    """An actor of one observed number, with small blocks."""
    th.manual_seed(0)
    observation_space = spaces.Box(-1.0, 1.0, (1,))
    extractor = FlattenExtractor(observation_space)
    action_space = spaces.Box(-1.0, 1.0, (action_dim,))
    return FlowActor(observation_space, action_space, extractor, 1, n_blocks, [64, 64], euler_steps)


def mixture(action_dim: int, n: int) -> tuple[th.Tensor, th.Tensor]:
    """Actions of a Gaussian mixture, and the mode that each is from."""
    means, weights = MODES[action_dim]
    mode = th.multinomial(weights, n, replacement=True)
    return means[mode] + MODE_SD * th.randn(n, action_dim), mode


@pytest.mark.parametrize("n_blocks", [5, 10])
@pytest.mark.parametrize("action_dim", [1, 2])
def test_cloning_recovers_every_mode_with_its_weight(action_dim: int, n_blocks: int) -> None:
    """Up to what so few Euler steps leave behind: modes pulled in a little, weights off by a few hundredths."""
    actor = make_actor(action_dim, n_blocks)
    cloning = BehaviourCloning(actor, learning_rate=5e-3, average_decay=0.99)
    observations = th.zeros(512, 1)
    for step in range(500):
        for group in cloning.optimizer.param_groups:
            group["lr"] = 5e-3 * (1.0 - step / 500)
        cloning.step(observations, mixture(action_dim, 512)[0])
    with th.no_grad():
        noise = th.randn(5000, action_dim)
        actions = bound_action(cloning.average.cascade.integrate(th.zeros(1, 1), noise).particles[-1])
    means, weights = MODES[action_dim]
    distances, nearest = th.cdist(actions, means).min(dim=1)
    shares = th.bincount(nearest, minlength=len(means)) / len(actions)
    th.testing.assert_close(shares, weights, rtol=0.0, atol=0.1)
    for mode, mean in enumerate(means):
        th.testing.assert_close(actions[nearest == mode].mean(dim=0), mean, rtol=0.0, atol=0.15)
    assert (distances < 4.0 * MODE_SD).float().mean() > 0.8


def test_a_clone_depends_on_the_state() -> None:
    # With one Euler step a block it overshoots by a tenth (docs/algorithm.md, pretraining); with four it must not
    actor = make_actor(1, euler_steps=4)
    cloning = BehaviourCloning(actor, learning_rate=5e-3, average_decay=0.99)
    for _ in range(300):
        observations = 2.0 * th.rand(512, 1) - 1.0
        cloning.step(observations, 0.6 * observations)
    for state in (-1.0, 0.0, 1.0):
        with th.no_grad():
            particles = cloning.average.cascade.integrate(th.full((1, 1), state), th.randn(2000, 1)).particles
        actions = bound_action(particles[-1])
        assert actions.mean().item() == pytest.approx(0.6 * state, abs=0.05)
        assert actions.std().item() < 0.1


def test_loss_of_the_perfect_velocity_is_the_variance_that_remains() -> None:
    # One action a: the velocity from x_t is (a - x_t) / (1 - t), known exactly, so the least loss is 0; the velocity
    # zero, a new cascade's, has E (a - x_0)^2 = a^2 + 1
    actor, action = make_actor(1), 0.5
    actions = th.full((100_000, 1), action)
    loss = flow_matching_loss(actor, th.zeros(100_000, 1), actions)
    assert loss.item() == pytest.approx(action**2 + 1.0, rel=0.02)


def test_loss_is_that_of_actions_before_the_bound() -> None:
    actor = make_actor(1)
    actions = th.full((100_000, 1), 0.95)
    loss = flow_matching_loss(actor, th.zeros(100_000, 1), actions)
    assert loss.item() == pytest.approx(unbound_action(actions[:1]).item() ** 2 + 1.0, rel=0.02)


def test_each_block_sees_its_own_stretch_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    actor, seen = make_actor(2, n_blocks=4), []
    velocity = actor.cascade.velocity

    def record(n, state, x, t, tangents=None):  # type: ignore[no-untyped-def]
        seen.append(t)
        return velocity(n, state, x, t, tangents)

    monkeypatch.setattr(actor.cascade, "velocity", record)
    flow_matching_loss(actor, th.zeros(2000, 1), th.zeros(2000, 2))
    (times,) = seen
    assert times.shape == (4, 2000, 1)
    for n in range(4):
        assert n / 4 <= times[n].min() < n / 4 + 0.01 and (n + 1) / 4 - 0.01 < times[n].max() <= (n + 1) / 4


def test_average_follows_the_weights() -> None:
    actor = make_actor(1)
    cloning = BehaviourCloning(actor, average_decay=0.9)
    before = copy.deepcopy(cloning.average.state_dict())
    cloning.step(th.zeros(8, 1), th.zeros(8, 1))
    # Short at first: after one step it keeps 1/11 of the initial weights
    live = actor.state_dict()
    for name, value in cloning.average.state_dict().items():
        th.testing.assert_close(value, before[name] / 11.0 + live[name] * 10.0 / 11.0)
    assert not any(parameter.requires_grad for parameter in cloning.average.parameters())
    for _ in range(200):
        cloning.step(th.zeros(8, 1), th.zeros(8, 1))
    before = copy.deepcopy(cloning.average.state_dict())
    cloning.step(th.zeros(8, 1), th.zeros(8, 1))
    live = actor.state_dict()
    for name, value in cloning.average.state_dict().items():
        th.testing.assert_close(value, 0.9 * before[name] + 0.1 * live[name])


def test_validation_keeps_the_best_average() -> None:
    cloning = BehaviourCloning(make_actor(1), learning_rate=3e-3)
    held_out = [(th.zeros(300, 1), th.full((300, 1), 0.3)), (th.zeros(7, 1), th.full((7, 1), 0.3))]
    losses = [cloning.validate(lambda: held_out)]
    # The noise and times are the same at every look
    assert cloning.validate(lambda: held_out) == losses[0] and cloning.best_step == 0
    for goal in (0.3, -0.7):  # first toward the held-out action, then away from it
        for _ in range(5):
            for _ in range(20):
                cloning.step(th.zeros(64, 1), th.full((64, 1), goal))
            losses.append(cloning.validate(lambda: held_out))
    assert losses[-1] > cloning.best_loss == min(losses) < losses[0]
    assert cloning.best_step == 20 * losses.index(min(losses)) < cloning.steps == 200
    # What was kept is that average, not today's
    cloning.average.load_state_dict(cloning.best_weights)
    assert cloning.validate(lambda: held_out) == pytest.approx(cloning.best_loss, rel=1e-6)


def test_validation_weighs_rows_not_batches() -> None:
    cloning = BehaviourCloning(make_actor(1))
    # A new cascade's loss is about a^2 + 1: 1 for the many rows, 1.64 for the few
    held_out = [(th.zeros(9000, 1), th.zeros(9000, 1)), (th.zeros(1000, 1), th.full((1000, 1), 0.8))]
    assert cloning.validate(lambda: held_out) == pytest.approx(0.9 * 1.0 + 0.1 * 1.64, rel=0.03)


def test_frozen_parameters_are_not_trained() -> None:
    actor = make_actor(1)
    actor.cascade.time_weight.requires_grad_(False)
    before = actor.cascade.time_weight.clone()
    cloning = BehaviourCloning(actor)
    for _ in range(3):
        cloning.step(th.zeros(8, 1), th.zeros(8, 1))
    assert th.equal(actor.cascade.time_weight, before)


def test_scale_of_returns_is_their_mean_size() -> None:
    def episode(rewards: list[float]) -> Episode:
        n = len(rewards)
        ends = np.arange(n) == n - 1
        return Episode(
            observations=np.zeros((n + 1, 1), np.float32),
            actions=np.zeros((n, 1), np.float32),
            rewards=np.array(rewards, np.float32),
            terminations=ends,
            truncations=np.zeros(n, bool),
        )

    # Rewards-to-go -2 - 0.5 * 4, -4 and 6
    demonstrations = Demonstrations([episode([-2.0, -4.0]), episode([6.0])])
    assert return_scale(demonstrations, None, 0.5) == pytest.approx((4.0 + 4.0 + 6.0) / 3.0)
    assert return_scale(Demonstrations([episode([0.0])]), None, 0.5) == 1e-3
