"""
The flow policy's body: N small flow blocks with stacked weights.

Block n is a velocity field on ``[t_{n-1}, t_n]``, ``t_n = n / N``, integrated by K Euler steps of ``h = 1 / (N K)``.
All blocks have one shape, so their weights are stacked (``[N, in, out]``) and the whole cascade is evaluated either

- *in order* (:meth:`FlowCascade.integrate`), noise to action, or
- *at once* (:meth:`FlowCascade.apply_blocks`), every block on an input of its own, in one batched product per layer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch as th
from torch import nn
from torch.nn import functional as F

#: Up to this action dimension log-determinants are exact; above it they are estimated (see `FlowCascade.probes`)
EXACT_LOG_DET_MAX_DIM = 2
#: Below this determinant of a step the logarithm continues as a straight line: an Euler step must stay orientation
#: preserving, and a line, unlike a clamp, pushes a folding block back
_MIN_DET = 0.05
#: All steps together may contract at least this far before that: where the line begins, collapsing to a point costs a
#: finite entropy, so it must begin beyond any policy that is wanted (one step alone, with a line from 0.05 on, did
#: collapse on a mode of standard deviation 0.15 in two dimensions)
_MIN_DET_ALL_STEPS = 1e-3


class Sweep(NamedTuple):
    """
    One pass through the cascade: ``particles`` x_0..x_N, each ``[B, d]``, and the blocks' ``log_dets``, ``[N, B]``
    (``None`` unless asked for).
    """

    particles: list[th.Tensor]
    log_dets: th.Tensor | None


class FlowCascade(nn.Module):
    """
    N flow blocks, ``T_n(x; s) = x + h * sum_k v_n(x_k, t_k, s)``, stacked.

    :param features_dim: Dimension of the state features ``s``
    :param action_dim: Dimension ``d`` of the particles
    :param n_blocks: Number of blocks ``N``
    :param net_arch: Hidden widths of every block
    :param euler_steps: Euler steps ``K`` in each block
    :raises ValueError: if ``n_blocks``, ``euler_steps`` or a width is not positive, or there is no hidden layer
    """

    def __init__(
        self,
        features_dim: int,
        action_dim: int,
        n_blocks: int = 5,
        net_arch: list[int] | None = None,
        euler_steps: int = 1,
    ):
        super().__init__()
        widths = [64, 64] if net_arch is None else list(net_arch)
        for name, value in (("n_blocks", n_blocks), ("euler_steps", euler_steps)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not widths or min(widths) < 1:
            raise ValueError(f"block_net_arch needs at least one hidden layer of positive width, got {widths}")
        self.features_dim, self.action_dim = features_dim, action_dim
        self.n_blocks, self.euler_steps, self.widths = n_blocks, euler_steps, widths
        self.step = 1.0 / (n_blocks * euler_steps)
        self.min_det = min(_MIN_DET, _MIN_DET_ALL_STEPS**self.step)
        # The state enters the first layer of every block: one plain product serves all blocks and all Euler steps
        self.state_weight = nn.Parameter(th.empty(n_blocks * widths[0], features_dim))
        self.state_bias = nn.Parameter(th.zeros(n_blocks * widths[0]))
        self.time_weight = nn.Parameter(th.empty(n_blocks, 1, widths[0]))
        sizes = [action_dim, *widths, action_dim]
        self.weights = nn.ParameterList(th.empty(n_blocks, m, n) for m, n in zip(sizes[:-1], sizes[1:], strict=True))
        self.biases = nn.ParameterList(th.zeros(n_blocks, 1, n) for n in sizes[2:])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise like ``nn.Linear``, except the output layer: zero, so that a new cascade is the identity."""
        fan_in = self.features_dim + self.action_dim + 1
        for parameter in (self.state_weight, self.time_weight, self.weights[0]):
            nn.init.uniform_(parameter, -1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in))
        for weight, bias in zip(list(self.weights)[1:], self.biases, strict=True):
            bound = 1.0 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
            nn.init.zeros_(bias)
        nn.init.zeros_(self.weights[-1])

    def block_views(self, n: int) -> list[nn.Parameter]:
        """
        Leaf parameters that share storage with block ``n``'s slices, for an optimiser that updates one block alone.

        :param n: Block index, from 0
        """
        return [nn.Parameter(self.block_slice(parameter.data, n)) for parameter in self.parameters()]

    def block_slice(self, stacked: th.Tensor, n: int) -> th.Tensor:
        """
        Block ``n``'s slice of a stacked parameter, or of its gradient.

        :param stacked: Tensor with the shape of one of this module's parameters
        :param n: Block index, from 0
        """
        rows = stacked.shape[0] // self.n_blocks
        return stacked[n * rows : (n + 1) * rows] if rows > 1 else stacked[n : n + 1]

    def project(self, features: th.Tensor) -> th.Tensor:
        """
        The state's share of every block's first layer.

        :param features: State features, ``[B, features_dim]``
        :return: ``[N, B, width]``
        """
        projected = F.linear(features, self.state_weight, self.state_bias)
        return projected.view(len(features), self.n_blocks, self.widths[0]).transpose(0, 1)

    def velocity(
        self, n: int | slice, state: th.Tensor, x: th.Tensor, t: th.Tensor | float, tangents: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Velocity of block ``n``, or of all blocks, and its Jacobian-vector products in ``x``.

        :param n: Block index, or ``slice(None)`` for all (every tensor then has a leading dimension N)
        :param state: This block's rows of :meth:`project`, ``[(N,) B, width]``
        :param x: Particles, ``[(N,) B, d]``
        :param t: Time, a number or broadcastable to ``[(N,) B, 1]``
        :param tangents: Directions ``e``, ``[M, (N,) B, d]``
        :return: ``v_n(x, t, s)`` of x's shape, and ``(dv_n/dx) e`` of the tangents' shape (``None`` without tangents)
        """
        hidden = x @ self.weights[0][n] + (state + t * self.time_weight[n])
        moved = None if tangents is None else tangents @ self.weights[0][n]
        for weight, bias in zip(list(self.weights)[1:], self.biases, strict=True):
            hidden = F.elu(hidden)
            if moved is not None:
                # ELU's derivative is at hand in its value: smooth enough for the log-determinant's own gradient, and
                # half as many kernels as SiLU's. This is the kernel of its backward pass, here run forwards
                moved = th.ops.aten.elu_backward(moved, 1.0, 1.0, 1.0, True, hidden.expand_as(moved))
            if hidden.ndim == 2:
                hidden = th.addmm(bias[n], hidden, weight[n])
            else:
                hidden = th.baddbmm(bias[n], hidden, weight[n])
            moved = None if moved is None else moved @ weight[n]
        return hidden, moved

    def probes(self, x: th.Tensor) -> th.Tensor:
        """
        Directions along which log-determinants are evaluated.

        Up to ``EXACT_LOG_DET_MAX_DIM`` dimensions the standard basis (exact determinant); above it one Rademacher probe
        for the second-order Hutchinson estimate (see :meth:`log_det`).

        :param x: Particles, ``[..., d]``
        :return: ``[M, ..., d]``
        """
        if self.action_dim <= EXACT_LOG_DET_MAX_DIM:
            basis = th.eye(self.action_dim, dtype=x.dtype, device=x.device)
            return basis.view(self.action_dim, *[1] * (x.ndim - 1), self.action_dim).expand(-1, *x.shape)
        # Rounded uniforms: a third of what bernoulli_ costs
        return th.rand((1, *x.shape), dtype=x.dtype, device=x.device).round_().mul_(2.0).sub_(1.0)

    def log_det(self, tangents: th.Tensor, moved: th.Tensor) -> th.Tensor:
        """
        ``log det(I + h J)`` of one Euler step, from ``J e`` along the probes ``e``.

        Exact in one and two dimensions. Above: ``d (log(1 + m) - v / (2 (1 + m)^2))`` with ``m = h e'Je / d`` and
        ``v = ||h Je||^2 / d - m^2``, the mean and variance of the spectrum of ``h J`` as the probe sees it. For a
        symmetric J this is the logarithm's series about the mean, cut after the second order. The variance keeps an
        optimiser from inflating the trace, the logarithm from collapsing the policy. (The series about 0 lets a
        collapse to a point cost no more than 1.5 nats per dimension and block: five blocks made a standard deviation
        of 0.11 where 0.2 was right.)

        :param tangents: Probes, ``[M, ..., d]``
        :param moved: ``J e``, ``[M, ..., d]``
        :return: ``[...]``
        """
        if self.action_dim > EXACT_LOG_DET_MAX_DIM:
            mean = self.step * (tangents * moved).mean(dim=-1)
            variance = self.step**2 * moved.square().mean(dim=-1) - mean.square()
            # No step shrinks all directions to this, so the line serves no more than to keep numbers finite
            safe = (1.0 + mean).clamp_min(_MIN_DET)
            logarithm = safe.log() + (1.0 + mean - _MIN_DET).clamp_max(0.0) / _MIN_DET
            return self.action_dim * (logarithm - 0.5 * variance / safe.square()).mean(dim=0)
        columns = tangents + self.step * moved
        if self.action_dim == 1:
            det = columns[0, ..., 0]
        else:
            det = columns[0, ..., 0] * columns[1, ..., 1] - columns[0, ..., 1] * columns[1, ..., 0]
        return th.log(det.clamp_min(self.min_det)) + (det - self.min_det).clamp_max(0.0) / self.min_det

    def _euler(
        self, n: int | slice, state: th.Tensor, x: th.Tensor, t_start: th.Tensor | float, tangents: th.Tensor | None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        total: th.Tensor | None = None
        for k in range(self.euler_steps):
            velocity, moved = self.velocity(n, state, x, t_start + k * self.step, tangents)
            x = th.add(x, velocity, alpha=self.step)
            if tangents is not None and moved is not None:
                log_det = self.log_det(tangents, moved)
                total = log_det if total is None else total + log_det
        return x, total

    def integrate(
        self, features: th.Tensor, x_0: th.Tensor, log_det: bool = False, probes: th.Tensor | None = None
    ) -> Sweep:
        """
        One sweep through the cascade, noise to action.

        The log-determinants don't feed the particles, so they are left out of the sweep and taken at the end, in one
        stacked pass over all blocks' inputs.

        :param features: State features, ``[B, features_dim]``; or ``[B / M, features_dim]``, each row then serves M
            consecutive particles
        :param x_0: Noise, ``[B, d]``
        :param log_det: Also return the log-determinants
        :param probes: Directions, ``[M, N, B, d]``; drawn when omitted
        """
        state = self.project(features)
        if len(features) != len(x_0):
            state = state.repeat_interleave(len(x_0) // len(features), dim=1)
        particles = [x_0]
        for n in range(self.n_blocks):
            particles.append(self._euler(n, state[n], particles[-1], n / self.n_blocks, None)[0])
        if not log_det:
            return Sweep(particles, None)
        inputs = th.stack(particles[:-1])
        tangents = self.probes(inputs) if probes is None else probes
        return Sweep(particles, self._euler(slice(None), state, inputs, self.block_starts(inputs), tangents)[1])

    def apply_blocks(
        self, features: th.Tensor, x: th.Tensor, log_det: bool = False, probes: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        All blocks at once, block n on its own input: the parallel mode.

        :param features: State features, ``[B, features_dim]``
        :param x: Input of each block, ``[N, B, d]``
        :param log_det: Also return the log-determinants
        :param probes: Directions, ``[M, N, B, d]``; drawn when omitted
        :return: Outputs ``[N, B, d]`` and log-determinants ``[N, B]`` (``None`` unless asked for)
        """
        tangents = None if not log_det else self.probes(x) if probes is None else probes
        return self._euler(slice(None), self.project(features), x, self.block_starts(x), tangents)

    def apply_block(
        self, n: int, features: th.Tensor, x: th.Tensor, log_det: bool = False, probes: th.Tensor | None = None
    ) -> tuple[th.Tensor, th.Tensor | None]:
        """
        Block ``n`` alone.

        :param n: Block index, from 0
        :param features: State features, ``[B, features_dim]``
        :param x: Input, ``[B, d]``
        :param log_det: Also return the log-determinant
        :param probes: Directions, ``[M, B, d]``; drawn when omitted
        :return: Output ``[B, d]`` and log-determinant ``[B]`` (``None`` unless asked for)
        """
        tangents = None if not log_det else self.probes(x) if probes is None else probes
        rows = self.block_slice(self.state_weight, n), self.block_slice(self.state_bias, n)
        return self._euler(n, F.linear(features, *rows), x, n / self.n_blocks, tangents)

    def block_starts(self, like: th.Tensor) -> th.Tensor:
        """Start time ``t_{n-1}`` of every block, ``[N, 1, 1]``, on the device of ``like``."""
        return th.arange(self.n_blocks, dtype=like.dtype, device=like.device).view(-1, 1, 1) / self.n_blocks
