"""Denoising chains, DPPO's objective and its reward scale, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch as th

from sb3_swfp.baselines.chains import (
    RewardScaler,
    chain_length,
    clipped_loss,
    sample_chains,
    step_clip_ranges,
    transition_log_probs,
    transition_means,
)
from sb3_swfp.flows import FlowCascade


def random_cascade(euler_steps: int = 1, action_dim: int = 2) -> FlowCascade:
    """A flow whose velocity is neither zero nor constant."""
    th.manual_seed(0)
    cascade = FlowCascade(3, action_dim, n_blocks=3, net_arch=[8], euler_steps=euler_steps)
    for parameter in cascade.parameters():
        th.nn.init.normal_(parameter)
    return cascade


def test_log_probs_of_a_random_walk() -> None:
    """A new cascade stands still, so a chain is a random walk: means, densities and the end's variance are known."""
    th.manual_seed(0)
    cascade, std = FlowCascade(3, 4, n_blocks=5), 0.2
    features, x_0 = th.randn(20_000, 3), th.randn(20_000, 4)
    chains = sample_chains(cascade, features, x_0, std)
    assert chains.shape == (20_000, 6, 4) and th.equal(chains[:, 0], x_0)
    th.testing.assert_close(transition_means(cascade, features, chains), chains[:, :-1])
    expected = th.distributions.Normal(chains[:, :-1], std).log_prob(chains[:, 1:]).mean(dim=-1)
    th.testing.assert_close(transition_log_probs(chains, chains[:, :-1], std), expected, atol=1e-4, rtol=1e-4)
    th.testing.assert_close(chains[:, -1].var(dim=0), th.full((4,), 1.0 + 5 * std**2), rtol=0.05, atol=0.0)
    # No noise beyond three standard deviations
    assert 2.9 * std < (chains[:, 1:] - chains[:, :-1]).abs().max() <= 3.0 * std + 1e-5


def test_log_probs_of_a_constant_drift() -> None:
    cascade, drift = FlowCascade(3, 2, n_blocks=2, euler_steps=2), th.tensor([1.0, -2.0])
    cascade.biases[-1].data += drift
    chains = th.zeros(1, 5, 2)
    # Every step should have gone by h times the drift, h = 1/4, and stayed
    exponent = 0.5 * (0.25 * drift / 0.5).square().mean()
    expected = -exponent - math.log(0.5) - 0.5 * math.log(2.0 * math.pi)
    log_probs = transition_log_probs(chains, transition_means(cascade, th.zeros(1, 3), chains), 0.5)
    th.testing.assert_close(log_probs, expected.expand(1, 4))


@pytest.mark.parametrize("euler_steps", [1, 3])
def test_chains_follow_the_flow(euler_steps: int) -> None:
    cascade = random_cascade(euler_steps)
    features, x_0 = th.randn(7, 3), th.randn(7, 2)
    with th.no_grad():
        chains = sample_chains(cascade, features, x_0, std=0.0)
        assert chains.shape[1] == chain_length(cascade) + 1 == 3 * euler_steps + 1
        particles = th.stack(cascade.integrate(features, x_0).particles, dim=1)
        th.testing.assert_close(chains[:, ::euler_steps], particles)
        # All blocks at once give what they give one after the other
        th.testing.assert_close(transition_means(cascade, features, chains), chains[:, 1:])


def test_log_probs_end_where_the_published_clamp_has_them() -> None:
    # [-5, 2] at a standard deviation of 0.1
    chains = th.tensor([[[0.0], [0.36]], [[0.0], [0.5]], [[0.0], [0.0]]])
    log_probs = transition_log_probs(chains, th.zeros(3, 1, 1), 0.1)[:, 0]
    raw = th.distributions.Normal(0.0, 0.1).log_prob(chains[:, 1, 0])
    th.testing.assert_close(log_probs, raw.clamp(-5.0, 2.0), atol=1e-3, rtol=0.0)


def test_clip_ranges_grow_along_the_chain() -> None:
    ranges = step_clip_ranges(5, 0.01, 0.001, 3.0)
    assert ranges[0].item() == pytest.approx(0.001) and ranges[-1].item() == pytest.approx(0.01)
    assert ranges[2].item() == pytest.approx(0.001 + 0.009 * (math.exp(1.5) - 1.0) / (math.exp(3.0) - 1.0))
    assert step_clip_ranges(1, 0.01, 0.001, 3.0).tolist() == pytest.approx([0.01])


def test_loss_at_the_old_weights_is_the_policy_gradient() -> None:
    log_probs = th.zeros(2, 3, requires_grad=True)
    advantages, discounts = th.tensor([1.0, -2.0]), th.tensor([0.25, 0.5, 1.0])
    loss, metrics = clipped_loss(log_probs, th.zeros(2, 3), advantages, th.full((3,), 0.1), discounts)
    loss.backward()
    assert log_probs.grad is not None
    th.testing.assert_close(log_probs.grad, -advantages[:, None] * discounts / 6.0)
    assert metrics["approx_kl"] == 0.0 and metrics["clip_fraction"] == 0.0


def test_steps_that_went_far_enough_are_clipped() -> None:
    # Ratio 1.2 everywhere, the clip range is below it in the first step only
    log_probs = th.full((2, 2), math.log(1.2), requires_grad=True)
    loss, metrics = clipped_loss(log_probs, th.zeros(2, 2), th.tensor([1.0, -1.0]), th.tensor([0.1, 0.3]), th.ones(2))
    loss.backward()
    assert log_probs.grad is not None
    # Not where the ratio should rise further; where it should fall again it may
    th.testing.assert_close(log_probs.grad, th.tensor([[0.0, -0.3], [0.3, 0.3]]))
    assert metrics["clip_fraction"] == 0.5


def test_reward_scale_is_that_of_discounted_returns() -> None:
    scaler = RewardScaler()
    rewards = np.array([[1.0, 0.0], [2.0, 4.0], [3.0, 0.0]], np.float32)
    starts = np.array([[1, 1], [0, 0], [1, 0]], np.float32)
    returns = [1.0, 2.0 + 0.99, 3.0, 0.0, 4.0, 4.0 * 0.99]
    scaled = scaler(rewards, starts)
    np.testing.assert_allclose(scaled, rewards / np.std(returns), rtol=1e-3)
    # Returns run on into the next roll-out
    scaler(np.zeros((1, 2), np.float32), np.zeros((1, 2), np.float32))
    np.testing.assert_allclose(scaler.running_return, [3.0 * 0.99, 4.0 * 0.99**2])
    # A first reward after many zeros is not blown up without limit
    sparse = RewardScaler()
    assert abs(sparse(np.zeros((500, 1), np.float32), np.zeros((500, 1)))).max() == 0.0
    assert sparse(np.eye(1, 500, 499, dtype=np.float32).T, np.zeros((500, 1))).max() <= RewardScaler.CLIP
