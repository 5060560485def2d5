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

#: Up to this action dimension log-determinants are always exact; above it :meth:`FlowCascade.integrate` estimates them,
#: which is good enough for a value that nothing descends
EXACT_LOG_DET_MAX_DIM = 2
#: Below this determinant of a step the logarithm continues as a straight line: an Euler step must stay orientation
#: preserving, and a line, unlike a clamp, pushes a folding block back
_MIN_DET = 0.05
#: All steps together may contract at least this far before that: where the line begins, collapsing to a point costs a
#: finite entropy, so it must begin beyond any policy that is wanted (one step alone, with a line from 0.05 on, did
#: collapse on a mode of standard deviation 0.15 in two dimensions). Both are of an area: a volume has its power
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
        self.min_det = min(_MIN_DET, _MIN_DET_ALL_STEPS**self.step) ** max(action_dim / 2, 1.0)
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
        Velocity of block ``n``, or of all blocks, and its Jacobian-vector product in ``x``.

        :param n: Block index, or ``slice(None)`` for all (every tensor then has a leading dimension N)
        :param state: This block's rows of :meth:`project`, ``[(N,) B, width]``
        :param x: Particles, ``[(N,) B, d]``
        :param t: Time, a number or broadcastable to ``[(N,) B, 1]``
        :param tangents: One direction ``e`` for each particle, ``[(N,) B, d]``
        :return: ``v_n(x, t, s)`` and ``(dv_n/dx) e``, both of x's shape (the latter ``None`` without tangents)
        """
        hidden = x @ self.weights[0][n] + (state + t * self.time_weight[n])
        moved = None if tangents is None else tangents @ self.weights[0][n]
        for weight, bias in zip(list(self.weights)[1:], self.biases, strict=True):
            hidden = F.elu(hidden)
            if moved is not None:
                moved = _elu_slope(moved, hidden)
            if hidden.ndim == 2:
                hidden = th.addmm(bias[n], hidden, weight[n])
            else:
                hidden = th.baddbmm(bias[n], hidden, weight[n])
            moved = None if moved is None else moved @ weight[n]
        return hidden, moved

    def velocity_and_jacobian(
        self, blocks: slice, state: th.Tensor, x: th.Tensor, t: th.Tensor, every: int = 1
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Velocity of several blocks, and its whole Jacobian in ``x`` at some of the particles.

        :param blocks: Which blocks
        :param state: These blocks' rows of :meth:`project`, ``[N, B, width]``
        :param x: Particles, ``[N, B, d]``
        :param t: Time, broadcastable to ``[N, B, 1]``
        :param every: Take the Jacobian at every so many-th particle
        :return: Velocity ``[N, B, d]``, and its Jacobian, transposed, ``[N, ceil(B / every), d, d]``
        """
        hidden = x @ self.weights[0][blocks] + (state + t * self.time_weight[blocks])
        # The standard basis through the first layer is its weights; all directions of a block share one product
        moved = self.weights[0][blocks].unsqueeze(2)
        for weight, bias in zip(list(self.weights)[1:], self.biases, strict=True):
            hidden = F.elu(hidden)
            some = hidden[:, ::every].unsqueeze(1).expand(-1, self.action_dim, -1, -1)
            moved = _elu_slope(moved.expand_as(some), some)
            hidden = th.baddbmm(bias[blocks], hidden, weight[blocks])
            moved = (moved.flatten(1, 2) @ weight[blocks]).unflatten(1, some.shape[1:3])
        return hidden, moved.transpose(1, 2)

    def log_of_determinant(self, matrix: th.Tensor) -> th.Tensor:
        """
        ``log det``, continued as a straight line below ``min_det``.

        :param matrix: Jacobian of an Euler step, ``[..., d, d]``
        :return: ``[...]``
        """
        if self.action_dim == 1:
            det = matrix[..., 0, 0]
        elif self.action_dim == 2:
            det = matrix[..., 0, 0] * matrix[..., 1, 1] - matrix[..., 0, 1] * matrix[..., 1, 0]
        else:
            det = th.linalg.det(matrix)
        return th.log(det.clamp_min(self.min_det)) + (det - self.min_det).clamp_max(0.0) / self.min_det

    def probes(self, x: th.Tensor) -> th.Tensor:
        """
        One random sign vector (Rademacher) for each particle.

        :param x: Particles, ``[..., d]``
        :return: ``[..., d]``
        """
        # Rounded uniforms: a third of what bernoulli_ costs
        return th.rand_like(x).round_().mul_(2.0).sub_(1.0)

    def estimated_log_det(self, probes: th.Tensor, moved: th.Tensor) -> th.Tensor:
        """
        Estimate of ``log det(I + h J)`` of one Euler step from ``J e`` along one random sign vector ``e``.

        It is ``d (log(1 + m) - v / (2 (1 + m)^2))`` with ``m = h e'Je / d`` and ``v = ||h Je||^2 / d - m^2``, the mean
        and variance of the spectrum of ``h J`` as the probe sees it. For a symmetric J this is the logarithm's series
        about the mean, cut after the second order. An estimate to look at, not to descend: in six dimensions
        (HalfCheetah) an optimiser made it 7 nats better than the truth, and the policy had collapsed
        (``docs/experiments.md``).

        :param probes: Sign vectors, ``[..., d]``
        :param moved: ``J e``, ``[..., d]``
        :return: ``[...]``
        """
        mean = self.step * (probes * moved).mean(dim=-1)
        variance = self.step**2 * moved.square().mean(dim=-1) - mean.square()
        # No step shrinks all directions to this, so the line serves no more than to keep numbers finite
        safe = (1.0 + mean).clamp_min(_MIN_DET)
        logarithm = safe.log() + (1.0 + mean - _MIN_DET).clamp_max(0.0) / _MIN_DET
        return self.action_dim * (logarithm - 0.5 * variance / safe.square())

    def _euler(self, n: int | slice, state: th.Tensor, x: th.Tensor, t_start: th.Tensor | float) -> th.Tensor:
        for k in range(self.euler_steps):
            x = th.add(x, self.velocity(n, state, x, t_start + k * self.step)[0], alpha=self.step)
        return x

    def integrate(self, features: th.Tensor, x_0: th.Tensor, log_det: bool = False) -> Sweep:
        """
        One sweep through the cascade, noise to action.

        The log-determinants don't feed the particles, so they are left out of the sweep and taken at the end, in one
        stacked pass over all blocks' inputs. Above ``EXACT_LOG_DET_MAX_DIM`` dimensions they are estimates.

        :param features: State features, ``[B, features_dim]``; or ``[B / M, features_dim]``, each row then serves M
            consecutive particles
        :param x_0: Noise, ``[B, d]``
        :param log_det: Also return the log-determinants
        """
        state = self.project(features)
        if len(features) != len(x_0):
            state = state.repeat_interleave(len(x_0) // len(features), dim=1)
        particles = [x_0]
        for n in range(self.n_blocks):
            particles.append(self._euler(n, state[n], particles[-1], n / self.n_blocks))
        if not log_det:
            return Sweep(particles, None)
        inputs = th.stack(particles[:-1])
        if self.action_dim <= EXACT_LOG_DET_MAX_DIM:
            return Sweep(particles, self._euler_with_log_dets(slice(None), state, inputs, self.block_starts(inputs))[1])
        return Sweep(particles, self._estimated_log_dets(state, inputs))

    def _euler_with_log_dets(
        self, blocks: slice, state: th.Tensor, x: th.Tensor, t_start: th.Tensor, every: int = 1
    ) -> tuple[th.Tensor, th.Tensor]:
        identity, total = th.eye(self.action_dim, dtype=x.dtype, device=x.device), x.new_zeros(())
        for k in range(self.euler_steps):
            velocity, jacobian = self.velocity_and_jacobian(blocks, state, x, t_start + k * self.step, every)
            total = total + self.log_of_determinant(identity + self.step * jacobian)
            x = th.add(x, velocity, alpha=self.step)
        return x, total

    def _estimated_log_dets(self, state: th.Tensor, x: th.Tensor) -> th.Tensor:
        probes = self.probes(x)
        start, total = self.block_starts(x), x.new_zeros(())
        for k in range(self.euler_steps):
            velocity, moved = self.velocity(slice(None), state, x, start + k * self.step, probes)
            assert moved is not None
            total = total + self.estimated_log_det(probes, moved)
            x = th.add(x, velocity, alpha=self.step)
        return total

    def apply_blocks(self, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        All blocks at once, block n on its own input: the parallel mode.

        :param features: State features, ``[B, features_dim]``
        :param x: Input of each block, ``[N, B, d]``
        :return: Outputs ``[N, B, d]``
        """
        return self._euler(slice(None), self.project(features), x, self.block_starts(x))

    def apply_block(self, n: int, features: th.Tensor, x: th.Tensor) -> th.Tensor:
        """
        Block ``n`` alone.

        :param n: Block index, from 0
        :param features: State features, ``[B, features_dim]``
        :param x: Input, ``[B, d]``
        :return: Output ``[B, d]``
        """
        return self._euler(n, self._project_block(n, features), x, n / self.n_blocks)

    def apply_blocks_with_log_dets(
        self, features: th.Tensor, x: th.Tensor, every: int = 1
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        :meth:`apply_blocks`, and exact log-determinants from the whole Jacobian: for entropies that are descended.

        :param features: State features, ``[B, features_dim]``
        :param x: Input of each block, ``[N, B, d]``
        :param every: Take the determinants of every so many-th particle, each costs ``d`` vector products
        :return: Outputs ``[N, B, d]`` and log-determinants ``[N, ceil(B / every)]``
        """
        return self._euler_with_log_dets(slice(None), self.project(features), x, self.block_starts(x), every)

    def apply_block_with_log_det(
        self, n: int, features: th.Tensor, x: th.Tensor, every: int = 1
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        The same of block ``n`` alone.

        :param n: Block index, from 0
        :param features: State features, ``[B, features_dim]``
        :param x: Input, ``[B, d]``
        :param every: Take the determinants of every so many-th particle
        :return: Output ``[B, d]`` and log-determinants ``[ceil(B / every)]``
        """
        state, start = self._project_block(n, features), self.block_starts(x)[n : n + 1]
        output, log_det = self._euler_with_log_dets(slice(n, n + 1), state[None], x[None], start, every)
        return output[0], log_det[0]

    def _project_block(self, n: int, features: th.Tensor) -> th.Tensor:
        return F.linear(features, self.block_slice(self.state_weight, n), self.block_slice(self.state_bias, n))

    def block_starts(self, like: th.Tensor) -> th.Tensor:
        """Start time ``t_{n-1}`` of every block, ``[N, 1, 1]``, on the device of ``like``."""
        return th.arange(self.n_blocks, dtype=like.dtype, device=like.device).view(-1, 1, 1) / self.n_blocks


def _elu_slope(moved: th.Tensor, activated: th.Tensor) -> th.Tensor:
    """
    Tangents through an ELU, whose derivative is at hand in its value: smooth enough for the log-determinant's own
    gradient, and half as many kernels as SiLU's. This is the kernel of its backward pass, here run forwards.
    """
    return th.ops.aten.elu_backward(moved, 1.0, 1.0, 1.0, True, activated)
