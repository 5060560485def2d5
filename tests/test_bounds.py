"""The map from particles to actions: identity inside, inverse, derivative, contraction."""

from __future__ import annotations

import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_swfp.bounds import LINEAR_RANGE, bound_action, bound_log_det, unbound_action


def line(low: float, high: float, n: int = 2001) -> th.Tensor:
    return th.linspace(low, high, n, dtype=th.float64)


def test_bound_is_the_identity_inside_and_stays_below_one_outside() -> None:
    inside = line(-LINEAR_RANGE, LINEAR_RANGE)
    assert th.equal(bound_action(inside), inside)
    # Strictly below 1 until the tanh rounds, and never above, also in single precision
    assert bound_action(line(-2.0, 2.0)).abs().max().item() < 1.0
    assert bound_action(th.tensor([-1e6, 1e6])).tolist() == [-1.0, 1.0]


def test_bound_is_odd_and_increasing() -> None:
    x = line(-3.0, 3.0)
    th.testing.assert_close(bound_action(-x), -bound_action(x), rtol=0.0, atol=1e-15)
    assert (bound_action(x).diff() > 0.0).all()


@settings(deadline=None)
@given(st.floats(-20.0, 20.0), st.floats(-20.0, 20.0))
def test_bound_never_stretches(x: float, y: float) -> None:
    a, b = bound_action(th.tensor([x, y], dtype=th.float64)).tolist()
    assert abs(a - b) <= abs(x - y) * (1.0 + 1e-12) + 1e-15


def test_unbound_is_the_inverse() -> None:
    action = line(-0.99, 0.99)
    th.testing.assert_close(bound_action(unbound_action(action)), action, rtol=0.0, atol=1e-12)
    x = line(-1.1, 1.1)
    th.testing.assert_close(unbound_action(bound_action(x)), x, rtol=0.0, atol=1e-9)


def test_actions_on_the_border_have_a_finite_preimage() -> None:
    x = unbound_action(th.tensor([-1.0, 1.0, 5.0]))
    assert bound_action(x).tolist() == pytest.approx([-0.99, 0.99, 0.99], abs=1e-6)


def test_log_det_is_the_logarithm_of_the_derivative() -> None:
    x = line(-2.0, 2.0, 400).view(200, 2).requires_grad_()
    (derivative,) = th.autograd.grad(bound_action(x).sum(), x)
    assert bound_log_det(x).shape == (200,)
    th.testing.assert_close(bound_log_det(x), derivative.log().sum(dim=-1), rtol=1e-9, atol=1e-9)
    # Where the derivative underflows in single precision its logarithm is still a number, with a slope
    far = th.tensor([[50.0]], requires_grad=True)
    log_det = bound_log_det(far)
    log_det.backward()
    assert log_det.isfinite() and far.grad is not None and far.grad.item() == pytest.approx(-10.0, rel=1e-4)
