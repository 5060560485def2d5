"""The stacked cascade against its blocks one by one, and its log-determinants against automatic differentiation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch as th

from sb3_swfp.bounds import bound_action
from sb3_swfp.flows import EXACT_LOG_DET_MAX_DIM, FlowCascade
from sb3_swfp.policies import cascade_log_prob

pytestmark = pytest.mark.usefixtures("double_precision")


def random_cascade(d: int, n_blocks: int = 3, euler_steps: int = 1, scale: float = 0.3) -> FlowCascade:
    """A cascade of 3 features whose weights are all random: a new one would be the identity."""
    cascade = FlowCascade(3, d, n_blocks, [12, 12], euler_steps)
    for parameter in cascade.parameters():
        parameter.data = scale * th.randn_like(parameter)
    return cascade


def jacobians(cascade: FlowCascade, features: th.Tensor, x: th.Tensor, n: int | None = None) -> th.Tensor:
    """Jacobian of the whole cascade, or of block n, at each particle, ``[B, d, d]``."""

    def push(row: th.Tensor, point: th.Tensor) -> th.Tensor:
        if n is None:
            return cascade.integrate(row[None], point[None]).particles[-1][0]
        return cascade.apply_block(n, row[None], point[None])[0]

    rows = zip(features, x, strict=True)
    return th.stack([th.autograd.functional.jacobian(lambda p, r=row: push(r, p), point) for row, point in rows])


def test_new_cascade_is_the_identity() -> None:
    x_0 = th.randn(5, 2)
    sweep = FlowCascade(3, 2, 4).integrate(th.randn(5, 3), x_0, log_det=True)
    assert len(sweep.particles) == 5 and sweep.log_dets is not None
    for particles in sweep.particles:
        assert th.equal(particles, x_0)
    assert th.equal(sweep.log_dets, th.zeros(4, 5))


@pytest.mark.parametrize(("n_blocks", "euler_steps"), [(1, 1), (3, 1), (2, 3)])
@pytest.mark.parametrize("d", [1, 2, 4])
def test_blocks_in_order_at_once_and_alone_agree(d: int, n_blocks: int, euler_steps: int) -> None:
    cascade = random_cascade(d, n_blocks, euler_steps)
    features, x_0 = th.randn(6, 3), th.randn(6, d)
    sweep = cascade.integrate(features, x_0)
    assert sweep.log_dets is None
    inputs, expected = th.stack(sweep.particles[:-1]), th.stack(sweep.particles[1:])
    th.testing.assert_close(cascade.apply_blocks(features, inputs), expected)
    outputs, log_dets = cascade.apply_blocks_with_log_dets(features, inputs)
    th.testing.assert_close(outputs, expected)
    assert log_dets.shape == (n_blocks, 6)
    outputs, some = cascade.apply_blocks_with_log_dets(features, inputs, every=4)
    th.testing.assert_close(outputs, expected)
    th.testing.assert_close(some, log_dets[:, [0, 4]])
    for n in range(n_blocks):
        th.testing.assert_close(cascade.apply_block(n, features, inputs[n]), expected[n])
        output, log_det = cascade.apply_block_with_log_det(n, features, inputs[n])
        th.testing.assert_close(output, expected[n])
        th.testing.assert_close(log_det, log_dets[n])


def test_one_row_of_features_serves_consecutive_particles() -> None:
    cascade = random_cascade(2)
    features, x_0 = th.randn(2, 3), th.randn(6, 2)
    shared = cascade.integrate(features, x_0, log_det=True)
    repeated = cascade.integrate(features.repeat_interleave(3, dim=0), x_0, log_det=True)
    th.testing.assert_close(shared.particles[-1], repeated.particles[-1])
    th.testing.assert_close(shared.log_dets, repeated.log_dets)


def test_euler_steps_advance_time_within_the_block() -> None:
    cascade = random_cascade(2, n_blocks=2, euler_steps=3)
    features, x = th.randn(4, 3), th.randn(4, 2)
    expected = x
    for k in range(3):
        velocity, _ = cascade.velocity(1, cascade.project(features)[1], expected, 0.5 + k / 6)
        expected = expected + velocity / 6
    th.testing.assert_close(cascade.apply_block(1, features, x), expected)


@pytest.mark.parametrize("d", [1, 2, 4])
def test_jacobian_vector_products_are_those_of_automatic_differentiation(d: int) -> None:
    cascade = random_cascade(d, n_blocks=1)
    features, x, direction = th.randn(5, 3), th.randn(5, d), th.randn(5, d)
    velocity, moved = cascade.velocity(0, cascade.project(features)[0], x, 0.0, direction)
    th.testing.assert_close(x + velocity, cascade.apply_block(0, features, x))
    expected = ((jacobians(cascade, features, x) - th.eye(d)) @ direction[..., None]).squeeze(-1)
    th.testing.assert_close(moved, expected)
    _, transposed = cascade.velocity_and_jacobian(slice(None), cascade.project(features), x[None], th.zeros(1, 1, 1))
    th.testing.assert_close((direction[:, None] @ transposed[0]).squeeze(1), expected)


@pytest.mark.parametrize(("n_blocks", "euler_steps"), [(1, 1), (3, 1), (3, 2)])
@pytest.mark.parametrize("d", [1, 2, 3, 6])
def test_log_determinants_are_exact(d: int, n_blocks: int, euler_steps: int) -> None:
    cascade = random_cascade(d, n_blocks, euler_steps, scale=0.25)
    features, x_0 = th.randn(7, 3), th.randn(7, d)
    sign, expected = th.linalg.slogdet(jacobians(cascade, features, x_0))
    assert (sign > 0).all()
    sweep = cascade.integrate(features, x_0, log_det=True)
    _, log_dets = cascade.apply_blocks_with_log_dets(features, th.stack(sweep.particles[:-1]))
    th.testing.assert_close(log_dets.sum(dim=0), expected, rtol=0.0, atol=1e-12)
    if d <= EXACT_LOG_DET_MAX_DIM:
        th.testing.assert_close(sweep.log_dets, log_dets)


def all_sign_vectors(d: int, batch: int) -> th.Tensor:
    """Every Rademacher probe once, ``[2^d, batch, d]``: the mean over them is the estimate's expectation."""
    signs = th.tensor(list(itertools.product((-1.0, 1.0), repeat=d)))
    return signs[:, None].expand(-1, batch, -1)


