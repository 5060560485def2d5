"""Wasserstein distances, the JKO objective and its bound against closed forms."""

from __future__ import annotations

import math

import numpy as np
import ot
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sb3_swfp.transport import (
    JKOStepSize,
    interpolate,
    jko_objective,
    optimal_assignment,
    transport_cost,
    triangle_bound,
    w2_exact,
    w2_gaussian,
    w2_paired,
    w2_sinkhorn,
)


def normal(seed: int, *shape: int) -> th.Tensor:
    """Standard normal numbers in double precision."""
    return th.randn(*shape, dtype=th.float64, generator=th.Generator().manual_seed(seed))


def random_covariance(seed: int, d: int) -> th.Tensor:
    """A well-conditioned covariance matrix whose axes are not the coordinate axes."""
    root = normal(seed, d, d)
    return 0.3 * root @ root.mT + 0.2 * th.eye(d, dtype=th.float64)


def test_interpolant_runs_straight_from_noise_to_data() -> None:
    x_0, x_1 = normal(0, 5, 2), normal(1, 5, 2)
    for t in (0.0, 0.25, 1.0):
        x_t, velocity = interpolate(x_0, x_1, th.full((5, 1), t, dtype=th.float64))
        th.testing.assert_close(x_t, (1.0 - t) * x_0 + t * x_1)
        th.testing.assert_close(velocity, x_1 - x_0)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_distance_of_shifted_clouds_is_the_shift(d: int) -> None:
    x, shift = normal(0, 40, d), normal(1, d)
    length = shift.norm().item()
    assert w2_paired(x, x + shift).sqrt().item() == pytest.approx(length, rel=1e-9)
    # In another order pairing is a poor coupling, the exact distance doesn't mind
    shuffled = (x + shift)[th.randperm(40, generator=th.Generator().manual_seed(2))]
    assert w2_exact(x, shuffled).sqrt().item() == pytest.approx(length, rel=1e-9)
    assert w2_paired(x, shuffled).sqrt().item() > length
    assert w2_sinkhorn(x, shuffled).sqrt().item() == pytest.approx(length, rel=0.02)


def test_exact_distance_in_one_dimension_is_the_sorted_one() -> None:
    x, y = normal(0, 60, 1), 0.5 * normal(1, 60, 1) + 1.0
    expected = w2_paired(x.sort(dim=0).values, y.sort(dim=0).values)
    th.testing.assert_close(w2_exact(x, y), expected, rtol=1e-9, atol=0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**16), st.sampled_from([0.1, 1.0, 100.0]), st.booleans())
def test_assignment_costs_what_the_network_simplex_s_does(n: int, seed: int, size: float, ties: bool) -> None:
    cost = size * np.random.default_rng(seed).random((n, n))
    if ties:
        cost = np.round(cost)
    columns = optimal_assignment(cost)
    assert sorted(columns) == list(range(n))
    uniform = np.full(n, 1.0 / n)
    assert cost[np.arange(n), columns].mean() == pytest.approx(ot.emd2(uniform, uniform, cost), rel=1e-9, abs=1e-9)


def test_exact_distance_is_the_same_with_and_without_pot(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(0, 40, 3), normal(1, 40, 3).requires_grad_(True)
    own = w2_exact(x, y)
    (own_gradient,) = th.autograd.grad(own, y)
    monkeypatch.setattr("sb3_swfp.transport.ASSIGNMENT_MAX_PARTICLES", 0)
    pot = w2_exact(x, y)
    th.testing.assert_close(own, pot)
    th.testing.assert_close(own_gradient, th.autograd.grad(pot, y)[0])


def test_exact_distance_of_clouds_of_different_sizes() -> None:
    x, y = th.tensor([[0.0], [1.0]]), th.tensor([[0.5]])
    assert w2_exact(x, y).item() == pytest.approx(0.25)
    assert w2_exact(x, x.repeat(3, 1)).item() == pytest.approx(0.0, abs=1e-12)


def test_distances_vanish_at_zero_displacement() -> None:
    x = normal(0, 30, 3)
    for distance in (w2_paired, w2_exact, w2_sinkhorn):
        assert distance(x, x).item() == pytest.approx(0.0, abs=1e-12)
    # The logarithm's iteration also survives clouds without any extent
    point = th.zeros(4, 2)
    assert w2_sinkhorn(point, point).item() == pytest.approx(0.0, abs=1e-9)


def test_sinkhorn_tends_to_the_exact_distance_with_less_regularisation() -> None:
    x, y = normal(0, 16, 2), 0.7 * normal(1, 16, 2) + 0.5
    exact = w2_exact(x, y).item()
    errors = [abs(w2_sinkhorn(x, y, regularisation).item() - exact) for regularisation in (1.0, 0.1, 0.02)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.05 * exact


def test_sinkhorn_of_a_batch_is_that_of_its_clouds() -> None:
    scales = th.tensor([1.0, 1.2, 0.9], dtype=th.float64).view(3, 1, 1)
    x, y = normal(0, 3, 12, 2), scales * normal(1, 3, 12, 2) + 0.3
    batch = w2_sinkhorn(x, y, 0.02)
    assert batch.shape == (3,)
    # Not to the digit: the regularisation is relative to the mean cost of the whole batch
    alone = th.stack([w2_sinkhorn(a, b, 0.02) for a, b in zip(x, y, strict=True)])
    th.testing.assert_close(batch, alone, rtol=0.05, atol=0.01)


CLOUD = arrays(
    np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.floats(-10.0, 10.0, allow_subnormal=False)
)


@settings(max_examples=50, deadline=None)
@given(CLOUD, st.integers(0, 2**16), st.floats(0.0, 3.0))
def test_paired_cost_is_never_below_the_exact_distance(cloud: np.ndarray, seed: int, spread: float) -> None:
    x = th.as_tensor(cloud)
    y = x + spread * normal(seed, *x.shape)
    assert w2_paired(x, y).item() >= w2_exact(x, y).item() - 1e-9


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 8))
def test_exact_distance_is_symmetric_and_obeys_the_triangle_inequality(seed: int, n: int) -> None:
    x, y, z = normal(seed, 3, n, 2)
    xy, yz, xz = (math.sqrt(w2_exact(a, b).item()) for a, b in ((x, y), (y, z), (x, z)))
    assert math.sqrt(w2_exact(y, x).item()) == pytest.approx(xy, abs=1e-9)
    assert xz <= xy + yz + 1e-9


