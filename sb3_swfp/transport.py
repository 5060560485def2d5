"""
Optimal transport for flow policies: interpolant, Wasserstein-2 distances, the JKO objective and its bound.

Everything here works on plain tensors and knows nothing of reinforcement learning libraries, so that each function can
be used, and is tested, on its own. Notation follows the flow-matching literature: ``x_0`` is noise, ``x_1`` is data.

Two displacements must not be confused (Sun et al., arXiv 2510.15388):

- the *trust region*: how far a block's output moved from the previous iterate's output (:func:`w2_paired`);
- the *transport cost*: how far a block moves its own input (:func:`transport_cost`), a measure of straightness.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch as th

#: Clouds of one size up to this are matched without POT: at 64 particles it takes a few milliseconds
ASSIGNMENT_MAX_PARTICLES = 64


def interpolate(x_0: th.Tensor, x_1: th.Tensor, t: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    """
    Straight conditional path of flow matching and its velocity (Lipman et al., arXiv 2210.02747, section 4.1).

    :param x_0: Noise, ``[..., d]``
    :param x_1: Data, ``[..., d]``
    :param t: Time in [0, 1], broadcastable to ``[..., 1]``
    :return: ``x_t = (1 - t) x_0 + t x_1`` and the target velocity ``x_1 - x_0``, both ``[..., d]``
    """
    velocity = x_1 - x_0
    return x_0 + t * velocity, velocity


def w2_paired(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """
    Squared paired cost ``E ||x_i - y_i||^2``: an UPPER BOUND on the squared Wasserstein-2 distance.

    Pairing particle with particle is a valid coupling of the two clouds, though in general not the best one. It is
    differentiable and costs nothing, which is why it is the default trust region.

    :param x: Particles, ``[..., n, d]``
    :param y: Particles pushed forward from the same noise, ``[..., n, d]``
    :return: Squared distance, ``[...]``
    """
    return (x - y).square().sum(dim=-1).mean(dim=-1)


def _check_clouds(x: th.Tensor, y: th.Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(f"Expected two point clouds [n, d] and [m, d], got {tuple(x.shape)} and {tuple(y.shape)}")


def _import_pot() -> Any:
    # POT probes every array back end when it is imported: pay for that only where transport is really solved
    import ot

    return ot


def w2_exact(x: th.Tensor, y: th.Tensor) -> th.Tensor:
    """
    Squared Wasserstein-2 distance of two equally weighted point clouds: EXACT.

    Small clouds of one size are matched here (:func:`optimal_assignment`), all others by POT's network simplex
    (``ot.emd``): importing POT takes 80 MB, too much for a diagnostic that every run logs on a few particles.

    Differentiable in the positions: the optimal plan is held fixed, which by the envelope theorem gives the gradient of
    the distance itself wherever the plan is unique.

    :param x: Point cloud, ``[n, d]``
    :param y: Point cloud, ``[m, d]``
    :return: Squared distance, scalar
    :raises ValueError: if the shapes do not form two clouds of one dimension
    """
    _check_clouds(x, y)
    cost = th.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()
    if len(x) == len(y) <= ASSIGNMENT_MAX_PARTICLES:
        partners = th.from_numpy(optimal_assignment(cost.detach().cpu().double().numpy())).to(cost.device)
        return cost.gather(1, partners.unsqueeze(1)).mean()
    weights_x, weights_y = (np.full(n, 1.0 / n) for n in cost.shape)
    plan = _import_pot().emd(weights_x, weights_y, cost.detach().cpu().double().numpy(), numItermax=1_000_000)
    return (th.as_tensor(plan, dtype=cost.dtype, device=cost.device) * cost).sum()


def optimal_assignment(cost: np.ndarray) -> np.ndarray:
    """
    Minimum-cost perfect matching by shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987), O(n^3).

    Starts from the rows whose cheapest column is free, which for two clouds that hardly differ are nearly all.

    :param cost: Finite costs, ``[n, n]``
    :return: Column of each row, ``[n]``
    """
    n = len(cost)
    # Duals: u_i + v_j <= cost_ij throughout, with equality on matched pairs
    v = cost.min(axis=0)
    reduced = cost - v
    u = reduced.min(axis=1)
    column_of, row_of = np.full(n, -1), np.full(n, -1)
    for i, j in enumerate(reduced.argmin(axis=1)):
        if row_of[j] < 0:
            column_of[i], row_of[j] = j, i
    for source in np.flatnonzero(column_of < 0):
        distance = cost[source] - u[source] - v
        predecessor, done = np.full(n, source), np.zeros(n, dtype=bool)
        while True:
            sink = int(np.where(done, np.inf, distance).argmin())
            if row_of[sink] < 0:
                break
            done[sink] = True
            row = row_of[sink]
            onward = distance[sink] + cost[row] - u[row] - v
            shorter = ~done & (onward < distance)
            distance[shorter], predecessor[shorter] = onward[shorter], row
        slack = distance[sink] - distance[done]
        v[done] -= slack
        u[row_of[done]] += slack
        u[source] += distance[sink]
        while sink >= 0:
            row = predecessor[sink]
            row_of[sink] = row
            column_of[row], sink = sink, column_of[row]
    return column_of


def w2_sinkhorn(x: th.Tensor, y: th.Tensor, regularisation: float = 0.05) -> th.Tensor:
    """
    Sinkhorn divergence, the DEBIASED entropic approximation of the squared W2 (Genevay et al., arXiv 1706.00292), by
    POT's batched Sinkhorn: ``S(x, y) - (S(x, x) + S(y, y)) / 2``. It tends to the exact squared W2 as
    ``regularisation`` goes to 0. Neither a bound nor exact; without the debiasing it would not vanish at ``x = y``.

    :param x: Point clouds, ``[..., n, d]``
    :param y: Point clouds, ``[..., n, d]``
    :param regularisation: Entropic weight, relative to the mean cost within both clouds
    :return: Squared distance, ``[...]``, differentiable in the positions with the plans held fixed
    :raises ValueError: if the shapes differ
    """
    if x.shape != y.shape or x.ndim < 2:
        raise ValueError(f"Expected equal shapes [..., n, d], got {tuple(x.shape)} and {tuple(y.shape)}")
    first, second = th.stack([x, x, y]), th.stack([y, x, y])
    cost = (first.unsqueeze(-2) - second.unsqueeze(-3)).square().sum(dim=-1).flatten(0, -3)
    regularisation = max(regularisation * cost.detach().mean().item(), 1e-12)
    plans = (
        _import_pot()
        .solve_batch(cost.detach(), reg=regularisation, method="log_sinkhorn", max_iter=100, grad="detach")
        .plan
    )
    between, within_x, within_y = (plans * cost).sum(dim=(-2, -1)).view(3, *x.shape[:-2])
    return between - 0.5 * (within_x + within_y)


def w2_gaussian(mean_x: th.Tensor, cov_x: th.Tensor, mean_y: th.Tensor, cov_y: th.Tensor) -> th.Tensor:
    """
    Squared Wasserstein-2 distance of two Gaussians (Bures' formula): EXACT.

    :param mean_x: Mean, ``[d]``
    :param cov_x: Covariance, ``[d, d]``
    :param mean_y: Mean, ``[d]``
    :param cov_y: Covariance, ``[d, d]``
    :return: ``|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x^1/2 C_y C_x^1/2)^1/2)``, scalar
    """
    root_x = _matrix_sqrt(cov_x)
    cross = _matrix_sqrt(root_x @ cov_y @ root_x)
    return (mean_x - mean_y).square().sum() + th.trace(cov_x + cov_y - 2.0 * cross)


def _matrix_sqrt(matrix: th.Tensor) -> th.Tensor:
    values, vectors = th.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT


def transport_cost(x_in: th.Tensor, x_out: th.Tensor) -> th.Tensor:
    """
    How far a block moves its input, ``E ||T_n(x) - x||^2`` (JKO-iFlow, arXiv 2212.14424): a diagnostic of straightness.

    :param x_in: Particles entering the blocks, ``[..., n, d]``
    :param x_out: Particles leaving the blocks, ``[..., n, d]``
    :return: Mean squared displacement, ``[...]``
    """
    return (x_out - x_in).square().sum(dim=-1).mean(dim=-1)


def jko_objective(
    adjoint: th.Tensor, x_out: th.Tensor, x_old: th.Tensor, step_size: float, trust_region: th.Tensor | None = None
) -> th.Tensor:
    """
    Linearised JKO objective of one or several blocks, in squared action units:
    ``-eta <lambda_n, T_n(x)> + 1/2 W2^2(T_n(x), T_n^old(x))``.

    With the paired cost its minimiser is the explicit Wasserstein gradient step ``x_old + eta * lambda``, and at
    ``x_out = x_old`` its gradient is ``eta`` times the back-propagation-through-time gradient of the energy.

    :param adjoint: ``lambda_n``, minus the energy's gradient with respect to each particle, ``[..., n, d]``
    :param x_out: Outputs of the blocks being trained, ``[..., n, d]``
    :param x_old: Outputs of the frozen reference for the same inputs, ``[..., n, d]``
    :param step_size: JKO step size ``eta`` of each block
    :param trust_region: Squared W2 per block, ``[...]``; the paired cost when omitted
    :return: Objective per block, ``[...]``
    """
    if trust_region is None:
        trust_region = w2_paired(x_out, x_old)
    energy = -(adjoint * x_out).sum(dim=-1).mean(dim=-1)
    return step_size * energy + 0.5 * trust_region


def triangle_bound(deltas: th.Tensor, lipschitz: th.Tensor) -> th.Tensor:
    """
    Bound on how far the cascade's end moved when every block moved on stale inputs:
    ``W2(p_N, p_N^old) <= sum_n (prod_{j > n} L_j) delta_n``.

    :param deltas: Movement of each block at stale inputs (W2, not squared), ``[N]``
    :param lipschitz: Lipschitz constant of each updated block, ``[N]``
    :return: The bound on W2 (not squared), scalar
    """
    after = th.flip(th.cumprod(th.flip(lipschitz, (0,)), 0), (0,))
    tail = th.cat([after[1:], th.ones_like(after[:1])])
    return (tail * deltas).sum()


class JKOStepSize:
    """
    The JKO step size ``eta``: a constant, or a controller that holds a target movement per JKO epoch.

    ``"auto_<target>"`` adapts ``eta`` multiplicatively after each epoch so that the paired W2 distance that the policy
    really moved, divided by ``sqrt(action_dim)`` (root mean square per action dimension, in units of the scaled action
    space [-1, 1]), tends to the target. This is to the trust region what ``ent_coef="auto"`` is to entropy.

    ``"auto_lin_<target>"`` decays the target linearly with the progress that remains, down to a tenth.
    (A target that is held makes the policy move on when there is nothing left to gain: ``eta`` then rises until the
    critic's errors move it.)

    :param spec: A positive number, ``"auto_<target>"``, for example ``"auto_0.03"``, or ``"auto_lin_<target>"``
    :raises ValueError: if the specification is none of these
    """

    #: Share of the steps that is still to come, 1 to 0: set by whoever knows it
    progress_remaining = 1.0
    decays = False

    #: ``eta`` may change by at most this factor per epoch, so that one odd batch can't throw it
    MAX_CHANGE = 1.5
    BOUNDS = (1e-6, 1e3)

    def __init__(self, spec: float | str):
        self.target: float | None = None
        message = (
            'jko_step_size must be a positive number, "auto_<target>", for example "auto_0.03", or '
            f'"auto_lin_<target>", not {spec!r}'
        )
        try:
            if isinstance(spec, str) and spec.startswith("auto_"):
                self.decays = spec.startswith("auto_lin_")
                self.target = float(spec.removeprefix("auto_").removeprefix("lin_"))
                self.value = 0.01
            else:
                self.value = float(spec)
        except ValueError as error:
            raise ValueError(message) from error
        if not 0.0 < (self.value if self.target is None else self.target) < math.inf:
            raise ValueError(message)

    def update(self, moved: float) -> None:
        """
        Adapt after a JKO epoch; a constant step size stays as it is.

        :param moved: W2 moved in the epoch, per ``sqrt(action_dim)``
        """
        if self.target is None or not math.isfinite(moved):
            return
        # Below a tenth the optimiser's own jitter moves the policy, and eta would run down to its bound
        share = max(self.progress_remaining, 0.1) if self.decays else 1.0
        ratio = share * self.target / max(moved, 1e-12)
        factor = min(max(ratio, 1.0 / self.MAX_CHANGE), self.MAX_CHANGE)
        self.value = min(max(self.value * factor, self.BOUNDS[0]), self.BOUNDS[1])
