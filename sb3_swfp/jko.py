"""
The JKO step on a flow cascade: frozen reference, stale particles, adjoint, trust region.

One JKO epoch is a number of gradient steps against one frozen reference. It knows the energy only as a function
``actions -> Q``, so that the tests can hold it to closed forms without an environment.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch as th

from sb3_swfp.bounds import bound_action, bound_log_det
from sb3_swfp.flows import FlowCascade
from sb3_swfp.transport import (
    JKOStepSize,
    jko_objective,
    transport_cost,
    triangle_bound,
    w2_exact,
    w2_paired,
    w2_sinkhorn,
)

#: Particles per state when the trust region is not paired: an optimal plan needs several particles of ONE state
PLAN_PARTICLES = 16
#: States and particles for the exact W2 that is logged
_EXACT_STATES, _EXACT_PARTICLES = 4, 32
#: Least lengths that are divided by: relative to the gradient in the noise, and where that is 0
_LEAST_GAIN, _LEAST_LENGTH = 1e-3, 1e-12
#: Gradient steps from one measurement of what is only logged to the next: the exact W2 alone costs half a gradient step
MEASURE_EVERY = 50

QFunction = Callable[[th.Tensor], th.Tensor]


def entropy_stride(action_dim: int) -> int:
    """
    Entropies are descended by exact Jacobians, of every so many-th particle: about two vector products per particle of
    the batch, whatever the dimension. An estimate from one product is cheaper and of all particles, but wrong where it
    matters (see :meth:`sb3_swfp.flows.FlowCascade.estimated_log_det`).

    :param action_dim: Action dimension
    :return: 1 up to two dimensions, half the dimension above
    """
    return (action_dim + 1) // 2


class StaleParticles(NamedTuple):
    """
    What one sweep through the frozen cascade yields: each block's input and output, ``[N, B, d]``, the ``drift`` of the
    outputs, by which a step of size 1 moves them, ``[N, B, d]``, Q values ``[B]`` and the mean entropy (0 if none was
    asked for).
    """

    inputs: th.Tensor
    outputs: th.Tensor
    drift: th.Tensor
    q_values: th.Tensor
    entropy: th.Tensor


def entropy_of_noise(x_0: th.Tensor) -> th.Tensor:
    """
    Entropy of the standard Gaussian that noise comes from.

    :param x_0: Noise, ``[B, d]``
    :return: Scalar; its gradient is that of the mean of minus the noise's log-densities
    """
    surprise = 0.5 * x_0.square().sum(dim=-1).mean()
    return 0.5 * x_0.shape[-1] * math.log(2.0 * math.pi * math.e) + surprise - surprise.detach()


@th.no_grad()
def drift_along_noise(blocks: Callable[[th.Tensor], list[th.Tensor]], x_0: th.Tensor, gradient: th.Tensor) -> th.Tensor:
    """
    Drift of each particle along ``u_n = (dx_n / dx_0) g``, where block n's output goes when the noise follows the
    energy's gradient ``g`` there. At the end it is the share in that direction of the energy's gradient ``e`` there,
    ``u_N <e, u_N> / |u_N|^2``, of length ``|g|^2 / |u_N|`` since ``g = (dx_N / dx_0)^T e``, and every block's output
    goes as far: ``(|g|^2 / |u_N|) u_n / |u_n|``. Where the flow shrinks ``g`` to less than a thousandth, to a point for
    all purposes, the length falls with ``|u_N|`` instead of rising without bound.

    :param blocks: Noise to the outputs of the N blocks, ``[B, d]`` each
    :param x_0: Noise, ``[B, d]``
    :param gradient: ``g``, minus the energy's gradient with respect to each particle's noise, ``[B, d]``
    :return: Drift of every block's outputs, ``[N, B, d]``
    """
    moved: th.Tensor = th.func.jvp(lambda x: th.stack(blocks(x)), (x_0.detach(),), (gradient,))[1]
    lengths, length = moved.norm(dim=-1, keepdim=True), gradient.norm(dim=-1, keepdim=True)
    least = (_LEAST_GAIN * length).clamp_min(_LEAST_LENGTH)
    return length.square() / (lengths.clamp_min(least) * lengths[-1:].clamp_min(least)) * moved


def evenly(n: int, k: int) -> list[int]:
    """
    :param n: Number of rows
    :param k: How many of them, at most ``n``
    :return: Indices of so many rows, evenly spread
    """
    return [i * n // k for i in range(k)]


class JKOStep:
    """
    Loss, reference and trust region of the JKO update.

    :param cascade: The cascade being trained
    :param reference: The frozen previous iterate, of the same architecture
    :param step_size: JKO step size or its controller; each block gets ``eta / N`` so that the blocks' movements add up
        to the step (triangle inequality, see :func:`sb3_swfp.transport.triangle_bound`)
    :param epoch_length: Gradient steps per JKO epoch. At ``theta = theta_old`` the trust region has no gradient, so one
        step per epoch would be no trust region at all
    :param block_training: ``"parallel"`` (all blocks at once on stale inputs) or ``"sequential"`` (strict JKO)
    :param w2: Trust region: ``"paired"`` (a bound), ``"exact"`` or ``"sinkhorn"``
    :param confined: Whether particles drift only where a change of their noise moves them (:func:`drift_along_noise`),
        or along the energy's gradient wherever it points
    :raises ValueError: for an unknown mode or an epoch of fewer than two steps
    """

    def __init__(
        self,
        cascade: FlowCascade,
        reference: FlowCascade,
        step_size: JKOStepSize,
        epoch_length: int = 50,
        block_training: str = "parallel",
        w2: str = "paired",
        confined: bool = False,
    ):
        if block_training not in ("parallel", "sequential"):
            raise ValueError(f'block_training must be "parallel" or "sequential", not {block_training!r}')
        if w2 not in ("paired", "exact", "sinkhorn"):
            raise ValueError(f'w2 must be "paired", "exact" or "sinkhorn", not {w2!r}')
        if epoch_length < 2:
            raise ValueError(
                f"jko_epoch must be at least 2 gradient steps (the trust region is blind in one), got {epoch_length}"
            )
        self.cascade, self.reference = cascade, reference
        self.step_size, self.epoch_length = step_size, epoch_length
        self.block_training, self.w2, self.confined = block_training, w2, confined
        self.steps_in_epoch = self.steps_to_measurement = 0

    @property
    def block_step_size(self) -> float:
        """Each block's share of the step size."""
        return self.step_size.value / self.cascade.n_blocks

    def stale_particles(
        self,
        features: th.Tensor,
        q_function: QFunction,
        ent_coef: float,
        scale: float = 1.0,
        noise: th.Tensor | None = None,
    ) -> StaleParticles:
        """
        Sweep the frozen cascade and pull the energy's gradient back through it: one vector-Jacobian sweep gives every
        block's adjoint ``lambda_n``, which is the drift (``docs/algorithm.md``, "Block updates"). Confined, it goes on
        to the noise, and a Jacobian-vector sweep follows (there, "Confinement").

        :param features: The reference's state features, ``[B, features_dim]``
        :param q_function: ``Q(s, a)`` of the batch's states, ``[B, d] -> [B]``
        :param ent_coef: Entropy coefficient ``alpha``
        :param scale: Typical size of Q, by which the energy is divided
        :param noise: ``x_0``, ``[B, d]``; drawn when omitted
        """
        x_0 = self.noise(features) if noise is None else noise.detach()
        with th.enable_grad():
            path, q_values, entropy = self.evaluate(features, x_0.requires_grad_(True), q_function, ent_coef)
            objective = q_values.sum() + ent_coef * len(x_0) * entropy
            gradients = th.autograd.grad(objective / scale, path[:1] if self.confined else path[1:])
        if self.confined:
            sweep = self.reference.integrate
            drift = drift_along_noise(lambda z: sweep(features, z).particles[1:], x_0, gradients[0])
        else:
            drift = th.stack(gradients)
        particles = th.stack(path).detach()
        return StaleParticles(particles[:-1], particles[1:], drift, q_values.detach(), entropy.detach())

    def noise(self, features: th.Tensor) -> th.Tensor:
        """One particle's noise for each row of features, ``[B, d]``."""
        return th.randn(len(features), self.cascade.action_dim, device=features.device)

    def evaluate(
        self, features: th.Tensor, x_0: th.Tensor, q_function: QFunction, ent_coef: float
    ) -> tuple[list[th.Tensor], th.Tensor, th.Tensor]:
        """
        Sweep the frozen cascade and value where it ends.

        :param features: The reference's state features, ``[B, features_dim]``
        :param x_0: Noise, ``[B, d]``
        :param q_function: ``Q(s, a)`` of the batch's states, ``[B, d] -> [B]``
        :param ent_coef: Entropy coefficient; without one the entropy is left out
        :return: Particles before and after every block, ``N + 1`` times ``[B, d]``, Q values ``[B]``, mean entropy
        """
        path = self.reference.integrate(features, x_0).particles
        entropy = self._entropy(features, path) if ent_coef > 0.0 else th.zeros((), device=x_0.device)
        return path, q_function(bound_action(path[-1])), entropy

    def _entropy(self, features: th.Tensor, path: list[th.Tensor]) -> th.Tensor:
        """Mean entropy of the bounded actions at the path's end, by the change of variables."""
        rows = slice(None, None, entropy_stride(self.cascade.action_dim))
        inputs = th.stack([x[rows] for x in path[:-1]])
        _, log_dets = self.reference.apply_blocks_with_log_dets(features[rows], inputs)
        return entropy_of_noise(path[0][rows]) + log_dets.sum(dim=0).mean() + bound_log_det(path[-1]).mean()

    def parallel_loss(
        self, features: th.Tensor, stale: StaleParticles, ent_coef: float, scale: float = 1.0
    ) -> th.Tensor:
        """
        JKO objective of all blocks at once on stale inputs. Unconfined its gradient at ``theta = theta_old`` is, up to
        the factor ``eta / N``, the back-propagation-through-time gradient of the energy.

        :param features: The trained actor's state features, ``[B, features_dim]``
        :param stale: Result of :meth:`stale_particles`
        :param ent_coef: Entropy coefficient
        :param scale: Typical size of Q
        :return: Sum over blocks, scalar
        """
        if self.confined:  # its drift is that of the whole energy, the blocks' own determinants included
            ent_coef = 0.0
        entropy: th.Tensor | float = 0.0
        if ent_coef > 0.0:
            every = entropy_stride(self.cascade.action_dim)
            outputs, log_dets = self.cascade.apply_blocks_with_log_dets(features, stale.inputs, every)
            entropy = log_dets.mean(dim=-1).sum()
        else:
            outputs = self.cascade.apply_blocks(features, stale.inputs)
        trust_region = self.trust_region(outputs, stale.outputs)
        loss = jko_objective(stale.drift, outputs, stale.outputs, self.block_step_size, trust_region).sum()
        return loss - self.block_step_size * ent_coef / scale * entropy

    def sequential_loss(
        self,
        n: int,
        features: th.Tensor,
        x_0: th.Tensor,
        x: th.Tensor,
        q_function: QFunction,
        ent_coef: float,
        scale: float = 1.0,
    ) -> th.Tensor:
        """
        JKO objective of block ``n`` on particles that already passed the updated blocks before it; the energy is read
        at the end of the frozen tail.

        :param n: Block index, from 0
        :param features: State features, ``[B, features_dim]``
        :param x_0: Noise, ``[B, d]``
        :param x: What the updated blocks before this one make of it, without their gradients, ``[B, d]``
        :param q_function: ``Q(s, a)`` of the batch's states, ``[B, d] -> [B]``
        :param ent_coef: Entropy coefficient
        :param scale: Typical size of Q
        :return: Scalar
        """
        with th.no_grad():
            output_old = self.reference.apply_block(n, features, x)
        if self.confined:
            output = self.cascade.apply_block(n, features, x)
            along = self._drift_in_order(n, features, x_0, q_function, ent_coef, scale)
            energy = -(along * output).sum(dim=-1).mean()
        else:
            energy, output = self._energy(n, n, features, x, q_function, ent_coef)
            energy = energy / scale
        return self.block_step_size * energy + 0.5 * self.trust_region(output, output_old)

    def _drift_in_order(
        self, n: int, features: th.Tensor, x_0: th.Tensor, q_function: QFunction, ent_coef: float, scale: float
    ) -> th.Tensor:
        """Confined drift of block ``n``'s outputs, ``[B, d]``, from the noise on: the blocks before it are new."""
        with th.enable_grad():
            start = x_0.detach().requires_grad_(True)
            energy, _ = self._energy(0, n, features, start, q_function, ent_coef)
            if ent_coef > 0.0:
                energy = energy - ent_coef * entropy_of_noise(start[:: entropy_stride(self.cascade.action_dim)])
            (gradient,) = th.autograd.grad(-len(x_0) / scale * energy, start)
        return drift_along_noise(lambda z: self._sweep(n, features, z), x_0, gradient)[n]

    def _flow(self, m: int, n: int) -> FlowCascade:
        """Whose block ``m`` is when block ``n``'s turn has come: those up to it are new, those behind it old."""
        return self.cascade if m <= n else self.reference

    def _sweep(self, n: int, features: th.Tensor, x_0: th.Tensor) -> list[th.Tensor]:
        """Every block's output when block ``n``'s turn has come."""
        particles = [x_0]
        for m in range(self.cascade.n_blocks):
            particles.append(self._flow(m, n).apply_block(m, features, particles[-1]))
        return particles[1:]

    def _energy(
        self, first: int, n: int, features: th.Tensor, x: th.Tensor, q_function: QFunction, ent_coef: float
    ) -> tuple[th.Tensor, th.Tensor]:
        """
        Mean energy at the end of blocks ``first`` to N when block ``n``'s turn has come, without the entropy of ``x``,
        and the first of these blocks' output.
        """
        output, entropy = x, th.zeros((), device=x.device)
        every = entropy_stride(self.cascade.action_dim)
        for m in range(first, self.cascade.n_blocks):
            if ent_coef > 0.0:
                x, log_det = self._flow(m, n).apply_block_with_log_det(m, features, x, every)
                entropy = entropy + log_det.mean()
            else:
                x = self._flow(m, n).apply_block(m, features, x)
            if m == first:
                output = x
        if ent_coef > 0.0:
            entropy = entropy + bound_log_det(x).mean()
        return -q_function(bound_action(x)).mean() - ent_coef * entropy, output

    def trust_region(self, outputs: th.Tensor, outputs_old: th.Tensor) -> th.Tensor:
        """
        Squared W2 between the blocks' new and old outputs, by the chosen method.

        :param outputs: ``[(N,) B, d]``; for an optimal plan, ``PLAN_PARTICLES`` consecutive rows belong to one state
        :param outputs_old: The reference's, of the same shape
        :return: ``[(N)]``
        """
        if self.w2 == "paired":
            return w2_paired(outputs, outputs_old)
        shape = (*outputs.shape[:-2], -1, min(PLAN_PARTICLES, outputs.shape[-2]), outputs.shape[-1])
        clouds, clouds_old = outputs.reshape(shape), outputs_old.reshape(shape)
        if self.w2 == "sinkhorn":
            return w2_sinkhorn(clouds, clouds_old).mean(dim=-1)
        pairs = zip(clouds.flatten(0, -3), clouds_old.flatten(0, -3), strict=True)
        return th.stack([w2_exact(x, y) for x, y in pairs]).view(shape[:-2]).mean(dim=-1)

    def count_step(self) -> bool:
        """Count one gradient step; true when it completes the epoch."""
        self.steps_in_epoch += 1
        return self.steps_in_epoch >= self.epoch_length

    @th.no_grad()
    def finish_epoch(self, features: th.Tensor, features_reference: th.Tensor) -> dict[str, float]:
        """
        Measure what the epoch moved and adapt the step size; in the first epoch, and then in one of every
        ``MEASURE_EVERY`` gradient steps, also the triangle bound and what goes into it.

        :param features: The trained actor's state features, ``[B, features_dim]``
        :param features_reference: The reference's, of the same shape
        :return: The epoch's metrics (names without the ``train/`` prefix, explained in ``docs/metrics.md``)
        """
        noise = th.randn(len(features), self.cascade.action_dim, device=features.device)
        new = th.stack(self.cascade.integrate(features, noise).particles)
        old = th.stack(self.reference.integrate(features_reference, noise).particles)
        moved = w2_paired(bound_action(new[-1]), bound_action(old[-1])).sqrt().item()
        metrics = {"w2_paired": moved, "jko_step_size": self.step_size.value}
        if self.steps_to_measurement <= 0:
            metrics |= self._bound(features, new, old)
            metrics["w2_exact"] = self._exact_movement(features, features_reference)
            self.steps_to_measurement = MEASURE_EVERY
        self.steps_to_measurement -= self.steps_in_epoch
        self.step_size.update(moved / self.cascade.action_dim**0.5)
        self.steps_in_epoch = 0
        return metrics

    def _bound(self, features: th.Tensor, new: th.Tensor, old: th.Tensor) -> dict[str, float]:
        """The triangle bound and its parts, from the new and the old particles, ``[N + 1, B, d]``."""
        at_stale = self.cascade.apply_blocks(features, old[:-1])
        deltas = w2_paired(at_stale, old[1:]).sqrt()
        # Secant Lipschitz constants over the pairs that occur: with these the bound is a theorem, not a guess
        distances = (new[:-1] - old[:-1]).norm(dim=-1)
        lipschitz = ((new[1:] - at_stale).norm(dim=-1) / distances.clamp_min(1e-12)).amax(dim=-1)
        metrics = {
            "w2_bound": triangle_bound(deltas, lipschitz).item(),
            "staleness": w2_paired(new[1:-1], old[1:-1]).amax().sqrt().item() if len(new) > 2 else 0.0,
        }
        for n, cost in enumerate(transport_cost(new[:-1], new[1:]).sqrt().tolist(), start=1):
            metrics[f"transport_cost_block_{n}"] = cost
        return metrics

    def _exact_movement(self, features: th.Tensor, features_reference: th.Tensor) -> float:
        """Root mean exact squared W2 between the new and the old policy, over a few states."""
        total = 0.0
        # With an optimal plan, several rows belong to one state
        apart = 1 if self.w2 == "paired" else PLAN_PARTICLES
        states = max(len(features) // apart, 1)
        rows_used = [apart * i for i in evenly(states, min(_EXACT_STATES, states))]
        for i in rows_used:
            noise = th.randn(_EXACT_PARTICLES, self.cascade.action_dim, device=features.device)
            new, old = (
                bound_action(cascade.integrate(rows[i : i + 1], noise).particles[-1])
                for cascade, rows in ((self.cascade, features), (self.reference, features_reference))
            )
            total += w2_exact(new, old).item()
        return (total / len(rows_used)) ** 0.5