def test_gaussian_distance_in_one_dimension() -> None:
    mean_x, mean_y, sd_x, sd_y = 0.3, -1.0, 0.5, 2.0
    tensors = [th.tensor(v, dtype=th.float64) for v in ([mean_x], [[sd_x**2]], [mean_y], [[sd_y**2]])]
    expected = (mean_x - mean_y) ** 2 + (sd_x - sd_y) ** 2
    assert w2_gaussian(*tensors).item() == pytest.approx(expected, rel=1e-9)


def test_gaussian_distance_of_commuting_covariances() -> None:
    cov_x, cov_y = th.diag(th.tensor([1.0, 4.0])), th.diag(th.tensor([9.0, 0.25]))
    zero = th.zeros(2)
    assert w2_gaussian(zero, cov_x, zero, cov_y).item() == pytest.approx((1 - 3) ** 2 + (2 - 0.5) ** 2, rel=1e-5)
    assert w2_gaussian(zero, cov_x, zero, cov_x).item() == pytest.approx(0.0, abs=1e-5)


def test_gaussian_distance_is_that_of_the_optimal_linear_map() -> None:
    # T = A x with symmetric positive A is optimal, so the paired cost of its graph is the distance itself
    x = normal(0, 200_000, 3)
    root = random_covariance(1, 3)
    y = x @ root + th.tensor([0.5, -1.0, 0.2], dtype=th.float64)
    bures = w2_gaussian(x.mean(0), th.cov(x.T), y.mean(0), th.cov(y.T))
    assert w2_paired(x, y).item() == pytest.approx(bures.item(), rel=1e-3)


def test_gaussian_distance_matches_exact_distance_of_large_samples() -> None:
    n = 1500
    roots = [th.linalg.cholesky(random_covariance(seed, 2)) for seed in (0, 1)]
    means = [th.tensor(mean, dtype=th.float64) for mean in ([0.0, 0.0], [1.0, -0.5])]
    x, y = (mean + normal(seed, n, 2) @ root.mT for seed, (mean, root) in enumerate(zip(means, roots, strict=True)))
    bures = w2_gaussian(means[0], roots[0] @ roots[0].mT, means[1], roots[1] @ roots[1].mT)
    assert w2_exact(x, y).item() == pytest.approx(bures.item(), rel=0.08)


def test_gradient_of_the_paired_and_exact_distance() -> None:
    x, shift = normal(0, 12, 2).requires_grad_(), th.tensor([0.4, -0.3], dtype=th.float64)
    # Every particle goes back by 2 shift / n
    for distance in (w2_paired, w2_exact):
        (gradient,) = th.autograd.grad(distance(x, x.detach() + shift), x)
        th.testing.assert_close(gradient, (-2.0 * shift / 12).expand(12, 2))


def test_gradient_of_the_exact_distance_is_that_of_finite_differences() -> None:
    x, y = normal(0, 9, 2).requires_grad_(), normal(1, 7, 2)
    assert th.autograd.gradcheck(lambda z: w2_exact(z, y), (x,), eps=1e-6, atol=1e-6)


def test_gradient_of_sinkhorn_descends_to_the_target() -> None:
    x, y = normal(0, 16, 2).requires_grad_(), 0.5 * normal(1, 16, 2) + 1.0
    before = w2_exact(x, y).item()
    optimiser = th.optim.SGD([x], lr=0.2 * len(x))
    for _ in range(40):
        optimiser.zero_grad()
        w2_sinkhorn(x, y).backward()
        optimiser.step()
    assert w2_exact(x, y).item() < 0.02 * before