@pytest.mark.parametrize("stretch", [0.1, 0.5, 1.0, 3.0])
def test_estimate_of_a_uniform_stretch_is_exact(stretch: float) -> None:
    # A collapse to a point must cost entropy without bound: what is finite, an optimiser takes
    cascade, probes = FlowCascade(3, 4, 1), all_sign_vectors(4, 1)[:3]
    log_det = cascade.estimated_log_det(probes, (stretch - 1.0) * probes).mean()
    assert log_det.item() == pytest.approx(4.0 * math.log(stretch), abs=1e-12)


def test_estimate_stays_finite_where_a_step_turns_space_inside_out() -> None:
    cascade, probes = FlowCascade(3, 4, 1), all_sign_vectors(4, 6)
    stretch = th.tensor([-2.0, -1.0, 0.0, 0.04, 0.06, 1.0], requires_grad=True)
    log_det = cascade.estimated_log_det(probes, (stretch[:, None] - 1.0) * probes)
    assert log_det.isfinite().all() and (log_det.detach().diff() > 0.0).all()
    (slope,) = th.autograd.grad(log_det.sum(), stretch)
    assert slope.isfinite().all() and (slope > 0.0).all()


@pytest.mark.parametrize("size", [0.02, 0.05, 0.1])
def test_estimate_of_a_small_symmetric_step_is_right_to_third_order(size: int) -> None:
    d = EXACT_LOG_DET_MAX_DIM + 2
    cascade = FlowCascade(3, d, 1)
    root = th.randn(8, d, d)
    jacobian = root + root.mT
    jacobian = size * jacobian / th.linalg.matrix_norm(jacobian, 2)[:, None, None]
    probes = all_sign_vectors(d, 8)
    moved = (jacobian @ probes[..., None]).squeeze(-1)
    error = cascade.estimated_log_det(probes, moved).mean(dim=0) - th.linalg.slogdet(th.eye(d) + jacobian)[1]
    # The remainder of the series about the mean m: |z - m|^3 / (3 (1 - |z|)^3) for each of the d eigenvalues z
    assert error.abs().max() <= d * (2.0 * size) ** 3 / (3.0 * (1.0 - size) ** 3)


