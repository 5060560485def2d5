"""The metric that a clone's own spread gives: in which directions, and before which block, a particle may move far."""

from __future__ import annotations

import torch as th

from sb3_swfp.flows import FlowCascade

#: Share of the mean variance that is added to each: a direction in which the demonstrations never vary has one, too
_SHRINKAGE = 0.01


@th.no_grad()
def block_whitening(cascade: FlowCascade, features: th.Tensor, n_particles: int = 32) -> th.Tensor:
    """
    Matrices that whiten each block's outputs: with ``Sigma_n`` the covariance of the particles of one state after block
    ``n``, mean over states, and ``s^2`` the mean variance at the cascade's end, ``W_n W_n^T = s^2 Sigma_n^-1``.

    W2 between whitened particles is W2 with the ground cost ``s^2 (x - y)^T Sigma_n^-1 (x - y)``. If the particles vary
    equally in every direction at the cascade's end, it is the plain one there.

    :param cascade: The clone
    :param features: State features, ``[B, features_dim]``
    :param n_particles: Particles per state
    :return: ``W``, ``[N, d, d]``; a row of particles ``x`` is whitened by ``x @ W_n``
    """
    n_states, dim = len(features), cascade.action_dim
    noise = th.randn(n_states * n_particles, dim, device=features.device)
    path = cascade.integrate(features.repeat_interleave(n_particles, dim=0), noise).particles
    # 64 bits: the variances of noise and of a precise clone's actions differ by a factor of a thousand and more
    clouds = th.stack(path[1:]).double().view(cascade.n_blocks, n_states, n_particles, dim)
    deviations = (clouds - clouds.mean(dim=2, keepdim=True)).flatten(1, 2)
    covariances = deviations.mT @ deviations / (n_states * (n_particles - 1))
    variances = covariances.diagonal(dim1=1, dim2=2).mean(dim=1).clamp_min(1e-6)
    identity = th.eye(dim, dtype=covariances.dtype, device=covariances.device)
    factors = th.linalg.cholesky(covariances + _SHRINKAGE * variances[:, None, None] * identity)
    inverses = th.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)
    return ((1.0 + _SHRINKAGE) * variances[-1]).sqrt().to(features) * inverses.mT.to(features)