def test_shapes_that_form_no_clouds_are_named() -> None:
    x = th.zeros(4, 2)
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(4, 3\)"):
        w2_exact(x, th.zeros(4, 3))
    with pytest.raises(ValueError, match=r"point clouds"):
        w2_exact(x.view(2, 2, 2), x)
    with pytest.raises(ValueError, match=r"\(4, 2\) and \(3, 2\)"):
        w2_sinkhorn(x, th.zeros(3, 2))
    with pytest.raises(ValueError, match=r"n, d"):
        w2_sinkhorn(th.zeros(4), th.zeros(4))


def test_transport_cost_is_the_mean_squared_displacement_of_each_block() -> None:
    x = normal(0, 3, 10, 2)
    moves = th.tensor([0.0, 1.0, 2.0], dtype=th.float64).view(3, 1, 1)
    th.testing.assert_close(transport_cost(x, x + moves), 2.0 * moves.flatten().square())


def test_objective_is_least_at_the_explicit_wasserstein_gradient_step() -> None:
    x_old, adjoint, eta = normal(0, 3, 10, 2), normal(1, 3, 10, 2), 0.3
    x = x_old.clone().requires_grad_()
    (gradient,) = th.autograd.grad(jko_objective(adjoint, x, x_old, eta).sum(), x)
    th.testing.assert_close(gradient, -eta * adjoint / 10)
    x = (x_old + eta * adjoint).requires_grad_()
    objective = jko_objective(adjoint, x, x_old, eta)
    assert objective.shape == (3,)
    (gradient,) = th.autograd.grad(objective.sum(), x)
    th.testing.assert_close(gradient, th.zeros_like(x))
    # Up to the constant eta <lambda, x_old>, the least value is -eta^2 |lambda|^2 / 2
    least = objective.detach() + eta * (adjoint * x_old).sum(-1).mean(-1)
    th.testing.assert_close(least, -0.5 * eta**2 * adjoint.square().sum(-1).mean(-1))


def test_objective_takes_another_trust_region() -> None:
    x_old, adjoint = normal(0, 10, 2), normal(1, 10, 2)
    x = x_old + 0.1
    free = jko_objective(adjoint, x, x_old, 0.3, th.zeros((), dtype=th.float64))
    held = jko_objective(adjoint, x, x_old, 0.3, th.ones((), dtype=th.float64))
    assert (held - free).item() == pytest.approx(0.5)


def test_triangle_bound_multiplies_the_constants_after_each_block() -> None:
    deltas, lipschitz = th.tensor([1.0, 2.0, 3.0]), th.tensor([5.0, 7.0, 11.0])
    assert triangle_bound(deltas, lipschitz).item() == pytest.approx(1 * 7 * 11 + 2 * 11 + 3)
    assert triangle_bound(deltas[:1], lipschitz[:1]).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    "spec",
    [
        0.0,
        -1.0,
        math.nan,
        math.inf,
        "auto",
        "auto_",
        "auto_0",
        "auto_-1",
        "auto_nan",
        "auto_lin_",
        "auto_lin_0",
        "auto_lin_-1",
        "fast",
    ],
)
def test_step_size_names_a_specification_that_makes_no_sense(spec: float | str) -> None:
    with pytest.raises(ValueError, match="jko_step_size must be"):
        JKOStepSize(spec)


def test_constant_step_size_stays() -> None:
    step_size = JKOStepSize(0.2)
    step_size.update(100.0)
    assert step_size.value == 0.2 and step_size.target is None
    assert JKOStepSize("0.2").value == 0.2


@pytest.mark.parametrize("gain", [0.02, 1.0, 30.0])
def test_automatic_step_size_finds_the_target_of_a_proportional_plant(gain: float) -> None:
    step_size = JKOStepSize("auto_0.03")
    for _ in range(25):
        before = step_size.value
        step_size.update(gain * before)
        assert 1.0 / 1.5 - 1e-9 <= step_size.value / before <= 1.5 + 1e-9
    assert gain * step_size.value == pytest.approx(0.03, rel=1e-6)


def test_a_decaying_target_follows_the_progress() -> None:
    step_size = JKOStepSize("auto_lin_0.03")
    for progress_remaining in (1.0, 0.5, 0.1):
        step_size.progress_remaining = progress_remaining
        for _ in range(30):
            step_size.update(2.0 * step_size.value)
        assert 2.0 * step_size.value == pytest.approx(0.03 * progress_remaining, rel=1e-6)
    # No lower: another learn() must be able to begin with what is left
    step_size.progress_remaining = 0.0
    step_size.update(2.0 * step_size.value)
    assert 2.0 * step_size.value == pytest.approx(0.003, rel=1e-6)


def test_automatic_step_size_survives_what_never_moves_or_blows_up() -> None:
    step_size = JKOStepSize("auto_0.03")
    for _ in range(100):
        step_size.update(0.0)
    assert step_size.value == JKOStepSize.BOUNDS[1]
    for moved in (math.nan, math.inf):
        step_size.update(moved)
    assert step_size.value == JKOStepSize.BOUNDS[1]
    for _ in range(100):
        step_size.update(1e6)
    assert step_size.value == JKOStepSize.BOUNDS[0]
