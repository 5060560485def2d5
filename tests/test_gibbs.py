"""
The Gibbs test: with one state, a known Q and a fixed alpha, JKO steps must end at the Boltzmann density exp(Q/alpha)/Z.

Distances are exact W2 to samples of the true density, beside the W2 between two independent sample sets of it: the
noise floor, which no policy can beat.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch as th
from descent import jko_descent

from sb3_swfp.bounds import bound_action
from sb3_swfp.flows import FlowCascade
from sb3_swfp.jko import JKOStep
from sb3_swfp.transport import JKOStepSize, w2_exact

ALPHA = 0.2
QFunction = Callable[[th.Tensor], th.Tensor]


def quadratic(dim: int) -> QFunction:
    """Q of a Gaussian with mean (0.2, -0.1) and a correlated covariance, well inside the bounds."""
    mean = th.tensor([0.2, -0.1])[:dim]
    covariance = th.tensor([[0.04, 0.02], [0.02, 0.04]])[:dim, :dim]
    precision = th.linalg.inv(covariance)
    return lambda action: -0.5 * ALPHA * (((action - mean) @ precision) * (action - mean)).sum(dim=-1)


def two_modes(dim: int) -> QFunction:
    """Q of a mixture of two Gaussians: 70 % left, 30 % right."""
    centres = th.tensor([[-0.45, -0.2], [0.45, 0.3]])[:, :dim]
    log_weights = th.tensor([0.7, 0.3]).log()
    return lambda action: (
        ALPHA * th.logsumexp(log_weights - 0.5 * (action[:, None] - centres).square().sum(dim=-1) / 0.15**2, dim=-1)
    )


def boltzmann_samples(q_function: QFunction, dim: int, n: int) -> th.Tensor:
    """Rejection sampling on the box."""
    peak = q_function(th.rand(100_000, dim) * 2.0 - 1.0).max() + 1e-3
    kept: list[th.Tensor] = []
    while sum(len(part) for part in kept) < n:
        proposals = th.rand(100_000, dim) * 2.0 - 1.0
        kept.append(proposals[th.rand(len(proposals)).log() < (q_function(proposals) - peak) / ALPHA])
    return th.cat(kept)[:n]


def train(
    q_function: QFunction,
    dim: int,
    n_blocks: int,
    steps: int = 1200,
    lr: float = 3e-3,
    batch: int = 256,
    confined: bool = False,
) -> FlowCascade:
    cascade, reference = (FlowCascade(1, dim, n_blocks, [32, 32]) for _ in range(2))
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    jko = JKOStep(cascade, reference, JKOStepSize("auto_0.03"), epoch_length=10, confined=confined)
    for metrics in jko_descent(jko, q_function, th.ones(batch, 1), ALPHA, steps, lr):
        # The triangle inequality, on every epoch that is measured
        assert "w2_bound" not in metrics or metrics["w2_paired"] <= metrics["w2_bound"] * (1.0 + 1e-4) + 1e-6
    return cascade


@th.no_grad()
def policy_samples(cascade: FlowCascade, n: int) -> th.Tensor:
    return bound_action(cascade.integrate(th.ones(n, 1), th.randn(n, cascade.action_dim)).particles[-1])


def distance_and_floor(policy: th.Tensor, q_function: QFunction, n: int = 800) -> tuple[float, float]:
    first, second = (boltzmann_samples(q_function, policy.shape[1], n) for _ in range(2))
    return w2_exact(policy[:n], first).sqrt().item(), w2_exact(first, second).sqrt().item()


@pytest.mark.parametrize(("dim", "n_blocks"), [(1, 1), (1, 5), (1, 10), (2, 5)])
def test_quadratic_energy(dim: int, n_blocks: int) -> None:
    th.manual_seed(0)
    q_function = quadratic(dim)
    policy = policy_samples(train(q_function, dim, n_blocks), 20_000)
    truth = boltzmann_samples(q_function, dim, 20_000)
    th.testing.assert_close(policy.mean(dim=0), truth.mean(dim=0), rtol=0.0, atol=0.03)
    th.testing.assert_close(th.cov(policy.T), th.cov(truth.T), rtol=0.0, atol=0.006)
    distance, floor = distance_and_floor(policy, q_function)
    assert distance < floor + 0.03


@pytest.mark.parametrize(("dim", "n_blocks"), [(1, 1), (1, 5), (1, 10)])
def test_two_modes_keep_their_weight(dim: int, n_blocks: int) -> None:
    th.manual_seed(0)
    q_function = two_modes(dim)
    policy = policy_samples(train(q_function, dim, n_blocks), 20_000)
    assert (policy[:, 0] < 0.0).float().mean().item() == pytest.approx(0.7, abs=0.05)
    distance, floor = distance_and_floor(policy, q_function)
    assert distance < floor + 0.07


@pytest.mark.parametrize(
    ("n_blocks", "steps", "confined"),
    [(1, 1500, False), (5, 500, False), (10, 500, False), (5, 500, True)],
)
def test_two_modes_in_two_dimensions(n_blocks: int, steps: int, confined: bool) -> None:
    # One block used to end in a point: its determinant's logarithm was cut off above what the modes' width asks for
    th.manual_seed(0)
    q_function = two_modes(2)
    policy = policy_samples(train(q_function, 2, n_blocks, steps, lr=1e-2, batch=512, confined=confined), 20_000)
    assert (policy[:, 0] < 0.0).float().mean().item() == pytest.approx(0.7, abs=0.05)
    distance, floor = distance_and_floor(policy, q_function)
    print(f"two modes, d = 2, N = {n_blocks}: W2 {distance:.4f}, floor {floor:.4f}")
    assert distance < floor + 0.07


@pytest.mark.parametrize("n_blocks", [1, 5, 10])
def test_gaussian_in_four_dimensions(n_blocks: int) -> None:
    th.manual_seed(0)
    mean, spread = th.tensor([0.2, -0.1, 0.1, -0.2]), th.tensor([0.25, 0.2, 0.12, 0.16])
    policy = policy_samples(
        train(lambda action: -0.5 * ALPHA * ((action - mean) / spread).square().sum(dim=-1), 4, n_blocks, 500, lr=1e-2),
        20_000,
    )
    th.testing.assert_close(policy.mean(dim=0), mean, rtol=0.0, atol=0.03)
    th.testing.assert_close(policy.std(dim=0), spread, rtol=0.0, atol=0.04)
    first, second = (mean + spread * th.randn(800, 4) for _ in range(2))
    distance, floor = w2_exact(policy[:800], first).sqrt().item(), w2_exact(first, second).sqrt().item()
    print(f"Gaussian, d = 4, N = {n_blocks}: W2 {distance:.4f}, floor {floor:.4f}")
    assert distance < 1.3 * floor


def test_correlated_gaussian_in_six_dimensions_keeps_its_entropy() -> None:
    # Entropy is descended by exact determinants of a third of the particles
    th.manual_seed(0)
    axes = th.linalg.qr(th.randn(6, 6))[0]
    spread = th.tensor([0.04, 0.06, 0.1, 0.15, 0.2, 0.3])
    policy = policy_samples(
        train(lambda action: -0.5 * ALPHA * ((action @ axes) / spread).square().sum(dim=-1), 6, 5, 1000, lr=1e-2),
        20_000,
    )
    found = (policy @ axes).std(dim=0)
    print(f"Gaussian, d = 6: standard deviations {found.tolist()}")
    th.testing.assert_close(found.log().sum(), spread.log().sum(), rtol=0.0, atol=0.6)
    th.testing.assert_close(found, spread, rtol=0.25, atol=0.0)
