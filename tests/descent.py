"""The optimiser's loop of the closed-form tests."""

from __future__ import annotations

from collections.abc import Callable

import torch as th

from sb3_swfp.flows import FlowCascade
from sb3_swfp.jko import JKOStep


def minimise(
    loss_function: Callable[[], th.Tensor],
    cascade: FlowCascade,
    steps: int,
    lr: float,
    annealed: bool = True,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """
    Adam on a cascade's parameters.

    :param loss_function: Loss of one step
    :param cascade: The cascade
    :param steps: Steps to take
    :param lr: Learning rate at first
    :param annealed: Let it fall to 0 along a cosine, or keep it
    :param after_step: Called after each step
    """
    optimizer = th.optim.Adam(cascade.parameters(), lr=lr, fused=True)
    schedule = th.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = loss_function()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if annealed:
            schedule.step()
        after_step()


def jko_descent(
    jko: JKOStep,
    q_function: Callable[[th.Tensor], th.Tensor],
    features: th.Tensor,
    ent_coef: float,
    steps: int,
    lr: float,
    annealed: bool = True,
) -> list[dict[str, float]]:
    """
    JKO epochs as SWFP runs them, all blocks at once, with a known Q instead of a critic.

    :return: The metrics of each epoch
    """
    epochs: list[dict[str, float]] = []

    def loss() -> th.Tensor:
        return jko.parallel_loss(features, jko.stale_particles(features, q_function, ent_coef), ent_coef)

    def finish_epoch() -> None:
        if jko.count_step():
            epochs.append(jko.finish_epoch(features, features))
            jko.reference.load_state_dict(jko.cascade.state_dict())

    minimise(loss, jko.cascade, steps, lr, annealed, finish_epoch)
    return epochs
