"""The map from the flow's unbounded particles to actions in (-1, 1), its inverse and its log-determinant."""

from __future__ import annotations

import torch as th

#: The bound to [-1, 1] is the identity up to here, and a scaled tanh beyond: unlike a plain tanh it leaves the actions
#: that a flow imitates undistorted, and W2 before the bound means W2 of actions
LINEAR_RANGE = 0.8
#: Demonstrated actions are pulled this far inside the bounds: the bound itself has its preimage at infinity
_MAX_ACTION = 0.99


def bound_action(x: th.Tensor) -> th.Tensor:
    """
    Map particles to actions in (-1, 1): the identity on ``[-0.8, 0.8]``, a tanh outside; smooth, 1-Lipschitz.

    :param x: Particles, any shape
    :return: Actions of the same shape
    """
    linear = x.clamp(-LINEAR_RANGE, LINEAR_RANGE)
    tail = 1.0 - LINEAR_RANGE
    return linear + tail * th.tanh((x - linear) / tail)


def unbound_action(action: th.Tensor) -> th.Tensor:
    """
    Inverse of :func:`bound_action`, for demonstrated actions; these are first pulled inside ``[-0.99, 0.99]``.

    :param action: Actions in [-1, 1], any shape
    :return: Particles of the same shape
    """
    action = action.clamp(-_MAX_ACTION, _MAX_ACTION)
    linear = action.clamp(-LINEAR_RANGE, LINEAR_RANGE)
    tail = 1.0 - LINEAR_RANGE
    return linear + tail * th.atanh((action - linear) / tail)


def bound_log_det(x: th.Tensor) -> th.Tensor:
    """
    Log-determinant of :func:`bound_action`.

    :param x: Particles, ``[..., d]``
    :return: ``sum_i log |d bound(x_i) / d x_i|``, ``[...]``
    """
    tail = 1.0 - LINEAR_RANGE
    excess = ((x.abs() - LINEAR_RANGE) / tail).clamp_min(0.0)
    # log(1 - tanh(u)^2) in the form that doesn't underflow
    return (2.0 * (0.6931471805599453 - excess - th.nn.functional.softplus(-2.0 * excess))).sum(dim=-1)
