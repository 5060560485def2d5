"""The metric that a clone's own spread gives: in which directions, and after which block, a particle may move far."""

from __future__ import annotations

import torch as th

from sb3_swfp.flows import FlowCascade

#: Share of the mean variance that is added to each: a direction in which the demonstrations never vary has one, too
_SHRINKAGE = 0.01
#: Least variance, of a clone that has none
_LEAST_VARIANCE = 1e-6


@th.no_grad()
def block_whitening(cascade: FlowCascade, features: th.Tensor, n_particles: int = 32) -> th.Tensor:
    """
    Matrices that whiten each block's outputs: with ``Sigma_n`` the covariance of the particles of one state after block
    ``n``, mean over states, shrunk by a hundredth towards its mean variance, and ``s^2`` the mean variance at the
    cascade's end, ``W_n W_n^T = s^2 Sigma_n^-1``.

    W2 between whitened particles is W2 with the ground cost ``s^2 (x - y)^T Sigma_n^-1 (x - y)``. If the particles vary
    equally in every direction at the cascade's end, it is the plain one there.

    :param cascade: The clone
    :param features: State features, ``[B, features_dim]``
    :param n_particles: Particles per state
    :return: ``W``, ``[N, d, d]``; a row of particles ``x`` is whitened by ``x @ W_n``
    :raises ValueError: if the clone's particles are not finite
    """
    n_states, dim = len(features), cascade.action_dim
    path = cascade.integrate(features, th.randn(n_states * n_particles, dim, device=features.device)).particles
    clouds = th.stack(path[1:]).view(cascade.n_blocks, n_states, n_particles, dim)
    if not bool(clouds.isfinite().all()):
        raise ValueError("the clone's actions are not finite: cloning diverged, try a smaller learning_rate")
    deviations = (clouds - clouds.mean(dim=2, keepdim=True)).flatten(1, 2)
    identity = th.eye(dim, device=features.device)
    covariances = deviations.mT @ deviations / (n_states * (n_particles - 1)) + _LEAST_VARIANCE * identity
    variances = covariances.diagonal(dim1=1, dim2=2).mean(dim=1)
    factors = th.linalg.cholesky(covariances + _SHRINKAGE * variances[:, None, None] * identity)
    inverses = th.linalg.solve_triangular(factors, identity.expand_as(factors), upper=False)
    # The shrunk covariance's mean variance
    return ((1.0 + _SHRINKAGE) * variances[-1]).sqrt() * inverses.mT