def test_estimate_of_a_flow_is_close_to_the_exact_determinant_for_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    d = EXACT_LOG_DET_MAX_DIM + 2
    features, x = th.randn(6, 3), th.randn(6, d)
    # Every particle once with every probe, in all blocks and steps: the mean is the estimate's expectation
    signs = all_sign_vectors(d, 6)
    monkeypatch.setattr(FlowCascade, "probes", lambda *_: signs.reshape(1, -1, d))
    errors = []
    weights = random_cascade(d, n_blocks=1, scale=0.2).state_dict()
    for steps in (1, 10):
        cascade = FlowCascade(3, d, 1, [12, 12], steps)
        cascade.load_state_dict(weights)
        log_dets = cascade.integrate(features.repeat(len(signs), 1), x.repeat(len(signs), 1), log_det=True).log_dets
        assert log_dets is not None
        estimate = log_dets[0].view(len(signs), 6).mean(dim=0)
        errors.append((estimate - th.linalg.slogdet(jacobians(cascade, features, x, 0))[1]).abs().max().item())
    # One step is of first order in what an asymmetric Jacobian adds, so ten steps leave a tenth
    assert errors[1] < 0.2 * errors[0] and errors[1] < 0.02


def test_probes_are_signs() -> None:
    probes = random_cascade(4).probes(th.empty(3, 1000, 4))
    assert probes.shape == (3, 1000, 4) and th.equal(probes.abs(), th.ones_like(probes))
    assert abs(probes.mean().item()) < 4.0 / math.sqrt(probes.numel())


def test_folding_step_keeps_a_slope_that_unfolds_it() -> None:
    cascade = FlowCascade(3, 1, 5)
    assert cascade.min_det == 0.05
    # Determinants -0.5, 0, 0.04 on the line; 0.06, 1 and 2 on the logarithm
    derivative = th.tensor([-7.5, -5.0, -4.8, -4.7, 0.0, 5.0], requires_grad=True)
    log_det = cascade.log_of_determinant((1.0 + cascade.step * derivative).view(6, 1, 1))
    assert log_det.isfinite().all() and (log_det.detach().diff() > 0.0).all()
    th.testing.assert_close(log_det[3:], (1.0 + cascade.step * derivative[3:]).log())
    (slope,) = th.autograd.grad(log_det.sum(), derivative)
    th.testing.assert_close(slope[:3], th.full((3,), cascade.step / 0.05))


def test_one_step_alone_may_contract_further() -> None:
    assert FlowCascade(3, 1, 1).min_det == 1e-3 and FlowCascade(3, 1, 10).min_det == 0.05


@pytest.mark.parametrize(("n_blocks", "euler_steps"), [(1, 1), (5, 1), (3, 2)])
def test_density_integrates_to_one(n_blocks: int, euler_steps: int) -> None:
    cascade = random_cascade(1, n_blocks, euler_steps, scale=0.25)
    x_0 = th.linspace(-8.0, 8.0, 40_001)[:, None]
    sweep = cascade.integrate(th.randn(1, 3), x_0, log_det=True)
    actions, density = bound_action(sweep.particles[-1]).squeeze(-1), cascade_log_prob(sweep).exp()
    assert (actions.diff() >= 0.0).all()  # the map is monotone, the grid of noise is a grid of actions
    # Where the bound flattens, actions coincide in double precision: what lies there is left out on both sides
    inside = actions.abs() < 1.0 - 1e-9
    noise = x_0[inside].squeeze(-1)
    expected = th.special.ndtr(noise[-1]) - th.special.ndtr(noise[0])
    assert expected.item() > 0.95
    assert th.trapezoid(density[inside], actions[inside]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_density_needs_log_determinants() -> None:
    sweep = random_cascade(2).integrate(th.randn(4, 3), th.randn(4, 2))
    with pytest.raises(ValueError, match="log_det=True"):
        cascade_log_prob(sweep)


@pytest.mark.parametrize("width", [1, 8])
def test_block_views_are_the_stacked_parameters_memory(width: int) -> None:
    cascade = FlowCascade(3, 2, 4, [width])
    before, features, x = cascade.state_dict(), th.randn(5, 3), th.randn(4, 5, 2)
    before = {name: value.clone() for name, value in before.items()}
    for parameter in cascade.block_views(2):
        parameter.data += 1.0
    outputs = cascade.apply_blocks(features, x)
    cascade.load_state_dict(before)
    changed = (outputs - cascade.apply_blocks(features, x)).abs().amax(dim=(1, 2))
    assert changed[2] > 0.0 and changed[[0, 1, 3]].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(n_blocks=0), "n_blocks must be at least 1, got 0"),
        (dict(euler_steps=-1), "euler_steps must be at least 1, got -1"),
        (dict(net_arch=[]), r"block_net_arch needs at least one hidden layer .*\[\]"),
        (dict(net_arch=[16, 0]), r"block_net_arch .*\[16, 0\]"),
    ],
)
def test_impossible_sizes_are_named(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FlowCascade(3, 2, **kwargs)
