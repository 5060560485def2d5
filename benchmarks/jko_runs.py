"""JKO epochs with a known energy: the bandit's reward in the critic's place, so that only the flow is learned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch as th

from benchmarks.toy_runs import ALPHA, CLOUD, w2
from sb3_swfp.bounds import bound_action, bound_log_det
from sb3_swfp.envs.bandit import Bandit
from sb3_swfp.flows import FlowCascade
from sb3_swfp.jko import JKOStep, entropy_of_noise
from sb3_swfp.transport import JKOStepSize, w2_paired

#: Particles that the free energy is measured on
_MEASURED = 4_000

_SHARED: dict[str, Any] = dict(block_net_arch=[64, 64], learning_rate=1e-3, batch_size=128, jko_epoch=50)


class _Iterate(NamedTuple):
    """Where the measured particles end, ``[n, 2]``, and the flow's divergence from the Boltzmann density, in nats."""

    particles: th.Tensor
    divergence: float


def reward_of(bandit: Bandit) -> Callable[[th.Tensor], th.Tensor]:
    """
    :param bandit: The bandit
    :return: Its reward as a function of actions, ``[B, 2] -> [B]``, that PyTorch can derive
    """
    centres, heights = (th.as_tensor(values, dtype=th.float32) for values in (bandit.centres, bandit.heights))

    def reward(actions: th.Tensor) -> th.Tensor:
        squares = (actions[:, None] - centres).square().sum(dim=-1)
        return (heights * th.exp(-0.5 * squares / bandit.width**2)).sum(dim=-1)

    return reward


def step_size_settings(n_blocks: int, step_size: float) -> dict[str, Any]:
    """
    :param n_blocks: Number of blocks
    :param step_size: JKO step size ``eta`` of the cascade, in squared action units by units of reward
    :return: Settings of :func:`step_size_run`
    """
    return _SHARED | dict(n_blocks=n_blocks, jko_step_size=step_size, ent_coef=ALPHA)


def step_size_run(
    settings: Mapping[str, Any], seed: int, steps: int, look: Callable[[int, float], Any]
) -> dict[str, Any]:
    """
    Parallel JKO epochs of constant step size from the bounded standard Gaussian on, which every number of blocks begins
    with, towards the bandit's Boltzmann density.

    With F the free energy (minus reward, minus ``ent_coef`` times entropy) a JKO step of size ``eta`` satisfies
    ``F(old) - F(new) >= W2(new, old)^2 / (2 eta)``, since standing still was allowed; so what the energy falls by from
    first to last is at least what the trust region charged for all movements, the right side summed over the epochs. In
    the limit of short steps, the gradient flow, it is twice as much (Ambrosio, Gigli and Savare, Gradient Flows, 2008,
    sections 2.2 and 11.2). ``gain`` is the one by the other. W2 is the paired one, a bound from above, so where the
    energy falls ``gain`` is a bound from below.

    :param settings: As :func:`step_size_settings` returns them
    :param seed: Seed of networks and noise
    :param steps: Gradient steps
    :param look: Called with gradient steps and divergence before the first step and after each epoch
    :return: ``divergence`` (KL, nats) and ``moved`` (paired W2) of each epoch, ``gain``, ``w2`` (exact, to Boltzmann
        samples at the end) and ``staleness`` (the largest that was measured)
    :raises ValueError: if the steps are fewer than an epoch's
    """
    if steps < settings["jko_epoch"]:
        raise ValueError(f"a JKO epoch is {settings['jko_epoch']} gradient steps, got {steps} in all")
    eta, alpha = settings["jko_step_size"], settings["ent_coef"]
    th.manual_seed(seed)
    bandit = Bandit()
    reward = reward_of(bandit)
    cascade, reference = (FlowCascade(1, 2, settings["n_blocks"], settings["block_net_arch"]) for _ in range(2))
    reference.load_state_dict(cascade.state_dict())
    reference.requires_grad_(False)
    jko = JKOStep(cascade, reference, JKOStepSize(eta), settings["jko_epoch"])
    optimizer = th.optim.Adam(cascade.parameters(), lr=settings["learning_rate"], fused=True)
    features, noise = th.zeros(settings["batch_size"], 1), th.randn(_MEASURED, 2)
    iterates, staleness = [_measure(reference, noise, bandit, alpha)], [0.0]
    look(0, iterates[0].divergence)
    for step in range(1, steps + 1):
        loss = jko.parallel_loss(features, jko.stale_particles(features, reward, alpha), alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if jko.count_step():
            staleness.append(jko.finish_epoch(features, features).get("staleness", 0.0))
            reference.load_state_dict(cascade.state_dict())
            iterates.append(_measure(reference, noise, bandit, alpha))
            look(step, iterates[-1].divergence)
    pairs = zip(iterates[:-1], iterates[1:], strict=True)
    moved = [w2_paired(new.particles, old.particles).sqrt().item() for old, new in pairs]
    charged = sum(distance**2 for distance in moved) / (2.0 * eta)
    fall = alpha * (iterates[0].divergence - iterates[-1].divergence)
    truth = bandit.sample_boltzmann(CLOUD, alpha, np.random.default_rng(seed))
    end = bound_action(iterates[-1].particles[:CLOUD]).double().numpy()
    return {
        "divergence": [iterate.divergence for iterate in iterates],
        "moved": moved,
        "gain": fall / charged,
        "w2": w2(end, truth),
        "staleness": max(staleness),
    }


@th.no_grad()
def _measure(cascade: FlowCascade, noise: th.Tensor, bandit: Bandit, alpha: float) -> _Iterate:
    path, log_dets = cascade.integrate(th.zeros(1, 1), noise, log_det=True)
    assert log_dets is not None
    entropy = entropy_of_noise(noise) + log_dets.sum(dim=0).mean() + bound_log_det(path[-1]).mean()
    log_boltzmann = bandit.log_boltzmann(bound_action(path[-1]).double().numpy(), alpha).mean()
    return _Iterate(path[-1], -entropy.item() - float(log_boltzmann))
